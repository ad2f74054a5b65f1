"""Are 8 bits right on every processor, do they hold what was asked, and are they as fast as NNCF's?

``python benchmarks/eight_bits.py [--only targets,loss,nncf,full-range] [--models lite0,…] [--nncf-python FILE] [--again]``

Six models (``eight_bits_models.py``), each lowered by ``int8-static``. All choices are made on validation rows; test rows are
looked at for the figures alone.

- ``targets``: the portable file on cpu, cpu-avx2, cpu-sse4 and arm64: the share of test rows with cpu's decision. Of a slow
  target only as many of the first 2,000 test rows are run as fit two minutes, by the time of one row.
- ``loss``: the file of ``--max-drop 0.5`` beside float on all test rows, with the upper 95% bound of the paired loss (Tango).
- ``nncf``: that file beside NNCF's ``quantize_with_accuracy_control`` at the same allowed drop: median latency, interleaved in
  fresh processes, and evaluations, rows evaluated, sizes and losses of both. NNCF runs in an environment of its own
  (``.venv-nncf``, which ``make bench`` makes) and is stopped after ten minutes a model.
- ``full-range``: what the file with the full range of weights loses on a processor with AVX2 alone, beside the portable one.

Every model and part is kept in FOLDER/records when it is done, and a later run goes on from there. Exit 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from eight_bits_models import RECIPES, Prepared, decide, decisions, prepare, right

from monograph.errors import MissingPackageError, MonographError
from monograph.export.lowering import AgreementBound
from monograph.models.contract import Contract, Kind, TensorSpec
from monograph.models.files import sha256_of_files, write_atomically
from monograph.models.onnx_file import size_on_disk
from monograph.pipelines.lower import lower_model
from monograph.runtime.compare import compare
from monograph.runtime.environment import describe_environment, installed_versions
from monograph.runtime.instruction_sets import instruction_set_here
from monograph.runtime.job import Job, Settings
from monograph.runtime.measure import onnx_contender
from monograph.runtime.session import usable_cores
from monograph.runtime.statistics import paired_loss_bound
from monograph.runtime.targets import TARGETS, find_target

_HERE = Path(__file__).parent
_TO, _MAX_DROP_POINTS = "int8-static", 0.5
_TARGETS = ("cpu", "cpu-avx2", "cpu-sse4", "arm64")
_MOST_ROWS, _TARGET_SECONDS, _NNCF_SECONDS, _BLOCKS = 2_000, 120.0, 600, 6
_BARS = {"equal decisions": 0.999, "models at least as fast as NNCF": 4, "evaluations beside NNCF's": 0.5}
Record = dict[str, Any]


def main() -> int:
    """Run each part on each model, write the record, and print the bars."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda text: tuple(text.split(",")), default=tuple(_PARTS))
    parser.add_argument("--models", type=lambda text: tuple(text.split(",")), default=tuple(RECIPES))
    parser.add_argument("--folder", type=Path, default=Path("runs/bench/eight_bits"))
    parser.add_argument("--nncf-python", type=Path, default=Path(".venv-nncf/bin/python"))
    parser.add_argument("--test-rows", type=int, help="of all parts; all by default")
    parser.add_argument("--again", action="store_true", help="measure what was measured before, too")
    parser.add_argument("-o", "--output", type=Path, default=_HERE / "results" / "eight_bits.json")
    options = parser.parse_args()
    records: dict[str, Record] = {}
    for name in options.models:
        try:
            model = prepare(name, options.folder / "models")
        except MissingPackageError as error:
            records[name] = {"skipped": str(error)}
            print(f"{name}: skipped, {error}", flush=True)
            continue
        bench = _Bench(model, options.folder, options.nncf_python, options.test_rows)
        records[name] = {part: bench.remembered(part, again=options.again and part in options.only, run=part in options.only)
                         for part in _PARTS}  # fmt: skip
    bars = _judge(records)
    record = {
        "benchmark": "eight_bits",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "python benchmarks/eight_bits.py",
        "environment": asdict(describe_environment(usable_cores(), spinning=True)),
        "instruction_set": str(instruction_set_here()),
        "bars": _BARS | {"loss in points, 95% bound": _MAX_DROP_POINTS},
        "judged": bars,
        "models": records,
    }
    with write_atomically(options.output) as staged:
        staged.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for text, met in bars.items():
        print(f"{'met   ' if met else 'MISSED' if met is False else 'open  '} {text}")
    return 0 if all(met is not False for met in bars.values()) else 1


