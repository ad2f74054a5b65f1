import json
from collections.abc import Callable, Sequence
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest

from monograph.errors import FusionError
from monograph.export.fusion import FusionPlan, plan_fusion
from monograph.export.fusion.choose import choose_form
from monograph.export.fusion.forms import FORMS
from monograph.export.fusion.naming import member_names
from monograph.export.fusion.weights import WeightFit
from monograph.models.contract import Contract, Kind, TensorSpec
from monograph.models.onnx_file import OnnxFile

WriteModel = Callable[..., OnnxFile]

IDS = TensorSpec("input_ids", "int64", ("batch", "sequence"), upper_bound=30)
MASK = TensorSpec("attention_mask", "int64", ("batch", "sequence"))
LOGITS = TensorSpec("logits", "float32", ("batch", 3))
TEXT = Contract((IDS, MASK), (LOGITS,), Kind.LOGITS, ("bad", "fair", "good"))
FIT = WeightFit((0.25, 0.75), 120, "f00d", 0.51234, 0.6, (0.55, 0.9))


def file(name: str, contract: Contract = TEXT, *, opset: int = 17, tokenizer: str | None = None) -> OnnxFile:
    """A file as it was read; the plan looks at nothing but this."""
    metadata = {} if tokenizer is None else {"monograph.tokenizer": tokenizer}
    return OnnxFile(Path(f"/models/{name}.onnx"), contract, f"sha-of-{name}", 100, opset, metadata)


def of_kind(kind: Kind, **changes: object) -> Contract:
    return replace(TEXT, kind=kind, class_names=None, outputs=(replace(LOGITS, name="y"),), **changes)


class TestDescribe:
    def test_two_like_members(self):
        plan = plan_fusion([file("small"), file("large")], weights=(0.3, 0.7))
        assert plan.describe() == (
            "fuse 2 members by O = Σ αᵢOᵢ over logits, opset 17\n"
            "  inputs   input_ids: int64 [batch x sequence], attention_mask: int64 [batch x sequence]\n"
            "  output   logits: float32 [batch x 3], logits\n"
            "  0.3000 x small\n"
            "  0.7000 x large"
        )

    def test_everything_that_can_be_told(self):
        turned = Contract(
            (TensorSpec("ids", "int32", (8, "T")), TensorSpec("mask", "int32", (8, "T"))),
            (TensorSpec("probs", "float16", (8, 3)),),
            Kind.PROBABILITIES,
            ("good", "fair", "bad"),
        )
        guessed = of_kind(Kind.LOGITS, assumed=("guess carries no contract: its output 'y' is taken for logits",))
        files = [file("first"), file("turned", turned, opset=20), file("guess", guessed, opset=11), file("idle")]
        assert plan_fusion(files, weights=(0.33, 0.33, 0.33, 0)).describe() == (
            "fuse 4 members by O = Σ αᵢ·softmax(Oᵢ), opset 20\n"
            "  inputs   input_ids: int64 [8 x sequence], attention_mask: int64 [8 x sequence]\n"
            "  output   probabilities: float32 [8 x 3], probabilities\n"
            "  0.3333 x first  (opset 17 to 20)\n"
            "  0.3333 x turned  (cast ids to int32, cast mask to int32, classes reordered)\n"
            "  0.3333 x guess  (opset 11 to 20)\n"
            "  0.0000 x idle  (opset 17 to 20)\n"
            "  note: guess carries no contract: its output 'y' is taken for logits\n"
            "  note: weights were scaled to sum to 1: 0.3333, 0.3333, 0.3333, 0\n"
            "  note: inputs of turned are matched by position: ids to input_ids, mask to attention_mask\n"
            "  note: idle has weight 0 and is left out of the graph\n"
            "  note: one member has a fixed batch size, so the fused graph has it too\n"
            "  note: turned gives float16: the proof allows for its rounding, 0.00098 of scale"
        )

    def test_fitted_weights(self):
        plan = plan_fusion([file("a"), file("b")], fit=FIT)
        assert plan.describe().splitlines()[3:] == [
            "  0.2500 x a",
            "  0.7500 x b",
            "  note: weights fitted on 120 rows: NLL 0.5123 (equal weights 0.6000, best member 0.5500)",
        ]


