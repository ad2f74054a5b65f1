"""The measuring process of a browser: it serves one model, opens the page, and takes the steps of ``measure.js`` in turn.

Tensors and models cross over the loopback server; only small JSON goes through playwright.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from monograph.errors import MissingPackageError, SourceError, WorkerError
from monograph.models.contract import Contract
from monograph.models.data.rows import Rows
from monograph.runtime.runner import OUTPUTS_FILE, ROWS_FILE, possible_batch_sizes, run_all_rows, timing_inputs
from monograph.runtime.streaming import run_chunks
from monograph.runtime.timing import RawTiming, TimingRule, Until, time_series
from monograph.runtime.web.placement import read_placement
from monograph.runtime.web.server import PageServer, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Playwright

Array = npt.NDArray[Any]
DTYPES = (
    "float32", "float64", "float16", "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
)  # fmt: skip
"""What a tensor may hold on its way to the page and back; measure.js has the same list."""
BUILDS = {"wasm": "ort.wasm.min.mjs", "webgpu": "ort.webgpu.min.mjs"}
"""The build of onnxruntime-web for each of its providers."""

_QUIET = ("--disable-background-networking", "--disable-component-update", "--no-first-run")
_WEBGPU = ("--enable-unsafe-webgpu", "--enable-features=Vulkan")
_SWIFTSHADER = "--use-webgpu-adapter=swiftshader"
_LOAD_TIMEOUT_MS = 60_000.0
_EMULATED_RUNS = 3
"""Runs at one batch size where a GPU is emulated: their time is no latency, and each may take seconds."""
_COARSE_STEPS = 20
"""A call that takes fewer steps of the clock than this is timed to worse than 5%."""


@dataclass(frozen=True)
class PageJob:
    """What the page has to know: as measure.js reads it."""

    build: str
    threads: int
    provider: Mapping[str, Any]
    externalData: Sequence[str] = ()  # noqa: N815, read by JavaScript
    sessionOptions: Mapping[str, Any] = field(default_factory=dict)  # noqa: N815, read by JavaScript


class WebSession:
    """The model in the page: call it with ``{input name: array}`` to get ``{output name: array}``, as any runner."""

    def __init__(self, page: Page, server: PageServer, output_name: str, model_name: str) -> None:
        self._page = page
        self._server = server
        self._output_name = output_name
        self._model_name = model_name
        self._count = itertools.count()

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch and return the primary output.

        Raises:
            WorkerError: ONNX Runtime failed in the page, or the page died.
        """
        address = f"outputs/{next(self._count)}"
        with self._published(inputs) as described:
            told = self._step("run", [described, self._output_name, address])
        flat = np.frombuffer(self._server.received.pop(address), dtype=told["dtype"])
        return {self._output_name: flat.reshape(told["dims"])}

    def time(self, inputs: Mapping[str, Array], create_ns: int, rule: TimingRule) -> RawTiming:
        """Time single calls in the page; where warm-up ends is told here, by the rule of all targets."""
        with self._published(inputs) as described:
            first_run_ns = int(self._step("firstRun", [described]))
        return time_series(self._extend, len(next(iter(inputs.values()))), create_ns, first_run_ns, rule)

    def _extend(self, until: Until) -> list[int]:
        told = asdict(until) | {"max_s": until.max_s if math.isfinite(until.max_s) else None}
        samples: list[int] = self._step("timeUntil", [told])
        return samples

    @contextmanager
    def _published(self, inputs: Mapping[str, Array]) -> Iterator[list[dict[str, Any]]]:
        described: list[dict[str, Any]] = []
        for name, array in inputs.items():
            address = f"inputs/{next(self._count)}"
            self._server.published[address] = np.ascontiguousarray(array).tobytes()
            described.append({"name": name, "dtype": array.dtype.name, "dims": list(array.shape), "url": address})
        try:
            yield described
        finally:
            for value in described:
                del self._server.published[value["url"]]

    def _step(self, name: str, arguments: list[Any]) -> Any:
        with page_errors_as(WorkerError, f"{self._model_name} failed while running in the browser"):
            return self._page.evaluate(f"parts => monograph.{name}(...parts)", arguments)


