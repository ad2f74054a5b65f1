"""Whether a bundle is what was written, and still computes it: the manifest first, then the golden batches on a target."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from monograph.errors import BundleError, ConfigError, SourceError
from monograph.models.contract import Contract
from monograph.models.digest import file_sha256
from monograph.models.onnx_file import read_onnx
from monograph.pipelines.bundle.archive import unpacked
from monograph.pipelines.bundle.forms import MODEL, ORT_FORMAT
from monograph.pipelines.bundle.golden import FormRecord, is_for, read_form, read_golden_record
from monograph.pipelines.bundle.manifest import MANIFEST, Manifest, check_bundle
from monograph.pipelines.verify import Verification, verify_golden
from monograph.runtime.coverage import require_coverage
from monograph.runtime.on_target import check_runs_here
from monograph.runtime.targets import Target, find_target

_ZIP = ".zip"


@dataclass(frozen=True)
class BundleVerification:
    """What was found, on one target; every file is what the manifest says, or there would be none."""

    path: Path
    target: str
    manifest_sha256: str
    file_count: int
    forms: tuple[Verification, ...]
    """One for each model file that the target is for."""
    not_run: tuple[str, ...]
    """Model files that are for other targets."""

    @property
    def passed(self) -> bool:
        """True where every output is equal."""
        return all(form.passed for form in self.forms)

    def describe(self) -> str:
        """Return the findings as text for people, the verdict last."""
        lines = [f"manifest: {self.file_count} files are as they were written, SHA-256 {self.manifest_sha256}"]
        lines += [form.describe() for form in self.forms]
        lines += [f"{place}: for other targets than {self.target}, not run" for place in self.not_run]
        return "\n".join([*lines, f"{'verified' if self.passed else 'FAILED'}: {self.path} on {self.target}"])


def looks_like_bundle(path: Path) -> bool:
    """Say whether ``path`` is to be verified as a bundle rather than as a model file."""
    return (path / MANIFEST).is_file() or (path.suffix.lower() == _ZIP and path.is_file())


def verify_bundle(bundle: str | Path, *, on: str = "cpu", tolerance: float | None = None) -> BundleVerification:
    """Check every file of ``bundle`` by its manifest, then run the golden batches of its models on a target.

    Args:
        bundle: a folder that :func:`bundle_model` wrote, or a ``.zip`` file of one.
        on: a target, see ``monograph targets``.
        tolerance: largest absolute error allowed, as a share of the largest absolute reference value; the bundle's own for
            the target by default.

    Raises:
        SourceError: it is no bundle, is damaged, or is unsafe to read.
        BundleError: a file is not what the manifest says.
        ConfigError: the target is not here, none of the bundle's models is for it, or the proof of one does not cover its
            instruction set.
        PlacementError: something else than the target would run the model.
    """
    path = Path(bundle)
    if tolerance is not None and not tolerance >= 0:
        raise ConfigError(f"tolerance {tolerance:g}: give 0 or more")
    if not path.exists():
        raise SourceError(f"no such file or folder: {path}")
    with _opened(path) as folder:
        manifest = check_bundle(folder)
        target = find_target(on)
        check_runs_here(target)
        contract, forms = _contents(folder, manifest)
        taken = [form for form in forms if is_for(form.lowering, target)]
        if not taken:
            raise ConfigError(
                f"{path} holds no model for {target.name}: make one, monograph lower MODEL --to {target.lowering} -o FILE, "
                "and bundle it, monograph bundle MODEL --lowered FILE"
            )
        return BundleVerification(
            path=path,
            target=target.name,
            manifest_sha256=file_sha256(folder / MANIFEST),
            file_count=len(manifest.files),
            forms=tuple(_verify_form(folder, form, contract, target, tolerance) for form in taken),
            not_run=tuple(form.file for form in forms if form not in taken),
        )


@contextmanager
def _opened(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield path
        return
    with unpacked(path) as folder:
        yield folder


def _contents(folder: Path, manifest: Manifest) -> tuple[Contract, tuple[FormRecord, ...]]:
    """Return the contract, and the model files with their golden batches; all that they name is in the manifest."""
    forms = read_golden_record(folder).forms
    if MODEL not in (form.file for form in forms):
        raise SourceError(f"{folder}: its golden batches are not for {MODEL}: write the bundle again")
    needed = [MODEL, "contract.json", *(place for form in forms for place in (form.file, form.arrays))]
    for place in needed:
        if place not in manifest.files:
            raise SourceError(f"{folder}: {place} is needed and not in its manifest: write the bundle again")
    contract = Contract.from_json((folder / "contract.json").read_text(encoding="utf-8"))
    if contract != read_onnx(folder / MODEL).contract:
        raise BundleError(f"{folder}: contract.json is not the contract that {MODEL} holds: write the bundle again")
    return contract, forms


def _verify_form(folder: Path, form: FormRecord, contract: Contract, target: Target, tolerance: float | None) -> Verification:
    path = folder / form.file
    # A file in ORT format promises what its model does, and cannot be read as ONNX.
    own = contract
    if form.lowering != ORT_FORMAT:
        file = read_onnx(path)
        require_coverage(file, target)
        own = file.contract
    allowed = form.allowed_on(target.name) if tolerance is None else tolerance
    return replace(verify_golden(path, own, read_form(folder, form), target, allowed), path=Path(form.file))
