from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from monograph.errors import ConfigError
from monograph.export.trace import export_torch
from monograph.models.contract import Kind, TextPreprocessing
from monograph.models.data.preprocess import preprocess
from monograph.models.onnx_file import read_onnx
from monograph.models.size import count_macs
from monograph.models.students import transformer
from monograph.models.torch_model import TorchModel

WORDS = ("[PAD]", "[UNK]", "good", "bad", "film", "a", "not")


@pytest.fixture
def student() -> TorchModel:
    torch.manual_seed(0)
    module, contract = transformer(len(WORDS), 24, 3, width=16, depth=2, heads=2)
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return TorchModel(module, contract, "student", backend.to_str())


def test_texts_and_a_tokenizer(student: TorchModel):
    texts = ["a good film", "bad", "a film " * 40]
    inputs, _ = preprocess({"input_ids": texts, "attention_mask": texts}, student.contract, tokenizer_json=student.tokenizer_json)
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape == (3, 24)
    assert inputs["attention_mask"].sum(1).tolist() == [3, 1, 24]
    assert student(inputs)["logits"].shape == (3, 3)


def test_contract(student: TorchModel):
    ids, mask = student.contract.inputs
    assert (ids.name, ids.dtype, ids.shape, ids.upper_bound) == ("input_ids", "int64", ("batch", "sequence"), len(WORDS))
    assert (mask.name, mask.dtype, mask.shape, mask.upper_bound) == ("attention_mask", "int64", ("batch", "sequence"), 2)
    assert ids.preprocessing == TextPreprocessing("input_ids", 24)
    assert mask.preprocessing == TextPreprocessing("attention_mask", 24)
    assert (student.contract.kind, student.contract.class_count) == (Kind.LOGITS, 3)


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
def test_export(student: TorchModel, dynamo: bool, tmp_path: Path):
    """The proof runs batches of 1, 2 and 5 rows at sequences of 12, 7 and 19 tokens, with padding."""
    exported = export_torch(student, tmp_path / "m.onnx", dynamo=dynamo)
    assert [batch.batch_size for batch in exported.proof.batches] == [1, 2, 5]
    file = read_onnx(tmp_path / "m.onnx")
    assert (file.contract, file.tokenizer_json) == (student.contract, student.tokenizer_json)


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
def test_export_of_slim_layers(dynamo: bool, tmp_path: Path):
    torch.manual_seed(0)
    slim = TorchModel(
        *transformer(len(WORDS), 24, 3, 40, 2, 2, attention_width=8, feed_forward_width=12, normed_embeddings=True), "slim"
    )
    exported = export_torch(slim, tmp_path / "m.onnx", dynamo=dynamo)
    assert [batch.batch_size for batch in exported.proof.batches] == [1, 2, 5]


def test_slim_layers_cost_their_own_widths():
    slim = TorchModel(*transformer(len(WORDS), 24, 3, 40, 1, 2, attention_width=8, feed_forward_width=12), "slim")
    assert count_macs(slim) == 24 * (4 * 40 * 8 + 2 * 24 * 8 + 2 * 40 * 12) + 40 * 3
    assert slim.module.token_embedding.weight.shape == (len(WORDS), 40)


def test_normed_embeddings_are_as_large_as_what_layers_add():
    plain, normed = (transformer(len(WORDS), 24, 3, 16, normed_embeddings=is_normed)[0].eval() for is_normed in (False, True))
    ids = torch.tensor([[2, 3, 4]])
    given: dict[bool, torch.Tensor] = {}
    for is_normed, module in ((False, plain), (True, normed)):
        module.layers[0].register_forward_pre_hook(lambda layer, inputs, at=is_normed: given.update({at: inputs[0]}))
        module(ids, torch.ones_like(ids))
    assert given[False].std() < 0.1
    assert 0.9 < given[True].std() < 1.1


def test_padding_does_not_matter(student: TorchModel):
    ids = np.array([[2, 3, 4]])
    padded = np.array([[2, 3, 4, 6, 6, 0]])
    alone = student({"input_ids": ids, "attention_mask": np.ones_like(ids)})["logits"]
    beside = student({"input_ids": padded, "attention_mask": np.array([[1, 1, 1, 0, 0, 0]])})["logits"]
    np.testing.assert_allclose(alone, beside, atol=1e-6)


def test_order_and_words_matter(student: TorchModel):
    ids = np.array([[2, 3], [3, 2], [2, 4]])
    logits = student({"input_ids": ids, "attention_mask": np.ones_like(ids)})["logits"]
    assert min(np.abs(logits[a] - logits[b]).max() for a, b in ((0, 1), (0, 2), (1, 2))) > 1e-4


def test_a_row_of_padding_only_gives_numbers(student: TorchModel):
    ids = np.zeros((1, 4), np.int64)
    assert np.isfinite(student({"input_ids": ids, "attention_mask": ids})["logits"]).all()


def test_it_learns_whether_a_text_is_not_good(student: TorchModel):
    """Which class it is depends on two words together."""
    ids = torch.tensor([[5, 2], [5, 3], [6, 2], [6, 3]])
    labels = torch.tensor([1, 0, 0, 1])
    optimizer = torch.optim.Adam(student.module.parameters(), lr=5e-3)
    student.module.eval()  # without dropout
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(student.module(ids, torch.ones_like(ids)), labels).backward()
        optimizer.step()
    assert student.module(ids, torch.ones_like(ids)).argmax(1).tolist() == labels.tolist()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"width": 10, "heads": 4}, "width 10 is no multiple of heads 4: each head takes an equal share of the width"),
        ({"depth": 0}, "depth is 0, expected a positive number"),
        ({"feed_forward_width": 0}, "feed_forward_width is 0, expected a positive number"),
        ({"attention_width": 9}, "width 9 is no multiple of heads 2: each head takes an equal share of the width"),
        ({"heads": 0}, "heads is 0, expected a positive number"),
    ],
)
def test_sizes_that_cannot_be(sizes: dict[str, int], message: str):
    with pytest.raises(ConfigError) as caught:
        transformer(**sizes)
    assert str(caught.value) == message
