"""What only CUDA has: the clock of the device, and graphs of kernels that are captured once and replayed.

Sources: https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html (user_compute_stream, CUDA graphs), and
onnxruntime_run_options_config_keys.h for the entries of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from monograph.errors import ConfigError

PROVIDER = "CUDAExecutionProvider"
GRAPH_OPTION, STREAM_OPTION = "enable_cuda_graph", "user_compute_stream"
UNSYNCHRONISED = "disable_synchronize_execution_providers"
GRAPH_ID = "gpu_graph_id"
"""Of a run: runs of one id replay one captured graph, -1 captures and replays nothing."""
_CONTROL_FLOW = ("If", "Loop", "Scan")
_NS_PER_MS = 1e6


class DeviceClock:
    """A stream of the device and two events on it: how long the device takes, without the processor's waiting for it.

    Raises:
        ConfigError: there is no device, or no driver for it.
    """

    def __init__(self, runtime: Any) -> None:
        """Take ``cuda.bindings.runtime``."""
        self._runtime = runtime
        self._stream = self._checked(runtime.cudaStreamCreateWithFlags(runtime.cudaStreamNonBlocking))
        self._start, self._end = (self._checked(runtime.cudaEventCreate()) for _ in range(2))

    @property
    def stream(self) -> str:
        """The stream's address, as the execution provider takes it."""
        return str(int(self._stream))

    def time_ns(self, enqueue: Callable[[], object]) -> int:
        """Return the nanoseconds from the first to the last of the work that ``enqueue`` puts on the stream.

        Events resolve about half a microsecond.
        """
        runtime = self._runtime
        self._checked(runtime.cudaEventRecord(self._start, self._stream))
        enqueue()
        self._checked(runtime.cudaEventRecord(self._end, self._stream))
        self._checked(runtime.cudaEventSynchronize(self._end))
        elapsed_ms = float(self._checked(runtime.cudaEventElapsedTime(self._start, self._end)))
        return round(elapsed_ms * _NS_PER_MS)

    def _checked(self, answer: tuple[Any, ...]) -> Any:
        """Return what a function of CUDA's gives beside its code."""
        code, *rest = answer
        if int(code) != 0:
            _, text = self._runtime.cudaGetErrorString(code)
            raise ConfigError(f"CUDA does not answer ({text.decode()}): see `monograph targets`")
        return rest[0] if rest else None


def open_device_clock() -> DeviceClock | None:
    """Return a clock of the device; None where the package cuda-bindings is not installed."""
    try:
        from cuda.bindings import runtime
    except ImportError:
        return None
    return DeviceClock(runtime)


def captures_graph(provider: str, options: Mapping[str, str]) -> bool:
    """Say whether kernels are captured once and replayed."""
    return provider == PROVIDER and options.get(GRAPH_OPTION, "0").lower() in ("1", "true")


def check_graph_capture(path: Path) -> None:
    """Refuse a model whose course depends on its rows: a captured graph always runs the same kernels.

    Raises:
        ConfigError: a node branches or loops.
    """
    from monograph.models.onnx_lazy import load_proto  # what measures needs none of its imports

    for node in load_proto(path).graph.node:
        if node.op_type in _CONTROL_FLOW:
            raise ConfigError(
                f"{path.name} has control flow ({node.op_type} {node.name!r}), which no CUDA graph holds: leave {GRAPH_OPTION} "
                "out, or make a cascade branch-free, monograph lower --to branch-free"
            )
