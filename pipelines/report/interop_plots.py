"""The figures of an interoperability study: heatmaps of pairs and of layers, and accuracy over multiply-accumulates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from matplotlib.patches import Rectangle

from monograph.pipelines.interop.result import RMSE, TOP1, worth
from monograph.pipelines.report.formats import count_text, shortened
from monograph.pipelines.report.merit import Merit
from monograph.pipelines.report.model import Role
from monograph.pipelines.report.svg import ACCENT, INK, MUTED, NARROW, Margins, add_axes, drawing, new_figure, to_svg
from monograph.pipelines.report.trade_plot import Point
from monograph.runtime.results import Interval, Score

if TYPE_CHECKING:
    from monograph.pipelines.interop import Interop
    from monograph.pipelines.interop.result import Fusion, Lesson

_MILLION = 1e6
_MOST_NAMED = 14


@dataclass(frozen=True)
class Matrix:
    """Values to be drawn as a heatmap; None leaves a cell empty."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    low: float
    """Of the scale, drawn without colour."""
    high: float
    """In full colour."""
    pattern: str = "{:.2f}"
    note: str = ""


def heatmap_svg(matrix: Matrix, *, key: str, width: int) -> str:
    """Draw ``matrix``, its first row at the top, each value written in its cell."""
    is_narrow = width < NARROW
    cell = 34 if is_narrow else 40
    names = [shortened(name, 14 if is_narrow else 24) for name in matrix.rows]
    left = 12 + 7 * max(map(len, names))
    with drawing(key):
        figure = new_figure(width, 46 + cell * len(matrix.rows))
        axes = add_axes(figure, Margins(left, 14, 34, 8))
        axes.set_xlim(0, len(matrix.columns))
        axes.set_ylim(len(matrix.rows), 0)
        tooltips = {}
        for row, values in enumerate(matrix.values):
            for column, value in enumerate(values):
                if value is None:
                    continue
                share = (value - matrix.low) / ((matrix.high - matrix.low) or 1.0)
                gid = f"cell-{row}-{column}"
                alpha = 0.06 + 0.6 * min(max(share, 0.0), 1.0)
                axes.add_patch(
                    Rectangle((column + 0.02, row + 0.03), 0.96, 0.94, facecolor=ACCENT, alpha=alpha, linewidth=0, gid=gid)
                )
                tooltips[gid] = f"{matrix.rows[row]}, {matrix.columns[column]}: {matrix.pattern.format(value)}"
                axes.text(column + 0.5, row + 0.5, matrix.pattern.format(value), ha="center", va="center_baseline", color=INK)
        axes.xaxis.tick_top()
        fits = max(4, int((width - left) / len(matrix.columns) / 7.5))
        axes.set_xticks([index + 0.5 for index in range(len(matrix.columns))], [shortened(one, fits) for one in matrix.columns])
        axes.set_yticks([index + 0.5 for index in range(len(names))], names)
        axes.tick_params(length=0, labelcolor=MUTED)
        for spine in axes.spines.values():
            spine.set_visible(False)
        description = f"{matrix.title}: {', '.join(tooltips.values())}"
        return to_svg(figure, key=key, description=description, tooltips=tooltips)


def pair_matrices(study: Interop) -> Iterator[Matrix]:
    """Yield the heatmaps of pairs: gain first, then what explains it."""
    pairs = {frozenset(one.members): one for one in study.fusions if len(one.members) == 2 and not one.reason}
    if not pairs:
        return

    def of(title: str, value: Callable[[Fusion], float | None], pattern: str, note: str, *, ends: tuple[float, float]) -> Matrix:
        names = tuple(dict.fromkeys(name for one in pairs.values() for name in one.members))
        cells = tuple(
            tuple(value(pairs[frozenset((row, column))]) if frozenset((row, column)) in pairs else None for column in names)
            for row in names
        )
        return Matrix(title, names, names, cells, *ends, pattern, note)

    is_points = study.metric == TOP1
    largest = max(1.0 if is_points else 1e-9, *(one.gain.amount for one in pairs.values() if one.gain is not None), 0.0)
    what = "points of top-1" if is_points else "by how much the RMSE is lower" if study.metric == RMSE else study.metric
    note, pattern = f"{what} over the better member, held out", "{:+.2f}" if is_points else "{:+.3g}"
    yield of("Gain of fusing", lambda one: one.gain.amount if one.gain else None, pattern, note, ends=(0.0, largest))
    if all(one.diversity is None for one in pairs.values()):
        if any(one.error_correlation is not None for one in pairs.values()):
            told = "Pearson's: 1 where a mean of both mends nothing"
            yield of("Correlation of errors", _correlation, "{:.2f}", told, ends=(0.0, 1.0))
        return
    for name, scale, ends, told in (
        ("disagreement", 100, (0.0, 50.0), "percent of rows that exactly one gets right: what a fusion can live on"),
        ("double fault", 100, (0.0, 50.0), "percent of rows that both get wrong: what no choice between them mends"),
        ("error consistency", 1, (0.0, 1.0), "κ: 1 where both err on the same rows, 0 where independently"),
    ):
        yield of(
            name[0].upper() + name[1:],
            partial(_statistic, name=name, scale=scale),
            "{:.1f}" if scale == 100 else "{:.2f}",
            told,
            ends=ends,
        )


