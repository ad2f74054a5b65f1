from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from monograph.errors import ConfigError
from monograph.export.trace import export_torch
from monograph.models.contract import Contract, ImagePreprocessing, Kind, TensorSpec, TextPreprocessing, random_inputs
from monograph.models.huggingface import HuggingFaceModule
from monograph.models.size import count_macs, count_parameters
from monograph.models.students import separable_conv
from monograph.models.students.auto import Budget, Measure, auto_student, parse_budget
from monograph.models.students.layers import fewer_layers
from monograph.models.torch_model import TorchModel

LOGITS = (TensorSpec("logits", "float32", ("batch", 5)),)
NAMES = ("ant", "bee", "cat", "dog", "eel")
COLOURS = ImagePreprocessing(mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.2))
PICTURES = Contract((TensorSpec("image", "float32", ("batch", 3, 32, 32), COLOURS),), LOGITS, Kind.LOGITS, NAMES)
FEATURES = Contract((TensorSpec("x", "float32", ("n", 30)),), LOGITS, Kind.PROBABILITIES)
TEXTS = Contract(
    tuple(
        TensorSpec(role, "int64", ("batch", "sequence"), TextPreprocessing(role, 128), bound)
        for role, bound in (("input_ids", 1000), ("token_type_ids", 2), ("attention_mask", 2))
    ),
    LOGITS,
    Kind.LOGITS,
)
TEACHER_MACS, TEACHER_PARAMETERS = 40_000_000, 2_000_000


def one_line(caught: pytest.ExceptionInfo[ConfigError]) -> str:
    text = str(caught.value)
    assert "\n" not in text
    return text


class TestBudget:
    @pytest.mark.parametrize(
        ("text", "budget"),
        [
            ("auto:1/10", Budget(Fraction(1, 10), Measure.MACS)),
            ("auto:0.25", Budget(Fraction(1, 4), Measure.MACS)),
            ("auto:1", Budget(Fraction(1), Measure.MACS)),
            ("auto:1/3:macs", Budget(Fraction(1, 3), Measure.MACS)),
            ("auto:1/10:parameters", Budget(Fraction(1, 10), Measure.PARAMETERS)),
        ],
    )
    def test_read(self, text: str, budget: Budget):
        assert parse_budget(text) == budget
        assert parse_budget(str(budget)) == budget

    @pytest.mark.parametrize(
        "text", ["", "auto", "auto:", "auto:0", "auto:2", "auto:-1/2", "auto:1/0", "auto:x", "1/10", "auto:1/2:s"]
    )
    def test_refused(self, text: str):
        with pytest.raises(ConfigError) as caught:
            parse_budget(text)
        assert one_line(caught).startswith(f"budget is {text!r}, expected auto:SHARE or auto:SHARE:parameters")


@pytest.mark.parametrize("share", [Fraction(1, 100), Fraction(1, 10), Fraction(9, 10)])
@pytest.mark.parametrize("measure", Measure)
@pytest.mark.parametrize(
    ("contract", "family", "expected"),
    [
        (PICTURES, None, "separable_conv"),
        (PICTURES, "conv", "conv"),
        (PICTURES, "mlp", "mlp"),
        (FEATURES, None, "mlp"),
        (TEXTS, None, "transformer"),
    ],
)
def test_the_budget_is_kept_and_used(contract: Contract, family: str | None, expected: str, measure: Measure, share: Fraction):
    teacher_macs = TEACHER_MACS // 10 if contract is FEATURES else TEACHER_MACS
    budget = f"auto:{share}:{measure}"
    model, notes = auto_student(teacher_macs, contract, 5, budget, family, teacher_parameters=TEACHER_PARAMETERS)
    limit = (teacher_macs if measure is Measure.MACS else TEACHER_PARAMETERS) * share
    cost = count_macs(model) if measure is Measure.MACS else count_parameters(model.module)
    assert limit / 2 <= cost <= limit
    assert model.name == expected
    assert notes[0].startswith(f"{expected} of width ")
    assert f": {cost:,} {measure} of {int(limit):,} allowed ({share} of the teacher's " in notes[0]


