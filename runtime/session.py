"""The one place where ONNX Runtime sessions are made."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from monograph.errors import ConfigError, MissingPackageError, SourceError, WorkerError
from monograph.runtime.cuda import (
    GRAPH_ID,
    STREAM_OPTION,
    UNSYNCHRONISED,
    DeviceClock,
    captures_graph,
    check_graph_capture,
    open_device_clock,
)
from monograph.runtime.cuda import PROVIDER as CUDA_PROVIDER
from monograph.runtime.processor import local_process_count, quota_cores, requested_threads
from monograph.runtime.provider_options import check_options
from monograph.runtime.results import Placed
from monograph.runtime.session_spec import CPU_PROVIDER, SessionSpec

# ONNX Runtime's builds for POSIX have sent telemetry since 1.29; nothing leaves this machine unasked.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
try:
    import onnxruntime as ort
    from onnxruntime.capi import onnxruntime_pybind11_state as ort_state
except ImportError as error:
    if error.name == "onnxruntime":
        raise MissingPackageError(
            "ONNX Runtime is not installed: pip install 'monograph[cpu]' (or 'monograph[gpu]' on a machine with CUDA)"
        ) from error
    raise MissingPackageError(
        f"ONNX Runtime is installed and cannot be loaded ({error}): install what is missing, or ONNX Runtime again"
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
_NVIDIA = (CUDA_PROVIDER, "TensorrtExecutionProvider")
_DEVICE_WARMUP_RUNS = 3


def usable_cores() -> int:
    """Return how many cores this process may really use: the least of affinity and the cgroup's quota, at least 1.

    A quota of 1.5 cores is one: with two threads both would be stopped for a quarter of each period.
    """
    import joblib  # slow to import, and a measuring process is told its threads

    cores, quota = int(joblib.cpu_count()), quota_cores()
    return cores if quota is None else max(1, min(cores, int(quota)))


def default_threads() -> int:
    """Return the threads of work that is not timed: what the user has set, else this process's share of the usable cores."""
    return requested_threads() or max(1, usable_cores() // local_process_count())


def available_providers() -> tuple[str, ...]:
    """Return the execution providers of this build of ONNX Runtime, whether or not their libraries can be loaded."""
    return tuple(ort.get_available_providers())


class Session:
    """A model loaded into ONNX Runtime: call it with ``{input name: array}`` to get ``{output name: array}``."""

    def __init__(
        self,
        path: Path,
        ort_session: Any,
        *,
        device: str | None = None,
        captures_graph: bool = False,
        clock: DeviceClock | None = None,
    ) -> None:
        self.path = path
        self.device = device
        """Where inputs and outputs stay between calls, for example ``cuda``; None for the processor."""
        self.captures_graph = captures_graph
        """Whether calls on bound inputs replay a captured CUDA graph."""
        self.clock = clock
        """Of the device, where it has one that can be asked."""
        self._bound_count = 0
        self.ort_session = ort_session
        self.input_names: list[str] = [value.name for value in ort_session.get_inputs()]
        self.output_names: list[str] = [output.name for output in ort_session.get_outputs()]

    @property
    def batch_size(self) -> int | None:
        """The fixed size of the first input's first axis; None where it is free."""
        shape = self.ort_session.get_inputs()[0].shape
        return shape[0] if shape and isinstance(shape[0], int) else None

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
            # A replayed graph reads the addresses that it was captured with: other rows are run without it.
            options = _run_options(graph_id=-1) if self.captures_graph else None
            outputs = self.ort_session.run(self.output_names, dict(inputs), options)
        except _RUN_ERRORS as error:
            raise WorkerError(f"{self.path.name} failed while running: {first_line(error)}") from error
        return {name: np.asarray(output) for name, output in zip(self.output_names, outputs, strict=True)}

    def only(self, output_name: str) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
        """Return what computes one output, by those nodes alone that it needs.

        Raises:
            WorkerError: there is no such output.
        """
        if output_name not in self.output_names:
            raise WorkerError(f"{self.path.name} has no output {output_name!r}: it has {', '.join(self.output_names)}")
        options = _run_options()
        options.only_execute_path_to_fetches = True

        def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
            try:
                (given,) = self.ort_session.run([output_name], dict(inputs), options)
            except _RUN_ERRORS as error:
                raise WorkerError(f"{self.path.name} failed while running: {first_line(error)}") from error
            return {output_name: given}

        return run

    def over(self, batches: Sequence[Mapping[str, Array]]) -> list[dict[str, Array]]:
        """Run one batch after the other; raises what a call raises."""
        return [self(inputs) for inputs in batches]

    def bind(self, inputs: Mapping[str, Array]) -> Callable[[], object]:
        """Return ONNX Runtime's own call on these inputs, with nothing around it, for timing."""
        if self.device is None:
            return partial(self.ort_session.run, self.output_names, dict(inputs))
        return self._bind_on_device(inputs, is_synchronised=True)

    def _bind_on_device(self, inputs: Mapping[str, Array], *, is_synchronised: bool) -> Callable[[], object]:
        binding = self.ort_session.io_binding()
        for name, array in inputs.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, self.device, 0))
        for name in self.output_names:
            binding.bind_output(name, self.device)
        self._bound_count += 1  # each binding has addresses of its own, so a graph of its own
        graph_id = self._bound_count if self.captures_graph else None
        options = None if is_synchronised and graph_id is None else _run_options(graph_id, is_synchronised=is_synchronised)
        return partial(self.ort_session.run_with_iobinding, binding, options)

    def time_on_device(self, inputs: Mapping[str, Array], run_count: int) -> tuple[int, ...]:
        """Return the nanoseconds that the device takes for each of ``run_count`` calls; none where it has no clock."""
        if self.clock is None or self.device is None:
            return ()
        enqueue = self._bind_on_device(inputs, is_synchronised=False)
        for _ in range(_DEVICE_WARMUP_RUNS):
            self.clock.time_ns(enqueue)
        return tuple(self.clock.time_ns(enqueue) for _ in range(run_count))

    def placement(self) -> list[Placed]:
        """Return what each execution provider runs of the optimised graph.

        Raises:
            WorkerError: ``open_session`` was not asked to record it.
        """
        try:
            subgraphs = self.ort_session.get_provider_graph_assignment_info()
        except ORT_ERRORS as error:
            raise WorkerError(f"where the nodes of {self.path.name} run was not recorded: {first_line(error)}") from error
        parts: dict[str, list[Any]] = {}
        for subgraph in subgraphs:
            parts.setdefault(subgraph.ep_name, []).append(subgraph.get_nodes())
        return [
            Placed(
                provider,
                tuple(node.name or node.op_type for nodes in taken for node in nodes),
                tuple(node.op_type for nodes in taken for node in nodes),
                # A provider of kernels, such as the processor's, tells its nodes one by one, whatever lies between them.
                1 if all(len(nodes) == 1 for nodes in taken) else len(taken),
            )
            for provider, taken in parts.items()
        ]


