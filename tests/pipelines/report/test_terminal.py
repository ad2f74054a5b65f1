from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace

from rich.console import Console

from monograph.pipelines.report import Contender, Report, contender_table
from monograph.runtime.results import Evidence

MakeReport = Callable[..., Report]
MakeContender = Callable[..., Contender]


def printed(contenders: Sequence[Contender]) -> str:
    stream = io.StringIO()
    Console(width=100, file=stream).print(contender_table(contenders))
    return stream.getvalue()


def row(contenders: Sequence[Contender], name: str) -> str:
    return next(line for line in printed(contenders).splitlines() if line.strip().startswith(name))


def on_simulated_npu(contenders: Sequence[Contender]) -> list[Contender]:
    return [
        replace(one, measurement=replace(one.measurement, evidence=Evidence.SIMULATED, target="qnn-htp")) for one in contenders
    ]


def test_a_row_holds_what_decides(make_report: MakeReport) -> None:
    fused = row(make_report().contenders, "fused")
    for figure in ("97.9 [97.2, 98.5]", "0.0797", "0.325", "0.407", "36,894", "2.17 MB"):
        assert figure in fused


def test_what_was_not_measured_is_a_dash(make_report: MakeReport) -> None:
    assert row(make_report().contenders, "PyTorch eager").split()[2:4] == ["\u2013", "\u2013"]


def test_simulated_hardware_shows_no_time(make_report: MakeReport) -> None:
    one = make_report().contenders[0]
    text = row(on_simulated_npu([one]), "lenet-5")
    assert "simulated" in text
    assert "0.098" not in text
    assert "not a latency" in printed(on_simulated_npu([one]))


def test_long_names_and_two_targets_fit_a_hundred_columns_uncut(make_contender: MakeContender) -> None:
    name = "google/vit-base-patch16-224-in21k"
    here = [make_contender(name, "member", 1432.1, 0.812, 346_000_000), make_contender("x", "fused", 0.0004, 1.0, 999)]
    text = printed([*here, *on_simulated_npu(here)])
    assert max(map(len, text.splitlines())) <= 100
    assert "346 MB" in text
    assert "29,331,118" in text
    assert "100.0 [99.8, 100.0]" in text
    assert text.count("…") == 2  # the middles of the two long names, and no figure


def test_brackets_in_a_name_are_no_markup(make_contender: MakeContender) -> None:
    assert "[bold]net[/bold]" in printed([make_contender("[bold]net[/bold]", "member", 1.0, 0.9, 1000)])
