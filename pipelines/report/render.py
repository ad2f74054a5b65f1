"""Write a report as one HTML file that needs nothing else: no network, no fonts, no script to be complete."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from monograph.models.files import write_atomically
from monograph.pipelines.report import view
from monograph.pipelines.report.headline import findings, headline
from monograph.pipelines.report.line import chapters
from monograph.pipelines.report.model import Contender, Report, by_target
from monograph.pipelines.report.page import render_page, target_plots, two_sizes
from monograph.pipelines.report.scorecard import metric_grid
from monograph.pipelines.report.sections import page_sections
from monograph.pipelines.report.training_plot import training_svg


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
    measurements = [one.measurement for one in report.contenders]
    metrics = metric_grid(measurements, [_name(one, report.contenders) for one in report.contenders])
    content = {
        "title": report.title,
        "created": report.created,
        "version": report.version,
        "headline": headline(report),
        "findings": findings(report),
        "tiles": view.tiles(report),
        "warnings": view.warnings_by_text(report.contenders),
        "record": view.record_json(report),
        "report": report,
        "targets": [target_plots(index, *group) for index, group in enumerate(by_target(report.contenders).items())],
        "top1_spans": view.top1_spans([one.measurement.accuracy for one in report.contenders]),
        "ratio_spans": ratio_spans,
        "ratio_one": ratio_one,
        "weight_spans": view.weight_spans(report.fusion) if report.fusion and report.fusion.members else [],
        "training": two_sizes(training_svg, report.curves, "training") if _has_curves(report) else None,
        "kept_epochs": any(one.kept_epoch is not None for one in report.curves),
        "metrics": metrics,
        "chapters": chapters(report),
        "sections": page_sections(measurements, with_metrics=metrics is None),
        "machines": view.machines(report.contenders),
    }
    return render_page("report.html.j2", content)


def _name(one: Contender, contenders: Sequence[Contender]) -> str:
    """Return the name of a contender, with its target where there are several."""
    several = len(by_target(contenders)) > 1
    return f"{one.name} · {one.measurement.target}" if several else one.name


def _has_curves(report: Report) -> bool:
    return any(one.train_loss or one.validation_loss or one.validation_top1 for one in report.curves)
