import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from monograph.errors import DataError
from monograph.models.contract import Contract, ImagePreprocessing, Kind, TensorSpec
from monograph.models.data.load import load_rows

pytestmark = pytest.mark.usefixtures("leaves_nothing_behind")


def contract(spec: TensorSpec) -> Contract:
    return Contract((spec,), (TensorSpec("out", "float32", ("b", 3)),), Kind.LOGITS)


def table() -> Contract:
    return contract(TensorSpec("x", "float32", ("b", 2)))


def pictures(*shape: int) -> Contract:
    return contract(TensorSpec("pixels", "float32", ("b", *shape), ImagePreprocessing(scale=1)))


def says(message: str):
    return pytest.raises(DataError, match=message)


def frame(path: Path, **columns) -> str:
    import pandas

    frame = pandas.DataFrame(columns)
    frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_csv(path, index=False)
    return str(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, values in {"cat": (1, 2), "dog": (3, 4, 5)}.items():
        (tmp_path / "animals" / name).mkdir(parents=True)
        for value in values:
            Image.new("L", (4, 3), value).save(tmp_path / "animals" / name / f"{value}.png")
    (tmp_path / "animals" / "cat" / "2.png").write_bytes(b"no picture")
    (tmp_path / "animals" / "dog" / "4.png").write_bytes(b"")
    return tmp_path / "animals"


def test_all_pictures_that_cannot_be_decoded_are_counted(folder):
    with says(r"animals: 2 of 5 rows cannot be read \(first: row 1: .*2\.png cannot be read .*or pass --allow unreadable"):
        load_rows(str(folder), pictures(1, 3, 4))


def test_pictures_that_cannot_be_decoded_are_left_out_and_told(folder):
    rows = load_rows(str(folder), pictures(1, 3, 4), skip_unreadable=True)
    assert rows.inputs["pixels"][:, 0, 0, 0].tolist() == [1, 3, 5]
    assert rows.required_labels().tolist() == [0, 1, 1]
    assert "2 of 5 rows cannot be read (first: row 1: " in rows.assumed[-1]
    assert rows.assumed[-1].endswith("and were left out")
    for name in ("cat/2.png", "dog/4.png"):
        (folder / name).unlink()
    sound = load_rows(str(folder), pictures(1, 3, 4))
    assert rows.digests.tolist() == sound.digests.tolist()
    assert sound.assumed == ()


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_rows_without_a_value_in_a_used_column(tmp_path, suffix):
    columns = {"a": [1.0, None, 3.0, 4.0], "b": [1.0, 2.0, 3.0, None], "note": ["x", None, None, "y"], "label": [0, 1, 2, 0]}
    data = frame(tmp_path / f"data{suffix}", **columns)
    with says(r"2 of 4 rows cannot be read \(first: row 1: column 'a' has no value\): mend or drop them, or pass --allow unr"):
        load_rows(data, table())
    rows = load_rows(data, table(), skip_unreadable=True)
    assert rows.inputs["x"].tolist() == [[1, 1], [3, 3]]
    assert rows.required_labels().tolist() == [0, 2]
    assert rows.assumed[-1].endswith("2 of 4 rows cannot be read (first: row 1: column 'a' has no value) and were left out")


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bad=st.lists(st.sets(st.sampled_from(["x", "y"])), min_size=1, max_size=12))
def test_what_is_left_is_what_was_whole(tmp_path, bad):
    whole = [row for row, missing in enumerate(bad) if not missing]
    lines = [
        f'{{"x": {"[1, null]" if "x" in missing else f"[{row}, 1]"}, "y": {"null" if "y" in missing else row % 3}}}\n'
        for row, missing in enumerate(bad)
    ]
    (tmp_path / "data.jsonl").write_text("".join(lines))
    read = {"data": str(tmp_path / "data.jsonl"), "contract": table(), "label_column": "y", "skip_unreadable": True}
    if not whole:
        with pytest.raises(DataError):
            load_rows(**read)
        return
    rows = load_rows(**read)
    assert rows.inputs["x"][:, 0].tolist() == whole
    assert rows.required_labels().tolist() == [row % 3 for row in whole]
    assert any(f"{len(bad) - len(whole)} of {len(bad)} rows" in text for text in rows.assumed) == (len(whole) < len(bad))


