"""What the page of a distillation says: the result in one sentence, key figures, what each model costs, how much faster it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, is_dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from monograph.pipelines.report.formats import MISSING, Shown, count_text, milliseconds, percent, significant, size_text
from monograph.pipelines.report.grid import Grid
from monograph.pipelines.report.headline import overlap, top1_text
from monograph.pipelines.report.merit import top1_of
from monograph.pipelines.report.model import Contender, Role, TrainingCurve, by_target
from monograph.pipelines.report.trade_plot import Point
from monograph.pipelines.report.view import Tile
from monograph.runtime.results import Interval

if TYPE_CHECKING:
    from monograph.pipelines.distill import Distilled, Standing


@dataclass(frozen=True)
class Cost:
    """One way to count what a model costs."""

    name: str
    """As a sentence goes on: at 7% of …"""
    label: str
    """Of an axis, with its unit."""
    unit: float
    of: Callable[[Standing], int | None]
    text: Callable[[float], str]


_COSTS = (
    Cost("multiply-accumulates", "Multiply-accumulates of a row, millions", 1e6, attrgetter("macs"), count_text),
    Cost("weights", "Weights, thousands", 1e3, attrgetter("parameter_count"), count_text),
    Cost("file size", "Size of the file, kB", 1e3, attrgetter("size_bytes"), size_text),
)


@dataclass(frozen=True)
class Row:
    """A model in the tables of standings."""

    standing: Standing
    role: Role
    costs: tuple[Shown, ...]
    """By multiply-accumulates, weights and size; under a student's its share of all teachers'."""


@dataclass(frozen=True)
class Speed:
    """The medians of the student and of all teachers on one target."""

    target: str
    student_s: float
    teachers_s: float
    """One after another."""

    @property
    def factor(self) -> float:
        """How many times as fast the student is; infinite where the clock is too coarse to see its calls."""
        return self.teachers_s / self.student_s if self.student_s else float("inf")

    def words(self, beside: str = "") -> str:
        """Return ``is 4.8 times as fast``, or what it is instead, with ``beside`` behind."""
        if significant(self.factor, 2) == "1.0":
            return f"is as fast{beside}"
        if self.factor < 1:
            return f"takes {significant(1 / self.factor, 2)} times as long{beside}"
        return f"is {significant(self.factor, 2)} times as fast{beside}"


def headline(distilled: Distilled) -> str:
    """State how much the student keeps, at what share of the work, and how much faster it is."""
    owners = _owners(distilled)
    fidelity, cost, speed = distilled.student.fidelity, shared_cost(distilled), first_speed(distilled)
    if distilled.retention is not None:
        kept = f"keeps {distilled.retention:.1%} of {owners} top-1"
    elif fidelity is not None:
        kept = f"gives {owners} outputs at a cosine of {fidelity.cosine:.4f}"
    else:
        kept = "is trained and exported"
    work = "" if cost is None else f" at {_share_text(distilled, distilled.student, cost)} of the {cost.name}"
    if speed is None:
        return f"The student {kept}{work}."
    return f"The student {kept}{work}, and {speed.words(_beside(distilled))} on {speed.target}."


def findings(distilled: Distilled) -> tuple[str, ...]:
    """Return the sentences that belong under the headline: the student beside the best teacher, and on which rows."""
    told, own = [], distilled.student.accuracy
    scored = [(one.name, one.accuracy) for one in distilled.teachers if one.accuracy]
    if own and scored:
        name, best = max(scored, key=lambda pair: pair[1].top1.estimate)
        settled = "overlap" if overlap(own.top1, best.top1) else "do not overlap"
        who = name if len(scored) == 1 else f"the best teacher, {name},"
        intervals = f"the {own.top1.confidence:.0%} intervals {settled}"
        told.append(f"It reaches {top1_text(own)} top-1 and {who} {top1_text(best)}: {intervals}.")
    elif distilled.training.epochs and own is None:
        error = distilled.training.epochs[distilled.training.best_epoch].validation_loss
        told.append(f"Its mean squared error on validation rows is {significant(error)}.")
    told.append(f"All standings are on {rows_text(distilled)}.")
    return tuple(told)


def rows_text(distilled: Distilled) -> str:
    """Return how many rows of which kind the standings are on."""
    counted = distilled.student.accuracy or distilled.student.fidelity
    return distilled.test_rows if counted is None else f"{counted.row_count:,} {distilled.test_rows}"


def tiles(distilled: Distilled) -> list[Tile]:
    """Return the key figures of the student; fewer where less is known."""
    made, student = [], distilled.student
    if distilled.retention is not None:
        made.append(Tile("Kept", f"{100 * distilled.retention:.1f}", "%", f"of {_owners(distilled)} top-1"))
    if student.accuracy:
        top1 = percent(student.accuracy.top1)
        made.append(Tile("Top-1 accuracy", top1.value, "%", top1.bounds))
    if student.fidelity and student.fidelity.top1_agreement:
        same = percent(student.fidelity.top1_agreement)
        made.append(Tile("Agreement", same.value, "%", f"same class {same.bounds}"))
    elif student.fidelity:
        made.append(Tile("Cosine", f"{student.fidelity.cosine:.4f}", "", f"to {_owners(distilled)} outputs"))
    known = [cost for cost in _COSTS if cost.of(student)]
    for cost in dict.fromkeys((*known[:1], *known[-1:])):
        value, _, unit = cost.text(cost.of(student) or 0).partition(" ")
        share = _share_text(distilled, student, cost)
        whose = "the teacher's" if len(distilled.teachers) == 1 else "the teachers'"
        made.append(Tile(cost.name[0].upper() + cost.name[1:], value, unit, f"{share} of {whose}" if share else ""))
    speed = first_speed(distilled)
    if speed:
        words = speed.words(_beside(distilled)).removeprefix("is ")
        made.append(Tile("Median latency", significant(1e3 * speed.student_s), "ms", f"{speed.target}; {words}"))
    return made


def standing_rows(distilled: Distilled) -> list[Row]:
    """Return the teachers and then the student."""
    roles: list[tuple[Standing, Role]] = [(one, "teacher") for one in distilled.teachers]
    roles.append((distilled.student, "student"))
    return [Row(one, role, tuple(_cost_shown(distilled, one, role, cost) for cost in _COSTS)) for one, role in roles]


def shared_cost(distilled: Distilled) -> Cost | None:
    """Return the first way to count what the student and all teachers cost; None where there is none."""
    every = (*distilled.teachers, distilled.student)
    return next((cost for cost in _COSTS if all(cost.of(one) for one in every)), None)


def trade_points(rows: Iterable[Row], cost: Cost) -> list[Point]:
    """Return each model as a point of accuracy over ``cost``."""
    points = []
    for row in rows:
        count = cost.of(row.standing)
        if count and row.standing.accuracy:
            at = count / cost.unit
            text = f"{cost.text(count)} {cost.name}"
            points.append(Point(row.standing.name, row.role, Interval(at, at, at), text, top1_of(row.standing.accuracy)))
    return points


def contenders(distilled: Distilled) -> list[Contender]:
    """Return what was measured, each by the name that it has among the standings."""
    teachers = {one.name for one in distilled.teachers}
    made = []
    for one in distilled.measurements:
        # The student is measured first; a teacher's file may be called student.onnx, too.
        if one.sha256 == distilled.measurements[0].sha256:
            made.append(Contender(distilled.student.name, "student", one))
        else:
            made.append(Contender(one.model, "teacher" if one.model in teachers else "student", one))
    return made


def first_speed(distilled: Distilled) -> Speed | None:
    """Return how fast the student is on the first target on which it and all teachers were timed."""
    for target, group in by_target(contenders(distilled)).items():
        own = [one.latency.p50_s.estimate for one in group if one.latency and one.role == "student"]
        theirs = [one.latency.p50_s.estimate for one in group if one.latency and one.role == "teacher"]
        if own and len(theirs) == len(distilled.teachers):
            return Speed(target, own[0], sum(theirs))
    return None


def speed_grid(distilled: Distilled) -> Grid | None:
    """Set the median of each teacher beside the student's on the same target; None where nothing was timed beside it."""
    rows = []
    for target, group in by_target(contenders(distilled)).items():
        student = next((one for one in group if one.role == "student"), None)
        for teacher in group:
            if teacher.role == "teacher" and teacher.latency and student and student.latency:
                own, theirs = student.latency.p50_s, teacher.latency.p50_s
                words = Speed(target, own.estimate, theirs.estimate).words()
                rows.append((f"{teacher.name} · {target}", milliseconds(theirs).value, milliseconds(own).value, words))
    if not rows:
        return None
    note = "Timed one after another: monograph measure --compare takes models in turns, which tells small differences."
    return Grid("The student beside each teacher", ("teacher", "its p50 ms", "student p50 ms", "the student"), tuple(rows), note)