def open_session(
    path: Path,
    *,
    spec: SessionSpec | None = None,
    threads: int | None = None,
    spinning: bool = False,
    record_placement: bool = False,
    mapped: bool = False,
    profile_prefix: Path | None = None,
) -> Session:
    """Load ``path`` into ONNX Runtime: sequential execution, ``threads`` intra-op threads (default: :func:`default_threads`).

    ``spinning`` lets idle threads wait by spinning, ONNX Runtime's own default. It is for sessions that are timed: elsewhere
    such threads take cores from other work, and all threads without it are at least as fast as one beside busy neighbours.
    ``mapped`` leaves large weights on disk, those inside the file too: they are mapped, and neither packed nor folded.
    ``profile_prefix`` turns ONNX Runtime's profiler on and is what the name of its file begins with.

    Raises:
        ConfigError: a provider is not in this build of ONNX Runtime, which would only warn and use the CPU, or does not know
            an option that it is given.
        MissingPackageError: a plugin provider's package is not installed.
        SourceError: ONNX Runtime cannot load the model.
    """
    spec = spec or SessionSpec()
    if spec.provider in _NVIDIA:
        _preload_dlls()
    captures = captures_graph(spec.provider, spec.options)
    if captures:
        check_graph_capture(path)
    options = _session_options(spec, threads, spinning, record_placement)
    if profile_prefix is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile_prefix)
    clock = open_device_clock() if spec.provider == CUDA_PROVIDER else None
    stream = {} if clock is None else {STREAM_OPTION: clock.stream}
    model: str | bytes = str(path)
    if mapped:
        model = _without_weights(path)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_cpu_mem_arena = False
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.absolute().parent))
    try:
        if spec.plugin is not None:
            options.add_provider_for_devices(plugin_devices(spec), dict(spec.options))
            session = ort.InferenceSession(model, options)
        else:
            providers = [(spec.provider, {**stream, **spec.options})]
            session = ort.InferenceSession(model, options, providers=providers, enable_fallback=0)
    except _LOAD_ERRORS as error:
        raise SourceError(f"ONNX Runtime {ort.__version__} cannot load {path}: {first_line(error)}") from error
    if spec.plugin is None and spec.provider not in session.get_providers():
        raise SourceError(
            f"ONNX Runtime {ort.__version__} left {spec.provider} out when it loaded {path}: a library that it needs is missing"
        )
    device = "cuda" if spec.io_binding else None
    return Session(path, session, device=device, captures_graph=captures, clock=clock)


