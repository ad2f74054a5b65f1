"""How fast training and asking are alone and beside busy neighbours, with threads as they are chosen now and as they were.

``python benchmarks/beside_other_work.py [-o FILE] [--quick]`` takes about four minutes. Parts of the line run

- ``new``: torch's threads chosen by timing batches, ONNX Runtime's not spinning;
- ``old``: all usable cores in torch, ONNX Runtime's threads spinning, as they were up to commit 137ab20,

each in a process of its own that sleeps while the other runs, in blocks new, old, old, new. A new chooser is made for each part
and number of neighbours, so that its trials are in the figures. A neighbour is a process with one thread that is always busy,
kept to no core. Speeds are batches a second, the mean of a condition's blocks; only ratios mean anything.

The fair share of a process on ``c`` cores beside ``k`` neighbours is ``max(c / (k + 1), c - k)`` cores: an equal part, or what
the neighbours leave, who cannot use more than one core each. As a share of its speed alone that is fair / c. Two bars a part:

- alone: new is no slower than old × 1.03, that is new / old >= 1 / 1.03;
- beside: new has at least its fair share of the better of both speeds alone, divided by 1.5.

Exit 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import IO, Any

import numpy as np
import torch
from torch import nn

from monograph.export.trace import export_torch
from monograph.models.data.rows import Rows
from monograph.models.files import write_atomically
from monograph.models.onnx_file import read_onnx
from monograph.models.students import conv
from monograph.models.torch_model import TorchModel
from monograph.pipelines.teachers import as_teacher
from monograph.pipelines.training.threads import ThreadChooser
from monograph.runtime.environment import describe_environment, environment_doubts, environment_warnings, look_before
from monograph.runtime.runner import run_all_rows
from monograph.runtime.session import open_session, usable_cores

ALONE_BAR, BESIDE_BAR = 1.03, 1.5
NEIGHBOURS = (0, 1, 2)
_BATCH_SIZE, _TEACHER_ROWS, _TEACHER_WIDTH = 64, 32, 48
_BUSY = "while True: pass"

Step = Callable[[], object]


def main() -> int:
    """Run all parts in all conditions, print them beside their bars, and write them down; exit 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of short blocks, to see that it works")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "beside_other_work.json")
    parser.add_argument("--worker", nargs=2, metavar=("WAY", "MODEL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        serve(options.worker[0] == "old", Path(options.worker[1]))
        return 0
    rounds, seconds = (1, 0.7) if options.quick else (2, 2.0)
    before, began = look_before(), time.perf_counter()
    with TemporaryDirectory(prefix="monograph-beside-") as folder, workers(_teacher_file(Path(folder))) as ways:
        speeds = {(part, count): measure(ways, part, count, rounds, seconds) for part in PARTS for count in NEIGHBOURS}
    cores = usable_cores()
    checks = [check for part in PARTS for check in judge(part, speeds, cores)]
    environment = describe_environment(cores, spinning=True, before=before)
    record = {
        "command": "python benchmarks/beside_other_work.py" + (" --quick" if options.quick else ""),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "duration_s": time.perf_counter() - began,
        "cores": cores,
        "checks": checks,
        "environment": asdict(environment),
        "warnings": [*environment_warnings(), *environment_doubts(environment)],
    }
    with write_atomically(options.output) as staged:
        staged.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    show(checks)
    return 0 if all(check["is_met"] for check in checks) else 1


def measure(ways: dict[str, subprocess.Popen[str]], part: str, count: int, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Return the batches a second of every block of either way, beside ``count`` neighbours."""
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    with neighbours(count):
        for worker in ways.values():
            _ask(worker, "begin", part)
        for name in ("new", "old", "old", "new") * rounds:
            speeds[name].append(_ask(ways[name], "run", seconds))
    return speeds


def judge(part: str, speeds: dict[tuple[str, int], dict[str, list[float]]], cores: int) -> Iterator[dict[str, Any]]:
    """Yield what a part reached in each condition, beside its bar."""
    alone = max(mean(blocks) for blocks in speeds[part, 0].values())
    for count in NEIGHBOURS:
        new, old = (mean(speeds[part, count][name]) for name in ("new", "old"))
        fair = max(cores / (count + 1), cores - count) / cores
        bar = old / ALONE_BAR if count == 0 else alone * fair / BESIDE_BAR
        yield {
            "part": part,
            "neighbours": count,
            "new_batches_per_s": new,
            "old_batches_per_s": old,
            "new_by_old": new / old,
            "fair_share_of_alone": fair,
            "new_by_bar": new / bar,
            "is_met": new >= bar,
            "blocks": speeds[part, count],
        }


def show(checks: Sequence[dict[str, Any]]) -> None:
    """Print one line a part and condition."""
    print(f"{'part':22} {'neighbours':>10} {'new/s':>8} {'old/s':>8} {'new/old':>8} {'new/bar':>8}  bar")
    for check in checks:
        print(
            f"{check['part']:22} {check['neighbours']:>10} {check['new_batches_per_s']:8.1f} {check['old_batches_per_s']:8.1f} "
            f"{check['new_by_old']:8.2f} {check['new_by_bar']:8.2f}  {'met' if check['is_met'] else 'MISSED'}"
        )


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Keep ``count`` processes busy while the block lasts."""
    busy = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(count)]
    try:
        time.sleep(0.3 if busy else 0.0)
        yield
    finally:
        for each in busy:
            each.kill()
            each.wait()


@contextmanager
def workers(model: Path) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Start a process for each way; they end with their standard input."""
    started = {
        name: subprocess.Popen(
            [sys.executable, __file__, "--worker", name, str(model)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in ("new", "old")
    }
    try:
        yield started
    finally:
        for each in started.values():
            _stream(each.stdin).close()
            each.wait()
            _stream(each.stdout).close()


def _ask(worker: subprocess.Popen[str], *request: Any) -> float:
    to, back = _stream(worker.stdin), _stream(worker.stdout)
    to.write(json.dumps(request) + "\n")
    to.flush()
    return float(json.loads(back.readline()))


def _stream(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def serve(is_old: bool, model: Path) -> None:
    """Child side: begin a part or run it for some seconds, as each line asks; answer with batches a second."""
    step: Step = lambda: None  # noqa: E731
    for line in sys.stdin:
        request, value = json.loads(line)
        speed = 0.0
        if request == "begin":
            step = PARTS[value](is_old, model)
        else:
            began, count = time.perf_counter(), 0
            while time.perf_counter() - began < value:
                step()
                count += 1
            speed = count / (time.perf_counter() - began)
        print(json.dumps(speed), flush=True)


def train_conv(is_old: bool, model: Path) -> Step:
    """Return a step of training the convolutional student on 28×28 pictures."""
    torch.manual_seed(0)
    pictures = torch.randn(_BATCH_SIZE, 1, 28, 28).contiguous(memory_format=torch.channels_last)
    module = conv((1, 28, 28), 10)[0].to(memory_format=torch.channels_last)  # type: ignore[call-overload] # as in the loop
    return _training(is_old, module, pictures)


def train_transformer(is_old: bool, model: Path) -> Step:
    """Return a step of training two small transformer layers on 28 vectors of 28 numbers."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    module = nn.Sequential(nn.Linear(28, 64), encoder, nn.Flatten(), nn.Linear(64 * 28, 10))
    return _training(is_old, module, torch.randn(_BATCH_SIZE, 28, 28))


def ask_torch(is_old: bool, model: Path) -> Step:
    """Return a batch of a PyTorch teacher's answers."""
    teacher, rows = _teacher(), _teacher_rows()
    if not is_old:
        answers = as_teacher(teacher).run
        return lambda: answers(rows)
    torch.set_num_threads(usable_cores())
    return lambda: run_all_rows(teacher, teacher.contract, rows)


def ask_onnx(is_old: bool, model: Path) -> Step:
    """Return a batch of what ONNX Runtime gives for rows: accuracy, an ONNX teacher's answers, proofs."""
    rows, contract = _teacher_rows(), read_onnx(model).contract
    session = open_session(model, threads=usable_cores(), spinning=True) if is_old else open_session(model)
    return lambda: run_all_rows(session, contract, rows)


PARTS: dict[str, Callable[[bool, Path], Step]] = {
    "train conv": train_conv,
    "train transformer": train_transformer,
    "ask a torch teacher": ask_torch,
    "ask ONNX Runtime": ask_onnx,
}


def _training(is_old: bool, module: nn.Module, inputs: torch.Tensor) -> Step:
    labels, optimizer = torch.randint(0, 10, (_BATCH_SIZE,)), torch.optim.AdamW(module.parameters(), 1e-3)
    torch.set_num_threads(usable_cores())
    threads = None if is_old else ThreadChooser()

    def step() -> None:
        with nullcontext() if threads is None else threads.batch():
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(inputs), labels).backward()
            optimizer.step()

    return step


def _teacher() -> TorchModel:
    torch.manual_seed(0)
    teacher = TorchModel(*conv((1, 28, 28), 10, width=_TEACHER_WIDTH), "teacher")
    teacher.module.eval()
    return teacher


def _teacher_rows() -> Rows:
    return Rows({"pixels": np.random.default_rng(0).standard_normal((_TEACHER_ROWS, 1, 28, 28)).astype(np.float32)})


def _teacher_file(folder: Path) -> Path:
    export_torch(_teacher(), folder / "teacher.onnx")
    return folder / "teacher.onnx"


if __name__ == "__main__":
    sys.exit(main())
