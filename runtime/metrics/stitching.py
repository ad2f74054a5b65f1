"""How well one model's features can be turned into another's by an affine map, beside what noise reaches.

Shape letters: ``n`` rows, ``d1`` and ``d2`` numbers a row of the first model and of the second, ``t`` targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from monograph.errors import DataError
from monograph.runtime.metrics.features import as_features, check_same_rows

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class StitchScore:
    """R² of stitched features on held-out rows, pooled over all columns: 1 is exact, 0 is no better than the mean.

    Only what is above both kinds of noise speaks for the two models having learnt something alike.
    """

    fitted_count: int
    held_out_count: int
    r2: float | None
    """None where the second model's features do not vary on the held-out rows; so are the others."""
    noise_r2: float | None
    """Stitched from noise as wide as the first model's features, with their means and spreads."""
    class_noise_r2: float | None
    """Stitched from noise around one random point a class, which knows the class and nothing else; None without labels."""


def fit_stitch(x: Array, y: Array, ridge: float = 0.0) -> tuple[Array, Array]:
    """Return the affine map that turns ``x`` into ``y`` with the least squared error: weight ``[d1, d2]`` and bias ``[d2]``.

    The stitching layer of Lenc and Vedaldi 2015 (arXiv 1411.5908) and of Bansal et al. 2021 (arXiv 2106.07682, section 2), fitted
    to the second model's features rather than to its loss. It minimises |xW + b − y|² + ridge |W|² (Hoerl and Kennard 1970,
    Technometrics 12:55), by the singular values of ``x``; of several best maps without ridge, that with the smallest weights.

    Args:
        x: features ``[n, d1]`` of the first model.
        y: features ``[n, d2]`` of the second, of the same rows.
        ridge: 0 or more, in the unit of ``x`` squared, summed over rows.

    Raises:
        DataError: the shapes do not fit, features are not finite, or the ridge is negative.
    """
    if not 0 <= ridge < np.inf:
        raise DataError(
            f"the ridge is {ridge:g}, expected 0 or more: give for example 1e-3 of the sum of squares of the features"
        )
    source, wanted = as_features(x, "features to stitch from", 2), as_features(y, "features to stitch to", 2)
    check_same_rows(source, wanted, "the two models' features")
    source_mean, wanted_mean = source.mean(axis=0), wanted.mean(axis=0)
    left, singular, right = np.linalg.svd(source - source_mean, full_matrices=False)
    # What is left of columns that do not vary, or that others determine, is rounding.
    rounding = max(source.shape) * np.finfo(np.float64).eps * max(singular[0], np.abs(source_mean).max())
    kept = singular > rounding
    gains = singular[kept] / (singular[kept] ** 2 + ridge)
    weight = right[kept].T @ (gains[:, None] * (left[:, kept].T @ (wanted - wanted_mean)))
    return weight, wanted_mean - source_mean @ weight


def stitch_score(
    x: Array, y: Array, is_held_out: Array, ridge: float = 0.0, labels: Array | None = None, seed: int = 0
) -> StitchScore:
    """Stitch ``x`` to ``y`` on some rows and score it on the others, and so with noise in the place of ``x``.

    A good stitch alone proves no likeness: noise that clusters by class can be stitched into a trained model too (Smith et al.
    2025, "Functional Alignment Can Mislead: Examining Model Stitching", ICML).

    Args:
        x: features ``[n, d1]`` of the first model.
        y: features ``[n, d2]`` of the second, of the same rows.
        is_held_out: bool ``[n]``; the map is fitted on the other rows.
        ridge: as in :func:`fit_stitch`.
        labels: classes ``[n]``, in any numbering, for the noise that knows the class.
        seed: of the noise.

    Raises:
        DataError: the shapes do not fit, features are not finite, or fewer than 2 rows are on either side.
    """
    source, wanted = as_features(x, "features to stitch from"), as_features(y, "features to stitch to")
    check_same_rows(source, wanted, "the two models' features")
    if is_held_out.shape != (len(source),) or is_held_out.dtype != np.bool_:
        raise DataError(
            f"held-out rows are {is_held_out.dtype} {list(is_held_out.shape)}, expected bool [{len(source)}]: one a row"
        )
    held_out_count = int(is_held_out.sum())
    if min(held_out_count, len(source) - held_out_count) < 2:
        raise DataError(
            f"{held_out_count} of {len(source)} rows are held out, needed are 2 or more on either side: give more rows"
        )
    # A stream of its own: features drawn from the same seed would be the noise itself.
    rng = np.random.default_rng(np.random.SeedSequence(seed).spawn(1)[0])
    noise = rng.standard_normal(source.shape)

    def held_out_r2(features: Array) -> float | None:
        weight, bias = fit_stitch(features[~is_held_out], wanted[~is_held_out], ridge)
        return _r2(features[is_held_out] @ weight + bias, wanted[is_held_out])

    return StitchScore(
        fitted_count=len(source) - held_out_count,
        held_out_count=held_out_count,
        r2=held_out_r2(source),
        noise_r2=held_out_r2(source.mean(axis=0) + source.std(axis=0) * noise),
        class_noise_r2=None if labels is None else held_out_r2(_around_classes(source, labels, rng)),
    )


def _around_classes(features: Array, labels: Array, rng: np.random.Generator) -> Array:
    """Return noise ``[n, d1]`` with as much spread as each column has between the classes and within, but at random points."""
    check_same_rows(features, labels, "features and labels")
    classes, numbers, counts = np.unique(labels, return_inverse=True, return_counts=True)
    means = np.zeros((len(classes), features.shape[1]))
    np.add.at(means, numbers, features)
    means /= counts[:, None]
    between, within = means[numbers].std(axis=0), (features - means[numbers]).std(axis=0)
    points = between * rng.standard_normal(means.shape)
    return np.asarray(features.mean(axis=0) + points[numbers] + within * rng.standard_normal(features.shape))


def _r2(predicted: Array, wanted: Array) -> float | None:
    """Return 1 − Σ(y − ŷ)² / Σ(y − ȳ)² over all columns; None where no column varies."""
    if not np.ptp(wanted, axis=0).any():
        return None
    return float(1 - ((wanted - predicted) ** 2).sum() / ((wanted - wanted.mean(axis=0)) ** 2).sum())
