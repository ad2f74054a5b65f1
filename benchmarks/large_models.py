"""How much memory it takes to fuse models that, taken together, are too large to be held.

``python benchmarks/large_models.py [--member-bytes N] [-o FILE]`` writes pairs of networks of 1.5 GB each, stacks of linear
layers of 4096 x 4096 float32 of which each pair has one half in common, with the weights beside the model file or inside it.
It fuses each pair by ``monograph fuse`` in a fresh process, and samples the memory of that process and of those that it
starts for the proof.

The bar: the peak of each process stays under 1.3 x the largest single weight + 500 MB. Two peaks are told of each: the
resident one (VmHWM: all pages, also those of mapped files) and the anonymous one (RssAnon, sampled: what a process really
holds, that only swap could take away). The bar is applied to the resident peak of the fusing process, and to the anonymous
peak of the proof's processes: ONNX Runtime maps the weights there, and what it has mapped the kernel may drop at any time.
How much of it is resident depends on how soon it is let go: ``resident_met`` tells whether that was under the bar as well.
Writes a JSON file. Linux only: it reads /proc.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import psutil
from onnx import TensorProto, helper, numpy_helper

from monograph.models.files import write_atomically
from monograph.runtime.environment import describe_environment, environment_warnings
from monograph.runtime.session import usable_cores

WIDTH, CLASSES = 4096, 10
LARGEST_WEIGHT_BYTES = WIDTH * WIDTH * 4
BAR_BYTES = int(1.3 * LARGEST_WEIGHT_BYTES + 500e6)
SAMPLE_EVERY_S = 0.01
CASES = {"external": ("external", True), "external-no-share": ("external", False), "inline": ("inline", True)}
"""Where the weights of the members lie, and whether equal parts are shared."""


@dataclass
class Process:
    """What one process has taken so far."""

    role: str
    resident_peak_bytes: int = 0
    anonymous_peak_bytes: int = 0
    read_bytes: int = 0
    """By system calls; what is read from mapped files is not in it."""
    written_bytes: int = 0


def main() -> int:
    """Write the pairs, fuse them, print what it took, and write it down; exit 1 where the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--member-bytes", type=int, default=1_500_000_000)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "large_models.json")
    options = parser.parse_args()
    cases = {}
    for placement in ("external", "inline"):
        with TemporaryDirectory(prefix="monograph-bench-") as folder:
            members = _write_pair(Path(folder), options.member_bytes, placement)
            for name, (where, share) in CASES.items():
                if where == placement:
                    cases[name] = _fuse(members, Path(folder) / name, share)
                    _print(name, cases[name])
    met = all(case["met"] for case in cases.values())
    record = {
        "command": "python benchmarks/large_models.py",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "largest_weight_bytes": LARGEST_WEIGHT_BYTES,
        "bar_bytes": BAR_BYTES,
        "cases": cases,
        "met": met,
        "environment": asdict(describe_environment(usable_cores(), spinning=False)),
        "warnings": environment_warnings(),
    }
    with write_atomically(options.output) as staged:
        staged.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0 if met else 1


