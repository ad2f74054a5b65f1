"""The line of the verb: load, read and check rows, adapt, calibrate, export, compare."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import expit
from torch import nn

from monograph.errors import ConfigError
from monograph.export.fusion.calibrate import fit_temperature
from monograph.models.data.rows import Array, Rows
from monograph.models.files import write_atomically
from monograph.models.onnx_file import read_onnx
from monograph.models.seen import mark_seen, seen
from monograph.models.torch_model import TorchModel, save_weights
from monograph.pipelines.adapt.auto import AUTO, adapt_automatically, parse_budget
from monograph.pipelines.adapt.baselines import (
    constant_baseline,
    feature_baselines,
    item_baselines,
    knows_classes,
    zero_shot,
)
from monograph.pipelines.adapt.features import FeatureStore
from monograph.pipelines.adapt.methods import METHODS, Adaptation, Outcome, balanced_weights
from monograph.pipelines.adapt.network import head_model, network_of, shipped
from monograph.pipelines.adapt.parts import read_parts
from monograph.pipelines.adapt.quality import outputs_of, row_quality
from monograph.pipelines.adapt.request import CHECKPOINTS, FEATURES, check_request, left_as_it_was
from monograph.pipelines.adapt.source import Pretrained, load_pretrained
from monograph.pipelines.adapt.standing import ONNX_FILE, REPORT_FILE, RESULT_FILE, WEIGHTS_FILE, Adapted, Trial, compared
from monograph.pipelines.adapt.task import Task, TaskKind
from monograph.pipelines.data import DataSpec
from monograph.pipelines.records import write_record
from monograph.pipelines.training import Augmentation, Epoch, Objective, check_augmentable, own_objective
from monograph.pipelines.training.processes import main_process_first, on_main_process
from monograph.runtime.measure import Settings, measure, onnx_contender
from monograph.runtime.results import Measurement
from monograph.runtime.targets import find_target

_PROOF_ROWS = 64


@dataclass(frozen=True)
class _Plan:
    """What all candidates of an adaptation share."""

    pretrained: Pretrained
    task: Task
    rows: Mapping[str, Rows]
    features: FeatureStore
    start: TorchModel
    """The network as it is pretrained, its head fresh or kept."""
    folder: Path
    settings: Mapping[str, Any]
    options: Mapping[str, Any]
    objective: Objective | None
    augmentation: Augmentation | None
    identity: Mapping[str, Any]
    on_progress: Callable[[int, int, str], None]


def adapt_model(
    model: str,
    data: str | DataSpec,
    out: str | Path,
    *,
    validation: str | DataSpec | None = None,
    test: str | DataSpec | None = None,
    shifted: str | DataSpec | None = None,
    method: str = "head",
    task: str = AUTO,
    features: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    augmentation: Augmentation | None = None,
    budget: str | None = None,
    class_weights: bool = False,
    allow: Collection[str] = (),
    resume: bool = False,
    on: Sequence[str] = ("cpu",),
    seed: int = 0,
    on_progress: Callable[[int, int, str], None] = lambda done, total, detail: None,
) -> Adapted:
    """Adapt a pretrained model to the task of ``data`` and export it to ``out/adapted.onnx``, beside what simple models reach.

    Args:
        model: SOURCE: a PyTorch model, or an ONNX file whose trunk stays as it is and gets a new head.
        data: DATA with labels.
        out: a folder: the model, its weights, the record, a report, the parts of the rows, and checkpoints until it is done.
        validation: DATA to choose the epoch, the method and the temperature on; a part of ``data`` by default.
        test: DATA for the comparison; a part of ``data`` by default.
        shifted: DATA of another origin, on which ``wise-ft`` says what its means do.
        method: of ``METHODS``, or ``auto``.
        task: ``classification``, ``multi-label``, ``regression``, ``click`` or ``rating``; ``auto`` looks at the labels.
        features: the tensor of an ONNX file that the head takes; its output, where that is an embedding.
        arguments: of a Python source's factory.
        settings: of the training (fields of ``TrainingSettings``), where they shall differ from the method's own.
        options: of the method.
        augmentation: of training pictures, where the method runs the whole network on them.
        budget: ``10m``, ``90s`` or ``1h``: for ``auto``.
        class_weights: let each class count as much as any other.
        allow: problems of the rows to mend and tell, not to refuse: ``missing-class``, ``duplicates``, ``unreadable``.
        resume: go on with the adaptation that was stopped in ``out``.
        on: targets to measure the adapted model on.
        seed: of the parts, fresh weights, order and dropout.
        on_progress: told how much of a step is done.

    Raises:
        InputError: the model, the data or an option cannot be used.
        ParityError: the exported model does not compute what the adapted one does.
        MonographError: the loss is not finite.
    """
    folder = Path(out)
    check_request(folder, method, options or {}, settings or {}, budget, on, resume=resume)
    torch.manual_seed(seed)  # a factory may draw weights, and draws the same ones when the run goes on
    pretrained = load_pretrained(model, arguments, features)
    if augmentation is not None:
        check_augmentable(pretrained.contract, pretrained.name, augmentation.operations)
    given = {"train": data, "validation": validation, "test": test, "shifted": shifted}
    with left_as_it_was(folder):
        return _adapt(
            pretrained,
            given,
            folder,
            method,
            task,
            settings={"seed": seed} | dict(settings or {}),
            options=options or {},
            augmentation=augmentation,
            budget=budget,
            class_weights=class_weights,
            allow=allow,
            on=on,
            on_progress=on_progress,
        )


def _adapt(
    pretrained: Pretrained,
    given: dict[str, str | DataSpec | None],
    folder: Path,
    method: str,
    task: str,
    *,
    settings: Mapping[str, Any],
    options: Mapping[str, Any],
    augmentation: Augmentation | None,
    budget: str | None,
    class_weights: bool,
    allow: Collection[str],
    on: Sequence[str],
    on_progress: Callable[[int, int, str], None],
) -> Adapted:
    """Read the rows, adapt, and finish."""
    seed = settings["seed"]
    with main_process_first():
        rows, found, problems = read_parts(
            pretrained.contract, pretrained.tokenizer_json, given, folder, task=task, allow=allow, seed=seed
        )
    start, keeps_head = pretrained.network(found, seed)
    chosen = _method_for(pretrained, start, method)
    store = pretrained.feature_store(
        start, folder / FEATURES, lambda done, total: on_progress(done, total, "features of the frozen trunk")
    )
    plan = _Plan(
        pretrained,
        found,
        rows,
        store,
        start,
        folder,
        settings,
        options,
        _objective(found, rows["train"], settings, class_weights),
        augmentation,
        _identity(pretrained, rows, chosen, options, found, class_weights),
        on_progress,
    )
    with main_process_first():
        baselines = _baselines(plan)
    adaptation, outcome, name, trials = _run(plan, chosen, budget)
    return on_main_process(
        partial(_finish, plan, adaptation, outcome, name, trials, baselines, on, [one.text for one in problems], keeps_head)
    )


def _method_for(pretrained: Pretrained, start: TorchModel, method: str) -> str:
    """Return the method that can be had: an ONNX trunk stays as it is, and a model that keeps all of itself has no head."""
    if pretrained.file is not None and method not in ("head", AUTO):
        raise ConfigError(f"{pretrained.name} is an ONNX file, whose trunk stays as it is: adapt it by --method head")
    if pretrained.file is not None:
        return "head"
    if method == AUTO and not isinstance(network_of(start).head, nn.Linear):
        return "full"
    return method


def _objective(task: Task, train: Rows, settings: Mapping[str, Any], class_weights: bool) -> Objective | None:
    if task.kind is not TaskKind.CLASSIFICATION and (class_weights or settings.get("label_smoothing")):
        option = "--class-weights" if class_weights else "--label-smoothing"
        raise ConfigError(f"{option} is for classes, and the task is {task.kind}: leave it out")
    if not class_weights:
        return None
    weights = balanced_weights(train.required_labels(), task.width)
    return own_objective(task.kind.output_kind, float(settings.get("label_smoothing", 0.0)), weights)


def _identity(
    pretrained: Pretrained, rows: Mapping[str, Rows], method: str, options: Mapping[str, Any], task: Task, class_weights: bool
) -> dict[str, Any]:
    """Return what has to be the same for a training to be resumed, beside its settings."""
    return {
        "model": pretrained.sha256(),
        "train rows": rows["train"].sha256(),
        "validation rows": rows["validation"].sha256(),
        "method": method,
        "options": dict(options),
        "task": f"{task.kind} of {task.width}",
        "class weights": class_weights,
    }


def _baselines(plan: _Plan) -> dict[str, Array]:
    """Return what each baseline gives for the test rows, scores as probabilities."""
    train, test, task = plan.rows["train"], plan.rows["test"], plan.task
    made = [constant_baseline(train, test, task), *item_baselines(train, test, plan.pretrained.contract, task)]
    if isinstance(network_of(plan.start).head, nn.Linear):
        features = [plan.features.of(rows) for rows in (train, test)]
        plan.on_progress(1, 1, "baselines on features")
        made += feature_baselines(features[0], features[1], task)
    if knows_classes(plan.pretrained.contract, task):
        made.append(zero_shot(plan.pretrained.answers(test), plan.pretrained.contract, task))
    return {one.name: one.outputs for one in made}


def _run(plan: _Plan, method: str, budget: str | None) -> tuple[Adaptation, Outcome, str, tuple[Trial, ...]]:
    if method == AUTO:
        return adapt_automatically(partial(_fresh, plan), parse_budget(budget))
    adaptation = _fresh(plan, "")
    return adaptation, METHODS[method].adapt(adaptation), method, ()


def _fresh(plan: _Plan, name: str) -> Adaptation:
    """Return an adaptation of the pretrained network anew, with checkpoints in a folder of its own."""
    last: dict[str, float] = {}

    def on_step(stage: str, step: int, steps: int, loss: float) -> None:
        validated = f", validation {last[stage]:.1%}" if stage in last else ""
        plan.on_progress(step, steps, f"{name or 'adapt'}: {stage}, loss {loss:.3f}{validated}")

    def on_epoch(stage: str, _number: int, epoch: Epoch) -> None:
        if epoch.validation_top1 == epoch.validation_top1:
            last[stage] = epoch.validation_top1

    return Adaptation(
        model=replace(plan.start, module=copy.deepcopy(plan.start.module)),
        rows=plan.rows,
        features=plan.features,
        folder=plan.folder / CHECKPOINTS / name,
        settings=plan.settings,
        options=plan.options,
        objective=plan.objective,
        augmentation=plan.augmentation,
        identity=plan.identity,
        quality=partial(_quality, plan),
        on_step=on_step,
        on_epoch=on_epoch,
    )


def _quality(plan: _Plan, model: TorchModel, rows: Rows) -> float:
    return float(row_quality(_outputs(plan, model, rows), rows.required_labels(), plan.task).mean())


def _outputs(plan: _Plan, model: TorchModel, rows: Rows) -> Array:
    """Return what the adapted model gives as it leaves, float32 ``[n, c]``, by features that are known where its trunk is old.

    The trunk is most of the work, and features of all parts were computed for the baselines.
    """
    if not _has_old_trunk(plan, model):
        return outputs_of(shipped(model), rows)
    given = outputs_of(head_model(model), plan.features.of(rows))
    return np.asarray(expit(given)) if plan.task.kind in (TaskKind.MULTI_LABEL, TaskKind.CLICK) else given


def _has_old_trunk(plan: _Plan, model: TorchModel) -> bool:
    """Tell whether only the head differs from the pretrained network; an ONNX file's trunk always is the old one."""
    if plan.pretrained.file is not None:
        return True
    network, start = network_of(model), network_of(plan.start)
    if not isinstance(network.head, nn.Linear):
        return False
    old, new = start.trunk.state_dict(), network.trunk.state_dict()
    return old.keys() == new.keys() and all(torch.equal(tensor, new[name]) for name, tensor in old.items())


