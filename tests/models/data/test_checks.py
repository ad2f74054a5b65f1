from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monograph.errors import ConfigError, DataError
from monograph.models.contract import Contract, Kind, TensorSpec
from monograph.models.data.checks import DUPLICATES, MISSING_CLASS, duplicates_across, missing_classes, settle, without_duplicates
from monograph.models.data.rows import Rows

CONTENTS = st.lists(st.integers(0, 12), min_size=1, max_size=15)


def rows(contents, labels=None, digests=None) -> Rows:
    labels = None if labels is None else np.asarray(labels)
    digests = None if digests is None else np.asarray(digests, np.uint64)
    return Rows({"x": np.asarray(contents, np.float32)[:, None]}, labels, origin="here", digests=digests)


def contents(part: Rows) -> list[int]:
    return part.inputs["x"][:, 0].astype(int).tolist()


def csv(path: Path, *lines: str) -> Rows:
    from monograph.models.data.load import load_rows

    path.write_text("a,b,label\n" + "".join(f"{line}\n" for line in lines))
    contract = Contract((TensorSpec("x", "float32", ("b", 2)),), (TensorSpec("out", "float32", ("b", 3)),), Kind.LOGITS)
    return load_rows(str(path), contract)


class TestMissingClasses:
    def test_classes_that_no_training_row_has_are_named(self):
        problem = missing_classes(rows([1, 2, 3], [0, 2, 2]), 4, ("cat", "cow", "dog", "eel"))
        assert problem.kind == MISSING_CLASS
        assert problem.count == 2
        assert "no training row is of 2 of 4 classes ('cow', 'eel'): add rows" in problem.text

    def test_classes_without_names_are_numbers_and_not_all_are_listed(self):
        problem = missing_classes(rows([1], [3]), 9, None)
        assert problem.count == 8
        assert "('0', '1', '2', '4', '5' …)" in problem.text

    @pytest.mark.parametrize("class_count", [None, 2])
    def test_nothing_is_missing(self, class_count):
        assert missing_classes(rows([1, 2], [0, 1]), class_count, None) is None


class TestDuplicates:
    def test_they_are_counted_by_pair_with_an_example(self):
        parts = {
            "train": rows([9, 1, 2, 3], [0, 0, 0, 0]),
            "validation": rows([5, 2], [0, 0]),
            "test": rows([7, 8, 1, 3], [0, 0, 1, 0]),
        }
        problem = duplicates_across(parts)
        assert problem.kind == DUPLICATES
        assert problem.count == 3
        assert "1 train rows stand among the validation rows too (train row 2 is validation row 1)" in problem.text
        told = "2 train rows stand among the test rows too, 1 of them with another label (train row 1 is test row 2)"
        assert told in problem.text
        assert "drop them" in problem.text

    def test_repetition_within_a_part_is_none(self):
        assert duplicates_across({"train": rows([1, 1]), "test": rows([2, 2])}) is None

    def test_digests_of_the_file_count_where_all_parts_have_them(self):
        one, other = rows([1, 2], digests=[10, 20]), rows([3, 4], digests=[30, 20])
        assert "train row 1 is test row 1" in duplicates_across({"train": one, "test": other}).text

    def test_digests_that_one_part_lacks_are_not_compared_with_others(self):
        one, other = rows([1, 2], digests=[10, 20]), rows([3, 2])
        assert "train row 1 is test row 1" in duplicates_across({"train": one, "test": other}).text

    def test_equal_numbers_of_other_inputs_are_another_row(self):
        def pairs(*given):
            user, item = np.array(given).T
            return Rows({"user": user, "item": item}, np.zeros(len(given)))

        assert duplicates_across({"train": pairs((3, 5), (1, 2)), "test": pairs((5, 3))}) is None
        both = {"train": pairs((3, 5), (1, 2)), "test": pairs((4, 4), (1, 2))}
        assert "train row 1 is test row 1" in duplicates_across(both).text

    def test_labels_of_several_numbers(self):
        parts = {"train": rows([1, 2], [[0, 1], [1, 1]]), "test": rows([2, 1], [[1, 0], [0, 1]])}
        assert "too, 1 of them with another label" in duplicates_across(parts).text

    def test_rows_of_real_files(self, tmp_path):
        parts = {
            "train": csv(tmp_path / "train.csv", "1,2,0", "3,4,1", "5,6,2"),
            "test": csv(tmp_path / "test.csv", "7,8,0", "3,4,2"),
        }
        assert "1 train rows stand among the test rows too, 1 of them with another label" in duplicates_across(parts).text
        kept, dropped = without_duplicates(parts)
        assert dropped == 1
        assert kept["train"].inputs["x"].tolist() == [[1, 2], [5, 6]]
        assert kept["train"].required_labels().tolist() == [0, 2]
        assert len(kept["test"]) == 2

    @settings(deadline=None, max_examples=100)
    @given(train=CONTENTS, validation=CONTENTS, test=CONTENTS)
    def test_nothing_is_in_two_parts_and_the_later_part_keeps_it(self, train, validation, test):
        parts = {"train": rows(train), "validation": rows(validation), "test": rows(test)}
        expected = {
            "train": [value for value in train if value not in {*validation, *test}],
            "validation": [value for value in validation if value not in test],
            "test": test,
        }
        if not all(expected.values()):
            with pytest.raises(DataError, match="rows stand in another part too: give other rows"):
                without_duplicates(parts)
            return
        kept, dropped = without_duplicates(parts)
        assert {name: contents(part) for name, part in kept.items()} == expected
        assert dropped == sum(map(len, parts.values())) - sum(map(len, kept.values()))
        assert duplicates_across(kept) is None
        assert (dropped == 0) == (duplicates_across(parts) is None)

    @settings(deadline=None, max_examples=100)
    @given(one=CONTENTS, other=CONTENTS, seed=st.integers(0, 99))
    def test_as_many_are_counted_as_there_are(self, one, other, seed):
        rng = np.random.default_rng(seed)
        left, right = rng.integers(0, 2, len(one)).tolist(), rng.integers(0, 2, len(other)).tolist()
        problem = duplicates_across({"train": rows(one, left), "test": rows(other, right)})
        shared = [place for place, value in enumerate(one) if value in other]
        contrary = sum(left[place] != right[other.index(one[place])] for place in shared)
        if not shared:
            assert problem is None
            return
        assert problem.count == len(shared)
        assert (f"{contrary} of them with another label" in problem.text) == (contrary > 0)


