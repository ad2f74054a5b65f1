"""Which method is tried, stopped, and kept."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from monograph.errors import ConfigError, MissingPackageError, MonographError
from monograph.models.data.rows import Rows
from monograph.models.torch_model import TorchModel
from monograph.pipelines.adapt import auto
from monograph.pipelines.adapt.auto import Candidate, adapt_automatically, candidates, parse_budget
from monograph.pipelines.adapt.methods import Adaptation

pytest.importorskip("optuna", reason="optuna is not installed: pip install 'monograph[adapt]'")

MakeAdaptation = Callable[..., Adaptation]
FINE = {"learning_rate": 0.01}
POOR = {"learning_rate": 1e-9}


@pytest.fixture
def fresh(
    make_adaptation: MakeAdaptation, pretrained: TorchModel, odd_parts: dict[str, Rows]
) -> Callable[..., Callable[[str], Adaptation]]:
    def made(**changes: Any) -> Callable[[str], Adaptation]:
        settings = {"epochs": 2, "batch_size": 64}
        return lambda name: make_adaptation(pretrained, odd_parts, name=name, settings=settings, **changes)

    return made


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400), (None, 600)])
def test_budget(text: str | None, seconds: float):
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "m", "ten minutes", "0s", "-5m", "infs", "nans"])
def test_no_budget(text: str):
    with pytest.raises(ConfigError, match="budget"):
        parse_budget(text)


def test_cheap_ones_come_first(fresh: Any, make_adaptation: MakeAdaptation, bert: TorchModel, texts: Rows):
    tried = candidates(fresh()("plan"))
    assert [one.method for one in tried[:3]] == ["head", "batchnorm", "last-layers"]
    assert tried[-1].method == "lora"
    assert [one.settings["learning_rate"] for one in tried if one.method == "lp-ft"] == pytest.approx([1e-3, 3e-4])
    of_texts = candidates(make_adaptation(bert, {"train": texts, "validation": texts}))
    assert [one.method for one in of_texts[:2]] == ["head", "last-layers"]
    assert [one.settings["learning_rate"] for one in of_texts if one.method == "lp-ft"] == pytest.approx([1e-4, 3e-5])


def test_the_first_is_finished_whatever_the_budget(fresh: Any):
    told: list[str] = []
    tried = [Candidate("head", {}), Candidate("lp-ft", FINE)]
    adaptation, outcome, method, trials = adapt_automatically(fresh(), 1e-6, lambda one: told.append(one.method), tried)
    assert method == "head"
    assert [one.state for one in trials] == ["finished", "out of time"]
    assert trials[0].validation == adaptation.quality(adaptation.model, adaptation.rows["validation"])
    assert (trials[1].validation, trials[1].epochs, trials[1].seconds) == (None, 0, 0.0)
    assert len(outcome.stages) == 1
    assert told == ["head"]


def test_a_budget_ends_within_a_candidate(fresh: Any, monkeypatch: pytest.MonkeyPatch):
    """The clock stands still until the second begins."""
    now = {"s": 0.0}
    monkeypatch.setattr(auto, "time", SimpleNamespace(monotonic=lambda: now["s"]))

    def begun(name: str) -> Adaptation:
        now["s"] = 100.0 if name.startswith("1-") else 0.0
        return fresh()(name)

    _, _, method, trials = adapt_automatically(begun, 50.0, tried=[Candidate("head", {}), Candidate("full", FINE)])
    assert (method, [one.state for one in trials]) == ("head", ["finished", "out of time"])
    assert (trials[1].epochs, trials[1].validation) == (0, None)


def test_the_best_by_validation_rows_is_kept(fresh: Any):
    tried = [Candidate("full", POOR), Candidate("head", {"epochs": 15})]
    adaptation, _, method, trials = adapt_automatically(fresh(), 1e6, tried=tried)
    assert method == "head"
    assert trials[1].validation > trials[0].validation
    assert adaptation.quality(adaptation.model, adaptation.rows["validation"]) == trials[1].validation


def test_a_bad_one_is_stopped(fresh: Any):
    tried = [Candidate("lp-ft", FINE), Candidate("full", FINE | {"epochs": 2}), Candidate("full", POOR)]
    _, _, method, trials = adapt_automatically(fresh(), 1e6, tried=tried)
    assert method == "lp-ft"
    assert (trials[0].state, trials[2].state, trials[2].epochs) == ("finished", "stopped", 1)
    assert trials[2].validation is not None


def test_one_that_cannot_be_had_is_told(fresh: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    _, _, method, trials = adapt_automatically(fresh(), 1e6, tried=[Candidate("lora", {}), Candidate("head", {})])
    assert method == "head"
    assert trials[0].state.startswith("failed: --method lora needs the package peft")
    with pytest.raises(MonographError, match="no method came to an end: lora failed: "):
        adapt_automatically(fresh(), 1e6, tried=[Candidate("lora", {})])


def test_without_its_library(fresh: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingPackageError, match=r"--method auto needs the package optuna: pip install 'monograph\[adapt\]'"):
        adapt_automatically(fresh(), 1.0)
