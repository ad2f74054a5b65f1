"""The profile of a fused graph, told per member, and the options of `measure` that go beyond timing."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from monograph.export.fusion import fuse, plan_fusion
from monograph.models.onnx_file import read_onnx
from monograph.pipelines.cli import app
from monograph.pipelines.measure import measure_models
from monograph.runtime.load import LoadSpec
from monograph.runtime.timing import TimingRule

RULE = TimingRule(min_runs=40, min_s=0.0, max_s=2.0, warmup_s=0.0)


@pytest.fixture
def fused(digit_models: list[Path], tmp_path: Path) -> Path:
    files = [read_onnx(path) for path in digit_models]
    return fuse(plan_fusion(files, names=["mlp", "conv"]), tmp_path / "fused.onnx").file.path


def test_the_time_of_each_member(fused: Path):
    (measurement,) = measure_models([fused], batch_sizes=[8], threads=1, rule=RULE, profile=True)
    profile = measurement.profile
    shares = {share.name: share for share in profile.by_members}
    assert shares["mlp"].seconds > 0
    assert shares["conv"].seconds > shares["mlp"].seconds, "three convolutions beside three small products"
    assert {"conv", "mlp"} <= set(shares) <= {"conv", "mlp", "mlp + conv", "?"}
    assert sum(share.seconds for share in shares.values()) == pytest.approx(profile.nodes_s)
    assert all(node.members == ("conv",) for node in profile.nodes if "Conv" in node.op_type)


def test_a_model_that_is_no_fusion_has_no_members(digit_models: list[Path]):
    (measurement,) = measure_models(digit_models[:1], batch_sizes=[1], threads=1, rule=RULE, profile=True)
    assert measurement.profile.by_members == ()
    assert measurement.profile.by_op_type


def test_what_is_not_asked_for_is_not_measured(digit_models: list[Path]):
    (measurement,) = measure_models(digit_models[:1], batch_sizes=[1], threads=1, rule=RULE)
    assert (measurement.load, measurement.loadgen, measurement.profile) == (None, None, None)


def test_the_command_line_asks_for_all(fused: Path):
    arguments = ["measure", str(fused), "--batch-sizes", "1", "--min-runs", "40", "--min-seconds", "0", "--max-seconds", "1"]
    arguments += ["--profile", "--rate", "200", "--arrivals", "constant", "--concurrency", "2"]
    table = CliRunner().invoke(app, arguments)
    assert table.exit_code == 0
    assert "200/s constant, 2 threads" in table.stdout
    assert "with a rate, latency counts from the intended arrival" in table.stdout
    assert "fused on cpu, batch 1: time by members" in table.stdout
    (record,) = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert record["load"]["rate_per_s"] == 200
    assert len(record["load"]["latency_ns"]) == 40
    assert {"mlp", "conv"} <= {share["name"] for share in record["profile"]["by_members"]}


def test_load_alone(digit_models: list[Path]):
    (measurement,) = measure_models(digit_models[:1], batch_sizes=[1], threads=1, rule=RULE, load=LoadSpec(3))
    load = measurement.load
    assert (load.concurrency, load.rate_per_s, load.arrivals) == (3, None, None)
    assert load.run_count >= 40
    assert load.latency_ns == load.service_ns
