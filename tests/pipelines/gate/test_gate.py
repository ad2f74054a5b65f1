"""The verb from end to end on real digits: verdicts, refusals, what is written."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import monograph
from monograph.errors import ConfigError, DataError, MonographError
from monograph.models.contract import CONTRACT_KEY, Contract, Kind, TensorSpec
from monograph.models.data.load import load_rows
from monograph.models.digest import graph_sha256
from monograph.models.onnx_file import read_onnx
from monograph.models.seen import SEEN_KEY, mark_seen, read_seen, seen
from monograph.pipelines.gate import Outcome, Policy, Verdict, gate_model
from monograph.pipelines.gate.junit import junit_xml
from monograph.pipelines.gate.policy import (
    AccuracyLimits,
    FlipLimits,
    MeasuringRule,
    ParityLimits,
    PartLimits,
    RobustnessLimits,
    SizeLimits,
    TargetLimits,
)
from monograph.pipelines.lower import lower_model
from monograph.pipelines.records import read_record, to_json, write_record
from monograph.pipelines.report.gate import render_gate, verdict_tables
from monograph.runtime.coverage import INSTRUCTION_SETS_KEY
from monograph.runtime.instruction_sets import InstructionSet
from monograph.runtime.targets import find_target

ACCURACY = Policy(accuracy=AccuracyLimits())


def outcomes(verdict: Verdict) -> dict[str, str]:
    return {check.name: check.outcome.value for check in verdict.checks}


def with_metadata(source: Path, path: Path, metadata: dict[str, str]) -> Path:
    model = onnx.load(source)
    helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


@pytest.fixture
def judged(digits, in_process) -> Verdict:
    return gate_model(digits.near, digits.reference, str(digits.test))


def test_the_default_policy_passes_a_near_copy(judged: Verdict, digits):
    assert judged.outcome is Outcome.PASS, [check.describe() for check in judged.checks]
    assert list(outcomes(judged)) == [
        "size.max_ratio",
        "accuracy.max_loss_points",
        "flips.max_negative_points",
        "parts.max_loss_points (class)",
        "calibration.max_ece_increase",
        "calibration.max_nll_increase_nats",
    ]
    assert judged.is_default_policy
    assert judged.row_count == 1198
    assert judged.candidate.sha256 == read_onnx(digits.near).sha256
    assert any("does not record which rows it was fitted on" in note for note in judged.notes)
    (beside,) = judged.beside
    assert beside.mcnemar_p > 0.05
    assert beside.top1.estimate > 0.9


def test_what_is_proven_worse_fails_and_few_rows_decide_nothing(digits, in_process):
    assert gate_model(digits.bad, digits.reference, str(digits.test), policy=ACCURACY).outcome is Outcome.FAIL
    undecided = gate_model(digits.near, digits.reference, str(digits.few), policy=ACCURACY)
    assert undecided.outcome is Outcome.INCONCLUSIVE
    (check,) = undecided.checks
    assert check.more > 100


def test_the_same_verdict_twice(digits, in_process, judged: Verdict):
    again = gate_model(digits.near, digits.reference, str(digits.test))
    assert again.checks == judged.checks
    assert again.policy_sha256 == judged.policy_sha256
    assert again.rows_sha256 == judged.rows_sha256


def test_the_record_is_read_back(judged: Verdict, tmp_path: Path):
    write_record(tmp_path / "verdict.json", judged)
    again = read_record(tmp_path / "verdict.json", Verdict)
    assert again.checks == judged.checks
    assert Policy.model_validate(again.policy).sha256() == judged.policy_sha256


def test_junit_counts_what_blocks(digits, in_process):
    policy = Policy(accuracy=AccuracyLimits(), size=SizeLimits(max_mb=0.001, max_ratio=1))
    verdict = gate_model(digits.near, digits.reference, str(digits.few), policy=policy)
    root = ElementTree.fromstring(junit_xml(verdict))
    (suite,) = root
    assert (root.get("tests"), root.get("failures")) == ("3", "2")
    assert {case.get("name"): [each.get("type") for each in case.iter("failure")] for case in suite.iter("testcase")} == {
        "size.max_ratio": [],
        "size.max_mb": ["fail"],
        "accuracy.max_loss_points": ["inconclusive"],
    }
    assert any(each.get("name") == "policy_sha256" for each in suite.iter("property"))
    odd = replace(verdict, checks=(replace(verdict.checks[0], name="class \x00\ud800<&>"),))
    assert ElementTree.fromstring(junit_xml(odd)).find(".//testcase").get("name") == "class <&>"


def test_the_page_and_the_tables_tell_all_checks(judged: Verdict):
    page = render_gate(judged)
    assert "near.onnx may ship (all 6 checks passed)" in page
    for check in judged.checks:
        assert check.name in page
    assert judged.policy_sha256 in page
    assert "<script" in page
    checks, beside = verdict_tables(judged)
    assert checks.row_count == 6
    assert beside.row_count == 1
    failed = replace(judged, outcome=Outcome.FAIL, checks=(replace(judged.checks[0], outcome=Outcome.FAIL),))
    assert "near.onnx may not ship" in render_gate(failed)


def seen_model(digits, tmp_path: Path, rows: str, use: str) -> Path:
    path = tmp_path / f"{use}.onnx"
    shutil.copy(digits.near, path)
    mark_seen(path, seen(use, load_rows(rows, read_onnx(path).contract)))
    return path


@pytest.mark.parametrize("side", ["candidate", "reference"])
def test_rows_that_either_model_has_seen_are_refused(digits, in_process, tmp_path: Path, side: str):
    leaked = seen_model(digits, tmp_path, str(digits.few), "training")
    pair = (leaked, digits.reference) if side == "candidate" else (digits.near, leaked)
    with pytest.raises(
        DataError, match=r"60 of 1198 rows \(row 0, 1, .*\) are among those that training.onnx has seen"
    ) as caught:
        gate_model(*pair, str(digits.test), policy=ACCURACY)
    assert caught.value.exit_code == 2
    assert "60 rows of training" in str(caught.value)


def test_other_rows_are_not_refused_and_are_told(digits, in_process, tmp_path: Path):
    fitted = seen_model(digits, tmp_path, str(digits.train), "training")
    verdict = gate_model(fitted, digits.reference, str(digits.test), policy=ACCURACY)
    assert verdict.candidate.seen == {"training": 599}
    assert [note for note in verdict.notes if "does not record" in note] == [
        "reference.onnx does not record which rows it was fitted on: that none of these is among them is not checked"
    ]


def test_a_row_is_known_again_in_another_form(digits, in_process, tmp_path: Path):
    """The same digits as whole numbers of another shape, divided by the contract of another model."""
    with np.load(digits.few) as archive:
        np.savez(tmp_path / "doubles.npz", x=archive["x"].astype(np.float64), y=archive["y"])
    fitted = seen_model(digits, tmp_path, str(tmp_path / "doubles.npz"), "training")
    with pytest.raises(DataError, match="60 of 1198 rows"):
        gate_model(fitted, digits.reference, str(digits.test), policy=ACCURACY)


def test_lowering_records_its_calibration_rows_and_keeps_what_was_seen(digits, in_process, tmp_path: Path):
    fitted = seen_model(digits, tmp_path, str(digits.few), "training")
    lowered = lower_model(fitted, tmp_path / "int8.onnx", to="qdq-int8", calibration=str(digits.train))
    known = read_seen(read_onnx(lowered.path))
    assert known.uses == {"training": 60, "calibration": 256, "proof of agreement": 149}
    with pytest.raises(DataError, match="60 of 1198 rows"):
        gate_model(lowered.path, digits.reference, str(digits.test), policy=ACCURACY)
    fresh = lower_model(digits.near, tmp_path / "fresh.onnx", to="qdq-int8", calibration=str(digits.train))
    verdict = gate_model(fresh.path, digits.reference, str(digits.test), policy=ACCURACY)
    assert verdict.candidate.seen == {"calibration": 256, "proof of agreement": 149}


def test_rows_are_marked_beside_those_that_were(digits, tmp_path: Path):
    path = seen_model(digits, tmp_path, str(digits.few), "training")
    graph = graph_sha256(path)
    mark_seen(path, seen("choice", load_rows(str(digits.train), read_onnx(path).contract)))
    assert read_seen(read_onnx(path)).uses == {"training": 60, "choice": 599}
    assert graph_sha256(path) == graph
    assert [entry.name for entry in tmp_path.iterdir()] == ["training.onnx"]


def test_a_damaged_record_of_rows_is_no_pass(digits, in_process, tmp_path: Path):
    path = with_metadata(digits.near, tmp_path / "damaged.onnx", {SEEN_KEY: "{"})
    with pytest.raises(MonographError, match="is damaged"):
        gate_model(path, digits.reference, str(digits.test), policy=ACCURACY)


def test_classes_in_another_order_are_brought_together(digits, in_process, tmp_path: Path):
    names, order = tuple("0123456789"), np.array([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])

    def named(source: Path, path: Path, places: np.ndarray) -> Path:
        model = onnx.load(source)
        for tensor in model.graph.initializer:
            tensor.CopyFrom(
                numpy_helper.from_array(np.ascontiguousarray(numpy_helper.to_array(tensor)[..., places]), tensor.name)
            )
        contract = Contract(
            (TensorSpec("x", "float32", ("batch", 64)),),
            (TensorSpec("logits", "float32", ("batch", 10)),),
            Kind.LOGITS,
            tuple(names[place] for place in places),
        )
        helper.set_model_props(model, {CONTRACT_KEY: contract.to_json()})
        onnx.save(model, path)
        return path

    reference = named(digits.reference, tmp_path / "reference.onnx", np.arange(10))
    shuffled = named(digits.reference, tmp_path / "shuffled.onnx", order)
    with np.load(digits.test) as archive:
        np.savez(tmp_path / "named.npz", x=archive["x"], y=np.array(names)[archive["y"]])
    policy = Policy(accuracy=AccuracyLimits(), flips=FlipLimits(max_churn_points=1), parity=ParityLimits(max_relative_error=1e-5))
    verdict = gate_model(shuffled, reference, str(tmp_path / "named.npz"), policy=policy)
    assert set(outcomes(verdict).values()) == {"pass"}
    assert next(check for check in verdict.checks if "churn" in check.name).estimate == 0


def test_slices_are_columns_of_the_data(digits, in_process, tmp_path: Path):
    with np.load(digits.test) as archive:
        half = np.where(np.arange(len(archive["y"])) % 2, "odd", "even")
        np.savez(tmp_path / "sliced.npz", **archive, camera=half)
    policy = Policy(parts=PartLimits(columns=("class", "camera"), max_loss_points=10))
    verdict = gate_model(digits.near, digits.reference, str(tmp_path / "sliced.npz"), policy=policy)
    assert list(outcomes(verdict)) == ["parts.max_loss_points (class)", "parts.max_loss_points (camera)"]
    assert verdict.checks[1].count == 599


def test_robustness_is_tested_on_the_same_bad_rows(digits, in_process):
    policy = Policy(robustness=RobustnessLimits(max_loss_points=3, severity=2))
    verdict = gate_model(digits.near, digits.reference, str(digits.test), policy=policy)
    assert outcomes(verdict) == {"robustness.max_loss_points (missing)": "pass"}
    failed = gate_model(digits.bad, digits.reference, str(digits.test), policy=policy)
    assert failed.outcome is Outcome.FAIL


COST = Policy(
    targets={
        "cpu": TargetLimits(p50_ms=3, p99_ms=3, first_run_ms=6, load_ms=6, peak_memory_mb=60, p50_ratio=1.1, max_partitions=1)
    },
    measuring=MeasuringRule(starts=5, blocks=6),
)


def test_costs_need_no_rows(digits, in_process):
    verdict = gate_model(digits.near, digits.reference, policy=COST)
    assert verdict.data is None
    assert set(outcomes(verdict).values()) == {"pass"}, outcomes(verdict)
    assert len(verdict.checks) == 7
    assert verdict.evidence == {"cpu": "executed"}


def test_each_cost_beyond_its_limit_fails(digits, in_process):
    in_process.samples_ms = np.full(400, 4.0)
    in_process.start_ms, in_process.memory_bytes = 9.0, 90_000_000
    in_process.factor = {"candidate": 1.5}
    verdict = gate_model(digits.near, digits.reference, policy=COST)
    failed = {name.rpartition(".")[2] for name, outcome in outcomes(verdict).items() if outcome == "fail"}
    assert failed == {"p50_ms", "p99_ms", "first_run_ms", "load_ms", "peak_memory_mb", "p50_ratio"}


def test_too_few_runs_bound_no_p99(digits, in_process):
    in_process.samples_ms = np.full(200, 2.0)
    policy = Policy(targets={"cpu": TargetLimits(p99_ms=3)})
    verdict = gate_model(digits.near, digits.reference, policy=policy)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "more runs would decide" in verdict.checks[0].advice


def test_an_emulators_time_is_no_latency(digits, in_process):
    policy = Policy(targets={"emulated": TargetLimits(p50_ms=3)})
    with pytest.raises(
        ConfigError, match=r"targets.emulated.p50_ms: figures of emulated are simulated here, which is no latency"
    ):
        gate_model(digits.near, digits.reference, policy=policy)
    accuracy = gate_model(digits.near, digits.reference, str(digits.test), policy=ACCURACY, on=["emulated"])
    assert accuracy.evidence == {"emulated": "simulated"}
    assert accuracy.outcome is Outcome.PASS


def test_what_is_not_told_is_no_pass(digits, in_process):
    with pytest.raises(ConfigError, match="the policy tests nothing on cpu: nothing may pass untested"):
        gate_model(digits.near, digits.reference, policy=Policy())
    in_process.memory_bytes = None
    policy = Policy(targets={"cpu": TargetLimits(peak_memory_mb=60)})
    with pytest.raises(ConfigError, match=r"targets\.cpu\.peak_memory_mb: cpu does not tell this of the model"):
        gate_model(digits.near, digits.reference, policy=policy)


def test_limits_for_another_target_are_told_as_untested(digits, in_process):
    policy = Policy(size=SizeLimits(), targets={"phone": TargetLimits(p50_ms=3)})
    verdict = gate_model(digits.near, digits.reference, policy=policy, on=["cpu"])
    assert "the policy's limits for phone were not tested: give --on phone" in verdict.notes


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (Policy(error={"max_increase_percent": 1}), "error, which is for regressions"),
        (Policy(robustness={"corruptions": ("noise",)}), "'noise' is for pictures"),
        (Policy(parts={"columns": ("camera",)}), "no column 'camera'"),
    ],
)
def test_what_cannot_be_tested_is_told(digits, in_process, policy: Policy, message: str):
    with pytest.raises(MonographError, match=message) as caught:
        gate_model(digits.near, digits.reference, str(digits.test), policy=policy)
    assert caught.value.exit_code == 2


def test_answers_need_rows_and_rows_need_labels(digits, in_process, tmp_path: Path):
    with pytest.raises(ConfigError, match="give them by --data"):
        gate_model(digits.near, digits.reference, policy=ACCURACY)
    with np.load(digits.few) as archive:
        np.savez(tmp_path / "unlabelled.npz", x=archive["x"])
    with pytest.raises(ConfigError, match="has no labels"):
        gate_model(digits.near, digits.reference, str(tmp_path / "unlabelled.npz"), policy=ACCURACY)


def test_a_candidate_that_gives_no_numbers_cannot_ship(digits, in_process, tmp_path: Path):
    model = onnx.load(digits.near)
    weight = numpy_helper.to_array(model.graph.initializer[0]).copy()
    weight[:] = np.nan
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    onnx.save(model, tmp_path / "nan.onnx")
    with pytest.raises(MonographError, match="the candidate gives no finite output for row 0: it cannot ship") as caught:
        gate_model(tmp_path / "nan.onnx", digits.reference, str(digits.few), policy=ACCURACY)
    assert caught.value.exit_code == 1


def test_it_is_a_public_verb(judged: Verdict):
    assert monograph.gate_model is gate_model
    assert json.loads(to_json(judged))["outcome"] == "pass"


@pytest.mark.slow
@pytest.mark.skipif(not find_target("cpu-avx2").is_available(), reason=find_target("cpu-avx2").describe())
def test_weights_of_8_bits_that_saturate_with_avx2_do_not_pass_there(digits, tmp_path: Path):
    """The graph shows it; a file that claims to hold there is found out by running it, on whatever processor the gate runs."""
    rng = np.random.default_rng(0)
    x, weight = rng.integers(0, 256, (40, 64)).astype(np.float32), rng.integers(-127, 128, (64, 10)).astype(np.int8)
    np.savez(tmp_path / "rows.npz", x=x, y=(x @ weight).argmax(axis=1))
    model = onnx.load(digits.reference)
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.node.append(helper.make_node("MatMul", ["x", "w"], ["logits"]))
    model.graph.initializer.append(numpy_helper.from_array(weight.astype(np.float32), "w"))
    onnx.save(model, tmp_path / "reference.onnx")
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.node.extend(
        [
            helper.make_node("Cast", ["x"], ["bytes"], to=TensorProto.UINT8),
            helper.make_node("MatMulInteger", ["bytes", "w"], ["sums"]),
            helper.make_node("Cast", ["sums"], ["logits"], to=TensorProto.FLOAT),
        ]
    )
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    onnx.save(model, tmp_path / "candidate.onnx")
    policy = Policy(parity=ParityLimits(), targets={"cpu-avx2": TargetLimits(max_partitions=1)})
    others = tmp_path / "reference.onnx", str(tmp_path / "rows.npz")
    with pytest.raises(ConfigError, match=r"candidate\.onnx holds on .* only, and cpu-avx2 is x86-64-avx2"):
        gate_model(tmp_path / "candidate.onnx", *others, policy=policy)
    claim = with_metadata(
        tmp_path / "candidate.onnx", tmp_path / "claim.onnx", {INSTRUCTION_SETS_KEY: json.dumps(list(InstructionSet))}
    )
    verdict = gate_model(claim, *others, policy=policy)
    assert verdict.evidence == {"cpu-avx2": "simulated"}
    assert outcomes(verdict) == {"parity.max_relative_error": "fail", "targets.cpu-avx2.max_partitions": "pass"}
