"""Texts that are too deep or too large, wherever one comes in."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from monograph.errors import ConfigError, ContractError, DataError
from monograph.models import bounded
from monograph.models.bounded import DEEPEST, check_json_file, parse_json, parse_yaml
from monograph.models.contract import Contract
from monograph.models.data.load import load_rows
from monograph.pipelines.config import load_config

DEEP = 100_000
TWO_NUMBERS = Contract.from_json(
    '{"version": 1, "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 2]}], '
    '"outputs": [{"name": "y", "dtype": "float32", "shape": ["batch", 3]}], "kind": "logits", "class_names": null}'
)


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


def depth_of(value: Any) -> int:
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth_of, inner), default=0)


VALUES = st.recursive(
    st.none() | st.integers() | st.text(alphabet='ab"\\[]{}é\n'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(alphabet='a"\\[{', max_size=3), inner, max_size=3),
    max_leaves=20,
)


@settings(max_examples=100, deadline=None)
@given(value=VALUES, indent=st.sampled_from([None, 1]), size=st.integers(1, 40))
def test_the_depth_is_that_of_the_value_wherever_the_text_is_cut(value: Any, indent: int | None, size: int):
    data = json.dumps(value, indent=indent, ensure_ascii=False).encode()
    chunks = [data[start : start + size] for start in range(0, len(data), size)]
    assert max(bounded._depths(chunks), default=0) == depth_of(value)


class TestJson:
    @pytest.mark.parametrize(
        "text",
        [nested(DEEP), '{"a":' * DEEP, '["]]]]", ' * DEEP, '["\\"]", ' * DEEP, "]" * DEEP + "[" * DEEP],
        ids=["lists", "mappings", "closed in strings", "escaped quotes", "closed before"],
    )
    def test_too_deep(self, text: str):
        with pytest.raises(ValueError, match=f"more than {DEEPEST} levels deep"):
            parse_json(text)

    def test_as_deep_as_allowed_and_brackets_in_a_string(self):
        assert depth_of(parse_json(nested(DEEPEST))) == DEEPEST
        assert parse_json(json.dumps(nested(DEEP))) == nested(DEEP)

    def test_many_values_side_by_side(self):
        assert len(parse_json("[" + ",".join(["[1]"] * DEEP) + "]")) == DEEP

    def test_too_large(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(bounded, "LARGEST_BYTES", 10)
        with pytest.raises(ValueError, match="it has 12 bytes, expected 10 at most"):
            parse_json(json.dumps("x" * 10))

    def test_a_key_twice(self):
        with pytest.raises(ValueError, match="a key stands there twice"):
            parse_json('{"a": 1, "a": 2}', unique_keys=True)

    def test_lines_that_close_more_than_they_open_hide_nothing(self, tmp_path: Path):
        path = tmp_path / "rows.jsonl"
        path.write_text('{"a": "never closed\n' + "]" * 5000 + "\n" + nested(5000))
        with pytest.raises(ValueError, match="levels deep"):
            check_json_file(path)


class TestYaml:
    @pytest.mark.parametrize(
        "text",
        [
            nested(50_000),
            "- " * 50_000 + "x",
            "{a: " * 5_000,
            "\n".join(["a0: &a0 [1]", *(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 300))]),
        ],
        ids=["brackets", "dashes", "braces", "aliases"],
    )
    def test_too_deep(self, text: str):
        with pytest.raises(ValueError, match="levels deep"):
            parse_yaml(text)

    def test_aliases_that_stand_for_a_billion_values(self):
        lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
        lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
        with pytest.raises(ValueError, match="aliases stand for more than"):
            parse_yaml("\n".join(lines))

    def test_an_alias_of_what_it_is_in(self):
        with pytest.raises(ValueError, match="a part of"):
            parse_yaml("a: &a [*a]")

    def test_plain_values(self):
        text = "a: &x {b: [1, 2.5, yes], c: null}\nd: *x\ne:\n  <<: *x\n  b: 3\n"
        shared = {"b": [1, 2.5, True], "c": None}
        assert parse_yaml(text) == {"a": shared, "d": shared, "e": {"b": 3, "c": None}}
        assert parse_yaml("") is None

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("a: 1\na: 2\n", "the key 'a' stands there twice"),
            ("a: 2001-99-99", "month must be in 1"),
            (nested(50_000), "levels deep"),
            ("a: !!python/object/apply:os.system [true]", "could not determine a constructor"),
        ],
        ids=["a key twice", "no date", "deep", "code"],
    )
    def test_a_pipeline_file(self, tmp_path: Path, text: str, reason: str):
        path = tmp_path / "pipeline.yaml"
        path.write_text(text)
        with pytest.raises(ConfigError, match=reason):
            load_config(path)

    def test_an_override(self, tmp_path: Path):
        path = tmp_path / "pipeline.yaml"
        path.write_text("name: a")
        with pytest.raises(ConfigError, match="is no YAML value"):
            load_config(path, [f"name={nested(50_000)}"])


class TestWhereTheyComeIn:
    @pytest.mark.parametrize("name", ["deep.jsonl", "deep.json"])
    def test_data(self, tmp_path: Path, name: str):
        path = tmp_path / name
        path.write_text('{"x": [1, 2], "y": 0}\n{"x": ' + nested(DEEP) + ', "y": 0}\n')
        with pytest.raises(DataError, match="cannot be read as json"):
            load_rows(str(path), TWO_NUMBERS)

    def test_the_process_lives(self, tmp_path: Path):
        """What is refused here ended the whole process before."""
        rows, source = tmp_path / "deep.jsonl", tmp_path / "linear.onnx"
        rows.write_text('{"x": ' + nested(DEEP) + ', "y": 0}\n')
        proto = onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["": 20]> m (float[b, 2] x) => (float[b, 3] y) { y = MatMul(x, w) }'
        )
        proto.graph.initializer.append(numpy_helper.from_array(np.ones((2, 3), np.float32), "w"))
        onnx.save(proto, source)
        command = [sys.executable, "-m", "monograph", "export", str(source), "-o", "out.onnx", "--data", str(rows)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 2, done.stderr
        assert "levels deep" in done.stderr
        assert "Traceback" not in done.stderr

    def test_a_contract(self):
        with pytest.raises(ContractError, match="levels deep"):
            Contract.from_json(nested(DEEP))