class TestPlan:
    def test_is_frozen(self):
        plan = plan_fusion([file("a"), file("b")])
        with pytest.raises(FrozenInstanceError):
            plan.form = "probs"  # type: ignore[misc]

    def test_contract_of_the_result(self):
        plan = plan_fusion([file("a"), file("b")])
        assert plan.contract == Contract((IDS, MASK), (LOGITS,), Kind.LOGITS, ("bad", "fair", "good"))

    def test_probabilities_are_called_so(self):
        plan = plan_fusion([file("a"), file("b")], combine="probs")
        assert (plan.contract.kind, plan.contract.output.name) == (Kind.PROBABILITIES, "probabilities")

    def test_output_without_classes_keeps_the_first_members_name(self):
        embedding = replace(of_kind(Kind.EMBEDDING), outputs=(TensorSpec("hidden", "float64", ("batch", "s", 8)),))
        plan = plan_fusion([file("a", embedding), file("b", embedding)])
        assert plan.contract.output == TensorSpec("hidden", "float32", ("batch", "s", 8))

    def test_output_never_has_an_inputs_name(self):
        contract = Contract((TensorSpec("logits", "float32", ("b", 3)),), (TensorSpec("y", "float32", ("b", 3)),), Kind.LOGITS)
        assert plan_fusion([file("a", contract), file("b", contract)]).contract.output.name == "fused_logits"

    @pytest.mark.parametrize(("opsets", "expected"), [((11, 12), 15), ((13, 17), 17), ((21, 9), 21), ((0, 0), 15)])
    def test_newest_opset_but_at_least_15(self, opsets: tuple[int, int], expected: int):
        assert plan_fusion([file("a", opset=opsets[0]), file("b", opset=opsets[1])]).opset == expected

    def test_members_of_weight_zero_do_not_run(self):
        plan = plan_fusion([file("a"), file("b"), file("c")], weights=(0.5, 0, 0.5))
        assert [member.name for member in plan.members] == ["a", "b", "c"]
        assert [member.name for member in plan.running] == ["a", "c"]

    def test_json(self):
        plan = plan_fusion([file("a"), file("b")], fit=FIT, names=("one", "two"))
        assert json.loads(plan.to_json()) == {
            "form": "logits",
            "members": [
                {"name": "one", "file": "a.onnx", "sha256": "sha-of-a", "weight": 0.25, "temperature": 1.0},
                {"name": "two", "file": "b.onnx", "sha256": "sha-of-b", "weight": 0.75, "temperature": 1.0},
            ],
            "fit": {
                "weights": [0.25, 0.75],
                "row_count": 120,
                "rows_sha256": "f00d",
                "loss": 0.51234,
                "equal_weights_loss": 0.6,
                "member_loss": [0.55, 0.9],
                "loss_name": "NLL",
                "form": None,
                "temperatures": None,
                "stacking": None,
                "class_weights": None,
                "gain": None,
                "cautions": [],
            },
        }

    def test_a_note_is_told_once(self):
        guessed = replace(TEXT, assumed=("no contract",))
        assert plan_fusion([file("a", guessed), file("b", guessed)]).notes == ("no contract",)

    @pytest.mark.parametrize("dtypes", [("float32", "float64"), ("float32", "float16"), ("float16", "float16")])
    def test_room_for_rounding_where_a_running_member_gives_float16(self, dtypes: tuple[str, str]):
        files = [
            file(name, replace(TEXT, outputs=(replace(LOGITS, dtype=dtype),))) for name, dtype in zip("ab", dtypes, strict=True)
        ]
        assert plan_fusion(files).rounding == (2**-10 if "float16" in dtypes else 0)
        assert plan_fusion(files, weights=(1, 0)).rounding == (2**-10 if dtypes[0] == "float16" else 0)


class TestForms:
    @pytest.mark.parametrize(
        ("kinds", "expected"),
        [
            ((Kind.LOGITS, Kind.LOGITS), "logits"),
            ((Kind.LOGITS, Kind.PROBABILITIES), "probs"),
            ((Kind.PROBABILITIES, Kind.PROBABILITIES), "probs"),
            ((Kind.EMBEDDING, Kind.EMBEDDING), "mean"),
            ((Kind.REGRESSION, Kind.REGRESSION), "mean"),
            ((Kind.SCORES, Kind.SCORES), "mean"),
        ],
    )
    def test_by_default(self, kinds: Sequence[Kind], expected: str):
        assert choose_form([of_kind(kind) for kind in kinds], "ab", None).name == expected

    def test_each_is_found_under_its_name(self):
        assert [form.name for form in FORMS.values()] == list(FORMS)

    @pytest.mark.parametrize(
        ("kinds", "combine", "message"),
        [
            (
                (Kind.LOGITS,) * 2,
                "median",
                "unknown form 'median': choose --combine from logits, probs, class-weights, geometric, vote, mean, concat, stack",
            ),
            (
                (Kind.LOGITS, Kind.PROBABILITIES),
                "logits",
                "b gives probabilities, which --combine logits cannot take: "
                "use --combine probs, class-weights, geometric, vote or stack",
            ),
            (
                (Kind.LOGITS,) * 2,
                "mean",
                "a gives logits, which --combine mean cannot take: "
                "use --combine logits, probs, class-weights, geometric, vote or stack",
            ),
            (
                (Kind.EMBEDDING,) * 2,
                "probs",
                "a gives embedding, which --combine probs cannot take: use --combine mean, concat or stack",
            ),
            (
                (Kind.LOGITS, Kind.REGRESSION),
                None,
                "a gives logits, which --combine mean cannot take: members must give outputs of one kind",
            ),
            (
                (Kind.REGRESSION, Kind.EMBEDDING),
                None,
                "members give embedding, regression: outputs of different kinds have no common mean",
            ),
            (
                (Kind.SCORES, Kind.REGRESSION),
                "mean",
                "members give regression, scores: outputs of different kinds have no common mean",
            ),
        ],
    )
    def test_refused(self, kinds: Sequence[Kind], combine: str | None, message: str):
        with pytest.raises(FusionError) as info:
            plan_fusion([file(name, of_kind(kind)) for name, kind in zip("ab", kinds, strict=True)], combine=combine)
        assert str(info.value) == message


