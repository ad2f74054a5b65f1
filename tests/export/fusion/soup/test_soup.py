"""Averaged weights: the arithmetic, the alignment, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from monograph.errors import FusionError
from monograph.export.fusion.fuse import FUSION_KEY
from monograph.export.fusion.soup import Souped, plan_soup
from monograph.models.contract import Contract, Kind, TensorSpec
from monograph.models.onnx_file import OnnxFile
from monograph.runtime.session import open_session

Array = npt.NDArray[Any]
WriteModel = Callable[..., OnnxFile]
MakeSoup = Callable[..., Souped]

CONV = """<ir_version: 8, opset_import: ["": 20]>
net (float[batch, 2, 5, 5] x) => (float[batch, 3] logits) {
  a = Conv<pads = [1, 1, 1, 1]>(x, kernel, bias)
  b = Relu(a)
  c = Conv(b, narrow)
  d = Add(c, offset)
  e = GlobalAveragePool(d)
  logits = Flatten(e)
}"""
SHAPES = {"kernel": (4, 2, 3, 3), "bias": (4,), "narrow": (3, 4, 1, 1), "offset": (3, 1, 1)}


def near(base: int, seed: int, shapes: Mapping[str, tuple[int, ...]] = SHAPES, dtype: type = np.float32) -> dict[str, Array]:
    """Weights as if fine-tuned from the checkpoint ``base``."""
    start, step = np.random.default_rng(base), np.random.default_rng(100 + seed)
    return {
        name: (start.standard_normal(shape) + 0.1 * step.standard_normal(shape)).astype(dtype) for name, shape in shapes.items()
    }


def weights_of(path: Path) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(str(path)).graph.initializer}


def run(path: Path, **inputs: Array) -> Array:
    return next(iter(open_session(path)(inputs).values()))


@pytest.mark.parametrize("weights", [None, (0.2, 0.3, 0.5)])
def test_weights_are_the_weighted_mean(write_model: WriteModel, make_soup: MakeSoup, weights: tuple[float, ...] | None):
    arrays = [near(0, seed) for seed in range(3)]
    files = [write_model(f"m{seed}", CONV, member) for seed, member in enumerate(arrays)]
    soup = make_soup(files, weights=weights)
    got = weights_of(soup.file.path)
    assert set(got) == set(SHAPES)
    for name, array in got.items():
        expected = np.average([member[name].astype(np.float64) for member in arrays], axis=0, weights=weights)
        np.testing.assert_array_equal(array, expected.astype(np.float32))
    assert soup.proof.worst.max_abs_error == 0
    assert sorted({batch.batch_size for batch in soup.proof.batches}) == [1, 2, 5, 16]


def test_of_linear_members_it_is_the_mean_of_logits(write_linear: Callable[..., OnnxFile], make_soup: MakeSoup):
    files = [write_linear(f"m{seed}", seed=seed) for seed in range(2)]
    soup = make_soup(files, weights=(0.25, 0.75), max_barrier=100)
    x = np.random.default_rng(5).standard_normal((7, 4), dtype=np.float32)
    expected = 0.25 * run(files[0].path, x=x) + 0.75 * run(files[1].path, x=x)
    np.testing.assert_allclose(run(soup.file.path, x=x), expected, atol=1e-6)


def test_of_one_member_twice_it_is_that_member(write_model: WriteModel, make_soup: MakeSoup):
    arrays = near(0, 1)
    soup = make_soup([write_model("a", CONV, arrays), write_model("b", CONV, arrays)], weights=(0.3, 0.7))
    for name, array in weights_of(soup.file.path).items():
        np.testing.assert_array_equal(array, arrays[name])
    assert "members have equal weights: the soup is the first of them" in soup.plan.notes


@pytest.mark.parametrize("chosen", [0, 1])
def test_with_one_weight_of_1_it_is_that_member(write_model: WriteModel, make_soup: MakeSoup, chosen: int):
    arrays = [near(0, 0), near(1, 1)]  # of different checkpoints, which does not matter to a soup of one
    files = [write_model(f"m{seed}", CONV, member) for seed, member in enumerate(arrays)]
    soup = make_soup(files, weights=(1.0 - chosen, float(chosen)))
    for name, array in weights_of(soup.file.path).items():
        np.testing.assert_array_equal(array, arrays[chosen][name])
    assert f"the soup is m{chosen} alone" in soup.plan.notes


def test_the_order_of_members_does_not_matter(write_model: WriteModel, make_soup: MakeSoup):
    files = [write_model(f"m{seed}", CONV, near(0, seed)) for seed in range(3)]
    one, other = weights_of(make_soup(files).file.path), weights_of(make_soup(files[::-1]).file.path)
    for name, array in one.items():
        np.testing.assert_allclose(array, other[name], rtol=1e-7)


class TestAlignment:
    def test_other_names_written_out_defaults_and_swapped_operands(self, write_model: WriteModel, make_soup: MakeSoup):
        theirs = CONV.replace("Conv(b, narrow)", "Conv<dilations = [1, 1], group = 1, kernel_shape = [1, 1]>(b, narrow)")
        theirs = theirs.replace("Add(c, offset)", "Add(offset, c)").replace("kernel,", "k_1,").replace("narrow", "k_2")
        theirs = theirs.replace(" x)", " pixels)").replace("(x,", "(pixels,").replace("logits", "logits_b")
        theirs = theirs.replace("  e =", "  copy = Identity(d)\n  e =").replace("Pool(d)", "Pool(copy)")
        arrays = near(0, 1)
        renamed = {{"kernel": "k_1", "narrow": "k_2"}.get(name, name): array for name, array in arrays.items()}
        soup = make_soup([write_model("a", CONV, near(0, 0)), write_model("b", theirs, renamed)])
        for name, array in weights_of(soup.file.path).items():
            np.testing.assert_array_equal(array, ((near(0, 0)[name].astype(np.float64) + arrays[name]) / 2).astype(np.float32))

    def test_weights_in_constants_and_in_branches(self, write_model: WriteModel, make_soup: MakeSoup):
        def text(scale: float, bias: float) -> str:
            return f"""<ir_version: 8, opset_import: ["": 20]>
            net (float[batch, 3] x, bool flag) => (float[batch, 3] y)
            {{
              scale = Constant<value = float[3] {{{scale}, {scale}, 1.0}}>()
              scaled = Mul(x, scale)
              y = If (flag) <
                then_branch = yes () => (float[batch, 3] p) {{
                  bias = Constant<value = float[3] {{{bias}, 0.0, 0.0}}>()
                  p = Add(scaled, bias)
                }},
                else_branch = no () => (float[batch, 3] q) {{
                  bias = Constant<value = float[3] {{0.0, {bias}, 0.0}}>()
                  q = Sub(scaled, bias)
                }}
              >
            }}"""

        soup = make_soup([write_model("a", text(1, 2)), write_model("b", text(3, 6))])
        x = np.ones((2, 3), np.float32)
        for flag, expected in ((True, [6, 2, 1]), (False, [2, -2, 1])):
            np.testing.assert_allclose(run(soup.file.path, x=x, flag=np.array(flag)), [expected] * 2)

    def test_external_data_and_older_opsets(self, write_model: WriteModel, make_soup: MakeSoup):
        older = CONV.replace('"": 20', '"": 17')
        files = [
            write_model("a/m", CONV, near(0, 0), external="weights.data"),
            write_model("b/m", older, near(0, 1), external="weights.data"),
        ]
        soup = make_soup(files, names=["a", "b"])
        assert [file.name for file in soup.file.path.parent.iterdir()] == ["soup.onnx"]
        expected = (near(0, 0)["kernel"].astype(np.float64) + near(0, 1)["kernel"]) / 2
        np.testing.assert_array_equal(weights_of(soup.file.path)["kernel"], expected.astype(np.float32))

    def test_a_copied_weight_is_a_weight_of_its_own(self, write_model: WriteModel, make_soup: MakeSoup):
        """PyTorch's older exporter stores equal weights once, and copies them by Identity to where they belong."""
        apart = """<ir_version: 8, opset_import: ["": 20]>
        net (float[batch, 3] x) => (float[batch, 3] y) { h = MatMul(x, w)  y = MatMul(h, v) }"""
        copied = apart.replace("h = MatMul", "v = Identity(w)  h = MatMul")
        w, v = (near(0, seed, {"w": (3, 3)})["w"] for seed in range(2))
        soup = make_soup([write_model("a", copied, {"w": w}), write_model("b", apart, {"w": w, "v": v})])
        got = weights_of(soup.file.path)
        np.testing.assert_array_equal(got["w"], w)
        np.testing.assert_array_equal(got["v"], ((w.astype(np.float64) + v) / 2).astype(np.float32))

    def test_functions(self, write_model: WriteModel, make_soup: MakeSoup):
        text = """<ir_version: 8, opset_import: ["": 20, "own": 1]>
        net (float[batch, 3] x) => (float[batch, 3] y) { h = own.layer(x, w)  y = own.layer(h, v) }
        <domain: "own", opset_import: ["": 20]>
        layer (a, k) => (c) { b = MatMul(a, k)  bias = Constant<value = float[3] {BIAS, 0.0, 0.0}>()  c = Add(b, bias) }"""
        shapes = {"w": (3, 3), "v": (3, 3)}
        files = [write_model(f"m{bias}", text.replace("BIAS", f"{bias}.0"), near(0, bias, shapes)) for bias in (1, 3)]
        soup = make_soup(files)
        w, v = (np.mean([near(0, bias, shapes)[name].astype(np.float64) for bias in (1, 3)], axis=0) for name in "wv")
        x = np.random.default_rng(5).standard_normal((4, 3), dtype=np.float32)
        np.testing.assert_allclose(run(soup.file.path, x=x), (x @ w + [2, 0, 0]) @ v + [2, 0, 0], rtol=1e-5, atol=1e-5)

    def test_half_precision_is_averaged_in_double_and_rounded_once(self, write_model: WriteModel, make_soup: MakeSoup):
        text = CONV.replace("float[", "float16[")
        arrays = [near(0, seed, dtype=np.float16) for seed in range(3)]
        soup = make_soup([write_model(f"m{seed}", text, member) for seed, member in enumerate(arrays)])
        for name, array in weights_of(soup.file.path).items():
            assert array.dtype == np.float16
            mean = np.mean([member[name].astype(np.float64) for member in arrays], axis=0)
            np.testing.assert_array_equal(array, mean.astype(np.float16))
        assert soup.plan.rounding > 0