class TestSettle:
    def parts(self) -> dict[str, Rows]:
        return {"train": rows([1, 2, 3], [0, 1, 1]), "validation": rows([2], [1]), "test": rows([4], [2])}

    def test_what_is_sound_passes_as_it_is(self):
        parts = {"train": rows([1, 2], [0, 1]), "test": rows([3], [1])}
        assert settle(parts, 2, None) == (parts, ())

    def test_all_problems_are_told_at_once_with_their_remedy(self):
        with pytest.raises(DataError) as caught:
            settle(self.parts(), 3, ("a", "b", "c"))
        told = str(caught.value)
        assert "no training row is of 1 of 3 classes ('c')" in told
        assert "1 train rows stand among the validation rows too" in told
        assert told.endswith("--allow missing-class,duplicates")
        assert "\n" not in told

    def test_what_is_allowed_is_mended_and_told(self):
        kept, problems = settle(self.parts(), 3, ("a", "b", "c"), (MISSING_CLASS, DUPLICATES))
        assert [(one.kind, one.count) for one in problems] == [(MISSING_CLASS, 1), (DUPLICATES, 1)]
        assert "1 rows were taken out" in problems[1].text
        assert contents(kept["train"]) == [1, 3]
        assert contents(kept["validation"]) == [2]

    def test_what_is_allowed_stays_allowed_in_the_remedy(self):
        with pytest.raises(DataError, match=r"--allow missing-class,duplicates,unreadable$"):
            settle(self.parts(), 3, None, ("unreadable", MISSING_CLASS))

    def test_a_class_that_goes_with_its_last_row_is_missing(self):
        parts = {"train": rows([1, 2], [0, 1]), "test": rows([2], [1])}
        with pytest.raises(DataError, match=r"no training row is of 1 of 2 classes \('1'\).*1 rows were taken out"):
            settle(parts, 2, None, (DUPLICATES,))

    def test_an_unknown_problem_lists_the_known_ones(self):
        with pytest.raises(ConfigError, match="unknown problem 'duplicate' to allow: choose from missing-class, duplicates, unr"):
            settle(self.parts(), 3, None, ("duplicate",))
