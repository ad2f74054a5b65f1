from dataclasses import replace

import numpy as np
import pytest
import torch

from monograph.errors import ConfigError
from monograph.models.contract import Contract, Kind, TensorSpec, TextPreprocessing
from monograph.models.size import count_macs
from monograph.models.students import mlp
from monograph.models.students.ladders import Ladder, Rung, ladders
from monograph.models.torch_model import TorchModel
from monograph.pipelines.distill import latency_budget
from monograph.pipelines.distill.latency_budget import (
    LatencyBudget,
    is_latency_budget,
    parse_latency_budget,
    student_within,
)
from monograph.pipelines.distill.student import load_student
from monograph.pipelines.teachers import Teacher
from monograph.runtime.measure import Settings
from monograph.runtime.results import Evidence, Interval, Latency
from monograph.runtime.targets import TARGETS, Availability
from monograph.runtime.timing import TimingRule

FEATURES = Contract(
    (TensorSpec("x", "float32", ("batch", 30)),), (TensorSpec("logits", "float32", ("batch", 5)),), Kind.LOGITS, tuple("pqrst")
)
QUICK = Settings(batch_sizes=(1,), rule=TimingRule(min_runs=40, min_s=0, max_s=1, warmup_s=0.05))


def ladder_of(*widths: int) -> Ladder:
    def rung(width: int) -> Rung:
        return Rung(f"mlp of width {width}", lambda: TorchModel(mlp((30,), 5, width=width)[0], FEATURES, "mlp"))

    return Ladder(tuple(map(rung, widths)), ("a note",))


def teacher_of(width: int) -> Teacher:
    model = TorchModel(mlp((30,), 5, width=width)[0], FEATURES, "wide")
    return Teacher("wide", FEATURES, "0" * 64, lambda rows: np.zeros((len(rows), 5), np.float32), module=model)


