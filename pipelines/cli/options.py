"""What the commands share: option types, how their texts are read, how results are printed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from monograph.errors import ConfigError
from monograph.models.bounded import parse_json

if TYPE_CHECKING:
    from monograph.pipelines.data import DataSpec

Json = Annotated[bool, typer.Option("--json", help="Print the machine-readable result, and nothing else, on standard output.")]
Tolerance = Annotated[
    float, typer.Option(help="Largest absolute error that the proof allows, as a share of the largest absolute reference value.")
]
DataColumns = Annotated[
    list[str] | None,
    typer.Option(
        "--data-column",
        metavar="NAME=COLUMN",
        help="Which column of DATA feeds an input, or, for `y`, holds the labels; `y=a,b,c` takes three columns of 0 and 1.",
    ),
]
Split = Annotated[str | None, typer.Option(help="Which split of DATA, where it has several.")]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        help="Of training and of all else that is not timed; OMP_NUM_THREADS by default, or else chosen by timing. With a fixed "
        "number a seed gives the same weights bit for bit.",
    ),
]
SOURCE = "`file.onnx`, `hf:ID_OR_FOLDER` or `py:package.module:factory`"
DATA = (
    "DATA: `file.npz`, an image folder, CSV, Parquet or JSONL, a `datasets` folder or id, `py:package.module:factory`, or a YAML "
    "file of `source`, `columns`, `label_column` and `split`"
)


def escape_line(text: str) -> str:
    """Return ``text`` on one line, safe to print among rich's markup."""
    from rich.markup import escape

    return escape(" ".join(text.split()))


def print_json(result: Any) -> None:
    """Print a result for machines."""
    from monograph.pipelines.records import to_json

    typer.echo(to_json(result))


def say(text: str) -> None:
    """Print text for people as it is."""
    Console(highlight=False).print(escape_lines(text), soft_wrap=True)


def escape_lines(text: str) -> str:
    """Return ``text`` safe to print among rich's markup."""
    from rich.markup import escape

    return escape(text)


def data_spec_of(source: str | None, columns: list[str] | None, split: str | None) -> DataSpec | None:
    """Return what DATA and its options say; None where none is given. Options win over what a YAML file says."""
    from monograph.pipelines.data import data_spec

    if source is None:
        return None
    named = dict(map(key_value, columns or ()))
    label_column = named.pop("y", None)
    return data_spec(source, named or None, label_column, split)


def key_value(text: str) -> tuple[str, str]:
    """Split ``NAME=VALUE``."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"{text!r} is not of the form NAME=VALUE")
    return key, value


def json_or_text(value: str) -> Any:
    """Return the value that JSON text holds, or the text itself."""
    try:
        return parse_json(value)
    except ValueError:
        return value


def numbers(text: str | None, what: str) -> list[float] | None:
    """Read ``0.3,0.7``; ``what`` names the numbers in an error."""
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"{text!r} holds something that is not a number: {what} are written 0.3,0.7") from error


def whole_number(text: str) -> int:
    """Read one batch size."""
    try:
        return int(text)
    except ValueError as error:
        raise ConfigError(f"{text!r} is not a whole number: batch sizes are written 1,8,32") from error