def last_layers_matrix(study: Interop) -> Matrix | None:
    """Return the CKA of the last features of all pairs, where there are more than two models."""
    told = {frozenset((one.first, one.second)): one.cka[-1][-1] for one in study.likenesses if one.cka}
    if len(told) < 2:
        return None
    names = tuple(dict.fromkeys(name for one in study.likenesses if one.cka for name in (one.first, one.second)))
    cells = tuple(tuple(told.get(frozenset((row, column))) if row != column else None for column in names) for row in names)
    note = "linear CKA of what feeds the heads; 1 is alike up to a rotation and a scale"
    return Matrix("Likeness of the last features", names, names, cells, 0.0, 1.0, "{:.2f}", note)


def layer_matrices(study: Interop) -> Iterator[Matrix]:
    """Yield the CKA of the layers of each pair."""
    for one in study.likenesses:
        if one.cka:
            note = f"layers of {one.first} down, of {one.second} across; 1 is alike up to a rotation and a scale"
            yield Matrix(f"{one.first} and {one.second}", one.first_layers, one.second_layers, one.cka, 0.0, 1.0, "{:.2f}", note)


def lesson_matrix(study: Interop) -> Matrix | None:
    """Return what students keep of teachers, or how often two models agree where nothing was trained."""
    told = {(one.teacher, one.student): one for one in study.lessons if not one.reason}
    if not told:
        return None
    known = [one.name for one in study.subjects]
    # Those that are both stand in one order, so that the diagonal is where no one teaches itself.
    teachers, students = (
        tuple(dict.fromkeys([*(name for name in known if name in named), *named]))
        for named in ([pair[end] for pair in told] for end in (0, 1))
    )
    values = {pair: one.agreement if study.quick else one.retention for pair, one in told.items()}
    cells = tuple(
        tuple(None if (value := values.get((row, column))) is None else 100 * value for column in students) for row in teachers
    )
    what = (
        "percent of rows to which both give one class: an estimate"
        if study.quick
        else f"percent of the teacher's {study.metric} that is kept"
    )
    return Matrix(
        "Teacher and student", teachers, students, cells, 0.0, 100.0, "{:.1f}", f"teachers down, students across; {what}"
    )


def trade_points(study: Interop) -> list[Point]:
    """Return all that was scored and counted: models, fusions, cascades."""
    points: list[Point] = []

    def add(name: str, role: Role, macs: float | None, score: Score | None) -> None:
        if not macs or score is None or score.estimate is None:
            return
        low, high = (score.estimate if end is None else end for end in (score.low, score.high))
        merit = Merit(study.metric, Interval(score.estimate, low, high), study.row_count, study.metric == RMSE)
        points.append(Point(name, role, *_cost(macs), merit))

    for model in study.subjects:
        add(model.name, "member", model.macs, model.score)
    for fusion in study.fusions:
        add(" + ".join(fusion.members), "fused", fusion.macs, fusion.score)
    for cascade in study.cascades:
        add(f"{cascade.cheap} → {cascade.dear}", "baseline", cascade.macs, cascade.score)
    for soup in study.soups:
        add(f"soup of {soup.first}, {soup.second}", "baseline", soup.macs, soup.score)
    for lesson in _best_lessons(study):
        add(f"{lesson.student} of {lesson.teacher}", "student", lesson.student_macs, lesson.score)
    return _named_where_it_matters(points)


def _named_where_it_matters(points: list[Point]) -> list[Point]:
    """Return the points; of many only models and those that no other beats in both are named."""
    if len(points) <= _MOST_NAMED:
        return points
    best, named = float("-inf"), set()
    for one in sorted(points, key=lambda one: (one.cost.estimate, -_worth(one))):
        if _worth(one) > best:
            best = _worth(one)
            named.add(one.name)
    return [replace(one, is_named=one.role == "member" or one.name in named) for one in points]


def _worth(point: Point) -> float:
    assert point.merit is not None
    return -point.merit.interval.estimate if point.merit.is_error else point.merit.interval.estimate


def _best_lessons(study: Interop) -> list[Lesson]:
    """Return for each student the lesson of which it took most."""
    told = [one for one in study.lessons if one.score is not None and one.score.estimate is not None]
    students = dict.fromkeys(one.student for one in told)
    return [
        max((one for one in told if one.student == name), key=lambda one: worth(study.metric, one.score)) for name in students
    ]


def _cost(macs: float) -> tuple[Interval, str]:
    millions = macs / _MILLION
    return Interval(millions, millions, millions), f"{count_text(macs)} MACs"


def _correlation(one: Fusion) -> float | None:
    return one.error_correlation.estimate if one.error_correlation is not None else None


def _statistic(one: Fusion, name: str, scale: float) -> float | None:
    estimate = one.diversity.scores[name].estimate if one.diversity is not None else None
    return None if estimate is None else scale * estimate
