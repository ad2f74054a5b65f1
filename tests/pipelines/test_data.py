from pathlib import Path

import pytest

from monograph.errors import ConfigError, DataError
from monograph.models.contract import Contract, Kind, TensorSpec
from monograph.pipelines.cli.options import data_spec_of
from monograph.pipelines.config import DataConfig
from monograph.pipelines.data import DataSpec, as_data_spec

CONTRACT = Contract((TensorSpec("x", "float32", ("b", 1)),), (TensorSpec("out", "float32", ("b", 2)),), Kind.EMBEDDING)


@pytest.fixture
def write(tmp_path: Path):
    """Write a YAML file beside a table and return its name."""
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "data.csv").write_text("u,v,a,b\n1,2,0,1\n3,4,1,1\n")

    def write(text: str, name: str = "data.yaml") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize("labels", ["[a, b]", "a,b", '["a", "b"]'])
@pytest.mark.parametrize("name", ["data.yaml", "data.yml", "DATA.YAML"])
def test_a_yaml_file_says_where_the_rows_are_and_which_columns_are_meant(write, monkeypatch, tmp_path, labels, name):
    path = write(f"source: rows/data.csv\ncolumns: {{x: v}}\nlabel_column: {labels}\n", name)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    rows = as_data_spec(path).load(CONTRACT, None, needs_labels=True)
    assert rows.inputs["x"].tolist() == [[2], [4]]
    assert rows.required_labels().tolist() == [[0, 1], [1, 1]]
    assert rows.class_names == ("a", "b")


def test_a_relative_name_of_the_file_itself(write, monkeypatch, tmp_path):
    write("source: rows/data.csv\nsplit: train\n")
    monkeypatch.chdir(tmp_path)
    assert as_data_spec("data.yaml") == DataSpec("rows/data.csv", split="train")
    assert as_data_spec("../" + tmp_path.name + "/data.yaml").source == f"../{tmp_path.name}/rows/data.csv"


def test_options_win_over_the_file(write):
    path = write("source: rows/data.csv\ncolumns: {x: v, z: w}\nlabel_column: [a, b]\nsplit: test\n")
    plain = data_spec_of(path, None, None)
    assert (plain.columns, plain.label_column, plain.split) == ({"x": "v", "z": "w"}, ["a", "b"], "test")
    given = data_spec_of(path, ["x=u", "y=b"], "train")
    assert (given.columns, given.label_column, given.split) == ({"x": "u", "z": "w"}, "b", "train")


def test_several_label_columns_on_the_command_line(tmp_path):
    (tmp_path / "data.csv").write_text("u,v,a,b\n1,2,0,1\n3,4,1,1\n")
    rows = data_spec_of(str(tmp_path / "data.csv"), ["x=u", "y=b,a"], None).load(CONTRACT, None)
    assert rows.required_labels().tolist() == [[1, 0], [1, 1]]
    assert rows.class_names == ("b", "a")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("rows", "{folder}/rows"),
        ("./rows/none.csv", "{folder}/rows/none.csv"),
        ("none/none.csv", "{folder}/none/none.csv"),
        ("rows/none", "{folder}/rows/none"),
        ("/somewhere/data.csv", "/somewhere/data.csv"),
        ("owner/name", "owner/name"),
        ("name", "name"),
        ("hf:owner/name", "hf:owner/name"),
        ("py:package.module:factory", "py:package.module:factory"),
    ],
)
def test_where_a_source_starts(write, tmp_path, source, expected):
    assert as_data_spec(write(f"source: {source}\n")).source == expected.format(folder=tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("source: a.csv\nlables: b\n", r"data\.yaml: lables: Extra inputs are not permitted"),
        ("columns: {x: v}\n", r"data\.yaml: source: Field required"),
        ("source: a.csv\nlabel_column: []\n", r"data\.yaml: label_column"),
        ("source: a.csv\ncolumns: [x]\n", r"data\.yaml: columns: Input should be a valid dictionary"),
        ("- a\n", r"data\.yaml holds no mapping: a data file has the keys source, columns, label_column and split"),
        ("source: [\n", r"data\.yaml is not a YAML file"),
    ],
)
def test_what_is_not_understood_is_told_in_one_line(write, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        as_data_spec(write(text))
    assert "\n" not in str(caught.value)


def test_an_empty_source_is_no_folder(write):
    with pytest.raises(DataError, match="DATA is empty, expected a file"):
        as_data_spec(write("source: ''\n")).load(CONTRACT, None)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"no such data file: .*none\.yaml"):
        as_data_spec(str(tmp_path / "none.yaml"))


def test_other_data_stays_as_it_is():
    assert as_data_spec("data.csv") == DataSpec("data.csv")
    assert as_data_spec(None) is None
    spec = DataSpec("data.csv", label_column="y")
    assert as_data_spec(spec) is spec
    assert data_spec_of("data.csv", ["x=a", "y=b"], "test") == DataSpec("data.csv", {"x": "a"}, "b", "test")


@pytest.mark.parametrize("labels", ["y", "a,b", ["a", "b"]])
def test_a_pipeline_names_one_label_column_or_several(labels):
    assert DataConfig(source="data.csv", label_column=labels).label_column == labels
