"""Where the time of a call goes: on planted events, and by ONNX Runtime on real graphs."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from monograph.runtime.measure import Contender, Settings, measure
from monograph.runtime.profiling import read_profile, with_members
from monograph.runtime.results import Profile, Share
from monograph.runtime.targets import find_target
from monograph.runtime.timing import TimingRule

CPU = "CPUExecutionProvider"


def event(name: str, begin_us: int, duration_us: int, op_type: str = "", thread: int = 1) -> dict:
    kind = {"op_name": op_type, "provider": CPU} if op_type else {}
    return {"name": name, "ts": begin_us, "dur": duration_us, "tid": thread, "args": kind}


def write(path: Path, events: list[dict]) -> Path:
    path.write_text(json.dumps(events))
    return path


def total(shares: tuple[Share, ...]) -> float:
    return sum(share.seconds for share in shares)


def adds_up(profile: Profile) -> None:
    """Nodes and each grouping make the same sum, and with what is outside of them the call."""
    assert sum(node.seconds for node in profile.nodes) == pytest.approx(profile.nodes_s)
    for shares in (profile.by_op_type, profile.by_provider, *([profile.by_members] if profile.by_members else [])):
        assert total(shares) == pytest.approx(profile.nodes_s)
        assert sum(share.share for share in shares) == pytest.approx(1)
        assert sum(share.node_count for share in shares) == len(profile.nodes)
    assert profile.nodes_s + profile.outside_nodes_s == pytest.approx(profile.call_s)


def test_warm_up_is_left_out_and_times_are_means_of_calls(tmp_path: Path):
    events = [event("session_initialization", 0, 5000)]
    for number, (conv, relu) in enumerate([(900, 90), (100, 10), (200, 30)]):
        begin = 10_000 * (number + 1)
        events += [
            event("conv_fence_before", begin, 1),
            event("conv_kernel_time", begin + 1, conv, "Conv"),
            event("relu_kernel_time", begin + 1000, relu, "Relu"),
            event("model_run", begin, 1100),
        ]
    profile = read_profile(write(tmp_path / "p.json", events), 1, 4)
    assert (profile.batch_size, profile.run_count) == (4, 2)
    assert profile.call_s == pytest.approx(1.1e-3)
    assert [(node.name, node.op_type) for node in profile.nodes] == [("conv", "Conv"), ("relu", "Relu")]
    assert [node.seconds for node in profile.nodes] == pytest.approx([150e-6, 20e-6])
    assert profile.by_op_type[0].share == pytest.approx(150 / 170)
    assert profile.by_members == ()
    adds_up(profile)


def test_what_runs_in_a_branch_is_not_counted_twice(tmp_path: Path):
    """An If of 100 µs that holds a Conv of 60 and an If of 30, which holds a Relu of 25, keeps 10 and 5 of its own."""
    events = [
        event("model_run", 0, 200),
        event("first_kernel_time", 5, 20, "Gemm"),
        event("outer_kernel_time", 30, 100, "If"),
        event("conv_kernel_time", 35, 60, "Conv"),
        event("inner_kernel_time", 100, 30, "If"),
        event("relu_kernel_time", 102, 25, "Relu"),
        event("last_kernel_time", 130, 40, "Gemm"),
        event("elsewhere_kernel_time", 50, 7, "Gemm", thread=2),
    ]
    profile = read_profile(write(tmp_path / "p.json", events), 0, 1)
    times = {node.name: round(node.seconds * 1e6) for node in profile.nodes}
    assert times == {"first": 20, "outer": 10, "conv": 60, "inner": 5, "relu": 25, "last": 40, "elsewhere": 7}
    adds_up(profile)


def test_nodes_that_members_share_stand_under_all_their_names(tmp_path: Path):
    events = [event("model_run", 0, 100)]
    events += [event(f"{name}_kernel_time", 10 * i, 5, "Conv") for i, name in enumerate(("a/c", "b/c", "trunk", "odd"))]
    profile = read_profile(write(tmp_path / "p.json", events), 0, 1)
    told = with_members(profile, lambda name: {"trunk": ("a", "b"), "odd": ()}.get(name, (name[0],)))
    assert {share.name: share.node_count for share in told.by_members} == {"a": 1, "b": 1, "a + b": 1, "?": 1}
    adds_up(told)


def test_a_real_call(classifier: Callable[..., Path], contender: Callable[[Path], Contender], quick: Settings):
    result = measure(contender(classifier()), find_target("cpu"), None, replace(quick, profile=True))
    profile = result.profile
    assert [(node.op_type, node.provider) for node in profile.nodes] in ([("MatMul", CPU)], [("Gemm", CPU)])
    assert profile.run_count >= 10
    assert profile.call_s > 0
    adds_up(profile)


def test_a_real_call_with_branches(tmp_path: Path, contender: Callable[[Path], Contender]):
    """The branch multiplies by a large matrix 30 times: the If itself takes next to nothing of it."""
    steps = " ".join(f"h{i + 1} = MatMul(h{i}, W)" for i in range(30))
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 18]> g (float[batch, 256] x) => (float[batch, 256] logits) { '
        "zero = Constant<value = float {-1e9}>() m = ReduceMax<keepdims = 0>(x) yes = Greater(m, zero) "
        f"logits = If(yes) <then_branch = t () => (float[batch, 256] a) {{ h0 = Identity(x) {steps} a = Identity(h30) }}, "
        "else_branch = e () => (float[batch, 256] b) { b = Identity(x) }> }"
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(256, dtype=np.float32), "W"))
    onnx.save(model, tmp_path / "branches.onnx")
    rule = TimingRule(min_runs=40, min_s=0.0, max_s=5.0, warmup_s=0.0)
    settings = Settings(batch_sizes=(64,), threads=1, rule=rule, profile=True)
    profile = measure(contender(tmp_path / "branches.onnx"), find_target("cpu"), None, settings).profile
    times = {share.name: share.seconds for share in profile.by_op_type}
    assert times["MatMul"] > 2 * times["If"], "it would be less than the If, were what runs inside counted for it too"
    assert sum(share.node_count for share in profile.by_op_type if share.name == "MatMul") == 30
    assert profile.outside_nodes_s > 0
    adds_up(profile)
