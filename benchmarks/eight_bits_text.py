"""Lines of text for a recogniser, drawn by a seed: the fonts that come with matplotlib, several sizes, inks, papers and noise.

What a line says is known by construction. Shape letters: ``w`` width.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from monograph.models.data.tweets import tweets

Array = npt.NDArray[Any]
HEIGHT = 48
_FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSerif",
    "DejaVuSerif-Italic",
    "STIXGeneral",
)
_MOST_CHARACTERS = 14


@dataclass(frozen=True)
class Line:
    """One line, as a recogniser takes it."""

    text: str
    pixels: Array
    """float32 ``[3, 48, w]`` from -1 to 1, filled up with 0 on the right."""


def draw_lines(count: int, width: int, seed: int) -> list[Line]:
    """Return ``count`` lines, the same for the same seed: words and numbers of up to 14 characters."""
    rng = np.random.default_rng(seed)
    words = _words()
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return [_draw(_text(words, rng), folder / f"{rng.choice(_FONTS)}.ttf", width, rng) for _ in range(count)]


def _words() -> list[str]:
    """Return the words of letters that stand in the tweets."""
    found = {word for text in tweets()["text"] for word in text.split() if word.isascii() and word.isalpha() and len(word) > 2}
    return sorted(found)


def _text(words: list[str], rng: np.random.Generator) -> str:
    chosen = [words[rng.integers(len(words))] for _ in range(rng.integers(1, 4))]
    if rng.random() < 0.3:
        chosen.append(str(rng.integers(10, 100_000)))
    text = chosen[0]
    for word in chosen[1:]:
        text = f"{text} {word}" if len(text) + len(word) < _MOST_CHARACTERS else text
    return text[:_MOST_CHARACTERS]


def _draw(text: str, font_file: Path, width: int, rng: np.random.Generator) -> Line:
    font = ImageFont.truetype(str(font_file), int(rng.integers(14, 40)))
    left, top, right, bottom = font.getbbox(text)
    margin = int(rng.integers(2, 8))
    paper, ink = int(rng.integers(150, 256)), int(rng.integers(0, 90))
    size = (int(right - left) + 2 * margin, int(bottom - top) + 2 * margin)
    picture = Image.new("L", size, paper)
    ImageDraw.Draw(picture).text((margin - left, margin - top), text, fill=ink, font=font)
    picture = picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 0.9))))
    fitted = min(width, max(1, round(size[0] * HEIGHT / size[1])))
    grey = np.asarray(picture.resize((fitted, HEIGHT), Image.Resampling.BILINEAR), np.float32)
    grey = np.clip(grey + rng.normal(0, rng.uniform(0, 45), grey.shape), 0, 255)
    pixels = np.zeros((3, HEIGHT, width), np.float32)
    pixels[:, :, :fitted] = grey / 127.5 - 1
    return Line(text, pixels)
