import gzip
from pathlib import Path

import numpy as np
import pytest

from monograph.errors import DataError, MissingPackageError
from monograph.models.data.fashion import FOLDER, fashion_mnist

FILES = {"train-images-idx3": (6, 28, 28), "train-labels-idx1": (6,), "t10k-images-idx3": (2, 28, 28), "t10k-labels-idx1": (2,)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The package's four files with fewer rows; bytes count up, so that each row is known by its first."""
    for name, shape in FILES.items():
        header = bytes((0, 0, 8, len(shape))) + np.array(shape, ">i4").tobytes()
        body = np.arange(np.prod(shape)) % (10 if len(shape) == 1 else 256)
        (tmp_path / f"{name}-ubyte.gz").write_bytes(gzip.compress(header + body.astype(np.uint8).tobytes()))
    return tmp_path


def test_training_rows_then_test_rows(folder: Path):
    made = fashion_mnist(folder)
    assert (made["x"].shape, made["x"].dtype, made["y"].dtype) == ((8, 28, 28), np.uint8, np.int64)
    assert made["y"].tolist() == [0, 1, 2, 3, 4, 5, 0, 1]
    assert made["x"][1, 0, :3].tolist() == [784 % 256, 785 % 256, 786 % 256]
    assert made["x"][6, 0, :3].tolist() == [0, 1, 2]
    assert len(made["class_names"]) == 10


def test_no_package(tmp_path: Path):
    with pytest.raises(MissingPackageError, match="apt install dataset-fashion-mnist"):
        fashion_mnist(tmp_path / "none")


@pytest.mark.parametrize("keep", [0, 40, 200])
def test_damaged_files(folder: Path, keep: int):
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: .*install dataset-fashion-mnist again"):
        fashion_mnist(folder)


def test_a_file_of_another_rank(folder: Path):
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes((folder / "t10k-images-idx3-ubyte.gz").read_bytes())
    with pytest.raises(DataError, match="is no whole IDX file of bytes in 1 dimensions"):
        fashion_mnist(folder)


@pytest.mark.skipif(not FOLDER.is_dir(), reason="the Debian package dataset-fashion-mnist is not installed")
def test_the_package():
    made = fashion_mnist()
    assert made["x"].shape == (70_000, 28, 28)
    assert np.bincount(made["y"]).tolist() == [7000] * 10