def fidelity_grid(distilled: Distilled) -> Grid | None:
    """Tell how far the student's outputs are the teachers' combined ones; None where that is not known."""
    fidelity = distilled.student.fidelity
    if fidelity is None:
        return None
    errors = tuple(MISSING if each is None else significant(each) for each in (fidelity.max_abs_error, fidelity.relative_error))
    headings: tuple[str, ...] = ("student", "cosine", "max abs error", "relative", "rows")
    row: tuple[str, ...] = (distilled.student.name, f"{fidelity.cosine:.4f}", *errors, f"{fidelity.row_count:,}")
    note = "Relative: to the largest absolute output of the teachers."
    if fidelity.top1_agreement is not None:
        headings = (headings[0], "same class %", *headings[1:])
        row = (row[0], str(percent(fidelity.top1_agreement)), *row[1:])
        note += " Classes are compared as logits."
    return Grid("The student's outputs beside its teachers'", headings, (row,), note)


def curve(distilled: Distilled) -> TrainingCurve:
    """Return what the epochs gave: what was minimised is another loss than the one on validation rows."""
    epochs, training = distilled.training.epochs, distilled.training
    has_classes = any(one.validation_top1 == one.validation_top1 for one in epochs)  # not NaN
    return TrainingCurve(
        distilled.student.name,
        tuple(one.train_loss for one in epochs),
        tuple(one.validation_loss for one in epochs),
        tuple(one.validation_top1 for one in epochs) if has_classes else (),
        kept_epoch=training.best_epoch,
        minimised=distilled.loss,
        validation_unit="nats" if has_classes else "squared error",
    )