class TestRefused:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (("pads = [1, 1, 1, 1]", "pads = [2, 2, 2, 2]"), "(Conv) has pads = (2, 2, 2, 2) where a's has (1, 1, 1, 1)"),
            (("b = Relu(a)", "b = Sigmoid(a)"), "reads the output of a Sigmoid ('b'), expected the output of a Relu ('b')"),
            (("Conv(b, narrow)", "Conv(a, narrow)"), "reads the output of a Conv ('a'), expected the output of a Relu ('b')"),
            (("GlobalAveragePool", "GlobalMaxPool"), "the output of a GlobalMaxPool"),
        ],
    )
    def test_another_network(self, write_model: WriteModel, make_soup: MakeSoup, change: tuple[str, str], message: str):
        files = [write_model("a", CONV, near(0, 0)), write_model("b", CONV.replace(*change), near(0, 1))]
        with pytest.raises(FusionError) as refusal:
            make_soup(files)
        assert str(refusal.value).startswith("b is another network than a: ")
        assert message in str(refusal.value)

    def test_another_shape(self, write_model: WriteModel, make_soup: MakeSoup):
        wider = {**SHAPES, "kernel": (8, 2, 3, 3), "bias": (8,), "narrow": (3, 8, 1, 1)}
        files = [write_model("a", CONV, near(0, 0)), write_model("b", CONV, near(0, 1, wider))]
        with pytest.raises(
            FusionError, match=r"weight '\w+' of b is float \[.*8.*\], '\w+' of a is float \[.*4.*\]: a soup needs"
        ):
            make_soup(files)

    def test_another_precision(self, write_model: WriteModel, make_soup: MakeSoup):
        half = CONV.replace("a = Conv<", "k = Cast<to = 1>(kernel)\n a = Conv<").replace("(x, kernel", "(x, k")
        arrays = near(0, 1)
        files = [
            write_model("a", half, near(0, 0)),
            write_model("b", half, arrays | {"kernel": arrays["kernel"].astype(np.float16)}),
        ]
        with pytest.raises(FusionError, match=r"weight 'kernel' of b is float16 .* in one precision"):
            make_soup(files)

    def test_whole_numbers_and_settings_must_be_equal(self, write_model: WriteModel, make_soup: MakeSoup):
        text = """<ir_version: 8, opset_import: ["": 20]>
        net (float[batch, 4] x) => (float[batch, 4] y) {
          columns = Gather<axis = 1>(x, order)
          bounded = Clip(columns, low)
          y = MatMul(bounded, w)
        }"""
        arrays = {"order": np.array([0, 1, 2, 3]), "low": np.float32(0), "w": np.eye(4, dtype=np.float32)}
        base = write_model("base", text, arrays)
        with pytest.raises(
            FusionError, match=r"weight 'order' of b is int64 .* hold other values: only float weights have a mean"
        ):
            make_soup([base, write_model("b", text, arrays | {"order": np.array([3, 2, 1, 0])})])
        with pytest.raises(FusionError, match=r"hold other values, a setting of node 'bounded' \(Clip\)"):
            make_soup([base, write_model("c", text, arrays | {"low": np.float32(-1)})])

    def test_quantised_members(self, write_model: WriteModel, make_soup: MakeSoup):
        text = """<ir_version: 8, opset_import: ["": 20]>
        net (float[batch, 4] x) => (float[batch, 3] y) {
          w = DequantizeLinear(w_int8, scale, zero)
          y = MatMul(x, w)
        }"""
        files = [
            write_model(name, text, {"w_int8": np.full((4, 3), value, np.int8), "scale": np.float32(0.1), "zero": np.int8(0)})
            for name, value in (("a", 1), ("b", 2))
        ]
        with pytest.raises(FusionError, match=r"a is quantised \(node 'w' \(DequantizeLinear\)\): int8 weights have no mean"):
            make_soup(files)

    def test_one_weight_that_stands_for_two(self, write_model: WriteModel, make_soup: MakeSoup):
        tied = """<ir_version: 8, opset_import: ["": 20]>
        net (float[batch, 3] x) => (float[batch, 3] y) { h = MatMul(x, w)  y = MatMul(h, w) }"""
        untied = tied.replace("MatMul(h, w)", "MatMul(h, v)")
        w, v = (near(0, seed, {"w": (3, 3)})["w"] for seed in range(2))
        one = write_model("one", tied, {"w": w})
        with pytest.raises(FusionError, match=r"one uses its weight 'w' in several places, where two has different weights"):
            make_soup([one, write_model("two", untied, {"w": w, "v": v})])
        assert make_soup([one, write_model("three", untied, {"w": v, "v": v})]).plan.weight_count == 1

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"class_names": ("q", "p", "r")}, "do not have the same classes in the same order"),
            ({"class_names": ("p", "q", "s")}, "name different classes"),
            ({"kind": Kind.PROBABILITIES}, "a.onnx and b.onnx give logits and probabilities"),
        ],
    )
    def test_another_contract(
        self, write_linear: Callable[..., OnnxFile], make_soup: MakeSoup, change: Mapping[str, Any], message: str
    ):
        spec = TensorSpec("x", "float32", ("batch", 4)), TensorSpec("logits", "float32", ("batch", 3))
        contract = Contract((spec[0],), (spec[1],), Kind.LOGITS, ("p", "q", "r"))
        files = [write_linear("a", contract=contract), write_linear("b", contract=replace(contract, **change))]
        with pytest.raises(FusionError, match=message):
            make_soup(files)

    def test_a_single_member(self, write_linear: Callable[..., OnnxFile], make_soup: MakeSoup):
        with pytest.raises(FusionError, match="1 member: a fusion needs two or more"):
            make_soup([write_linear("a")])


