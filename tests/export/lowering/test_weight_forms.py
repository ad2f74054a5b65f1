"""8-bit weights that are exact on every processor: the form chosen, what it costs, and where full range is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from monograph.errors import ConfigError
from monograph.export.lowering import LOWERING_KEY, find_lowering, lower
from monograph.export.lowering.choose_weights import TriedForm, _decide
from monograph.export.lowering.weight_forms import UnsignedWeightsPass
from monograph.models.data.rows import Rows
from monograph.models.int8_products import int8_products, saturating_nodes
from monograph.models.onnx_file import OnnxFile, load_graph, read_onnx
from monograph.pipelines.gate import Policy, gate_model
from monograph.pipelines.gate.policy import SizeLimits
from monograph.pipelines.measure import measure_models
from monograph.pipelines.verify import verify_model
from monograph.runtime.coverage import INSTRUCTION_SETS_KEY, coverage_gap, covered_instruction_sets
from monograph.runtime.instruction_sets import InstructionSet
from monograph.runtime.runner import run_all_rows
from monograph.runtime.session import open_session
from monograph.runtime.session_spec import EXACT_PRODUCTS
from monograph.runtime.targets import TARGETS, find_target
from monograph.runtime.timing import FEWEST_RUNS, TimingRule

EVERYWHERE = set(InstructionSet)
NAMES = ("int8-static", "int8-dynamic", "qdq-int8")


@pytest.mark.parametrize("name", NAMES)
def test_by_default_no_product_can_saturate(source: OnnxFile, calibration: Rows, unseen: Rows, tmp_path: Path, name: str):
    lowered = lower(find_lowering(name), source, tmp_path / "l.onnx", calibration=calibration, rows=unseen)
    file = read_onnx(lowered.path)
    graph = load_graph(lowered.path)
    assert list(int8_products(graph))
    assert not saturating_nodes(graph)
    assert set(covered_instruction_sets(file)) == EVERYWHERE
    assert set(json.loads(file.metadata[INSTRUCTION_SETS_KEY])) == EVERYWHERE
    settings = json.loads(file.metadata[LOWERING_KEY])["settings"]
    assert settings["weights"] in ("u8", "s7")
    assert [each["form"] for each in settings["tried"]] == ["u8", "s7"]
    assert settings["reason"] in lowered.notes[1]
    plain, exact = (open_session(lowered.path, spec=spec) for spec in (None, EXACT_PRODUCTS))
    outputs = [run_all_rows(session, file.contract, unseen) for session in (plain, exact)]
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-4 * np.abs(outputs[1]).max())


@pytest.fixture
def full_range(source: OnnxFile, calibration: Rows, unseen: Rows, tmp_path: Path) -> OnnxFile:
    """For VNNI alone, or 64-bit ARM."""
    path = tmp_path / "full.onnx"
    lower(find_lowering("int8-static"), source, path, calibration=calibration, rows=unseen, processors="vnni")
    return read_onnx(path)


def test_full_range_holds_where_products_are_added_in_32_bits(full_range: OnnxFile):
    saturating = {each for each in InstructionSet if each.saturates}
    assert set(covered_instruction_sets(full_range)) == EVERYWHERE - saturating
    assert saturating_nodes(load_graph(full_range.path))
    assert json.loads(full_range.metadata[LOWERING_KEY])["settings"]["weights"] == "s8"
    here = find_target("cpu").instruction_set()
    assert (coverage_gap(full_range, find_target("cpu")) is None) is (here is None or not here.saturates)


def test_what_says_nothing_of_itself_is_told_by_its_graph(full_range: OnnxFile, source: OnnxFile, tmp_path: Path):
    model = onnx.load(full_range.path)
    kept = [entry for entry in model.metadata_props if entry.key != INSTRUCTION_SETS_KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    onnx.save(model, tmp_path / "silent.onnx")
    assert covered_instruction_sets(read_onnx(tmp_path / "silent.onnx")) == covered_instruction_sets(full_range)
    assert set(covered_instruction_sets(source)) == EVERYWHERE


def test_unsigned_weights_are_the_same_numbers(full_range: OnnxFile, unseen: Rows, tmp_path: Path):
    graph = load_graph(full_range.path)
    assert UnsignedWeightsPass()(graph).modified
    ir.save(graph, tmp_path / "u8.onnx")
    unsigned = run_all_rows(open_session(tmp_path / "u8.onnx"), full_range.contract, unseen)
    signed = run_all_rows(open_session(full_range.path, spec=EXACT_PRODUCTS), full_range.contract, unseen)
    np.testing.assert_allclose(unsigned, signed, atol=1e-5 * np.abs(signed).max())
    assert not UnsignedWeightsPass()(graph).modified


@pytest.mark.parametrize(
    ("full", "reduced", "expected"),
    [
        (TriedForm("u8", 0.010, 0.99, 1.0), TriedForm("s7", 0.020, 0.98, 1.0), "u8"),
        (TriedForm("u8", 0.010, 0.99, 1.0), TriedForm("s7", 0.0105, 0.99, 1.0), "s7"),
        (TriedForm("u8", 0.010, 0.99, 1.0), TriedForm("s7", 0.020, 0.99, 0.5), "s7"),
        (TriedForm("u8", 0.010, 0.99, 1.0), TriedForm("s7", 0.020, 0.98, 0.5), "u8"),
        (TriedForm("u8", 0.010, None, 1.0), TriedForm("s7", 0.019, None, 0.5), "s7"),
        (TriedForm("u8", 0.010, None, 1.0), TriedForm("s7", 0.030, None, 0.5), "u8"),
    ],
)
def test_accuracy_first_then_speed(full: TriedForm, reduced: TriedForm, expected: str):
    form, reason = _decide(full, reduced)
    assert form.name == expected
    assert f"{full.error:.2%}" in reason


@pytest.fixture
def without_vnni(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this machine one with AVX2 and no VNNI, if it is not."""
    monkeypatch.setitem(TARGETS, "cpu", replace(TARGETS["cpu"], instruction_set=lambda: InstructionSet.AVX2))


@pytest.mark.usefixtures("without_vnni")
def test_verify_and_gate_refuse_what_the_proof_does_not_cover_and_measure_warns(full_range: OnnxFile, source: OnnxFile):
    gap = r"full\.onnx holds on x86-64-vnni, arm64, arm64-dotprod only, and cpu is x86-64-avx2"
    with pytest.raises(ConfigError, match=gap):
        verify_model(full_range.path)
    policy = Policy(size=SizeLimits(max_ratio=2))
    for candidate, reference in ((full_range.path, source.path), (source.path, full_range.path)):
        with pytest.raises(ConfigError, match=gap):
            gate_model(candidate, reference, policy=policy)
    quick = TimingRule(min_runs=FEWEST_RUNS, min_s=0.0, max_s=0.0, warmup_s=0.0)
    (measured,) = measure_models([full_range.path], batch_sizes=[1], rule=quick)
    assert [each for each in measured.warnings if "holds on x86-64-vnni" in each]


def test_wrong_processors(source: OnnxFile, calibration: Rows, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"'z80'.*any, vnni, arm64"):
        lower(find_lowering("int8-static"), source, tmp_path / "l.onnx", calibration=calibration, processors="z80")
    with pytest.raises(ConfigError, match=r"fp16.*--for vnni"):
        lower(find_lowering("fp16"), source, tmp_path / "l.onnx", processors="vnni")
    assert not list(tmp_path.iterdir())
