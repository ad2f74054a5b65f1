"""Embeddings: how near they lie to reference vectors, or whether a row's nearest neighbours are of its class.

Shape letters: ``n`` rows, ``d`` numbers a vector, ``q`` queries.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from monograph.errors import DataError
from monograph.runtime.metrics.blocks import Scored, no_score, score_of
from monograph.runtime.results import Scorecard
from monograph.runtime.statistics import bootstrap_interval, proportion_interval

Array = npt.NDArray[Any]
DEPTHS = (1, 5, 10)
MOST_QUERIES = 2000
_GALLERY_BLOCK = 4096


def score_to_reference(scored: Scored) -> Scorecard:
    """Score outputs ``[n, d]`` by their cosine to reference vectors ``[n, d]``.

    Raises:
        DataError: the vectors differ in shape, or an output is not finite.
    """
    if scored.outputs.shape != scored.labels.shape:
        raise DataError(
            f"reference vectors have the shape {list(scored.labels.shape)}, outputs {list(scored.outputs.shape)}: "
            "give one reference of the same width a row, or class numbers [n] for retrieval"
        )
    cosines = []
    for outputs, references, rows in scored.blocks():
        a, b = _flat(outputs), _flat(references)
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        if not (fine := np.isfinite(norms) & (norms > 0)).all():
            raise DataError(f"row {int(rows[np.argmin(fine)])} has a vector of length 0 or infinite: it has no direction")
        cosines.append((a * b).sum(axis=1) / norms)
    return Scorecard("embedding", len(scored), {"cosine": score_of(bootstrap_interval(np.concatenate(cosines), np.mean))})


def score_retrieval(scored: Scored) -> Scorecard:
    """Score outputs ``[n, d]`` by retrieval@k: the share of rows with a row of the same label ``[n]`` among the k nearest.

    Nearest by cosine, among all other rows; where several lie equally near, those of other labels come first, so that equal
    vectors earn nothing. Two rows of one label are a pair. Rows whose label no other row has ask for nothing and are left
    out; of more than 2,000 that remain, so many are drawn.

    Raises:
        DataError: a vector has no direction, or is not finite.
    """
    labels = np.asarray(scored.labels if scored.rows is None else scored.labels[scored.rows])
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    queries = np.flatnonzero(counts[inverse] > 1)
    if len(queries) == 0 or len(counts) < 2:
        reason = "no two rows share a label" if len(queries) == 0 else "all rows have one label"
        return Scorecard("retrieval", len(scored), {f"retrieval@{k}": no_score(reason) for k in DEPTHS})
    drawn = queries
    if len(queries) > MOST_QUERIES:
        drawn = np.sort(np.random.default_rng(0).choice(queries, MOST_QUERIES, replace=False))
    first_hit = _first_hit_ranks(scored, labels, drawn)
    note = f"{len(drawn):,} queries of {len(queries):,} against {len(labels):,} rows"
    return Scorecard(
        "retrieval",
        len(scored),
        {
            f"retrieval@{k}": score_of(proportion_interval(int((first_hit <= k).sum()), len(drawn)), note)
            for k in DEPTHS
            if k < len(labels)
        },
    )


def _first_hit_ranks(scored: Scored, labels: Array, queries: Array) -> Array:
    """Return at which place the first row of a query's own label comes: int64 ``[q]``, from 1 on.

    Two passes over the rows: the nearest of the own label, then how many others lie as near or nearer.
    """
    base = np.arange(len(labels)) if scored.rows is None else scored.rows
    vectors = _directions(np.asarray(scored.outputs[base[queries]]), base[queries])
    best = np.full(len(queries), -np.inf)
    ahead = np.zeros(len(queries), np.int64)
    for is_second in (False, True):
        start = 0
        for outputs, block_labels, rows in scored.blocks():
            for part in range(0, len(rows), _GALLERY_BLOCK):
                chosen = slice(part, part + _GALLERY_BLOCK)
                similarity = vectors @ _directions(outputs[chosen], rows[chosen]).T
                same = labels[queries][:, None] == block_labels[chosen][None]
                if is_second:
                    ahead += ((similarity >= best[:, None]) & ~same).sum(axis=1)
                else:
                    itself = queries[:, None] == np.arange(start + part, start + part + similarity.shape[1])[None]
                    own = np.where(same & ~itself, similarity, -np.inf)
                    best = np.maximum(best, own.max(axis=1))
            start += len(rows)
    return ahead + 1


def _directions(vectors: Array, rows: Array) -> Array:
    flat = _flat(vectors)
    norms = np.linalg.norm(flat, axis=1)
    if not (fine := np.isfinite(norms) & (norms > 0)).all():
        raise DataError(f"the model's vector for row {int(rows[np.argmin(fine)])} has no direction: it is 0 or not finite")
    return np.asarray(flat / norms[:, None])


def _flat(vectors: Array) -> Array:
    return vectors.astype(np.float64).reshape(len(vectors), -1)
