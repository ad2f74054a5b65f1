"""The model card: one page of Markdown for whoever is handed the folder. Figures are those of the files beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from monograph import __version__
from monograph.models.contract import Contract, ImagePreprocessing, TensorSpec, TextPreprocessing
from monograph.pipelines.bundle.forms import Form
from monograph.pipelines.bundle.plan import BundlePlan
from monograph.pipelines.gate.check import amount
from monograph.pipelines.report.formats import milliseconds, percent
from monograph.runtime.coverage import INSTRUCTION_SETS_KEY, covered_instruction_sets
from monograph.runtime.results import Measurement

_MOST_CLASSES = 30


def model_card(plan: BundlePlan) -> str:
    """Return the card of a bundle."""
    return "\n".join(line for section in (_head, _takes, _use, _verdict, _figures, _origin) for line in section(plan)) + "\n"


def _head(plan: BundlePlan) -> Iterator[str]:
    model = plan.model
    yield from ("---", f"license: {(plan.licence or 'other').lower()}", "library_name: onnxruntime", "---", "")
    yield f"# {_text(model.path.stem)}"
    yield ""
    yield f"A model of {model.contract.kind.value}, {model.size_bytes:,} bytes, SHA-256 `{model.sha256}`."
    yield f"Licence: {plan.licence or '**not stated**'}."
    yield ""


def _takes(plan: BundlePlan) -> Iterator[str]:
    contract = plan.model.contract
    yield from ("## What it takes and gives", "")
    for spec in contract.inputs:
        yield f"- input `{spec.describe()}`: {_preprocessing(spec)}"
    for spec in contract.outputs:
        yield f"- output `{spec.describe()}`"
    if contract.class_names is not None:
        yield f"- classes ({len(contract.class_names)}): {_classes(contract)}"
    yield ""


def _use(plan: BundlePlan) -> Iterator[str]:
    is_text = any(isinstance(spec.preprocessing, TextPreprocessing) for spec in plan.model.contract.inputs)
    is_picture = any(isinstance(spec.preprocessing, ImagePreprocessing) for spec in plan.model.contract.inputs)
    given = '--text "…"' if is_text else "picture.png" if is_picture else "rows.npz"
    further = ", and tokenizers for texts" if is_text else ", and Pillow for JPEG" if is_picture else ""
    yield from ("## How to use it", "", "```sh", f"python predict.py {given}", "monograph verify . --on cpu", "```", "")
    yield f"`predict.py` needs onnxruntime and numpy{further}. `monograph verify` checks every file, then runs golden batches:"
    yield from ("", "| file | golden batches | allowed error, share of the largest value |", "|---|---|---|")
    for form in plan.forms:
        rows = ", ".join(f"{batch.batch_size} {batch.rows}" for batch in form.golden.batches)
        fixed = "".join(f"; {target} {tolerance:g}" for target, tolerance in sorted(plan.tolerances.items()))
        yield f"| `{_text(form.place)}` | {rows} | {form.golden.tolerance:g}{fixed} |"
    yield ""


def _verdict(plan: BundlePlan) -> Iterator[str]:
    yield from ("## May it ship?", "")
    verdict = plan.verdict
    if verdict is None:
        yield from ("**Nobody judged it**: the bundle holds no verdict.", "")
        return
    outcome, _, told = verdict.describe().partition(": ")
    yield f"**{outcome.upper()}**: {told}. Policy `{verdict.policy_sha256[:12]}…`"
    yield f"({'the default one' if verdict.is_default_policy else 'a given one'}), {verdict.created}, against a model with"
    yield f"SHA-256 `{verdict.reference.sha256[:12]}…`{f', on {verdict.row_count:,} rows' if verdict.row_count else ''}."
    yield from ("", "| check | target | found | allowed | outcome |", "|---|---|---|---|---|")
    for check in verdict.checks:
        allowed = f"{'≥' if check.is_least else '≤'} {amount(check.limit, check.unit)}"
        found = amount(check.estimate, check.unit)
        yield f"| {_text(check.name)} | {check.target or ''} | {found} | {allowed} | {check.outcome.value} |"
    yield ""


def _figures(plan: BundlePlan) -> Iterator[str]:
    yield from ("## Measured", "")
    measured = [one for file in plan.measurements for one in file.measurements]
    if not measured:
        yield from ("The bundle holds no measurements.", "")
        return
    yield from ("| model | target | evidence | top-1 % | p50 ms | on |", "|---|---|---|---|---|---|")
    yield from (_figure(one) for one in measured)
    yield ""


def _figure(one: Measurement) -> str:
    top1 = percent(one.accuracy.top1 if one.accuracy else None)
    p50 = milliseconds(one.latency.p50_s if one.latency else None)
    cells = (one.model, one.target, one.evidence.value, str(top1), str(p50), one.device or one.environment.processor)
    return f"| {' | '.join(map(_text, cells))} |"


def _origin(plan: BundlePlan) -> Iterator[str]:
    yield from ("## Where it comes from", "")
    for form in plan.forms:
        yield f"- `{_text(form.place)}`: {_text('; '.join(_told(form)))}"
    yield from ("", f"All of it, with every SHA-256, stands in `lineage.json`. Bundled by monograph {__version__}:", "")
    yield from ("```sh", plan.command, "```")


def _told(form: Form) -> Sequence[str]:
    told = [] if form.lowering is None else [f"lowered by {form.lowering}"]
    if INSTRUCTION_SETS_KEY in form.metadata:
        told.append(f"its 8-bit products are exact on {', '.join(covered_instruction_sets(form))}")
    fusion = form.records.get("fusion")
    members = fusion.get("members") if isinstance(fusion, dict) else None
    if isinstance(members, list):
        names = [f"{member.get('name')} ({str(member.get('sha256'))[:12]}…)" for member in members if isinstance(member, dict)]
        told.append(f"a fusion of {', '.join(names)}")
    told.append(
        f"proven equal to {form.golden.reference}" if form.lowering is None else f"golden outputs of {form.golden.reference}"
    )
    return [*told, f"has seen {form.seen.describe()}" if len(form.seen) else "names no rows that it has seen"]


def _preprocessing(spec: TensorSpec) -> str:
    prep = spec.preprocessing
    if isinstance(prep, TextPreprocessing):
        return f"{prep.role} of the tokenizer beside it, {prep.max_length} tokens at most"
    if prep is None:
        return "numbers as they are"
    size = (
        "stretched to its size"
        if prep.resize_shorter_side is None
        else f"shorter side {prep.resize_shorter_side}, centre cropped"
    )
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (prep.mean, prep.std))
    return f"a picture, {size} ({prep.resample}), then (value × {prep.scale:.6g} − [{mean}]) / [{std}], {prep.layout}"


def _classes(contract: Contract) -> str:
    names = contract.class_names or ()
    return ", ".join(map(_text, names[:_MOST_CLASSES])) + (", … (`labels.txt`)" if len(names) > _MOST_CLASSES else "")


def _text(text: str) -> str:
    """Return text that breaks no table: names come from files that others wrote."""
    return " ".join(text.replace("|", "\\|").replace("`", "'").replace("<", "&lt;").split())
