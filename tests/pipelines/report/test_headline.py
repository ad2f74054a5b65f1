from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from monograph.pipelines.report import Contender, Report
from monograph.pipelines.report.headline import findings, gain, headline
from monograph.runtime.results import Evidence

MakeReport = Callable[..., Report]
MakeContender = Callable[..., Contender]


def with_fused_top1(make_report: MakeReport, make_contender: MakeContender, top1: float | None) -> Report:
    """Three members of which the best has 97.33%, and a fused graph with ``top1``."""
    members = [one for one in make_report().contenders if one.role == "member"]
    return make_report(contenders=(*members, make_contender("fused", "fused", 0.31, top1, 2_000_000)))


def test_a_gain_within_the_intervals_is_said_to_be_unsettled(make_report: MakeReport) -> None:
    text = headline(make_report())
    assert text.startswith("One graph of 3 members reaches 97.9% [97.2, 98.5] top-1, +0.6 points over the best member")
    assert "(not settled: the intervals overlap)" in text
    assert text.endswith("ms p50 on cpu.")
    assert "do not settle which is better" in " ".join(findings(make_report()))


def test_a_clear_gain_is_stated_without_reserve(make_report: MakeReport, make_contender: MakeContender) -> None:
    report = with_fused_top1(make_report, make_contender, 0.9975)
    assert "+2.4 points over the best member, at" in headline(report)
    assert "settled" not in headline(report)
    assert "do not overlap" in findings(report)[1]


def test_a_loss_is_called_a_loss(make_report: MakeReport, make_contender: MakeContender) -> None:
    report = with_fused_top1(make_report, make_contender, 0.94)
    assert "3.3 points under the best member, at" in headline(report)
    assert "fusing cost accuracy" in findings(report)[1]
    comparison = gain(report)
    assert comparison is not None
    assert comparison.signed == "\u22123.3"


def test_an_equal_fused_graph_is_no_better(make_report: MakeReport, make_contender: MakeContender) -> None:
    assert "no better than the best member" in headline(with_fused_top1(make_report, make_contender, 0.9733))


def test_the_price_in_time_is_named(make_report: MakeReport) -> None:
    assert "the fused graph takes 1.5 times as long" in findings(make_report())[0]


def test_simulated_hardware_gives_no_latency(make_report: MakeReport) -> None:
    simulated = tuple(
        replace(one, measurement=replace(one.measurement, evidence=Evidence.SIMULATED, target="qnn-htp"))
        for one in make_report().contenders
    )
    report = make_report(contenders=simulated)
    assert headline(report).endswith("; qnn-htp was only simulated, which gives no latency.")
    assert "ms" not in headline(report).replace("members", "") + " ".join(findings(report))


def test_members_on_another_target_are_not_compared(make_report: MakeReport) -> None:
    moved = tuple(
        replace(one, measurement=replace(one.measurement, target="cuda")) if one.role == "member" else one
        for one in make_report().contenders
    )
    assert gain(make_report(contenders=moved)) is None


@pytest.mark.parametrize(("count", "expected"), [(3, "3 models measured: resnet-mini"), (1, "lenet-5 measured: ")])
def test_without_a_fused_graph_the_members_speak(make_report: MakeReport, count: int, expected: str) -> None:
    report = make_report(contenders=make_report().contenders[:count], fusion=None)
    assert headline(report).startswith(expected)
    assert findings(report) == ()


def test_missing_accuracy_is_not_glossed_over(make_report: MakeReport, make_contender: MakeContender) -> None:
    text = headline(with_fused_top1(make_report, make_contender, None))
    assert text.startswith("One graph of 3 members takes 0.3")
    assert text.endswith("its accuracy was not measured.")


def test_a_member_without_weight_takes_no_part(make_report: MakeReport) -> None:
    fusion = make_report().fusion
    assert fusion is not None
    first, *rest = fusion.members
    weightless = replace(fusion, members=(replace(first, weight=0.0), *rest))
    assert headline(make_report(fusion=weightless)).startswith("One graph of 2 members reaches")
