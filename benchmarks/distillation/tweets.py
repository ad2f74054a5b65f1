"""Tweets: how much of an adapted MiniLM a transformer of a small share of its work keeps.

``python benchmarks/distillation/tweets.py [--seeds 0,1,2,3,4] [--folder FOLDER] [-o FILE]``

The teacher is all-MiniLM-L6-v2 with a head for negative, neutral and positive, all of its weights adapted to 24,000 labelled
tweets for two epochs, the epoch chosen on 3,000 others; it lies in FOLDER, so that it is adapted once. The student is a
transformer of one slim layer: its token embeddings are as wide as the teacher's and start from them, since what is looked up
costs no multiply-accumulates, and inside it is narrow. For each seed it learns from the same 24,000 tweets by each loss, the
epoch chosen on the same 3,000; the teacher sees the student's own view of each tweet, out of 4 with 15% of the tokens left out
that the epochs take in turn. The control is the same student from the same weights on labels alone, with the same tokens, views
and rates of learning, for as many steps. 11,158 test tweets are looked at once. Tweets are cut at 48 tokens.

The bar: no more than 1/20 of the teacher's multiply-accumulates, and at least 97% of its accuracy, as the mean over seeds;
intervals are Student's over seeds. Exit 1 where the best loss misses it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from trials import CONTROL, RESULTS, Bars, Network, Outcome, outputs_of, say, summarise, teach, top1, write

from monograph.models.contract import Contract
from monograph.models.data.load import load_rows
from monograph.models.data.rows import Rows
from monograph.models.data.split import stratified_split
from monograph.models.data.tweets import SENTIMENTS
from monograph.models.examples import minilm_folder
from monograph.models.huggingface import load_huggingface, quiet_transformers
from monograph.models.size import count_macs
from monograph.models.students import start_from_embeddings, transformer
from monograph.models.torch_model import TorchModel, load_weights, save_weights
from monograph.pipelines.distill import KeptAnswers
from monograph.pipelines.teachers import as_teacher, cached_outputs
from monograph.pipelines.training import Augmentation, TrainingSettings, train

_LENGTH = 48
_PARTS = {"train": 24_000, "validation": 3_000, "test": 11_158}
_ADAPTING = TrainingSettings(
    epochs=2, batch_size=32, learning_rate=1e-4, mixed_precision="bf16", max_gradient_norm=1.0, select="top1"
)
_STUDENT = Network(
    transformer,
    {
        "vocabulary_size": 30522,
        "max_length": _LENGTH,
        "class_count": 3,
        "width": 384,
        "depth": 1,
        "heads": 3,
        "attention_width": 96,
        "feed_forward_width": 256,
        "normed_embeddings": True,
    },
)
_LEARNING = TrainingSettings(epochs=5, batch_size=128, learning_rate=1.5e-3, mixed_precision="bf16", select="top1")
_RATE_SHARE_OF_TOKENS = 0.2
_VIEWS = Augmentation(("drop",), views=4)
_LOSSES: dict[str, dict[str, float]] = {"kd": {"temperature": 2.0}}
_BARS = Bars(1 / 20, retention=0.97)


def main() -> int:
    """Measure every seed, print the figures beside the bar, and write them down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=lambda text: tuple(map(int, text.split(","))), default=(0, 1, 2, 3, 4))
    parser.add_argument("--folder", type=Path, default=Path("runs/distillation"))
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "distillation_tweets.json")
    arguments = parser.parse_args()
    model = _minilm(arguments.folder)
    tweets = "py:monograph.models.data.tweets:tweets"
    rows = load_rows(tweets, model.contract, tokenizer_json=model.tokenizer_json, needs_labels=True)
    parts = stratified_split(rows, _PARTS, seed=0)
    model = _adapted(model, parts, arguments.folder)
    teacher = as_teacher(model)
    tested = cached_outputs(teacher, parts["test"], arguments.folder)
    teacher_top1 = top1(tested, parts["test"])
    print(f"teacher                  top-1 {teacher_top1:.2%}")
    seen = [(_VIEWS, view) for view in range(_VIEWS.views)]
    answers = KeptAnswers(tuple((cached_outputs(teacher, parts["train"], arguments.folder, view=view),) for view in seen))
    table = next(each.weight for name, each in model.module.named_modules() if name.endswith("word_embeddings"))
    outcomes = [one for seed in arguments.seeds for one in _one_seed(parts, answers, table, teacher_top1, seed)]
    share = count_macs(_STUDENT.make(0)) / count_macs(model)
    lines = summarise(outcomes, list(_LOSSES), share, _BARS)
    command = f"python benchmarks/distillation/tweets.py --seeds {','.join(map(str, arguments.seeds))}"
    rest = {"parts": _PARTS, "teacher_top1": teacher_top1, "macs_share": share, "losses": lines}
    write(arguments.output, "distillation_tweets", command, _STUDENT, _BARS, outcomes, rest)
    return 0 if any(line["met"] for line in lines) else 1