def _finish(
    plan: _Plan,
    adaptation: Adaptation,
    outcome: Outcome,
    method: str,
    trials: tuple[Trial, ...],
    baselines: Mapping[str, Array],
    on: Sequence[str],
    problems: Sequence[str],
    keeps_head: bool,
) -> Adapted:
    """Calibrate, export, compare, and write it all down."""
    folder, model, rows = plan.folder, adaptation.model, plan.rows
    plan.on_progress(0, 3, "export and proof")
    temperature = _calibrate(plan, model)
    exported = plan.pretrained.export(model, folder / ONNX_FILE, rows["validation"].take(slice(0, _PROOF_ROWS)))
    mark_seen(folder / ONNX_FILE, seen("training", rows["train"]) | seen("validation", rows["validation"]))
    if plan.pretrained.file is None:
        save_weights(model.module, folder / WEIGHTS_FILE)
    plan.on_progress(1, 3, "comparison on test rows")
    given = _outputs(plan, model, rows["test"])
    own, others, best, gain, quality = compared(model.name, given, baselines, rows["test"], plan.task, model.contract)
    notes = [*problems, *_assumed(rows), *outcome.notes]
    if keeps_head:
        notes.append(f"{model.name} did this task before and keeps its head")
    plan.on_progress(2, 3, "latency")
    adapted = Adapted(
        folder / ONNX_FILE,
        None if plan.pretrained.file is not None else folder / WEIGHTS_FILE,
        method,
        plan.task.kind.value,
        plan.task.class_names,
        own,
        others,
        quality,
        best,
        gain,
        gain.low > 0,
        {name: len(part) for name, part in rows.items()},
        outcome.stages,
        outcome.mixes,
        trials,
        temperature,
        exported.proof.describe(),
        _measured(folder / ONNX_FILE, on),
        tuple(notes),
    )
    _write(adapted, folder)
    return adapted


