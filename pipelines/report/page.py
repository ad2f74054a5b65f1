"""What every page is made of: one HTML file that needs nothing else, its templates, and each figure at two sizes."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from monograph.pipelines.report import formats, view
from monograph.pipelines.report.merit import merit_of
from monograph.pipelines.report.model import Contender
from monograph.pipelines.report.plots import latency_distribution_svg, throughput_svg
from monograph.pipelines.report.trade_plot import accuracy_latency_svg

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


def render_page(template: str, content: Mapping[str, Any]) -> str:
    """Return the page that ``template`` makes of ``content``, with the script that its style is switched by."""
    environment = _environment()
    assert environment.loader is not None
    script = environment.loader.get_source(environment, "report.js")[0].strip()
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(content, script=script, script_hash=script_hash)


def two_sizes(draw: Callable[..., str], data: Sequence[Any], key: str) -> Plot:
    """Draw ``data`` for a page and for a phone."""
    return Plot(draw(data, key=f"{key}w", width=_WIDE_PX), draw(data, key=f"{key}n", width=_NARROW_PX))


def target_plots(index: int, target: str, contenders: Sequence[Contender]) -> TargetPlots:
    """Draw what was measured of ``contenders`` on ``target``, the page's ``index``-th."""
    judged = [merit_of(one.measurement) if one.latency else None for one in contenders]
    # Two metrics have no common axis.
    scored = len({one.label for one in judged if one}) == 1
    timed = any(one.latency and one.latency.samples_ns for one in contenders)
    rated = any(one.throughput for one in contenders)
    missing = [(one.name, _reason(one)) for one in contenders]
    return TargetPlots(
        target=target,
        accuracy_latency=two_sizes(accuracy_latency_svg, contenders, f"scatter{index}") if scored else None,
        distribution=two_sizes(latency_distribution_svg, contenders, f"distribution{index}") if timed else None,
        throughput=two_sizes(throughput_svg, contenders, f"throughput{index}") if rated else None,
        has_unscored=any(one.latency and not merit for one, merit in zip(contenders, judged, strict=True)),
        not_drawn=tuple(f"{name} ({reason})" for name, reason in missing if reason),
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


def _reason(one: Contender) -> str:
    if not one.is_timed:
        return f"{one.measurement.evidence.value}: not a latency"
    return "" if one.latency else "not timed"