def _minilm(folder: Path) -> TorchModel:
    """Return MiniLM with a head that is not adapted yet, for tweets of up to 48 tokens."""
    import transformers

    source = folder / "minilm"
    with quiet_transformers():
        torch.manual_seed(0)
        names = dict(enumerate(SENTIMENTS))
        model = transformers.AutoModelForSequenceClassification.from_pretrained(minilm_folder(), id2label=names)
        model.save_pretrained(source)
        transformers.AutoTokenizer.from_pretrained(minilm_folder()).save_pretrained(source)
        loaded = load_huggingface(str(source))
    return replace(loaded, contract=_cut(loaded.contract))


def _cut(contract: Contract) -> Contract:
    """Return the contract for texts of up to 48 tokens."""
    return replace(
        contract,
        inputs=tuple(replace(spec, preprocessing=replace(spec.preprocessing, max_length=_LENGTH)) for spec in contract.inputs),
    )


def _adapted(model: TorchModel, parts: dict[str, Rows], folder: Path) -> TorchModel:
    """Return the teacher, adapted now or before."""
    kept = folder / "minilm-adapted.safetensors"
    if kept.exists():
        load_weights(model.module, kept)
        return model

    def show(step: int, steps: int, loss: float) -> None:
        if step % 50 == 0:
            say(f"teacher, step {step} of {steps}: loss {loss:.3f}")

    train(model, parts["train"], parts["validation"], _ADAPTING, lambda *told: say(str(told)), folder=folder, on_step=show)
    save_weights(model.module, kept)
    return model


def _one_seed(
    parts: dict[str, Rows], answers: KeptAnswers, table: torch.Tensor, teacher_top1: float, seed: int
) -> Sequence[Outcome]:
    rows, validation, test = parts["train"], parts["validation"], parts["test"]
    settings = replace(_LEARNING, seed=seed)
    control = _student(seed, table)
    train(control, rows, validation, settings, augmentation=_VIEWS, rate_shares=_rate_share)
    control_top1 = top1(outputs_of(control, test), test)
    say(f"seed {seed}: {CONTROL} {control_top1:.2%}")
    outcomes = []
    for name, options in _LOSSES.items():
        student = _student(seed, table)
        teach(student, rows, validation, answers, settings, name, options, _VIEWS, _rate_share)
        outcomes.append(Outcome(seed, name, top1(outputs_of(student, test), test), teacher_top1, control_top1))
        say(f"seed {seed}: {name} {outcomes[-1].top1:.2%}")
    return outcomes


def _rate_share(name: str) -> float:
    """Return which share of the learning rate a weight gets: what the teacher has learned of tokens is to stay."""
    return _RATE_SHARE_OF_TOKENS if name.startswith("token_embedding") else 1.0


def _student(seed: int, table: torch.Tensor) -> TorchModel:
    student = _STUDENT.make(seed)
    start_from_embeddings(student.module, table)
    return student


if __name__ == "__main__":
    sys.exit(main())