def test_weights_are_those_of_the_factory_at_the_same_seed():
    torch.manual_seed(3)
    model, notes = auto_student(TEACHER_MACS, PICTURES, 5, "auto:1/50")
    width = int(notes[0].split()[3].rstrip(":"))
    torch.manual_seed(3)
    module, _ = separable_conv((3, 32, 32), 5, width=width)
    assert all(torch.equal(a, b) for a, b in zip(model.module.state_dict().values(), module.state_dict().values(), strict=True))


@pytest.mark.parametrize("contract", [PICTURES, FEATURES, TEXTS], ids=["pictures", "features", "texts"])
@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
def test_export(contract: Contract, dynamo: bool, tmp_path: Path):
    model, _ = auto_student(1_000_000, contract, 5, "auto:1/4")
    exported = export_torch(model, tmp_path / "m.onnx", dynamo=dynamo)
    assert exported.contract == model.contract


class TestContract:
    def test_inputs_and_class_names_are_the_teachers(self):
        model, notes = auto_student(TEACHER_MACS, PICTURES, 5, "auto:1/50")
        assert (model.contract.inputs, model.contract.class_names) == (PICTURES.inputs, NAMES)
        assert len(notes) == 1

    def test_a_student_of_probabilities_gives_logits(self):
        model, _ = auto_student(TEACHER_MACS, FEATURES, 5, "auto:1/50")
        assert model.contract.kind is Kind.LOGITS
        assert model.contract.output.describe() == "logits: float32 [n x 5]"

    def test_scores_stay_scores(self):
        contract = replace(PICTURES, outputs=(TensorSpec("tags", "float32", ("batch", 5)),), kind=Kind.SCORES, class_names=None)
        model, _ = auto_student(TEACHER_MACS, contract, 5, "auto:1/50")
        assert (model.contract.kind, model.contract.output) == (Kind.SCORES, contract.output)

    def test_token_types_are_left_out(self):
        model, notes = auto_student(TEACHER_MACS, TEXTS, 5, "auto:1/10", tokenizer_json="{}")
        assert model.contract.inputs == (TEXTS.inputs[0], TEXTS.inputs[2])
        assert notes[1] == "the student takes no token_type_ids, which the teacher takes"
        assert model.tokenizer_json == "{}"

    def test_ids_of_another_name_and_a_fixed_length(self):
        contract = replace(TEXTS, inputs=(TensorSpec("tokens", "int32", ("batch", 20), None, 50),))
        model, _ = auto_student(TEACHER_MACS, contract, 5, "auto:1/10")
        mask = TensorSpec("attention_mask", "int32", ("batch", 20), None, 2)
        assert model.contract.inputs == (contract.inputs[0], mask)
        assert TEACHER_MACS / 20 <= count_macs(model) <= TEACHER_MACS / 10
        assert model(random_inputs(model.contract, 2, np.random.default_rng(0)))["logits"].shape == (2, 5)


