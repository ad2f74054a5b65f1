"""Policies: read strictly, explained wholly, hashed by what they mean."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from monograph.errors import ConfigError
from monograph.models.contract import Kind
from monograph.pipelines.gate.policy import Policy, TargetLimits, default_policy, load_policy, policy_yaml


def written(folder: Path, text: str) -> Path:
    (folder / "policy.yaml").write_text(text, encoding="utf-8")
    return folder / "policy.yaml"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("accuracy: {max_los_points: 1}", "accuracy.max_los_points: no such key: did you mean max_loss_points?"),
        ("acuracy: {max_loss_points: 1}", "acuracy: no such key: did you mean accuracy?"),
        ("targets: {cpu: {p50: 3}}", "targets.cpu.p50: no such key: did you mean p50_ms?"),
        ("size: {weight_of_the_box: 3}", "expected one of max_ratio, max_mb"),
        ("accuracy: {max_loss_points: -1}", "greater than or equal to 0, got -1"),
        ("accuracy: {max_loss_points: .nan}", "finite number"),
        ("robustness: {corruptions: [rain]}", "'noise', 'blur', 'contrast', 'typos' or 'missing', got 'rain'"),
        ("measuring: {min_runs: 400}", "sets no limit"),
        ("accuracy: null", "sets no limit"),
        ("targets: {cpu: {}}", "sets no limit"),
        ("version: 2\nsize: {max_mb: 1}", "version"),
        ("- accuracy", "holds no mapping"),
        ("accuracy: [", "is not a YAML file"),
    ],
)
def test_what_is_not_understood_is_refused_in_one_line(tmp_path: Path, text: str, message: str):
    with pytest.raises(ConfigError, match=r"policy\.yaml") as caught:
        load_policy(written(tmp_path, text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_told(tmp_path: Path):
    with pytest.raises(ConfigError, match="no such policy file"):
        load_policy(tmp_path / "policy.yaml")


def test_the_digest_counts_limits_and_neither_order_nor_comments(tmp_path: Path):
    first = load_policy(written(tmp_path, "accuracy: {max_loss_points: 2}\nsize: {max_mb: 3}"))
    again = load_policy(written(tmp_path, "# as agreed\nsize:\n  max_mb: 3.0\naccuracy:\n  max_loss_points: 2.0\n"))
    other = load_policy(written(tmp_path, "accuracy: {max_loss_points: 2.5}\nsize: {max_mb: 3}"))
    assert first.sha256() == again.sha256() != other.sha256()


@pytest.mark.parametrize("kind", [Kind.LOGITS, Kind.PROBABILITIES, Kind.REGRESSION])
def test_the_default_is_printed_as_a_file_that_means_the_same(tmp_path: Path, kind: Kind):
    policy = default_policy(kind)
    assert load_policy(written(tmp_path, policy_yaml(policy))) == policy


def test_a_printed_policy_explains_every_key():
    text = policy_yaml(Policy(targets={"cpu": TargetLimits(p99_ms=7)}))
    lines = text.splitlines()
    keys = [
        index
        for index, line in enumerate(lines)
        if ":" in line and not line.lstrip("# ").startswith(tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ9"))
    ]
    assert len(keys) > 30
    assert yaml.safe_load(text)["targets"]["cpu"]["p99_ms"] == 7
    for name, field in TargetLimits.model_fields.items():
        assert f"# {field.description}" in text, name


def test_what_has_no_default_is_told():
    with pytest.raises(ConfigError, match="kind embedding: give one by --policy"):
        default_policy(Kind.EMBEDDING)