class TestRefusals:
    @pytest.mark.parametrize("count", [0, 1])
    def test_too_few_members(self, count: int):
        with pytest.raises(FusionError, match=f"{count} member: a fusion needs two or more"):
            plan_fusion([file("a")] * count)

    def test_two_tokenizers(self):
        with pytest.raises(FusionError) as info:
            plan_fusion([file("a", tokenizer="{1}"), file("b", tokenizer="{2}")])
        assert str(info.value) == (
            "a, b use different tokenizers: one id means different words to them, so they cannot share an input"
        )

    def test_one_tokenizer_serves_all(self):
        plan = plan_fusion([file("a"), file("b", tokenizer="{1}"), file("c", tokenizer="{1}")])
        assert plan.tokenizer_json == "{1}"

    def test_classes(self):
        other = replace(TEXT, class_names=("bad", "fair", "great"))
        with pytest.raises(FusionError, match=r"a and b name different classes \(great unknown to a\)"):
            plan_fusion([file("a"), file("b", other)])

    def test_output_shapes(self):
        embedding = of_kind(Kind.EMBEDDING)
        wide = replace(embedding, outputs=(replace(embedding.output, shape=("batch", 4)),))
        with pytest.raises(FusionError, match=r"^a gives y: .* but b gives y: .*: 3 is not 4"):
            plan_fusion([file("a", embedding), file("b", wide)])

    def test_inputs(self):
        with pytest.raises(FusionError, match=r"a takes 2 inputs .* but b takes 1 inputs"):
            plan_fusion([file("a"), file("b", replace(TEXT, inputs=(replace(IDS, name="ids"),)))])

    def test_weights(self):
        with pytest.raises(FusionError, match="3 weights"):
            plan_fusion([file("a"), file("b")], weights=(1, 0, 0))

    def test_fit_of_other_members(self):
        with pytest.raises(FusionError, match=r"2 weights .* for 3 members"):
            plan_fusion([file("a"), file("b"), file("c")], fit=FIT)

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (("a",), "1 names (a) for 2 members: give one name a member"),
            (
                ("a", "a"),
                "a member cannot be called 'a' among 'a', 'a': "
                "give each a name of its own without '/' or ',', other than 'fusion'",
            ),
            (
                ("a", "b/c"),
                "a member cannot be called 'b/c' among 'a', 'b/c': "
                "give each a name of its own without '/' or ',', other than 'fusion'",
            ),
            (
                ("", "a"),
                "a member cannot be called '' among '', 'a': give each a name of its own without '/' or ',', other than 'fusion'",
            ),
            (
                ("fusion", "a"),
                "a member cannot be called 'fusion' among 'fusion', 'a': "
                "give each a name of its own without '/' or ',', other than 'fusion'",
            ),
        ],
    )
    def test_names(self, names: Sequence[str], message: str):
        with pytest.raises(FusionError) as info:
            plan_fusion([file("a"), file("b")], names=names)
        assert str(info.value) == message


class TestNames:
    @pytest.mark.parametrize(
        ("stems", "expected"),
        [
            (("a", "b"), ("a", "b")),
            (("a", "a", "a"), ("a", "a-2", "a-3")),
            (("a", "a", "a-2"), ("a", "a-2", "a-2-2")),
            (("a-2", "a", "a"), ("a-2", "a", "a-3")),
            (("my model (1)", "my/model"), ("my_model_1_", "model")),
            (("fusion", "fusion"), ("fusion-2", "fusion-3")),
            (("x" * 60, "x" * 61), ("x" * 40, "x" * 40 + "-2")),
            (("modèle", "модель"), ("mod_le", "_")),
        ],
    )
    def test_made_of_the_files(self, stems: Sequence[str], expected: Sequence[str]):
        assert member_names([Path(f"/somewhere/{stem}.onnx") for stem in stems]) == tuple(expected)


def test_files_on_disk(write_linear: WriteModel):
    """What the plan says of real files, of which one states no contract."""
    x, y = TensorSpec("x", "float32", ("batch", 4)), TensorSpec("logits", "float32", ("batch", 3))
    stated = write_linear("stated", opset=17, contract=Contract((x,), (y,), Kind.LOGITS, ("p", "q", "r")))
    plan: FusionPlan = plan_fusion([stated, write_linear("raw", seed=1, opset=12, input_name="data")])
    assert plan.describe() == (
        "fuse 2 members by O = Σ αᵢOᵢ over logits, opset 17\n"
        "  inputs   x: float32 [batch x 4]\n"
        "  output   logits: float32 [batch x 3], logits\n"
        "  0.5000 x stated\n"
        "  0.5000 x raw  (opset 12 to 17)\n"
        "  note: raw.onnx carries no contract: its output 'logits' is taken for logits, because of its name\n"
        "  note: raw.onnx names no classes: they are matched by position"
    )
