import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monograph.errors import DataError, MissingPackageError, SourceError
from monograph.models.contract import Contract, ImagePreprocessing, Kind, TensorSpec, TextPreprocessing
from monograph.models.data.load import load_rows
from monograph.models.data.rows import Rows
from monograph.models.data.stream import open_stream

pytestmark = pytest.mark.usefixtures("leaves_nothing_behind")


def contract(*inputs: TensorSpec, names=None, classes=3, kind=Kind.LOGITS) -> Contract:
    return Contract(inputs, (TensorSpec("out", "float32", ("b", classes)),), kind, names)


def table(features=2, **fields) -> Contract:
    return contract(TensorSpec("x", "float32", ("b", features)), **fields)


def pictures(*shape, **fields) -> Contract:
    return contract(TensorSpec("pixels", "float32", ("b", *shape), ImagePreprocessing(scale=1)), **fields)


def texts(**fields) -> Contract:
    roles = ("input_ids", "attention_mask")
    return contract(*(TensorSpec(role, "int64", ("b", "s"), TextPreprocessing(role)) for role in roles), **fields)


def tokenizer_json() -> str:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "good", "bad", "null"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer.to_str()


def says(message: str):
    return pytest.raises(DataError, match=message)


class TestNpz:
    def save(self, tmp_path: Path, **arrays) -> str:
        np.savez(tmp_path / "data.npz", **arrays)
        return str(tmp_path / "data.npz")

    def test_x_and_y_are_no_guess(self, tmp_path):
        rows = load_rows(self.save(tmp_path, x=np.arange(6.0).reshape(3, 2), y=[0, 2, 1]), table())
        assert rows.inputs["x"].dtype == np.float32
        assert rows.inputs["x"].tolist() == [[0, 1], [2, 3], [4, 5]]
        assert rows.required_labels().tolist() == [0, 2, 1]
        assert rows.required_labels().dtype == np.int64
        assert rows.assumed == ()
        assert rows.origin.endswith("data.npz")

    def test_one_array_for_each_input(self, tmp_path):
        model = contract(TensorSpec("ids", "int64", ("b", "s")), TensorSpec("mask", "int64", ("b", "s")))
        rows = load_rows(self.save(tmp_path, mask=np.ones((2, 3), int), ids=np.zeros((2, 3), int), y=[[0], [1]]), model)
        assert list(rows.inputs) == ["ids", "mask"]
        assert rows.required_labels().tolist() == [0, 1]

    def test_saved_rows_are_data(self, tmp_path):
        saved = Rows({"x": np.ones((3, 2), np.float32)}, labels=np.array([0, 1, 2]), class_names=("a", "b", "c"))
        saved.save(tmp_path / "rows.npz")
        rows = load_rows(str(tmp_path / "rows.npz"), table())
        assert rows.sha256() == saved.sha256()
        assert rows.class_names == ("a", "b", "c")

    def test_limit_takes_the_first_rows(self, tmp_path):
        data = self.save(tmp_path, x=np.arange(6.0).reshape(3, 2), y=[0, 1, 99])
        assert load_rows(data, table(), limit=2).required_labels().tolist() == [0, 1]
        assert len(load_rows(self.save(tmp_path, x=np.zeros((3, 2))), table(), limit=9)) == 3
        with says("limit is 0, expected at least 1 row"):
            load_rows(data, table(), limit=0)

    def test_columns_and_labels_may_be_named(self, tmp_path):
        data = self.save(tmp_path, features=np.ones((2, 2)), other=np.zeros((2, 2)), kinds=[1, 2], y=[0, 0])
        rows = load_rows(data, table(), columns={"x": "features"}, label_column="kinds")
        assert rows.inputs["x"].sum() == 4
        assert rows.required_labels().tolist() == [1, 2]
        assert rows.assumed == ()

    def test_splits_are_arrays_by_name(self, tmp_path):
        data = self.save(tmp_path, x_train=np.zeros((3, 2)), y_train=[0, 1, 2], x_test=np.ones((1, 2)), y_test=[2])
        assert load_rows(data, table(), split="test").required_labels().tolist() == [2]
        with says(r"no arrays of split 'val', expected x_val; the arrays are x_train, y_train, x_test, y_test"):
            load_rows(data, table(), split="val")
        with says(r"name one \(or a split\); the columns are x_train, y_train"):
            load_rows(data, table())

    def test_a_missing_channel_axis_is_added_and_said(self, tmp_path):
        model = contract(TensorSpec("x", "float32", ("b", 1, 4, 4)))
        rows = load_rows(self.save(tmp_path, x=np.zeros((2, 4, 4), np.float32)), model)
        assert rows.inputs["x"].shape == (2, 1, 4, 4)
        assert "axis 1 of size 1 was added" in rows.assumed[0]

    def test_pickled_objects_are_refused_and_not_run(self, tmp_path):
        class Bomb:
            def __reduce__(self):
                return (Path.touch, (tmp_path / "boom",))

        data = self.save(tmp_path, x=np.array([Bomb(), Bomb()], dtype=object))
        with says(r"data\.npz: array 'x' is no array, and pickled objects are never loaded: save numbers or text"):
            load_rows(data, table())
        assert not (tmp_path / "boom").exists()

    def test_a_file_that_is_no_archive(self, tmp_path):
        (tmp_path / "data.npz").write_text("hello")
        with says(r"data\.npz: the file is no array, and pickled objects are never loaded: save numbers or text"):
            load_rows(str(tmp_path / "data.npz"), table())

    @settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(share=st.floats(0, 0.999))
    def test_cut_anywhere_it_is_refused_in_one_line(self, tmp_path, share):
        data = self.save(tmp_path, x=np.zeros((3, 2)), y=[0, 1, 2])
        content = Path(data).read_bytes()
        Path(data).write_bytes(content[: int(share * len(content))])
        with pytest.raises(DataError) as caught:
            load_rows(data, table())
        assert "\n" not in str(caught.value)

    def test_a_damaged_array_is_named(self, tmp_path):
        data = self.save(tmp_path, x=np.zeros((3, 2)), y=[0, 1, 2])
        content = bytearray(Path(data).read_bytes())
        content[content.index(b"NUMPY") + 130] ^= 255
        Path(data).write_bytes(content)
        with says(r"array 'x' cannot be read \(Bad CRC"):
            load_rows(data, table())

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"x": np.zeros((3, 2)), "y": [0, 1]}, r"columns differ in length \(x has 3, y has 2\)"),
            ({"x": np.zeros((0, 2))}, "no rows, expected at least one"),
            ({"x": np.float32(1)}, "array 'x' holds a single value, expected numbers, text or pictures"),
            ({"a": np.zeros((3, 2)), "b": np.zeros((3, 2))}, r"and 2 columns could be it: name one; the columns are a, b"),
            ({"y": [0, 1]}, r"no column was named for input x: float32 \[b x 2\], and no column could be it: name one"),
            (
                {"x": np.array([[0, 1], [np.nan, 1]])},
                r"data\.npz: 1 of 2 rows cannot be read \(first: row 1: column 'x' holds nan\)",
            ),
            ({"x": np.zeros((3, 5))}, r"input 'x' got \[n x 5\], expected x: float32 \[b x 2\]"),
            ({"x": np.zeros((2, 2)), "y": [0, 3]}, r"column 'y': row 1 has label 3, expected 0 to 2: correct or drop"),
            (
                {"x": np.zeros((2, 2)), "y": np.array([0, 2**64 - 1], np.uint64)},
                "row 1 has label 18446744073709551615, expected 0 to 2",
            ),
            ({"x": np.zeros((2, 2)), "class_names": 3}, "class_names is 3, expected a list of names, each once"),
            ({"x": np.zeros((2, 2)), "class_names": ["a", "a"]}, "class_names is .*, expected a list of names, each once"),
            ({"x": np.zeros((2, 2)), "y": [0, -1]}, r"row 1 has label -1, expected 0 to 2"),
            (
                {"x": np.zeros((2, 2)), "y": [0.0, 1.0]},
                r"labels are float64 \[n\], a model of logits needs class numbers or names",
            ),
            ({"x": np.zeros((2, 2)), "y": np.eye(2, dtype=int)}, r"labels are int64 \[n x 2\], a model of logits needs"),
        ],
    )
    def test_what_does_not_fit(self, tmp_path, arrays, message):
        with says(message):
            load_rows(self.save(tmp_path, **arrays), table())

    def test_missing_labels_are_an_error_only_where_they_are_needed(self, tmp_path):
        data = self.save(tmp_path, x=np.zeros((3, 2)))
        assert load_rows(data, table()).labels is None
        with says(r"no labels, and this needs them: name the label column; the columns are x"):
            load_rows(data, table(), needs_labels=True)

    def test_a_missing_column_lists_those_there_are(self, tmp_path):
        data = self.save(tmp_path, x=np.zeros((3, 2)), y=[0, 1, 2])
        with says("no column 'z' for input 'x'; the columns are x, y"):
            load_rows(data, table(), columns={"x": "z"})
        with says("no column 'kind' for the labels; the columns are x, y"):
            load_rows(data, table(), label_column="kind")
        with says("the model has no input 'z' to map a column to; it has x"):
            load_rows(data, table(), columns={"z": "x"})


