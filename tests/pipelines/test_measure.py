"""``monograph measure`` beyond latency: metrics of each kind, slices, the parity matrix, the schema, raw samples, the page."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pandas as pd
import pytest
from pydantic import TypeAdapter
from typer.testing import CliRunner

from monograph.errors import ConfigError, PlacementError
from monograph.export.trace import export_torch
from monograph.models.students import mlp
from monograph.models.torch_model import TorchModel
from monograph.pipelines.cli import _exit_code, app
from monograph.pipelines.measure import measure_models
from monograph.pipelines.schema import measurement_schema, schema_json
from monograph.runtime.job import Job, RawRun, run_in_process
from monograph.runtime.results import Measurement
from monograph.runtime.targets import TARGETS, Availability
from monograph.runtime.timing import TimingRule

QUICK = TimingRule(min_runs=40, min_s=0.0, max_s=2.0, warmup_s=0.0)
FAST = ["--min-runs", "40", "--max-seconds", "1", "--batch-sizes", "1"]
CPU = TARGETS["cpu"]
SCHEMA = Path(__file__).parents[2] / "docs" / "measurement.schema.json"


@pytest.fixture
def scorer(tmp_path: Path) -> Path:
    """A model of the kind scores: the sum of four features, float32 [batch x 1]."""
    path = tmp_path / "scorer.onnx"
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 18]> g (float[batch, 4] x) => (float[batch, 1] scores) '
        "<int64[1] axis = {1}> { scores = ReduceSum(x, axis) }"
    )
    onnx.save(model, path)
    return path


@pytest.fixture
def clicks(tmp_path: Path) -> Path:
    """Four features, a relevance that follows their sum, the user who asked, and the country: 300 rows."""
    rng = np.random.default_rng(0)
    features = pd.DataFrame(rng.standard_normal((300, 4)), columns=list("abcd"))
    relevance = (features.sum(axis=1) + rng.standard_normal(300) > 0).astype(int)
    path = tmp_path / "clicks.csv"
    country = np.where(np.arange(300) < 280, "NO", "DK")
    features.assign(label=relevance, user=np.arange(300) // 10, country=country).to_csv(path, index=False)
    return path


def test_a_ranking_by_groups_and_slices(scorer: Path, clicks: Path):
    (result,) = measure_models([scorer], data=str(clicks), group="user", slices=["country"], rule=QUICK, batch_sizes=[1])
    card = result.scorecard
    assert (card.task, card.row_count) == ("ranking", 300)
    assert 0.5 < card.scores["auc"].estimate < 1
    assert 0.5 < card.scores["ndcg@10"].estimate < 1
    assert {one.value: one.note for one in card.slices} == {"NO": None, "DK": "not enough rows: 20, and 30 are needed"}
    assert result.accuracy is None


@pytest.fixture
def twin(monkeypatch: pytest.MonkeyPatch) -> str:
    """One more target that runs what cpu runs."""
    monkeypatch.setitem(TARGETS, "twin", replace(CPU, name="twin"))
    return "twin"


def test_the_command_line_shows_and_writes_it(scorer: Path, clicks: Path, tmp_path: Path, twin: str):
    files = {name: tmp_path / name for name in ("out.json", "samples.jsonl", "page.html")}
    arguments = [
        "measure",
        str(scorer),
        "--data",
        str(clicks),
        "--group",
        "user",
        "--slice",
        "country",
        "--parity",
        "--on",
        "twin",
        *FAST,
    ]
    arguments += ["-o", str(files["out.json"]), "--samples", str(files["samples.jsonl"]), "--report", str(files["page.html"])]
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.output
    assert "ndcg@10" in done.output
    assert "not enough rows" in done.output
    assert "parity matrix" in done.output
    assert "twin (executed)" in done.output
    records = json.loads(files["out.json"].read_text())
    lines = [json.loads(line) for line in files["samples.jsonl"].read_text().splitlines()]
    for record in records:
        of_record = [line for line in lines if line["target"] == record["target"]]
        assert [line["time_ns"] for line in of_record] == record["latency"]["samples_ns"]
        assert [line["call"] for line in of_record] == list(range(len(of_record)))
    assert {(line["model"], line["target"], line["evidence"], line["batch_size"]) for line in lines} == {
        ("scorer", "cpu", "executed", 1),
        ("scorer", "twin", "executed", 1),
    }
    page = files["page.html"].read_text()
    assert "ndcg@10" in page
    assert "not enough rows: 20, and 30 are needed" in page
    assert "parity matrix" in page


def test_a_record_is_what_the_schema_says(scorer: Path, clicks: Path, twin: str):
    more = {"slices": ["country"], "group": "user", "parity": True, "on": [twin]}
    results = measure_models([scorer], data=str(clicks), rule=QUICK, batch_sizes=[1], **more)
    adapter = TypeAdapter(list[Measurement])
    text = adapter.dump_json(results)
    assert adapter.validate_json(text) == results
    assert results[1].parity
    assert_valid(json.loads(text), measurement_schema(), measurement_schema()["$defs"])


TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "null": type(None),
    "boolean": bool,
}


def assert_valid(value, schema: dict, definitions: dict, where: str = "$") -> None:
    """Check a JSON value against the part of JSON Schema that our schema uses."""
    if "$ref" in schema:
        assert_valid(value, definitions[schema["$ref"].rpartition("/")[2]], definitions, where)
    elif "anyOf" in schema:
        options = [option for option in schema["anyOf"] if (option.get("type") == "null") == (value is None)]
        assert len(options) == 1, where
        assert_valid(value, options[0], definitions, where)
    else:
        assert isinstance(value, TYPES[schema["type"]]), f"{where}: {value!r} is no {schema['type']}"
        assert value in schema.get("enum", [value]), where
        for key, part, item in members(value, schema, where):
            assert_valid(item, part, definitions, f"{where}.{key}")


def members(value, schema: dict, where: str):
    if schema["type"] == "array":
        yield from ((number, schema["items"], item) for number, item in enumerate(value))
    elif schema["type"] == "object" and "properties" in schema:
        assert set(schema.get("required", ())) <= set(value) <= set(schema["properties"]), where
        yield from ((key, schema["properties"][key], item) for key, item in value.items())
    elif schema["type"] == "object":
        yield from ((key, schema["additionalProperties"], item) for key, item in value.items())


def test_the_published_schema_is_current():
    assert SCHEMA.read_text(encoding="utf-8") == schema_json(), "monograph measure --schema > docs/measurement.schema.json"
    assert CliRunner().invoke(app, ["measure", "--schema"]).output == schema_json()


@pytest.fixture(scope="module")
def digits_mlp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The untrained digit classifier that ``py:digit_models:build`` gives, exported."""
    tmp_path = tmp_path_factory.mktemp("digits")
    module, contract = mlp(input_shape=(1, 8, 8), width=8)
    path = tmp_path / "mlp.onnx"
    export_torch(TorchModel(module, contract, "mlp"), path)
    from safetensors.torch import save_model

    save_model(module, str(tmp_path / "mlp.safetensors"))
    (tmp_path / "digit_models.py").write_text(
        "from pathlib import Path\nfrom safetensors.torch import load_model\n"
        "from monograph.models.students import mlp\n"
        "def build():\n"
        "    module, contract = mlp(input_shape=(1, 8, 8), width=8)\n"
        "    load_model(module, str(Path(__file__).with_name('mlp.safetensors')))\n"
        "    return module, contract\n"
        "def fresh():\n    return mlp(input_shape=(1, 8, 8), width=8)\n"
    )
    return path


