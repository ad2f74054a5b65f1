"""Can these models work together? The study of five sets of models, with the time and the memory that it takes.

``python benchmarks/interop.py [--only digits,recommenders,tweets,photographs,scale] [--folder FOLDER] [-o FILE]``

- ``digits``: the three networks of ``pipelines/quickstart.yaml``, on its 1,000 test rows of MNIST, with lessons.
- ``recommenders``: the three of ``pipelines/recommend.yaml``, on its 20,000 test ratings of MovieLens, ranked for each user.
- ``tweets``: the two adaptations of MiniLM of ``pipelines/sentiment.yaml``, on its 6,000 test tweets.
- ``photographs``: EfficientNet-Lite0, 1 and 2 with ImageNet weights and a new head each for clothes (``monograph.adapt_model``,
  head only, 3,000 rows), on 3,000 rows of Fashion-MNIST at 64 pixels.
- ``scale``: ten networks of four architectures and several sizes on 10,000 rows of Fashion-MNIST. Each runs once: 45 pairs are
  told from what it gave.

Each study runs in a process of its own, whose peak memory is told (its own pages, and all with the files that are mapped), and
once more in the same folder, where it finds all that was done. Writes one JSON file; figures of accuracy are those of
``interop.json``. Exit 1 where ten models take more than ten minutes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from monograph.export.trace import export_torch
from monograph.models.data.fashion import fashion_mnist
from monograph.models.files import write_atomically
from monograph.models.students import STUDENTS
from monograph.models.torch_model import TorchModel
from monograph.pipelines.adapt import adapt_model
from monograph.pipelines.data import DataSpec
from monograph.pipelines.interop import Interop
from monograph.pipelines.interop.result import REPORT_FILE, RESULT_FILE
from monograph.pipelines.records import read_record
from monograph.pipelines.run import run_pipeline
from monograph.pipelines.training import TrainingSettings, train
from monograph.runtime.environment import describe_environment
from monograph.runtime.session import usable_cores

_ROOT = Path(__file__).parents[1]
_SECONDS_BAR = 600.0
_SIDE = 64
_SIZES = {"mlp": (32, 128, 512), "conv": (4, 8, 16), "separable_conv": (6, 12), "residual_conv": (4, 8)}


@dataclass(frozen=True)
class _Case:
    """What is asked of ``monograph interop``."""

    models: Sequence[str]
    data: str
    options: tuple[str, ...] = ()


def main() -> int:
    """Prepare each set of models, study it, print what came of it, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda text: tuple(text.split(",")), default=tuple(_CASES))
    parser.add_argument("--folder", type=Path, default=Path("runs/interop"))
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "interop.json")
    options = parser.parse_args()
    for name in options.only:
        case = _CASES[name](options.folder / name)
        study = _study(case, options.folder / name / "study")
        _print(name, study)
        _record(options.output, name, study)
    met = _earlier(options.output).get("scale", study)["seconds"] <= _SECONDS_BAR
    return 0 if met else 1


def _record(path: Path, name: str, study: dict[str, Any]) -> None:
    record = {
        "benchmark": "interop",
        "command": "python benchmarks/interop.py",
        "environment": asdict(describe_environment(usable_cores(), spinning=True)),
        "bars": {"seconds of ten models on 10,000 rows": _SECONDS_BAR},
        "studies": _earlier(path) | {name: study},
    }
    with write_atomically(path) as staged:
        staged.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _earlier(path: Path) -> dict[str, Any]:
    """Return the studies that the file holds already: with ``--only`` the others stay, each with its date."""
    return dict(json.loads(path.read_text(encoding="utf-8"))["studies"]) if path.exists() else {}


def _study(case: _Case, folder: Path) -> dict[str, Any]:
    """Run the command twice, and return the main figures of its record."""
    line = [sys.executable, "-m", "monograph", "interop", *case.models, "--data", case.data, "-o", str(folder), *case.options]
    seconds, (own, with_files) = [], (0, 0)
    for _ in range(2):
        began = time.perf_counter()
        with subprocess.Popen(line, stdout=subprocess.DEVNULL) as process:
            while process.poll() is None:
                time.sleep(0.1)
                own, with_files = max(own, _memory(process.pid, "RssAnon")), max(with_files, _memory(process.pid, "VmHWM"))
        if process.returncode:
            raise SystemExit(process.returncode)
        seconds.append(time.perf_counter() - began)
    found = read_record(folder / RESULT_FILE, Interop)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": seconds[0],
        "seconds_again": seconds[1],
        "peak_own_bytes": own,
        "peak_bytes_with_mapped_files": with_files,
        "page_bytes": (folder / REPORT_FILE).stat().st_size,
        "rows": found.row_count,
        "metric": found.metric,
        "models": {one.name: asdict(one.score) if one.score else one.reason for one in found.subjects},
        "fusions": [
            {
                "members": one.members,
                "weights": one.weights,
                "gain": asdict(one.gain) if one.gain else one.reason,
                "ndcg_gain": _ndcg_gain(one.ranking),
                "latency_ms": one.latency_ms,
                "macs": one.macs,
            }
            for one in found.fusions
        ],
        "soups": {f"{one.first} + {one.second}": asdict(one.change) for one in found.soups if one.change},
        "lessons": {
            f"{one.teacher} -> {one.student}": {"retention": one.retention, "gain": asdict(one.gain)}
            for one in found.lessons
            if one.gain
        },
        "transfers": {one.model: asdict(one.probe) if one.probe else one.reason for one in found.transfers},
        "advice": [one.text for one in found.advice],
    }


