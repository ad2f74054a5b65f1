"""The line of the verb ``bundle``: plan, write beside, manifest, rename."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from monograph.errors import ConfigError, MonographError, SourceError
from monograph.models.contract import TOKENIZER_KEY
from monograph.models.digest import file_sha256
from monograph.models.files import publish, staging_folder
from monograph.pipelines.bundle.card import model_card
from monograph.pipelines.bundle.golden import write_form, write_golden
from monograph.pipelines.bundle.lineage import lineage_of
from monograph.pipelines.bundle.manifest import MANIFEST, Manifest, canonical_json, check_bundle, write_manifest
from monograph.pipelines.bundle.plan import BundlePlan, plan_bundle

PREDICT = "predict.py"
_WRITTEN_LAST = (MANIFEST, "golden", "measurements", "lowered")


@dataclass(frozen=True)
class Bundle:
    """A folder that ships."""

    path: Path
    manifest_sha256: str
    """Of the manifest, which has the SHA-256 of all else: whoever knows it can tell this bundle from any other."""
    size_bytes: int
    """Of all files but the manifest."""
    manifest: Manifest
    outcome: str | None
    """Of the verdict; None without one."""
    notes: tuple[str, ...]
    """What is missing, a sentence each."""

    def describe(self) -> str:
        """Return one line for people."""
        verdict = f"verdict {self.outcome}" if self.outcome else "no verdict"
        files = f"{len(self.manifest.files)} files, {self.size_bytes:,} bytes"
        return f"{self.path}  {files}, {verdict}, manifest SHA-256 {self.manifest_sha256}"


def bundle_model(
    model: str | Path,
    folder: str | Path,
    *,
    lowered: Sequence[str | Path] = (),
    verdict: str | Path | None = None,
    measurements: Sequence[str | Path] = (),
    licence: str | None = None,
    require_pass: bool = False,
    tolerances: Mapping[str, float] | None = None,
) -> Bundle:
    """Write the folder that ships: the model with all that proves it, and a script that runs it.

    Two bundles of the same files are equal byte for byte.

    Args:
        model: an ONNX file that monograph wrote, so that it carries golden batches.
        folder: to write; an intact bundle there is replaced, anything else is refused.
        lowered: files that ``monograph lower`` made of ``model``.
        verdict: the ``verdict.json`` of ``monograph gate`` on ``model``.
        measurements: files of ``monograph measure -o``; what they tell of other models is left out.
        licence: of the model, as an SPDX expression.
        require_pass: refuse a model without a passing verdict.
        tolerances: by target, largest absolute error that its golden outputs may have, as a share of the largest absolute
            value; the proof's own by default.

    Raises:
        InputError: a file cannot be used, is not as it was proven, or is of another model; or ``folder`` is something else.
        BlockedError: ``require_pass``, and the verdict is fail or inconclusive; nothing is written.
    """
    path = Path(folder)
    _require_free(path)
    plan = plan_bundle(
        Path(model),
        lowered=[Path(file) for file in lowered],
        verdict=None if verdict is None else Path(verdict),
        measurements=[Path(file) for file in measurements],
        licence=licence,
        require_pass=require_pass,
        tolerances=tolerances,
    )
    with staging_folder(path.absolute().parent) as staging:
        staged = staging / "new"
        staged.mkdir()
        _write(plan, staged)
        manifest = write_manifest(staged, licence)
        manifest_sha256 = file_sha256(staged / MANIFEST)
        _put_in_place(staged, path, staging / "old")
    return Bundle(
        path=path,
        manifest_sha256=manifest_sha256,
        size_bytes=sum(entry.size_bytes for entry in manifest.files.values()),
        manifest=manifest,
        outcome=None if plan.verdict is None else plan.verdict.outcome.value,
        notes=tuple(plan.notes()),
    )


def _require_free(path: Path) -> None:
    """Refuse to write over anything but an empty folder and a bundle as it was written."""
    if not (path.is_symlink() or path.exists()):
        return
    if path.is_symlink() or not path.is_dir():
        raise ConfigError(f"{path} exists and is no folder: give another folder to write")
    if not any(path.iterdir()):
        return
    try:
        check_bundle(path)
    except MonographError as error:
        raise ConfigError(
            f"{path} exists and is no bundle as one was written, so it is not overwritten ({error}): give another folder, or "
            "remove it"
        ) from error


def _put_in_place(staged: Path, path: Path, old: Path) -> None:
    """Rename ``staged`` to ``path``; a bundle that stands there is moved to ``old`` first, and back where that fails."""
    is_replaced = path.exists()
    if is_replaced:
        path.rename(old)
    try:
        publish(staged, path)
    except BaseException:
        if is_replaced:
            old.rename(path)
        raise


def _write(plan: BundlePlan, folder: Path) -> None:
    """Write all files but the manifest."""
    for place, source in _copies(plan).items():
        _copy(source, folder / place)
    for place, text in _texts(plan).items():
        _claim(folder / place).write_text(text, encoding="utf-8")
    records = [write_form(folder, form.place, form.lowering, form.golden, plan.tolerances) for form in plan.forms]
    write_golden(folder, records)


def _copies(plan: BundlePlan) -> dict[str, Path]:
    """Return the files that are taken as they are, by their path inside the bundle.

    Raises:
        SourceError: two of them would stand at one place.
    """
    copies: dict[str, Path] = {PREDICT: Path(__file__).with_name(PREDICT)}
    if plan.verdict_path is not None:
        copies["verdict.json"] = plan.verdict_path
    for form in plan.forms:
        for place, source in {form.place: form.path, **form.beside}.items():
            is_taken = copies.get(place, source) != source or place in _WRITTEN_LAST or place.startswith("golden/")
            if is_taken:
                raise SourceError(f"{form.path} keeps data in {place}, where the bundle keeps something else: rename that file")
            copies[place] = source
    return copies


def _texts(plan: BundlePlan) -> dict[str, str]:
    """Return the files that are written here."""
    contract = plan.model.contract
    texts = {
        "contract.json": canonical_json(json.loads(contract.to_json())),
        "lineage.json": canonical_json(lineage_of(plan)),
        "MODEL_CARD.md": model_card(plan),
    }
    if contract.class_names is not None:
        texts["labels.txt"] = "".join(" ".join(name.splitlines()) + "\n" for name in contract.class_names)
    if TOKENIZER_KEY in plan.model.metadata:
        texts["tokenizer.json"] = plan.model.metadata[TOKENIZER_KEY]
    for file in plan.measurements:
        texts[f"measurements/{file.name}"] = canonical_json(list(file.records))
    return texts


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, _claim(target))


def _claim(target: Path) -> Path:
    """Return ``target`` with its folder made; refuse one that stands there already."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SourceError(f"the model keeps data in {target.parent.name}, where the bundle keeps a folder: rename it") from error
    if target.exists():
        raise SourceError(f"the model keeps data in {target.name}, where the bundle keeps something else: rename that file")
    return target
