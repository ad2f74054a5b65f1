"""BatchNorm statistics of a soup, against PyTorch's and against numpy."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from monograph.errors import FusionError, ParityError
from monograph.export.fusion.fuse import FUSION_KEY
from monograph.export.fusion.soup import Souped, batchnorm, fuse_soup, plan_soup
from monograph.export.fusion.soup.batchnorm import Statistics
from monograph.export.fusion.soup.reference import check_statistics
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import OnnxFile
from monograph.models.students import conv
from monograph.runtime.session import open_session

Array = npt.NDArray[Any]
WriteModel = Callable[..., OnnxFile]
MakeSoup = Callable[..., Souped]


def fine_tuned(base: nn.Module, seed: int) -> nn.Module:
    """A copy with other weights and other statistics, as if trained further."""
    module, generator = copy.deepcopy(base).eval(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in [*module.parameters(), *(buffer for buffer in module.buffers() if buffer.dtype == torch.float32)]:
            tensor += 0.1 * torch.rand(tensor.shape, generator=generator)
    return module


def keep_batch_norm(module: nn.Module, path: Path, dynamo: bool) -> onnx.ModelProto:
    """Export without folding BatchNorm into the convolution before it, which both exporters do by default."""
    batch = torch.export.Dim("batch", min=1)
    options: dict[str, Any] = (
        {"dynamic_shapes": {"input": {0: batch}}, "optimize": False, "verbose": False}
        if dynamo
        else {"dynamic_axes": {"pixels": {0: "batch"}}, "training": torch.onnx.TrainingMode.PRESERVE}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = (torch.zeros(2, 1, 8, 8),)
        torch.onnx.export(
            module, example, path, input_names=["pixels"], output_names=["logits"], dynamo=dynamo, opset_version=18, **options
        )
    return onnx.load(path)


def averaged(base: nn.Module, members: list[nn.Module]) -> nn.Module:
    soup = copy.deepcopy(base).eval()
    states = [member.state_dict() for member in members]
    soup.load_state_dict(
        {name: torch.stack([state[name].double() for state in states]).mean(0).to(states[0][name].dtype) for name in states[0]}
    )
    return soup


def norms_of(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]


def statistics_in(path: Path) -> list[tuple[Array, Array]]:
    graph = onnx.load(str(path)).graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return [(tensors[node.input[3]], tensors[node.input[4]]) for node in graph.node if node.op_type == "BatchNormalization"]


@pytest.fixture
def pixels() -> Array:
    return np.random.default_rng(1).standard_normal((300, 1, 8, 8), dtype=np.float32)


@pytest.mark.parametrize("dynamo", [pytest.param(True, marks=pytest.mark.slow), False])
def test_as_pytorch_computes_them(write_model: WriteModel, make_soup: MakeSoup, tmp_path: Path, pixels: Array, dynamo: bool):
    torch.manual_seed(0)
    base = conv(input_shape=(1, 8, 8), width=4)[0].eval()
    members = [fine_tuned(base, seed) for seed in range(2)]
    exported = [keep_batch_norm(member, tmp_path / f"raw{seed}.onnx", dynamo) for seed, member in enumerate(members)]
    files = [write_model(f"m{seed}", proto) for seed, proto in enumerate(exported)]
    soup = make_soup(files, rows=Rows({"pixels": pixels}))
    assert soup.statistics_row_count == 300
    assert "statistics of 3 BatchNorm nodes are recomputed on 300 rows" in soup.plan.notes

    # One pass in training mode over all rows as one batch; momentum None is the cumulative average of one.
    reference = averaged(base, members)
    for norm in norms_of(reference):
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        reference(torch.from_numpy(pixels))
    # In that pass PyTorch normalises by the biased variance and stores the unbiased one, which is 1 / (300·64) larger.
    for (mean, variance), norm in zip(statistics_in(soup.file.path), norms_of(reference), strict=True):
        np.testing.assert_allclose(mean, norm.running_mean.numpy(), atol=1e-3)
        np.testing.assert_allclose(variance, norm.running_var.numpy(), rtol=1e-3)

    # Layer by layer in eval mode, each on what the layers before it give with their new statistics: the same numbers.
    exact = averaged(base, members)
    for norm in norms_of(exact):
        seen: list[torch.Tensor] = []
        hook = norm.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0].double()))
        with torch.no_grad():
            exact(torch.from_numpy(pixels))
        hook.remove()
        norm.running_mean.copy_(seen[0].mean((0, 2, 3)))
        norm.running_var.copy_(seen[0].var((0, 2, 3)))
    for (mean, variance), norm in zip(statistics_in(soup.file.path), norms_of(exact), strict=True):
        np.testing.assert_allclose(mean, norm.running_mean.numpy(), atol=1e-5)
        np.testing.assert_allclose(variance, norm.running_var.numpy(), rtol=1e-5)
    (got,) = open_session(soup.file.path)({"pixels": pixels}).values()
    with torch.no_grad():
        np.testing.assert_allclose(got, exact(torch.from_numpy(pixels)).numpy(), atol=1e-4)


def test_without_rows_they_are_averaged_and_that_is_said(write_model: WriteModel, make_soup: MakeSoup):
    files = [write_model(f"m{seed}", TWO_PATHS, arrays(seed)) for seed in range(2)]
    soup = make_soup(files)
    (first, *_) = statistics_in(soup.file.path)
    np.testing.assert_allclose(first[0], (arrays(0)["mean_a"] + arrays(1)["mean_a"]) / 2, rtol=1e-6)
    assert any("BatchNorm nodes are averaged like weights" in note for note in soup.plan.notes)
    assert soup.statistics_row_count == 0


TWO_PATHS = """<ir_version: 8, opset_import: ["": 20]>
net (float[batch, 3] x) => (float[batch, 4] y) {
  h = MatMul(x, w)
  a = BatchNormalization(h, scale, shift, mean_a, variance_a)
  r = Relu(a)
  g = MatMul(r, v)
  b = BatchNormalization(g, scale, shift, mean_b, variance_b)
  c = BatchNormalization(h, scale, shift, mean_b, variance_b)
  s = Sum(b, c, h)
  y = BatchNormalization(s, scale, shift, mean_a, variance_a)
}"""
"""Two BatchNorms of one level and one behind both; they share their statistics in the file."""


def arrays(seed: int) -> dict[str, Array]:
    start, step = np.random.default_rng(0), np.random.default_rng(10 + seed)
    shapes = {"w": (3, 4), "v": (4, 4)} | dict.fromkeys(("scale", "shift", "mean_a", "mean_b"), (4,))
    found = {name: start.standard_normal(shape) + 0.1 * step.standard_normal(shape) for name, shape in shapes.items()}
    found |= {name: 1 + step.random(4) for name in ("variance_a", "variance_b")}
    return {name: array.astype(np.float32) for name, array in found.items()}


def statistics_by_hand(x: Array) -> list[tuple[Array, Array]]:
    """Of the network TWO_PATHS with the mean of two members' weights, in float64."""
    weights = {name: (arrays(0)[name].astype(np.float64) + arrays(1)[name]) / 2 for name in ("w", "v", "scale", "shift")}
    found = []

    def norm(values: Array) -> Array:
        mean, variance = values.mean(0), values.var(0, ddof=1)
        found.append((mean, variance))
        return (values - mean) / np.sqrt(variance + 1e-5) * weights["scale"] + weights["shift"]

    h = x.astype(np.float64) @ weights["w"]
    b = norm(np.maximum(norm(h), 0) @ weights["v"])
    norm(b + norm(h) + h)
    return found


