"""Members that are too large to be held, on a small scale: what a fusion and its proof keep in memory.

``benchmarks/large_models.py`` measures the same with 3 GB.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from monograph.errors import FusionError, ParityError
from monograph.export.fusion import Fused, fuse, plan_fusion
from monograph.export.fusion.build import build_graph
from monograph.models.onnx_file import OnnxFile, read_onnx
from monograph.runtime import apart
from monograph.runtime.session import open_session

WriteModel = Callable[..., OnnxFile]
WIDTH, LAYERS = 2048, 8
LARGEST_BYTES = WIDTH * WIDTH * 4
MEMBER_BYTES = LAYERS * LARGEST_BYTES

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

FUSE = """
import json, sys
from pathlib import Path
from monograph.export.fusion import fuse, plan_fusion
from monograph.models.onnx_file import read_onnx
from monograph.runtime import apart, session
from monograph.runtime.runner import peak_memory_bytes

apart.LARGEST_HELD_BYTES = int(sys.argv[1])
before = peak_memory_bytes()
files = [read_onnx(Path(path)) for path in sys.argv[3:]]
fused = fuse(plan_fusion(files), Path(sys.argv[2]))
print(json.dumps({"grown_bytes": peak_memory_bytes() - before, "worst": fused.proof.worst.relative_error}))
"""

RUN_MAPPED = """
import sys
from pathlib import Path
import numpy as np
from monograph.runtime.session import open_session

session = open_session(Path(sys.argv[1]), mapped=True)
session({"x": np.ones((3, int(sys.argv[2])), np.float32)})
status = Path("/proc/self/status").read_text().splitlines()
print(int(next(line for line in status if line.startswith("RssAnon")).split()[1]) * 1024)
"""


def write_stack(path: Path, seed: int, *, external: bool) -> Path:
    """128 MB of linear layers, the first half of them the same for every seed."""
    nodes, tensors, value = [], [], "x"
    for layer in range(LAYERS):
        rng = np.random.default_rng(layer if layer < LAYERS // 2 else 100 * seed + layer)
        weight = rng.standard_normal((WIDTH, WIDTH), dtype=np.float32) / np.float32(WIDTH**0.5)
        tensors.append(numpy_helper.from_array(weight, f"w{layer}"))
        nodes.append(helper.make_node("MatMul", [value, f"w{layer}"], [f"h{layer}"]))
        value = f"h{layer}"
    nodes.append(helper.make_node("Softmax", [value], ["probabilities"]))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", WIDTH]) for name in ("x", "probabilities")]
    graph = helper.make_graph(nodes, "stack", ends[:1], ends[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.parent.mkdir()
    onnx.save(model, path, save_as_external_data=external, location="model.onnx.data")
    return path


def run_script(script: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, check=False, cwd=Path.cwd()
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@linux
@pytest.mark.slow
@pytest.mark.parametrize("external", [True, False])
def test_neither_process_holds_the_members(external: bool, tmp_path: Path):
    members = [write_stack(tmp_path / str(seed) / "model.onnx", seed, external=external) for seed in (1, 2)]
    target = tmp_path / "out" / "fused.onnx"
    result = json.loads(run_script(FUSE, MEMBER_BYTES, target, *members))
    assert result["grown_bytes"] < MEMBER_BYTES / 2, "neither a member nor the fused graph was read into memory"
    assert result["worst"] < 1e-5
    assert 1.4 * MEMBER_BYTES < target.stat().st_size < 1.6 * MEMBER_BYTES
    for path in (members[0], target):
        assert int(run_script(RUN_MAPPED, path, WIDTH)) < MEMBER_BYTES, path
    x = np.random.default_rng(0).standard_normal((2, WIDTH)).astype(np.float32)
    expected = np.mean([open_session(path)({"x": x})["probabilities"] for path in members], axis=0)
    np.testing.assert_allclose(open_session(target)({"x": x})["probabilities"], expected, atol=1e-6)


class TestRunApart:
    """Small members, told to be too large: the route is the same."""

    @pytest.fixture(autouse=True)
    def _all_are_large(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(apart, "LARGEST_HELD_BYTES", 0)

    def test_members_and_the_fused_graph_each_in_one_process(
        self,
        write_linear: WriteModel,
        fuse_files: Callable[..., Fused],
        assert_weighted_sum: Callable[..., None],
        monkeypatch: pytest.MonkeyPatch,
    ):
        started: list[str] = []
        call = apart.call_in_fresh_process

        def watched(function: str, arguments: dict[str, str]) -> None:
            started.append(arguments["path"])
            call(function, arguments)

        monkeypatch.setattr(apart, "call_in_fresh_process", watched)
        files = [write_linear("a"), write_linear("b", seed=1)]
        fused = fuse_files(files, weights=(0.25, 0.75))
        assert [Path(path).name for path in started] == ["a.onnx", "b.onnx", "fused.onnx"]
        assert [batch.batch_size for batch in fused.proof.batches] == [1, 2, 5, 16]
        assert_weighted_sum(fused, files)

    def test_a_difference_is_still_seen(self, write_linear: WriteModel, fuse_files: Callable[..., Fused]):
        with pytest.raises(ParityError, match="nothing was written"):
            fuse_files([write_linear("a"), write_linear("b", seed=1)], tolerance=-1)

    def test_a_member_that_fails_is_named(
        self, write_linear: WriteModel, write_model: WriteModel, fuse_files: Callable[..., Fused]
    ):
        text = """<ir_version: 8, opset_import: ["": 20]> m (float[batch, 4] x) => (float[batch, 3] logits)
            { r = Reshape(x, shape) logits = MatMul(r, w) }"""
        arrays = {"w": np.ones((4, 3), np.float32), "shape": np.array([2, 4])}
        files = [write_linear("good"), write_model("baked", text, arrays, checked=False)]
        with pytest.raises(FusionError, match=r"^baked does not run on") as info:
            fuse_files(files)
        assert "\n" not in str(info.value)


@pytest.mark.parametrize("inline_limit", [10**9, 1000])
def test_weights_stay_on_disk_until_they_are_written(inline_limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("monograph.models.onnx_lazy.LARGE_FILE_BYTES", 1)
    monkeypatch.setattr("monograph.models.onnx_lazy.LARGE_TENSOR_BYTES", 1)
    monkeypatch.setattr("monograph.models.onnx_file.LARGE_TENSOR_BYTES", 1)
    monkeypatch.setattr("monograph.models.onnx_file.LARGEST_INLINE_BYTES", inline_limit)
    files = []
    for seed in (1, 2):
        weight = np.random.default_rng(seed).standard_normal((4, 40)).astype(np.float32)
        nodes = [helper.make_node("MatMul", ["x", "w"], ["logits"])]
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("x", 4), ("logits", 40))]
        graph = helper.make_graph(nodes, "m", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=8)
        onnx.save(model, tmp_path / f"m{seed}.onnx")
        files.append(read_onnx(tmp_path / f"m{seed}.onnx"))
    plan = plan_fusion(files, share=False)
    weights = [value.const_value for name, value in build_graph(plan)[0].graph.initializers.items() if name.endswith("/w")]
    assert [type(weight).__name__ for weight in weights] == ["ExternalTensor"] * 2
    fused = fuse(plan, tmp_path / "out" / "fused.onnx")
    assert len(list((tmp_path / "out").iterdir())) == (1 if inline_limit > 1000 else 2)
    assert fused.proof.worst.relative_error < 1e-5
