"""The verb ``run``: a pipeline file from training to report, each step done once.

The line reads: contracts → data → train → export → fuse → measure → compare → report.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from monograph.errors import ConfigError
from monograph.export.parity import ParityProof
from monograph.models.contract import Contract
from monograph.models.data.rows import Rows
from monograph.models.files import write_atomically
from monograph.models.onnx_file import OnnxFile, read_onnx
from monograph.models.seen import NOTHING_SEEN, mark_seen, seen, seen_by
from monograph.models.sources import Scheme, parse_source
from monograph.pipelines.config import ModelConfig, PipelineConfig, load_config
from monograph.pipelines.identity import identity_of
from monograph.pipelines.progress import Progress
from monograph.pipelines.records import read_record, write_record
from monograph.pipelines.steps import Workspace, open_workspace
from monograph.runtime.measure import Contender
from monograph.runtime.results import Measurement

_SUMMARY_FILES = ("report.html", "result.json")


@dataclass(frozen=True)
class FusedRecord:
    """What the step ``fuse`` found out, beside the file itself."""

    form: str
    formula: str
    weights: dict[str, float]
    fit_note: str | None
    notes: tuple[str, ...]
    node_count: int
    proof: ParityProof


@dataclass(frozen=True)
class RunResult:
    """Where a finished run left its results."""

    folder: Path
    report: Path
    result: Path
    fused: Path
    measurements: dict[str, Measurement]
    """By ``name@target``."""


@dataclass(frozen=True)
class _Run:
    """What every step needs to know."""

    config: PipelineConfig
    workspace: Workspace


def run_pipeline(
    pipeline: str | Path, out: str | Path | None = None, overrides: Sequence[str] = (), progress: Progress | None = None
) -> RunResult:
    """Run a pipeline file; steps that an earlier run in the same folder finished are not done again.

    Args:
        pipeline: YAML file, see :class:`~monograph.pipelines.config.PipelineConfig`.
        out: output folder, ``runs/NAME`` by default.
        overrides: ``KEY=VALUE`` with dotted keys, applied to the file.
        progress: where to show progress; on standard error by default.

    Raises:
        InputError: the file or what it names cannot be used.
        ParityError: an exported or fused graph does not compute what it should.
    """
    began = time.monotonic()
    config, yaml_text = load_config(Path(pipeline), overrides)
    folder = Path(out) if out is not None else Path("runs") / config.name
    with open_workspace(folder, progress or Progress()) as workspace:
        run = _Run(config, workspace)
        contracts = _contracts(run)
        by_contract = {contract: _data(run, *contract) for contract in set(contracts.values())}
        data = {name: by_contract[contracts[name]] for name in config.models}
        weights = {name: _train(run, name, data[name]) for name, model in config.models.items() if model.train}
        exported = {name: _export(run, name, data[name], weights.get(name)) for name in config.models}
        fused = _fuse(run, exported, data)
        contenders = _contenders(run, exported, fused, weights)
        measured = {key: _measure(run, key, contender, data) for key, contender in contenders.items()}
        compared = _compare(run, contenders, data, fused)
        folders = {"fuse": fused, "compare": compared, "data": next(iter(data.values()))}
        folders |= {f"train-{name}": path for name, path in weights.items()}
        folders |= {f"export-{name}": path for name, path in exported.items()}
        folders |= {f"measure-{name}": path for name, path in measured.items()}
        command = f"monograph run {pipeline}" + (f" --out {out}" if out is not None else "")
        command += "".join(f" --set {override}" for override in overrides)
        report = _report(run, folders, yaml_text, command, began)
        for file in [report / name for name in _SUMMARY_FILES] + [fused / "fused.onnx"]:
            with write_atomically(folder / file.name) as staged:
                shutil.copyfile(file, staged)
    return RunResult(
        folder=folder,
        report=folder / "report.html",
        result=folder / "result.json",
        fused=folder / "fused.onnx",
        measurements={name: read_record(path / "measurement.json", Measurement) for name, path in measured.items()},
    )


def _contracts(run: _Run) -> dict[str, tuple[Contract, str | None]]:
    """What each model promises, and its tokenizer; kept so that a resumed run need not load the models again."""
    models = run.config.models
    parameters = {
        name: [model.model_dump(mode="json", exclude={"train"}), identity_of(model.source)] for name, model in models.items()
    }

    def work(folder: Path) -> None:
        from monograph.pipelines.members import load_member_contract

        for name, model in models.items():
            contract, tokenizer_json = load_member_contract(model)
            (folder / f"{name}.contract.json").write_text(contract.to_json(), encoding="utf-8")
            if tokenizer_json is not None:
                (folder / f"{name}.tokenizer.json").write_text(tokenizer_json, encoding="utf-8")

    folder = run.workspace.step("contracts", parameters, work)
    found: dict[str, tuple[Contract, str | None]] = {}
    for name in models:
        tokenizer = folder / f"{name}.tokenizer.json"
        contract = Contract.from_json((folder / f"{name}.contract.json").read_text(encoding="utf-8"))
        found[name] = contract, tokenizer.read_text(encoding="utf-8") if tokenizer.exists() else None
    return found


def _data(run: _Run, contract: Contract, tokenizer_json: str | None) -> Path:
    """The rows as this model takes them, split once; models with the same inputs share them."""
    data = run.config.data
    parameters = {
        "data": data.model_dump(),
        "identity": identity_of(data.source),
        "seed": run.config.seed,
        "contract": contract.to_json(),
        "tokenizer": tokenizer_json,
    }

    def work(folder: Path) -> None:
        from monograph.models.data.split import stratified_split
        from monograph.pipelines.data import DataSpec

        spec = DataSpec(data.source, data.columns, data.label_column)
        rows = spec.load(contract, tokenizer_json, needs_labels=True)
        for part, part_rows in stratified_split(rows, data.split, run.config.seed).items():
            part_rows.save(folder / f"{part}.npz")
        write_record(folder / "notes.json", list(rows.assumed))
        run.workspace.progress.update(1, 1, " + ".join(f"{size:g} {part}" for part, size in data.split.items()))

    return run.workspace.step("data", parameters, work)


def _train(run: _Run, name: str, data: Path) -> Path:
    model = run.config.models[name]
    parameters = {"model": model.model_dump(mode="json"), "data": data.name, "seed": run.config.seed}
    return run.workspace.step(f"train-{name}", parameters, partial(_train_into, run=run, model=model, data=data))


def _train_into(folder: Path, run: _Run, model: ModelConfig, data: Path) -> None:
    from monograph.models.torch_model import save_weights
    from monograph.pipelines.members import load_member
    from monograph.pipelines.training import Epoch, TrainingSettings, train

    assert model.train is not None
    settings = TrainingSettings(**model.train.model_dump(), seed=run.config.seed)

    def show(number: int, epoch: Epoch) -> None:
        detail = f"loss {epoch.train_loss:.3f}, validation {epoch.validation_top1:.1%}"
        run.workspace.progress.update(number + 1, settings.epochs, detail)

    torch_model = load_member(model, seed=run.config.seed)
    training = train(torch_model, Rows.load(data / "train.npz"), Rows.load(data / "validation.npz"), settings, show)
    save_weights(torch_model.module, folder / "model.safetensors")
    write_record(folder / "training.json", training)


def _export(run: _Run, name: str, data: Path, weights: Path | None) -> Path:
    model = run.config.models[name]
    parameters = {
        "model": model.model_dump(mode="json"),
        "identity": identity_of(model.source),
        "weights": weights and weights.name,
        "data": data.name,
    }

    def work(folder: Path) -> None:
        from monograph.pipelines.export import export_model

        is_python = parse_source(model.source).scheme is Scheme.PYTHON
        class_names = Rows.load(data / "validation.npz").class_names
        exported = export_model(
            model.source,
            folder / f"{name}.onnx",
            task=model.task,
            arguments=model.arguments if is_python else None,
            weights=weights / "model.safetensors" if weights else model.weights,
            class_names=class_names,
            data=str(data / "validation.npz"),
        )
        if weights is not None:
            parts = [Rows.load(data / f"{part}.npz") for part in ("train", "validation")]
            mark_seen(folder / f"{name}.onnx", seen("training", parts[0]) | seen("validation", parts[1]))
        write_record(folder / "proof.json", exported.proof)
        run.workspace.progress.update(1, 1, f"max abs error {exported.proof.worst.max_abs_error:.1e}")

    return run.workspace.step(f"export-{name}", parameters, work)


def _fuse(run: _Run, exported: Mapping[str, Path], data: Mapping[str, Path]) -> Path:
    choice = run.config.fuse
    parameters = {
        "fuse": choice.model_dump(),
        "members": [path.name for path in exported.values()],
        "data": [path.name for path in data.values()],
    }

    def work(folder: Path) -> None:
        from monograph.export.fusion import fit_fusion, fuse, plan_fusion
        from monograph.export.fusion.forms import FORMS

        files = [read_onnx(path / f"{name}.onnx") for name, path in exported.items()]
        rows = [Rows.load(data[name] / "validation.npz") for name in exported]
        fit = None
        if choice.weights == "fit":
            fit = fit_fusion(files, rows, choice.combine, temperature=choice.calibrate, search=choice.search)
        weights = _given_weights(choice.weights, list(exported))
        plan = plan_fusion(files, names=list(exported), weights=weights, combine=choice.combine, fit=fit)
        _check_takes_the_members_rows(plan.contract, files[0].contract)
        known = seen_by(files) | (seen("fit", rows[0]) if fit else NOTHING_SEEN)
        fused = fuse(plan, folder / "fused.onnx", rows=rows[0], seen=known)
        record = FusedRecord(
            form=plan.form,
            formula=FORMS[plan.form].formula,
            weights={member.name: member.weight for member in plan.members},
            fit_note=fit.describe() if fit else None,
            notes=plan.notes,
            node_count=fused.node_count,
            proof=fused.proof,
        )
        write_record(folder / "fused.json", record)
        run.workspace.progress.update(1, 1, ", ".join(f"{member.weight:.2f} {member.name}" for member in plan.members))

    return run.workspace.step("fuse", parameters, work)


def _check_takes_the_members_rows(fused: Contract, first: Contract) -> None:
    """The rows of a pipeline are prepared once; a fused graph that takes raw pixels instead would misread them."""
    if [(spec.name, spec.preprocessing) for spec in fused.inputs] != [(spec.name, spec.preprocessing) for spec in first.inputs]:
        raise ConfigError(
            "the models of a pipeline must prepare their inputs alike, for they share its rows: give them one preprocessing, "
            "or fuse the exported files by `monograph fuse`, which adapts them"
        )


def _given_weights(weights: str | dict[str, float], names: list[str]) -> list[float] | None:
    if not isinstance(weights, dict):
        return None
    if set(weights) != set(names):
        raise ConfigError(f"fuse.weights names {sorted(weights)}, the models are {sorted(names)}: give one weight a model")
    return [weights[name] for name in names]


def _contenders(run: _Run, exported: Mapping[str, Path], fused: Path, weights: Mapping[str, Path]) -> dict[str, Contender]:
    """All that is measured, by ``name@target``: members, the fused graph, and what people run today instead."""
    from monograph.pipelines.members import baseline_contenders
    from monograph.runtime.measure import onnx_contender
    from monograph.runtime.targets import find_target

    files: dict[str, OnnxFile] = {name: read_onnx(path / f"{name}.onnx") for name, path in exported.items()}
    files["fused"] = read_onnx(fused / "fused.onnx")
    contenders: dict[str, Contender] = {}
    for target_name in run.config.measure.targets:
        target = find_target(target_name)
        for name, file in files.items():
            contenders[f"{name}@{target_name}"] = onnx_contender(
                name, file.path, file.contract, file.sha256, file.size_bytes, target
            )
    record = read_record(fused / "fused.json", FusedRecord)
    baselines = baseline_contenders(run.config, files, weights, record.weights, record.form)
    return contenders | {f"{name}@cpu": contender for name, contender in baselines.items()}


def _measure(run: _Run, key: str, contender: Contender, data: Mapping[str, Path]) -> Path:
    from monograph.runtime.measure import Settings, measure
    from monograph.runtime.targets import find_target
    from monograph.runtime.timing import TimingRule

    choice = run.config.measure
    rows_folder = data.get(contender.name, next(iter(data.values())))
    parameters = {
        "contender": [contender.name, contender.sha256, contender.loader],
        "measure": choice.model_dump(exclude={"targets", "baselines", "blocks"}),
        "data": rows_folder.name,
    }

    def work(folder: Path) -> None:
        rule = TimingRule(choice.min_runs, choice.min_seconds, choice.max_seconds)
        settings = Settings(batch_sizes=tuple(choice.batch_sizes), threads=choice.threads, rule=rule)
        rows = Rows.load(rows_folder / "test.npz")
        measurement = measure(contender, find_target(key.partition("@")[2]), rows, settings)
        write_record(folder / "measurement.json", measurement)
        accuracy = f"top-1 {measurement.accuracy.top1.estimate:.1%}, " if measurement.accuracy else ""
        latency = f"p50 {measurement.latency.p50_s.estimate * 1e3:.3f} ms" if measurement.latency else ""
        run.workspace.progress.update(1, 1, accuracy + latency)

    return run.workspace.step(f"measure-{key}", parameters, work)


def _compare(run: _Run, contenders: Mapping[str, Contender], data: Mapping[str, Path], fused: Path) -> Path:
    """Interleaved speed of everything on the processor, for ratios that a drifting machine does not bend."""
    on_cpu = [contender for key, contender in contenders.items() if key.endswith("@cpu")]
    parameters = {
        "contenders": [[contender.name, contender.sha256] for contender in on_cpu],
        "blocks": run.config.measure.blocks,
        "threads": run.config.measure.threads,
        "fused": fused.name,
    }

    def work(folder: Path) -> None:
        from monograph.runtime.compare import compare
        from monograph.runtime.measure import Settings

        total = 2 * run.config.measure.blocks * len(on_cpu)
        done = 0

        def show(name: str) -> None:
            nonlocal done
            run.workspace.progress.update(done, total, f"{run.config.measure.blocks} interleaved blocks, {name}")
            done += 1

        rows = Rows.load(next(iter(data.values())) / "test.npz")
        settings = Settings(threads=run.config.measure.threads)
        comparison = compare(on_cpu, rows, settings, blocks=run.config.measure.blocks, seed=run.config.seed, on_progress=show)
        write_record(folder / "comparison.json", comparison)
        run.workspace.progress.update(total, total, f"{run.config.measure.blocks} interleaved blocks")

    return run.workspace.step("compare", parameters, work)


def _report(run: _Run, folders: Mapping[str, Path], yaml_text: str, command: str, began: float) -> Path:
    parameters = {"folders": {name: path.name for name, path in folders.items()}, "yaml": yaml_text, "command": command}

    def work(folder: Path) -> None:
        from monograph.pipelines.report import write_report
        from monograph.pipelines.summary import summarise_run

        report = summarise_run(run.config, folders, yaml_text, command, time.monotonic() - began)
        write_record(folder / "result.json", report)
        write_report(report, folder / "report.html")

    return run.workspace.step("report", parameters, work)
