import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monograph.errors import DataError
from monograph.models.contract import Contract, Kind, TensorSpec
from monograph.models.data.load import load_rows
from monograph.models.data.rows import Rows

pytestmark = pytest.mark.usefixtures("leaves_nothing_behind")


def contract(*inputs: TensorSpec, names=None, classes=3, kind=Kind.LOGITS) -> Contract:
    return Contract(inputs, (TensorSpec("out", "float32", ("b", classes)),), kind, names)


def table(features=2, **fields) -> Contract:
    return contract(TensorSpec("x", "float32", ("b", features)), **fields)


def says(message: str):
    return pytest.raises(DataError, match=message)


class TestLabels:
    def load(self, tmp_path, y, model, **arrays) -> Rows:
        np.savez(tmp_path / "data.npz", x=np.zeros((len(y), 2)), y=y, **arrays)
        return load_rows(str(tmp_path / "data.npz"), model)

    def test_names_are_mapped_to_the_models_classes(self, tmp_path):
        rows = self.load(tmp_path, ["dog", "cat", "dog"], table(names=("cat", "cow", "dog")))
        assert rows.required_labels().tolist() == [2, 0, 2]
        assert rows.class_names == ("cat", "cow", "dog")
        assert rows.assumed == ()

    def test_unknown_names_are_listed_with_the_known_ones(self, tmp_path):
        with says(r"column 'y': the model has no class 'ant', 'bee'; its classes are 'cat', 'cow', 'dog': rename or drop"):
            self.load(tmp_path, ["bee", "cat", "ant"], table(names=("cat", "cow", "dog")))

    def test_many_names_are_not_all_listed(self, tmp_path):
        names = tuple(f"class {number}" for number in range(1000))
        with says("'class 9' and 990 more: rename"):
            self.load(tmp_path, ["ant"], table(names=names, classes=1000))

    def test_numbers_in_another_order_of_classes_are_mapped_by_name(self, tmp_path):
        model = table(names=("cat", "cow", "dog"))
        rows = self.load(tmp_path, [0, 1, 1], model, class_names=["dog", "cat", "unused"])
        assert rows.required_labels().tolist() == [2, 0, 0]
        with says("the model has no class 'ant'"):
            self.load(tmp_path, [0, 1], model, class_names=["dog", "ant"])
        with says("row 0 has label 2, expected 0 to 1"):
            self.load(tmp_path, [2], model, class_names=["dog", "cat"])

    def test_where_nobody_names_classes_the_sorted_names_are_numbered(self, tmp_path):
        rows = self.load(tmp_path, ["b", "c", "a"], table())
        assert rows.required_labels().tolist() == [1, 2, 0]
        assert rows.class_names == ("a", "b", "c")
        assert rows.assumed[0].endswith("classes were numbered by their sorted names: 'a', 'b', 'c'")
        with says("row 1 has label 3, expected 0 to 2"):
            self.load(tmp_path, ["a", "d", "b", "c"], table())

    def test_numbers_of_sorted_names_do_not_depend_on_the_limit(self, tmp_path):
        np.savez(tmp_path / "data.npz", x=np.zeros((3, 2)), y=["b", "c", "a"])
        assert load_rows(str(tmp_path / "data.npz"), table(), limit=1).required_labels().tolist() == [1]

    def test_names_that_only_the_data_states(self, tmp_path):
        rows = self.load(tmp_path, ["b", "a"], table(), class_names=["b", "a", "c"])
        assert rows.required_labels().tolist() == [0, 1]
        assert self.load(tmp_path, [0, 2], table(), class_names=["b", "a", "c"]).class_names == ("b", "a", "c")

    def test_numbers_written_as_text_are_not_sorted_as_text(self, tmp_path):
        rows = self.load(tmp_path, ["10", "9"], table(classes=11))
        assert rows.required_labels().tolist() == [10, 9]
        assert "numbers written as text" in rows.assumed[0]

    def test_placeholder_names_name_nothing(self, tmp_path):
        model = table(names=("LABEL_0", "LABEL_1", "LABEL_2"))
        rows = self.load(tmp_path, [2, 0], model, class_names=["neg", "mid", "pos"])
        assert rows.required_labels().tolist() == [2, 0]
        assert rows.class_names == ("neg", "mid", "pos")
        assert "taken by number, for the model names its classes LABEL_0 and so on" in rows.assumed[0]

    def test_regression_takes_floats(self, tmp_path):
        rows = self.load(tmp_path, [0.5, -2.0], table(kind=Kind.REGRESSION))
        assert rows.required_labels().tolist() == [0.5, -2]
        with says("row 1 holds inf, expected finite"):
            self.load(tmp_path, [0.5, np.inf], table(kind=Kind.REGRESSION))
        with says("expected numbers, because the model is a regression"):
            self.load(tmp_path, ["a"], table(kind=Kind.REGRESSION))

    def test_several_targets_a_row(self, tmp_path):
        targets = [[0.5, 1.0], [2.0, -1.0]]
        for kind in (Kind.REGRESSION, Kind.SCORES, Kind.EMBEDDING):
            assert self.load(tmp_path, targets, table(kind=kind)).required_labels().tolist() == targets
            assert self.load(tmp_path, [0.5, 1.5], table(kind=kind)).required_labels().dtype == np.float64
            with says(r"1 of 2 rows cannot be read \(first: row 1: column 'y' holds nan\)"):
                self.load(tmp_path, [[0.5, 1.0], [2.0, np.nan]], table(kind=kind))

    def test_targets_of_whole_numbers(self, tmp_path):
        assert self.load(tmp_path, [3, 1], table(kind=Kind.REGRESSION)).required_labels().dtype == np.float64

    def test_embeddings_may_be_labelled_with_classes(self, tmp_path):
        assert self.load(tmp_path, ["b", "a"], table(kind=Kind.EMBEDDING)).required_labels().tolist() == [1, 0]
        assert self.load(tmp_path, [7, 9], table(kind=Kind.SCORES)).required_labels().tolist() == [7, 9]

    def test_targets_of_a_table(self, tmp_path):
        (tmp_path / "data.csv").write_text("a,b,price\n1,2,0.5\n3,4,1.25\n")
        rows = load_rows(str(tmp_path / "data.csv"), table(kind=Kind.REGRESSION), label_column="price")
        assert rows.required_labels().tolist() == [0.5, 1.25]
        assert rows.inputs["x"].tolist() == [[1, 2], [3, 4]]

    def test_classes_take_no_fractions(self, tmp_path):
        with says("a model of logits needs class numbers or names"):
            self.load(tmp_path, [0.5, 1.0], table())

    @given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=20), order=st.permutations("abcde"))
    @settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_mapping_keeps_the_name_of_each_row(self, tmp_path, labels, order):
        rows = self.load(tmp_path, labels, table(names=tuple("cbaed"), classes=5), class_names=order)
        assert [rows.class_names[label] for label in rows.required_labels()] == [order[label] for label in labels]
