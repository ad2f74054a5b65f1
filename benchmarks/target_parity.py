"""What a target computes beside the processor here and beside PyTorch: the parity matrix of real models, on real rows.

``python benchmarks/target_parity.py [--on TARGETS] [-o FILE]`` takes a quarter of an hour with the six targets that a Linux PC
without a GPU has. It exports EfficientNet-Lite0 and MiniLM and runs them

- as they are, beside PyTorch, on crops of photographs and on tweets;
- EfficientNet-Lite0 in half precision, and quantised to 8 bits and to 16 and 8: there the processor runs the same file.

A target that is missing is left out, and said so. Every target's figures carry the evidence that they were come by. Writes a
JSON file with every comparison; nothing of it is a latency.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from monograph.errors import MonographError
from monograph.models.data.tweets import tweets
from monograph.models.examples import minilm_folder
from monograph.models.files import write_atomically
from monograph.pipelines.export import export_model
from monograph.pipelines.lower import lower_model
from monograph.pipelines.measure import measure_models
from monograph.runtime.environment import describe_environment
from monograph.runtime.results import Measurement
from monograph.runtime.session import usable_cores
from monograph.runtime.targets import find_target

TARGETS = ("qnn-htp", "webgpu", "web-wasm", "web-webgpu", "arm64")
_LITE0, _CROPS = "py:monograph.models.examples:efficientnet_lite0", "py:monograph.models.data.photographs:crops"
_ROWS, _TWEETS = 8, 16
_FLOAT_BAR, _HALF_BAR, _QUANTISED_BAR = 1e-4, 2e-2, 0.05
"""Largest error allowed, as a share of the largest output of cpu running the same file: those of the proofs."""


def main() -> int:
    """Run the matrix, print it, and return 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", default=",".join(TARGETS), help="targets beside cpu, separated by commas")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "target_parity.json")
    arguments = parser.parse_args()
    wanted = arguments.on.split(",")
    here = [name for name in wanted if find_target(name).is_available()]
    missing = {name: find_target(name).describe() for name in wanted if name not in here}
    for name, why in missing.items():
        print(f"{name}: left out, {why}")
    with TemporaryDirectory() as folder:
        rows = [row for part in _parts(Path(folder), here) for row in part]
    record = {
        "benchmark": "target_parity",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": f"python benchmarks/target_parity.py --on {arguments.on}",
        "environment": asdict(describe_environment(usable_cores(), spinning=True)),
        "devices": {name: find_target(name).probe().detail for name in here},
        "missing": missing,
        "comparisons": rows,
    }
    with write_atomically(arguments.output) as staged:
        staged.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0 if all(row["met"] is not False for row in rows) else 1


def _parts(folder: Path, here: Sequence[str]) -> list[list[dict[str, Any]]]:
    export_model(_LITE0, folder / "lite0.onnx")
    source = f"hf:{minilm_folder()}"
    export_model(source, folder / "minilm.onnx")
    texts = folder / "tweets.npz"
    np.savez(texts, text=np.asarray(tweets()["text"][:_TWEETS]))
    floats = [name for name in here if find_target(name).lowering is None]
    parts = [
        _compare(folder / "lite0.onnx", here, _CROPS, _FLOAT_BAR, _LITE0),
        _compare(folder / "minilm.onnx", floats, str(texts), _FLOAT_BAR, source),
    ]
    for lowering, bar in (("fp16", _HALF_BAR), ("qdq-int8", _QUANTISED_BAR), ("qdq-htp", _QUANTISED_BAR)):
        path = folder / f"lite0-{lowering}.onnx"
        # Crops of two photographs have few clear winners among 1,000 classes: agreement with the float model is not the point.
        lower_model(folder / "lite0.onnx", path, to=lowering, calibration=_CROPS, bound=_any_winner())
        takes = here if lowering == "qdq-htp" else floats
        parts.append(_compare(path, takes, _CROPS, bar, None))
    return parts


def _any_winner() -> Any:
    from monograph.export.lowering import AgreementBound

    return AgreementBound(top1=0.0)


def _compare(path: Path, on: Sequence[str], data: str, bar: float, reference: str | None) -> list[dict[str, Any]]:
    rows = []
    for target in on:
        try:
            measured = measure_models(
                [path],
                on=["cpu", target],
                data=data,
                calibration=_CROPS,
                row_count=_TWEETS if data.endswith(".npz") else _ROWS,
                batch_sizes=(1,),
                parity=True,
                reference=reference,
            )
        except MonographError as error:
            why = str(error).replace(f"{path.parent}/", "")
            print(f"{path.stem:<14} {target:<11} cannot run: {why}"[:160], flush=True)
            rows.append({"model": path.stem, "target": target, "cannot_run": why, "met": None})
            continue
        rows += [_row(one, agreement, bar) for one in measured if one.target == target for agreement in one.parity]
    return rows


def _row(one: Measurement, agreement: Any, bar: float) -> dict[str, Any]:
    is_same_file = agreement.reference == "cpu" and (one.target != "qnn-htp" or "qdq" in one.model)
    met = None if not is_same_file else agreement.relative_error is not None and agreement.relative_error <= bar
    told = "" if met is None else f"  bar {bar:g}: {'met' if met else 'MISSED'}"
    top1 = "" if agreement.top1_agreement is None else f", top-1 {agreement.top1_agreement.estimate:.0%}"
    error = f"error {agreement.relative_error:.1e} of the scale, cosine {agreement.cosine:.7f}{top1}"
    print(
        f"{one.model:<14} {one.target:<11} {one.evidence.value:<10} against {agreement.reference.split(' ')[0]:<8} "
        f"{error}, {agreement.row_count} rows{told}",
        flush=True,
    )
    return {
        "model": one.model,
        "target": one.target,
        "evidence": one.evidence.value,
        "device": one.device,
        "nodes_per_provider": one.nodes_per_provider,
        **asdict(agreement),
        # Where a package lies is this machine's own affair.
        "reference": agreement.reference.replace(f"{minilm_folder()}", minilm_folder().parent.name),
        "bar": bar if is_same_file else None,
        "met": met,
        "warnings": one.warnings,
    }


if __name__ == "__main__":
    sys.exit(main())