def _memory(pid: int, field: str) -> int:
    """Return bytes of a field of the process's status; 0 where it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), 0)


def _ndcg_gain(ranking: Any) -> dict[str, Any] | None:
    found = [one for one in (ranking.metrics if ranking else ()) if one.metric.startswith("ndcg")]
    return asdict(found[0].gain) | {"over": found[0].best_member} if found else None


def _print(name: str, study: dict[str, Any]) -> None:
    took = f"{study['seconds']:.0f} s, again {study['seconds_again']:.0f} s"
    print(f"{name}: {len(study['models'])} models on {study['rows']:,} rows in {took}")
    for text in study["advice"]:
        print(f"  {text}")


def _digits(folder: Path) -> _Case:
    run = run_pipeline(_ROOT / "pipelines" / "quickstart.yaml", folder / "run")
    students = [word for name in ("auto:1/10", "mlp", "conv", "separable_conv") for word in ("--student", name)]
    return _of_run(run.folder, ("mlp", "conv", "separable_conv"), *students)


def _recommenders(folder: Path) -> _Case:
    run = run_pipeline(_ROOT / "pipelines" / "recommend.yaml", folder / "run")
    return _of_run(run.folder, ("factors", "content", "network"), "--group", "user", "--quick")


def _tweets(folder: Path) -> _Case:
    run = run_pipeline(_ROOT / "pipelines" / "sentiment.yaml", folder / "run")
    return _of_run(run.folder, ("head", "last_layers"), "--quick")


def _of_run(folder: Path, names: Sequence[str], *options: str) -> _Case:
    """Return the exported members of a pipeline, and its test rows, which none of its steps fits anything on."""
    steps = folder / "steps"
    models = [
        str(_newest([*steps.glob(f"export-{name}-*/{name}.onnx"), *steps.glob(f"adapt-{name}-*/{name}.onnx")])) for name in names
    ]
    return _Case(models, str(_newest(list(steps.glob("data-*/test.npz")))), options)


def _newest(paths: Sequence[Path]) -> Path:
    """Return the latest: steps of an earlier version of the code may lie beside it."""
    return max(paths, key=lambda path: path.stat().st_mtime)


def _photographs(folder: Path) -> _Case:
    data = fashion_mnist()
    order = np.random.default_rng(0).permutation(len(data["y"]))
    starts = {"train": (0, 3000), "validation": (3000, 3600), "test": (3600, 4200), "shared": (4200, 7200)}
    folder.mkdir(parents=True, exist_ok=True)
    for name, (start, stop) in starts.items():
        chosen = order[start:stop]
        grey = np.repeat(data["x"][chosen][..., None], 3, axis=3)
        np.savez(folder / f"{name}.npz", x=grey, y=data["y"][chosen], class_names=data["class_names"])
    models = []
    for number in range(3):
        out = folder / f"lite{number}"
        models.append(str(folder / f"lite{number}.onnx"))
        if Path(models[-1]).exists():
            continue
        adapt_model(
            f"py:monograph.models.examples:efficientnet_lite{number}",
            DataSpec(str(folder / "train.npz")),
            out,
            validation=DataSpec(str(folder / "validation.npz")),
            test=DataSpec(str(folder / "test.npz")),
            method="head",
            arguments={"size": _SIDE},
        )
        with write_atomically(Path(models[-1])) as staged:
            staged.write_bytes((out / "adapted.onnx").read_bytes())
    return _Case(models, str(folder / "shared.npz"), ("--quick",))


def _scale(folder: Path) -> _Case:
    data = fashion_mnist()
    pictures = data["x"][:, None].astype(np.float32) / 255
    folder.mkdir(parents=True, exist_ok=True)
    shared = slice(60_000, 70_000)
    np.savez(folder / "shared.npz", x=pictures[shared], y=data["y"][shared])
    np.savez(folder / "train.npz", x=pictures[:11_000], y=data["y"][:11_000])
    models = []
    for name, sizes in _SIZES.items():
        for width in sizes:
            path = folder / f"{name}-{width}.onnx"
            models.append(str(path))
            if path.exists():
                continue
            module, contract = STUDENTS[name](input_shape=(1, 28, 28), width=width)
            model = TorchModel(module, contract, name)
            rows = DataSpec(str(folder / "train.npz")).load(contract, None, needs_labels=True)
            train(
                model,
                rows.take(slice(0, 10_000)),
                rows.take(slice(10_000, None)),
                TrainingSettings(epochs=1, learning_rate=0.003),
            )
            export_torch(model, path)
    return _Case(models, str(folder / "shared.npz"), ("--quick",))


_CASES: dict[str, Callable[[Path], _Case]] = {
    "digits": _digits,
    "recommenders": _recommenders,
    "tweets": _tweets,
    "photographs": _photographs,
    "scale": _scale,
}


if __name__ == "__main__":
    sys.exit(main())