def test_the_parity_matrix(digits_mlp: Path, monkeypatch: pytest.MonkeyPatch):
    """One more target that runs the same, and one into which a fault is planted: its row 17 is off."""

    def skewed(job):
        run = run_in_process(job)
        outputs = np.array(run.outputs)
        outputs[17, outputs[17].argmin()] += 100.0  # whatever class it was for, it is for another one now
        return replace(run, outputs=outputs)

    monkeypatch.setitem(TARGETS, "twin", replace(CPU, name="twin"))
    monkeypatch.setitem(TARGETS, "skewed", replace(CPU, name="skewed", run=skewed))
    monkeypatch.syspath_prepend(str(digits_mlp.parent))
    results = measure_models(
        [digits_mlp],
        on=["twin", "skewed"],
        data="py:monograph.models.data.digits:optical_digits",
        parity=True,
        reference="py:digit_models:build",
        rule=QUICK,
        batch_sizes=[1],
    )
    assert [one.target for one in results] == ["cpu", "twin", "skewed"]
    matrix = {(one.target, each.reference): each for one in results for each in one.parity}
    torch = "PyTorch (py:digit_models:build)"
    assert set(matrix) == {("cpu", torch), ("twin", "cpu"), ("twin", torch), ("skewed", "cpu"), ("skewed", torch)}
    assert matrix["cpu", torch].relative_error < 1e-5
    assert matrix["cpu", torch].top1_agreement.estimate == 1
    assert (matrix["twin", "cpu"].max_abs_error, matrix["twin", "cpu"].row_count) == (0, 1797)
    for reference in ("cpu", torch):
        assert matrix["skewed", reference].worst_row == 17
        assert matrix["skewed", reference].max_abs_error == pytest.approx(100, rel=1e-3)
        assert matrix["skewed", reference].top1_agreement.estimate < 1


