"""``monograph verify``: files that are as they were proven, and every fault that can be planted in one."""

from __future__ import annotations

import base64
import json
import shutil
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

import monograph
from monograph.errors import ConfigError, InputError
from monograph.models.contract import CONTRACT_KEY, Contract, Kind, TensorSpec
from monograph.models.digest import graph_sha256
from monograph.pipelines.cascade import cascade_models
from monograph.pipelines.cli import _exit_code
from monograph.pipelines.fuse import fuse_models
from monograph.runtime.golden import GOLDEN_KEY
from monograph.runtime.job import Job, RawRun
from monograph.runtime.targets import TARGETS

Run = Callable[..., tuple[int, str, str]]
X = TensorSpec("x", "float32", ("batch", 4))


def write_member(path: Path, seed: int, *, classes: str = "pqr", kind: Kind = Kind.LOGITS) -> Path:
    """Write a linear layer with its contract."""
    proto = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 20]>
        m (float[batch, 4] x) => (float[batch, {len(classes)}] y) {{ y = MatMul(x, w) }}"""
    )
    weight = np.random.default_rng(seed).standard_normal((4, len(classes)), dtype=np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    names = tuple(classes) if kind.has_classes else None
    contract = Contract((X,), (TensorSpec("y", "float32", ("batch", len(classes))),), kind, names)
    onnx.helper.set_model_props(proto, {CONTRACT_KEY: contract.to_json()})
    onnx.save(proto, path)
    return path


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str | Path) -> tuple[int, str, str]:
        code = _exit_code([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return code, captured.out, " ".join(captured.err.split())

    return call


@pytest.fixture
def world(tmp_path: Path) -> Mapping[str, Path]:
    """Three classifiers, one that lacks a class, two embeddings, and labelled rows."""
    paths = {
        "a": write_member(tmp_path / "a.onnx", 0),
        "b": write_member(tmp_path / "b.onnx", 1),
        "part": write_member(tmp_path / "part.onnx", 2, classes="rp"),
        "u": write_member(tmp_path / "u.onnx", 3, kind=Kind.EMBEDDING),
        "v": write_member(tmp_path / "v.onnx", 4, kind=Kind.EMBEDDING),
    }
    rng = np.random.default_rng(9)
    x = rng.standard_normal((300, 4), dtype=np.float32)
    weight = numpy_helper.to_array(onnx.load(paths["a"]).graph.initializer[0])
    paths["rows"] = tmp_path / "rows.npz"
    np.savez(paths["rows"], x=x, y=(x @ weight + rng.gumbel(size=(300, 3))).argmax(1))
    return paths


@pytest.fixture
def fused(world: Mapping[str, Path], tmp_path: Path) -> Path:
    """A mean of probabilities, whose members' weights stand in the graph apart, proven on real rows."""
    return fuse_models(
        [world["a"], world["b"]], tmp_path / "fused.onnx", combine="probs", weights=[0.3, 0.7], data=str(world["rows"])
    ).file.path


