import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monograph.errors import DataError
from monograph.models.contract import Contract, ImagePreprocessing, Kind, TensorSpec
from monograph.models.data.load import load_rows

pytestmark = pytest.mark.usefixtures("leaves_nothing_behind")


def contract(*inputs: TensorSpec, names=None, classes=3, kind=Kind.LOGITS) -> Contract:
    return Contract(inputs, (TensorSpec("out", "float32", ("b", classes)),), kind, names)


def table(features=2, **fields) -> Contract:
    return contract(TensorSpec("x", "float32", ("b", features)), **fields)


def pictures(*shape, **fields) -> Contract:
    return contract(TensorSpec("pixels", "float32", ("b", *shape), ImagePreprocessing(scale=1)), **fields)


def grey(value: int) -> Image.Image:
    return Image.new("L", (4, 3), value)


def says(message: str):
    return pytest.raises(DataError, match=message)


class TestImageFolder:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        root = tmp_path / "animals [x]"
        for name, values in {"dog": (10, 20), "cat": (30,)}.items():
            (root / name).mkdir(parents=True)
            for value in values:
                grey(value).save(root / name / f"{value}.png")
        (root / "README.txt").write_text("notes")
        (root / "cat" / ".DS_Store").write_bytes(b"\0")
        return root

    def test_one_folder_a_class(self, folder):
        rows = load_rows(str(folder), pictures(3, 3, 4))
        assert rows.class_names == ("cat", "dog")
        assert rows.required_labels().tolist() == [0, 1, 1]
        assert rows.inputs["pixels"].shape == (3, 3, 3, 4)
        assert rows.inputs["pixels"][:, 0, 0, 0].tolist() == [30, 10, 20]
        assert rows.assumed == ()

    def test_classes_are_mapped_by_name(self, folder):
        rows = load_rows(str(folder), pictures(1, 3, 4, names=("dog", "cow", "cat")), limit=2)
        assert rows.required_labels().tolist() == [2, 0]
        with says("the model has no class 'cat'; its classes are 'dog'"):
            load_rows(str(folder), pictures(1, 3, 4, names=("dog",), classes=1))

    def test_a_single_class(self, folder):
        for path in (folder / "dog").iterdir():
            path.unlink()
        (folder / "dog").rmdir()
        assert load_rows(str(folder), pictures(1, 3, 4)).required_labels().tolist() == [0]

    def test_pictures_without_classes_have_no_labels(self, folder):
        assert load_rows(str(folder / "dog"), pictures(1, 3, 4)).labels is None

    def test_folders_named_after_splits(self, tmp_path, folder):
        for split in ("train", "test"):
            (tmp_path / "splits" / split).mkdir(parents=True)
        folder.rename(tmp_path / "splits" / "train" / "dog")
        (tmp_path / "splits" / "train" / "dog" / "cat" / "30.png").rename(tmp_path / "splits" / "train" / "dog" / "30.png")
        for name in ("cat", "dog"):
            (tmp_path / "splits" / "test" / name).mkdir()
            grey(5).save(tmp_path / "splits" / "test" / name / "5.png")
        rows = load_rows(str(tmp_path / "splits"), pictures(1, 3, 4), split="test")
        assert rows.required_labels().tolist() == [0, 1]
        with says("has the splits train, test|has the splits test, train"):
            load_rows(str(tmp_path / "splits"), pictures(1, 3, 4))

    def test_a_class_may_be_named_as_a_split(self, folder):
        (folder / "cat").rename(folder / "train")
        assert load_rows(str(folder), pictures(1, 3, 4)).class_names == ("dog", "train")

    @pytest.mark.parametrize("content", [b"no picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, b""])
    def test_an_unreadable_picture_is_named(self, folder, content):
        (folder / "dog" / "bad.png").write_bytes(content)
        with says(r"1 of 4 rows cannot be read \(first: row 3: .*bad\.png cannot be read \(.*\)\): mend or drop them"):
            load_rows(str(folder), pictures(1, 3, 4))

    def test_a_cut_picture_is_named(self, folder):
        path = folder / "dog" / "20.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 50), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:1000])
        with says(r"row 2: .*20\.png cannot be read"):
            load_rows(str(folder), pictures(1, 3, 4))

    def test_pictures_are_turned_upright(self, folder):
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("L", (3, 4)).save(folder / "cat" / "0.png", exif=exif)
        assert load_rows(str(folder), pictures(1, "h", "w")).inputs["pixels"].shape == (4, 1, 3, 4)

    def test_an_empty_class_folder_would_shift_the_numbers(self, folder):
        (folder / "bird").mkdir()
        with says("no pictures lie directly in class folder bird: fill it, or take it away"):
            load_rows(str(folder), pictures(1, 3, 4))

    def test_pictures_outside_the_class_folders(self, folder):
        grey(1).save(folder / "stray.png")
        with says(r"pictures lie in animals \[x\], which is no class folder"):
            load_rows(str(folder), pictures(1, 3, 4))

    def test_a_folder_of_neither_kind(self, tmp_path):
        (tmp_path / "empty").mkdir()
        with says("the folder holds neither pictures nor a saved dataset"):
            load_rows(str(tmp_path / "empty"), pictures(1, 3, 4))

    def test_a_contract_without_image_preprocessing(self, folder):
        with says("got pictures, but the model's contract states no preprocessing"):
            load_rows(str(folder), contract(TensorSpec("x", "float32", ("b", 1, 3, 4))), columns={"x": "image"})


class TestDatasets:
    def dataset(self, **columns):
        import datasets

        return datasets.Dataset.from_dict(columns)

    def save(self, dataset, path: Path) -> str:
        import datasets

        datasets.disable_progress_bars()
        dataset.save_to_disk(path)
        return str(path)

    def test_a_saved_folder(self, tmp_path):
        data = self.save(self.dataset(a=[1.0, 2], b=[3.0, 4], labels=[0, 1]), tmp_path / "saved")
        rows = load_rows(data, table())
        assert rows.inputs["x"].tolist() == [[1, 3], [2, 4]]
        assert rows.required_labels().tolist() == [0, 1]
        assert len(rows.assumed) == 2
        rows.inputs["x"][0] = 7

    def test_saved_splits_are_chosen_by_name(self, tmp_path):
        import datasets

        parts = {"train": self.dataset(a=[1.0], b=[1.0]), "test": self.dataset(a=[2.0, 3], b=[2.0, 3])}
        data = self.save(datasets.DatasetDict(parts), tmp_path / "saved")
        assert len(load_rows(data, table(), split="test")) == 2
        with says("has the splits train, test: choose one with --split"):
            load_rows(data, table())
        with says("has no split 'val'; it has train, test"):
            load_rows(data, table(), split="val")

    def test_a_damaged_saved_folder(self, tmp_path):
        data = self.save(self.dataset(a=[1.0], b=[1.0]), tmp_path / "saved")
        for path in Path(data).glob("*.arrow"):
            path.unlink()
        with says(r"saved: is not a whole saved dataset \(.*\): check the file"):
            load_rows(data, table())

    def test_named_classes_and_embedded_pictures(self, tmp_path):
        import datasets

        features = datasets.Features({"img": datasets.Image(), "kind": datasets.ClassLabel(names=["dog", "cat"])})
        dataset = datasets.Dataset.from_dict({"img": [grey(1), grey(2)], "kind": [0, 1]}, features=features)
        rows = load_rows(self.save(dataset, tmp_path / "saved"), pictures(1, 3, 4, names=("cat", "dog"), classes=2))
        assert rows.inputs["pixels"][:, 0, 0, 0].tolist() == [1, 2]
        assert rows.required_labels().tolist() == [1, 0]
        assert [line.partition("saved: ")[2] for line in rows.assumed] == [
            "labels were read from column 'kind'",
            "input 'pixels' was read from column 'img'",
        ]

    def test_a_missing_picture_is_named_by_its_row(self, tmp_path):
        import datasets

        dataset = datasets.Dataset.from_dict({"image": [grey(1), None]}, features=datasets.Features({"image": datasets.Image()}))
        with says(r"1 of 2 rows cannot be read \(first: row 1: column 'image' has no value\): mend or drop them"):
            load_rows(self.save(dataset, tmp_path / "saved"), pictures(1, 3, 4))

    def test_arrays_of_fixed_shape(self, tmp_path):
        import datasets

        features = datasets.Features(
            {"x": datasets.Array2D((2, 2), "float64"), "f": datasets.List(datasets.Value("int8"), length=2)}
        )
        dataset = datasets.Dataset.from_dict({"x": np.arange(8.0).reshape(2, 2, 2), "f": [[1, 2], [3, 4]]}, features=features)
        data = self.save(dataset, tmp_path / "saved")
        model = contract(TensorSpec("x", "float32", ("b", 2, 2)), TensorSpec("f", "int64", ("b", 2)))
        rows = load_rows(data, model, limit=1)
        assert rows.inputs["x"].tolist() == [[[0, 1], [2, 3]]]
        assert rows.inputs["f"].tolist() == [[1, 2]]

    def test_the_hub_is_asked_once_and_its_failure_is_one_line(self, monkeypatch):
        import huggingface_hub

        def fail(*_, **__):
            raise ConnectionError("no route\nto the hub")

        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", fail)
        for name in ("no-such-dataset", "owner/no-such-dataset", "hf:owner/v1.npz"):
            with says("no such file or folder here, and the hub gave no such dataset") as caught:
                load_rows(name, table())
            assert "(no route to the hub): check the name and the network" in str(caught.value)

    def test_the_hub_is_given_the_configuration_and_runs_no_code(self, monkeypatch):
        import datasets
        import huggingface_hub

        asked = []
        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, repository, timeout: asked.append(repository))

        def load_dataset(*names, **options):
            asked.extend([names, sorted(options)])
            return datasets.DatasetDict({"test": self.dataset(a=[1.0], b=[2.0])})

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        assert len(load_rows("hf:owner/name:config", table())) == 1
        assert asked == ["owner/name", ("owner/name", "config"), ["cache_dir"]]

    def test_the_library_is_left_as_noisy_as_it_was(self, tmp_path):

        import datasets

        (tmp_path / "data.csv").write_text("a,b\n1,2\n")
        datasets.enable_progress_bars()
        level = logging.getLogger("datasets").level
        load_rows(str(tmp_path / "data.csv"), table())
        assert not datasets.are_progress_bars_disabled()
        assert logging.getLogger("datasets").level == level

    def test_the_librarys_own_cache_is_not_used(self, tmp_path, monkeypatch):
        import datasets

        for name in ("HF_DATASETS_CACHE", "DOWNLOADED_DATASETS_PATH", "EXTRACTED_DATASETS_PATH"):
            monkeypatch.setattr(datasets.config, name, str(tmp_path / "cache" / name))
        (tmp_path / "data.csv").write_text("a,b\n1,2\n")
        load_rows(str(tmp_path / "data.csv"), table())
        assert not (tmp_path / "cache").exists()

    def test_reading_prints_nothing(self, tmp_path, capfd):
        (tmp_path / "good.csv").write_text("a,b\n1,2\n")
        (tmp_path / "bad.jsonl").write_text('{"a": ')
        load_rows(str(tmp_path / "good.csv"), table())
        with says("cannot be read"):
            load_rows(str(tmp_path / "bad.jsonl"), table())
        assert capfd.readouterr() == ("", "")