@pytest.mark.parametrize("data", ["data.npz", "data.csv", "./data", "/no/where", "a/b/c", "~/no-such-file-here", "folder/"])
def test_a_file_that_is_not_there_is_not_looked_for_on_the_hub(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with says(f"{data}: no such file or folder"):
        load_rows(data, table())


def test_a_file_in_a_folder_that_is_there_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    with says("mine/data: no such file or folder"):
        load_rows("mine/data", table())


@pytest.mark.parametrize(("data", "message"), [("", "DATA is empty, expected a file"), ("a" * 5000, "a: cannot be looked at")])
def test_no_path_at_all(data, message):
    with says(message):
        load_rows(data, table())


def test_an_unknown_format_lists_the_known_ones(tmp_path):
    (tmp_path / "data.xlsx").write_text("x")
    with says(r"unknown format '\.xlsx', expected \.npz, \.csv, \.tsv, \.parquet, \.jsonl, \.json, or a folder"):
        load_rows(str(tmp_path / "data.xlsx"), table())


FACTORIES = """
import numpy as np
from PIL import Image
from monograph.models.data.rows import Rows
from monograph.errors import MissingPackageError

x = np.arange(6.0).reshape(3, 2)
def arrays(): return {"x": x, "y": [0, 1, 2], "class_names": ["a", "b", "c"]}
def rows(): return Rows({"x": x}, labels=np.array([0, 1, 2]), assumed=("made up",))
def dataset():
    import datasets
    return datasets.Dataset.from_dict({"a": x[:, 0], "b": x[:, 1], "y": [0, 1, 2]})
def splits():
    import datasets
    return datasets.DatasetDict({"train": dataset(), "test": dataset().select([2])})
def pictures(): return {"x": [Image.new("RGB", (4, 3), (value, 0, 0)) for value in (1, 2)], "y": [0, 1]}
def texts(): return {"x": ["good", "bad bad"], "y": [0, 1]}
def ragged(): return {"x": [[1, 2], [3]]}
def objects(): return {"x": [object()]}
def number(): return 3
def broken(): raise ZeroDivisionError("oh")
def needy(): raise MissingPackageError("pip install it")
"""


class TestFactories:
    @pytest.fixture(autouse=True)
    def module(self, leaves_nothing_behind):
        Path("load_factories.py").write_text(FACTORIES)
        yield
        sys.modules.pop("load_factories", None)

    @pytest.mark.parametrize("name", ["arrays", "rows", "dataset"])
    def test_what_a_factory_may_return(self, name):
        rows = load_rows(f"py:load_factories:{name}", table())
        assert rows.inputs["x"].tolist() == [[0, 1], [2, 3], [4, 5]]
        assert rows.required_labels().tolist() == [0, 1, 2]
        assert rows.origin == f"py:load_factories:{name}"

    def test_what_rows_assumed_is_kept(self):
        assert load_rows("py:load_factories:rows", table()).assumed == ("made up",)

    def test_splits(self):
        assert load_rows("py:load_factories:splits", table(), split="test").required_labels().tolist() == [2]

    def test_pictures_and_texts(self):
        assert load_rows("py:load_factories:pictures", pictures(3, 3, 4)).inputs["pixels"][:, 0, 0, 0].tolist() == [1, 2]
        rows = load_rows("py:load_factories:texts", texts(), tokenizer_json=tokenizer_json())
        assert rows.inputs["input_ids"].tolist() == [[2, 0], [3, 3]]

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("ragged", "array 'x' is no array .*: give every row the same shape"),
            ("objects", "array 'x' holds object values, expected numbers, text or pictures"),
            ("number", "the factory returned int, expected a mapping with arrays x and y, Rows, or a Dataset"),
            ("broken", "the factory failed with ZeroDivisionError: oh"),
        ],
    )
    def test_what_it_may_not(self, name, message):
        with says(f"py:load_factories:{name}: {message}"):
            load_rows(f"py:load_factories:{name}", table())

    def test_errors_of_ours_pass_as_they_are(self):
        with pytest.raises(MissingPackageError, match=r"^pip install it$"):
            load_rows("py:load_factories:needy", table())
        with pytest.raises(SourceError, match="has no 'absent'"):
            load_rows("py:load_factories:absent", table())


