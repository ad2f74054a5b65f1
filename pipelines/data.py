"""DATA as a verb takes it: where the rows are, and which of their columns are meant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from monograph.models.contract import Contract
from monograph.models.data.load import load_rows
from monograph.models.data.rows import Rows
from monograph.models.data.stream import RowStream, open_stream


@dataclass(frozen=True)
class DataSpec:
    """A DATA argument with its columns; whatever is left out is guessed, and the guess is told."""

    source: str
    columns: Mapping[str, str] | None = None
    """Input name to column name."""
    label_column: str | None = None
    split: str | None = None

    def load(
        self, contract: Contract, tokenizer_json: str | None, *, limit: int | None = None, needs_labels: bool = False
    ) -> Rows:
        """Read the rows as a model with ``contract`` takes them.

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
    """Return ``data`` as a :class:`DataSpec`; a text names the source alone."""
    return DataSpec(data) if isinstance(data, str) else data
