from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from monograph.pipelines.report import Contender, Report, TrainingCurve
from monograph.pipelines.report.plots import latency_distribution_svg, throughput_svg
from monograph.pipelines.report.svg import VARIABLES
from monograph.pipelines.report.trade_plot import accuracy_latency_svg
from monograph.pipelines.report.training_plot import training_svg
from monograph.runtime.results import Evidence

MakeReport = Callable[..., Report]
MakeContender = Callable[..., Contender]
DRAW = {
    "scatter": lambda report, **options: accuracy_latency_svg(report.contenders, **options),
    "distribution": lambda report, **options: latency_distribution_svg(report.contenders, **options),
    "throughput": lambda report, **options: throughput_svg(report.contenders, **options),
    "training": lambda report, **options: training_svg(report.curves, **options),
}


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("text")]


@pytest.mark.parametrize("width", [350, 960])
@pytest.mark.parametrize("kind", DRAW)
def test_each_figure_is_well_formed_deterministic_and_coloured_by_the_page(
    make_report: MakeReport, kind: str, width: int
) -> None:
    svg = DRAW[kind](make_report(), key="k", width=width)
    root = ElementTree.fromstring(svg)
    assert root.get("viewBox", "").startswith(f"0 0 {width} ")
    assert root.get("role") == "img"
    assert root.get("aria-label")
    assert svg == DRAW[kind](make_report(), key="k", width=width)
    assert "var(--ink)" in svg
    assert not any(placeholder in svg for placeholder in VARIABLES)
    assert not re.findall(r"#[0-9a-f]{6}\b", re.sub(r'(id|href)="[^"]*"|url\([^)]*\)', "", svg))
    assert "<style" not in svg
    assert "font-family" not in svg
    assert "http" not in svg


def test_ids_of_two_figures_do_not_collide_and_all_references_resolve(make_report: MakeReport) -> None:
    seen: set[str] = set()
    for key in ("a", "b"):
        svg = accuracy_latency_svg(make_report().contenders, key=key, width=960)
        ids = re.findall(r' id="([^"]+)"', svg)
        assert len(ids) == len(set(ids))
        assert not seen & set(ids)
        assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg)) <= {(i, "") for i in ids} | {("", i) for i in ids}
        seen |= set(ids)


def test_every_contender_is_named_and_has_a_tooltip(make_report: MakeReport) -> None:
    svg = accuracy_latency_svg(make_report().contenders, key="k", width=960)
    assert {one.name for one in make_report().contenders} <= set(texts(svg))
    titles = [element.text or "" for element in ElementTree.fromstring(svg).iter("title")]
    assert len(titles) == 6
    assert any(title.startswith("lenet-5: 97.2% [96.3, 97.8] top-1, 0.0981 ms") for title in titles)
    assert any(title.endswith("accuracy not measured") for title in titles)


def test_the_pareto_front_leaves_the_beaten_out(make_report: MakeReport) -> None:
    def corners(*names: str) -> int:
        chosen = [one for one in make_report().contenders if one.name in names]
        svg = accuracy_latency_svg(chosen, key="k", width=960)
        (front,) = (one for one in ElementTree.fromstring(svg).iter("g") if one.get("id") == "k-pareto")
        return next(front.iter("path")).get("d", "").count("L")

    alone = corners("mlp-256", "fused")
    assert corners("mlp-256", "fused", "3 sessions + numpy") == alone
    assert corners("mlp-256", "lenet-5", "fused") == alone + 2


def test_what_did_not_run_on_real_hardware_is_not_drawn(make_report: MakeReport) -> None:
    first, *rest = make_report().contenders
    simulated = replace(first, measurement=replace(first.measurement, evidence=Evidence.SIMULATED))
    for kind in ("scatter", "distribution", "throughput"):
        svg = DRAW[kind](make_report(contenders=(simulated, *rest)), key="k", width=960)
        assert first.name not in " ".join(texts(svg))
        with pytest.raises(ValueError, match="leave the figure out"):
            DRAW[kind](make_report(contenders=(simulated,)), key="k", width=960)


def test_a_hostile_name_stays_text(make_contender: MakeContender) -> None:
    name = '<script>x</script>" id="a" $x_1$'
    contender = make_contender(name, "fused", 0.3, 0.97, 1000)
    svg = throughput_svg([contender], key="k", width=960) + accuracy_latency_svg([contender], key="k", width=960)
    assert "<script" not in svg
    assert 'label="Accuracy over latency: &lt;script&gt;x&lt;/script&gt;&quot;' in svg


def test_a_name_in_any_script_draws_without_a_warning(make_contender: MakeContender) -> None:
    svg = accuracy_latency_svg([make_contender("模型 الف", "fused", 0.3, 0.97, 1000)], key="k", width=350)
    assert "模型 الف" in texts(svg)


def test_a_long_name_loses_its_middle_and_keeps_its_ends(make_contender: MakeContender) -> None:
    long = make_contender("google/vit-base-patch16-224-in21k", "member", 150.0, 0.81, 346_000_000)
    (name,) = (text for text in texts(accuracy_latency_svg([long], key="k", width=350)) if "…" in text)
    assert name.startswith("google/vi")
    assert name.endswith("in21k")


@pytest.mark.parametrize("kind", ["scatter", "distribution"])
def test_a_clock_too_coarse_to_see_the_call_breaks_no_figure(make_report: MakeReport, kind: str) -> None:
    one = make_report().contenders[0]
    latency = one.measurement.latency
    assert latency is not None
    zero = replace(latency.p50_s, estimate=0.0, low=0.0, high=0.0)
    coarse = replace(latency, samples_ns=(0, 0, 100_000), p50_s=zero, p90_s=zero, p99_s=None)
    report = make_report(contenders=(replace(one, measurement=replace(one.measurement, latency=coarse)),))
    assert "lenet-5" in " ".join(texts(DRAW[kind](report, key="k", width=350)))


def test_one_epoch_no_top1_and_a_diverged_loss_still_draw() -> None:
    curves = (
        TrainingCurve("once", (0.5,), (0.6,), ()),
        TrainingCurve("lost", (2.0, float("nan")), (float("inf"), 1.0), (1.0, 1.0)),
    )
    assert {"once", "lost"} <= set(texts(training_svg(curves, key="k", width=960)))
    with pytest.raises(ValueError, match="leave the figure out"):
        training_svg((TrainingCurve("none", (), (), ()),), key="k", width=960)


def test_stragglers_beyond_the_axis_are_counted_not_dropped(make_report: MakeReport) -> None:
    one = make_report().contenders[0]
    latency = one.measurement.latency
    assert latency is not None
    stalled = replace(latency, samples_ns=(*latency.samples_ns, 340_000_000, 144_000_000))
    report = make_report(contenders=(replace(one, measurement=replace(one.measurement, latency=stalled)),))
    words = " ".join(texts(DRAW["distribution"](report, key="k", width=960)))
    assert "2 beyond" in words
    assert "slowest of 1,002 calls 340 ms" in words
    assert "beyond" not in " ".join(texts(DRAW["distribution"](make_report(), key="k", width=960)))
