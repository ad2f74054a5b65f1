"""How alike the features of two models are on the same rows: linear CKA, unbiased, by minibatches.

Shape letters: ``b`` rows of a batch, ``n`` all rows, ``d`` numbers a row, ``l`` layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from monograph.errors import DataError
from monograph.runtime.metrics.features import as_features, check_same_rows

Array = npt.NDArray[Any]
FEWEST_ROWS = 4
"""Of a batch: the unbiased estimate averages over four different rows."""
_ROUNDING = 1e-12


class MinibatchCka:
    """Linear CKA of every layer of one model with every layer of another, with nothing but one batch in memory.

    CKA is HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)) of the Gram matrices K = XXᵀ and L = YYᵀ (Kornblith et al. 2019, arXiv
    1905.00414). Each HSIC is the mean over batches of its unbiased estimate HSIC₁ (Song et al. 2012, JMLR 13:1393),
    so that the size of the batches does not matter (Nguyen et al. 2021, arXiv 2010.15327, equation 2); here each batch counts by
    its rows, for a last and smaller one.

    Args:
        layer_counts: layers of the first model and of the second, one or more each.

    Raises:
        DataError: a model has no layer.
    """

    def __init__(self, layer_counts: tuple[int, int]) -> None:
        if min(layer_counts) < 1:
            raise DataError(f"layers to compare are {list(layer_counts)}, expected one or more of each model: name some")
        self.row_count = 0
        self._layer_counts = layer_counts
        self._cross = np.zeros(layer_counts)
        self._own = tuple(np.zeros(count) for count in layer_counts)

    def add(self, features_a: Sequence[Array], features_b: Sequence[Array]) -> None:
        """Take in a batch: one array ``[b, d]`` a layer, of any width, all of the same rows.

        Raises:
            DataError: a layer is missing or too many, has other or fewer than 4 rows, is not ``[b, d]``, or is not finite.
        """
        for features, count, whose in zip((features_a, features_b), self._layer_counts, ("first", "second"), strict=True):
            if len(features) != count:
                raise DataError(f"the {whose} model gave {len(features)} layers in this batch, expected are {count}: give all")
        for layer in (*features_a, *features_b):
            check_same_rows(features_a[0], layer, "two layers' features")
        grams_a, grams_b = _centred_grams(features_a, "first"), _centred_grams(features_b, "second")
        b = len(features_a[0])
        # b times HSIC₁: the sum of products is b (b − 3) times as large.
        self._cross += grams_a @ grams_b.T / (b - 3)
        for own, grams in zip(self._own, (grams_a, grams_b), strict=True):
            own += (grams**2).sum(axis=1) / (b - 3)
        self.row_count += b

    def matrix(self) -> Array:
        """Return the CKA of all pairs of layers, within −1 and 1: float64 ``[l, l]``, the first model's layers down.

        NaN where a layer is the same on all rows of every batch, or on all but one: it has no likeness to anything.

        Raises:
            DataError: no batch was added.
        """
        if self.row_count == 0:
            raise DataError("no batch of features was added: there is nothing to compare")
        norms = np.sqrt(np.outer(*self._own))
        return np.asarray(np.divide(self._cross, norms, out=np.full(norms.shape, np.nan), where=norms > 0))


def linear_cka(x: Array, y: Array) -> float | None:
    """Return the unbiased linear CKA of features ``[n, d]`` of two models, within −1 and 1; the widths may differ.

    Two n × n matrices are in memory: for many rows use :class:`MinibatchCka`, whose docstring names the sources. None where the
    features are the same on all rows, or on all but one.

    Raises:
        DataError: they are not ``[n, d]`` of the same 4 rows or more, or not finite.
    """
    whole = MinibatchCka((1, 1))
    whole.add([x], [y])
    value = float(whole.matrix()[0, 0])
    return None if np.isnan(value) else value


def _centred_grams(features: Sequence[Array], whose: str) -> Array:
    """Return the U-centred Gram matrix of each layer ``[b, d]``: float64 ``[l, b²]``."""
    layers = (as_features(layer, f"the {whose} model's features of layer {i}", FEWEST_ROWS) for i, layer in enumerate(features))
    return np.stack([_centred_gram(layer).ravel() for layer in layers])


def _centred_gram(features: Array) -> Array:
    """Return the U-centred Gram matrix of ``[b, d]``: float64 ``[b, b]`` with zeros on the diagonal.

    The sum of products of two of them is b (b − 3) HSIC₁ (Székely and Rizzo 2014, Annals of Statistics 42:2382).
    """
    b = len(features)
    # Shifting all rows changes nothing but the rounding; less the first row, features that do not vary are exactly 0.
    shifted = features - features[0]
    shifted -= shifted.mean(axis=0)
    gram = shifted @ shifted.T
    largest = np.abs(gram).max()
    np.fill_diagonal(gram, 0.0)
    sums = gram.sum(axis=1) / (b - 2)
    centred = gram - sums[:, None] - sums[None] + gram.sum() / ((b - 1) * (b - 2))
    np.fill_diagonal(centred, 0.0)
    # Where only one row differs, all that is left is rounding, which would be alike or not by chance.
    return np.zeros_like(centred) if np.abs(centred).max() <= _ROUNDING * largest else np.asarray(centred)