def time_and_run_in_browser(
    kind: str,
    chromium: str,
    library: str,
    model: str,
    external_data: Mapping[str, str],
    provider_options: Mapping[str, str],
    contract_json: str,
    folder: str,
    settings: Mapping[str, Any],
    isolated: bool,
    streamed_row_count: int | None = None,
) -> dict[str, Any]:
    """Child side: load, time at each batch size, then run all rows once; returns raw nanoseconds.

    Args:
        kind: ``wasm`` or ``webgpu``.
        chromium: the browser's program.
        library: folder of ONNX Runtime Web's modules and WebAssembly.
        model: ONNX file.
        external_data: file by the location that the model calls it.
        provider_options: of ONNX Runtime Web's ``webgpu``.
        contract_json: the model's contract.
        folder: where the rows lie and the outputs go.
        settings: as for the processes of other targets.
        isolated: send the headers without which a page has neither threads nor the fine clock.
        streamed_row_count: how many rows come in chunks, where they do; the file of rows then holds those that are timed.

    Raises:
        MissingPackageError: playwright is not installed.
        SourceError: ONNX Runtime Web cannot load the model.
        WorkerError: the browser does not start, or the page fails.
    """
    contract = Contract.from_json(contract_json)
    rows_file = Path(folder) / ROWS_FILE
    rows = Rows.load(rows_file) if rows_file.exists() else None
    files = _served_files(Path(library), Path(model), list(external_data.values()))
    job = PageJob(BUILDS[kind], settings["threads"], {"name": kind, **provider_options}, list(external_data))
    with serving(files, isolated=isolated) as server, _opened(kind, chromium, server.url) as (browser, page):
        log: list[str] = []
        uncaught: list[str] = []
        page.on("console", lambda message: log.append(message.text))
        page.on("pageerror", lambda error: uncaught.append(f"the page reported an error: {_first_line(error.message)}"))
        create_ns = _load(page, job, Path(model).name)
        about = page.evaluate("() => monograph.about()")
        session = WebSession(page, server, contract.output.name, Path(model).name)
        is_emulated = kind == "webgpu" and (about["adapter"] is None or about["adapter"]["software"])
        sizes = possible_batch_sizes(contract, settings["batch_sizes"])
        rule = TimingRule(**settings["rule"])
        if is_emulated:
            rule = TimingRule(_EMULATED_RUNS, 0.0, rule.max_s, 0.0)
        timings = [
            session.time(timing_inputs(contract, rows, size), create_ns, rule) for size in (sizes[:1] if is_emulated else sizes)
        ]
        peak = _peak_memory_bytes(browser, kind)
        if streamed_row_count is not None:
            run_chunks(partial(run_all_rows, session, contract), Path(folder), Path(folder) / OUTPUTS_FILE, streamed_row_count)
        elif rows is not None:
            outputs = run_all_rows(session, contract, rows, settings["row_batches"])
            np.save(Path(folder) / OUTPUTS_FILE, outputs, allow_pickle=False)
        log.clear()
        page.evaluate("() => monograph.createVerbosely()")
        return {
            "timings": [asdict(_at_least_a_step(timing, about["clock_step_ns"])) for timing in timings],
            "placement": [asdict(placed) for placed in read_placement(log)],
            "peak_memory_bytes": peak,
            "browser": f"Chromium {browser.version}",
            "about": about,
            "is_emulated": is_emulated,
            "warnings": uncaught + (_clock_warnings(timings, about["clock_step_ns"]) if not is_emulated else []),
        }


@contextmanager
def page_errors_as(kind: type[SourceError] | type[WorkerError], what: str) -> Iterator[None]:
    """Turn what a page throws into one line of ours."""
    from playwright.sync_api import Error

    try:
        yield
    except Error as error:
        if "crashed" in error.message or "has been closed" in error.message:
            raise WorkerError(f"{what}: the page died, most likely for want of memory") from error
        raise kind(f"{what}: {_first_line(error.message)}") from error


def _first_line(message: str) -> str:
    line = message.strip().splitlines()[0] if message.strip() else "no reason given"
    return line.removeprefix("Page.evaluate: ").removeprefix("Error: ")


