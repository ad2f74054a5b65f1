"""A real browser: ONNX Runtime Web in Chromium, on the processor by WebAssembly and on the GPU by WebGPU.

The page is served on loopback and asks nothing of the internet. A call is timed in the page with the clock of the page,
``await session.run(feeds)`` with inputs and outputs in the page's memory, so with WebGPU the copies to and from the GPU count.
Making the first session of a page compiles ONNX Runtime's WebAssembly: the create time holds that, and not the loading of
the model over loopback.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from monograph.errors import ConfigError, MissingPackageError, PlacementError
from monograph.runtime.job import Job, RawRun, feeding, read_outputs
from monograph.runtime.process import call_in_fresh_process
from monograph.runtime.results import Evidence, Placed
from monograph.runtime.runner import ROWS_FILE
from monograph.runtime.session import usable_cores
from monograph.runtime.session_spec import CPU_PROVIDER, SessionSpec
from monograph.runtime.targets.target import Availability, Target
from monograph.runtime.timing import RawTiming
from monograph.runtime.web.driver import DTYPES
from monograph.runtime.web.package import find_library, install_library, pinned_version

WEBGPU_PROVIDER = "WebGpuExecutionProvider"
CHROMIUM_VARIABLE = "MONOGRAPH_CHROMIUM"
_PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_WEBGPU_OPTIONS = (
    "preferredLayout", "validationMode", "storageBufferCacheMode", "uniformBufferCacheMode", "queryResolveBufferCacheMode",
    "defaultBufferCacheMode",
)  # fmt: skip
"""What ONNX Runtime Web hands on to the provider, of what it knows (js/common/lib/inference-session.ts)."""


def find_chromium() -> str | None:
    """Return the browser's program: ``MONOGRAPH_CHROMIUM``, or the first one on the path; None where there is none."""
    chosen = os.environ.get(CHROMIUM_VARIABLE)
    return shutil.which(chosen) if chosen else next(filter(None, map(shutil.which, _PROGRAMS)), None)


def _probe() -> Availability:
    chromium = find_chromium()
    missing = []
    if importlib.util.find_spec("playwright") is None:
        missing.append(("playwright", "pip install playwright"))
    if chromium is None:
        missing.append(("Chromium", f"apt-get install chromium (or set {CHROMIUM_VARIABLE} to a browser's path)"))
    try:
        find_library()
    except MissingPackageError:
        needs_npm = "" if shutil.which("npm") else "apt-get install npm && "
        missing.append((f"onnxruntime-web {pinned_version()}", f"{needs_npm}monograph targets --install web-wasm"))
    if missing:
        return Availability(False, f"no {', no '.join(name for name, _ in missing)}", " && ".join(how for _, how in missing))
    return Availability(True, f"{chromium}, onnxruntime-web {pinned_version()}, playwright {version('playwright')}")


def run_in_browser(job: Job, kind: str, *, isolated: bool = True) -> RawRun:
    """Load, time and run in a page of a browser of its own.

    Args:
        job: what to measure.
        kind: ``wasm`` or ``webgpu``.
        isolated: send the headers without which a page has neither threads nor the fine clock.

    Raises:
        ConfigError: a tensor cannot cross to the page, an option is none of the browser's, or there is no browser.
        MissingPackageError: playwright or onnxruntime-web is missing.
        PlacementError: what ran the nodes is not known.
        SourceError: ONNX Runtime Web cannot load the model.
        WorkerError: the browser or the page failed.
    """
    _check_dtypes(job, kind)
    options = _provider_options(job, kind)
    chromium = find_chromium()
    if chromium is None:
        raise ConfigError(f"no Chromium: {_probe().remedy}")
    threads = job.settings.threads or usable_cores()
    with tempfile.TemporaryDirectory(prefix="monograph-rows-") as name:
        folder = Path(name)
        if job.rows is not None:
            job.rows.save(folder / ROWS_FILE)
        arguments = {
            "kind": kind,
            "chromium": chromium,
            "library": str(find_library()),
            **_model_files(job),
            "provider_options": options,
            "contract_json": job.contender.contract.to_json(),
            "folder": name,
            "settings": asdict(job.settings) | {"threads": threads},
            "isolated": isolated,
            "streamed_row_count": job.streamed_row_count,
        }
        with feeding(job, folder):
            raw = call_in_fresh_process("monograph.runtime.web.driver:time_and_run_in_browser", arguments)
        outputs = read_outputs(job, folder)
    placement = tuple(
        Placed(record["provider"], tuple(record["nodes"]), tuple(record["op_types"]), record["partition_count"])
        for record in raw["placement"]
    )
    if not placement and not job.settings.allow_fallback:
        raise PlacementError(
            f"onnxruntime-web {pinned_version()} did not tell what ran the nodes of {job.contender.name}: pass --allow-fallback"
        )
    return RawRun(
        timings=tuple(RawTiming.from_record(record) for record in raw["timings"]),
        outputs=outputs,
        placement=placement,
        peak_memory_bytes=raw["peak_memory_bytes"],
        device=_device(raw, threads),
        evidence=Evidence.SIMULATED if raw["is_emulated"] else Evidence.EXECUTED,
        warnings=(*_warnings(raw, job, threads), *raw["warnings"]),
    )


