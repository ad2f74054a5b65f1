"""Members that want their inputs prepared differently, fused and run: pictures and texts.

The references here are ONNX Runtime runs of each member on inputs prepared by the reader of its own contract, or by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from onnx_ir.tape import Tape
from PIL import Image

from monograph.errors import FusionError
from monograph.export.fusion import Fused, plan_fusion
from monograph.export.fusion.adapters import Cast, Normalise, Resize, RoundPixels, Step, Transpose, Truncate
from monograph.export.fusion.cascade import fuse_cascade, plan_cascade
from monograph.models.contract import Contract, ImagePreprocessing, Kind, TensorSpec, TextPreprocessing
from monograph.models.data.preprocess import preprocess
from monograph.models.onnx_file import OnnxFile
from monograph.runtime.session import open_session

Array = npt.NDArray[Any]
WriteModel = Callable[..., OnnxFile]
FuseFiles = Callable[..., Fused]
VOCABULARY, LONGEST = 20, 24


@pytest.fixture
def write_picture(write_model: WriteModel) -> WriteModel:
    """Write a model of pictures: logits = pixels, flattened, times random weights."""

    def write(
        name: str, size: int = 8, *, dtype: str = "float32", opset: int = 17, input_name: str = "pixels", **preprocessing: Any
    ) -> OnnxFile:
        prep = ImagePreprocessing(**preprocessing)
        shape = (3, size, size) if prep.layout == "NCHW" else (size, size, 3)
        kind = {"float32": "float", "float16": "float16", "uint8": "uint8"}[dtype]
        text = f"""<ir_version: 8, opset_import: ["": {opset}]>
        m ({kind}[batch, {", ".join(map(str, shape))}] {input_name}) => (float[batch, 4] logits)
        {{ f = Cast<to = 1>({input_name}) flat = Flatten(f) logits = MatMul(flat, w) }}"""
        weights = np.random.default_rng(sum(name.encode())).standard_normal((3 * size * size, 4), dtype=np.float32)
        spec = TensorSpec(input_name, dtype, ("batch", *shape), prep)
        contract = Contract((spec,), (TensorSpec("logits", "float32", ("batch", 4)),), Kind.LOGITS)
        return write_model(name, text, {"w": weights}, contract=contract)

    return write


@pytest.fixture
def write_text(write_model: WriteModel) -> WriteModel:
    """Write a model of texts: the mean of token embeddings, plus positions up to ``max_length``, over unmasked tokens."""

    def write(name: str, roles: tuple[str, ...], *, dtype: str = "int64", max_length: int = LONGEST) -> OnnxFile:
        rng = np.random.default_rng(sum(name.encode()))
        inputs = ", ".join(f"{dtype}[batch, sequence] {role}" for role in roles)
        types = "t = Gather(types, token_type_ids) e2 = Add(e, t)" if "token_type_ids" in roles else "e2 = Identity(e)"
        mask = "attention_mask" if "attention_mask" in roles else "input_ids"
        ones = "" if "attention_mask" in roles else "zero = Sub(input_ids, input_ids)"
        weight = f"m = Cast<to = 1>({mask})" if not ones else f"{ones} z = Cast<to = 1>(zero) m = Exp(z)"
        text = f"""<ir_version: 8, opset_import: ["": 17]>
        m ({inputs}) => (float[batch, 4] logits)
        {{ e = Gather(words, input_ids) {types} shape = Shape(input_ids) length = Slice(shape, one, two)
           p = Slice(positions, null, length) e3 = Add(e2, p) {weight} m3 = Unsqueeze(m, two) kept = Mul(e3, m3)
           total = ReduceSum<keepdims = 0>(kept, one) count = ReduceSum<keepdims = 1>(m, one) logits = Div(total, count) }}"""
        arrays = {
            "words": rng.standard_normal((VOCABULARY, 4), dtype=np.float32),
            "positions": rng.standard_normal((max_length, 4), dtype=np.float32),
            "null": np.array([0]),
            "one": np.array([1]),
            "two": np.array([2]),
        }
        if "token_type_ids" in roles:
            arrays["types"] = rng.standard_normal((2, 4), dtype=np.float32)
        bounds = {"input_ids": VOCABULARY, "attention_mask": 2, "token_type_ids": 2}
        specs = tuple(
            TensorSpec(role, dtype, ("batch", "sequence"), TextPreprocessing(role, max_length), bounds[role]) for role in roles
        )
        contract = Contract(specs, (TensorSpec("logits", "float32", ("batch", 4)),), Kind.LOGITS)
        return write_model(name, text, arrays, contract=contract)

    return write


def logits(file: OnnxFile, inputs: dict[str, Array]) -> Array:
    (output,) = open_session(file.path)(inputs).values()
    return output.astype(np.float64)


def node_types(fused: Fused) -> list[str]:
    return [node.op_type for node in onnx.load(fused.file.path).graph.node]


def assert_mean_of_members_on_pictures(fused: Fused, files: list[OnnxFile], pictures: Array, *, atol: float = 1e-4) -> None:
    """The same pictures, read once by the fused contract and once by each member's own, give the same answer."""

    def read(file: OnnxFile) -> dict[str, Array]:
        inputs, _ = preprocess({spec.name: pictures for spec in file.contract.inputs}, file.contract)
        return inputs

    expected = np.mean([logits(file, read(file)) for file in files], axis=0)
    got = logits(fused.file, read(fused.file))
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol * np.abs(expected).max())


