import pytest
from PIL import Image

from monograph.errors import DataError
from monograph.models.contract import Contract, ImagePreprocessing, Kind, TensorSpec, TextPreprocessing
from monograph.models.data.load import load_rows

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


def grey(value: int) -> Image.Image:
    return Image.new("L", (4, 3), value)


def says(message: str):
    return pytest.raises(DataError, match=message)


class TestTables:
    @pytest.fixture(params=["csv", "tsv", "parquet", "jsonl"])
    def write(self, request, tmp_path):
        """Write columns in one of the formats and return the file's name."""
        import pandas

        def write(**columns) -> str:
            path = tmp_path / f"data [1].{request.param}"
            frame = pandas.DataFrame(columns)
            if request.param == "parquet":
                frame.to_parquet(path, index=False)
            elif request.param == "jsonl":
                frame.to_json(path, orient="records", lines=True)
            else:
                frame.to_csv(path, index=False, sep="\t" if request.param == "tsv" else ",")
            return str(path)

        return write

    def test_numeric_columns_in_order_are_the_features(self, write):
        data = write(b=[1.5, 2.5], name=["p", "q"], a=[3, 4], label=["yes", "no"])
        rows = load_rows(data, table(names=("no", "yes"), classes=2))
        assert rows.inputs["x"].tolist() == [[1.5, 3], [2.5, 4]]
        assert rows.required_labels().tolist() == [1, 0]
        assert rows.assumed == (
            f"{data}: labels were read from column 'label'",
            f"{data}: input 'x' was read from columns 'b', 'a' (left out: name)",
        )

    def test_a_feature_may_be_called_as_the_input(self, write):
        rows = load_rows(write(x=[1.0, 2.0], y=[3.0, 4.0], label=[0, 1]), table())
        assert rows.inputs["x"].tolist() == [[1, 3], [2, 4]]
        assert load_rows(write(x=[1.0, 2.0], z=[3.0, 4.0]), table(features=1)).inputs["x"].tolist() == [[1], [2]]

    def test_another_number_of_columns_is_listed(self, write):
        with says(r"3 numeric columns \(a, b, c\) but input x: float32 \[b x 2\] takes 2: name the label column"):
            load_rows(write(a=[1], b=[2], c=[3]), table())

    def test_text_and_target(self, write):
        data = write(text=["good", "null bad"], target=[0, 1])
        rows = load_rows(data, texts(), tokenizer_json=tokenizer_json())
        assert rows.inputs["input_ids"].tolist() == [[2, 0], [4, 3]]
        assert rows.inputs["attention_mask"].tolist() == [[1, 0], [1, 1]]
        assert rows.required_labels().tolist() == [0, 1]
        assert f"{data}: input 'input_ids' was read from column 'text'" in rows.assumed

    def test_the_only_text_column_is_the_text(self, write):
        data = write(review=["good", "bad"], kind=["x", "y"])
        rows = load_rows(data, texts(), label_column="kind", tokenizer_json=tokenizer_json())
        assert rows.required_labels().tolist() == [0, 1]
        with says(r"no column was named for input input_ids: .* 2 columns could be it: name one; the columns are review, kind"):
            load_rows(data, texts(), tokenizer_json=tokenizer_json())

    def test_paths_of_pictures_start_at_the_file(self, write, tmp_path):
        for name, value in (("a.png", 7), ("b.png", 9)):
            grey(value).save(tmp_path / name)
        rows = load_rows(write(image=["a.png", "b.png"], y=[0, 1]), pictures(1, 3, 4))
        assert rows.inputs["pixels"][:, 0, 0, 0].tolist() == [7, 9]
        with says(r"1 of 2 rows cannot be read \(first: row 1: no such file .*c\.png\): mend or drop them"):
            load_rows(write(image=["a.png", "c.png"], y=[0, 1]), pictures(1, 3, 4))

    def test_a_missing_value_is_named_by_its_row(self, write):
        with says(r"2 of 3 rows cannot be read \(first: row 1: column 'a' has no value\): mend or drop them"):
            load_rows(write(a=[1.0, None, 2.0], b=[1.0, 2.0, None]), table())
        with says(r"1 of 3 rows cannot be read \(first: row 1: column 'text' has no value\)"):
            load_rows(write(text=["good", None, "bad"], y=[0, 1, 2]), texts(), tokenizer_json=tokenizer_json())

    def test_float_labels_are_for_regression(self, write):
        data = write(a=[1, 2], b=[1, 2], y=[0.5, 1.5])
        assert load_rows(data, table(kind=Kind.REGRESSION)).required_labels().tolist() == [0.5, 1.5]
        with says(r"labels are float64 \[n\], a model of logits needs class numbers"):
            load_rows(data, table())

    def test_splits(self, write):
        data = write(a=[1, 2], b=[1, 2])
        assert len(load_rows(data, table(), split="train")) == 2
        with says("has no split 'test'; it has train"):
            load_rows(data, table(), split="test")

    def test_changed_files_are_read_anew(self, write):
        assert load_rows(write(a=[1], b=[2]), table()).inputs["x"].tolist() == [[1, 2]]
        assert load_rows(write(a=[3], b=[4]), table()).inputs["x"].tolist() == [[3, 4]]

    def test_types_are_those_of_the_whole_file(self, write):
        a = [0] * 12_000 + [0.5]
        rows = load_rows(write(a=a, b=a), table())
        assert rows.inputs["x"][-1].tolist() == [0.5, 0.5]

    def test_the_column_of_row_numbers_that_pandas_writes_is_left_out(self, tmp_path):
        (tmp_path / "data.csv").write_text(",a,b,label\n0,1,2,0\n1,3,4,1\n")
        rows = load_rows(str(tmp_path / "data.csv"), table())
        assert rows.inputs["x"].tolist() == [[1, 2], [3, 4]]
        assert "left out: Unnamed: 0" in rows.assumed[-1]

    def test_lists_of_numbers_are_arrays(self, tmp_path):
        (tmp_path / "data.jsonl").write_text('{"x": [[1, 2], [3, 4]], "y": 0}\n{"x": [[5, 6], [7, 8]], "y": 1}\n')
        model = contract(TensorSpec("x", "float32", ("b", 2, 2)))
        assert load_rows(str(tmp_path / "data.jsonl"), model).inputs["x"].tolist() == [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ('{"x": [1, 2]}\n{"x": [1]}\n', "column 'x': row 1 has another length than row 0: give every row the same shape"),
            ('{"x": [[1, 2], [1, 2]]}\n{"x": [[1, 2], [1, 2, 3]]}\n', "column 'x': row 1 has another length"),
            ('{"x": [1, 2]}\n{"x": [1, null]}\n', "first: row 1: column 'x' has no value"),
            ('{"x": {"a": 1}}\n', "column 'x' holds struct<a: int64>, expected numbers, text or pictures"),
            ('{"x": [1, 2]}\n{"x": ', r"data\.jsonl: cannot be read as json \(.*\): check the file"),
            ("", r"data\.jsonl: the file is empty, expected at least one row"),
            ("\n", r"data\.jsonl: (no rows|cannot be read as json)"),
        ],
    )
    def test_damaged_json_lines(self, tmp_path, content, message):
        (tmp_path / "data.jsonl").write_text(content)
        with says(message):
            load_rows(str(tmp_path / "data.jsonl"), table())

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"a,b,label\n", r"data\.csv: no rows, expected at least one"),
            (b"", r"data\.csv: the file is empty"),
            (b"a,b\n1,2\n1,2,3\n", r"data\.csv: cannot be read as csv \(.*Expected 2 fields in line 3, saw 3\): check the file"),
            (
                b"a,b\n1,2,3\n4,5,6\n",
                r"data\.csv: cannot be read as csv \(Length of header or names does not match length of data",
            ),
            (b"a,b\n1,\xff\n", r"data\.csv: cannot be read as csv \('utf-8' codec"),
            (b"a,b\n1,2\n3,nan\n", "first: row 1: column 'b' has no value"),
            (b"a,b\n1,2\n3,inf\n", "row 1 holds inf, expected finite numbers"),
            (b"a,b\n1,2\n3,NA\n", r"1 numeric columns \(a\) but input x"),
        ],
    )
    def test_damaged_csv(self, tmp_path, content, message):
        (tmp_path / "data.csv").write_bytes(content)
        with says(message) as caught:
            load_rows(str(tmp_path / "data.csv"), table())
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
    def test_cut_parquet(self, tmp_path, share):
        import pandas

        path = tmp_path / "data.parquet"
        pandas.DataFrame({"a": range(100), "b": range(100)}).to_parquet(path)
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        with says(r"data\.parquet: cannot be read as parquet \(.*\): check the file"):
            load_rows(str(path), table())