def test_parity_without_data_is_on_random_rows_and_finds_other_weights(digits_mlp: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(digits_mlp.parent))
    (result,) = measure_models([digits_mlp], parity=True, reference="py:digit_models:fresh", rule=QUICK, batch_sizes=[1])
    (line,) = result.parity
    assert line.row_count == 32
    assert line.relative_error > 1e-2
    assert result.scorecard is None


WRONG = {
    "no model": ([], "no model to measure"),
    "reference without parity": (["{model}", "--reference", "py:a:b"], "give --parity"),
    "reference that is a file": (["{model}", "--parity", "--reference", "{model}"], "is an ONNX file: give the PyTorch source"),
    "nothing to compare": (["{model}", "--parity"], "name another target with --on, or a source with --reference"),
    "slice without data": (["{model}", "--slice", "country"], "--slice and --group name columns of DATA: give --data"),
    "unknown slice": (["{model}", "--data", "{data}", "--slice", "planet"], "no column 'planet' for --slice"),
    "unknown group": (["{model}", "--data", "{data}", "--group", "planet"], "no column 'planet' for --group"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_measured_is_refused(case: str, scorer: Path, clicks: Path, capfd: pytest.CaptureFixture[str]):
    arguments, message = WRONG[case]
    assert _exit_code(["measure", *(text.format(model=scorer, data=clicks) for text in arguments)]) == 2
    assert message in " ".join(capfd.readouterr().err.split())


def test_reference_needs_parity_in_python_too(scorer: Path):
    with pytest.raises(ConfigError, match="give --parity"):
        measure_models([scorer], reference="py:a:b")


class TestFailuresBesideOthers:
    @pytest.fixture
    def broken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def run(job: Job) -> RawRun:
            raise PlacementError("the board ran nothing")

        monkeypatch.setitem(TARGETS, "board", replace(CPU, name="board", run=run))

    @pytest.mark.usefixtures("broken")
    def test_what_could_be_measured_is_kept_and_the_failure_told(
        self, scorer: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ):
        out = tmp_path / "m.json"
        assert _exit_code(["measure", str(scorer), "--on", "board,cpu", "-o", str(out), *FAST]) == 1
        assert [record["target"] for record in json.loads(out.read_text())] == ["cpu"]
        assert "scorer on board was not measured: the board ran nothing" in " ".join(capfd.readouterr().err.split())

    @pytest.mark.usefixtures("broken")
    def test_where_nothing_could_be_measured_nothing_is_written(self, scorer: Path, tmp_path: Path):
        out = tmp_path / "m.json"
        assert _exit_code(["measure", str(scorer), "--on", "board", "-o", str(out), *FAST]) == 1
        assert not out.exists()
        with pytest.raises(PlacementError, match="the board ran nothing"):
            measure_models([scorer], on=["cpu", "board"], rule=QUICK)

    def test_a_target_that_is_missing_is_told_before_anything_is_measured(self, scorer: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setitem(TARGETS, "cpu", replace(CPU, run=lambda job: pytest.fail("nothing is to be measured")))
        monkeypatch.setitem(TARGETS, "board", replace(CPU, name="board", probe=lambda: Availability(False, "gone", "find it")))
        with pytest.raises(ConfigError, match="target board is not here: gone: find it"):
            measure_models([scorer], on=["cpu", "board"])
