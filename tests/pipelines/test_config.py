from __future__ import annotations

from pathlib import Path

import pytest

from monograph.errors import ConfigError
from monograph.pipelines.config import load_config


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


def test_the_shipped_pipelines_are_valid() -> None:
    for path in (Path(__file__).parents[2] / "pipelines").glob("*.yaml"):
        load_config(path)
