"""The one place where ONNX Runtime sessions are made."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from monograph.errors import ConfigError, MissingPackageError, SourceError, WorkerError

# ONNX Runtime's builds for POSIX have sent telemetry since 1.29; nothing leaves this machine unasked.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
try:
    import onnxruntime as ort
    from onnxruntime.capi import onnxruntime_pybind11_state as ort_state
except ImportError as error:
    raise MissingPackageError(
        "ONNX Runtime is not installed: pip install 'monograph[cpu]' (or 'monograph[gpu]' on a machine with CUDA)"
    ) from error

Array = npt.NDArray[Any]

ORT_ERRORS: tuple[type[Exception], ...] = tuple(
    getattr(ort_state, name)
    for name in (
        "EPFail", "EngineError", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "ModelLoaded", "NoModel",
        "NoSuchFile", "NotImplemented", "RuntimeException",
    )
)  # fmt: skip
"""All that ONNX Runtime raises; they share no base but Exception."""

_LOAD_ERRORS: tuple[type[Exception], ...] = (*ORT_ERRORS, UnicodeDecodeError)
"""The last one where ONNX Runtime's message quotes a name that is not UTF-8."""
_RUN_ERRORS: tuple[type[Exception], ...] = (*ORT_ERRORS, ValueError)
"""The last one from its Python side, for a missing input."""

_FATAL = 4


def usable_cores() -> int:
    """Return how many cores this process may really use: the least of affinity and the cgroup's quota."""
    import joblib  # slow to import, and a measuring process is told its threads

    return int(joblib.cpu_count())


class Session:
    """A model loaded into ONNX Runtime: call it with ``{input name: array}`` to get ``{output name: array}``."""

    def __init__(self, path: Path, ort_session: Any) -> None:
        self.path = path
        self.ort_session = ort_session
        self.input_names: list[str] = [value.name for value in ort_session.get_inputs()]
        self.output_names: list[str] = [output.name for output in ort_session.get_outputs()]

    @property
    def metadata(self) -> dict[str, str]:
        """What the file says of itself, by key: ``monograph.contract`` for example."""
        return dict(self.ort_session.get_modelmeta().custom_metadata_map)

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch.

        Raises:
            WorkerError: an input is missing, or ONNX Runtime failed while running.
        """
        try:
            outputs = self.ort_session.run(self.output_names, dict(inputs))
        except _RUN_ERRORS as error:
            raise WorkerError(f"{self.path.name} failed while running: {_first_line(error)}") from error
        return {name: np.asarray(output) for name, output in zip(self.output_names, outputs, strict=True)}

    def over(self, batches: Sequence[Mapping[str, Array]]) -> list[dict[str, Array]]:
        """Run one batch after the other; raises what a call raises."""
        return [self(inputs) for inputs in batches]

    def bind(self, inputs: Mapping[str, Array]) -> Callable[[], object]:
        """Return ONNX Runtime's own call on these inputs, with nothing around it, for timing."""
        return partial(self.ort_session.run, self.output_names, dict(inputs))

    def placement(self) -> dict[str, list[str]]:
        """Return, for each execution provider, the names of the optimised graph's nodes that it runs.

        Raises:
            WorkerError: ``open_session`` was not asked to record it.
        """
        nodes: dict[str, list[str]] = {}
        try:
            subgraphs = self.ort_session.get_provider_graph_assignment_info()
        except ORT_ERRORS as error:
            raise WorkerError(f"where the nodes of {self.path.name} run was not recorded: {_first_line(error)}") from error
        for subgraph in subgraphs:
            nodes.setdefault(subgraph.ep_name, []).extend(node.name or node.op_type for node in subgraph.get_nodes())
        return nodes


def open_session(
    path: Path,
    *,
    providers: list[str] | None = None,
    threads: int | None = None,
    spinning: bool = True,
    record_placement: bool = False,
    mapped: bool = False,
) -> Session:
    """Load ``path`` into ONNX Runtime: sequential execution, ``threads`` intra-op threads (default: the usable cores).

    ``mapped`` leaves large weights on disk, those inside the file too: they are mapped, and neither packed nor folded.

    Raises:
        ConfigError: a provider is not in this build of ONNX Runtime, which would only warn and use the CPU.
        SourceError: ONNX Runtime cannot load the model.
    """
    providers = providers or ["CPUExecutionProvider"]
    if missing := set(providers) - set(ort.get_available_providers()):
        raise ConfigError(f"onnxruntime {ort.__version__} here has no {', '.join(sorted(missing))}: see `monograph targets`")
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL  # what goes wrong is raised, with its text; ONNX Runtime would print it as well
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads or usable_cores()
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    options.add_session_config_entry("session.record_ep_graph_assignment_info", str(int(record_placement)))
    model: str | bytes = str(path)
    if mapped:
        model = _without_weights(path)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_cpu_mem_arena = False
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.absolute().parent))
    try:
        session = ort.InferenceSession(model, options, providers=providers, enable_fallback=0)
    except _LOAD_ERRORS as error:
        raise SourceError(f"ONNX Runtime {ort.__version__} cannot load {path}: {_first_line(error)}") from error
    return Session(path, session)


def _without_weights(path: Path) -> bytes:
    from monograph.models.onnx_lazy import load_proto  # what measures needs none of its imports

    return bytes(load_proto(path).SerializeToString())


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
