"""Golden batches, read from files that were really written and run by ONNX Runtime."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monograph.errors import SourceError
from monograph.export.trace import write_proven
from monograph.models.contract import CONTRACT_KEY, Contract, ImagePreprocessing, Kind, TensorSpec
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import load_graph, read_onnx
from monograph.runtime.golden import GOLDEN_KEY, Golden, RandomRows, check_golden, inputs_sha256, read_golden
from monograph.runtime.packing import join, pack
from monograph.runtime.session import Session, open_session

Write = Callable[..., Path]
SIZES = (1, 2, 5, 16)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a model, given as onnx.parser text, proven equal to itself, with its golden batches."""

    def write_one(text: str, contract: Contract | None = None, rows: Rows | None = None, name: str = "proven") -> Path:
        source, path = tmp_path / "source.onnx", tmp_path / f"{name}.onnx"
        onnx.save(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 20, "ai.onnx.ml": 3]> {text}'), source)
        session = open_session(source)
        promised = contract or read_onnx(source).contract
        write_proven(load_graph(source), path, promised, session, names=("itself", name), rows=rows, batch_sizes=SIZES)
        return path

    return write_one


def opened(path: Path) -> tuple[Golden, Session]:
    session = open_session(path)
    golden = read_golden(session.metadata, path.name)
    assert golden is not None
    return golden, session


SMALL = "m (float[batch, 4] x) => (float[batch, 4] y) { y = Softmax(x) }"
LARGE = "m (float[batch, 3000] x) => (float[batch, 1] y) { a = Constant<value_ints = [1]>() y = ReduceMean(x, a) }"


class TestWhatAFileHolds:
    def test_random_rows(self, write: Write):
        golden, session = opened(write(SMALL))
        assert [(batch.batch_size, batch.rows) for batch in golden.batches] == [(size, "random") for size in SIZES]
        assert [batch.inputs["x"].shape for batch in golden.batches] == [(size, 4) for size in SIZES]
        assert (golden.reference, golden.tolerance, golden.left_out) == ("itself", 1e-4, ())
        checks = check_golden(golden, session)
        assert [check.passed for check in checks] == [True] * 4
        assert "batch 16, random rows, output y: equal" in checks[-1].describe()

    def test_real_rows_are_stored_once(self, write: Write):
        rows = Rows({"x": np.arange(24, dtype=np.float32).reshape(6, 4)})
        path = write(SMALL, rows=rows)
        golden, session = opened(path)
        for batch in golden.batches:
            assert {tuple(row) for row in batch.inputs["x"].tolist()} <= {tuple(row) for row in rows.inputs["x"].tolist()}
        entries = json.loads(session.metadata[GOLDEN_KEY])["arrays"]
        assert sum(entry["shape"][0] for entry in entries) == 6 + sum(SIZES)  # rows that go in, and rows that come out

    def test_many_random_rows_are_a_recipe(self, write: Write):
        path = write(LARGE)
        record = json.loads(read_onnx(path).metadata[GOLDEN_KEY])
        assert all("inputs" not in batch for batch in record["batches"])
        assert len(json.dumps(record)) < 4_000
        golden, session = opened(path)
        assert [batch.inputs["x"].shape for batch in golden.batches] == [(size, 3000) for size in SIZES]
        assert all(check.passed for check in check_golden(golden, session))

    def test_rows_of_other_lengths(self, write: Write):
        text = "m (int64[batch, length] ids) => (int64[batch, length] y) { y = Add(ids, ids) }"
        outputs = (TensorSpec("y", "int64", ("batch", "length")),)
        contract = Contract((TensorSpec("ids", "int64", ("batch", "length"), upper_bound=9),), outputs, Kind.REGRESSION)
        golden, session = opened(write(text, contract))
        assert len({batch.inputs["ids"].shape[1] for batch in golden.batches}) == 3
        assert all(check.passed for check in check_golden(golden, session))

    def test_an_input_that_has_no_rows(self, write: Write):
        text = "m (float[batch, 4] x, float t) => (float[batch, 4] y) { y = Div(x, t) }"
        golden, session = opened(write(text))
        assert {batch.inputs["t"].shape for batch in golden.batches} == {()}
        assert all(check.passed for check in check_golden(golden, session))

    def test_texts(self, write: Write):
        text = """m (string[batch] word) => (int64[batch] y) {
            y = ai.onnx.ml.LabelEncoder<keys_strings = ["größer", "b"], values_int64s = [1, 2]>(word) }"""
        contract = Contract((TensorSpec("word", "str", ("batch",)),), (TensorSpec("y", "int64", ("batch",)),), Kind.REGRESSION)
        golden, session = opened(write(text, contract, Rows({"word": np.array(["größer", "b", "none"], object)})))
        assert all(check.passed for check in check_golden(golden, session))
        assert {int(y) for batch in golden.batches for y in batch.expected["y"]} == {-1, 1, 2}

    def test_rows_too_large_to_be_kept_are_repeated(self, write: Write):
        noise = np.random.default_rng(0).standard_normal((64, 60_000), dtype=np.float32)
        path = write(LARGE.replace("3000", "60000"), rows=Rows({"x": noise}))
        golden, session = opened(path)
        assert [(batch.batch_size, batch.rows) for batch in golden.batches] == [
            (1, "real"),
            (2, "real"),
            (5, "repeated real"),
            (16, "repeated real"),
        ]
        assert len(session.metadata[GOLDEN_KEY]) < 2_000_000
        assert all(check.passed for check in check_golden(golden, session))

    def test_a_row_too_large_to_be_kept_is_named(self, write: Write):
        noise = np.random.default_rng(0).standard_normal((3, 600_000), dtype=np.float32)
        golden, _ = opened(write(LARGE.replace("3000", "600000"), rows=Rows({"x": noise})))
        assert golden.batches == ()
        assert [item.batch_size for item in golden.left_out] == list(SIZES)
        assert golden.left_out[0].reason == "its rows and outputs are too large to be kept in the file"

    def test_a_file_without(self, tmp_path: Path):
        assert read_golden({}) is None


