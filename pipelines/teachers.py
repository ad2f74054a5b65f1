"""Teachers: PyTorch models, ONNX files and fused graphs, asked once for each row, in eval mode and without gradients.

What a teacher gives is kept on disk by the digests of the teacher and of the rows, and found by the row's number: so no
shuffling, resuming or second run can put it beside another row.

Shape letters: ``n`` rows, ``c`` classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from monograph.errors import ConfigError, ContractError, FusionError
from monograph.export.fusion.record import member_outputs
from monograph.models.contract import Contract, Kind
from monograph.models.data.rows import Rows
from monograph.models.files import write_atomically
from monograph.models.onnx_file import read_onnx
from monograph.models.sources import Scheme, load_python_model, parse_source
from monograph.models.torch_model import TorchModel
from monograph.pipelines.training.augment import Augmentation
from monograph.pipelines.training.threads import ThreadChooser
from monograph.runtime.runner import run_all_rows, scoring_batch_size
from monograph.runtime.session import open_session

Array = npt.NDArray[Any]
_SMALLEST_PROBABILITY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Teacher:
    """A model that is only asked."""

    name: str
    contract: Contract
    sha256: str
    """Of the file, or over the weights of a module."""
    run: Callable[[Rows], Array]
    """From rows to the primary output ``[n, …]``."""
    tokenizer_json: str | None = None
    path: Path | None = None
    """The ONNX file; None for a PyTorch model."""
    module: TorchModel | None = None
    output: str = ""
    """Which output of a teaching graph it is; the primary one of any other model."""
    temperature: float = 1.0
    """By which a member's logits are divided before they are mixed."""

    def logits(self, rows: Rows) -> Array:
        """Return float32 ``[n x c]`` whose softmax is what the teacher thinks; numbers as they are, of a model without classes.

        Probabilities become their logarithms. At another temperature than 1 those of a mean of probabilities are not the mean
        of its members' tempered ones: give the members as teachers for that.
        """
        return self.as_logits(torch.from_numpy(np.array(self.run(rows), np.float32))).numpy()

    def as_logits(self, outputs: Tensor) -> Tensor:
        """Return the logits of what the teacher gives, float32 ``[n x c]``, as :meth:`logits` does of rows."""
        is_probability = self.contract.kind is Kind.PROBABILITIES
        logits = outputs.clamp(min=_SMALLEST_PROBABILITY).log() if is_probability else outputs
        return logits if self.temperature == 1 else logits / self.temperature


def load_teachers(sources: Sequence[str]) -> tuple[list[Teacher], tuple[float, ...] | None]:
    """Load teachers from SOURCEs; a teaching graph, alone, is its members, whose weights in the fusion are returned too.

    Raises:
        InputError: one cannot be loaded.
        ConfigError: a teaching graph stands among other teachers.
    """
    graphs = [_members(source) for source in sources]
    if not any(graphs):
        return [load_teacher(source) for source in sources], None
    if len(sources) > 1:
        named = next(source for source, members in zip(sources, graphs, strict=True) if members)
        raise ConfigError(f"{named} is a teaching graph, whose members already are several teachers: give it alone")
    weights = [weight for _, weight in graphs[0]]
    known = [weight for weight in weights if weight is not None]
    return [teacher for teacher, _ in graphs[0]], tuple(known) if len(known) == len(weights) else None


def _members(source: str) -> list[tuple[Teacher, float | None]]:
    """Return the members of a teaching graph with their weights; none of any other model."""
    parsed = parse_source(source)
    if parsed.scheme is not Scheme.ONNX:
        return []
    file = read_onnx(parsed.path)
    given = member_outputs(file)
    session = open_session(file.path) if given else None
    members = []
    for member in given:
        assert session is not None
        spec = next(each for each in file.contract.outputs if each.name == member.output)
        contract = replace(file.contract, outputs=(spec,), kind=member.kind)
        run = partial(run_all_rows, session.only(member.output), contract)
        teacher = Teacher(
            member.output,
            contract,
            file.sha256,
            run,
            file.tokenizer_json,
            output=member.output,
            temperature=member.temperature,
        )
        members.append((teacher, member.weight))
    return members


