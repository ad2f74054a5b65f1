"""A text student starts from its teacher's token embeddings, where both read the same tokens."""

from __future__ import annotations

import torch
from torch import nn

from monograph.models.students import conv, transformer
from monograph.models.torch_model import TorchModel
from monograph.pipelines.distill.start import start_from_teacher
from monograph.pipelines.teachers import Teacher, as_teacher


def bert(vocabulary_size: int = 60, tokenizer_json: str = "{}") -> Teacher:
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=vocabulary_size, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    contract = transformer(vocabulary_size, 16, 3, width=8)[1]
    return as_teacher(TorchModel(transformers.BertForSequenceClassification(config), contract, "bert", tokenizer_json))


def student(tokenizer_json: str = "{}") -> TorchModel:
    torch.manual_seed(1)
    return TorchModel(*transformer(60, 16, 3, width=8), "student", tokenizer_json)


def test_it_starts_from_the_teachers_tokens():
    learner, before = student(), student().module.token_embedding.weight.detach()
    (note,) = start_from_teacher(learner, bert())
    assert note == "the student's token embeddings start from bert's, projected from 32 numbers to 8"
    weight = learner.module.token_embedding.weight
    assert not torch.allclose(weight, before)
    assert weight.requires_grad
    table = bert().module.module.get_input_embeddings().weight.detach()
    order, expected = torch.pdist(weight.detach()).flatten(), torch.pdist(table).flatten()
    assert torch.corrcoef(torch.stack([order, expected]))[0, 1] > 0.4, "what is near stays near"


def test_other_tokens_are_left_alone():
    for learner, teacher in (
        (student(), bert(61)),
        (student("{}"), bert(tokenizer_json='{"other": 1}')),
        (TorchModel(*conv(), "pictures"), bert()),
        (student(), as_teacher(TorchModel(nn.Linear(2, 2), conv()[1], "no text"))),
    ):
        before = {name: tensor.clone() for name, tensor in learner.module.state_dict().items()}
        assert start_from_teacher(learner, teacher) == ()
        assert all(torch.equal(tensor, before[name]) for name, tensor in learner.module.state_dict().items())
