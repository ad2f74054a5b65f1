from __future__ import annotations

from pathlib import Path

import pytest

from monograph.errors import ConfigError
from monograph.pipelines.config import load_config
from monograph.pipelines.run.verb import check_line


def test_a_pipeline_file_is_read_with_its_defaults(tiny_pipeline: Path) -> None:
    config, text = load_config(tiny_pipeline)
    assert list(config.models) == ["mlp", "conv"]
    assert config.fuse.weights == "fit"
    assert config.measure.targets == ["cpu"]
    assert text == tiny_pipeline.read_text(encoding="utf-8")


def test_row_counts_stay_whole_numbers(tiny_pipeline: Path) -> None:
    config, _ = load_config(tiny_pipeline)
    assert all(isinstance(size, int) for size in config.data.split.values())


def test_overrides_reach_nested_settings_and_the_text(tiny_pipeline: Path) -> None:
    config, text = load_config(tiny_pipeline, ["measure.blocks=9", "fuse.weights={mlp: 0.4, conv: 0.6}", "seed=3"])
    assert config.measure.blocks == 9
    assert config.fuse.weights == {"mlp": 0.4, "conv": 0.6}
    assert config.seed == 3
    assert "blocks: 9" in text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("measure.blocks", "KEY=VALUE"),
        ("measure.blok=3", "measure.blok"),
        ("seed.deeper=3", None),
        ("measure.blocks=1", "greater than or equal to 2"),
        ("data.split={train: 0.5, test: 0.5}", "expected train, validation and test"),
        ("models={only: {source: a.onnx}}", "at least 2"),
        ("name=../outside", "name"),
        ("measure.blocks=[", "YAML"),
        ("models.mlp.adapt={method: head}", "train and adapt exclude each other"),
        ("models.mlp={source: 'py:a.b:c', weights: w.safetensors, adapt: {}}", "leave weights out"),
        ("models.mlp={source: 'py:a.b:c', adapt: {methods: head}}", "models.mlp.adapt.methods"),
        ("distill.studnet=mlp", "distill.studnet"),
        ("distill.quantize=int4", "distill.quantize"),
        ("gate={}", "add distill"),
        ("bundle={}", "add gate"),
        ("measure.members_on=[cuda]", "measure.members_on names cuda"),
        ("measure.rows={qnn-htp: 10}", "measure.rows names qnn-htp"),
        ("fuse.shared=true", "fuse.shared"),
    ],
)
def test_wrong_overrides_are_refused_by_name(tiny_pipeline: Path, override: str, message: str | None) -> None:
    if override.startswith("seed.deeper"):
        load_config(tiny_pipeline, ["seed=1"])
        tiny_pipeline.write_text("seed: 1\n" + tiny_pipeline.read_text(encoding="utf-8"), encoding="utf-8")
        message = "not a section"
    with pytest.raises(ConfigError, match=message):
        load_config(tiny_pipeline, [override])


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("{accuracy: {max_los_points: 2}}", "did you mean max_loss_points"),
        ("{accuracy: null}", "sets no limit"),
        ("nowhere.yaml", "no such policy file"),
    ],
)
def test_a_policy_that_is_not_understood_is_refused_before_anything_runs(tiny_pipeline: Path, policy: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(tiny_pipeline, ["distill={}", f"gate.policy={policy}"])


def test_the_steps_beyond_fusing_are_left_out_by_default_and_have_defaults(tiny_pipeline: Path) -> None:
    config, _ = load_config(tiny_pipeline)
    assert (config.distill, config.gate, config.bundle, config.fuse.share) == (None, None, None, True)
    config, _ = load_config(tiny_pipeline, ["distill={mixed_precision: no}", "gate={}", "bundle={}"])
    assert config.distill is not None
    assert config.distill.mixed_precision == "no"  # which YAML reads as false
    assert config.distill.student == "auto:1/20"
    assert config.gate is not None
    assert (config.gate.policy, config.gate.targets) == (None, ["cpu"])


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "no mapping"), ("- a\n- b\n", "no mapping"), ("a: [", "not a YAML file"), ("name: x\n", "data: Field required")],
)
def test_files_that_are_no_pipeline(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such pipeline file"):
        load_config(tmp_path / "missing.yaml")


@pytest.mark.parametrize("name", ["quickstart", "mobile", "sentiment", "recommend"])
def test_the_shipped_pipelines_are_valid(name: str) -> None:
    config, _ = load_config(Path(__file__).parents[2] / "pipelines" / f"{name}.yaml")
    assert config.name == name
    check_line(config)