def test_paths_that_meet_and_statistics_that_were_shared(write_model: WriteModel, make_soup: MakeSoup):
    x = np.random.default_rng(3).standard_normal((150, 3), dtype=np.float32)
    files = [write_model(f"m{seed}", TWO_PATHS, arrays(seed)) for seed in range(2)]
    soup = make_soup(files, rows=Rows({"x": x}))
    for got, expected in zip(statistics_in(soup.file.path), statistics_by_hand(x), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_the_file_tells_on_which_rows(write_model: WriteModel, make_soup: MakeSoup):
    rows = Rows({"x": np.random.default_rng(3).standard_normal((150, 3), dtype=np.float32)})
    files = [write_model(f"m{seed}", TWO_PATHS, arrays(seed)) for seed in range(2)]
    record = json.loads(make_soup(files, rows=rows).file.metadata[FUSION_KEY])
    assert record["batch_norm"] == {"node_count": 4, "recomputed_on": {"row_count": 150, "rows_sha256": rows.sha256()}}


def test_no_more_rows_than_fit_into_memory(write_model: WriteModel, make_soup: MakeSoup, monkeypatch: pytest.MonkeyPatch):
    # Three arrays of four float32 a row are the most that is kept from one step and the next together.
    monkeypatch.setattr(batchnorm, "_MOST_BYTES", 100 * 3 * 4 * 4)
    x = np.sort(np.random.default_rng(3).standard_normal((150, 3), dtype=np.float32), axis=0)
    files = [write_model(f"m{seed}", TWO_PATHS, arrays(seed)) for seed in range(2)]
    soup = make_soup(files, rows=Rows({"x": x}))
    assert 64 <= soup.statistics_row_count < 150
    drawn = batchnorm.draw_rows(Rows({"x": x}), soup.statistics_row_count).inputs["x"]
    assert drawn.mean() == pytest.approx(x.mean(), abs=0.1)  # not the first, which are the smallest
    for got, expected in zip(statistics_in(soup.file.path), statistics_by_hand(drawn), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_inside_a_branch_they_are_averaged_and_that_is_said(write_model: WriteModel, make_soup: MakeSoup):
    text = """<ir_version: 8, opset_import: ["": 20]>
    net (float[batch, 4] x, bool flag) => (float[batch, 4] y) {
      y = If (flag) <
        then_branch = yes () => (float[batch, 4] p) { p = BatchNormalization(x, scale, shift, mean_a, variance_a) },
        else_branch = no () => (float[batch, 4] q) { q = Identity(x) }
      >
    }"""
    files = [
        write_model(f"m{seed}", text, {name: arrays(seed)[name] for name in ("scale", "shift", "mean_a", "variance_a")})
        for seed in range(2)
    ]
    soup = make_soup(files)
    assert "statistics of 1 BatchNorm nodes inside an If, Loop or Scan are averaged like weights" in soup.plan.notes


def test_a_plan_that_recomputes_needs_its_rows(write_model: WriteModel, tmp_path: Path):
    rows = Rows({"x": np.random.default_rng(3).standard_normal((150, 3), dtype=np.float32)})
    plan = plan_soup([write_model(f"m{seed}", TWO_PATHS, arrays(seed)) for seed in range(2)], rows=rows)
    with pytest.raises(FusionError, match="the plan recomputes statistics of 4 BatchNorm nodes, and no rows are given"):
        fuse_soup(plan, tmp_path / "soup.onnx")
    assert not (tmp_path / "soup.onnx").exists()


def test_a_fixed_batch_size(write_model: WriteModel, make_soup: MakeSoup):
    x = np.random.default_rng(3).standard_normal((150, 3), dtype=np.float32)
    files = [write_model(f"m{seed}", TWO_PATHS.replace("batch,", "40,"), arrays(seed)) for seed in range(2)]
    soup = make_soup(files, rows=Rows({"x": x}))
    assert soup.statistics_row_count == 120  # whole batches only
    for got, expected in zip(statistics_in(soup.file.path), statistics_by_hand(x[:120]), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(FusionError, match="30 rows do not fill the fixed batch of 40"):
        make_soup(files, rows=Rows({"x": x[:30]}))


def test_a_member_by_itself_keeps_its_own(write_model: WriteModel, make_soup: MakeSoup):
    x = np.random.default_rng(3).standard_normal((150, 3), dtype=np.float32)
    files = [write_model(f"m{seed}", TWO_PATHS, arrays(seed)) for seed in range(2)]
    soup = make_soup(files, weights=(1, 0), rows=Rows({"x": x}))
    np.testing.assert_array_equal(statistics_in(soup.file.path)[0][0], arrays(0)["mean_a"])


def test_a_member_twice_keeps_its_own(write_model: WriteModel, make_soup: MakeSoup):
    x = np.random.default_rng(3).standard_normal((150, 3), dtype=np.float32)
    soup = make_soup([write_model(name, TWO_PATHS, arrays(0)) for name in ("a", "b")], rows=Rows({"x": x}))
    for got, name in zip(statistics_in(soup.file.path), "abba", strict=True):
        np.testing.assert_array_equal(got, (arrays(0)[f"mean_{name}"], arrays(0)[f"variance_{name}"]))
    assert soup.statistics_row_count == 0


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((1, 3), np.float32), "sees a single value a channel: give more rows"),
        (np.full((9, 3), np.nan, np.float32), "normalises is not finite on these rows"),
    ],
)
def test_rows_that_have_no_statistics(write_model: WriteModel, make_soup: MakeSoup, x: Array, message: str):
    files = [write_model(f"m{seed}", TWO_PATHS, arrays(seed)) for seed in range(2)]
    with pytest.raises(FusionError, match=message):
        make_soup(files, rows=Rows({"x": x}))


def test_wrong_statistics_are_seen(write_model: WriteModel):
    """Those of the layers before, had they kept the averaged statistics, are wrong: the order matters."""
    x = np.random.default_rng(3).standard_normal((150, 3), dtype=np.float32)
    member = write_model("m", TWO_PATHS, arrays(0))
    h = x @ arrays(0)["w"]
    right: Mapping[str, Statistics] = {"c": Statistics(h.mean(0), h.var(0, ddof=1))}
    check_statistics(member.path, member.contract, Rows({"x": x}), right)
    for factor in (0.99, 1.01):
        with pytest.raises(ParityError, match="BatchNorm 'c' of the soup does not see the statistics that it was given"):
            check_statistics(
                member.path, member.contract, Rows({"x": x}), {"c": Statistics(h.mean(0), factor * h.var(0, ddof=1))}
            )