def _assumed(rows: Mapping[str, Rows]) -> list[str]:
    """Return what was guessed while rows were read, once where it is the same for several files."""
    told: dict[str, str] = {}
    for part in rows.values():
        for note in part.assumed:
            told.setdefault(note.removeprefix(part.origin), note)
    return list(told.values())


def _calibrate(plan: _Plan, model: TorchModel) -> float | None:
    """Divide the head by the temperature that fits the validation rows, so that probabilities mean what they say."""
    head = network_of(model).head
    if plan.task.kind is not TaskKind.CLASSIFICATION or not isinstance(head, nn.Linear):
        return None
    validation = plan.rows["validation"]
    temperature = fit_temperature(_outputs(plan, model, validation).astype(np.float64), validation.required_labels())
    with torch.no_grad():
        head.weight.div_(temperature)
        if head.bias is not None:
            head.bias.div_(temperature)
    return temperature


def _measured(path: Path, on: Sequence[str]) -> tuple[Measurement, ...]:
    file = read_onnx(path)
    made = []
    for target in map(find_target, on):
        contender = onnx_contender(path.stem, path, file.contract, file.sha256, file.size_bytes, target)
        made.append(measure(contender, target, None, Settings(batch_sizes=(1,))))
    return tuple(made)


def _write(adapted: Adapted, folder: Path) -> None:
    """Write the report, then the record, which says that all is done; checkpoints and features are of no more use."""
    from monograph.pipelines.report.adaptation_page import write_adaptation_page

    write_adaptation_page(adapted, folder / REPORT_FILE)
    with write_atomically(folder / RESULT_FILE) as staged:
        write_record(staged, adapted)
    for name in (CHECKPOINTS, FEATURES):
        shutil.rmtree(folder / name, ignore_errors=True)
