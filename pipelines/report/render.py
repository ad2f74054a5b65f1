"""Write a report as one HTML file that needs nothing else: no network, no fonts, no script to be complete."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from monograph.models.files import write_atomically
from monograph.pipelines.report import formats, view
from monograph.pipelines.report.headline import findings, headline
from monograph.pipelines.report.model import Contender, Report, by_target
from monograph.pipelines.report.plots import accuracy_latency_svg, latency_distribution_svg, throughput_svg
from monograph.pipelines.report.sections import page_sections
from monograph.pipelines.report.training_plot import training_svg

_WIDE_PX, _NARROW_PX = 960, 350


@dataclass(frozen=True)
class Plot:
    """One figure twice: for a page and for a phone; the style sheet shows the one that fits."""

    wide: str
    narrow: str


@dataclass(frozen=True)
class TargetPlots:
    """The figures of one target; None where nothing was measured that could be drawn."""

    target: str
    accuracy_latency: Plot | None
    distribution: Plot | None
    throughput: Plot | None
    has_unscored: bool
    """True where a contender was timed and not scored, so that it stands as a tick on the time axis."""
    not_drawn: tuple[str, ...]
    """Contenders without a point in the accuracy and latency figure, and why."""


def write_report(report: Report, path: Path) -> None:
    """Render ``report`` to ``path``, beside it first and renamed when complete.

    Raises:
        ConfigError: ``path`` cannot be written to.
    """
    with write_atomically(path) as staged:
        staged.write_text(render_html(report), encoding="utf-8")


def render_html(report: Report) -> str:
    """Return the whole page; the same report gives the same text."""
    ratio_spans, ratio_one = view.ratio_spans(report.ratios)
    environment = _environment()
    assert environment.loader is not None
    script = environment.loader.get_source(environment, "report.js")[0].strip()
    return environment.get_template("report.html.j2").render(
        report=report,
        headline=headline(report),
        findings=findings(report),
        tiles=view.tiles(report),
        targets=[_target_plots(index, *group) for index, group in enumerate(by_target(report.contenders).items())],
        top1_spans=view.top1_spans(report.contenders),
        ratio_spans=ratio_spans,
        ratio_one=ratio_one,
        weight_spans=view.weight_spans(report.fusion) if report.fusion and report.fusion.members else [],
        training=_plot(training_svg, report.curves, "training") if _has_curves(report) else None,
        sections=page_sections([one.measurement for one in report.contenders]),
        machines=view.machines(report.contenders),
        warnings=view.warnings_by_text(report.contenders),
        record=view.record_json(report),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("monograph.pipelines", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        date=formats.date_text,
        duration=formats.duration_text,
        milliseconds=formats.milliseconds,
        percent=formats.percent,
        placement=formats.placement_text,
        proof_figures=view.proof_figures,
        scientific=formats.scientific,
        show=formats.show,
        significant=formats.significant,
        size=formats.size_text,
    )
    return environment


def _target_plots(index: int, target: str, contenders: Sequence[Contender]) -> TargetPlots:
    scored = any(one.latency and one.measurement.accuracy for one in contenders)
    timed = any(one.latency and one.latency.samples_ns for one in contenders)
    rated = any(one.throughput for one in contenders)
    missing = [(one.name, _reason(one)) for one in contenders]
    return TargetPlots(
        target=target,
        accuracy_latency=_plot(accuracy_latency_svg, contenders, f"scatter{index}") if scored else None,
        distribution=_plot(latency_distribution_svg, contenders, f"distribution{index}") if timed else None,
        throughput=_plot(throughput_svg, contenders, f"throughput{index}") if rated else None,
        has_unscored=any(one.latency and not one.measurement.accuracy for one in contenders),
        not_drawn=tuple(f"{name} ({reason})" for name, reason in missing if reason),
    )


def _plot(draw: Callable[..., str], data: Sequence[Any], key: str) -> Plot:
    return Plot(draw(data, key=f"{key}w", width=_WIDE_PX), draw(data, key=f"{key}n", width=_NARROW_PX))


def _reason(one: Contender) -> str:
    if not one.is_timed:
        return f"{one.measurement.evidence.value}: not a latency"
    return "" if one.latency else "not timed"


def _has_curves(report: Report) -> bool:
    return any(one.train_loss or one.validation_loss or one.validation_top1 for one in report.curves)
