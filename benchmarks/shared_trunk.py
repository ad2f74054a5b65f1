"""What sharing saves: four heads on one frozen MiniLM trunk, each a file of its own, fused into one graph.

``python benchmarks/shared_trunk.py [--blocks N] [-o FILE]`` fits four linear heads (negative, neutral, positive) on the
frozen, pooled features of 500 tweets each, exports every network whole, two by one exporter and two by another, fuses them,
and times the fused graph against one member of each exporter at batch 1 and 64 tokens, in interleaved blocks of fresh
processes. ONNX Runtime fuses residual additions with layer normalisation where it can infer shapes, as it can in one
exporter's graph and in the fused one, and that kernel of its is the slower one on few cores.

- ``logits``: a weighted mean of logits, in which the heads fold into one layer;
- ``probs``: a mean of probabilities, in which each head runs;
- ``one exporter``: as ``logits``, all four by one exporter;
- ``unshared``: as ``logits`` with ``--no-share``, for contrast.

The bar: at most 1.10 of one member's latency, of either exporter, and 1.05 of its size. The floor is 1 of each: the trunk is
all but the heads.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from monograph.export.fusion import Fused, fuse, plan_fusion
from monograph.export.huggingface import export_huggingface_model
from monograph.models.data.load import load_rows
from monograph.models.data.rows import Rows
from monograph.models.data.split import stratified_split
from monograph.models.data.tweets import SENTIMENTS
from monograph.models.examples import minilm_folder
from monograph.models.files import write_atomically
from monograph.models.huggingface import load_huggingface, quiet_transformers
from monograph.models.onnx_file import OnnxFile, read_onnx
from monograph.runtime.compare import compare
from monograph.runtime.environment import describe_environment, environment_warnings
from monograph.runtime.measure import Contender, Settings, onnx_contender
from monograph.runtime.session import usable_cores
from monograph.runtime.targets import find_target

LATENCY_BAR, SIZE_BAR = 1.10, 1.05
_HEADS = 4
_ROWS_A_HEAD, _TEST_ROWS = 500, 500
_ROUTES = ("optimum", "optimum", "dynamo", "dynamo")


def main() -> int:
    """Fit, export, fuse, time, print the ratios beside their bars, and write them down; exit 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=7)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "shared_trunk.json")
    options = parser.parse_args()
    with TemporaryDirectory(prefix="monograph-bench-") as name:
        folder = Path(name)
        trunk, tokenizer_json = _trunk()
        parts = _rows(trunk, tokenizer_json)
        heads = _fit_heads(trunk, parts)
        files = {route: _export(heads, route, folder) for route in dict.fromkeys(_ROUTES)}
        mixed = [files[route][number] for number, route in enumerate(_ROUTES)]
        fused = {
            "logits": _fuse(mixed, folder / "logits.onnx", parts["test"], combine="logits"),
            "probs": _fuse(mixed, folder / "probs.onnx", parts["test"], combine="probs"),
            "one exporter": _fuse(files["dynamo"], folder / "one.onnx", parts["test"], combine="logits"),
            "unshared": _fuse(mixed, folder / "unshared.onnx", parts["test"], combine="logits", share=False),
        }
        members = {f"member by {route}": own[0] for route, own in files.items()}
        contenders = {name: _contender(name, file) for name, file in members.items()}
        contenders |= {name: _contender(name, one.file) for name, one in fused.items()}
        comparison = compare(list(contenders.values()), None, Settings(), blocks=options.blocks, on_progress=_show)
        record = _record(fused, mixed[0], comparison.p50_s, options.blocks) | {
            "ratios": {name: {member: asdict(comparison.ratio([name], [member])) for member in members} for name in fused}
        }
    record["met"] = _print_verdict(record)
    with write_atomically(options.output) as staged:
        staged.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0 if record["met"] else 1


def _show(name: str) -> None:
    print(f"\rtiming {name:<40}", end="", file=sys.stderr, flush=True)


def _trunk() -> tuple[torch.nn.Module, str]:
    """Return MiniLM as a classifier whose head is not fitted yet, and its tokenizer."""
    import transformers

    with quiet_transformers():
        names = dict(enumerate(SENTIMENTS))
        model = transformers.AutoModelForSequenceClassification.from_pretrained(minilm_folder(), id2label=names)
        tokenizer_json = load_huggingface(str(minilm_folder()), task="feature-extraction").tokenizer_json
    assert tokenizer_json is not None
    return model.eval(), tokenizer_json


def _rows(trunk: torch.nn.Module, tokenizer_json: str) -> dict[str, Rows]:
    contract = load_huggingface(str(minilm_folder()), task="feature-extraction").contract
    rows = load_rows("py:monograph.models.data.tweets:tweets", contract, tokenizer_json=tokenizer_json, needs_labels=True)
    counts = {f"head{number}": _ROWS_A_HEAD for number in range(_HEADS)} | {"test": _TEST_ROWS}
    return stratified_split(rows, counts, seed=0)


