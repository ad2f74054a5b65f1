"""What is no classifier is judged by the metric that fits, in the headline, the tables and the figure."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console

from monograph.pipelines.report import Contender, Report, contender_table
from monograph.pipelines.report.headline import findings, gain, headline
from monograph.pipelines.report.merit import merit_of
from monograph.pipelines.report.render import render_html
from monograph.pipelines.report.trade_plot import accuracy_latency_svg
from monograph.runtime.results import Score, Scorecard

MakeReport = Callable[..., Report]
RANKING = {"member": 0.80, "fused": 0.83, "baseline": 0.83}
ERRORS = {"member": 1.30, "fused": 1.10, "baseline": 1.10}


def scored(report: Report, metric: str, task: str, values: dict[str, float]) -> Report:
    """The same contenders, scored by ``metric`` according to their role, and as no classifiers."""

    def one(contender: Contender) -> Contender:
        value = values[contender.role]
        card = Scorecard(task, 900, {metric: Score(value, value - 0.01, value + 0.01)})
        return replace(contender, measurement=replace(contender.measurement, accuracy=None, scorecard=card))

    return replace(report, contenders=tuple(map(one, report.contenders)))


def test_a_ranking_is_judged_by_its_ndcg(make_report: MakeReport) -> None:
    report = scored(make_report(), "ndcg@10", "ranking", RANKING)
    assert headline(report).startswith("One graph of 3 members reaches NDCG@10 0.830 [0.820, 0.840], 0.030 better than the best")
    assert "do not overlap on these 900 rows" in " ".join(findings(report))
    stream = io.StringIO()
    Console(width=100, file=stream).print(contender_table(report.contenders))
    assert "NDCG@10" in stream.getvalue()
    assert "0.830 [0.820, 0.840]" in stream.getvalue()
    page = render_html(report)
    assert "How right they are" in page
    assert "NDCG@10" in page
    assert 'id="trade"' in page


def test_less_of_an_error_is_better(make_report: MakeReport) -> None:
    report = scored(make_report(), "mae", "regression", ERRORS)
    comparison = gain(report)
    assert comparison is not None
    assert comparison.points == pytest.approx(0.2)
    assert "0.20 better than the best member" in headline(report)
    worse = scored(make_report(), "mae", "regression", ERRORS | {"fused": 1.5})
    assert "0.20 worse than the best member" in headline(worse)


def test_the_best_stands_at_the_top_of_the_figure_also_of_errors(make_report: MakeReport) -> None:
    for metric, values in (("auc", RANKING), ("mae", ERRORS)):
        report = scored(make_report(), metric, "ranking", values)
        svg = accuracy_latency_svg(report.contenders, key="k", width=960)
        assert "top-1" not in svg.lower()
        assert accuracy_latency_svg(report.contenders, key="k", width=960) == svg


def test_what_has_no_figure_has_no_merit(make_report: MakeReport) -> None:
    one = make_report().contenders[0].measurement
    bare = replace(one, accuracy=None, scorecard=Scorecard("ranking", 3, {"auc": Score(None, note="all rows are relevant")}))
    assert merit_of(bare) is None
    assert merit_of(replace(one, accuracy=None)) is None
