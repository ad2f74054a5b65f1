"""Result dataclasses to JSON files and back, checked against their types."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

T = TypeVar("T")


def to_json(result: Any) -> str:
    """Return ``result`` (dataclasses, lists, dicts) as indented JSON."""
    return TypeAdapter(type(result)).dump_json(result, indent=1).decode()


def write_record(path: Path, result: Any) -> None:
    """Write ``result`` as JSON."""
    path.write_text(to_json(result) + "\n", encoding="utf-8")


def read_record(path: Path, kind: type[T]) -> T:
    """Read a JSON file back as ``kind``."""
    return TypeAdapter(kind).validate_json(path.read_bytes())