class _Bench:
    """One model with its lowered files."""

    def __init__(self, model: Prepared, folder: Path, nncf_python: Path, test_rows: int | None) -> None:
        self.model, self.nncf_python = model, nncf_python
        self.folder = folder / "work" / f"{model.name}-{model.file.sha256[:12]}"
        self.records = folder / "records"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.records.mkdir(parents=True, exist_ok=True)
        self.test = model.load("test", test_rows)

    def remembered(self, part: str, *, again: bool, run: bool) -> Record | None:
        """Return what ``part`` gave before for this file and these versions, else run it; None where it is not to be run."""
        key = [part, self.model.file.sha256, len(self.test), dict(installed_versions())]
        path = self.records / f"{self.model.name}-{part}-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]}.json"
        if path.exists() and not again:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        if not run:
            return None
        began = time.perf_counter()
        try:
            made = _PARTS[part](self)
        except MissingPackageError as error:
            made = {"skipped": str(error)}
        except MonographError as error:
            made = {"failed": str(error)}
        made |= {"seconds": round(time.perf_counter() - began, 1)}
        print(f"{self.model.name} {part}: {json.dumps(made)}"[:400], flush=True)
        if "failed" not in made and "skipped" not in made:
            with write_atomically(path) as staged:
                staged.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
        return made

    @functools.cached_property
    def float_decisions(self) -> list[Any]:
        """What the float file decides on the test rows."""
        return decide(self.model, self.model.file.path, self.test)

    def loss(self, path: Path) -> Record:
        """Return what the file at ``path`` loses beside float, in points, with its upper 95% bound."""
        return self.loss_of(decide(self.model, path, self.test))

    def loss_of(self, made: list[Any]) -> Record:
        """Return the same of decisions on the first test rows."""
        rows = self.test.take(slice(0, len(made)))
        own, reference = right(made, rows), right(self.float_decisions[: len(made)], rows)
        lost, gained = int((reference & ~own).sum()), int((own & ~reference).sum())
        return {
            "rows": len(made),
            "top1": float(own.mean()),
            "top1_of_float": float(reference.mean()),
            "same_decision": _same(made, self.float_decisions[: len(made)]),
            "loss_points": 100 * (lost - gained) / len(made),
            "loss_bound_points": 100 * paired_loss_bound(lost, gained, len(made)),
        }

    def lowered(self, form: str) -> Path:
        """Return the file of one form, made once: ``portable``, ``full-range`` or ``aware``."""
        path = self.folder / f"{form}.onnx"
        if not path.exists():
            _FORMS[form](self, path)
        return path

    def nncf(self) -> Path:
        """Return NNCF's file, made in a process of its own; its counts lie beside it."""
        path = self.folder / "nncf.onnx"
        if not path.exists():
            nncf_with_accuracy_control(self.model, path, self.nncf_python)
        return path


def _lower_portable(bench: _Bench, path: Path) -> None:
    lower_model(bench.model.file.path, path, to=_TO, calibration=str(bench.model.rows["calibration"]), bound=_ANY)


def _lower_full_range(bench: _Bench, path: Path) -> None:
    data = str(bench.model.rows["calibration"])
    lower_model(bench.model.file.path, path, to=_TO, calibration=data, bound=_ANY, processors="vnni")


def _lower_aware(bench: _Bench, path: Path) -> None:
    """Search on validation rows alone, and keep what the search cost beside the file.

    The reader's rows have a class a step, of which ``--max-drop`` knows nothing yet: its file is the portable one.
    """
    if bench.model.reads_steps:
        _lower_portable(bench, path)
        return
    plans: list[Any] = []
    lower_model(
        bench.model.file.path,
        path,
        to=_TO,
        calibration=str(bench.model.rows["validation"]),
        max_drop=_MAX_DROP_POINTS,
        on_plan=plans.append,
    )
    cost = {"evaluations": plans[0].evaluations, "rows_evaluated": plans[0].rows_evaluated, "in_float": len(plans[0].kept)}
    path.with_suffix(".counts.json").write_text(json.dumps(cost), encoding="utf-8")


_ANY = AgreementBound(top1=0.0, cosine=-1.0)
"""What a form loses is the figure: nothing is refused."""
_FORMS: Mapping[str, Callable[[_Bench, Path], None]] = {
    "portable": _lower_portable,
    "full-range": _lower_full_range,
    "aware": _lower_aware,
}