def test_paths_that_are_missing_and_files_that_are_not_there(tmp_path):
    Image.new("L", (4, 3), 7).save(tmp_path / "a.png")
    data = frame(tmp_path / "data.csv", image=["b.png", None, "a.png", "c.png"], label=["x", "y", "z", "x"])
    with says(r"3 of 4 rows cannot be read \(first: row 0: no such file .*b\.png\)"):
        load_rows(data, pictures(1, 3, 4))
    rows = load_rows(data, pictures(1, 3, 4), skip_unreadable=True)
    assert rows.inputs["pixels"][:, 0, 0, 0].tolist() == [7]
    assert rows.class_names == ("z",)


def test_arrays_of_paths(tmp_path):
    Image.new("L", (4, 3), 7).save(tmp_path / "a.png")
    path = str(tmp_path / "a.png")
    np.savez(tmp_path / "data.npz", x=[path, str(tmp_path / "b.png"), path], y=[0, 1, 2])
    rows = load_rows(str(tmp_path / "data.npz"), pictures(1, 3, 4), skip_unreadable=True)
    assert rows.required_labels().tolist() == [0, 2]


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_nan_stands_for_no_value(tmp_path, suffix):
    import pyarrow
    import pyarrow.parquet

    x, path = np.array([[0, 1], [np.nan, 3], [4, 5]]), tmp_path / f"data{suffix}"
    if suffix == ".npz":
        np.savez(path, x=x, y=[0, 1, 2])
        reason = "column 'x' holds nan"
    else:
        pyarrow.parquet.write_table(pyarrow.table({"a": x[:, 0], "b": x[:, 1], "y": [0, 1, 2]}), path)
        reason = "column 'a' has no value"
    with says(rf"1 of 3 rows cannot be read \(first: row 1: {reason}\): mend or drop them, or pass --allow unreadable"):
        load_rows(str(path), table())
    rows = load_rows(str(path), table(), skip_unreadable=True)
    assert rows.inputs["x"].tolist() == [[0, 1], [4, 5]]
    assert rows.required_labels().tolist() == [0, 2]


def test_nan_deep_within_a_list(tmp_path):
    (tmp_path / "factory_of_lists.py").write_text(
        "import datasets\n"
        "def made(): return datasets.Dataset.from_dict({'x': [[1.0, 2.0], None, [3.0, float('nan')]], 'y': [0, 1, 2]})\n"
    )
    with importable(tmp_path, "factory_of_lists"):
        rows = load_rows("py:factory_of_lists:made", table(), skip_unreadable=True)
    assert rows.required_labels().tolist() == [0]
    assert "2 of 3 rows cannot be read (first: row 1: " in rows.assumed[-1]


def test_infinity_is_a_value_that_nothing_skips(tmp_path):
    np.savez(tmp_path / "data.npz", x=[[np.nan, 0], [0, 1], [np.inf, 3]], y=[0, 1, 2])
    with says(r"row 1 holds inf, expected finite numbers.*\(rows are counted without the 1 that cannot be read\)"):
        load_rows(str(tmp_path / "data.npz"), table(), skip_unreadable=True)
    np.savez(tmp_path / "data.npz", x=[[np.inf, 3], [np.nan, 0]], y=[0, 1])
    with says("row 0 holds inf, expected finite numbers: fill or drop such rows"):
        load_rows(str(tmp_path / "data.npz"), table())


@contextmanager
def importable(folder: Path, name: str):
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop(name, None)


