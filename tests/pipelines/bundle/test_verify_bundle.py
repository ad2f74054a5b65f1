"""``monograph verify DIR``: a bundle as it was written, and every way in which one can be tampered with."""

from __future__ import annotations

import json
import os
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import monograph
from monograph.errors import BundleError, ConfigError, MonographError, SourceError
from monograph.pipelines.bundle import manifest, verify
from monograph.pipelines.bundle.golden import is_for
from monograph.pipelines.bundle.manifest import write_manifest
from monograph.runtime.targets import find_target


@pytest.fixture(autouse=True)
def no_model_is_opened(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an attack is refused for, it is refused for before any model or array is read."""
    if request.cls is TestAttacks:
        for name in ("read_onnx", "verify_golden", "read_golden_record"):
            monkeypatch.setattr(verify, name, lambda *_: pytest.fail("a file was read before the manifest was checked"))


def edit_manifest(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = bundle / "manifest.json"
    record = json.loads(path.read_text())
    change(record["files"])
    path.write_text(json.dumps(record))


class TestAsItWasWritten:
    def test_the_command(self, run, bundle: Path):
        code, out, _ = run("verify", bundle)
        lines = out.splitlines()
        assert code == 0
        assert lines[0].startswith("manifest: 12 files are as they were written, SHA-256 ")
        assert lines[1].startswith("batch 1, real rows, output logits: equal, max abs error")
        assert "verified: lowered/int8.onnx on cpu (executed): 3 comparisons equal, the file is as it was proven" in lines
        assert lines[-1] == f"verified: {bundle} on cpu"

    def test_json(self, run, bundle: Path):
        code, out, _ = run("verify", bundle, "--json")
        record = json.loads(out)
        assert (code, record["passed"], len(record["verification"]["forms"])) == (0, True, 2)

    @pytest.mark.parametrize("inside", ["", "digits/"])
    def test_a_zip_of_it(self, run, bundle: Path, tmp_path: Path, inside: str):
        path = tmp_path / "b.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in bundle.rglob("*"):
                archive.write(file, inside + file.relative_to(bundle).as_posix())
        assert run("verify", path)[0] == 0

    def test_which_files_a_target_is_given(self):
        cpu, cuda, npu = map(find_target, ("cpu", "cuda", "qnn-htp"))
        assert [is_for(lowering, cpu) for lowering in (None, "int8-static", "fp16", "ort", "qnn-context")] == [True] * 4 + [False]
        assert [is_for(lowering, cuda) for lowering in (None, "int8-static", "fp16", "ort")] == [True, False, True, False]
        assert [is_for(one, npu) for one in (None, "int8-static", "qdq-htp", "qdq-htp-int8", "qnn-context")] == [
            False, False, True, True, True,
        ]  # fmt: skip

    def test_wrong_options(self, run, bundle: Path, world):
        for arguments, message in (
            (("--on", "moon"), "unknown target 'moon'"),
            (("--members", world.other), "is a bundle, which holds no members"),
            (("--tolerance", "-1"), "tolerance -1: give 0 or more"),
        ):
            code, out, err = run("verify", bundle, *arguments)
            assert (code, out) == (2, "")
            assert message in err

    def test_another_tolerance(self, run, bundle: Path):
        code, out, _ = run("verify", bundle, "--tolerance", "0")
        assert code in (0, 1)  # ONNX Runtime and PyTorch may agree to the last bit
        assert ("FAILED" in out) == (code == 1)


class TestAttacks:
    @pytest.mark.parametrize(
        "place", ["model.onnx", "lowered/int8.onnx", "predict.py", "golden/model.onnx.npz", "contract.json", "verdict.json"]
    )
    def test_a_changed_byte(self, run, bundle: Path, place: str):
        data = bytearray((bundle / place).read_bytes())
        data[len(data) // 2] ^= 1
        (bundle / place).write_bytes(data)
        code, out, err = run("verify", bundle)
        assert (code, out) == (1, "")
        assert f"{place} was changed: SHA-256" in err

    def test_a_longer_file(self, bundle: Path):
        with (bundle / "labels.txt").open("a") as file:
            file.write("ten\n")
        with pytest.raises(BundleError, match=r"labels\.txt was changed: \d+ bytes, then"):
            monograph.verify_bundle(bundle)

    def test_a_missing_file(self, run, bundle: Path):
        (bundle / "labels.txt").unlink()
        code, _, err = run("verify", bundle)
        assert code == 1
        assert "labels.txt is missing: copy the whole bundle again" in err

    @pytest.mark.parametrize("place", ["extra.txt", "golden/extra.npz", ".hidden", "new/extra.txt"])
    def test_an_extra_file(self, bundle: Path, place: str):
        (bundle / place).parent.mkdir(exist_ok=True)
        (bundle / place).write_text("x")
        with pytest.raises(BundleError, match=f"{place} is not of this bundle"):
            monograph.verify_bundle(bundle)

    @pytest.mark.parametrize(
        ("place", "message"),
        [
            ("../outside.txt", "a path that leaves the folder"),
            ("golden/../../outside.txt", "a path that leaves the folder"),
            ("golden/./x", "a path that leaves the folder"),
            ("golden\\..\\x", "a path that leaves the folder"),
            ("", "a path that leaves the folder"),
            ("/etc/hostname", "an absolute path"),
            ("C:/x", "an absolute path"),
            ("\\\\host\\x", "an absolute path"),
        ],
    )
    def test_a_path_that_leaves_the_folder(self, run, bundle: Path, place: str, message: str):
        (bundle.parent / "outside.txt").write_text("x")
        edit_manifest(bundle, lambda files: files.update({place: {"sha256": "0" * 64, "size_bytes": 1}}))
        code, out, err = run("verify", bundle)
        assert (code, out) == (2, "")
        assert message in err

    @pytest.mark.parametrize("place", ["labels.txt", "golden", "manifest.json"])
    def test_a_symbolic_link(self, bundle: Path, place: str):
        shutil.move(bundle / place, bundle.parent / "elsewhere")
        (bundle / place).symlink_to(bundle.parent / "elsewhere")
        with pytest.raises(SourceError, match=r"is a symbolic link|is no bundle: it holds no file manifest\.json"):
            monograph.verify_bundle(bundle)

    def test_a_special_file(self, bundle: Path):
        (bundle / "labels.txt").unlink()
        os.mkfifo(bundle / "labels.txt")
        with pytest.raises(SourceError, match=r"labels\.txt is neither a file nor a folder"):
            monograph.verify_bundle(bundle)

    @pytest.mark.parametrize(
        "text", ["", "[]", "{", '{"files": {}}', '{"files": {}, "files": {}}', "[" * 100_000, '{"files": {"a": 1}}']
    )
    def test_a_damaged_manifest(self, bundle: Path, text: str):
        (bundle / "manifest.json").write_text(text)
        with pytest.raises(SourceError, match=r"manifest\.json is damaged"):
            monograph.verify_bundle(bundle)

    def test_a_huge_manifest(self, bundle: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(manifest, "_LARGEST_BYTES", 100)
        with pytest.raises(SourceError, match="expected 100 at most"):
            monograph.verify_bundle(bundle)


class TestConsistentLies:
    """A manifest can be written anew by whoever changes a file: what is read then must be safe, and still compared."""

    def test_other_outputs(self, run, bundle: Path):
        path = bundle / "golden" / "model.onnx.npz"
        arrays = dict(np.load(path))
        np.savez(path, **{key: array + 1 if "expected" in key else array for key, array in arrays.items()})
        write_manifest(bundle, None)
        code, out, _ = run("verify", bundle)
        assert code == 1
        assert "output logits: DIFFERS" in out
        assert out.splitlines()[-1] == f"FAILED: {bundle} on cpu"

    def test_a_bomb_of_arrays(self, bundle: Path):
        np.savez_compressed(bundle / "golden" / "model.onnx.npz", x=np.zeros(1 << 24))
        write_manifest(bundle, None)
        with pytest.raises(SourceError, match=r"x\.npy is compressed"):
            monograph.verify_bundle(bundle)

    @pytest.mark.parametrize("header", ["(1000000000000,)", "(-1,)", "(2,) + (3,)"])
    def test_an_array_larger_than_its_file(self, bundle: Path, header: str):
        text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {header}, }}".ljust(117) + "\n"
        data = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(8)
        with zipfile.ZipFile(bundle / "golden" / "model.onnx.npz", "w") as archive:
            archive.writestr("batch_0.input_0.npy", data)
        write_manifest(bundle, None)
        with pytest.raises(SourceError, match="is damaged"):
            monograph.verify_bundle(bundle)

    def test_pickled_arrays(self, bundle: Path):
        np.savez(bundle / "golden" / "model.onnx.npz", x=np.array([{}], object))
        write_manifest(bundle, None)
        with pytest.raises(SourceError, match="is damaged"):
            monograph.verify_bundle(bundle)

    def test_another_contract(self, bundle: Path):
        text = (bundle / "contract.json").read_text()
        (bundle / "contract.json").write_text(text.replace('"zero"', '"nil"'))
        write_manifest(bundle, None)
        with pytest.raises(BundleError, match=r"contract\.json is not the contract that model\.onnx holds"):
            monograph.verify_bundle(bundle)

    @pytest.mark.parametrize("key", ["file", "arrays"])
    def test_golden_batches_of_files_elsewhere(self, bundle: Path, key: str):
        path = bundle / "golden" / "golden.json"
        record = json.loads(path.read_text())
        record["forms"][1][key] = "../outside.onnx"
        path.write_text(json.dumps(record))
        write_manifest(bundle, None)
        with pytest.raises(SourceError, match=r"\.\./outside\.onnx is needed and not in its manifest"):
            monograph.verify_bundle(bundle)

    @pytest.mark.parametrize(("key", "message"), [("batches", "nothing would be compared"), ("forms", "are not for model.onnx")])
    def test_golden_batches_that_compare_nothing(self, bundle: Path, key: str, message: str):
        path = bundle / "golden" / "golden.json"
        record = json.loads(path.read_text())
        record["forms"] = [{**form, "batches": []} for form in record["forms"]] if key == "batches" else record["forms"][1:]
        path.write_text(json.dumps(record))
        write_manifest(bundle, None)
        with pytest.raises(SourceError, match=message.replace(".", r"\.")):
            monograph.verify_bundle(bundle)

    @pytest.mark.parametrize("tolerance", ["NaN", "Infinity", "-1", "0"])
    def test_a_tolerance_that_lets_all_pass(self, bundle: Path, tolerance: str):
        path = bundle / "golden" / "golden.json"
        path.write_text(path.read_text().replace('"cpu": 0.0001', f'"cpu": {tolerance}'))
        write_manifest(bundle, None)
        with pytest.raises(SourceError, match=r"is damaged|that is no positive number"):
            monograph.verify_bundle(bundle)

    def test_a_target_that_it_has_no_model_for(self, bundle: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(verify, "check_runs_here", lambda target: None)
        with pytest.raises(ConfigError, match=r"holds no model for qnn-htp: make one, monograph lower MODEL --to qdq-htp"):
            monograph.verify_bundle(bundle, on="qnn-htp")


class TestZip:
    def write(self, path: Path, name: str, data: bytes, *, mode: int = stat.S_IFREG | 0o644) -> Path:
        entry = zipfile.ZipInfo(name)
        entry.external_attr, entry.compress_type = mode << 16, zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(entry, data)
        return path

    @pytest.mark.parametrize("name", ["../outside.txt", "/outside.txt", "a/../../outside.txt", "a\\..\\..\\outside.txt"])
    def test_a_path_that_leaves_the_folder(self, tmp_path: Path, name: str):
        path = self.write(tmp_path / "b.zip", name, b"x")
        with pytest.raises(SourceError, match=r"a path that leaves the folder|an absolute path"):
            monograph.verify_bundle(path)
        assert [entry.name for entry in tmp_path.iterdir()] == ["b.zip"]

    def test_a_bomb(self, run, tmp_path: Path):
        path = self.write(tmp_path / "b.zip", "model.onnx", bytes(1 << 24))
        code, out, err = run("verify", path)
        assert (code, out) == (2, "")
        assert "more than 100 times as many: no bundle shrinks so" in err

    def test_a_bomb_that_lies_about_its_size(self, tmp_path: Path):
        path = self.write(tmp_path / "b.zip", "model.onnx", bytes(1 << 24))
        data = path.read_bytes().replace((1 << 24).to_bytes(4, "little"), (100).to_bytes(4, "little"))
        path.write_bytes(data)
        with pytest.raises(SourceError, match=r"cannot be unpacked|does not unpack to"):
            monograph.verify_bundle(path)

    def test_too_large(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("monograph.pipelines.bundle.archive.LARGEST_BYTES", 10)
        with pytest.raises(SourceError, match="would unpack to 11 bytes, more than the 10"):
            monograph.verify_bundle(self.write(tmp_path / "b.zip", "x", bytes(11)))

    def test_too_many_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("monograph.pipelines.bundle.archive.MOST_FILES", 1)
        self.write(tmp_path / "b.zip", "a", b"")
        with pytest.raises(SourceError, match="holds 2 files, expected 1 at most"):
            monograph.verify_bundle(self.write(tmp_path / "b.zip", "b", b""))

    @pytest.mark.parametrize(
        ("mode", "message"), [(stat.S_IFLNK | 0o777, "is a symbolic link"), (stat.S_IFIFO, "is neither a file nor a folder")]
    )
    def test_what_is_no_file(self, tmp_path: Path, mode: int, message: str):
        path = self.write(tmp_path / "b.zip", "model.onnx", b"/etc/hostname", mode=mode)
        with pytest.raises(SourceError, match=message):
            monograph.verify_bundle(path)

    def test_one_name_twice(self, tmp_path: Path):
        self.write(tmp_path / "b.zip", "Model.onnx", b"a")
        with pytest.raises(SourceError, match=r"holds model\.onnx twice"):
            monograph.verify_bundle(self.write(tmp_path / "b.zip", "model.onnx", b"b"))

    def test_cut_short(self, whole_bundle: Path, tmp_path: Path):
        path = Path(shutil.make_archive(str(tmp_path / "b"), "zip", whole_bundle))
        whole = path.read_bytes()
        for share in (0.0, 0.5, 0.99):
            path.write_bytes(whole[: int(len(whole) * share)])
            with pytest.raises(MonographError):
                monograph.verify_bundle(path)

    def test_without_a_bundle(self, tmp_path: Path):
        with pytest.raises(SourceError, match="is no bundle"):
            monograph.verify_bundle(self.write(tmp_path / "b.zip", "a.txt", b"x"))
