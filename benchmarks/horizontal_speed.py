"""What horizontal fusion gains: four members of one architecture as one batch, beside the same fusion of the members apart.

``python benchmarks/horizontal_speed.py [--on TARGET] [--blocks N] [-o FILE]`` exports four convnets, four separable convnets,
four multilayer perceptrons and four tiny BERTs with random weights, fuses each four in both ways (both are proven equal to the
members), and times both graphs on the target at batch 1 in interleaved blocks of fresh processes.

There is no bar: the ratios say where ``--horizontal auto`` chooses the batch. Writes a JSON file with raw medians per block.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from monograph.export.fusion import Fused, fuse, plan_fusion
from monograph.export.fusion.horizontal.choice import ASKED, choose_by
from monograph.export.trace import export_torch
from monograph.models.contract import Contract, Kind, TensorSpec
from monograph.models.files import write_atomically
from monograph.models.onnx_file import OnnxFile, read_onnx
from monograph.models.students import STUDENTS
from monograph.models.torch_model import TorchModel
from monograph.runtime.compare import compare
from monograph.runtime.environment import describe_environment, environment_warnings
from monograph.runtime.measure import Settings, onnx_contender
from monograph.runtime.session import usable_cores
from monograph.runtime.targets import Target, find_target

_MEMBER_COUNT = 4
_BERT = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512, "vocab_size": 1000}
"""The sizes of BERT-tiny (Turc et al. 2019, arXiv 1908.08962), but for the vocabulary."""


def main() -> int:
    """Measure, print the ratios, and write them down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", default="cpu", help="the target")
    parser.add_argument("--blocks", type=int, default=7)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "horizontal_speed.json")
    options = parser.parse_args()
    target = find_target(options.on)
    rows = []
    for name, build in ARCHITECTURES.items():
        with TemporaryDirectory(prefix="monograph-bench-") as folder:
            rows.append(_measure(name, _export(name, build, Path(folder)), Path(folder), target, options.blocks))
    record = {
        "command": f"python benchmarks/horizontal_speed.py --on {target.name}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "target": target.describe(),
        "blocks": options.blocks,
        "members": _MEMBER_COUNT,
        "architectures": rows,
        "environment": asdict(describe_environment(usable_cores(), spinning=True)),
        "warnings": environment_warnings(),
    }
    with write_atomically(options.output) as staged:
        staged.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


def _student(name: str) -> TorchModel:
    module, contract = STUDENTS[name]()
    return TorchModel(module.eval(), contract, name)


def _bert() -> TorchModel:
    from transformers import BertConfig, BertForSequenceClassification

    class LogitsOfTokens(torch.nn.Module):
        """Takes what the contract names; the tokens are of one segment."""

        def __init__(self) -> None:
            super().__init__()
            self.model = BertForSequenceClassification(BertConfig(**_BERT))

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
            return logits

    inputs = tuple(TensorSpec(name, "int64", ("batch", "sequence")) for name in ("input_ids", "attention_mask"))
    contract = Contract(inputs, (TensorSpec("logits", "float32", ("batch", 2)),), Kind.LOGITS)
    return TorchModel(LogitsOfTokens().eval(), contract, "bert_tiny")


ARCHITECTURES: dict[str, Callable[[], TorchModel]] = {
    "conv": lambda: _student("conv"),
    "separable_conv": lambda: _student("separable_conv"),
    "mlp": lambda: _student("mlp"),
    "bert_tiny": _bert,
}


def _export(name: str, build: Callable[[], TorchModel], folder: Path) -> list[OnnxFile]:
    files = []
    for seed in range(_MEMBER_COUNT):
        torch.manual_seed(seed)
        files.append(read_onnx(export_torch(build(), folder / f"{name}{seed}.onnx").path))
    return files


def _measure(name: str, files: list[OnnxFile], folder: Path, target: Target, blocks: int) -> dict[str, object]:
    plans = {"batched": plan_fusion(files, horizontal=ASKED), "apart": plan_fusion(files)}
    fusions = {way: fuse(plan, folder / f"{way}.onnx") for way, plan in plans.items()}
    contenders = [
        onnx_contender(way, fused.file.path, fused.file.contract, fused.file.sha256, fused.file.size_bytes, target)
        for way, fused in fusions.items()
    ]
    comparison = compare(contenders, None, Settings(), blocks=blocks, on_progress=lambda way: _show(name, way))
    choice = choose_by(comparison.ratio(["batched"], ["apart"]), target.name)
    print(f"\r{name:<15} {choice.describe()}", flush=True)
    return {
        "name": name,
        "choice": asdict(choice),
        "p50_s_per_block": comparison.p50_s,
        "fusions": {way: _record(fused) for way, fused in fusions.items()},
    }


def _record(fused: Fused) -> dict[str, object]:
    return {"nodes": fused.node_count, "size_bytes": fused.file.size_bytes, "proof": asdict(fused.proof)}


def _show(name: str, way: str) -> None:
    print(f"\rtiming {name} {way:<20}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
