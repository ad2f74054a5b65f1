"""How fast one fused graph is beside what people run today: EfficientNet-Lite0, 1 and 2 with ImageNet weights.

``python benchmarks/fusion_speed.py [--blocks N] [-o FILE]`` exports and fuses them at 224 pixels (and says how long the
fuse with its proof takes), then times, at batch 1 and in interleaved blocks of fresh processes:

(a) the fused graph against the sum of its members, each alone in its own process;
(b) against three ONNX Runtime sessions with default options in one process, outputs summed by numpy;
(c) against PyTorch eager.

The floor is (a) = 1 less what N calls into ONNX Runtime cost over one. Writes a JSON file with raw medians per block.
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

from monograph.export.fusion import Fused, fuse, plan_fusion
from monograph.export.trace import export_torch
from monograph.models.data.preprocess import preprocess
from monograph.models.data.rows import Rows
from monograph.models.examples import efficientnet_lite
from monograph.models.files import write_atomically
from monograph.models.onnx_file import OnnxFile, read_onnx
from monograph.pipelines.config import ModelConfig
from monograph.pipelines.members import eager_contender, sessions_contender
from monograph.runtime.compare import Comparison, compare
from monograph.runtime.environment import describe_environment, environment_warnings
from monograph.runtime.measure import Contender, Settings, onnx_contender
from monograph.runtime.session import usable_cores
from monograph.runtime.targets import find_target

BARS = {"members": 0.95, "sessions": 0.5, "eager": 0.4}
_MEMBERS = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")


def main() -> int:
    """Measure, print the ratios beside their bars, and write them down; exit 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=7)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "fusion_speed.json")
    options = parser.parse_args()
    with TemporaryDirectory(prefix="monograph-bench-") as name:
        files = _export(Path(name))
        began = time.perf_counter()
        fused = fuse(plan_fusion(files, names=_MEMBERS), Path(name) / "fused.onnx", rows=_photographs(files[0]))
        fuse_s = time.perf_counter() - began
        print(f"fused with proof in {fuse_s:.1f} s: {fused.proof.describe()}")
        contenders = _contenders(files, fused)
        began = time.perf_counter()
        comparison = compare(list(contenders.values()), None, Settings(), blocks=options.blocks, on_progress=_show)
        print(f"\r{options.blocks} interleaved blocks in {time.perf_counter() - began:.0f} s{' ' * 40}")
    record = _record(comparison, contenders, fused, fuse_s, options.blocks)
    with write_atomically(options.output) as staged:
        staged.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0 if all(row["met"] for row in record["ratios"]) else 1


def _show(name: str) -> None:
    print(f"\rtiming {name:<40}", end="", file=sys.stderr, flush=True)


def _export(folder: Path) -> list[OnnxFile]:
    files = []
    for variant, name in enumerate(_MEMBERS):
        began = time.perf_counter()
        exported = export_torch(efficientnet_lite(variant), folder / f"{name}.onnx")
        print(f"exported {name} in {time.perf_counter() - began:.1f} s: {exported.proof.describe()}")
        files.append(read_onnx(exported.path))
    return files


def _photographs(file: OnnxFile) -> Rows:
    """The two photographs that scikit-learn carries, as the network takes them."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    pictures = [Image.fromarray(np.asarray(picture)) for picture in load_sample_images().images]
    inputs, _ = preprocess({file.contract.inputs[0].name: pictures}, file.contract)
    return Rows(inputs)


def _contenders(files: list[OnnxFile], fused: Fused) -> dict[str, Contender]:
    target = find_target("cpu")
    weights = {member.name: member.weight for member in fused.plan.members}
    members = dict(zip(_MEMBERS, files, strict=True))
    sources = {name: ModelConfig(source=f"py:monograph.models.examples:{name}") for name in _MEMBERS}
    contenders = {
        name: onnx_contender(name, file.path, file.contract, file.sha256, file.size_bytes, target)
        for name, file in (members | {"fused": fused.file}).items()
    }
    return contenders | {
        "sessions": sessions_contender(members, fused.file, weights, fused.plan.form),
        "eager": eager_contender(sources, fused.file, weights, fused.plan.form),
    }


def _record(
    comparison: Comparison, contenders: dict[str, Contender], fused: Fused, fuse_s: float, blocks: int
) -> dict[str, object]:
    ratios = []
    for name, bar in BARS.items():
        interval = comparison.ratio(["fused"], list(_MEMBERS) if name == "members" else [contenders[name].name])
        met = interval.estimate <= bar
        ratios.append({"fused_over": name, "bar": bar, "met": met} | asdict(interval))
        verdict = "met" if met else "MISSED"
        print(f"fused / {name:<9} {interval.estimate:.3f} [{interval.low:.3f}, {interval.high:.3f}]  bar {bar}: {verdict}")
    return {
        "command": "python benchmarks/fusion_speed.py",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "blocks": blocks,
        "fuse_with_proof_s": fuse_s,
        "proof": asdict(fused.proof),
        "p50_s_per_block": comparison.p50_s,
        "ratios": ratios,
        "environment": asdict(describe_environment(usable_cores(), spinning=True)),
        "warnings": environment_warnings(),
    }


if __name__ == "__main__":
    sys.exit(main())
