import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from monograph.models.data.rows import Rows
from monograph.runtime import compare as comparing
from monograph.runtime.compare import Comparison, compare
from monograph.runtime.measure import Contender, Settings
from monograph.runtime.timing import RawTiming, TimingRule

Make = Callable[[Path], Contender]
BLOCKS = Comparison({"a": (1.0, 2.0, 4.0), "b": (3.0, 2.0, 1.0), "fused": (2.0, 1.0, 2.0)})


def test_a_ratio_is_taken_within_blocks_and_is_their_median():
    """Blocks give 1/2, 2 and 2."""
    ratio = BLOCKS.ratio(["a"], ["fused"])
    assert ratio.estimate == 2
    assert (ratio.low, ratio.high) == (0.5, 2)


def test_sums_are_taken_before_the_ratio():
    """(1+3)/2, (2+2)/1, (4+1)/2."""
    ratio = BLOCKS.ratio(["a", "b"], ["fused"])
    assert ratio.estimate == 2.5
    assert (ratio.low, ratio.high) == (2, 4)
    assert BLOCKS.ratio(["fused"], ["a", "b"]).estimate == pytest.approx(2 / 5)


def test_a_ratio_to_itself_is_one():
    ratio = BLOCKS.ratio(["a", "b"], ["b", "a"])
    assert (ratio.estimate, ratio.low, ratio.high) == (1, 1, 1)


def test_a_drift_of_the_machine_that_all_share_cancels():
    drift = np.array([1.0, 1.7, 0.6, 2.5, 1.2])
    ratio = Comparison({"a": tuple(0.003 * drift), "b": tuple(0.001 * drift)}).ratio(["a"], ["b"])
    assert ratio.estimate == pytest.approx(3)
    assert ratio.high - ratio.low < 1e-9


@pytest.fixture
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """40 runs a process; what BLOCK_RULE would take is a second each."""
    monkeypatch.setattr(comparing, "BLOCK_RULE", TimingRule(min_runs=40, min_s=0.0, max_s=5.0, warmup_s=0.0))


@pytest.mark.usefixtures("short_blocks")
def test_a_model_against_itself(classifier: Callable[..., Path], contender: Make, quick: Settings):
    made = contender(classifier())
    told: list[str] = []
    rows = Rows({"x": np.ones((5, 4), np.float32)})
    first, second = (dataclasses.replace(made, name=name) for name in ("first", "second"))
    result = compare([first, second], rows, quick, blocks=2, on_progress=told.append)
    assert list(result.p50_s) == ["first", "second"]
    assert all(len(values) == 2 and min(values) > 0 for values in result.p50_s.values())
    assert 0.2 <= result.ratio(["first"], ["second"]).estimate <= 5
    assert len(told) == 8, "two contenders there and back in two blocks"
    for block in (told[:4], told[4:]):
        assert sorted(block[:2]) == ["first", "second"]
        assert block[2:] == block[1::-1], "in the reverse of that order"


@pytest.mark.usefixtures("short_blocks")
def test_the_slower_one_is_the_numerator_of_a_ratio_above_one(
    classifier: Callable[..., Path], contender: Make, quick: Settings, tmp_path: Path
):
    steps = "".join(f"h{i + 1} = MatMul(h{i}, W) " for i in range(4))
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 18]> g (float[batch, 1024] h0) => (float[batch, 1024] h4) ' + f"{{ {steps} }}"
    )
    model.graph.initializer.append(numpy_helper.from_array(np.eye(1024, dtype=np.float32), "W"))
    onnx.save(model, tmp_path / "large.onnx")
    result = compare([contender(classifier()), contender(tmp_path / "large.onnx")], None, quick, blocks=1)
    assert result.ratio(["large"], ["classifier"]).estimate > 1


@pytest.mark.usefixtures("short_blocks")
def test_the_order_is_drawn_from_the_seed(classifier: Callable[..., Path], contender: Make, monkeypatch: pytest.MonkeyPatch):
    """The order alone is looked at: processes are not started."""
    monkeypatch.setattr(comparing, "raw_timings", lambda *arguments: [RawTiming(1, 1, 1, 0, (1, 2, 3))])
    made = [dataclasses.replace(contender(classifier()), name=name) for name in "abcd"]

    def order(seed: int) -> list[str]:
        told: list[str] = []
        compare(made, None, Settings(threads=1), blocks=3, seed=seed, on_progress=told.append)
        return told

    assert order(0) == order(0)
    assert len({tuple(order(seed)) for seed in range(5)}) > 1
    blocks = [order(0)[start : start + 8] for start in (0, 8, 16)]
    assert all(block == block[::-1] and sorted(block[:4]) == list("abcd") for block in blocks)
    assert len({tuple(block) for block in blocks}) > 1, "another order for each block"