def _check_dtypes(job: Job, kind: str) -> None:
    contract = job.contender.contract
    for spec in (*contract.inputs, contract.output):
        if np.dtype(spec.dtype).name not in DTYPES:
            raise ConfigError(
                f"web-{kind} cannot pass {spec.name!r} of {job.contender.name}, which is {spec.dtype}: it takes "
                f"{', '.join(DTYPES)}"
            )


def _provider_options(job: Job, kind: str) -> dict[str, str]:
    spec = SessionSpec.from_record(job.contender.loader_arguments["spec"])
    known = _WEBGPU_OPTIONS if kind == "webgpu" else ()
    for name in spec.options:
        if name not in known:
            raise ConfigError(f"web-{kind} has no provider option {name!r}: it knows {', '.join(known) or 'none'}")
    return dict(spec.options)


def _model_files(job: Job) -> dict[str, Any]:
    from monograph.models.onnx_file import external_data_files  # slow to import, and a listing of targets does not need it

    path = job.contender.path
    if path is None or path.is_dir():
        raise ConfigError(f"{job.contender.name} is no ONNX file, and a browser is sent nothing else: measure one stage")
    return {"model": str(path), "external_data": {key: str(file) for key, file in external_data_files(path).items()}}


def _device(raw: dict[str, Any], threads: int) -> str:
    about = raw["about"]
    parts = [
        raw["browser"],
        f"onnxruntime-web {pinned_version()}",
        f"{threads if about['isolated'] else 1} threads",
        "cross-origin isolated" if about["isolated"] else "not cross-origin isolated",
        f"clock steps of {about['clock_step_ns'] / 1e3:.0f} µs",
    ]
    adapter = about["adapter"]
    if adapter is not None:
        parts.append(f"GPU {adapter['name']}{' (software)' if adapter['software'] else ''}")
    return ", ".join(parts)


def _warnings(raw: dict[str, Any], job: Job, threads: int) -> list[str]:
    warnings = []
    if not raw["about"]["isolated"]:
        clock = f"its clock steps by {raw['about']['clock_step_ns'] / 1e3:.0f} µs"
        warnings.append(f"the page was not cross-origin isolated: it ran on one thread, not on {threads}, and {clock}")
    if not job.settings.spinning:
        warnings.append("ONNX Runtime Web has no switch for spinning: its idle threads spin")
    if not raw["placement"]:
        warnings.append("ONNX Runtime Web did not tell what ran the nodes")
    if raw["peak_memory_bytes"] is None:
        warnings.append(f"the peak memory of a browser's processes is not told on {sys.platform}")
    return warnings


WEB_WASM = Target(
    "web-wasm",
    "Chromium, on the processor by WebAssembly",
    CPU_PROVIDER,
    Evidence.EXECUTED,
    _probe,
    run=partial(run_in_browser, kind="wasm"),
    call=None,
    install=install_library,
)
WEB_WEBGPU = Target(
    "web-webgpu",
    "Chromium, on the GPU by WebGPU; simulated by a software adapter, executed where the browser has a GPU",
    WEBGPU_PROVIDER,
    Evidence.SIMULATED,
    _probe,
    run=partial(run_in_browser, kind="webgpu"),
    call=None,
    install=install_library,
)
