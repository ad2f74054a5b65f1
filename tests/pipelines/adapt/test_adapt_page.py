"""The page of an adaptation: everything is on it, nothing is fetched, and names are text."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from monograph.models.contract import TensorSpec
from monograph.models.data.rows import Rows
from monograph.pipelines.adapt import Adapted
from monograph.pipelines.adapt.methods import Mix, Stage
from monograph.pipelines.adapt.standing import Trial, compared
from monograph.pipelines.adapt.task import Task, TaskKind
from monograph.pipelines.report.adaptation_page import render_adaptation_page, write_adaptation_page
from monograph.pipelines.report.adaptation_tables import adaptation_tables
from monograph.pipelines.training import Epoch, Training

X = TensorSpec("x", "float32", ("b", 2))


def adapted(kind: TaskKind, name: str = "conv", names: tuple[str, ...] = ("cat", "dog", "cow")) -> Adapted:
    """An adaptation with all that there may be."""
    rng = np.random.default_rng(0)
    has_classes = kind is TaskKind.CLASSIFICATION
    task = Task(kind, 3 if has_classes else 1, names if has_classes else None)
    labels = rng.integers(0, 3, 200) if has_classes else rng.normal(size=200)
    right = np.eye(3)[labels] * 4 if has_classes else labels[:, None]
    given = right + rng.normal(size=right.shape) * (1 if has_classes else 0.2)
    others = {"majority class" if has_classes else "mean": np.zeros_like(right), "15-nearest neighbours": right / 2 + given / 4}
    rows = Rows({"x": np.zeros((200, 2), np.float32)}, labels)
    own, baselines, best, gain, quality = compared(name, given, others, rows, task, task.contract((X,)))
    nan = float("nan")
    epochs = tuple(Epoch(1 / n, 1.2 / n, 1 - 0.5 / n if has_classes else nan) for n in range(1, 5))
    return Adapted(
        onnx=Path("out/adapted.onnx"),
        weights=Path("out/adapted.safetensors"),
        method="wise-ft",
        task=kind.value,
        class_names=task.class_names,
        model=own,
        baselines=baselines,
        quality=quality,
        best_baseline=best,
        gain=gain,
        beats_baselines=gain.low > 0,
        row_counts={"train": 12_000, "validation": 2_000, "test": 200, "shifted": 300},
        stages=(Stage("head", Training(epochs, 3)), Stage("full", Training(epochs[:3], 2))),
        mixes=tuple(Mix(step / 10, 0.9, 0.8 if step else None) for step in range(11)),
        trials=(
            Trial("head", {}, 0.912, 0, "finished", 3.2),
            Trial("lp-ft", {"learning_rate": 1e-4}, 0.87, 1, "stopped", 71.0),
            Trial("lora", {}, None, 0, "failed: --method lora needs the package peft: pip install 'monograph[adapt]'", 0.1),
        ),
        temperature=1.31 if has_classes else None,
        proof="equal to 1e-6 on 8 rows",
        measurements=(),
        notes=("conv did this task before and keeps its head",),
    )


@pytest.fixture(params=[TaskKind.CLASSIFICATION, TaskKind.REGRESSION, TaskKind.RATING])
def made(request: pytest.FixtureRequest) -> Adapted:
    return adapted(request.param)


def test_everything_is_on_it(made: Adapted):
    page = render_adaptation_page(made)
    text = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    assert made.verdict() in text
    for one in (*made.baselines, made.model):
        assert one.name in text
    for words in ("12,000 train", "what was tried", "successive halving", "means of the weights", *made.notes, made.proof):
        assert words in text
    assert "<svg" in page
    assert ("Temperature" in text) == (made.temperature is not None)


def test_nothing_is_fetched(made: Adapted):
    page = render_adaptation_page(made)
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:)[^"']*["']""", page)
    assert not re.findall(r"url\((?!['\"]?(?:#|data:))", page)


def test_names_are_text(tmp_path: Path):
    evil = "<script>alert('x')</script>"
    made = adapted(TaskKind.CLASSIFICATION, evil, (evil, "dog & cat", "</table>"))
    write_adaptation_page(replace(made, notes=(evil,)), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "dog &amp; cat" in page
    assert "&lt;script&gt;" in page


def test_one_that_is_no_better_says_so(made: Adapted):
    worse = replace(made, gain=replace(made.gain, low=-0.1), beats_baselines=False)
    page = render_adaptation_page(worse)
    assert "NOT shown to be better than" in page
    assert ", not shown to be better than" in page


def test_on_a_terminal(made: Adapted):
    console = Console(width=200, record=True, file=_nowhere())
    for table in adaptation_tables(made):
        console.print(table)
    text = console.export_text()
    assert made.best_baseline in text
    assert "out" not in text or "what became of it" in text


def _nowhere() -> object:
    import io

    return io.StringIO()