def save_optimised(path: Path, output: Path, dimensions: Mapping[str, int] | None = None) -> None:
    """Write the graph that ONNX Runtime shows to an execution provider: its basic optimisations are done, nothing is fused yet.

    ``dimensions`` are the sizes of free input dimensions, by name. Larger weights go to a file beside ``output``.

    Raises:
        SourceError: ONNX Runtime cannot load the model, or the model cannot have these dimensions.
    """
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(output)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", f"{output.name}.data")
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    options.add_session_config_entry("session.disable_prepacking", "1")
    for name, size in (dimensions or {}).items():
        options.add_free_dimension_override_by_name(name, size)
    try:
        ort.InferenceSession(str(path), options, providers=[CPU_PROVIDER])
    except _LOAD_ERRORS as error:
        sizes = f" with {', '.join(f'{name}={size}' for name, size in dimensions.items())}" if dimensions else ""
        raise SourceError(f"ONNX Runtime {ort.__version__} cannot load {path}{sizes}: {first_line(error)}") from error


def _run_options(graph_id: int | None = None, *, is_synchronised: bool = True) -> Any:
    options = ort.RunOptions()
    if graph_id is not None:
        options.add_run_config_entry(GRAPH_ID, str(graph_id))
    if not is_synchronised:
        options.add_run_config_entry(UNSYNCHRONISED, "1")
    return options


def compile_model(path: str, output: str, spec: Mapping[str, Any]) -> None:
    """Write ``output``, in which the provider of ``spec`` holds its part of the model compiled, ready for its device.

    The parts are nodes EPContext, whose content only that provider reads; a node that it does not take is an error.
    Source: https://onnxruntime.ai/docs/execution-providers/EP-Context-Design.html

    Raises:
        ConfigError: the provider is not here, or does not know an option.
        MissingPackageError: its package is not installed.
        SourceError: it cannot compile the model.
    """
    session = SessionSpec.from_record(spec)
    options = _session_options(session, None, False, False)
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.add_provider_for_devices(plugin_devices(session), dict(session.options))
    try:
        ort.ModelCompiler(options, path, embed_compiled_data_into_model=True).compile_to_file(output)
    except _LOAD_ERRORS as error:
        raise SourceError(f"{session.provider} cannot compile the whole model: {first_line(error)}") from error


def _session_options(spec: SessionSpec, threads: int | None, spinning: bool, record_placement: bool) -> Any:
    if spec.plugin is None and spec.provider not in ort.get_available_providers():
        raise ConfigError(f"onnxruntime {ort.__version__} here has no {spec.provider}: see `monograph targets`")
    check_options(spec.provider, spec.options)
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL  # what goes wrong is raised, with its text; ONNX Runtime would print it as well
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads or default_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    options.add_session_config_entry("session.record_ep_graph_assignment_info", str(int(record_placement)))
    for key, value in spec.config.items():
        options.add_session_config_entry(key, value)
    return options


def plugin_devices(spec: SessionSpec) -> list[Any]:
    """Register the library of a plugin provider, once in a process, and return its devices.

    Raises:
        MissingPackageError: its package is not installed.
        ConfigError: its library cannot be loaded, or finds no device.
    """
    assert spec.plugin is not None
    try:
        package = importlib.import_module(spec.plugin)
    except ImportError as error:
        name = spec.plugin.replace("_", "-")
        raise MissingPackageError(f"the package {name} is not installed: pip install {name}") from error
    if spec.provider not in _REGISTERED:
        try:
            ort.register_execution_provider_library(spec.provider, str(package.get_library_path()))
        except ORT_ERRORS as error:
            raise ConfigError(f"the library of {spec.provider} cannot be loaded: {first_line(error)}") from error
        _REGISTERED.add(spec.provider)
    devices = [device for device in ort.get_ep_devices() if device.ep_name == spec.provider]
    if not devices:
        raise ConfigError(f"{spec.provider} finds no device here: see `monograph targets`")
    return devices


def first_device_name(provider: str, plugin: str) -> str:
    """Return what a plugin provider says of its first device.

    Raises:
        MissingPackageError: its package is not installed.
        ConfigError: its library cannot be loaded, or finds no device.
    """
    first = plugin_devices(SessionSpec(provider, plugin=plugin))[0]
    described = [str(first.device.vendor), *(f"{name} {text}" for name, text in dict(first.device.metadata).items())]
    return ", ".join(filter(None, [str(first.device.type).rpartition(".")[2], *described]))


@cache
def _preload_dlls() -> None:
    """Load CUDA and cuDNN from their Python packages, where those are installed, before the first session asks for them."""
    with contextlib.redirect_stdout(io.StringIO()):
        ort.preload_dlls()


_REGISTERED: set[str] = set()
"""Plugin providers whose libraries this process has loaded."""


def _without_weights(path: Path) -> bytes:
    from monograph.models.onnx_lazy import load_proto  # what measures needs none of its imports

    return bytes(load_proto(path).SerializeToString())


def first_line(error: Exception) -> str:
    """Return what an error of ONNX Runtime says, without the advice that may follow."""
    return str(error).strip().splitlines()[0]