def told(settings: Any, *leave_out: str) -> list[tuple[str, str]]:
    """Return the names and values of a dataclass of settings, without those that are not set."""
    values = ((field.name, getattr(settings, field.name)) for field in fields(settings) if field.name not in leave_out)
    return [(name.replace("_", " "), _setting_text(value)) for name, value in values if value not in (None, "", (), {})]


def _setting_text(value: Any) -> str:
    if is_dataclass(value):
        return "; ".join(f"{name} {text}" for name, text in told(value))
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple | list):
        return ", ".join(map(_setting_text, value))
    return ", ".join(f"{key}: {_setting_text(one)}" for key, one in value.items()) if isinstance(value, dict) else str(value)


def _owners(distilled: Distilled) -> str:
    return "the teacher's" if len(distilled.teachers) == 1 else "the teachers' combined"


def _beside(distilled: Distilled) -> str:
    return "" if len(distilled.teachers) == 1 else " as all teachers one after another"


def _cost_shown(distilled: Distilled, one: Standing, role: Role, cost: Cost) -> Shown:
    count = cost.of(one)
    share = _share_text(distilled, one, cost) if role == "student" else ""
    return Shown(MISSING if count is None else cost.text(count), share)


def _share_text(distilled: Distilled, one: Standing, cost: Cost) -> str:
    """What ``one`` costs as a share of all teachers together; empty where any of them is not known."""
    count, theirs = cost.of(one), [cost.of(teacher) for teacher in distilled.teachers]
    known = [each for each in theirs if each]
    if not count or len(known) < len(theirs) or not known:
        return ""
    return f"{significant(100 * count / sum(known), 2)}%"