def load_teacher(source: str) -> Teacher:
    """Load a teacher from SOURCE.

    Raises:
        InputError: it cannot be loaded.
    """
    parsed = parse_source(source)
    if parsed.scheme is Scheme.ONNX:
        file = read_onnx(parsed.path)
        session = open_session(file.path)
        run = partial(run_all_rows, session, file.contract)
        return Teacher(file.path.stem, file.contract, file.sha256, run, file.tokenizer_json, path=file.path)
    if parsed.scheme is Scheme.HUGGING_FACE:
        from monograph.models.huggingface import load_huggingface

        model = load_huggingface(parsed.location)
    else:
        model = load_python_model(parsed)
    return as_teacher(model)


def as_teacher(model: TorchModel) -> Teacher:
    """Return a teacher that asks ``model``, which takes no gradients from now on."""
    model.module.eval().requires_grad_(False)
    threads = ThreadChooser()

    def run_batch(inputs: Mapping[str, Array]) -> dict[str, Array]:
        with threads.batch():
            return model(inputs)

    run = partial(run_all_rows, run_batch, model.contract)
    return Teacher(model.name, model.contract, weights_sha256(model), run, model.tokenizer_json, module=model)


def weights_sha256(model: TorchModel) -> str:
    """Return one digest over all weights and buffers, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.module.state_dict().items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def class_order(teacher: Contract, student: Contract, name: str) -> list[int] | None:
    """Return where each of the student's classes stands among the teacher's; None where they stand alike.

    Raises:
        FusionError: a class of the student's is none of the teacher's, or they differ in number and have no names.
        ContractError: one has classes and the other has none.
    """
    if teacher.kind.has_classes != student.kind.has_classes:
        raise ContractError(f"{name} gives {teacher.kind.value} and the student {student.kind.value}: one cannot teach the other")
    theirs, own = teacher.class_names, student.class_names
    if theirs is not None and own is not None:
        missing = [one for one in own if one not in theirs]
        if missing:
            raise FusionError(
                f"{name} does not know the class {missing[0]!r}, one of {len(missing)}: it knows {', '.join(theirs)}"
            )
        order = [theirs.index(one) for one in own]
        return None if order == list(range(len(theirs))) else order
    count, own_count = (contract.output.shape[-1] for contract in (teacher, student))
    if isinstance(count, int) and isinstance(own_count, int) and count != own_count:
        raise FusionError(
            f"{name} gives {count} numbers a row and the student {own_count}: name the classes of both, or choose another"
        )
    return None


def cached_outputs(
    teacher: Teacher,
    rows: Rows,
    folder: Path,
    order: Sequence[int] | None = None,
    on_rows: Callable[[int, int], None] = lambda done, total: None,
    view: tuple[Augmentation, int] | None = None,
) -> Array:
    """Return what ``teacher`` gives for each row, float32 ``[n x c]``, mapped from a file that is written once.

    Args:
        teacher: whom to ask.
        rows: as the teacher's contract takes them.
        folder: where the file lies, named by the digests of the teacher and of the rows.
        order: where each of the student's classes stands among the teacher's.
        on_rows: told how many rows are done, and of how many.
        view: of the rows, by its augmentation and number; as they are by default.
    """
    told = f"{teacher.sha256} {teacher.output} {Rows(rows.inputs).sha256()} {order} {view}"
    key = hashlib.sha256(told.encode()).hexdigest()[:24]
    path = folder / f"{key}.npy"
    if not path.exists():
        parts, step = [], max(scoring_batch_size(teacher.contract) * 8, 64)
        for start in range(0, len(rows), step):
            part = teacher.logits(_seen(rows, slice(start, start + step), teacher.contract, view))
            parts.append(part if order is None else part[:, list(order)])
            on_rows(min(start + step, len(rows)), len(rows))
        with write_atomically(path) as staged, staged.open("wb") as file:
            np.save(file, np.concatenate(parts), allow_pickle=False)
    mapped: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    return mapped


def _seen(rows: Rows, part: slice, contract: Contract, view: tuple[Augmentation, int] | None) -> Rows:
    taken = rows.take(part)
    if view is None:
        return taken
    augmentation, number = view
    names = [spec.name for spec in contract.inputs]
    inputs = [torch.from_numpy(np.ascontiguousarray(taken.inputs[name])) for name in names]
    numbers = torch.arange(part.start, part.start + len(taken))
    seen = augmentation.apply(inputs, numbers, number)
    return replace(taken, inputs={name: each.numpy() for name, each in zip(names, seen, strict=True)})
