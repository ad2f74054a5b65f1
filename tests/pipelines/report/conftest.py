"""Reports of the kind a real run writes: three small digit classifiers, their fusion, two baselines, and what was distilled."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from monograph.export.parity import BatchParity, ParityProof
from monograph.models.data.load import load_rows
from monograph.models.students import conv
from monograph.models.torch_model import TorchModel
from monograph.pipelines.distill import Distilled, Standing
from monograph.pipelines.report import (
    Contender,
    FusionSummary,
    MemberWeight,
    Proof,
    Ratio,
    Report,
    Role,
    TrainingCurve,
)
from monograph.pipelines.training import Training, TrainingSettings, train
from monograph.runtime.results import (
    Accuracy,
    Agreement,
    Environment,
    Evidence,
    Interval,
    Latency,
    Measurement,
    Placed,
    Throughput,
)

ROWS = 1797

ENVIRONMENT = Environment(
    processor="AMD EPYC 7B13",
    machine="x86_64",
    system="Linux 6.8.0-45-generic (Debian GNU/Linux 12)",
    logical_cores=8,
    usable_cores=2,
    memory_bytes=16_703_000_000,
    python="3.11.2",
    packages={"onnx": "1.19.1", "onnx-ir": "1.0.0", "onnxruntime": "1.24.1", "numpy": "2.4.6", "torch": "2.9.1"},
    threads=2,
    spinning=False,
)


def wilson(share: float, count: int = ROWS) -> Interval:
    """The Wilson score interval of a share of ``count`` rows."""
    z = 1.96
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return Interval(share, centre - half, centre + half)


def accuracy(top1: float, nll: float, row_count: int = ROWS) -> Accuracy:
    return Accuracy(row_count, wilson(top1, row_count), top1 - 0.0012, nll, 0.11 * (1 - top1) + 0.004)


def latency(median_ms: float, *, count: int = 1000, seed: int = 0, create_s: float = 0.021) -> Latency:
    """Samples with the right skew, the second mode and the few stragglers that real ones have."""
    rng = np.random.default_rng(seed)
    samples = median_ms * np.exp(rng.normal(0, 0.035, count) + np.abs(rng.normal(0, 0.02, count)))
    samples[rng.random(count) < 0.09] *= 1.18
    stragglers = rng.random(count) < 0.006
    samples[stragglers] *= rng.uniform(1.6, 3.4, int(stragglers.sum()))
    ordered = np.sort(samples)

    def quantile(level: float) -> Interval:
        half = 1.96 * math.sqrt(level * (1 - level) / count)
        low, high = max(level - half, 0), min(level + half, 1)
        return Interval(*(float(np.quantile(ordered, one)) / 1e3 for one in (level, low, high)))

    return Latency(
        batch_size=1,
        create_s=create_s,
        first_run_s=median_ms * 9.3e-3,
        warmup_runs=20,
        samples_ns=tuple(int(one * 1e6) for one in samples),
        p50_s=quantile(0.5),
        p90_s=quantile(0.9),
        p99_s=quantile(0.99) if count >= 299 else None,
    )


def throughput(median_ms: float) -> tuple[Throughput, ...]:
    points = []
    for batch_size in (1, 4, 16, 64, 256):
        rate = batch_size / (median_ms * 1e-3 * (0.45 + 0.55 * batch_size ** (0.62 if batch_size < 100 else 0.66)))
        points.append(Throughput(batch_size, Interval(rate, 0.97 * rate, 1.025 * rate), max(2000 // batch_size, 30)))
    return tuple(points)


def measurement(name: str, median_ms: float, score: Accuracy | None, size_bytes: int, **changes: Any) -> Measurement:
    seed = sum(map(ord, name))
    return replace(
        Measurement(
            model=f"{name}.onnx",
            sha256=f"{seed:064x}",
            size_bytes=size_bytes,
            target="cpu",
            evidence=Evidence.EXECUTED,
            environment=ENVIRONMENT,
            accuracy=score,
            latency=latency(median_ms, seed=seed),
            throughput=throughput(median_ms),
            placement=(_placed(7 + seed % 11),),
            peak_memory_bytes=61_000_000 + 9 * size_bytes,
        ),
        **changes,
    )


def contender(name: str, role: Role, median_ms: float, top1: float | None, size_bytes: int, note: str = "") -> Contender:
    score = None if top1 is None else accuracy(top1, nll=2.9 * (1 - top1) + 0.02)
    return Contender(name, role, measurement(name, median_ms, score, size_bytes), note)


def contenders() -> tuple[Contender, ...]:
    return (
        contender("lenet-5", "member", 0.096, 0.9716, 247_300),
        contender("mlp-256", "member", 0.041, 0.9655, 812_900),
        contender("resnet-mini", "member", 0.212, 0.9733, 1_104_000),
        contender("fused", "fused", 0.318, 0.9794, 2_166_000, "logits, fitted weights"),
        contender("3 sessions + numpy", "baseline", 0.402, 0.9794, 2_164_200, "three sessions in turn, combined in numpy"),
        contender("PyTorch eager", "baseline", 1.93, None, 2_161_000, "torch.inference_mode, 2 threads"),
    )


def parity(reference: str, candidate: str, error: float = 1.9e-6) -> ParityProof:
    batches = tuple(
        BatchParity(size, "logits", "real", error * (1 + 0.2 * size), 14.2 + size, 1 - 3e-13 * size, 1.0) for size in (1, 2, 5)
    )
    return ParityProof(reference, candidate, 1e-4, 0, batches)


def proofs() -> tuple[Proof, ...]:
    members = ("lenet-5", "mlp-256", "resnet-mini")
    exported = (Proof(f"{name}.onnx", f"{name} in PyTorch", parity(name, f"{name}.onnx")) for name in members)
    return (*exported, Proof("fused.onnx", "its members combined in numpy", parity("members", "fused.onnx", 4.4e-6)))


def curves(epochs: int = 12) -> tuple[TrainingCurve, ...]:
    made = []
    for name, pace, floor in (("lenet-5", 0.42, 0.031), ("mlp-256", 0.3, 0.062), ("resnet-mini", 0.55, 0.018)):
        rng = np.random.default_rng(len(name))
        fall = [2.1 * math.exp(-pace * epoch) for epoch in range(1, epochs + 1)]
        validation = [one + floor + 0.08 + 0.012 * float(rng.normal()) for one in fall]
        train = tuple(one + floor for one in fall)
        made.append(TrainingCurve(name, train, tuple(validation), tuple(0.985 - 0.16 * one for one in validation)))
    return tuple(made)


def report(**changes: Any) -> Report:
    """The full report, with ``changes`` put in."""
    fusion = FusionSummary(
        form="logits",
        formula="O = Σ αᵢOᵢ",
        members=(MemberWeight("lenet-5", 0.283), MemberWeight("mlp-256", 0.154), MemberWeight("resnet-mini", 0.563)),
        fitted=True,
        note="Weights fitted by minimising the negative log-likelihood on 898 rows that no table here uses.",
        node_count=31,
        size_bytes=2_166_000,
    )
    made = Report(
        title="Handwritten digits: three members, one graph",
        created="2026-11-23T21:40:12+00:00",
        version="0.1.0",
        data="UCI digits, 1,797 test rows of 8 × 8 grey pixels in 10 classes, split by seed 0",
        contenders=contenders(),
        proofs=proofs(),
        fusion=fusion,
        curves=curves(),
        ratios=(
            Ratio("fused / sum of members apart", 0.893, 0.871, 0.917, "40 interleaved ABBA blocks in fresh processes"),
            Ratio("fused / 3 sessions + numpy", 0.791, 0.775, 0.806, "40 interleaved ABBA blocks in fresh processes"),
            Ratio("fused / PyTorch eager", 0.165, 0.158, 0.171, "20 interleaved ABBA blocks in fresh processes"),
            Ratio("fused / best member", 1.503, 1.472, 1.538, "40 interleaved ABBA blocks in fresh processes"),
        ),
        commands=("pip install 'monograph[cpu,examples]'", "monograph run digits.yaml --out runs/digits"),
        pipeline_yaml=PIPELINE,
        duration_s=134.2,
        notes=("Training ran on the CPU with seed 0; another seed moves top-1 by about 0.3 points.",),
    )
    return replace(made, **changes)


PIPELINE = """\
name: digits
data: py:monograph.examples.digits:load
models:
  - {name: lenet-5, train: {epochs: 12, lr: 1.0e-3}}
  - {name: mlp-256, train: {epochs: 12, lr: 1.0e-3}}
  - {name: resnet-mini, train: {epochs: 12, lr: 2.0e-3}}