class TestRefused:
    def test_even_the_smallest_is_too_large(self):
        with pytest.raises(ConfigError) as caught:
            auto_student(1_000_000, PICTURES, 5, "auto:1/1000")
        text = one_line(caught)
        assert text.startswith(
            "auto:1/1000 allows 1,000 of the teacher's 1,000,000 macs, but the smallest separable_conv (width 4) costs "
        )
        advised = text.rpartition(" ")[2]
        model, _ = auto_student(1_000_000, PICTURES, 5, advised)
        assert f"costs {count_macs(model):,}: take a larger share, such as auto:1/" in text

    def test_the_teacher_is_smaller_than_all(self):
        with pytest.raises(ConfigError, match=r"no student of this family costs less than the teacher: take another$"):
            auto_student(100, TEXTS, 5, "auto:1/2")

    @pytest.mark.parametrize(
        ("contract", "arguments", "message"),
        [
            (
                PICTURES,
                {"family": "rnn"},
                "family is 'rnn', expected one of: separable_conv, conv, mlp, transformer, fewer_layers",
            ),
            (
                PICTURES,
                {"budget": "auto:1/2:parameters"},
                "the teacher has an unknown number of parameters, of which auto:1/2:para",
            ),
            (PICTURES, {"family": "fewer_layers"}, "family fewer_layers needs a PyTorch teacher, and none was given"),
            (PICTURES, {"family": "transformer"}, "input image: float32 [batch x 3 x 32 x 32] is not of token ids"),
            (FEATURES, {"family": "conv"}, "input_shape is [30], expected [channels, height, width]"),
            (TEXTS, {"family": "mlp"}, "input input_ids: int64 [batch x sequence] is not of float32 and one size"),
        ],
    )
    def test_arguments_that_do_not_fit(self, contract: Contract, arguments: dict[str, str], message: str):
        with pytest.raises(ConfigError) as caught:
            auto_student(TEACHER_MACS, contract, 5, **({"budget": "auto:1/2"} | arguments))
        assert one_line(caught).startswith(message)

    def test_pictures_that_end_in_channels(self):
        spec = TensorSpec("image", "float32", ("batch", 32, 32, 3), replace(COLOURS, layout="NHWC"))
        contract = replace(PICTURES, inputs=(spec,))
        with pytest.raises(ConfigError, match="has the layout NHWC, and separable_conv takes NCHW: take the family mlp"):
            auto_student(TEACHER_MACS, contract, 5, "auto:1/2")
        assert auto_student(TEACHER_MACS, contract, 5, "auto:1/2", "mlp")[0].contract.inputs == (spec,)


