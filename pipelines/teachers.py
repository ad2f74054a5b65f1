"""Teachers: PyTorch models, ONNX files and fused graphs, asked once for each row, in eval mode and without gradients.

What a teacher gives is kept on disk by the digests of the teacher and of the rows, and found by the row's number: so no
shuffling, resuming or second run can put it beside another row.

Shape letters: ``n`` rows, ``c`` classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from monograph.errors import ContractError, FusionError
from monograph.models.contract import Contract, Kind
from monograph.models.data.rows import Rows
from monograph.models.files import write_atomically
from monograph.models.onnx_file import read_onnx
from monograph.models.sources import Scheme, load_python_model, parse_source
from monograph.models.torch_model import TorchModel
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

    def logits(self, rows: Rows) -> Array:
        """Return float32 ``[n x c]`` whose softmax is what the teacher thinks; numbers as they are, of a model without classes.

        Probabilities become their logarithms. At another temperature than 1 those of a mean of probabilities are not the mean
        of its members' tempered ones: give the members as teachers for that.
        """
        outputs = np.asarray(self.run(rows), np.float32)
        if self.contract.kind is not Kind.PROBABILITIES:
            return outputs
        logarithms: Array = np.log(np.maximum(outputs, np.float32(_SMALLEST_PROBABILITY)))
        return logarithms


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
    model.module.eval().requires_grad_(False)
    run = partial(run_all_rows, model, model.contract)
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
) -> Array:
    """Return what ``teacher`` gives for each row, float32 ``[n x c]``, mapped from a file that is written once.

    Args:
        teacher: whom to ask.
        rows: as the teacher's contract takes them.
        folder: where the file lies, named by the digests of the teacher and of the rows.
        order: where each of the student's classes stands among the teacher's.
        on_rows: told how many rows are done, and of how many.
    """
    key = hashlib.sha256(f"{teacher.sha256} {Rows(rows.inputs).sha256()} {order}".encode()).hexdigest()[:24]
    path = folder / f"{key}.npy"
    if not path.exists():
        parts, step = [], max(scoring_batch_size(teacher.contract) * 8, 64)
        for start in range(0, len(rows), step):
            part = teacher.logits(rows.take(slice(start, start + step)))
            parts.append(part if order is None else part[:, list(order)])
            on_rows(min(start + step, len(rows)), len(rows))
        with write_atomically(path) as staged, staged.open("wb") as file:
            np.save(file, np.concatenate(parts), allow_pickle=False)
    mapped: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    return mapped
