"""Small pretrained models and few rows: a convolution that knows digits, a random BERT, and what adapts them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from monograph.models.data.load import load_rows
from monograph.models.data.rows import Rows
from monograph.models.students import conv
from monograph.models.torch_model import TorchModel
from monograph.pipelines.adapt.features import trunk_features
from monograph.pipelines.adapt.methods import Adaptation
from monograph.pipelines.adapt.network import adaptable, shipped
from monograph.pipelines.adapt.quality import outputs_of, row_quality
from monograph.pipelines.adapt.task import Task, TaskKind
from monograph.pipelines.training import TrainingSettings, train

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "a", "not", "very", "##ly", "real")
ODD = Task(TaskKind.CLASSIFICATION, 2, ("even", "odd"))

MakeAdaptation = Callable[..., Adaptation]


@pytest.fixture(scope="session")
def digits() -> Rows:
    """All 1,797 of them, as an 8x8 picture network takes them."""
    return load_rows("py:monograph.models.data.digits:optical_digits", conv((1, 8, 8), width=4)[1])


@pytest.fixture(scope="session")
def pretrained(digits: Rows) -> TorchModel:
    """A convolution that has seen the ten digits for a moment; its trunk is worth something."""
    torch.manual_seed(0)
    model = TorchModel(*conv((1, 8, 8), width=4, dropout=0.0), "conv")
    settings = TrainingSettings(epochs=3, batch_size=32, learning_rate=1e-2)
    train(model, digits.take(slice(0, 600)), digits.take(slice(600, 700)), settings)
    return model


@pytest.fixture(scope="session")
def odd_parts(digits: Rows) -> dict[str, Rows]:
    """Whether a digit is odd: a task that the network was not trained for."""
    rows = replace(digits, labels=digits.required_labels() % 2, class_names=ODD.class_names)
    return {"train": rows.take(slice(700, 900)), "validation": rows.take(slice(900, 1000))}


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of two layers that classifies texts, with its tokenizer."""
    from transformers import AutoConfig, AutoModelForSequenceClassification, BertTokenizerFast

    from monograph.models.huggingface import quiet_transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    names = {0: "negative", 1: "neutral", 2: "positive"}
    config = AutoConfig.for_model(
        "bert", vocab_size=len(WORDS), max_position_embeddings=32, pad_token_id=0, initializer_range=0.3, id2label=names, **sizes
    )
    folder = tmp_path_factory.mktemp("models") / "bert"
    torch.manual_seed(0)
    with quiet_transformers():
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bert(bert_folder: Path) -> TorchModel:
    from monograph.models.huggingface import load_huggingface

    return load_huggingface(str(bert_folder))


@pytest.fixture(scope="session")
def texts(bert: TorchModel) -> Rows:
    """Rows of tokens, of unlike lengths."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 12, 40)
    mask = (np.arange(12) < lengths[:, None]).astype(np.int64)
    ids = rng.integers(5, len(WORDS), (40, 12)) * mask
    known = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    labels = (ids == 5).any(1).astype(np.int64)
    return Rows({spec.name: known[spec.name] for spec in bert.contract.inputs}, labels, ("without", "with"))


@pytest.fixture
def make_adaptation(tmp_path: Path) -> MakeAdaptation:
    """What adapts a model to parts of rows, with its features and checkpoints below the test's folder."""

    def make(model: TorchModel, parts: dict[str, Rows], task: Task = ODD, name: str = "run", **changes: Any) -> Adaptation:
        start, _ = adaptable(model, task, 0)

        def quality(given: TorchModel, rows: Rows) -> float:
            return float(row_quality(outputs_of(shipped(given), rows), rows.required_labels(), task).mean())

        features = trunk_features(start, tmp_path / name / "features", lambda done, total: None)
        return Adaptation(start, parts, features, tmp_path / name / "checkpoints", quality=quality, **changes)

    return make