class TestAsItWasProven:
    @pytest.mark.parametrize(
        ("members", "choices"),
        [
            ("ab", {}),
            ("ab", {"combine": "probs", "weights": (0.1, 0.9), "temperatures": (2.0, 0.5)}),
            ("ab", {"combine": "geometric", "share": False}),
            ("ab", {"combine": "vote", "weights": (0.6, 0.4)}),
            ("ab", {"weights": (1.0, 0.0)}),
            ("aa", {}),
            ("uv", {}),
            ("uv", {"combine": "concat"}),
            (("a", "part"), {"combine": "probs"}),
        ],
    )
    def test_every_form(self, world: Mapping[str, Path], tmp_path: Path, members: Any, choices: dict[str, Any]):
        paths = [world[name] for name in members]
        fuse_models(paths, tmp_path / "fused.onnx", **choices)
        found = monograph.verify_model(tmp_path / "fused.onnx", members=paths[::-1])
        assert found.passed
        assert [check.batch_size for check in found.golden] == [check.batch_size for check in found.fresh] == [1, 2, 5, 16]

    @pytest.mark.parametrize("combine", ["stack", "probs", "auto"])
    def test_what_was_fitted(self, world: Mapping[str, Path], tmp_path: Path, combine: str):
        paths, rows = [world["a"], world["b"]], str(world["rows"])
        fuse_models(paths, tmp_path / "fused.onnx", fit=rows, combine=combine, calibrate=combine != "stack")
        found = monograph.verify_model(tmp_path / "fused.onnx", members=paths, data=rows)
        assert found.passed
        assert {check.rows for check in (*found.golden, *found.fresh)} == {"real"}

    def test_members_are_compared_on_rows_of_their_own(self, world: Mapping[str, Path], tmp_path: Path):
        paths = [world["a"], world["b"]]
        fuse_models(paths, tmp_path / "fused.onnx")
        found = monograph.verify_model(tmp_path / "fused.onnx", members=paths)
        assert all(old.scale != new.scale for old, new in zip(found.golden, found.fresh, strict=True))

    @pytest.mark.parametrize(("threshold", "cases"), [(0.6, {"easy", "hard", "mixed"}), (1.5, {"hard"}), (0.0, {"easy"})])
    def test_a_cascade(self, world: Mapping[str, Path], tmp_path: Path, threshold: float, cases: set[str]):
        paths = [world["a"], world["b"]]
        built = cascade_models(paths, tmp_path / "cascade.onnx", thresholds=[threshold])
        found = monograph.verify_model(built.file.path, members=paths)
        assert found.passed
        assert {check.case for check in found.golden} == {check.case for check in found.fresh} == cases
        assert {item.case for item in found.left_out} == {"easy", "hard", "mixed"} - cases
        assert len(found.golden) + len(found.left_out) == len(built.cases)
        assert found.describe().count("not run again, proven with other thresholds") == len(found.left_out)

    def test_a_cascade_with_fitted_temperatures(self, world: Mapping[str, Path], tmp_path: Path):
        paths, rows = [world["a"], world["b"]], str(world["rows"])
        cascade_models(paths, tmp_path / "cascade.onnx", fit=rows, gate="margin")
        assert monograph.verify_model(tmp_path / "cascade.onnx", members=paths, data=rows).passed

    def test_an_exported_model(self, digit_models: list[Path]):
        found = monograph.verify_model(digit_models[0])
        assert found.passed
        assert [check.batch_size for check in found.golden] == [1, 2, 5]

    def test_a_copy_with_metadata_of_others(self, fused: Path):
        proto = onnx.load(fused)
        proto.metadata_props.add(key="author", value="somebody")
        onnx.save(proto, fused)
        assert monograph.verify_model(fused).passed

    def test_a_renamed_file(self, fused: Path, tmp_path: Path):
        assert monograph.verify_model(shutil.move(fused, tmp_path / "deployed.onnx")).passed

    def test_the_command(self, run: Run, fused: Path, world: Mapping[str, Path]):
        code, out, _ = run("verify", fused, "--members", world["a"], world["b"], "--data", world["rows"])
        assert code == 0
        lines = out.splitlines()
        assert len(lines) == 9
        assert lines[0].startswith("batch 1, real rows, output probabilities: equal, max abs error")
        assert lines[4].startswith("against a, b run apart: batch 1, real rows")
        assert lines[-1] == f"verified: {fused} on cpu (executed): 8 comparisons equal, the file is as it was proven"

    def test_json(self, run: Run, fused: Path):
        code, out, _ = run("verify", fused, "--json")
        record = json.loads(out)
        assert (code, record["passed"]) == (0, True)
        assert [check["batch_size"] for check in record["verification"]["golden"]] == [1, 2, 5, 16]


def edit_weight(path: Path, name: str, change: Callable[[Any], Any]) -> None:
    proto = onnx.load(path)
    (tensor,) = [tensor for tensor in proto.graph.initializer if tensor.name == name]
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), name))
    onnx.save(proto, path)


def edit_golden(path: Path, change: Callable[[str], str]) -> None:
    proto = onnx.load(path)
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    onnx.helper.set_model_props(proto, metadata | {GOLDEN_KEY: change(metadata[GOLDEN_KEY])})
    onnx.save(proto, path)


def edit_record(path: Path, change: Callable[[Any], None]) -> None:
    def edited(text: str) -> str:
        record = json.loads(text)
        change(record)
        return json.dumps(record)

    edit_golden(path, edited)