def _served_files(library: Path, model: Path, external_data: Sequence[str]) -> dict[str, Path]:
    here = Path(__file__).parent
    files = {name: here / name for name in ("page.html", "measure.js")} | {"model.onnx": model}
    files |= {f"data/{index}": Path(path) for index, path in enumerate(external_data)}
    return files | {f"ort/{path.name}": path for path in library.iterdir() if path.suffix in (".mjs", ".wasm")}


@contextmanager
def _opened(kind: str, chromium: str, url: str) -> Iterator[tuple[Browser, Page]]:
    """Start the browser with the page open; both are gone when the block ends.

    Raises:
        MissingPackageError: playwright is not installed.
        WorkerError: the browser does not start, or the page does not open.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise MissingPackageError("playwright is not installed: pip install playwright") from error
    with sync_playwright() as playwright:
        for flags in [()] if kind == "wasm" else [_WEBGPU, (*_WEBGPU, _SWIFTSHADER)]:
            browser = _launched(playwright, chromium, [*_QUIET, *flags])
            with page_errors_as(WorkerError, f"{chromium} did not open the page"):
                page = browser.new_page()
                page.goto(f"{url}page.html", timeout=_LOAD_TIMEOUT_MS, wait_until="load")
                has_gpu = page.evaluate("async () => Boolean(await navigator.gpu?.requestAdapter())")
            # A browser that finds no GPU mostly takes its software one by itself; where it does not, it is asked to.
            if kind == "wasm" or has_gpu or _SWIFTSHADER in flags:
                break
            browser.close()
        try:
            yield browser, page
        finally:
            browser.close()


def _launched(playwright: Playwright, chromium: str, flags: list[str]) -> Browser:
    from playwright.sync_api import Error

    try:
        return playwright.chromium.launch(executable_path=chromium, args=flags)
    except Error as error:
        # The browser's own last words stand far down in the log that playwright appends.
        fatal = (line.partition("FATAL:")[2] for line in error.message.splitlines() if "FATAL:" in line)
        raise WorkerError(f"{chromium} did not start: {next(fatal, _first_line(error.message))}") from error


def _load(page: Page, job: PageJob, model_name: str) -> int:
    with page_errors_as(WorkerError, f"the page could not load {job.build}"):
        page.evaluate("job => monograph.loadLibrary(job)", asdict(job))
    with page_errors_as(WorkerError, f"the page could not hold {model_name}"):
        page.evaluate("job => monograph.fetchModel(job)", asdict(job))
    with page_errors_as(SourceError, f"onnxruntime-web cannot load {model_name} with {job.provider['name']}"):
        return int(page.evaluate("() => monograph.create()"))


def _at_least_a_step(timing: RawTiming, clock_step_ns: int) -> RawTiming:
    """Write a call that began and ended within one step of the clock as one step, which it cannot have exceeded."""
    return replace(timing, samples_ns=tuple(max(sample, clock_step_ns) for sample in timing.samples_ns))


def _clock_warnings(timings: Sequence[RawTiming], clock_step_ns: int) -> list[str]:
    coarse = [timing for timing in timings if np.median(timing.samples_ns) < _COARSE_STEPS * clock_step_ns]
    return [
        f"batch {timing.batch_size}: a call takes about {np.median(timing.samples_ns) / 1e3:.0f} µs, and the page's clock steps "
        f"by {clock_step_ns / 1e3:.0f} µs"
        for timing in coarse
    ]


def _peak_memory_bytes(browser: Browser, kind: str) -> int | None:
    """Return the peak resident memory of the page's process, and with WebGPU of the GPU's; None where it cannot be told.

    The page's process is the largest renderer: the others are spare ones.
    """
    processes = browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]
    peaks: dict[str, int] = {}
    for process in processes:
        status = Path(f"/proc/{process['id']}/status")
        if not status.exists():
            return None
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
        peaks[process["type"]] = max(peaks.get(process["type"], 0), int(line.split()[1]) * 1024)
    return peaks["renderer"] + (peaks.get("GPU", 0) if kind == "webgpu" else 0)