fuse: {combine: logits, fit: validation}
measure: {on: [cpu], runs: 1000}
"""


def _placed(node_count: int) -> Placed:
    names = tuple(f"node_{index}" for index in range(node_count))
    return Placed("CPUExecutionProvider", names, ("Conv",) * node_count, 1)


@pytest.fixture(scope="session")
def make_report() -> Callable[..., Report]:
    return report


@pytest.fixture(scope="session")
def make_contender() -> Callable[..., Contender]:
    return contender


@pytest.fixture(scope="session")
def make_measurement() -> Callable[..., Measurement]:
    return measurement


def distilled(training: Training, **changes: Any) -> Distilled:
    """What a fusion taught to a fourteenth of its size, with ``changes`` put in."""
    fidelity = Agreement("the teachers", ROWS, 3.12, 0.284, 0.9713, 12, wilson(0.962))
    teacher = Standing("fused", accuracy(0.9794, 0.0797), None, 6_154_432, None, 429_718)
    student = Standing("separable_conv", accuracy(0.9716, 0.112), fidelity, 436_544, 6_826, 56_576)
    made = Distilled(
        onnx=Path("out/student.onnx"),
        weights=Path("out/student.safetensors"),
        loss="kd",
        training=training,
        teachers=(teacher,),
        student=student,
        test_rows="test rows",
        retention=0.9716 / 0.9794,
        measurements=(
            measurement("student", 0.041, student.accuracy, 56_576, model="student"),
            measurement("fused", 0.2, None, 429_718, model="fused"),
        ),
        proof=parity("student", "student.onnx").describe(),
        notes=("separable_conv of width 16: 436,544 macs of 615,443 allowed (1/10 of the teacher's 6,154,432)",),
    )
    return replace(made, **changes)


@pytest.fixture(scope="session")
def tiny_training() -> Training:
    """Five epochs of a small network on 300 real digits."""
    torch.manual_seed(0)
    model = TorchModel(*conv((1, 8, 8), width=4, dropout=0.0), "separable_conv")
    rows = load_rows("py:monograph.models.data.digits:optical_digits", model.contract)
    settings = TrainingSettings(epochs=5, batch_size=32, learning_rate=1e-2, select="top1")
    return train(model, rows.take(slice(0, 300)), rows.take(slice(300, 500)), settings)


@pytest.fixture(scope="session")
def make_distilled(tiny_training: Training) -> Callable[..., Distilled]:
    return partial(distilled, tiny_training)
