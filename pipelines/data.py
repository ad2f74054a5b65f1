"""DATA as a verb takes it: where the rows are, and which of their columns are meant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from monograph.models.contract import Contract
from monograph.models.data.hub import looks_like_file
from monograph.models.data.load import load_rows
from monograph.models.data.rows import Rows
from monograph.models.data.stream import RowStream, open_stream
from monograph.models.data.tables import HUB_PREFIX
from monograph.models.factories import FACTORY_PREFIX

_DATA_FILES = (".yaml", ".yml")


@dataclass(frozen=True)
class DataSpec:
    """A DATA argument with its columns; whatever is left out is guessed, and the guess is told."""

    source: str
    columns: Mapping[str, str] | None = None
    """Input name to column name."""
    label_column: str | Sequence[str] | None = None
    """Several, as a list or as ``a,b,c``, hold one number each of a row's labels."""
    split: str | None = None

    def load(
        self,
        contract: Contract,
        tokenizer_json: str | None,
        *,
        limit: int | None = None,
        needs_labels: bool = False,
        skip_unreadable: bool = False,
    ) -> Rows:
        """Read the rows as a model with ``contract`` takes them; see :func:`~monograph.models.data.load.load_rows`.

        Raises:
            DataError: they cannot be read, or do not fit the model.
        """
        return load_rows(
            self.source,
            contract,
            split=self.split,
            columns=self.columns,
            label_column=self.label_column,
            tokenizer_json=tokenizer_json,
            limit=limit,
            needs_labels=needs_labels,
            skip_unreadable=skip_unreadable,
        )

    def open(
        self, contract: Contract, tokenizer_json: str | None, *, slices: Sequence[str] = (), group: str | None = None
    ) -> AbstractContextManager[RowStream]:
        """Open the rows to be read a part at a time.

        Raises:
            DataError: they cannot be read, or do not fit the model.
        """
        return open_stream(
            self.source,
            contract,
            split=self.split,
            columns=self.columns,
            label_column=self.label_column,
            tokenizer_json=tokenizer_json,
            slices=tuple(slices),
            group=group,
        )


def as_data_spec(data: str | DataSpec | None) -> DataSpec | None:
    """Return ``data`` as a :class:`DataSpec`; a text names the source alone, or a YAML file that says all of it.

    Raises:
        ConfigError: the YAML file is missing, or says something that is not understood.
    """
    return data_spec(data) if isinstance(data, str) else data


def data_spec(
    source: str,
    columns: Mapping[str, str] | None = None,
    label_column: str | Sequence[str] | None = None,
    split: str | None = None,
) -> DataSpec:
    """Return DATA with its columns; where ``source`` is a YAML file, that says whatever is not given here.

    Raises:
        ConfigError: the YAML file is missing, or says something that is not understood.
    """
    if not source.lower().endswith(_DATA_FILES) or source.startswith((FACTORY_PREFIX, HUB_PREFIX)):
        return DataSpec(source, columns, label_column, split)
    from monograph.pipelines.config import load_data_file  # which takes pydantic, and few give a YAML file

    path = Path(source).expanduser()
    said = load_data_file(path)
    return DataSpec(
        _starting_at(path.parent, said.source),
        {**(said.columns or {}), **(columns or {})} or None,
        label_column or said.label_column,
        split or said.split,
    )


def _starting_at(folder: Path, source: str) -> str:
    """Return ``source`` with a relative path made to start at ``folder``; a factory or an id on the hub as it is."""
    if not source or source.startswith((FACTORY_PREFIX, HUB_PREFIX)):
        return source
    path = folder / Path(source).expanduser()
    is_path = path.exists() or looks_like_file(source) or ("/" in source and path.parent.is_dir())
    return str(path) if is_path else source
