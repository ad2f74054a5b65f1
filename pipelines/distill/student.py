"""The student that a text means: one of the registry, one by its teacher's work or by a latency, or a source of one's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

from monograph.errors import ConfigError
from monograph.models.contract import Contract
from monograph.models.size import count_macs, count_parameters
from monograph.models.sources import Scheme, load_python_model, parse_source
from monograph.models.students import ALL_STUDENTS, STUDENTS
from monograph.models.students.auto import AUTO_PREFIX, auto_student
from monograph.models.students.ladders import ladders
from monograph.models.torch_model import TorchModel
from monograph.pipelines.distill.latency_budget import is_latency_budget, parse_latency_budget, student_within
from monograph.pipelines.teachers import Teacher


def load_student(
    text: str,
    arguments: Mapping[str, Any],
    teacher: Teacher,
    seed: int,
    on_progress: Callable[[int, int, str], None] = lambda done, total, detail: None,
) -> tuple[TorchModel, tuple[str, ...]]:
    """Return the student with fresh weights drawn from ``seed``, or those that its source carries.

    ``auto:1/10`` is the largest that a share of the teacher's work allows, ``auto:2ms@cpu`` the largest that was measured to
    answer so fast: ``on_progress`` is told of those measurements.

    Raises:
        InputError: there is no such student, or it cannot be made for this teacher.
    """
    torch.manual_seed(seed)
    if text.startswith(AUTO_PREFIX):
        return _student_by_budget(text, teacher, on_progress)
    if text in ALL_STUDENTS:
        return _registered(text, arguments, teacher), ()
    source = parse_source(text)
    if source.scheme is Scheme.ONNX:
        raise ConfigError(f"student {text} is an ONNX file, which cannot be trained: give its PyTorch source")
    if source.scheme is Scheme.HUGGING_FACE:
        from monograph.models.huggingface import load_huggingface

        return load_huggingface(source.location), ()
    return load_python_model(source, arguments=arguments), ()


def _student_by_budget(
    text: str, teacher: Teacher, on_progress: Callable[[int, int, str], None]
) -> tuple[TorchModel, tuple[str, ...]]:
    budget = parse_latency_budget(text) if is_latency_budget(text) else None
    macs = teacher_macs(teacher)
    if macs is None:
        raise ConfigError(f"the multiply-accumulates of {teacher.name} cannot be counted, so {text} has no size: name a student")
    contract, count = teacher.contract, class_count(teacher.contract)
    if budget is not None:
        sizes = ladders(macs, contract, count, teacher=teacher.module, tokenizer_json=teacher.tokenizer_json)
        return student_within(budget, sizes, on_progress=on_progress)
    parameters = None if teacher.module is None else count_parameters(teacher.module.module)
    return auto_student(
        macs,
        contract,
        count,
        text,
        teacher_parameters=parameters,
        teacher=teacher.module,
        tokenizer_json=teacher.tokenizer_json,
    )


def _registered(name: str, arguments: Mapping[str, Any], teacher: Teacher) -> TorchModel:
    """Return a student of the registry for the teacher's inputs and classes, where the arguments do not say otherwise."""
    chosen = dict(arguments)
    shape = teacher.contract.inputs[0].shape[1:]
    if name in STUDENTS and all(isinstance(size, int) for size in shape):
        chosen.setdefault("input_shape", tuple(shape))
    if "class_count" in inspect.signature(ALL_STUDENTS[name]).parameters:
        chosen.setdefault("class_count", class_count(teacher.contract))
    try:
        module, contract = ALL_STUDENTS[name](**chosen)
    except TypeError as error:
        raise ConfigError(f"student {name} was called with {chosen}: {error}") from error
    return TorchModel(module, contract, name, teacher.tokenizer_json)


def class_count(contract: Contract) -> int:
    """Return how many numbers a row's output has.

    Raises:
        ConfigError: their number is not fixed.
    """
    count = contract.output.shape[-1]
    if not isinstance(count, int):
        raise ConfigError(f"output {contract.output.describe()} has no fixed width, so a student cannot be made for it")
    return count


def teacher_macs(teacher: Teacher) -> int | None:
    """Return what a row costs a teacher, in multiply-accumulates; None where that cannot be counted."""
    if teacher.module is not None:
        return count_macs(teacher.module)
    from monograph.export.fusion.macs import count_macs as count_graph_macs

    return None if teacher.path is None else count_graph_macs(teacher.path)
