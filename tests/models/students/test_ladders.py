from dataclasses import replace

import pytest
import torch

from monograph.errors import ConfigError
from monograph.models.contract import Contract, ImagePreprocessing, Kind, TensorSpec, TextPreprocessing
from monograph.models.huggingface import HuggingFaceModule
from monograph.models.size import count_macs
from monograph.models.students import mlp
from monograph.models.students.ladders import Ladder, ladders
from monograph.models.torch_model import TorchModel

LOGITS = (TensorSpec("logits", "float32", ("batch", 5)),)
COLOURS = ImagePreprocessing(mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.2))
PICTURES = Contract((TensorSpec("image", "float32", ("batch", 3, 32, 32), COLOURS),), LOGITS, Kind.LOGITS)
FEATURES = Contract((TensorSpec("x", "float32", ("batch", 30)),), LOGITS, Kind.LOGITS)
TEXTS = Contract(
    tuple(
        TensorSpec(role, "int64", ("batch", "sequence"), TextPreprocessing(role, 128), bound)
        for role, bound in (("input_ids", 1000), ("attention_mask", 2), ("token_type_ids", 2))
    ),
    LOGITS,
    Kind.LOGITS,
)


def costs(ladder: Ladder) -> list[int]:
    made = []
    for rung in ladder.rungs:
        with torch.device("meta"):
            made.append(count_macs(rung.make()))
    return made


@pytest.mark.parametrize(
    ("contract", "teacher_macs", "what"),
    [
        (FEATURES, 40_000, "mlp of width "),
        (PICTURES, 4_000_000, "separable_conv of width "),
        (TEXTS, 400_000_000, "transformer of width "),
    ],
    ids=["features", "pictures", "texts"],
)
def test_rungs_rise_up_to_the_teacher(contract: Contract, teacher_macs: int, what: str):
    (ladder,) = ladders(teacher_macs, contract, 5)
    found = costs(ladder)
    assert all(rung.what.startswith(what) for rung in ladder.rungs)
    assert ladder.rungs[0].what.split()[3] == "4"
    assert found == sorted(set(found))
    assert teacher_macs / 1.6 <= found[-1] <= teacher_macs


def test_few_even_for_a_giant():
    (ladder,) = ladders(10**15, FEATURES, 5)
    assert len(ladder.rungs).bit_length() <= 7
    assert [rung.what for rung in (ladder.rungs[0], ladder.rungs[-1])] == ["mlp of width 4", "mlp of width 4096"]


def test_wide_transformers_are_deep():
    (ladder,) = ladders(400_000_000, TEXTS, 5)
    depths = [int(rung.what.split()[-1]) for rung in ladder.rungs]
    assert depths[0] == 1
    assert depths[-1] > 2
    assert depths == sorted(depths)
    assert ladder.notes == ("the student takes no token_type_ids, which the teacher takes",)


def test_a_student_promises_what_the_teacher_does():
    named = replace(FEATURES, class_names=("ant", "bee", "cat", "dog", "eel"))
    (ladder,) = ladders(40_000, named, 5)
    assert ladder.rungs[0].make().contract == named


def test_weights_are_those_of_the_factory_at_the_same_seed():
    (ladder,) = ladders(40_000, FEATURES, 5)
    torch.manual_seed(3)
    made = ladder.rungs[0].make().module.state_dict()
    torch.manual_seed(3)
    module, _ = mlp((30,), 5, width=4)
    assert all(torch.equal(a, b) for a, b in zip(made.values(), module.state_dict().values(), strict=True))


def test_a_bert_is_cut_down_before_another_family_is_tried():
    teacher = bert_like(4)
    first, second = ladders(10**9, teacher.contract, 5, teacher=teacher)
    assert [rung.what for rung in first.rungs] == [f"bert with {keep} of its 4 layers" for keep in (1, 2, 3, 4)]
    assert [rung.make().name for rung in first.rungs[:2]] == ["bert_1_layers", "bert_2_layers"]
    assert second.rungs[0].what.startswith("transformer")


def test_a_teacher_smaller_than_any_student_is_refused():
    with pytest.raises(
        ConfigError, match=r"the smallest mlp \(width 4\) costs \d+ multiply-accumulates, more than the teacher's 9: name"
    ):
        next(ladders(9, FEATURES, 5))


def bert_like(layer_count: int) -> TorchModel:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": layer_count, "num_attention_heads": 2, "intermediate_size": 32}
    config = AutoConfig.for_model("bert", vocab_size=1000, num_labels=5, **sizes)
    inputs = tuple(spec.name for spec in TEXTS.inputs)
    module = HuggingFaceModule(AutoModelForSequenceClassification.from_config(config), "text-classification", inputs)
    return TorchModel(module, TEXTS, "bert")