def test_what_the_file_remembers(write_model: WriteModel, make_soup: MakeSoup):
    files = [write_model(f"m{seed}", CONV, near(0, seed)) for seed in range(2)]
    soup = make_soup(files, weights=(3, 1), normalize=True)
    record = json.loads(soup.file.metadata[FUSION_KEY])
    assert record["form"] == "soup"
    assert "weights were scaled to sum to 1: 0.75, 0.25" in soup.plan.notes
    assert [(m["sha256"], m["weight"]) for m in record["members"]] == [(files[0].sha256, 0.75), (files[1].sha256, 0.25)]
    assert record["batch_norm"] == {"node_count": 0, "recomputed_on": None}
    (angle,) = record["connection"]["angles"]
    assert angle["cosine"] > 0.9


def test_the_plan_is_text(write_model: WriteModel):
    plan = plan_soup([write_model(f"m{seed}", CONV, near(0, seed)) for seed in range(2)])
    text = plan.describe()
    assert "soup of 2 of 2 members: one network, W = Σ αᵢWᵢ over 4 weights (91 numbers), opset 20" in text
    assert "0.5000 x m0" in text
    assert "m0 to m1: cosine of weights 0.9" in text
    assert "(an estimate: no labelled rows)" in text
    assert "there are no BatchNorm statistics to recompute" in text
