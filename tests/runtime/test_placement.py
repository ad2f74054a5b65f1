"""A figure under a target's name is that target's, or there is none."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from monograph.errors import ConfigError, MissingPackageError, PlacementError
from monograph.models.data.rows import Rows
from monograph.runtime.job import Job, RawRun, Settings, run_in_process
from monograph.runtime.measure import Contender, measure
from monograph.runtime.placement import check_placement, works
from monograph.runtime.provider_options import KNOWN_OPTIONS, check_options
from monograph.runtime.results import Placed
from monograph.runtime.session import open_session
from monograph.runtime.session_spec import SessionSpec
from monograph.runtime.targets import TARGETS, find_target

CPU = "CPUExecutionProvider"
OWN = "CUDAExecutionProvider"


def placed(provider: str, *op_types: str) -> Placed:
    return Placed(provider, tuple(f"{op_type}_{index}" for index, op_type in enumerate(op_types)), op_types, 1)


class TestWhatRanWhere:
    def test_all_on_the_target_is_no_word(self):
        assert check_placement([placed(OWN, "Conv", "Relu")], OWN, "cuda", allow_fallback=False) == []

    def test_small_operators_elsewhere_are_told(self):
        told = check_placement([placed(OWN, "MatMul"), placed(CPU, "Shape", "Gather")], OWN, "cuda", allow_fallback=False)
        assert told == [f"1 of 3 nodes ran on {OWN}, 2 on {CPU}"]

    @pytest.mark.parametrize(
        ("placement", "named"),
        [
            ([placed(CPU, "Conv", "Relu")], "Conv 'Conv_0'"),
            ([placed(CPU, "Relu")], "0 of 1 nodes"),
            ([placed(OWN, "Conv"), placed(CPU, "Conv", "FusedMatMul", "LSTM", "Gemm")], "LSTM 'LSTM_2' …"),
        ],
    )
    def test_work_elsewhere_is_an_error_that_names_it(self, placement: Sequence[Placed], named: str):
        with pytest.raises(PlacementError, match="cuda did not run the model") as refusal:
            check_placement(placement, OWN, "cuda", allow_fallback=False)
        if named.endswith("…"):
            assert "among them Conv 'Conv_0', FusedMatMul 'FusedMatMul_1', LSTM 'LSTM_2'" in str(refusal.value)
        else:
            assert named in str(refusal.value)
        assert "--allow-fallback" in str(refusal.value)
        assert refusal.value.exit_code == 1

    def test_a_strict_target_refuses_small_operators_too_and_names_the_work_first(self):
        placement = [placed(OWN, "MatMul"), placed(CPU, "DequantizeLinear", "Sinh", "LayerNormalization")]
        with pytest.raises(PlacementError, match=r"among them LayerNormalization .*, Sinh .*, DequantizeLinear"):
            check_placement(placement, OWN, "npu", allow_fallback=False, is_strict=True)
        shapes = [placed(OWN, "MatMul"), placed(CPU, "Shape")]
        with pytest.raises(PlacementError, match="among them Shape 'Shape_0'"):
            check_placement(shapes, OWN, "npu", allow_fallback=False, is_strict=True)

    def test_on_request_it_is_a_warning(self):
        (told,) = check_placement([placed(OWN, "Conv"), placed(CPU, "Conv")], OWN, "cuda", allow_fallback=True)
        assert "1 on CPUExecutionProvider (Conv 'Conv_0')" in told

    @pytest.mark.parametrize("op_type", ["Conv", "FusedConv", "QLinearConv", "MatMulNBits", "SkipLayerNormalization", "MaxPool"])
    def test_what_does_the_work(self, op_type: str):
        assert works(op_type)

    @pytest.mark.parametrize("op_type", ["Shape", "Gather", "Reshape", "Add", "Cast", "Concat"])
    def test_what_does_not(self, op_type: str):
        assert not works(op_type)


class TestPlantedFaults:
    """None of them may give a figure without a word."""

    def test_a_target_that_runs_something_else(self, classifier: Callable[..., Path], contender: Callable[[Path], Contender]):
        """A target whose provider took nothing: what a library that cannot load looks like from outside."""
        impostor = replace(find_target("cpu"), name="npu", provider="SomeNPUExecutionProvider")
        with pytest.raises(PlacementError, match="npu did not run the model: 0 of 1 nodes ran on SomeNPUExecutionProvider"):
            measure(contender(classifier()), impostor, None, Settings(batch_sizes=(1,)))

    def test_a_missing_target_is_refused_with_its_remedy(
        self, classifier: Callable[..., Path], contender: Callable[[Path], Contender]
    ):
        for target in TARGETS.values():
            here = target.probe()
            if here.is_here:
                continue
            assert here.remedy
            with pytest.raises(ConfigError, match=f"target {target.name} is not here"):
                measure(contender(classifier()), target, None, Settings(batch_sizes=(1,)))

    def test_a_library_that_cannot_be_loaded(
        self, tmp_path: Path, classifier: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ):
        (tmp_path / "broken_provider.py").write_text("def get_library_path():\n    return __file__\n", encoding="utf-8")
        monkeypatch.syspath_prepend(str(tmp_path))
        with pytest.raises(ConfigError, match="the library of BrokenExecutionProvider cannot be loaded"):
            open_session(classifier(), spec=SessionSpec("BrokenExecutionProvider", plugin="broken_provider"))

    def test_a_plugin_that_is_not_installed(self, classifier: Callable[..., Path]):
        with pytest.raises(MissingPackageError, match="pip install no-such-provider"):
            open_session(classifier(), spec=SessionSpec("NoneExecutionProvider", plugin="no_such_provider"))

    @pytest.mark.parametrize("provider", [provider for provider, names in KNOWN_OPTIONS.items() if names])
    def test_a_misspelt_option(self, provider: str):
        right = sorted(KNOWN_OPTIONS[provider])[0]
        check_options(provider, {right: "1"})
        with pytest.raises(ConfigError, match=f"{provider} has no option '{right}x': did you mean '"):
            check_options(provider, {right + "x": "1"})

    def test_a_misspelt_option_on_the_command_line(self, classifier: Callable[..., Path]):
        command = [sys.executable, "-m", "monograph", "measure", str(classifier()), "--provider-option", "use_arenna=0"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "CPUExecutionProvider has no option 'use_arenna': did you mean 'use_arena'?" in done.stderr
        assert done.stdout == ""

    def test_more_threads_than_cores(
        self, classifier: Callable[..., Path], contender: Callable[[Path], Contender], quick: Settings
    ):
        result = measure(contender(classifier()), find_target("cpu"), None, replace(quick, threads=64))
        assert any("64 threads on" in warning for warning in result.warnings)


def test_an_emulated_run_gives_accuracy_and_no_latency(
    classifier: Callable[..., Path], contender: Callable[[Path], Contender], quick: Settings, weights: np.ndarray
):
    from monograph.runtime.results import Evidence

    def emulate(job: Job) -> RawRun:
        return replace(run_in_process(job), evidence=Evidence.SIMULATED, device="an emulator")

    target = replace(find_target("cpu"), name="emulated", run=emulate)
    x = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)
    result = measure(contender(classifier()), target, Rows({"x": x}, (x @ weights).argmax(1)), quick)
    assert result.evidence is Evidence.SIMULATED
    assert result.latency is None
    assert result.throughput == ()
    assert result.emulation_s is not None
    assert result.emulation_s > 0
    assert result.accuracy is not None
    assert result.accuracy.top1.estimate == 1.0
    assert result.device == "an emulator"