def _fit_heads(trunk: torch.nn.Module, parts: dict[str, Rows]) -> list[tuple[np.ndarray, np.ndarray]]:
    began = time.perf_counter()
    features = {name: _features(trunk, rows) for name, rows in parts.items()}
    heads = []
    for number in range(_HEADS):
        rows = parts[f"head{number}"]
        model = LogisticRegression(max_iter=2000).fit(features[f"head{number}"], rows.required_labels())
        score = model.score(features["test"], parts["test"].required_labels())
        print(f"head {number}: {score:.1%} of {_TEST_ROWS} test tweets right")
        heads.append((model.coef_, model.intercept_))
    print(f"features of {sum(map(len, parts.values()))} tweets and {_HEADS} heads in {time.perf_counter() - began:.0f} s")
    return heads


@torch.inference_mode()
def _features(trunk: torch.nn.Module, rows: Rows) -> np.ndarray:
    """Return what the head reads, float32 ``[n, 384]``: the pooled state of the first token."""
    pooled = []
    for batch in rows.batches(32):
        inputs = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in batch.inputs.items()}
        longest = int(inputs["attention_mask"].sum(1).max())
        pooled.append(trunk.bert(**{name: array[:, :longest] for name, array in inputs.items()}).pooler_output.numpy())
    return np.concatenate(pooled)


def _export(heads: Sequence[tuple[np.ndarray, np.ndarray]], route: str, folder: Path) -> list[OnnxFile]:
    import transformers

    files = []
    for number, (weight, bias) in enumerate(heads):
        source = folder / f"head{number}"
        if not source.exists():
            with quiet_transformers():
                model, _ = _trunk()
                model.classifier.weight.data = torch.tensor(weight, dtype=torch.float32)
                model.classifier.bias.data = torch.tensor(bias, dtype=torch.float32)
                model.save_pretrained(source)
                transformers.AutoTokenizer.from_pretrained(minilm_folder()).save_pretrained(source)
        path = folder / f"head{number}-{route}.onnx"
        export_huggingface_model(load_huggingface(str(source)), path, route=route)
        files.append(read_onnx(path))
    return files


def _fuse(files: Sequence[OnnxFile], path: Path, rows: Rows, **choices: object) -> Fused:
    began = time.perf_counter()
    fused = fuse(plan_fusion(files, **choices), path, rows=rows)  # type: ignore[arg-type]
    print(f"{path.stem}: fused with proof in {time.perf_counter() - began:.1f} s, {fused.node_count} nodes")
    print(fused.cost.describe())
    return fused


def _contender(name: str, file: OnnxFile) -> Contender:
    return onnx_contender(name, file.path, file.contract, file.sha256, file.size_bytes, find_target("cpu"))


def _record(fused: dict[str, Fused], member: OnnxFile, p50_s: dict[str, tuple[float, ...]], blocks: int) -> dict[str, object]:
    return {
        "command": "python benchmarks/shared_trunk.py",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "blocks": blocks,
        "routes": _ROUTES,
        "member_size_bytes": member.size_bytes,
        "latency_bar": LATENCY_BAR,
        "size_bar": SIZE_BAR,
        "fused": {
            name: {
                "size_bytes": one.file.size_bytes,
                "size_ratio": one.file.size_bytes / member.size_bytes,
                "node_count": one.node_count,
                "cost": asdict(one.cost),
                "max_relative_error": one.proof.worst.relative_error,
            }
            for name, one in fused.items()
        },
        "p50_s_per_block": p50_s,
        "environment": asdict(describe_environment(usable_cores(), spinning=True)),
        "warnings": environment_warnings(),
    }


def _print_verdict(record: dict[str, object]) -> bool:
    met = True
    print(f"\r{' ' * 60}")
    for name, one in record["fused"].items():  # type: ignore[attr-defined]
        ratios = record["ratios"][name]  # type: ignore[index]
        good = one["size_ratio"] <= SIZE_BAR and all(ratio["estimate"] <= LATENCY_BAR for ratio in ratios.values())
        verdict = "for contrast" if name == "unshared" else "met" if good else "MISSED"
        met &= good or name == "unshared"
        latency = "; ".join(
            f"{member} {ratio['estimate']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]" for member, ratio in ratios.items()
        )
        print(f"{name:<13} latency over {latency} (bar {LATENCY_BAR}), size {one['size_ratio']:.3f} (bar {SIZE_BAR}): {verdict}")
    return met


if __name__ == "__main__":
    sys.exit(main())