def bert(layer_count: int, model_type: str = "bert") -> TorchModel:
    """A teacher with random weights, frozen as teachers are."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    sizes = {"vocab_size": 30, "max_position_embeddings": 128, "num_labels": 5, "attn_implementation": "eager"}
    if model_type == "distilbert":
        sizes |= {"dim": 16, "n_layers": layer_count, "n_heads": 2, "hidden_dim": 32}
    else:
        sizes |= {"hidden_size": 16, "num_hidden_layers": layer_count, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(model_type, **sizes))
    inputs = (replace(TEXTS.inputs[0], upper_bound=30), TEXTS.inputs[2])
    module = HuggingFaceModule(model, "text-classification", ("input_ids", "attention_mask"))
    return TorchModel(module.eval().requires_grad_(False), replace(TEXTS, inputs=inputs), "teacher", "{}")


class TestFewerLayers:
    @pytest.mark.parametrize(
        ("layer_count", "keep", "kept"),
        [(12, 6, [0, 2, 4, 7, 9, 11]), (6, 3, [0, 2, 5]), (4, 4, [0, 1, 2, 3]), (4, 2, [0, 3]), (4, 1, [0])],
    )
    def test_weights_are_the_teachers(self, layer_count: int, keep: int, kept: list[int]):
        teacher = bert(layer_count)
        student = fewer_layers(teacher.module, keep)
        own = student.state_dict()
        prefix = "model.bert.encoder.layer."
        sources = {name: value for name, value in teacher.module.state_dict().items() if not name.startswith(prefix)}
        for new, old in enumerate(kept):
            for name, value in teacher.module.model.bert.encoder.layer[old].state_dict().items():
                sources[f"{prefix}{new}.{name}"] = value
        assert own.keys() == sources.keys()
        assert all(torch.equal(value, sources[name]) for name, value in own.items())
        assert student.model.config.num_hidden_layers == keep

    def test_the_teacher_stays_as_it_is(self):
        teacher = bert(4)
        inputs = random_inputs(teacher.contract, 3, np.random.default_rng(0))
        before = teacher(inputs)["logits"]
        student = fewer_layers(teacher.module, 2)
        assert all(parameter.requires_grad for parameter in student.parameters())
        nn.init.zeros_(student.model.classifier.weight)
        np.testing.assert_array_equal(teacher(inputs)["logits"], before)
        assert teacher.module.model.config.num_hidden_layers == 4
        assert not any(parameter.requires_grad for parameter in teacher.module.parameters())

    def test_all_layers_compute_what_the_teacher_does(self):
        teacher = bert(3)
        inputs = random_inputs(teacher.contract, 3, np.random.default_rng(0))
        same = replace(teacher, module=fewer_layers(teacher.module, 3))
        np.testing.assert_array_equal(same(inputs)["logits"], teacher(inputs)["logits"])

    @pytest.mark.parametrize("model_type", ["distilbert", "roberta", "electra"])
    def test_kin_of_bert_saves_and_loads(self, model_type: str, tmp_path: Path):
        from transformers import AutoModelForSequenceClassification

        student = fewer_layers(bert(4, model_type).module, 2)
        student.model.save_pretrained(tmp_path)
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
        assert loaded.config.num_hidden_layers == 2
        assert {name: value.shape for name, value in loaded.state_dict().items()} == {
            name: value.shape for name, value in student.model.state_dict().items()
        }

    @pytest.mark.parametrize("keep", [0, 5, -1])
    def test_a_number_of_layers_that_cannot_be(self, keep: int):
        with pytest.raises(ConfigError, match=f"^keep is {keep}, expected 1 to 4: the encoder has 4 layers$"):
            fewer_layers(bert(4).module, keep)

    def test_another_module(self):
        with pytest.raises(ConfigError, match=r"^Linear holds no BERT-like encoder of transformers \(.*$"):
            fewer_layers(nn.Linear(2, 2), 1)


class TestAutoFewerLayers:
    @pytest.mark.parametrize("measure", Measure)
    def test_as_many_layers_as_the_budget_allows(self, measure: Measure):
        teacher = bert(8)
        macs, parameters = count_macs(teacher), count_parameters(teacher.module)
        model, notes = auto_student(macs, teacher.contract, 5, f"auto:3/4:{measure}", teacher=teacher)
        limit = (macs if measure is Measure.MACS else parameters) * 3 / 4
        keep = model.module.model.config.num_hidden_layers
        costs = [
            count_macs(replace(teacher, module=module)) if measure is Measure.MACS else count_parameters(module)
            for module in (fewer_layers(teacher.module, keep), fewer_layers(teacher.module, keep + 1))
        ]
        assert costs[0] <= limit < costs[1]
        assert notes[0].startswith(
            f"teacher with {keep} of its 8 layers: {costs[0]:,} {measure} of {int(limit):,} allowed (3/4 of "
        )
        assert (model.contract, model.tokenizer_json) == (teacher.contract, "{}")

    def test_the_registry_where_one_layer_is_too_large(self):
        teacher = bert(4)
        model, notes = auto_student(count_macs(teacher), teacher.contract, 5, "auto:1/5", teacher=teacher)
        assert (model.name, model.tokenizer_json) == ("transformer", "{}")
        assert notes[0].startswith("the teacher with fewer layers was not taken: auto:1/5 allows ")
        assert "teacher with one layer of 4 costs " in notes[0]
        assert notes[1].startswith("transformer of width ")

    def test_another_class_count(self):
        teacher = bert(4)
        with pytest.raises(ConfigError, match=r"gives logits: float32 \[batch x 5\], but 3 classes were asked for"):
            auto_student(count_macs(teacher), teacher.contract, 3, "auto:1/2", "fewer_layers", teacher=teacher)
        assert auto_student(count_macs(teacher), teacher.contract, 3, "auto:1/2", teacher=teacher)[0].name == "transformer"

    def test_export(self, tmp_path: Path):
        teacher = bert(4)
        model, _ = auto_student(count_macs(teacher), teacher.contract, 5, "auto:5/8", teacher=teacher)
        assert model.name == "teacher_2_layers"
        model = replace(model, tokenizer_json=None)
        assert export_torch(model, tmp_path / "m.onnx").contract == teacher.contract
