"""How fast a cascade of two networks is beside the large one alone, on a stream of single rows.

``python benchmarks/cascade_speed.py [--blocks N] [-o FILE]`` trains a small and a large convolutional network on 3,000
digits of MNIST, fits temperatures and the threshold on 1,000 validation rows, and then sends all 1,000 test rows, one at a
time, through the cascade and through the large network alone, in interleaved blocks of one process. The test rows take no
part in any choice.

The bar: accuracy within 0.5 points of the large network's, at no more than 0.6 of its mean latency. Writes a JSON file with
the means of each block.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from monograph.export.fusion.cascade import Cascaded, CascadeFit, fit_cascade, fuse_cascade, plan_cascade
from monograph.export.trace import export_torch
from monograph.models.data.load import load_rows
from monograph.models.data.rows import Rows
from monograph.models.data.split import stratified_split
from monograph.models.files import write_atomically
from monograph.models.onnx_file import OnnxFile, read_onnx
from monograph.models.students import conv
from monograph.models.torch_model import TorchModel
from monograph.pipelines.training import TrainingSettings, train
from monograph.runtime.environment import describe_environment, environment_warnings
from monograph.runtime.session import Session, open_session, usable_cores

DROP_BAR_POINTS, LATENCY_BAR = 0.5, 0.6
_FITTED_DROP_POINTS = 0.0
"""Less than the bar: 1,000 validation rows tell a loss only to within about half a point."""
_SPLIT_SEED = 1
_WIDTHS = {"small": 8, "large": 96}
_SETTINGS = {
    "small": TrainingSettings(epochs=10, learning_rate=0.012),
    "large": TrainingSettings(epochs=5, learning_rate=0.003),
}
_WARM_UP_ROWS = 50


def main() -> int:
    """Train, fit, build, measure, print the figures beside their bars, and write them down; exit 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=7)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "cascade_speed.json")
    options = parser.parse_args()
    with TemporaryDirectory(prefix="monograph-bench-") as name:
        parts = _rows()
        files = [_trained(member, parts, Path(name)) for member in _WIDTHS]
        fit = fit_cascade(files, [parts["validation"]] * 2, max_drop=_FITTED_DROP_POINTS)
        plan = plan_cascade(files, fit=fit)
        print(plan.describe())
        began = time.perf_counter()
        cascade = fuse_cascade(plan, Path(name) / "cascade.onnx", rows=parts["validation"])
        print(f"built with proof in {time.perf_counter() - began:.1f} s: {cascade.describe()}")
        record = _measure(files[-1], cascade, fit, parts["test"], options.blocks)
    with write_atomically(options.output) as staged:
        staged.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0 if record["met"] else 1


def _rows() -> dict[str, Rows]:
    _, contract = conv()
    rows = load_rows("py:monograph.models.data.digits:mnist", contract, needs_labels=True)
    return stratified_split(rows, {"train": 3000, "validation": 1000, "test": 1000}, seed=_SPLIT_SEED)


def _trained(member: str, parts: dict[str, Rows], folder: Path) -> OnnxFile:
    module, contract = conv(width=_WIDTHS[member], dropout=0.1)
    model = TorchModel(module, contract.with_class_names(parts["train"].class_names or ()), member)
    began = time.perf_counter()
    training = train(model, parts["train"], parts["validation"], _SETTINGS[member])
    print(
        f"trained {member} in {time.perf_counter() - began:.0f} s: "
        f"{training.epochs[training.best_epoch].validation_top1:.2%} right on the validation rows"
    )
    exported = export_torch(model, folder / f"{member}.onnx", rows=parts["validation"])
    return read_onnx(exported.path)


def _measure(large: OnnxFile, cascade: Cascaded, fit: CascadeFit, test: Rows, blocks: int) -> dict[str, object]:
    sessions = {name: open_session(file.path, spinning=False) for name, file in (("large", large), ("cascade", cascade.file))}
    for session in sessions.values():
        _stream(session, test.take(slice(0, _WARM_UP_ROWS)))
    latency_s: dict[str, list[float]] = {name: [] for name in sessions}
    accuracy: dict[str, float] = {}
    for block in range(blocks):
        for name in sorted(sessions, reverse=bool(block % 2)):
            mean_s, best = _stream(sessions[name], test)
            latency_s[name].append(mean_s)
            accuracy[name] = float(np.mean(best == test.required_labels()))
    ratios = np.array(latency_s["cascade"]) / np.array(latency_s["large"])
    ratio, drop_points = float(np.median(ratios)), 100 * (accuracy["large"] - accuracy["cascade"])
    met = ratio <= LATENCY_BAR and drop_points <= DROP_BAR_POINTS
    print(f"accuracy on {len(test)} test rows: large {accuracy['large']:.2%}, cascade {accuracy['cascade']:.2%}")
    large_ms, cascade_ms = (1e3 * float(np.median(latency_s[name])) for name in ("large", "cascade"))
    print(f"mean latency: large {large_ms:.3f} ms, cascade {cascade_ms:.3f} ms")
    verdict = "met" if met else "MISSED"
    print(f"cascade / large {ratio:.3f} [{ratios.min():.3f}, {ratios.max():.3f}]  bar {LATENCY_BAR}: {verdict}")
    return {
        "command": "python benchmarks/cascade_speed.py",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": {"train": 3000, "validation": 1000, "test": len(test), "test_sha256": test.sha256()},
        "split_seed": _SPLIT_SEED,
        "widths": _WIDTHS,
        "fit": asdict(fit),
        "cost": asdict(cascade.plan.cost),
        "proof": asdict(cascade.proof),
        "test_accuracy": accuracy,
        "drop_points": drop_points,
        "drop_bar_points": DROP_BAR_POINTS,
        "blocks": blocks,
        "mean_latency_s_per_block": latency_s,
        "ratio_median": ratio,
        "ratio_lowest": float(ratios.min()),
        "ratio_highest": float(ratios.max()),
        "ratio_bar": LATENCY_BAR,
        "met": met,
        "environment": asdict(describe_environment(usable_cores(), spinning=False)),
        "warnings": environment_warnings(),
    }


def _stream(session: Session, rows: Rows) -> tuple[float, np.ndarray]:
    """Return the mean seconds a row, one row at a time, and the best class of each row."""
    elapsed_s, best = 0.0, []
    for row in rows.batches(1):
        began = time.perf_counter()
        (logits,) = session(row.inputs).values()
        elapsed_s += time.perf_counter() - began
        best.append(int(logits.argmax()))
    return elapsed_s / len(rows), np.array(best)


if __name__ == "__main__":
    sys.exit(main())