def test_random_rows_are_those_of_earlier_releases():
    """Files hold recipes for years: where numpy, or the drawing of rows, comes to draw others, they cannot be checked."""
    specs = (
        TensorSpec("x", "float32", ("batch", 3)),
        TensorSpec("pixels", "float32", ("batch", 1, 2, 2), ImagePreprocessing(scale=1.0)),
        TensorSpec("input_ids", "int64", ("batch", "length"), upper_bound=30_522),
        TensorSpec("attention_mask", "int64", ("batch", "length")),
    )
    contract = Contract(specs, (TensorSpec("y", "float32", ("batch", 2)),), Kind.LOGITS)
    rows = RandomRows((0, 3), draws=2, size=3, sequence_length=7, chosen=(5, 0, 2)).draw(contract)
    assert {name: array.shape for name, array in rows.items()} == {
        "x": (3, 3),
        "pixels": (3, 1, 2, 2),
        "input_ids": (3, 7),
        "attention_mask": (3, 7),
    }
    assert inputs_sha256(rows) == "5c9e7c88f440b4db9879d82111e9ed5eecf745e34f0c7cbb22121cb630a80efc"


def test_it_needs_neither_torch_nor_onnx(write: Write):
    code = (
        "import sys; from pathlib import Path; from monograph.runtime.session import open_session;"
        "from monograph.runtime.golden import check_golden, read_golden; session = open_session(Path(sys.argv[1]));"
        "assert all(c.passed for c in check_golden(read_golden(session.metadata), session));"
        "print([name for name in ('torch', 'onnx', 'onnx_ir', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(write(SMALL))], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class TestWhatDiffers:
    def test_is_told_by_output_row_and_amount(self, write: Write):
        golden, _ = opened(write(SMALL))
        got = opened(write("m (float[batch, 4] x) => (float[batch, 4] y) { y = Sigmoid(x) }", name="other"))[1]
        checks = check_golden(golden, got)
        assert not any(check.passed for check in checks)
        batch = golden.batches[-1]
        difference = np.abs(got(batch.inputs)["y"] - batch.expected["y"])
        assert checks[-1].max_abs_error == pytest.approx(difference.max())
        assert checks[-1].row == difference.max(1).argmax()
        assert f"output y: DIFFERS, row {checks[-1].row} by" in checks[-1].describe()

    def test_is_measured_by_the_tolerance(self, write: Write):
        golden, session = opened(write(SMALL))
        assert all(check.passed for check in check_golden(golden, session, 0.0))  # the file beside itself
        other = opened(write("m (float[batch, 4] x) => (float[batch, 4] y) { y = Sigmoid(x) }", name="other"))[1]
        assert all(check.passed for check in check_golden(golden, other, 10.0))

    def test_another_shape(self, write: Write):
        golden, _ = opened(write(SMALL))
        text = "m (float[batch, 4] x) => (float[batch, 1] y) { a = Constant<value_ints = [1]>() y = ReduceMean(x, a) }"
        checks = check_golden(golden, opened(write(text, name="other"))[1])
        assert "DIFFERS, shape [1, 1], expected [1, 4]" in checks[0].describe()

    def test_what_does_not_run(self, write: Write):
        golden, _ = opened(write(SMALL))
        checks = check_golden(golden, opened(write(SMALL.replace("4]", "5]"), name="other"))[1])
        assert "DIFFERS, other.onnx failed while running: " in checks[0].describe()

    def test_numbers_that_are_none(self, write: Write):
        golden, _ = opened(write(SMALL))
        other = opened(write("m (float[batch, 4] x) => (float[batch, 4] y) { z = Sub(x, x) y = Div(z, z) }", name="other"))[1]
        checks = check_golden(golden, other)
        assert not any(check.passed for check in checks)
        assert checks[0].max_abs_error == np.inf

    def test_another_input_name(self, write: Write):
        golden, _ = opened(write(SMALL))
        other = opened(write(SMALL.replace("x", "pixels").replace("Softmapixels", "Softmax"), name="other"))[1]
        with pytest.raises(
            SourceError, match=r"other\.onnx: its golden batches feed x but the graph has pixels: .*build it again"
        ):
            check_golden(golden, other)

    def test_another_output_name(self, write: Write):
        golden, _ = opened(write(SMALL))
        other = opened(write(SMALL.replace("y", "z"), name="other"))[1]
        with pytest.raises(SourceError, match="expect y but the graph has z"):
            check_golden(golden, other)


@pytest.fixture
def metadata(write: Write) -> Mapping[str, str]:
    return read_onnx(write(SMALL)).metadata


@pytest.fixture
def drawn(write: Write) -> Mapping[str, str]:
    return read_onnx(write(LARGE)).metadata


def changed(metadata: Mapping[str, str], change: Callable[[Any], object]) -> dict[str, str]:
    record = json.loads(metadata[GOLDEN_KEY])
    change(record)
    return dict(metadata) | {GOLDEN_KEY: json.dumps(record)}


def set_in(*path: Any, to: Any) -> Callable[[Any], object]:
    def change(record: Any) -> None:
        for key in path[:-1]:
            record = record[key]
        record[path[-1]] = to

    return change


class TestDamaged:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (set_in("version", to=2), "golden batches are of version 2, this monograph reads 1: update monograph"),
            (set_in("data", to="AAAA"), "is damaged"),
            (set_in("data", to=7), "is damaged"),
            (set_in("arrays", to="many"), "is damaged"),
            (set_in("arrays", 0, "shape", to=[1 << 28, 4]), "arrays of more than"),
            (set_in("arrays", 0, "shape", to=[2, 4]), "does not decompress to 32 bytes"),
            (set_in("arrays", 0, to=None), "is damaged"),
            (set_in("batches", 0, "inputs", "x", "rows", to=[9]), "is damaged"),
            (set_in("batches", 0, "inputs", "x", "rows", to=[-1]), "'-1' is no number from 0 up"),
            (set_in("batches", 0, "inputs", "x", "chunks", to=[]), "need at least one array"),
            (set_in("batches", 0, "inputs", "x", "chunks", to=[99]), "is damaged"),
            (set_in("batches", 0, "expected", "y", to=1.5), "'1.5' is no number"),
            (set_in("batches", 0, "batch_size", to=0), "'0' is no number from 1 up"),
            (set_in("batches", to=None), "is damaged"),
            (set_in("tolerance", to="NaN"), "tolerance nan"),
            (set_in("tolerance", to=-1), "tolerance -1"),
            (set_in("data_files", to={"../weights.data": "00"}), "data file '../weights.data' is no plain name"),
            (set_in("data_files", to={"/etc/passwd": "00"}), "is no plain name"),
            (set_in("made_by", to=[]), "is damaged"),
        ],
    )
    def test_record(self, metadata: Mapping[str, str], change: Callable[[Any], object], message: str):
        with pytest.raises(SourceError) as caught:
            read_golden(changed(metadata, change), "fused.onnx")
        text = str(caught.value)
        assert message in text
        assert text.startswith("fused.onnx: ")
        assert "\n" not in text
        assert len(text) < 400

    @pytest.mark.parametrize("text", ["", "{", "[]", "7", '"golden"', "null", "[" * 200_000, "x" * ((1 << 26) + 1)])
    def test_text(self, metadata: Mapping[str, str], text: str):
        with pytest.raises(SourceError, match=r"fused\.onnx: metadata 'monograph\.golden' (is damaged|has)"):
            read_golden(dict(metadata) | {GOLDEN_KEY: text}, "fused.onnx")

    def test_rows_taken_without_end(self, metadata: Mapping[str, str]):
        zeros = pack(np.zeros((1, 1 << 22), np.float32))

        def change(record: Any) -> None:
            record |= {"arrays": [zeros.entry()], "data": join([zeros])}
            record["batches"][0]["inputs"]["x"] = {"chunks": [0], "rows": [0] * 40}

        with pytest.raises(SourceError, match="batches of more than"):
            read_golden(changed(metadata, change))

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("size", 1 << 20, "1 x 1048576 random rows"),
            ("draws", 1 << 17, "131072 x 1 random rows"),
            ("sequence_length", 1 << 20, "random rows"),
            ("size", 1 << 15, "random rows of more than"),
            ("seed", [1, 2], "come out otherwise by numpy"),
            ("seed", [-1], "is no number from 0 up"),
            ("chosen", [5], "is damaged"),
        ],
    )
    def test_recipe(self, drawn: Mapping[str, str], key: str, value: Any, message: str):
        with pytest.raises(SourceError, match=message):
            read_golden(changed(drawn, set_in("batches", 0, "recipe", key, to=value)))

    def test_a_recipe_without_a_contract(self, drawn: Mapping[str, str]):
        with pytest.raises(SourceError, match=r"no 'monograph\.contract' beside it"):
            read_golden({GOLDEN_KEY: drawn[GOLDEN_KEY]})
        with pytest.raises(SourceError, match="is damaged"):
            read_golden(dict(drawn) | {CONTRACT_KEY: "{}"})

    def test_any_change_is_read_or_refused(self, metadata: Mapping[str, str]):
        text = metadata[GOLDEN_KEY]

        @settings(max_examples=300, deadline=None)
        @given(st.integers(0, len(text) - 1), st.text(max_size=4), st.integers(0, 40))
        def check(start: int, inserted: str, removed: int) -> None:
            with contextlib.suppress(SourceError):
                read_golden(dict(metadata) | {GOLDEN_KEY: text[:start] + inserted + text[start + removed :]})

        check()
