"""The rows of a distillation, as the student takes them and as each teacher does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from monograph.errors import DataError
from monograph.models.contract import Contract
from monograph.models.data.rows import UNLABELLED, Rows
from monograph.models.data.split import stratified_split
from monograph.models.torch_model import TorchModel
from monograph.pipelines.data import DataSpec, as_data_spec
from monograph.pipelines.teachers import Teacher

VALIDATION_SHARE = 0.2


def read_parts(
    learner: TorchModel,
    teachers: Sequence[Teacher],
    data: str | DataSpec,
    unlabelled: str | DataSpec | None,
    validation: str | DataSpec | None,
    test: str | DataSpec | None,
    seed: int,
) -> tuple[dict[str, list[Rows]], str]:
    """Return the rows of each part, as the student takes them and then as each teacher does, in the same order."""
    specs = {"data": data, "unlabelled": unlabelled, "validation": validation, "test": test}
    read: dict[str, list[Rows]] = {}
    for name, given in specs.items():
        spec = as_data_spec(given)
        if spec is not None:
            read[name] = _read_for_each(learner, teachers, spec, needs_labels=name != "unlabelled")
    labelled = read["data"]
    if "validation" not in read:
        shares = {"train": 1 - VALIDATION_SHARE, "validation": VALIDATION_SHARE}
        drawn = [stratified_split(replace(rows, labels=labelled[0].labels), shares, seed) for rows in labelled]
        labelled, read["validation"] = [one["train"] for one in drawn], [one["validation"] for one in drawn]
    unlabelled_rows = read.get("unlabelled")
    training = labelled if unlabelled_rows is None else [_joined(*pair) for pair in zip(labelled, unlabelled_rows, strict=True)]
    test_name = "test rows" if "test" in read else "validation rows, on which the epoch was chosen: they flatter the student"
    return {"train": training, "validation": read["validation"], "test": read.get("test", read["validation"])}, test_name


def _read_for_each(learner: TorchModel, teachers: Sequence[Teacher], spec: DataSpec, *, needs_labels: bool) -> list[Rows]:
    """Read once for each way to prepare the rows: a teacher may want other sizes, scales or tokens than the student."""
    tokenizer = learner.tokenizer_json or next((one.tokenizer_json for one in teachers if one.tokenizer_json), None)
    own = spec.load(learner.contract, tokenizer, needs_labels=needs_labels)
    read = [own]
    for teacher in teachers:
        names = [each.name for each in teacher.contract.inputs]
        if prepared_alike(teacher.contract, learner.contract) and (teacher.tokenizer_json or tokenizer) == tokenizer:
            read.append(replace(own, inputs=dict(zip(names, own.inputs.values(), strict=True))))
        else:
            read.append(spec.load(teacher.contract, teacher.tokenizer_json, needs_labels=needs_labels))
        if len(read[-1]) != len(own):
            raise DataError(
                f"{teacher.name} takes {len(read[-1])} rows of {spec.source} and the student {len(own)}: clean the data"
            )
    return read


def prepared_alike(one: Contract, other: Contract) -> bool:
    """Tell whether both take the same tensors, whatever they call them."""
    return [replace(each, name="") for each in one.inputs] == [replace(each, name="") for each in other.inputs]


def _joined(labelled: Rows, unlabelled: Rows) -> Rows:
    """Return all rows, those without labels behind the others."""
    inputs = {name: np.concatenate([array, unlabelled.inputs[name]]) for name, array in labelled.inputs.items()}
    labels = np.concatenate([labelled.required_labels(), np.full(len(unlabelled), UNLABELLED)])
    known = labelled.digests is not None and unlabelled.digests is not None
    digests = np.concatenate([labelled.digests, unlabelled.digests]) if known else None
    return replace(labelled, inputs=inputs, labels=labels, digests=digests)