class TestFaults:
    def test_a_flipped_weight(self, run: Run, fused: Path):
        edit_weight(fused, "b/w", lambda w: np.where(np.arange(w.size).reshape(w.shape) == 5, -w, w))
        code, out, err = run("verify", fused)
        assert code == 1
        assert "batch 1, real rows, output probabilities: DIFFERS, row 0 by 0." in out
        assert "the graph is not the one that was proven: SHA-256" in out
        assert "FAILED" in out.splitlines()[-1]
        assert "4 of 4 comparisons differ, the file was changed" in out
        assert "Traceback" not in err

    def test_an_edited_weight_of_a_member(self, run: Run, fused: Path):
        edit_weight(fused, "fusion/weight/a", lambda weight: weight + np.float32(0.01))
        code, out, _ = run("verify", fused)
        assert code == 1
        assert "DIFFERS" in out

    def test_a_change_that_no_output_shows(self, run: Run, fused: Path):
        edit_weight(fused, "b/w", lambda w: np.nextafter(w, np.float32(9)))
        code, out, _ = run("verify", fused)
        assert code == 1
        assert "DIFFERS" not in out
        assert "4 comparisons equal, the file was changed" in out

    def test_a_change_is_found_by_the_members_too(self, run: Run, fused: Path, world: Mapping[str, Path]):
        edit_weight(fused, "b/w", lambda w: w * np.float32(1.5))
        code, out, _ = run("verify", fused, "--members", world["a"], world["b"])
        assert code == 1
        assert "against a, b run apart: batch 16, random rows, output probabilities: DIFFERS" in out

    def test_an_edited_weight_in_the_record(self, run: Run, fused: Path, world: Mapping[str, Path]):
        proto = onnx.load(fused)
        metadata = {entry.key: entry.value for entry in proto.metadata_props}
        record = json.loads(metadata["monograph.fusion"])
        record["members"][0]["weight"], record["members"][1]["weight"] = 0.4, 0.6
        onnx.helper.set_model_props(proto, metadata | {"monograph.fusion": json.dumps(record)})
        onnx.save(proto, fused)
        code, out, _ = run("verify", fused, "--members", world["a"], world["b"])
        assert code == 1
        assert "against a, b run apart: batch 1, random rows, output probabilities: DIFFERS" in out

    def test_an_edited_combiner(self, run: Run, world: Mapping[str, Path], tmp_path: Path):
        paths = [world["a"], world["b"]]
        path = fuse_models(paths, tmp_path / "stack.onnx", fit=str(world["rows"]), combine="stack").file.path
        edit_weight(path, "fusion/stacking/coefficients", lambda w: w + np.float32(0.1))
        assert run("verify", path)[0] == 1
        code, _, err = run("verify", path, "--members", *paths)
        assert code == 2
        assert "the combiner in the graph is not the one that was fitted: fuse again" in err

    def test_a_swapped_member(self, run: Run, fused: Path, world: Mapping[str, Path]):
        write_member(world["b"], seed=77)
        code, out, err = run("verify", fused, "--members", world["a"], world["b"])
        assert (code, out) == (2, "")
        assert "b.onnx has SHA-256" in err
        assert "which no member had when they were fused (b is b.onnx with SHA-256" in err

    def test_a_member_that_is_not_given(self, run: Run, fused: Path, world: Mapping[str, Path]):
        code, _, err = run("verify", fused, "--members", world["b"])
        assert code == 2
        assert "member a (a.onnx, SHA-256" in err
        assert "is not given: give all 2 members" in err

    def test_weights_beside_the_file(self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("monograph.models.onnx_file.LARGEST_INLINE_BYTES", 10)
        members = [write_member(tmp_path / f"{seed}.onnx", seed, classes="abcdefghijklmnopqrstuvwxyz") for seed in (0, 1)]
        path = fuse_models(members, tmp_path / "out" / "fused.onnx", combine="probs").file.path
        (data,) = [file for file in path.parent.iterdir() if file != path]
        assert run("verify", path)[0] == 0
        data.write_bytes(bytes([data.read_bytes()[0] ^ 1]) + data.read_bytes()[1:])
        code, out, _ = run("verify", path)
        assert code == 1
        assert f"the data file {data.name} was changed: SHA-256" in out
        data.unlink()
        code, _, err = run("verify", path)
        assert code == 2
        assert "is missing: copy it beside the model" in err

    def test_truncated_metadata(self, run: Run, fused: Path):
        edit_golden(fused, lambda text: text[: len(text) // 2])
        code, out, err = run("verify", fused)
        assert (code, out) == (2, "")
        assert "metadata 'monograph.golden' is damaged" in err

    def test_a_bomb(self, run: Run, fused: Path):
        bomb = zlib.compress(bytes(1 << 27), 1)

        def plant(record: Any) -> None:
            record["arrays"] = [{"dtype": "<f4", "shape": [16, 4], "distinct": 0, "bytes": len(bomb)}]
            record["data"] = base64.b64encode(bomb).decode()

        edit_record(fused, plant)
        code, out, err = run("verify", fused)
        assert (code, out) == (2, "")
        assert "an array of [16, 4] does not decompress to 256 bytes" in err

    def test_another_input_name(self, run: Run, fused: Path):
        def rename(record: Any) -> None:
            for batch in record["batches"]:
                batch["inputs"] = {"pixels": batch["inputs"]["x"]}

        edit_record(fused, rename)
        code, _, err = run("verify", fused)
        assert code == 2
        assert "its golden batches feed pixels but the graph has x" in err

    def test_an_edited_expectation(self, run: Run, fused: Path):
        def swap(record: Any) -> None:
            first, second = record["batches"][:2]
            first["expected"], second["expected"] = second["expected"], first["expected"]

        edit_record(fused, swap)
        code, out, _ = run("verify", fused)
        assert code == 1
        assert "DIFFERS, shape [1, 3], expected [2, 3]" in out
        assert "the file was changed" not in out

    @pytest.mark.parametrize("share_kept", [0.0, 0.3, 0.9, 0.999])
    def test_a_file_cut_short(self, run: Run, fused: Path, share_kept: float):
        whole = fused.read_bytes()
        fused.write_bytes(whole[: int(len(whole) * share_kept)])
        code, _, err = run("verify", fused)
        assert code in (1, 2)
        assert err.count("monograph:") == 1
        assert "Traceback" not in err


def test_bits_flipped_anywhere(world: Mapping[str, Path], tmp_path: Path):
    path = cascade_models([world["a"], world["b"]], tmp_path / "cascade.onnx", thresholds=[0.6]).file.path
    whole, graph = path.read_bytes(), graph_sha256(path)
    rng = np.random.default_rng(0)
    outcomes = set()
    for position in np.concatenate([rng.integers(0, 1500, 60), rng.integers(0, len(whole), 60)]):
        flipped = bytes([whole[position] ^ (1 << rng.integers(8))])
        path.write_bytes(whole[:position] + flipped + whole[position + 1 :])
        try:
            found = monograph.verify_model(path)
        except InputError:
            outcomes.add("refused")
            continue
        outcomes.add("passed" if found.passed else "failed")
        assert not found.passed or graph_sha256(path) == graph
    assert outcomes == {"refused", "failed", "passed"}  # the last where metadata tell of something else


class TestWrongInput:
    def test_a_file_from_elsewhere(self, run: Run, world: Mapping[str, Path]):
        code, _, err = run("verify", world["a"])
        assert code == 2
        assert "holds no golden batches to run again: write it again with this monograph" in err
        code, _, err = run("verify", world["a"], "--members", world["b"])
        assert code == 2
        assert "is no fusion, so it has no members: leave --members out" in err

    def test_an_older_fusion_is_compared_with_its_members(self, run: Run, fused: Path, world: Mapping[str, Path]):
        proto = onnx.load(fused)
        kept = {entry.key: entry.value for entry in proto.metadata_props if entry.key != GOLDEN_KEY}
        onnx.helper.set_model_props(proto, kept)
        onnx.save(proto, fused)
        assert run("verify", fused)[0] == 2
        code, out, _ = run("verify", fused, "--members", world["a"], world["b"])
        assert code == 0
        assert out.splitlines()[-1] == f"verified: {fused} on cpu (executed): 4 comparisons equal"

    def test_options(self, run: Run, fused: Path, world: Mapping[str, Path], tmp_path: Path):
        for arguments, message in (
            ((fused, "--on", "moon"), "unknown target 'moon'"),
            ((fused, world["a"]), "2 files given: verify one at a time"),
            ((fused, "--data", world["rows"]), "give the members by --members"),
            ((fused, "--tolerance", "-1"), "tolerance -1: give 0 or more"),
            ((tmp_path,), "is a folder, expected an .onnx file"),
            ((tmp_path / "nothing.onnx",), "no such file"),
            ((fused, "--members", tmp_path / "nothing.onnx"), "no such file"),
        ):
            code, out, err = run("verify", *arguments)
            assert (code, out) == (2, "")
            assert message in err

    @pytest.mark.parametrize("record", ["", "[]", "{}", '{"form": "logits", "members": 3}', '{"form": "soup", "members": []}'])
    def test_a_damaged_record_of_the_fusion(self, run: Run, fused: Path, world: Mapping[str, Path], record: str):
        proto = onnx.load(fused)
        metadata = {entry.key: entry.value for entry in proto.metadata_props}
        onnx.helper.set_model_props(proto, metadata | {"monograph.fusion": record})
        onnx.save(proto, fused)
        code, out, err = run("verify", fused, "--members", world["a"], world["b"])
        assert (code, out) == (2, "")
        assert "fuse again" in err

    @pytest.mark.parametrize(
        ("form", "change"),
        [
            ("stack", {"fit": {"nll": "x"}}),
            ("stack", {"fit": None}),
            ("stack", {"fit": {"surprise": 1}}),
            ("stack", {"stacking_sha256": 7}),
            ("stack", {"form": ["stack"]}),
            ("cascade", {"gate": ["margin"]}),
            ("cascade", {"gate": None, "thresholds": []}),
            ("cascade", {"thresholds": ["NaN"]}),
            ("cascade", {"temperatures": [None, 1]}),
            ("cascade", {"temperatures": [1]}),
        ],
    )
    def test_a_record_that_holds_no_numbers(
        self, run: Run, world: Mapping[str, Path], tmp_path: Path, form: str, change: dict[str, Any]
    ):
        paths, out = [world["a"], world["b"]], tmp_path / "fused.onnx"
        if form == "cascade":
            cascade_models(paths, out, thresholds=[0.6])
        else:
            fuse_models(paths, out, fit=str(world["rows"]), combine="stack")
        proto = onnx.load(out)
        metadata = {entry.key: entry.value for entry in proto.metadata_props}
        record = json.loads(metadata["monograph.fusion"])
        for key, value in change.items():
            record[key] = record[key] | value if isinstance(value, dict) else value
        onnx.helper.set_model_props(proto, metadata | {"monograph.fusion": json.dumps(record)})
        onnx.save(proto, out)
        code, printed, err = run("verify", out, "--members", *paths)
        assert (code, printed) == (2, "")
        assert err.count("monograph:") == 1

    def test_not_a_number(self, fused: Path):
        with pytest.raises(ConfigError, match="tolerance nan: give 0 or more"):
            monograph.verify_model(fused, tolerance=float("nan"))


class TestOnOtherTargets:
    @pytest.fixture
    def jobs(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[Job]:
        """What a target is sent while it runs for real."""
        target = TARGETS[request.param]
        if not target.is_available():
            pytest.skip(target.describe())
        sent: list[Job] = []

        def run(job: Job) -> RawRun:
            sent.append(job)
            return target.run(job)

        monkeypatch.setitem(TARGETS, target.name, replace(target, run=run))
        return sent

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "jobs",
        ["arm64", "cpu-avx2", "webgpu", pytest.param("web-wasm", marks=pytest.mark.browser)],
        indirect=True,
    )
    def test_it_is_the_target_that_runs(self, run: Run, jobs: list[Job], fused: Path, world: Mapping[str, Path], request: Any):
        name = request.node.callspec.params["jobs"]
        code, out, _ = run("verify", fused, "--on", name, "--members", world["a"], world["b"])
        assert code == 0
        assert f"verified: {fused} on {name} ({TARGETS[name].probe().evidence or TARGETS[name].evidence})" in out
        assert out.count("equal, max abs error") == 8
        assert [job.settings.row_batches for job in jobs] == [(1, 2, 5, 16, 1, 2, 5, 16)]

    @pytest.mark.parametrize("jobs", ["arm64"], indirect=True)
    def test_a_fault_shows_there_too(self, run: Run, jobs: list[Job], fused: Path):
        edit_weight(fused, "b/w", lambda w: -w)
        code, out, _ = run("verify", fused, "--on", "arm64")
        assert code == 1
        assert "4 of 4 comparisons differ, the file was changed" in out
        assert jobs

    def test_nothing_is_verified_where_nothing_runs(self, run: Run, fused: Path):
        code, out, err = run("verify", fused, "--on", "nnapi")
        assert (code, out) == (2, "")
        assert "nothing runs on nnapi here: predicted from operator lists" in err

    def test_a_target_that_takes_another_form_says_how_to_get_it(self, run: Run, fused: Path):
        if not TARGETS["qnn-htp"].is_available():
            pytest.skip(TARGETS["qnn-htp"].describe())
        code, _, err = run("verify", fused, "--on", "qnn-htp")
        assert code == 2
        assert f"monograph lower {fused} --to qdq-htp -o LOWERED.onnx" in err