class TestLabelsFromSeveralColumns:
    CONTENT = "u,v,sad,glad\n1,2,0,1\n3,4,1,1\n5,6,0,0\n"

    @pytest.fixture
    def data(self, tmp_path) -> str:
        (tmp_path / "data.csv").write_text(self.CONTENT)
        return str(tmp_path / "data.csv")

    @pytest.mark.parametrize("named", ["sad,glad", "sad, glad", ["sad", "glad"]])
    def test_they_stand_side_by_side_under_the_columns_names(self, data, named):
        rows = load_rows(data, table(classes=2, kind=Kind.EMBEDDING), label_column=named)
        assert rows.required_labels().tolist() == [[0, 1], [1, 1], [0, 0]]
        assert rows.required_labels().dtype == np.float64
        assert rows.class_names == ("sad", "glad")
        assert rows.inputs["x"].tolist() == [[1, 2], [3, 4], [5, 6]]

    def test_read_a_part_at_a_time_they_are_the_same(self, data):
        model = table(classes=2, kind=Kind.SCORES)
        with open_stream(data, model, label_column="glad,sad", slices=("sad",)) as stream:
            assert stream.labels.tolist() == [[1, 0], [1, 1], [0, 0]]
            assert stream.class_names == ("glad", "sad")
            assert stream.read(1, 3).required_labels().tolist() == [[1, 1], [0, 0]]
            assert stream.slices["sad"].numbers.tolist() == [0, 1, 0]

    def test_the_order_is_the_models(self, data):
        model = table(classes=2, kind=Kind.SCORES, names=("glad", "sad"))
        rows = load_rows(data, model, label_column="sad,glad")
        assert rows.class_names == ("glad", "sad")
        assert rows.required_labels().tolist() == [[1, 0], [1, 1], [0, 0]]

    def test_other_names_are_taken_in_their_order_and_that_is_told(self, data):
        rows = load_rows(data, table(classes=2, kind=Kind.SCORES, names=("blue", "gay")), label_column="sad,glad")
        assert rows.required_labels()[0].tolist() == [0, 1]
        assert any("columns sad, glad were taken for the model's labels blue, gay" in text for text in rows.assumed)
        with says(r"2 label columns \(sad, glad\), expected 3 \(a, b, c\)"):
            load_rows(data, table(kind=Kind.SCORES, names=("a", "b", "c")), label_column="sad,glad")

    def test_a_column_of_exactly_that_name_is_one_column(self, tmp_path):
        (tmp_path / "data.csv").write_text('u,v,"a,b"\n1,2,0\n3,4,1\n')
        rows = load_rows(str(tmp_path / "data.csv"), table(), label_column="a,b")
        assert rows.required_labels().tolist() == [0, 1]

    def test_a_list_of_one_is_one_column(self, data):
        assert load_rows(data, table(1), columns={"x": "u"}, label_column=["sad"]).required_labels().tolist() == [0, 1, 0]

    @pytest.mark.parametrize(
        ("named", "message"),
        [
            ("sad,bad", "no column 'bad' for the labels; the columns are u, v, sad, glad"),
            ("sad,", "no column '' for the labels"),
            ("sad,sad", "the labels are to be read from sad, sad: name each column once"),
        ],
    )
    def test_columns_that_cannot_be(self, data, named, message):
        with says(message):
            load_rows(data, table(kind=Kind.EMBEDDING), label_column=named)

    def test_text_and_classes_are_refused(self, data, tmp_path):
        with says(r"columns 'sad', 'glad': labels are int64 \[n x 2\], a model of logits needs class numbers or names"):
            load_rows(data, table(), label_column="sad,glad")
        (tmp_path / "text.csv").write_text("u,v,a,b\n1,2,yes,0\n3,4,no,1\n")
        with says("column 'a' holds text, and labels from several columns are numbers, such as 0 and 1: convert it"):
            load_rows(str(tmp_path / "text.csv"), table(kind=Kind.EMBEDDING), label_column="a,b")

    def test_a_label_that_is_missing_makes_the_row_unreadable(self, tmp_path):
        (tmp_path / "data.csv").write_text("u,v,a,b\n1,2,0,1\n3,4,,1\n5,6,1,0\n")
        data, model = str(tmp_path / "data.csv"), table(classes=2, kind=Kind.EMBEDDING)
        with says(r"1 of 3 rows cannot be read \(first: row 1: column 'a' has no value\)"):
            load_rows(data, model, label_column="a,b")
        assert load_rows(data, model, label_column="a,b", skip_unreadable=True).required_labels().tolist() == [[0, 1], [1, 0]]
