"""On which instruction sets the proof of a file holds, and whether a target is among them.

The file says so in its metadata if monograph lowered it; otherwise its graph does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import onnx_ir as ir

from monograph.errors import ConfigError, ContractError
from monograph.models.int8_products import int8_products
from monograph.models.onnx_file import load_graph
from monograph.runtime.instruction_sets import InstructionSet
from monograph.runtime.targets import Target

INSTRUCTION_SETS_KEY = "monograph.instruction_sets"
"""Names of instruction sets as a JSON list."""


class ModelFile(Protocol):
    """An ONNX file that was read, or a cascade in stages."""

    @property
    def path(self) -> Path:
        """The file, or the folder of the stages."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the file says of itself, by key."""


def instruction_sets_of(model: ir.Model) -> tuple[InstructionSet, ...]:
    """Return those on which every 8-bit product of ``model`` is exact."""
    products = list(int8_products(model))
    saturates, wraps = any(each.saturates for each in products), any(each.wraps for each in products)
    return tuple(each for each in InstructionSet if not ((saturates and each.saturates) or (wraps and each.wraps)))


def instruction_sets_json(model: ir.Model) -> str:
    """Return the value of ``monograph.instruction_sets`` for ``model``."""
    return json.dumps(instruction_sets_of(model))


def covered_instruction_sets(file: ModelFile) -> tuple[InstructionSet, ...]:
    """Return the instruction sets on which the file computes what it was proven to.

    Raises:
        ContractError: the file's metadata names instruction sets that are not known.
    """
    if INSTRUCTION_SETS_KEY not in file.metadata:
        stages = sorted(file.path.glob("*.onnx")) if file.path.is_dir() else [file.path]
        covered = [instruction_sets_of(load_graph(path)) for path in stages]
        return tuple(each for each in InstructionSet if all(each in of_stage for of_stage in covered))
    try:
        return tuple(map(InstructionSet, json.loads(file.metadata[INSTRUCTION_SETS_KEY])))
    except (ValueError, TypeError) as error:
        raise ContractError(
            f"{file.path}: its metadata {INSTRUCTION_SETS_KEY} is no list of instruction sets ({error}): lower the model again"
        ) from error


def coverage_gap(file: ModelFile, target: Target) -> str | None:
    """Return why the proof of ``file`` does not hold on ``target``, in a sentence; None where it does.

    Targets with kernels of their own, such as a phone's or a browser's, have no such products.
    """
    here = target.instruction_set()
    if here is None:
        return None
    covered = covered_instruction_sets(file)
    if here in covered:
        return None
    return (
        f"{file.path.name} holds on {', '.join(covered) or 'no processor'} only, and {target.name} is {here}, where its 8-bit "
        "products do not fit 16 bits: lower the float model again for any processor (leave --for out)"
    )


def require_coverage(file: ModelFile, target: Target) -> None:
    """Refuse a target on which the proof of ``file`` does not hold.

    Raises:
        ConfigError: it does not hold there.
    """
    gap = coverage_gap(file, target)
    if gap is not None:
        raise ConfigError(gap)