def some_pictures(size: int, count: int = 5) -> Array:
    return np.random.default_rng(1).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


class TestPictures:
    def test_layouts_normalisations_and_types(self, write_picture: WriteModel, fuse_files: FuseFiles):
        files = [
            write_picture("first", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
            write_picture("second", layout="NHWC", scale=1 / 127.5, mean=(1.0,), input_name="image"),
            write_picture("third", scale=1.0, dtype="uint8", layout="NHWC"),
            write_picture("fourth", dtype="float16"),
        ]
        fused = fuse_files(files)
        assert [spec.describe() for spec in fused.file.contract.inputs] == ["pixels: float32 [batch x 3 x 8 x 8]"]
        assert_mean_of_members_on_pictures(fused, files, some_pictures(8), atol=1e-3)  # float16 rounds its pixels
        assert node_types(fused).count("Transpose") == 1  # of two members that want NHWC

    def test_equal_steps_are_in_the_graph_once(self, write_picture: WriteModel, fuse_files: FuseFiles):
        files = [write_picture("one", mean=(0.5,)), write_picture("two", mean=(0.5,)), write_picture("three", scale=1.0)]
        fused = fuse_files(files)
        types = node_types(fused)
        assert_mean_of_members_on_pictures(fused, files, some_pictures(8))
        pixel_steps = [node for node in onnx.load(fused.file.path).graph.node if "pixels" in node.input]
        assert [node.op_type for node in pixel_steps].count("Mul") == 1, types

    def test_equal_preprocessing_stays_outside(self, write_picture: WriteModel, fuse_files: FuseFiles):
        files = [write_picture("one", mean=(0.5,)), write_picture("two", mean=(0.5,))]
        fused = fuse_files(files)
        assert fused.file.contract.inputs == files[0].contract.inputs
        assert_mean_of_members_on_pictures(fused, files, some_pictures(8))

    @pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
    @pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
    def test_sizes(self, write_picture: WriteModel, fuse_files: FuseFiles, resample: str, layout: str):
        """Pillow rounds resized pixels to whole ones, the graph does not; hence the wide tolerance."""
        files = [
            write_picture("small", 24, layout=layout, resample=resample, mean=(0.5,), opset=13),
            write_picture("large", 32, resample=resample),
        ]
        fused = fuse_files(files)
        assert fused.file.contract.inputs[0].shape == (("batch", 3, 32, 32) if layout == "NCHW" else ("batch", 32, 32, 3))
        pictures = some_pictures(32)
        by_hand = [
            np.stack(
                [
                    np.asarray(Image.fromarray(picture).resize((24, 24), Image.Resampling[resample.upper()]))
                    for picture in pictures
                ]
            ).astype(np.float32)
            / 255
            - 0.5,
            pictures.astype(np.float32) / 255,
        ]
        feeds = [by_hand[0] if layout == "NHWC" else by_hand[0].transpose(0, 3, 1, 2), by_hand[1].transpose(0, 3, 1, 2)]
        expected = np.mean([logits(file, {"pixels": feed}) for file, feed in zip(files, feeds, strict=True)], axis=0)
        read, _ = preprocess({"pixels": pictures}, fused.file.contract)
        np.testing.assert_allclose(logits(fused.file, read), expected, rtol=0, atol=0.01 * np.abs(expected).max())

    def test_whole_pixels_of_another_size(self, write_picture: WriteModel, fuse_files: FuseFiles):
        """What is resized is rounded for a member of uint8: no last digit may decide, so the proof is not loosened."""
        files = [write_picture("small", 12, scale=1.0, dtype="uint8"), write_picture("large", 16)]
        fused = fuse_files(files, tolerance=1e-5)
        assert any("12 x 12" in note for note in fused.plan.notes)

    def test_the_plan_says_what_is_done(self, write_picture: WriteModel):
        plan = plan_fusion([write_picture("a", 8, layout="NHWC"), write_picture("b", 6, scale=1.0, dtype="uint8")])
        lines = plan.describe().splitlines()
        assert lines[3:5] == [
            "  0.5000 x a  (normalise pixels)",
            "  0.5000 x b  (transpose pixels to NCHW, resize pixels to 6 x 6, round pixels to uint8)",
        ]
        assert plan.contract.inputs[0].preprocessing == ImagePreprocessing(scale=1.0, layout="NHWC")

    def test_the_order_of_members_does_not_matter(self, write_picture: WriteModel, fuse_files: FuseFiles):
        files = [write_picture("a", mean=(0.2,)), write_picture("b", layout="NHWC", scale=1.0)]
        for order in (files, files[::-1]):
            assert_mean_of_members_on_pictures(fuse_files(order), files, some_pictures(8))

    def test_a_cascade(self, write_picture: WriteModel, tmp_path: Path):
        """The second member's steps stand inside the If, on the hard rows alone."""
        files = [write_picture("small", 6, mean=(0.5,)), write_picture("large", 8, layout="NHWC", scale=1.0, dtype="uint8")]
        plan = plan_cascade(files, thresholds=(0.9,))
        assert plan.contract.inputs[0].describe() == "pixels: float32 [batch x 3 x 8 x 8]"
        assert fuse_cascade(plan, tmp_path / "cascade.onnx").file.path.exists()

    def test_pixels_without_preprocessing(self, write_model: WriteModel, fuse_files: FuseFiles):
        def write(name: str, kind: str) -> OnnxFile:
            text = f"""<ir_version: 8, opset_import: ["": 17]> m ({kind}[batch, 3, 2, 2] x) => (float[batch, 12] y)
            {{ f = Cast<to = 1>(x) y = Flatten(f) }}"""
            return write_model(name, text)

        fused = fuse_files([write("whole", "uint8"), write("real", "float")])
        pixels = np.linspace(-1, 257, 24, dtype=np.float32).reshape(2, 3, 2, 2)
        (got,) = open_session(fused.file.path)({"x": pixels}).values()
        expected = (pixels.clip(0, 255).round() + pixels).reshape(2, 12) / 2
        np.testing.assert_allclose(got, expected, rtol=1e-6)


class TestTexts:
    def test_types_and_masks_that_members_lack(self, write_text: WriteModel, fuse_files: FuseFiles):
        files = [
            write_text("plain", ("input_ids",)),
            write_text("masked", ("attention_mask", "input_ids"), dtype="int32"),
            write_text("typed", ("input_ids", "token_type_ids", "attention_mask")),
        ]
        fused = fuse_files(files)
        assert [spec.describe() for spec in fused.file.contract.inputs] == [
            "input_ids: int64 [batch x sequence]",
            "attention_mask: int32 [batch x sequence]",
            "token_type_ids: int64 [batch x sequence]",
        ]
        rng = np.random.default_rng(0)
        arrays = {
            "input_ids": rng.integers(0, VOCABULARY, (3, 7)),
            "attention_mask": (np.arange(7) < np.array([[7], [4], [1]])).astype(np.int32),
            "token_type_ids": rng.integers(0, 2, (3, 7)),
        }
        outputs = [
            logits(file, {spec.name: arrays[spec.name].astype(spec.dtype) for spec in file.contract.inputs}) for file in files
        ]
        np.testing.assert_allclose(logits(fused.file, arrays), np.mean(outputs, axis=0), atol=1e-5)

    def test_limits(self, write_text: WriteModel, fuse_files: FuseFiles):
        """The shorter one has no position beyond its limit: fed with more tokens it fails."""
        roles = ("input_ids", "attention_mask")
        files = [write_text("short", roles, max_length=9), write_text("long", roles)]
        fused = fuse_files(files)
        assert [spec.preprocessing for spec in fused.file.contract.inputs] == [TextPreprocessing(role, LONGEST) for role in roles]
        rng = np.random.default_rng(0)
        for length in (5, 9, 10, 24):
            arrays = {
                "input_ids": rng.integers(0, VOCABULARY, (2, length)),
                "attention_mask": (np.arange(length) < np.array([[length], [3]])).astype(np.int64),
            }
            cut = {name: array[:, :9] for name, array in arrays.items()}
            expected = (logits(files[0], cut) + logits(files[1], arrays)) / 2
            np.testing.assert_allclose(logits(fused.file, arrays), expected, atol=1e-5)

    def test_tokenizers_that_differ_in_their_limit_only(self, write_text: WriteModel):
        files = [write_text("a", ("input_ids",)), write_text("b", ("input_ids",), max_length=9)]
        made = '{"truncation": {"max_length": %d, "stride": %d}, "model": {"type": "WordLevel"}}'

        def with_tokenizers(*texts: str) -> list[OnnxFile]:
            return [replace(file, metadata={"monograph.tokenizer": text}) for file, text in zip(files, texts, strict=True)]

        for order in ((24, 9), (9, 24)):
            files_in_order = with_tokenizers(*(made % (length, 0) for length in order))
            assert plan_fusion(files_in_order).tokenizer_json == made % (24, 0)
        with pytest.raises(FusionError, match="use different tokenizers"):
            plan_fusion(with_tokenizers(made % (24, 0), made % (9, 1)))


class TestSteps:
    """Each step alone: its nodes, run by ONNX Runtime, against its arrays."""

    @pytest.mark.parametrize(
        ("step", "shape", "result"),
        [
            (Cast("int32"), ("b", 3, 8, 6), ("b", 3, 8, 6)),
            (RoundPixels("uint8"), ("b", 3, 8, 6), ("b", 3, 8, 6)),
            (Transpose((0, 2, 3, 1)), ("b", 3, 8, 6), ("b", 8, 6, 3)),
            (Normalise(0.5, (1.0, 2.0, 3.0), (1.0, 0.5, 3.0), 1), ("b", 3, 8, 6), ("b", 3, 8, 6)),
            (Normalise(0.5, (1.0, 2.0, 3.0), (1.0, 0.5, 3.0), 3), ("b", 8, 6, 3), ("b", 8, 6, 3)),
            (Truncate(5), ("b", 8), ("b", 5)),
            (Truncate(9), ("b", 8), ("b", 8)),
            *(
                (Resize(*size, resample), ("b", 3, 8, 6), ("b", 3, *size))
                for size in ((5, 4), (8, 3), (3, 6), (11, 13))
                for resample in ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
            ),
        ],
        ids=str,
    )
    def test_nodes_compute_what_arrays_do(
        self, step: Step, shape: tuple[int | str, ...], result: tuple[int | str, ...], tmp_path: Path
    ):
        tape = Tape()
        source = ir.val("x", dtype=ir.DataType.FLOAT, shape=ir.Shape(shape))
        output = step.emit(tape, source)
        assert output.shape == ir.Shape(result)
        output.name = "y"
        graph = ir.Graph(
            [source], [output], nodes=tape.nodes, initializers=tape.initializers, opset_imports={"": 13}, name="step"
        )
        ir.save(ir.Model(graph, ir_version=8), tmp_path / "step.onnx")
        onnx.checker.check_model(str(tmp_path / "step.onnx"), full_check=True)
        array = np.random.default_rng(0).integers(0, 256, (2, *shape[1:])).astype(np.float32)
        (got,) = open_session(tmp_path / "step.onnx")({"x": array}).values()
        expected = step.apply(array)
        assert got.dtype == expected.dtype
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-3)

    def test_halves_are_rounded_up_and_pixels_stay_in_range(self):
        pixels = np.array([-3.0, 0.49, 0.5, 1.5, 2.5, 254.4, 254.6, 300.0], np.float32)
        np.testing.assert_array_equal(RoundPixels("uint8").apply(pixels), np.array([0, 0, 1, 2, 3, 254, 255, 255], np.uint8))

    @pytest.mark.parametrize("resample", ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"])
    @pytest.mark.parametrize("size", [(24, 24), (20, 32), (40, 31)])
    def test_resized_pixels_are_within_one_level_of_a_picture_that_pillow_resized(self, resample: str, size: tuple[int, int]):
        """Pillow rounds after each axis: half a level twice, and little more where a filter amplifies the first."""
        pictures = some_pictures(32)
        resized = [Image.fromarray(picture).resize(size[::-1], Image.Resampling[resample.upper()]) for picture in pictures]
        expected = np.stack([np.asarray(picture) for picture in resized]).transpose(0, 3, 1, 2)
        got = Resize(*size, resample).apply(pictures.transpose(0, 3, 1, 2))
        np.testing.assert_allclose(got, expected, rtol=0, atol=1.2)
