"""The first steps: what each model promises, and the rows as it takes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from monograph.errors import ConfigError
from monograph.models.contract import Contract, Kind, TensorSpec
from monograph.pipelines.identity import identity_of
from monograph.pipelines.records import write_record
from monograph.pipelines.run.step import Run

_NOTES = "notes.json"


def read_contracts(run: Run) -> dict[str, tuple[Contract, str | None]]:
    """What each model promises, and its tokenizer; kept so that a resumed run need not load the models again."""
    models = run.config.models
    parameters = {
        name: [model.model_dump(mode="json", exclude={"train", "adapt"}), identity_of(model.source)]
        for name, model in models.items()
    }

    def work(folder: Path) -> None:
        from monograph.pipelines.members import load_member_contract

        for name, model in models.items():
            contract, tokenizer_json = load_member_contract(model)
            (folder / f"{name}.contract.json").write_text(contract.to_json(), encoding="utf-8")
            if tokenizer_json is not None:
                (folder / f"{name}.tokenizer.json").write_text(tokenizer_json, encoding="utf-8")

    folder = run.workspace.step("contracts", parameters, work)
    found: dict[str, tuple[Contract, str | None]] = {}
    for name, model in models.items():
        tokenizer = folder / f"{name}.tokenizer.json"
        contract = Contract.from_json((folder / f"{name}.contract.json").read_text(encoding="utf-8"))
        found[name] = (
            contract if model.adapt is None else _before_its_head(contract),
            tokenizer.read_text(encoding="utf-8") if tokenizer.exists() else None,
        )
    _check_group(run, found)
    return found


def _before_its_head(contract: Contract) -> Contract:
    """Return the contract by which rows are read for a model that has yet to learn what they are labelled with."""
    return replace(contract, outputs=(TensorSpec("embedding", "float32", ("batch",)),), kind=Kind.EMBEDDING, class_names=None)


def _check_group(run: Run, contracts: dict[str, tuple[Contract, str | None]]) -> None:
    group = run.config.data.group
    if group is None:
        return
    for name, (contract, _) in contracts.items():
        inputs = [spec.name for spec in contract.inputs]
        if group not in inputs:
            raise ConfigError(f"data.group is {group!r}, and {name} takes {', '.join(inputs)}: name one of its inputs")
        if run.config.models[name].adapt is None and contract.kind is not Kind.SCORES:
            raise ConfigError(
                f"data.group ranks rows by their scores, and {name} gives {contract.kind.value}: leave data.group out"
            )


def split_rows(run: Run, contract: Contract, tokenizer_json: str | None) -> Path:
    """The rows as this model takes them, split once; models with the same inputs share them.

    A row that stands in two parts stays in the later one alone: tested on what was learned by heart, nothing is proven.
    """
    data = run.config.data
    parameters = {
        "data": data.model_dump(exclude={"group"}),
        "identity": identity_of(data.source),
        "seed": run.config.seed,
        "contract": contract.to_json(),
        "tokenizer": tokenizer_json,
    }

    def work(folder: Path) -> None:
        from monograph.models.data.checks import prepared_digests, without_duplicates
        from monograph.models.data.split import stratified_split
        from monograph.pipelines.data import DataSpec

        spec = DataSpec(data.source, data.columns, data.label_column)
        rows = spec.load(contract, tokenizer_json, needs_labels=True)
        parts, dropped = without_duplicates(stratified_split(rows, data.split, run.config.seed))
        # Texts that differ in what the tokenizer leaves out are one row to the model.
        parts, alike = without_duplicates(parts, prepared_digests(parts))
        dropped += alike
        for part, part_rows in parts.items():
            part_rows.save(folder / f"{part}.npz")
        told = [f"{dropped} rows that stand in two parts were taken out of the training or validation rows"] if dropped else []
        write_record(folder / _NOTES, [*rows.assumed, *told])
        run.tell(" + ".join(f"{size:g} {part}" for part, size in data.split.items()))

    return run.workspace.step("data", parameters, work)
