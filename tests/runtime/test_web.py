import dataclasses
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import psutil
import pytest
from onnx import numpy_helper
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from monograph.errors import ConfigError, MissingPackageError, PlacementError, SourceError, WorkerError
from monograph.models.contract import Contract, Kind, TensorSpec
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import read_onnx
from monograph.runtime.job import Contender, Job, Settings
from monograph.runtime.measure import measure, onnx_contender
from monograph.runtime.results import Evidence
from monograph.runtime.targets import find_target
from monograph.runtime.targets.web import run_in_browser
from monograph.runtime.timing import TimingRule
from monograph.runtime.web.package import FOLDER_VARIABLE, find_library, install_library, pinned_version
from monograph.runtime.web.placement import UNNAMED, read_placement
from monograph.runtime.web.server import serving

WASM, WEBGPU, CPU = find_target("web-wasm"), find_target("web-webgpu"), find_target("cpu")
HERE = WASM.probe()
QUICK = Settings(batch_sizes=(1, 4), threads=2, rule=TimingRule(min_runs=40, min_s=0.0, max_s=5.0, warmup_s=0.0))


def in_browser(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.browser(pytest.mark.skipif(not HERE.is_here, reason=HERE.describe())(test))


def contender_of(path: Path) -> Contender:
    file = read_onnx(path)
    return onnx_contender(path.stem, path, file.contract, file.sha256, file.size_bytes, WASM)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows]:
    """A convolutional network that knows scikit-learn's digits, and 500 rows that it has not seen.

    Its filters are random; what follows them has been fitted.
    """
    data = load_digits()
    x = (data.images[:, None] / 16).astype(np.float32)
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 18]> digits (float[batch, 1, 8, 8] pixels) => (float[batch, 10] logits) {
            a = Conv <pads = [1, 1, 1, 1]> (pixels, W0, B0)
            b = Relu (a)
            c = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (b, W1)
            d = Relu (c)
            features = Flatten (d)
            logits = Gemm <transB = 1> (features, W2, B2)
        }"""
    )
    weights = {
        "W0": rng.standard_normal((16, 1, 3, 3)) / 3,
        "B0": rng.standard_normal(16) / 3,
        "W1": rng.standard_normal((16, 16, 3, 3)) / 12,
        "W2": np.zeros((10, 256)),
        "B2": np.zeros(10),
    }
    with_weights(model, weights)
    model.graph.output.append(onnx.helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, ["batch", 256]))
    (features,) = ort.InferenceSession(model.SerializeToString()).run(["features"], {"pixels": x})
    del model.graph.output[-1]
    head = LogisticRegression(max_iter=300).fit(features[500:], data.target[500:])
    with_weights(model, weights | {"W2": head.coef_, "B2": head.intercept_})
    path = tmp_path_factory.mktemp("web") / "digits.onnx"
    onnx.save(model, path)
    return path, Rows({"pixels": x[:500]}, data.target[:500])


def with_weights(model: onnx.ModelProto, weights: dict[str, np.ndarray]) -> None:
    del model.graph.initializer[:]
    model.graph.initializer.extend(numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items())


def model_of(tmp_path: Path, text: str, **initializers: np.ndarray) -> Path:
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 18]> {text}')
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in initializers.items())
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    return path


@in_browser
def test_web_assembly_computes_what_the_processor_computes(digits: tuple[Path, Rows]):
    path, rows = digits
    job = Job(contender_of(path), rows, QUICK)
    run, reference = WASM.run(job), CPU.run(job)
    np.testing.assert_allclose(run.outputs, reference.outputs, rtol=1e-3, atol=1e-5)
    assert run.outputs.dtype == np.float32
    assert (run.outputs.argmax(axis=1) == rows.labels).mean() > 0.9

    assert run.evidence is Evidence.EXECUTED
    assert [placed.provider for placed in run.placement] == ["CPUExecutionProvider"]
    assert "cross-origin isolated" in run.device
    assert "Chromium" in run.device
    assert f"onnxruntime-web {pinned_version()}" in run.device
    assert run.peak_memory_bytes > 50e6

    assert [timing.batch_size for timing in run.timings] == [1, 4]
    for timing in run.timings:
        assert len(timing.samples_ns) == 40
        assert timing.create_ns > 0
        # An isolated page's clock steps by 5 µs.
        assert all(sample > 0 and sample % 5000 == 0 for sample in timing.samples_ns)


@in_browser
def test_webgpu_computes_what_the_processor_computes(digits: tuple[Path, Rows]):
    path, rows = digits
    rows = rows.take(slice(0, 96))  # a GPU that is emulated is slow
    contender = contender_of(path)
    result, reference = (measure(contender, target, rows, QUICK) for target in (WEBGPU, CPU))
    assert result.accuracy.top1.estimate == pytest.approx(reference.accuracy.top1.estimate, abs=1 / 96)
    assert result.accuracy.nll == pytest.approx(reference.accuracy.nll, rel=1e-3)
    assert set(result.nodes_per_provider) == {"WebGpuExecutionProvider"}
    assert "GPU " in result.device
    is_software = "(software)" in result.device
    assert result.evidence is (Evidence.SIMULATED if is_software else Evidence.EXECUTED)
    assert (result.latency is None) == is_software
    assert (result.emulation_s is not None) == is_software


@in_browser
def test_a_node_that_webgpu_cannot_take_is_named_and_refused(tmp_path: Path):
    rng = np.random.default_rng(0)
    path = model_of(
        tmp_path,
        """g (float[batch, 4] x) => (float[batch, 3] logits) {
            axis = Constant <value = int64[1] {0}> ()
            steps = Unsqueeze (x, axis)
            y, h = RNN <hidden_size = 3> (steps, W, R)
            logits = Squeeze (h, axis)
        }""",
        W=rng.standard_normal((1, 3, 4)).astype(np.float32),
        R=rng.standard_normal((1, 3, 3)).astype(np.float32),
    )
    with pytest.raises(PlacementError, match=r"web-webgpu did not run the model: .* 1 on CPUExecutionProvider, among them RNN"):
        measure(contender_of(path), WEBGPU, None, QUICK)


@in_browser
def test_tensors_of_other_dtypes_cross_unchanged(tmp_path: Path):
    path = model_of(
        tmp_path,
        "g (int64[batch, 2] a, uint8[batch, 2] b, float16[batch, 2] c, bool[batch, 2] d, int32[batch, 2] e, double[batch, 2] f)"
        """ => (int64[batch, 12] y) {
            b64 = Cast <to = 7> (b)
            c64 = Cast <to = 7> (c)
            d64 = Cast <to = 7> (d)
            e64 = Cast <to = 7> (e)
            f64 = Cast <to = 7> (f)
            y = Concat <axis = 1> (a, b64, c64, d64, e64, f64)
        }""",
    )
    inputs = {
        "a": np.array([[2**62 + 1, -(2**62) - 1], [7, -7]]),  # no float holds these
        "b": np.array([[0, 255], [1, 2]], dtype=np.uint8),
        "c": np.array([[2048, -5], [0, 3]], dtype=np.float16),
        "d": np.array([[True, False], [False, True]]),
        "e": np.array([[-(2**31), 2**31 - 1], [0, 5]], dtype=np.int32),
        "f": np.array([[2.0**40, -1.0], [0.0, 9.0]]),
    }
    run = WASM.run(Job(contender_of(path), Rows(inputs), QUICK))
    assert run.outputs.dtype == np.int64
    np.testing.assert_array_equal(run.outputs, np.concatenate([array.astype(np.int64) for array in inputs.values()], axis=1))


@in_browser
def test_a_half_precision_model_with_external_data_and_a_fixed_batch(tmp_path: Path):
    weights = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float16)
    path = model_of(tmp_path, "g (float16[2, 4] x) => (float16[2, 3] logits) { logits = MatMul (x, W) }", W=weights)
    onnx.save(
        onnx.load(path), path, save_as_external_data=True, all_tensors_to_one_file=True, location="w.data", size_threshold=0
    )
    assert (tmp_path / "w.data").stat().st_size >= weights.nbytes
    x = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float16)
    run = WASM.run(Job(contender_of(path), Rows({"x": x}), QUICK))
    assert run.outputs.dtype == np.float16
    assert run.outputs.shape == (5, 3)
    np.testing.assert_allclose(run.outputs.astype(float), x.astype(float) @ weights.astype(float), rtol=5e-3, atol=5e-3)
    assert [timing.batch_size for timing in run.timings] == [2]


@in_browser
def test_a_page_without_the_headers_is_told_and_runs_on_one_thread(digits: tuple[Path, Rows]):
    path, _ = digits
    run = run_in_browser(Job(contender_of(path), None, QUICK), "wasm", isolated=False)
    assert any("not cross-origin isolated" in warning and "100 µs" in warning for warning in run.warnings)
    assert "1 threads" in run.device
    assert run.outputs is None
    assert all(sample > 0 for timing in run.timings for sample in timing.samples_ns)


@in_browser
def test_a_model_that_the_browser_cannot_load_is_one_line(digits: tuple[Path, Rows], tmp_path: Path):
    contender = contender_of(digits[0])
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(digits[0].read_bytes())
    model = onnx.load(damaged)
    model.graph.node[1].op_type = "NoSuchOperator"
    onnx.save(model, damaged)
    with pytest.raises(SourceError, match=r"^onnxruntime-web cannot load damaged.onnx with wasm: .*NoSuchOperator") as caught:
        WASM.run(Job(dataclasses.replace(contender, path=damaged), None, QUICK))
    assert "\n" not in str(caught.value)


def damaged_library(folder: Path, first_line: str) -> None:
    """Write a copy of the installed onnxruntime-web whose module for WebAssembly begins with ``first_line``."""
    package = folder / "node_modules" / "onnxruntime-web"
    shutil.copytree(find_library(), package / "dist", ignore=shutil.ignore_patterns("*.map", "*.js", "*jsep*", "*asyncify*"))
    (package / "package.json").write_text(json.dumps({"version": pinned_version()}))
    module = package / "dist" / "ort.wasm.min.mjs"
    module.write_text(f"{first_line}\n{module.read_text()}")


@in_browser
def test_an_error_that_the_page_does_not_catch_is_a_warning(
    digits: tuple[Path, Rows], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    damaged_library(tmp_path, "setTimeout(() => { throw new Error('planted'); }, 0);")
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    run = WASM.run(Job(contender_of(digits[0]), None, QUICK))
    assert "the page reported an error: planted" in run.warnings


@in_browser
def test_a_page_that_fails_is_an_error_with_its_text(digits: tuple[Path, Rows], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    damaged_library(tmp_path, "throw new Error('planted');")
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    with pytest.raises(WorkerError, match=r"^the page could not load ort.wasm.min.mjs: planted$"):
        WASM.run(Job(contender_of(digits[0]), None, QUICK))


@in_browser
def test_rows_that_do_not_fit_fail_while_running(digits: tuple[Path, Rows]):
    rows = Rows({"pixels": np.zeros((3, 1, 8, 9), np.float32)})
    with pytest.raises(WorkerError, match=r"^digits.onnx failed while running in the browser: .*pixels"):
        WASM.run(Job(contender_of(digits[0]), rows, QUICK))


@in_browser
def test_an_interrupt_leaves_no_browser_and_no_files(digits: tuple[Path, Rows]):
    command = [sys.executable, "-m", "monograph", "measure", str(digits[0]), "--on", "web-wasm", "--min-runs", "100000000"]
    family: list[psutil.Process] = []
    # Not below pytest's folder: Chromium refuses one whose path is too long for a socket in it.
    with tempfile.TemporaryDirectory() as scratch:
        environment = os.environ | {"TMPDIR": scratch, "PYTHONPATH": os.pathsep.join(sys.path)}
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as started:
            try:
                deadline = time.monotonic() + 60
                while not any("--type=renderer" in part for child in family for part in _command_line(child)):
                    assert time.monotonic() < deadline
                    assert started.poll() is None
                    time.sleep(0.2)
                    family = psutil.Process(started.pid).children(recursive=True)
                started.send_signal(signal.SIGINT)
                assert started.wait(timeout=60) == 130
            finally:
                started.kill()
        _, alive = psutil.wait_procs(family, timeout=20)
        assert [child for child in alive if child.status() != psutil.STATUS_ZOMBIE] == []
        assert list(Path(scratch).iterdir()) == []


@in_browser
def test_a_browser_that_does_not_start_says_why(digits: tuple[Path, Rows], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("long" * 20)))
    (tmp_path / ("long" * 20)).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", None)
    with pytest.raises(WorkerError, match=r"did not start: .*Socket path too long"):
        WASM.run(Job(contender_of(digits[0]), None, QUICK))


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def test_installing_without_npm_says_where_npm_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "web"))
    with pytest.raises(ConfigError, match=r"npm is not installed.*apt-get install npm"):
        install_library()
    assert list(tmp_path.iterdir()) == []


def test_an_npm_that_fails_installs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error code EINTEGRITY' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "web"))
    with pytest.raises(WorkerError, match=rf"npm could not bring onnxruntime-web {pinned_version()}: npm error code EINTEGRITY"):
        install_library()
    assert list(tmp_path.iterdir()) == [npm]


@pytest.mark.parametrize("target", [WASM, WEBGPU])
def test_without_the_npm_package_the_error_carries_the_command(
    target, digits: tuple[Path, Rows], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "nowhere"))
    here = target.probe()
    assert not here.is_here
    assert f"onnxruntime-web {pinned_version()}" in here.detail
    with pytest.raises(ConfigError, match=r"is not here: .*monograph targets --install web-wasm"):
        measure(contender_of(digits[0]), target, None, QUICK)


def test_another_version_of_the_npm_package_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "node_modules" / "onnxruntime-web"
    package.mkdir(parents=True)
    (package / "package.json").write_text('{"version": "1.0.0"}')
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    with pytest.raises(MissingPackageError, match=rf"1\.0\.0 is installed, {pinned_version()} is pinned"):
        find_library()


def test_a_browser_that_is_not_there_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MONOGRAPH_CHROMIUM", "no-such-browser")
    here = WASM.probe()
    assert not here.is_here
    assert "no Chromium" in here.detail
    assert "apt-get install chromium" in str(here.remedy)


def test_text_cannot_cross(digits: tuple[Path, Rows]):
    contender = contender_of(digits[0])
    spec = TensorSpec("words", "str", ("batch",))
    texts = dataclasses.replace(contender, contract=Contract((spec,), contender.contract.outputs, Kind.LOGITS))
    with pytest.raises(ConfigError, match=r"web-wasm cannot pass 'words' of digits, which is str: it takes float32"):
        WASM.run(Job(texts, None, QUICK))


@pytest.mark.parametrize(("target", "option"), [(WASM, "preferredLayout"), (WEBGPU, "preferedLayout")])
def test_an_option_that_the_browser_does_not_know_is_refused(target, option: str, digits: tuple[Path, Rows]):
    contender = contender_of(digits[0])
    arguments = {**contender.loader_arguments, "spec": {**contender.loader_arguments["spec"], "options": {option: "NHWC"}}}
    with pytest.raises(ConfigError, match=rf"{target.name} has no provider option '{option}'"):
        target.run(Job(dataclasses.replace(contender, loader_arguments=arguments), None, QUICK))


LINE = "2026-11-24 21:54:48.80 [V:onnxruntime:, session_state.cc:1380 VerifyEachNodeIsAssignedToAnEp] "


def test_placement_on_one_provider_is_counted():
    (placed,) = read_placement(
        [LINE + "Node placements", LINE + " All nodes placed on [WebGpuExecutionProvider]. Number of nodes: 3"]
    )
    assert (placed.provider, placed.nodes, placed.partition_count) == ("WebGpuExecutionProvider", (UNNAMED,) * 3, 1)


def test_placement_on_two_providers_is_named():
    placement = read_placement(
        [
            LINE + "Node placements",
            LINE + " Node(s) placed on [CPUExecutionProvider]. Number of nodes: 1",
            LINE + "  Einsum (node (of) mine)",
            "something else (not a node)",
            LINE + " Node(s) placed on [WebGpuExecutionProvider]. Number of nodes: 2",
            LINE + "  Conv ()",
            LINE + "  MemcpyFromHost (Memcpy_token_1)",
        ]
    )
    assert [(placed.provider, placed.nodes, placed.op_types, placed.partition_count) for placed in placement] == [
        ("CPUExecutionProvider", ("node (of) mine",), ("Einsum",), 1),
        ("WebGpuExecutionProvider", ("Conv", "Memcpy_token_1"), ("Conv", "MemcpyFromHost"), 2),
    ]
    assert read_placement(["nothing of the kind"]) == ()


def test_the_server_serves_what_it_was_given_below_its_secret_path_and_nothing_else(tmp_path: Path):
    (tmp_path / "page.html").write_text("<p>here</p>")
    with serving({"page.html": tmp_path / "page.html"}) as server:
        address = urlsplit(server.url)
        assert address.hostname == "127.0.0.1"
        connection = http.client.HTTPConnection("127.0.0.1", address.port)

        def ask(path: str, method: str = "GET") -> http.client.HTTPResponse:
            connection.request(method, path, body=b"x" if method == "POST" else None)
            response = connection.getresponse()
            response.text = response.read().decode()
            return response

        page = ask(f"{address.path}page.html")
        assert (page.status, page.text) == (200, "<p>here</p>")
        assert page.headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert page.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        for path in ("/page.html", "/", address.path, f"{address.path}../page.html", f"{address.path}/etc/passwd"):
            assert ask(path).status == 404
        assert ask("/outputs/0", "POST").status == 404
        assert server.received == {}
        connection.close()
    with pytest.raises(ConnectionRefusedError):
        connection.connect()