@pytest.fixture
def timed_by_width(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let a student of width w take w milliseconds; return the widths in the order in which they are timed."""
    timed: list[int] = []

    def fake(rung: Rung, *_: object) -> latency_budget._Timing:
        timed.append(int(rung.what.split()[3]))
        seconds = timed[-1] / 1e3
        exact = Interval(seconds, seconds, seconds)
        return latency_budget._Timing(Latency(1, 0, 0, 0, (), exact, exact, None), Evidence.EXECUTED)

    monkeypatch.setattr(latency_budget, "_time", fake)
    return timed


class TestText:
    @pytest.mark.parametrize(
        ("text", "budget"),
        [
            ("auto:2ms@cpu", LatencyBudget(2e-3, "cpu")),
            ("auto:2ms", LatencyBudget(2e-3, "cpu")),
            ("auto:.5ms@cuda", LatencyBudget(5e-4, "cuda")),
            ("auto:750us@web-wasm", LatencyBudget(7.5e-4, "web-wasm")),
            ("auto:1.5ms@ssh://me@board/cpu", LatencyBudget(1.5e-3, "ssh://me@board/cpu")),
        ],
    )
    def test_read(self, text: str, budget: LatencyBudget):
        assert is_latency_budget(text)
        found = parse_latency_budget(text)
        assert (found.limit_s, found.target) == (pytest.approx(budget.limit_s), budget.target)
        assert parse_latency_budget(str(found)).limit_s == pytest.approx(found.limit_s)

    @pytest.mark.parametrize(
        "text", ["auto:0ms", "auto:ms", "auto:-1ms", "auto:2ms@", "auto:2 ms@cpu", "auto:2@cpu", "auto:infms"]
    )
    def test_refused(self, text: str):
        assert is_latency_budget(text)
        with pytest.raises(ConfigError, match="expected auto:NUMBERms@TARGET") as caught:
            parse_latency_budget(text)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("text", ["auto:1/10", "auto:0.25", "auto:1/3:macs", "auto:1/10:parameters", "conv", "2ms@cpu"])
    def test_shares_and_names_are_none(self, text: str):
        assert not is_latency_budget(text)


class TestSearch:
    @pytest.mark.parametrize(("limit_ms", "width"), [(4, 4), (9, 8), (33, 32), (99.9, 96), (100, 100), (1e6, 100)])
    def test_the_largest_within_the_budget(self, timed_by_width: list[int], limit_ms: float, width: int):
        ladder = ladder_of(*range(4, 101, 4))
        model, notes = student_within(LatencyBudget(limit_ms / 1e3, "cpu"), [ladder])
        assert count_macs(model) == count_macs(TorchModel(mlp((30,), 5, width=width)[0], FEATURES, "mlp"))
        assert notes[0].startswith(
            f"mlp of width {width}: p50 {width} ms [{width} ms, {width} ms] at batch 1 (executed) on cpu of "
        )
        assert notes[1:] == ("a note",)
        assert len(timed_by_width) == len(set(timed_by_width)) <= 5

    def test_the_note_names_what_would_have_been_next(self, timed_by_width: list[int]):
        _, notes = student_within(LatencyBudget(0.0105, "cpu"), [ladder_of(8, 12, 16)])
        assert notes[0].endswith("of 10.5 ms allowed; mlp of width 12 takes 12 ms; 2 sizes were measured, untrained")

    def test_few_are_measured_of_a_giants(self, timed_by_width: list[int]):
        _, notes = student_within(LatencyBudget(0.3, "cpu"), ladders(10**15, FEATURES, 5))
        assert len(timed_by_width) <= 7
        assert 280 <= int(notes[0].split()[3].rstrip(":")) <= 300

    def test_progress_is_told(self, timed_by_width: list[int]):
        told: list[tuple[int, int, str]] = []
        student_within(LatencyBudget(0.01, "cpu"), [ladder_of(4, 8, 12)], on_progress=lambda *step: told.append(step))
        assert told == [(0, 2, "timing mlp of width 8"), (1, 2, "timing mlp of width 12")]

    def test_the_next_family_is_tried(self, timed_by_width: list[int]):
        _, notes = student_within(LatencyBudget(0.01, "cpu"), [ladder_of(64, 128), ladder_of(8)])
        assert notes[0] == (
            "another family was tried first: even mlp of width 64 takes p50 64 ms [64 ms, 64 ms] at batch 1 (executed) on cpu"
        )
        assert notes[1].startswith("mlp of width 8: ")

    def test_weights_do_not_depend_on_the_search(self, timed_by_width: list[int]):
        torch.manual_seed(3)
        model, _ = student_within(LatencyBudget(0.008, "cpu"), [ladder_of(4, 8, 12)])
        torch.manual_seed(3)
        module, _ = mlp((30,), 5, width=8)
        pairs = zip(model.module.state_dict().values(), module.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


class TestMeasured:
    """On the processor of this machine, for real; how long it takes is not asserted."""

    def test_a_huge_budget_gives_the_largest_that_the_teacher_allows(self):
        told: list[str] = []
        model, notes = load_student("auto:1000ms", {}, teacher_of(5), 3, lambda done, total, detail: told.append(detail))
        assert told == ["timing mlp of width 5"]
        assert (model.name, model.contract) == ("mlp", FEATURES)
        assert count_macs(model) <= count_macs(teacher_of(5).module or model)
        assert notes[0].startswith("mlp of width 5: p50 ")
        assert notes[0].endswith(
            " ms] at batch 1 (executed) on cpu of 1000 ms allowed; larger ones would cost more than the teacher"
        )
        torch.manual_seed(3)
        fresh, _ = mlp((30,), 5, width=5)
        assert all(torch.equal(a, b) for a, b in zip(model.module.parameters(), fresh.parameters(), strict=True))

    def test_a_tiny_one_is_refused_with_what_was_measured(self):
        with pytest.raises(ConfigError) as caught:
            student_within(LatencyBudget(1e-9, "cpu"), [ladder_of(4)], QUICK)
        text = str(caught.value)
        assert text.startswith("auto:1e-06ms@cpu allows 1e-06 ms, but even mlp of width 4 takes p50 ")
        assert text.endswith(" on cpu: allow more, or name a smaller student of your own")
        assert "\n" not in text

    @pytest.mark.slow
    def test_texts_are_of_a_length_that_is_told(self):
        specs = tuple(
            TensorSpec(role, "int64", ("batch", "sequence"), TextPreprocessing(role, 32), bound)
            for role, bound in (("input_ids", 50), ("attention_mask", 2))
        )
        contract = replace(FEATURES, inputs=specs)
        (ladder,) = ladders(10**6, contract, 5)
        _, notes = student_within(LatencyBudget(1, "cpu"), [replace(ladder, rungs=ladder.rungs[:1])], QUICK)
        assert notes[0].startswith("transformer of width 4 and depth 1: p50 ")
        assert " at batch 1 and length 32 (executed) on cpu of 1000 ms allowed" in notes[0]


class TestTargets:
    @pytest.mark.parametrize(("target", "evidence"), [("qnn-htp", "simulated"), ("nnapi", "predicted"), ("arm64", "simulated")])
    def test_without_a_latency_are_refused(self, monkeypatch: pytest.MonkeyPatch, target: str, evidence: str):
        stand_in = replace(TARGETS[target], probe=lambda: Availability(True, "a stand-in"))
        monkeypatch.setitem(TARGETS, target, stand_in)
        with pytest.raises(ConfigError) as caught:
            load_student(f"auto:2ms@{target}", {}, teacher_of(5), 0)
        text = str(caught.value)
        assert text.startswith(
            f"auto:2ms@{target} asks for a latency that was measured, and figures on {target} here are {evidence}"
        )
        assert "\n" not in text

    def test_unknown_is_refused(self):
        with pytest.raises(ConfigError, match="unknown target 'moon': choose from cpu"):
            load_student("auto:2ms@moon", {}, teacher_of(5), 0)
