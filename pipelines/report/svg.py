"""From a matplotlib figure to inline SVG whose colours are the page's CSS variables, so light and dark just work.

Figures are sized in pixels at 72 dots an inch, so one unit of the SVG's view box is one CSS pixel.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# matplotlib wants colours it can parse: each placeholder stands for one CSS variable and occurs nowhere else.
INK, MUTED, FAINT, RULE, PAPER, ACCENT = "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05", "#0a0b06"
VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    FAINT: "var(--faint)",
    RULE: "var(--rule)",
    PAPER: "var(--paper)",
    ACCENT: "var(--accent)",
}

FONT_SIZE = 12.0
NARROW = 520
"""Below this width in pixels a figure is drawn for a phone."""

# The keys are literals in matplotlib's newer stubs and plain strings in its older ones.
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": FONT_SIZE,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 1.0,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 11.0,
    "ytick.labelsize": 11.0,
    "xtick.major.size": 4.0,
    "ytick.major.size": 0.0,
    "figure.facecolor": "none",
    "figure.dpi": 72.0,
    "savefig.dpi": 72.0,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True)
class Margins:
    """Free room around the axes, in pixels."""

    left: float
    right: float
    top: float
    bottom: float


@contextmanager
def drawing(key: str) -> Iterator[None]:
    """Draw in the report's style; ``key`` salts the ids, so the same figure is the same text every time."""
    with warnings.catch_warnings(), mpl.rc_context({**_STYLE, "svg.hashsalt": key}):
        # The browser brings the fonts: a glyph that matplotlib's own font lacks is no fault here.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        yield


def new_figure(width: float, height: float) -> Figure:
    """Make a figure of ``width`` by ``height`` pixels that can measure text."""
    figure = Figure(figsize=(width / 72, height / 72))
    FigureCanvasAgg(figure)
    return figure


def add_axes(figure: Figure, margins: Margins) -> Axes:
    """Add axes that fill the figure but for ``margins``."""
    width, height = figure.get_figwidth() * 72, figure.get_figheight() * 72
    inner_width, inner_height = width - margins.left - margins.right, height - margins.top - margins.bottom
    return figure.add_axes((margins.left / width, margins.bottom / height, inner_width / width, inner_height / height))


def text_size(figure: Figure, text: str) -> tuple[float, float]:
    """Width and height in pixels of ``text`` in matplotlib's own font, which is wider than most system fonts."""
    probe = figure.text(0, 0, text)
    extent = probe.get_window_extent()
    probe.remove()
    return float(extent.width), float(extent.height)


def to_svg(figure: Figure, *, key: str, description: str, tooltips: Mapping[str, str] | None = None) -> str:
    """Render as an ``<svg>`` element to be put into a page that defines the CSS variables.

    Args:
        figure: drawn inside ``drawing(key)``, with the placeholder colours.
        key: starts every id, so that several figures on one page do not collide.
        description: read aloud in place of the picture.
        tooltips: text shown on hovering, by the ``gid`` of the artist.
    """
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = stream.getvalue()
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>", "", body, flags=re.DOTALL)
    # The page's own font, of the size asked for. "<" ends every pattern: nothing in a text can reach beyond it.
    body = re.sub(r'style="font: (?:[\w-]+ )*?([\d.]+px) [^;"<]*', r'style="font-size: \1', body)
    body = re.sub(r"; font-family: [^;\"<]*", "", body)
    body = re.sub(r' transform="rotate\(-?0 [^)"<]*\)"', "", body)
    for gid, text in (tooltips or {}).items():
        body = body.replace(f'<g id="{gid}">', f'<g id="{gid}"><title>{html.escape(text)}</title>')
    body = re.sub(r'(<\w+ id=")', rf"\1{key}-", body)
    body = re.sub(r'<use (?:xlink:)?href="#', f'<use href="#{key}-', body)
    body = re.sub(r' clip-path="url\(#', f' clip-path="url(#{key}-', body)
    for placeholder, variable in VARIABLES.items():
        body = body.replace(placeholder, variable)
    width, height = figure.get_figwidth() * 72, figure.get_figheight() * 72
    opening = f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{html.escape(description)}">'
    return opening + re.sub(r"\n\s*", "\n", body).strip()