def _write_pair(folder: Path, member_bytes: int, placement: str) -> list[Path]:
    """Write two members whose first half of layers is the same, weight by weight."""
    layers = -(-member_bytes // LARGEST_WEIGHT_BYTES)
    members = []
    for number in range(2):
        path = folder / f"member{number}" / "model.onnx"
        path.parent.mkdir()
        seeds = [layer if layer < layers // 2 else 1000 * (number + 1) + layer for layer in range(layers)]
        (_write_external if placement == "external" else _write_inline)(path, seeds)
        members.append(path)
    return members


def _weights(seeds: list[int]) -> Iterator[np.ndarray]:
    for seed in seeds:
        weight = np.random.default_rng(seed).standard_normal((WIDTH, WIDTH), dtype=np.float32)
        weight *= np.float32((2 / WIDTH) ** 0.5)  # keeps the size of activations under Relu
        yield weight


def _model(layers: int) -> onnx.ModelProto:
    """Return ``logits = head(relu(x·w0)…)`` with the weights ``w0…`` still without their data."""
    nodes, value = [], "x"
    for layer in range(layers):
        nodes.append(helper.make_node("MatMul", [value, f"w{layer}"], [f"product{layer}"]))
        nodes.append(helper.make_node("Relu", [f"product{layer}"], [f"hidden{layer}"]))
        value = f"hidden{layer}"
    nodes.append(helper.make_node("MatMul", [value, "head"], ["logits"]))
    head = np.random.default_rng(layers).standard_normal((WIDTH, CLASSES)).astype(np.float32) / 64
    tensors = [TensorProto(name=f"w{layer}", data_type=TensorProto.FLOAT, dims=[WIDTH, WIDTH]) for layer in range(layers)]
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", size]) for n, size in (("x", WIDTH), ("logits", CLASSES))
    ]
    graph = helper.make_graph(nodes, "stack", ends[:1], ends[1:], [*tensors, numpy_helper.from_array(head, "head")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _write_external(path: Path, seeds: list[int]) -> None:
    model = _model(len(seeds))
    with path.with_name("model.onnx.data").open("wb") as file:
        for position, weight in enumerate(_weights(seeds)):
            tensor = model.graph.initializer[position]
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", "model.onnx.data"), ("offset", file.tell()), ("length", weight.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            file.write(weight)
    onnx.save(model, path)


def _write_inline(path: Path, seeds: list[int]) -> None:
    """Append weights to the graph one by one: protobuf joins a message that is written in parts."""
    model = _model(len(seeds))
    tensors = [tensor.SerializeToString() for tensor in model.graph.initializer[:-1]]
    del model.graph.initializer[:-1]
    with path.open("wb") as file:
        file.write(model.SerializeToString())
        for head, weight in zip(tensors, _weights(seeds), strict=True):
            raw = b"\x4a" + _varint(weight.nbytes)  # field 9 of a tensor, raw_data
            tensor = b"\x2a" + _varint(len(head) + len(raw) + weight.nbytes)  # field 5 of a graph, initializer
            file.write(b"\x3a" + _varint(len(tensor) + len(head) + len(raw) + weight.nbytes))  # field 7 of a model, graph
            file.write(tensor + head + raw)
            file.write(weight)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _fuse(members: list[Path], folder: Path, share: bool) -> dict[str, object]:
    target = folder / "fused.onnx"
    command = [sys.executable, "-m", "monograph", "fuse", *map(str, members), "-o", str(target)] + (["--no-share"] * (not share))
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        processes = _watch(psutil.Process(running.pid), running)
        output = running.stdout.read() if running.stdout else ""
    elapsed_s = time.perf_counter() - began
    if running.returncode != 0:
        raise SystemExit(f"monograph fuse failed: {output}")
    member_bytes = sum(file.stat().st_size for path in members for file in path.parent.iterdir())
    fused_bytes = sum(file.stat().st_size for file in folder.iterdir())
    for file in folder.iterdir():
        file.unlink()
    floor = member_bytes + fused_bytes
    moved = sum(process.read_bytes + process.written_bytes for process in processes)
    return {
        "member_bytes": member_bytes,
        "fused_bytes": fused_bytes,
        "elapsed_s": elapsed_s,
        "processes": [asdict(process) for process in processes],
        "resident_peak_bytes": max(process.resident_peak_bytes for process in processes),
        "anonymous_peak_bytes": max(process.anonymous_peak_bytes for process in processes),
        "moved_bytes": moved,
        "moved_bytes_floor": floor,
        "moved_ratio": moved / floor,
        "met": all(_held(process) <= BAR_BYTES for process in processes),
        "resident_met": all(process.resident_peak_bytes <= BAR_BYTES for process in processes),
    }


def _held(process: Process) -> int:
    return process.resident_peak_bytes if process.role == "fuse" else process.anonymous_peak_bytes


def _watch(parent: psutil.Process, running: subprocess.Popen[str]) -> list[Process]:
    """Sample the parent and all that it starts until it ends; return them in the order in which they began."""
    seen: dict[int, Process] = {parent.pid: Process("fuse")}
    while running.poll() is None:
        try:
            for child in parent.children(recursive=True):
                if child.pid not in seen and "monograph.runtime.worker" in child.cmdline():  # not yet a copy of its parent
                    seen[child.pid] = Process("proof")
        except psutil.NoSuchProcess:
            continue
        for pid, process in seen.items():
            _sample(pid, process)
        time.sleep(SAMPLE_EVERY_S)
    return list(seen.values())


def _sample(pid: int, process: Process) -> None:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
        io = Path(f"/proc/{pid}/io").read_text(encoding="utf-8").splitlines()
    except OSError:
        return  # it has ended
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in status if line.startswith(("VmHWM:", "RssAnon:"))}
    counts = {line.split(":")[0]: int(line.split()[1]) for line in io}
    process.resident_peak_bytes = max(process.resident_peak_bytes, sizes.get("VmHWM", 0))
    process.anonymous_peak_bytes = max(process.anonymous_peak_bytes, sizes.get("RssAnon", 0))
    process.read_bytes, process.written_bytes = counts["rchar"], counts["wchar"]


def _print(name: str, case: dict[str, object]) -> None:
    print(
        f"{name}: members {case['member_bytes'] / 1e9:.2f} GB, fused {case['fused_bytes'] / 1e9:.2f} GB in "  # type: ignore[operator]
        f"{case['elapsed_s']:.0f} s; {case['moved_ratio']:.1f} x the bytes that must be read and written"
    )
    for process in case["processes"]:  # type: ignore[attr-defined]
        print(
            f"  {process['role']:6} resident peak {process['resident_peak_bytes'] / 1e6:6.0f} MB, "
            f"anonymous {process['anonymous_peak_bytes'] / 1e6:6.0f} MB"
        )
    verdict = "met" if case["met"] else "MISSED"
    resident = "under" if case["resident_met"] else "over"
    print(f"  bar {BAR_BYTES / 1e6:.0f} MB for each: {verdict}; with all mapped pages {resident} it", flush=True)


if __name__ == "__main__":
    sys.exit(main())