PICTURE_FACTORIES = """
import io
from pathlib import Path
from PIL import Image

sound = Image.effect_noise((40, 30), 50)
file = io.BytesIO()
sound.save(file, "PNG")
def opened(size): return Image.open(io.BytesIO(file.getvalue()[:size]))
def cut(): return {"x": [opened(None), opened(300), opened(None)], "y": [0, 1, 2]}
def absent(): return {"x": [None, sound, sound], "y": [0, 1, 2]}
def other(): return {"x": [sound, "a.png"], "y": [0, 1]}
"""


@pytest.mark.parametrize(
    ("name", "reason", "kept"),
    [
        ("cut", r"row 1: the picture cannot be read \(image file is truncated\)", [0, 2]),
        ("absent", "row 0: it has no picture", [1, 2]),
    ],
)
def test_pictures_that_a_factory_opened(tmp_path, name, reason, kept):
    (tmp_path / "factory_of_pictures.py").write_text(PICTURE_FACTORIES)
    with importable(tmp_path, "factory_of_pictures"):
        with says(rf"1 of 3 rows cannot be read \(first: {reason}\): mend or drop them"):
            load_rows(f"py:factory_of_pictures:{name}", pictures(1, 30, 40))
        rows = load_rows(f"py:factory_of_pictures:{name}", pictures(1, 30, 40), skip_unreadable=True)
    assert rows.required_labels().tolist() == kept
    assert np.array_equal(rows.inputs["pixels"][0], rows.inputs["pixels"][1])
    assert rows.inputs["pixels"].std() > 10


def test_what_is_no_picture_among_pictures_is_refused(tmp_path):
    (tmp_path / "factory_of_pictures.py").write_text(PICTURE_FACTORIES)
    with (
        importable(tmp_path, "factory_of_pictures"),
        says("array 'x': row 1 is of type str, expected a picture: give those only"),
    ):
        load_rows("py:factory_of_pictures:other", pictures(1, 30, 40), skip_unreadable=True)


def test_the_limit_counts_rows_as_they_stand(folder, tmp_path):
    with says(r"1 of 2 rows cannot be read"):
        load_rows(str(folder), pictures(1, 3, 4), limit=2)
    assert len(load_rows(str(folder), pictures(1, 3, 4), limit=2, skip_unreadable=True)) == 1
    assert len(load_rows(str(folder), pictures(1, 3, 4), limit=1)) == 1
    # Names of classes are read beyond the limit.
    data = frame(tmp_path / "data.csv", a=[1, 2, 3], b=[1, 2, 3], label=["no", "yes", None])
    with says(r"1 of 3 rows cannot be read \(first: row 2: column 'label' has no value\)"):
        load_rows(data, table(), limit=1)
    assert load_rows(data, table(), limit=1, skip_unreadable=True).class_names == ("no", "yes")


def test_where_none_is_left_it_is_refused(folder):
    for path in folder.rglob("*.png"):
        path.write_bytes(b"no picture")
    with says(r"5 of 5 rows cannot be read \(first: row 0: .*\), and no other is left: mend them"):
        load_rows(str(folder), pictures(1, 3, 4), skip_unreadable=True)


def test_what_else_is_wrong_is_told_with_how_rows_are_counted(tmp_path):
    (tmp_path / "data.jsonl").write_text('{"x": null}\n{"x": [1, 2]}\n{"x": [1, 2]}\n{"x": [1, 2, 3]}\n')
    with says(r"row 2 has another length than row 0.*\(rows are counted without the 1 that cannot be read\)"):
        load_rows(str(tmp_path / "data.jsonl"), table(), skip_unreadable=True)


def test_sound_pictures_are_decoded_once(folder, monkeypatch):
    for name in ("cat/2.png", "dog/4.png"):
        (folder / name).unlink()
    opened = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda *args, **kwargs: opened.append(args) or real(*args, **kwargs))
    load_rows(str(folder), pictures(1, 3, 4), skip_unreadable=True)
    assert len(opened) == 4  # the first is opened beforehand to see what the column holds
