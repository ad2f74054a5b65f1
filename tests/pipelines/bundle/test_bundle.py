"""``monograph bundle``: what is in the folder, what is refused, and that it is the same folder each time."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import monograph
from monograph.errors import ConfigError, SourceError
from monograph.models.data.load import load_rows
from monograph.models.onnx_file import read_onnx
from monograph.models.seen import mark_seen, seen
from monograph.pipelines.gate import Outcome
from monograph.pipelines.lower import lower_model


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestWhatIsInIt:
    def test_all_parts(self, world, bundle: Path):
        assert set(files_of(bundle)) == {
            "MODEL_CARD.md", "contract.json", "golden/golden.json", "golden/lowered/int8.onnx.npz", "golden/model.onnx.npz",
            "labels.txt", "lineage.json", "lowered/int8.onnx", "manifest.json", "measurements/measured.json", "model.onnx",
            "predict.py", "verdict.json",
        }  # fmt: skip
        assert (bundle / "model.onnx").read_bytes() == world.model.read_bytes()
        assert (bundle / "verdict.json").read_bytes() == world.verdict.read_bytes()
        assert (bundle / "labels.txt").read_text().split()[:2] == ["zero", "one"]
        assert json.loads((bundle / "contract.json").read_text())["inputs"][0]["preprocessing"]["mean"] == [0.3]

    def test_the_manifest_tells_every_file(self, bundle: Path):
        manifest = json.loads((bundle / "manifest.json").read_text())
        files = files_of(bundle)
        del files["manifest.json"]
        told = {name: (entry["sha256"], entry["size_bytes"]) for name, entry in manifest["files"].items()}
        assert told == {name: (hashlib.sha256(data).hexdigest(), len(data)) for name, data in files.items()}
        assert manifest["licence"] == "Apache-2.0"

    def test_golden_rows_are_the_real_ones_that_the_file_carries(self, world, bundle: Path):
        record = json.loads((bundle / "golden" / "golden.json").read_text())
        model, int8 = record["forms"]
        assert [batch["rows"] for batch in model["batches"]] == ["real"] * 3
        arrays = np.load(bundle / model["arrays"], allow_pickle=False)
        got = arrays[model["batches"][2]["inputs"]["pixels"]]
        known = load_rows(str(world.folder / "train.npz"), read_onnx(world.model).contract).inputs["pixels"]
        assert all((known == row).all(axis=(1, 2, 3)).any() for row in got)
        assert (model["tolerances"]["cuda"], int8["tolerances"]["cpu"]) == (1e-4, 0.05)
        assert "cuda" not in int8["tolerances"]

    def test_lineage(self, world, bundle: Path):
        lineage = json.loads((bundle / "lineage.json").read_text())
        model, int8 = lineage["models"]
        assert model["sha256"] == int8["records"]["lowering"]["source_sha256"] == read_onnx(world.model).sha256
        assert int8["seen_rows"]["uses"] == {"calibration": 256, "proof of agreement": 150}
        assert lineage["verdict"]["reference_sha256"] == read_onnx(world.other).sha256
        assert lineage["command"] == (
            "monograph bundle digits.onnx --lowered int8.onnx --verdict verdict.json --measurement measured.json "
            "--licence Apache-2.0 -o DIR"
        )

    def test_the_card(self, bundle: Path):
        card = (bundle / "MODEL_CARD.md").read_text()
        assert card.startswith("---\nlicense: apache-2.0\n")
        assert "**PASS**: all 1 checks passed" in card
        assert "| digits | cpu | executed |" in card
        assert "python predict.py picture.png" in card
        assert "zero, one, two" in card

    def test_the_members_of_a_fusion(self, world, tmp_path: Path):
        monograph.fuse_models([world.model, world.other], tmp_path / "fused.onnx", data=str(world.folder / "train.npz"))
        made = monograph.bundle_model(tmp_path / "fused.onnx", tmp_path / "b")
        members = json.loads((made.path / "lineage.json").read_text())["models"][0]["records"]["fusion"]["members"]
        assert [member["sha256"] for member in members] == [read_onnx(path).sha256 for path in (world.model, world.other)]
        assert f"a fusion of digits ({members[0]['sha256'][:12]}…), other" in (made.path / "MODEL_CARD.md").read_text()

    def test_of_one_model_alone(self, world, tmp_path: Path):
        made = monograph.bundle_model(world.model, tmp_path / "plain")
        assert "verdict.json" not in made.manifest.files
        assert [note.split(":")[0] for note in made.notes] == ["nobody judged this model", "no --licence was given"]
        assert monograph.verify_bundle(made.path).passed

    def test_weights_and_seen_rows_beside_the_model(self, world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("monograph.models.onnx_file.LARGEST_INLINE_BYTES", 10)
        monkeypatch.setattr("monograph.models.seen.MOST_INLINE", 10)
        exported = monograph.export_model(str(world.model), tmp_path / "m.onnx")
        mark_seen(exported.path, seen("training", load_rows(str(world.test), exported.contract)))
        made = monograph.bundle_model(exported.path, tmp_path / "b")
        assert sorted(path.suffix for path in made.path.iterdir() if path.name.startswith("m.")) == [".data", ".seen"]
        shutil.move(made.path, tmp_path / "elsewhere")
        assert monograph.verify_bundle(tmp_path / "elsewhere").passed

    def test_the_format_for_phones(self, world, tmp_path: Path):
        lower_model(world.model, tmp_path / "digits.ort", to="ort")
        made = monograph.bundle_model(world.model, tmp_path / "b", lowered=[tmp_path / "digits.ort"])
        found = monograph.verify_bundle(made.path)
        assert [str(form.path) for form in found.forms] == ["model.onnx", "lowered/digits.ort"]
        assert found.passed


class TestTwice:
    def test_byte_identical(self, world, whole_bundle: Path, tmp_path: Path):
        again = monograph.bundle_model(
            world.model, tmp_path / "again", lowered=[world.int8], verdict=world.verdict,
            measurements=[world.folder / "measured.json"], licence="Apache-2.0",
        )  # fmt: skip
        assert files_of(again.path) == files_of(whole_bundle)

    def test_a_bundle_is_replaced(self, world, bundle: Path):
        monograph.bundle_model(world.other, bundle)
        assert (bundle / "model.onnx").read_bytes() == world.other.read_bytes()
        assert not (bundle / "lowered").exists()
        assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]

    @pytest.mark.parametrize("planted", ["notes.txt", "lowered/notes.txt"])
    def test_what_else_is_there_stays(self, world, bundle: Path, planted: str):
        (bundle / planted).write_text("mine")
        with pytest.raises(ConfigError, match=r"is not overwritten .*notes\.txt is not of this bundle"):
            monograph.bundle_model(world.other, bundle)
        assert (bundle / planted).read_text() == "mine"

    def test_a_folder_of_others_stays(self, world, tmp_path: Path):
        (tmp_path / "file.txt").write_text("mine")
        with pytest.raises(ConfigError, match="is no bundle as one was written"):
            monograph.bundle_model(world.model, tmp_path)
        with pytest.raises(ConfigError, match="exists and is no folder"):
            monograph.bundle_model(world.model, tmp_path / "file.txt")
        assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]

    def test_a_failure_leaves_the_old_one(self, world, bundle: Path, monkeypatch: pytest.MonkeyPatch):
        before = files_of(bundle)
        monkeypatch.setattr("monograph.pipelines.bundle.verb.publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            monograph.bundle_model(world.other, bundle)
        assert files_of(bundle) == before
        assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


class TestVerdict:
    def test_of_another_model(self, world, tmp_path: Path):
        with pytest.raises(ConfigError, match="judges a model with SHA-256"):
            monograph.bundle_model(world.other, tmp_path / "b", verdict=world.verdict)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("outcome", "fail", "it says fail by policy"),
            ("policy_sha256", "0" * 64, "its policy is"),
            ("checks", [], "its 0 checks"),
            ("policy", {"nonsense": 1}, "is no verdict of monograph gate"),
        ],
    )
    def test_that_was_changed(self, world, tmp_path: Path, key: str, value: object, message: str):
        record = json.loads(world.verdict.read_text()) | {key: value}
        (tmp_path / "v.json").write_text(json.dumps(record))
        with pytest.raises(ConfigError, match=message):
            monograph.bundle_model(world.model, tmp_path / "b", verdict=tmp_path / "v.json")

    @pytest.mark.parametrize(
        ("outcome", "code", "message"),
        [(Outcome.FAIL, 1, "may not ship: fail"), (Outcome.INCONCLUSIVE, 3, "may not ship: inconclusive")],
    )
    def test_a_pass_is_required(
        self, run, world, tmp_path: Path, verdict_of: Callable[[Outcome], Path], outcome: Outcome, code: int, message: str
    ):
        got, out, err = run("bundle", world.model, "-o", tmp_path / "b", "--verdict", verdict_of(outcome), "--require-pass")
        assert (got, out) == (code, "")
        assert message in err
        assert not (tmp_path / "b").exists()

    def test_none_is_none(self, run, world, tmp_path: Path):
        code, _, err = run("bundle", world.model, "-o", tmp_path / "b", "--require-pass")
        assert code == 2
        assert "has no verdict, and --require-pass asks for one" in err

    def test_a_failed_one_is_told(self, world, tmp_path: Path, verdict_of: Callable[[Outcome], Path]):
        made = monograph.bundle_model(world.model, tmp_path / "b", verdict=verdict_of(Outcome.FAIL))
        assert made.notes[0].startswith("the gate did not let this model pass (fail: 1 of 1 checks failed)")
        assert "**FAIL**" in (made.path / "MODEL_CARD.md").read_text()


class TestRefused:
    def test_lowered_from_another(self, world, tmp_path: Path):
        with pytest.raises(ConfigError, match="was lowered from a model with SHA-256"):
            monograph.bundle_model(world.other, tmp_path / "b", lowered=[world.int8])
        with pytest.raises(ConfigError, match="was not lowered from anything"):
            monograph.bundle_model(world.model, tmp_path / "b", lowered=[world.other])

    def test_measurements_of_another(self, world, tmp_path: Path):
        with pytest.raises(ConfigError, match=r"measures digits .* and not .*other\.onnx"):
            monograph.bundle_model(world.other, tmp_path / "b", measurements=[world.folder / "measured.json"])
        with pytest.raises(ConfigError, match="is no file of monograph measure"):
            monograph.bundle_model(world.model, tmp_path / "b", measurements=[world.verdict])

    def test_changed_after_it_was_proven(self, world, tmp_path: Path):
        proto = onnx.load(world.model)
        raw = bytearray(proto.graph.initializer[0].raw_data)
        raw[0] ^= 1
        proto.graph.initializer[0].raw_data = bytes(raw)
        onnx.save(proto, tmp_path / "edited.onnx")
        with pytest.raises(SourceError, match="is not as it was proven, so it does not ship"):
            monograph.bundle_model(tmp_path / "edited.onnx", tmp_path / "b")

    def test_without_golden_batches(self, world, tmp_path: Path):
        proto = onnx.load(world.model)
        del proto.metadata_props[:]
        onnx.save(proto, tmp_path / "foreign.onnx")
        with pytest.raises(SourceError, match="holds no golden batches"):
            monograph.bundle_model(tmp_path / "foreign.onnx", tmp_path / "b")

    def test_data_in_the_place_of_something_else(self, world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("monograph.models.onnx_file.LARGEST_INLINE_BYTES", 10)
        path = monograph.export_model(str(world.model), tmp_path / "m.onnx").path
        (data,) = tmp_path.glob("*.data")
        for place in ("predict.py", "manifest.json", "golden", "contract.json"):
            proto = onnx.load(path, load_external_data=False)
            for tensor in proto.graph.initializer:
                for entry in tensor.external_data:
                    entry.value = place if entry.key == "location" else entry.value
            onnx.save(proto, tmp_path / "moved.onnx")
            shutil.copy(data, tmp_path / place)
            monkeypatch.setattr("monograph.pipelines.bundle.forms.changes_since_proof", lambda *_: ())
            with pytest.raises(SourceError, match="rename that file"):
                monograph.bundle_model(tmp_path / "moved.onnx", tmp_path / "b")
        assert not (tmp_path / "b").exists()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--licence", "free for all!"), "is no SPDX expression"),
            (("--tolerance", "cuda=x"), "is no number"),
            (("--tolerance", "moon=1"), "unknown target 'moon'"),
            (("--tolerance", "cpu=0"), "tolerance 0 for cpu: give a positive share"),
            (("another.onnx",), "another.onnx was given beside the model"),
        ],
    )
    def test_options(self, run, world, tmp_path: Path, arguments: tuple[str, ...], message: str):
        code, out, err = run("bundle", world.model, "-o", tmp_path / "b", *arguments)
        assert (code, out) == (2, "")
        assert message in err


def test_the_command(run, world, tmp_path: Path):
    code, out, err = run(
        "bundle", world.model, "-o", tmp_path / "b", "--lowered", world.int8, "--verdict", world.verdict,
        "--measurement", world.folder / "measured.json", "--licence", "MIT", "--tolerance", "cuda=0.001", "--require-pass",
    )  # fmt: skip
    assert code == 0, err
    digest = hashlib.sha256((tmp_path / "b" / "manifest.json").read_bytes()).hexdigest()
    assert out.strip().endswith(f"verdict pass, manifest SHA-256 {digest}")
    assert '"cuda": 0.001' in (tmp_path / "b" / "golden" / "golden.json").read_text()


def test_json(run, world, tmp_path: Path):
    code, out, _ = run("bundle", world.model, "-o", tmp_path / "b", "--json")
    record = json.loads(out)
    assert (code, record["outcome"]) == (0, None)
    assert "model.onnx" in record["manifest"]["files"]
