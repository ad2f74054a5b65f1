"""``predict.py``: what the project itself answers for the same pictures, with onnxruntime and numpy alone."""

from __future__ import annotations

import importlib.metadata
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn

import monograph
from monograph.export.trace import export_torch
from monograph.models.contract import Contract, ImagePreprocessing, Kind, TensorSpec, TextPreprocessing
from monograph.models.data.digits import optical_digits
from monograph.models.data.preprocess import preprocess
from monograph.models.torch_model import TorchModel
from monograph.pipelines.bundle import predict
from monograph.runtime.session import open_session


def own_path(model: Path, contract: Contract, pictures: list[Image.Image]) -> np.ndarray:
    """Return the outputs of the project's own preprocessing and session, one row a picture."""
    session = open_session(model)
    inputs = [preprocess({contract.inputs[0].name: [picture]}, contract)[0] for picture in pictures]
    return np.concatenate([session(one)[contract.output.name] for one in inputs])


def softmax(logits: np.ndarray) -> np.ndarray:
    values = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return values / values.sum(axis=1, keepdims=True)


def photo_model(folder: Path, prep: ImagePreprocessing, channels: int = 3, dtype: str = "float32") -> tuple[Path, Contract]:
    """Write a small convolution of fixed random weights, sharp enough that pictures get different classes."""
    sizes = (channels, 40, 56) if prep.layout == "NCHW" else (40, 56, channels)
    pixels = TensorSpec("pixels", dtype, ("batch", *sizes), prep)
    contract = Contract((pixels,), (TensorSpec("logits", "float32", ("batch", 6)),), Kind.LOGITS, tuple("pqrstu"))
    torch.manual_seed(3)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(channels, 8, 5, stride=4), nn.Linear(8 * 9 * 13, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x if prep.layout == "NCHW" else x.permute(0, 3, 1, 2)
            return 8 * self.head(self.conv(x.float()).relu().flatten(1))

    export_torch(TorchModel(Net().eval(), contract, "photos"), folder / "photos.onnx")
    return folder / "photos.onnx", contract


@pytest.mark.parametrize(
    ("prep", "channels"),
    [
        (ImagePreprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), resize_shorter_side=60), 3),
        (ImagePreprocessing(mean=(0.5,), std=(0.25,), layout="NHWC", resample="bicubic"), 3),
        (ImagePreprocessing(scale=1 / 127.5, mean=(1.0,), resample="nearest"), 1),
    ],
    ids=["crop", "stretch", "grey"],
)
def test_photographs_get_the_class_that_the_project_gives(
    prep: ImagePreprocessing, channels: int, photographs: list[Image.Image], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    model, contract = photo_model(tmp_path, prep, channels)
    made = monograph.bundle_model(model, tmp_path / "b")
    files = [tmp_path / f"{index}.{'png' if index % 3 else 'ppm'}" for index in range(len(photographs))]
    for picture, file in zip(photographs, files, strict=True):
        picture.save(file)
    assert predict.main([*map(str, files), "--model", str(made.path / "model.onnx"), "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    expected = softmax(own_path(model, contract, photographs))
    assert [answer["index"] for answer in answers] == expected.argmax(1).tolist()
    assert len(set(expected.argmax(1))) > 1
    np.testing.assert_allclose([answer["probability"] for answer in answers], expected.max(1), atol=0.02)


def test_digits_get_the_probability_that_the_project_gives(world, whole_bundle: Path, tmp_path: Path, capsys):
    contract = monograph.export_model(str(world.model), tmp_path / "m.onnx").contract
    digits = [Image.fromarray(array) for array in optical_digits()["x"][700:760]]
    files = [tmp_path / f"{index}.png" for index in range(len(digits))]
    for picture, file in zip(digits, files, strict=True):
        picture.save(file)
    assert predict.main([*map(str, files), "--model", str(whole_bundle / "model.onnx"), "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    expected = softmax(own_path(world.model, contract, digits))
    assert [answer["index"] for answer in answers] == expected.argmax(1).tolist()
    np.testing.assert_allclose([answer["probability"] for answer in answers], expected.max(1), atol=1e-6)


def test_arrays(world, whole_bundle: Path, tmp_path: Path, capsys):
    model = str(whole_bundle / "model.onnx")
    digits = optical_digits()["x"][700:703]
    np.save(tmp_path / "many.npy", digits)
    np.savez(tmp_path / "x.npz", x=digits, y=[0, 0, 0])
    np.save(tmp_path / "one.npy", digits[0])
    for name, count in (("many.npy", 3), ("x.npz", 3), ("one.npy", 1)):
        assert predict.main([str(tmp_path / name), "--model", model]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == count
    assert lines[0].split()[0] in (whole_bundle / "labels.txt").read_text().split()


def test_a_lowered_form(whole_bundle: Path, tmp_path: Path, capsys):
    Image.fromarray(optical_digits()["x"][700]).save(tmp_path / "d.png")
    answers = []
    for place in ("model.onnx", "lowered/int8.onnx"):
        assert predict.main([str(tmp_path / "d.png"), "--model", str(whole_bundle / place), "--json"]) == 0
        answers += json.loads(capsys.readouterr().out)
    assert answers[0]["label"] == answers[1]["label"]
    assert answers[0]["probability"] != answers[1]["probability"]


@pytest.mark.parametrize("resample", ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(28, 28), (224, 224), (640, 480), (97, 207), (320, 100), (20, 240)])
def test_resizing_is_pillows(resample: str, size: tuple[int, int], photographs: list[Image.Image]):
    for picture in (photographs[0], photographs[6].convert("L")):
        pixels = np.asarray(picture).reshape(240, 320, -1)
        expected = np.asarray(picture.resize(size, Image.Resampling[resample.upper()])).reshape(size[1], size[0], -1)
        got = predict.resized(pixels, size[1], size[0], resample)
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "P", "P-alpha", "P-4", "P-2"])
@pytest.mark.parametrize("wanted", ["L", "RGB", "RGBA"])
def test_png_is_read_as_pillow_reads_it(mode: str, wanted: str, photographs: list[Image.Image], tmp_path: Path):
    picture = photographs[5]
    clear = picture.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(picture.size))
    made = {"P": picture.quantize(200), "P-alpha": clear.quantize(64), "P-4": picture.quantize(11), "P-2": picture.quantize(3)}
    made |= {"LA": clear.convert("LA"), "RGBA": clear}
    made.get(mode, picture.convert(mode) if mode in ("1", "L", "RGB") else picture).save(tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as opened:
        opaque = opened.convert("RGBA") if "transparency" in opened.info else opened
        expected = np.asarray(opaque.convert(wanted)).reshape(*picture.size[::-1], -1)
    got = predict._to_channels(predict.read_picture(tmp_path / "p.png"), expected.shape[2])
    np.testing.assert_array_equal(got, expected)


def test_every_filter_of_png(photographs: list[Image.Image]):
    pixels = np.asarray(photographs[3]).astype(int)
    height = len(pixels)
    filters = np.arange(height) % 5
    padded = np.pad(pixels, ((1, 0), (1, 0), (0, 0)))
    left, above, between = padded[1:, :-1], padded[:-1, 1:], padded[:-1, :-1]
    guess = left + above - between
    far = [np.abs(guess - one) for one in (left, above, between)]
    nearest = np.where((far[0] <= far[1]) & (far[0] <= far[2]), left, np.where(far[1] <= far[2], above, between))
    guesses = np.stack([np.zeros_like(left), left, above, (left + above) // 2, nearest])
    lines = ((pixels - guesses[filters, np.arange(height)]) & 255).astype(np.uint8)
    np.testing.assert_array_equal(predict._unfiltered(lines, filters.astype(np.uint8), Path("p.png")), pixels)


@pytest.mark.parametrize("shape", [("batch", "sequence"), ("batch", 9)])
def test_texts_become_the_tokens_that_the_project_makes(shape: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    words = {word: index for index, word in enumerate(("[UNK]", "<pad>", "fine", "weather", "today"))}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    roles = ("input_ids", "attention_mask")
    inputs = tuple(TensorSpec(role, "int64", shape, TextPreprocessing(role, 6)) for role in roles)
    contract = Contract(inputs, (TensorSpec("logits", "float32", ("batch", 2)),), Kind.LOGITS)
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_str())
    monkeypatch.setattr(predict, "FOLDER", tmp_path)
    specs = json.loads(contract.to_json())["inputs"]
    for text in ("fine weather", "fine day today and fine weather tomorrow"):
        texts = [text]
        expected, _ = preprocess(dict.fromkeys(roles, texts), contract, tokenizer_json=tokenizer.to_str())
        got = predict.inputs_from_text(text, specs)
        assert {name: array.tolist() for name, array in got.items()} == {name: array.tolist() for name, array in expected.items()}
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(predict.UnusableError, match="texts need the package tokenizers"):
        predict.inputs_from_text("fine", specs)


class TestRefused:
    @pytest.fixture
    def fails(self, whole_bundle: Path, tmp_path: Path, capsys):
        def call(name: str, data: bytes) -> str:
            (tmp_path / name).write_bytes(data)
            assert predict.main([str(tmp_path / name), "--model", str(whole_bundle / "model.onnx")]) == 2
            captured = capsys.readouterr()
            assert captured.out == ""
            assert captured.err.count("\n") == 1
            return captured.err

        return call

    def test_pictures(self, fails, photographs: list[Image.Image], monkeypatch: pytest.MonkeyPatch):
        stream = io.BytesIO()
        photographs[3].save(stream, "png")
        png = stream.getvalue()
        assert "cut short" in fails("a.png", png[:2000])
        assert "damaged PNG" in fails("a.png", png[:16] + b"\xff" * 8 + png[24:])
        assert "damaged PGM" in fails("a.pgm", b"P5\n8 x")
        assert "expected 255 and all pixels" in fails("a.pgm", b"P5\n8 8 255\n" + bytes(3))
        assert "cannot be read as a picture" in fails("a.jpg", b"nothing")
        monkeypatch.setitem(sys.modules, "PIL", None)
        assert "pip install pillow, or convert the picture" in fails("a.jpg", b"nothing")

    def test_others(self, fails, whole_bundle: Path, tmp_path: Path, capsys):
        np.save(tmp_path / "wrong.npy", np.zeros((2, 7), np.float32))
        assert "expected float32 ['batch', 1, 8, 8]" in fails("w.npy", (tmp_path / "wrong.npy").read_bytes())
        model = str(whole_bundle / "model.onnx")
        for arguments, message in (
            (["nowhere.png"], "no such file: nowhere.png"),
            (["--text", "hi"], "the model takes no text"),
            (["x.png", "--model", "no.onnx"], "no such file: no.onnx"),
        ):
            assert predict.main(["--model", model, *arguments]) == 2
            assert message in capsys.readouterr().err


def test_answers_without_classes():
    assert predict.answer_of(np.array([1.5, 2.0]), {"kind": "embedding", "class_names": None}) == {"output": [1.5, 2.0]}
    answer = predict.answer_of(np.array([0.25, 0.75]), {"kind": "probabilities", "class_names": None})
    assert (answer["label"], answer["probability"]) == ("class 1", 0.75)


_NEEDED = ("onnxruntime", "numpy")


@pytest.mark.slow
def test_in_an_environment_with_onnxruntime_and_numpy_only(world, bundle: Path, tmp_path: Path):
    """A new virtual environment without pip, whose packages are links to the two of this one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    for name in _NEEDED:
        folder = Path(str(importlib.metadata.distribution(name).locate_file(name)))
        (packages / name).symlink_to(folder)
        if (libraries := folder.with_name(f"{name}.libs")).is_dir():
            (packages / libraries.name).symlink_to(libraries)
    picture = Image.fromarray(optical_digits()["x"][700]).resize((64, 48))
    picture.save(tmp_path / "picture.png")
    picture.save(tmp_path / "picture.jpg")
    python, script = tmp_path / "venv" / "bin" / "python", bundle / "predict.py"

    def call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [str(python), "-I", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    for absent in ("monograph", "PIL", "onnx", "torch"):
        assert "ModuleNotFoundError" in call("-c", f"import {absent}").stderr
    done = call(script, tmp_path / "picture.png", "--json")
    assert done.returncode == 0, done.stderr
    (answer,) = json.loads(done.stdout)
    contract = monograph.export_model(str(world.model), tmp_path / "m.onnx").contract
    expected = softmax(own_path(world.model, contract, [picture]))[0]
    assert answer["index"] == int(expected.argmax())
    assert answer["probability"] == pytest.approx(expected.max(), abs=1e-3)
    plain = call(script, tmp_path / "picture.png")
    assert plain.stdout == f"{answer['label']}  {answer['probability']:.4f}\n"
    refused = call(script, tmp_path / "picture.jpg")
    assert refused.returncode == 2
    assert "Pillow, which reads the others, is not here" in refused.stderr
    assert monograph.verify_bundle(bundle).passed  # a run leaves nothing behind
