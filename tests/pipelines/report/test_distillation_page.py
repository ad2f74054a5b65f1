"""The page of a distillation: what it says, what it draws, and what it leaves out where nothing is known."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from markupsafe import escape

from monograph.errors import ConfigError
from monograph.export.trace import export_torch
from monograph.models.data.digits import optical_digits
from monograph.models.data.load import load_rows
from monograph.models.students import conv
from monograph.models.torch_model import TorchModel
from monograph.pipelines.distill import Distilled, Hints, Recipe, Standing, distill_model
from monograph.pipelines.records import read_record
from monograph.pipelines.report.distillation_page import render_distillation, write_distillation_page
from monograph.pipelines.report.distillation_view import Speed, curve, findings, headline, told
from monograph.pipelines.report.formats import MISSING, count_text
from monograph.pipelines.report.training_plot import training_svg
from monograph.pipelines.training import Epoch, Training, TrainingSettings, train
from monograph.runtime.results import Agreement, Evidence

MakeDistilled = Callable[..., Distilled]
CREATED = "2026-11-23T21:40:12+00:00"
HOSTILE = "</script><script>alert(1)</script><!--"


def text_of(html: str) -> str:
    """The words of a page, without its styles, scripts and figures."""
    return " ".join(unescape(re.sub(r"<(script|style|svg).*?</\1>|<[^>]*>", " ", html, flags=re.DOTALL)).split())


def row_of(html: str, name: str, caption: str) -> str:
    row = re.search(rf"<tr[^>]*><th scope=\"row\">{re.escape(name)}<.*?</tr>", html[html.index(escape(caption)) :], re.DOTALL)
    assert row is not None
    return text_of(row.group())


def record_of(html: str) -> dict[str, Any]:
    found = re.search(r'id="monograph-result">(.*?)</script>', html)
    assert found is not None
    record = json.loads(found.group(1))
    assert isinstance(record, dict)
    return record


def slowed(made: Distilled, factor: float) -> Distilled:
    """The same, with a student that takes ``factor`` times as long."""
    first, *rest = made.measurements
    latency = first.latency
    assert latency is not None
    p50 = replace(latency.p50_s, estimate=factor * latency.p50_s.estimate)
    return replace(made, measurements=(replace(first, latency=replace(latency, p50_s=p50)), *rest))


def regression(made: Distilled) -> Distilled:
    """The same for a student without classes, whose loss is a squared error."""
    epochs = tuple(Epoch(2.0 - 0.3 * number, 1.5 - 0.2 * number, math.nan) for number in range(4))
    fidelity = Agreement("the teachers", 120, 0.31, 0.042, 0.9987, 3, None)
    student = replace(made.student, accuracy=None, fidelity=fidelity)
    teachers = tuple(replace(one, accuracy=None) for one in made.teachers)
    return replace(
        made, loss="mse", training=Training(epochs, 3), student=student, teachers=teachers, retention=None, measurements=()
    )


def test_the_headline_tells_what_is_kept_at_what_work_and_how_much_faster(make_distilled: MakeDistilled):
    made = make_distilled()
    assert headline(made) == (
        "The student keeps 99.2% of the teacher's top-1 at 7.1% of the multiply-accumulates, and is 4.9 times as fast on cpu."
    )
    assert headline(slowed(made, 10)).endswith("and takes 2.0 times as long on cpu.")
    assert headline(slowed(made, 4.88)).endswith("and is as fast on cpu.")


def test_several_teachers_count_together(make_distilled: MakeDistilled):
    made = make_distilled()
    second = replace(made.teachers[0], name="other", macs=2_000_000)
    timed = replace(made.measurements[1], model="other", sha256="0")
    several = replace(made, teachers=(*made.teachers, second), measurements=(*made.measurements, timed))
    assert headline(several) == (
        "The student keeps 99.2% of the teachers' combined top-1 at 5.4% of the multiply-accumulates, and is 9.8 times as fast "
        "as all teachers one after another on cpu."
    )
    assert "the best teacher, fused, 97.9%" in findings(several)[0]
    unknown = replace(several, teachers=(made.teachers[0], replace(second, macs=None)), measurements=made.measurements)
    assert headline(unknown) == "The student keeps 99.2% of the teachers' combined top-1 at 6.6% of the file size."


@pytest.mark.parametrize("evidence", [Evidence.SIMULATED, Evidence.PREDICTED])
def test_a_time_that_no_hardware_took_makes_nothing_faster(make_distilled: MakeDistilled, evidence: Evidence):
    made = make_distilled()
    unreal = replace(made, measurements=tuple(replace(one, evidence=evidence) for one in made.measurements))
    html = render_distillation(unreal, CREATED)
    assert headline(unreal) == "The student keeps 99.2% of the teacher's top-1 at 7.1% of the multiply-accumulates."
    assert f"{evidence.value}: not a latency" in row_of(html, "separable_conv", "How fast and how large they are")
    assert "times as fast" not in text_of(html)


def test_rows_that_flatter_are_told(make_distilled: MakeDistilled):
    flattered = make_distilled(test_rows="validation rows, on which the epoch was chosen: they flatter the student")
    assert findings(flattered)[-1] == (
        "All standings are on 1,797 validation rows, on which the epoch was chosen: they flatter the student."
    )


def test_intervals_that_overlap_are_told(make_distilled: MakeDistilled):
    made = make_distilled()
    assert findings(made)[0].endswith("and fused 97.9% [97.2, 98.5]: the 95% intervals overlap.")
    accuracy = made.teachers[0].accuracy
    assert accuracy is not None
    sure = replace(accuracy, top1=replace(accuracy.top1, low=0.9791, high=0.9797))
    apart = replace(made, teachers=(replace(made.teachers[0], accuracy=sure),))
    assert findings(apart)[0].endswith("the 95% intervals do not overlap.")


def test_the_standings_show_every_figure(make_distilled: MakeDistilled):
    html = render_distillation(make_distilled(), CREATED)
    assert row_of(html, "separable_conv", "How right they are") == (
        "separable_conv student 97.2 [96.3, 97.8] 97.0 0.112 0.71 1,797"
    )
    assert row_of(html, "fused", "What they cost") == f"fused teacher 6.15 M {MISSING} 430 kB"
    assert row_of(html, "separable_conv", "What they cost") == "separable_conv student 437 k 7.1% 6.83 k 56.6 kB 13%"
    beside = "The student's outputs beside its teachers'"
    assert row_of(html, "separable_conv", beside) == "separable_conv 96.2 [95.2, 97.0] 0.9713 3.12 0.284 1,797"
    assert row_of(html, "fused · cpu", "The student beside each teacher") == "fused · cpu 0.204 0.0418 is 4.9 times as fast"


def test_the_page_tells_how_the_student_learned(make_distilled: MakeDistilled):
    made = make_distilled()
    recipe = Recipe("kd", {"temperature": 2.0, "hard_weight": 0.1}, teacher_weights=(0.7, 0.3))
    text = text_of(render_distillation(made, CREATED, recipe, TrainingSettings(learning_rate=1e-3, patience=4)))
    kept = made.training.best_epoch + 1
    for words in (
        "Loss Knowledge distillation (kd)",
        "Source of the loss arXiv 1503.02531",
        "Temperature 2 ",
        "Hard weight 0.1",
        "Teacher weights 0.7, 0.3",
        f"Epochs 5, of which number {kept} was kept",
        "Learning rate 0.001",
        "Patience 4",
        f"{made.onnx.name}: {made.proof}.",
        made.notes[0],
    ):
        assert words in text
    assert "Temperature" not in text_of(render_distillation(made, CREATED))


def test_settings_are_told_as_people_read_them():
    recipe = Recipe(hints=Hints({"features.3": "layer2"}))
    assert dict(told(recipe, "loss", "options"))["hints"] == "layers features.3: layer2; loss hint"
    assert dict(told(TrainingSettings()))["learning rate"] == "0.003"
    assert "patience" not in dict(told(TrainingSettings(patience=None)))


def test_losses_are_drawn_apart_and_the_kept_epoch_is_marked(make_distilled: MakeDistilled):
    made = make_distilled()
    svg = training_svg([curve(made)], key="k", width=960)
    assert re.findall(r">([TV]\w+ (?:loss|top-1),[^<]*)<", svg) == [
        "Training loss, kd",
        "Validation loss, nats",
        "Validation top-1, %",
    ]
    assert f"epoch {made.training.best_epoch + 1} kept" in svg
    assert svg.count("var(--accent)") > training_svg([replace(curve(made), kept_epoch=None)], key="k", width=960).count(
        "var(--accent)"
    )
    (narrow,) = re.findall(r'viewBox="0 0 350 (\d+)"', training_svg([curve(made)], key="k", width=350))
    assert int(narrow) == 3 * 200, "three panels below each other"


def test_a_student_without_classes_has_no_accuracy_and_a_squared_error(make_distilled: MakeDistilled):
    made = regression(make_distilled())
    html = render_distillation(made, CREATED)
    text = text_of(html)
    assert headline(made) == "The student gives the teacher's outputs at a cosine of 0.9987 at 7.1% of the multiply-accumulates."
    assert "Its mean squared error on validation rows is 0.900." in text
    assert "Validation loss, squared error" in html
    assert (
        row_of(html, "separable_conv", "The student's outputs beside its teachers'") == "separable_conv 0.9987 0.310 0.0420 120"
    )
    for absent in ("How right they are", "Validation top-1", 'id="trade"', 'id="times"', 'id="machine"', "nan"):
        assert absent not in html
    assert record_of(html)["training"]["epochs"][0]["validation_top1"] is None


def test_hardly_anything_known_is_still_a_page(make_distilled: MakeDistilled):
    made = make_distilled()
    teacher, student = Standing("t", None, None, None, None, None), Standing("s", None, None, None, None, None)
    bare = replace(made, teachers=(teacher,), student=student, retention=None, measurements=(), notes=())
    html = render_distillation(bare, CREATED)
    assert headline(bare) == "The student is trained and exported."
    assert row_of(html, "s", "What they cost") == f"s student {MISSING} {MISSING} {MISSING}"
    ids = re.findall(r'<section id="([^"]+)"', html)
    assert ids == ["standings", "training", "proofs"]


def test_nothing_is_fetched_every_link_resolves_and_the_page_is_small(make_distilled: MakeDistilled):
    html = render_distillation(make_distilled(), CREATED)
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    for address in re.findall(r'(?:href|src|srcset|action)="([^"]*)"', html):
        assert address == "data:," or (address.startswith("#") and address[1:] in ids)
    assert len(html) < 300_000
    assert html == render_distillation(make_distilled(), CREATED)


def test_hostile_text_stays_text(make_distilled: MakeDistilled):
    made = make_distilled()
    hostile = replace(
        made,
        student=replace(made.student, name=HOSTILE),
        teachers=(replace(made.teachers[0], name=HOSTILE),),
        test_rows=HOSTILE,
        proof=HOSTILE,
        notes=(HOSTILE,),
        measurements=tuple(replace(one, model=HOSTILE, warnings=(HOSTILE,)) for one in made.measurements),
    )
    html = render_distillation(hostile, HOSTILE, Recipe(teacher_weights=HOSTILE))
    assert html.count("<script") == html.count("</script") == 2
    assert "<!--" not in html
    assert record_of(html)["proof"] == HOSTILE


def test_the_embedded_record_is_complete_but_for_the_samples(make_distilled: MakeDistilled):
    made = make_distilled()
    record = record_of(render_distillation(made, CREATED))
    assert record["student"]["macs"] == made.student.macs
    assert len(record["training"]["epochs"]) == 5
    latency = record["measurements"][0]["latency"]
    assert latency["sample_count"] == 1000
    assert "samples_ns" not in latency


def test_a_teacher_whose_file_is_called_like_the_student_stays_a_teacher(make_distilled: MakeDistilled):
    made = make_distilled()
    alike = replace(made.measurements[1], model="student")
    named = replace(made, teachers=(replace(made.teachers[0], name="student"),), measurements=(made.measurements[0], alike))
    html = render_distillation(named, CREATED)
    assert row_of(html, "student", "How fast and how large they are").startswith("student teacher 0.204")
    assert row_of(html, "separable_conv", "How fast and how large they are").startswith("separable_conv student 0.0418")


def test_one_machine_is_one_however_busy_it_was(make_distilled: MakeDistilled):
    made = make_distilled()
    busy = tuple(
        replace(one, environment=replace(one.environment, load_before=float(index), throttled_periods=index))
        for index, one in enumerate(made.measurements)
    )
    assert text_of(render_distillation(replace(made, measurements=busy), CREATED)).count("AMD EPYC 7B13") == 1


def test_each_target_has_its_own_figures(make_distilled: MakeDistilled):
    made = make_distilled()
    cuda = tuple(replace(one, target="cuda") for one in made.measurements)
    text = text_of(render_distillation(replace(made, measurements=made.measurements + cuda), CREATED))
    assert text.count("On cpu") == text.count("On cuda") == 1
    assert "fused · cuda 0.204 0.0418" in text


def test_a_clock_too_coarse_to_see_the_student_says_so():
    assert Speed("web-wasm", 0.0, 1e-3).words() == "is ∞ times as fast"


@pytest.mark.parametrize(("count", "text"), [(0, "0"), (812, "812"), (6_826, "6.83 k"), (1.43e6, "1.43 M"), (4.1e9, "4.10 G")])
def test_large_counts_are_short(count: float, text: str):
    assert count_text(count) == text


def test_a_folder_that_cannot_be_made_is_the_users_to_mend(make_distilled: MakeDistilled, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="choose another output path"):
        write_distillation_page(make_distilled(), tmp_path / "file" / "report.html")


@pytest.mark.slow
def test_a_real_distillation_has_a_page(tmp_path: Path):
    """A network of digits, as an ONNX file, teaches a smaller one; both are timed."""
    table = optical_digits()
    np.savez(tmp_path / "digits.npz", x=table["x"][:400], y=table["y"][:400])
    torch.manual_seed(0)
    teacher = TorchModel(*conv((1, 8, 8), width=12, dropout=0.0), "teacher")
    rows = load_rows(str(tmp_path / "digits.npz"), teacher.contract)
    train(teacher, rows.take(slice(0, 300)), rows.take(slice(300, 400)), TrainingSettings(epochs=2, learning_rate=1e-2))
    export_torch(teacher, tmp_path / "teacher.onnx")
    recipe, settings = Recipe("kd", {"temperature": 2.0}), TrainingSettings(epochs=2, learning_rate=1e-2, select="top1")
    made = distill_model(
        [str(tmp_path / "teacher.onnx")],
        "separable_conv",
        str(tmp_path / "digits.npz"),
        tmp_path / "out",
        student_arguments={"width": 8, "dropout": 0.0},
        recipe=recipe,
        settings=settings,
    )
    write_distillation_page(made, tmp_path / "out" / "report.html", recipe, settings)
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert headline(made) in text_of(html)
    assert re.search(r"at \d+% of the multiply-accumulates, and (is|takes) .* on cpu", headline(made))
    assert "validation rows, on which the epoch was chosen: they flatter the student" in text_of(html)
    assert row_of(html, "teacher · cpu", "The student beside each teacher")
    assert "Temperature 2 " in text_of(html)
    assert read_record(tmp_path / "out" / "distillation.json", Distilled).retention == record_of(html)["retention"]