def nncf_with_accuracy_control(model: Prepared, path: Path, python: Path) -> None:
    """Let NNCF quantise the float file at the same allowed drop; what it cost lies in ``path`` with suffix ``.counts.json``.

    Raises:
        MissingPackageError: there is no interpreter with nncf.
        MonographError: NNCF failed, or took more than ten minutes.
    """
    if not python.exists():
        raise MissingPackageError(f"no {python}: make .venv-nncf, or give --nncf-python an interpreter that has nncf")
    partial_path = path.with_suffix(".part.onnx")
    request = {
        "model": str(model.file.path),
        "calibration": str(model.rows["calibration"]),
        "validation": str(model.rows["validation"]),
        "max_drop": _MAX_DROP_POINTS / 100,
        "output": str(partial_path),
        "is_transformer": model.is_text,
    }
    request_path = path.with_suffix(".request.json")
    request_path.write_text(json.dumps(request), encoding="utf-8")
    line = [str(python), str(_HERE / "eight_bits_nncf.py"), str(request_path)]
    counts = partial_path.with_suffix(".counts.json")
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=_NNCF_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        so_far = counts.read_text(encoding="utf-8") if counts.exists() else "nothing"
        raise MonographError(f"NNCF was stopped after {_NNCF_SECONDS} s; so far: {so_far}") from error
    if done.returncode:
        raise MonographError(f"NNCF failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    counts.rename(path.with_suffix(".counts.json"))
    partial_path.rename(path)


def _targets(bench: _Bench) -> Record:
    """Run the portable file on every target that is here."""
    path = bench.lowered("portable")
    reference: list[Any] | None = None
    made: Record = {}
    for name in _TARGETS:
        if name not in TARGETS or not (here := find_target(name).probe()).is_here:
            made[name] = {"skipped": "no such target" if name not in TARGETS else here.describe()}
            continue
        found, row_s = _on_target(bench, path, name)
        reference = found if name == "cpu" else reference
        assert reference is not None
        made[name] = {"rows": len(found), "row_s": row_s, "same_decision": _same(found, reference[: len(found)])}
    return made


def _on_target(bench: _Bench, path: Path, name: str) -> tuple[list[Any], float]:
    """Return decisions on as many test rows as fit the time, and the seconds of one row."""
    target = find_target(name)
    best_path, contract = _with_best_class(bench.model, path)
    contender = onnx_contender(path.stem, best_path, contract, sha256_of_files([best_path]), size_on_disk(best_path), target)
    settings = Settings(batch_sizes=(1,)).without_latency()
    first = target.run(Job(contender, bench.test.take(slice(0, 1)), settings))
    row_s = float(np.median(first.timings[0].samples_ns)) / 1e9
    count = int(np.clip(_TARGET_SECONDS / max(row_s, 1e-9), 1, min(_MOST_ROWS, len(bench.test))))
    outputs = target.run(Job(contender, bench.test.take(slice(0, count)), settings)).outputs
    assert outputs is not None
    return decisions(np.asarray(outputs)), row_s


def _with_best_class(model: Prepared, path: Path) -> tuple[Path, Contract]:
    """Return a copy whose output is the best class: 18,710 classes a step of 1,000 lines would take gigabytes."""
    output = model.file.contract.output
    best = path.with_suffix(".best.onnx")
    proto = onnx.load(path)
    proto.graph.node.append(onnx.helper.make_node("ArgMax", [output.name], ["best_class"], "best_class", axis=-1, keepdims=0))
    del proto.graph.output[:]
    proto.graph.output.append(onnx.helper.make_tensor_value_info("best_class", onnx.TensorProto.INT64, output.shape[:-1]))
    del proto.metadata_props[:]
    onnx.save(proto, best)
    spec = TensorSpec("best_class", "int64", output.shape[:-1])
    return best, Contract(model.file.contract.inputs, (spec,), Kind.REGRESSION)


def _loss(bench: _Bench) -> Record:
    path = bench.lowered("aware")
    return {**bench.loss(path), "size_bytes": size_on_disk(path), "search": _counts(path)}


def _nncf(bench: _Bench) -> Record:
    """Time our file, NNCF's and float, interleaved."""
    ours, theirs = bench.lowered("aware"), bench.nncf()
    target, rows = find_target("cpu"), bench.test.take(slice(0, 1))
    contract = bench.model.file.contract
    contenders = [
        onnx_contender(name, path, contract, sha256_of_files([path]), size_on_disk(path), target)
        for name, path in (("ours", ours), ("nncf", theirs), ("float", bench.model.file.path))
    ]
    timed = compare(contenders, rows, Settings(batch_sizes=(1,)), blocks=_BLOCKS)
    return {
        "p50_s": {name: float(np.median(values)) for name, values in timed.p50_s.items()},
        "ours_to_nncf": asdict(timed.ratio(["ours"], ["nncf"])),
        "ours_to_float": asdict(timed.ratio(["ours"], ["float"])),
        "ours": {"size_bytes": size_on_disk(ours), **bench.loss(ours), "search": _counts(ours)},
        "nncf": {"size_bytes": size_on_disk(theirs), **bench.loss(theirs), "search": _counts(theirs)},
    }


def _full_range(bench: _Bench) -> Record:
    """Compare both forms where pairs of products saturate: here, or on the emulated processor where this one has VNNI."""
    here = instruction_set_here()
    if here is not None and here.saturates:
        return {"on": f"cpu, {here}", **{form: bench.loss(bench.lowered(form)) for form in ("portable", "full-range")}}
    if "cpu-avx2" not in TARGETS or not (found := find_target("cpu-avx2").probe()).is_here:
        return {"skipped": "no such target" if "cpu-avx2" not in TARGETS else found.describe()}
    forms = ("portable", "full-range")
    return {"on": "cpu-avx2", **{form: bench.loss_of(_on_target(bench, bench.lowered(form), "cpu-avx2")[0]) for form in forms}}


def _counts(path: Path) -> Record | None:
    counts = path.with_suffix(".counts.json")
    return dict(json.loads(counts.read_text(encoding="utf-8"))) if counts.exists() else None


def _same(made: list[Any], reference: list[Any]) -> float:
    return float(np.mean([one == other for one, other in zip(made, reference, strict=True)]))


_PARTS: Mapping[str, Callable[[_Bench], Record]] = {
    "targets": _targets,
    "loss": _loss,
    "nncf": _nncf,
    "full-range": _full_range,
}


def _judge(records: Mapping[str, Record]) -> dict[str, bool | None]:
    """Return each bar with whether it is met; None where it was not measured."""
    bars: dict[str, bool | None] = {}
    for name, record in records.items():
        for target, found in (record.get("targets") or {}).items():
            if isinstance(found, dict) and target != "cpu":
                share = found.get("same_decision")
                told = f"{share:.2%} of {found['rows']} rows" if share is not None else found.get("skipped")
                bars[f"(a) {name} on {target} decides as on cpu: {told}"] = (
                    None if share is None else share >= _BARS["equal decisions"]
                )
        loss = record.get("loss") or {}
        bound = loss.get("loss_bound_points")
        told = (
            f"{loss['loss_points']:.2f}, at most {bound:.2f} points" if bound is not None else loss.get("failed", "not measured")
        )
        bars[f"(b) {name} loses {told}"] = None if bound is None else bound <= _MAX_DROP_POINTS
        full = (record.get("full-range") or {}).get("full-range")
        if full:
            portable = record["full-range"]["portable"]
            bars[
                f"(d) {name} loses {full['loss_points']:.2f} points in the full range ({full['same_decision']:.1%} as float), "
                f"{portable['loss_points']:.2f} ({portable['same_decision']:.1%}) in the portable form"
            ] = None
    compared = {name: record["nncf"] for name, record in records.items() if (record.get("nncf") or {}).get("ours_to_nncf")}
    ratios = {name: one["ours_to_nncf"]["estimate"] for name, one in compared.items()}
    told = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
    fast = sum(ratio <= 1 for ratio in ratios.values())
    enough = int(_BARS["models at least as fast as NNCF"])
    bars[f"(c) at least as fast as NNCF on {fast} of {len(RECIPES)} models ({told})"] = fast >= enough if ratios else None
    for name, one in compared.items():
        own, other = one["ours"]["search"], one["nncf"]["search"]
        if own and other:
            cost = f"{own['evaluations']} evaluations of {own['rows_evaluated']:,} rows"
            key = f"(c) {name}: {cost}, NNCF {other['evaluations']} of {other['rows_evaluated']:,}"
            bars[key] = own["evaluations"] <= _BARS["evaluations beside NNCF's"] * other["evaluations"]
    return bars


if __name__ == "__main__":
    sys.exit(main())
