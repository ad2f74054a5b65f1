from collections.abc import Callable

import onnx
import pytest
from onnx import helper

from monograph.errors import SourceError
from monograph.models.contract import Contract, Kind, TensorSpec
from monograph.models.inference import infer_contract

Parse = Callable[[str], onnx.ModelProto]


@pytest.fixture
def infer(parse: Parse) -> Callable[[str], Contract]:
    return lambda text: infer_contract(parse(text), "model.onnx")


def unary(op: str, output: str = "y", shape: str = "batch, 3") -> str:
    return f"g (float[{shape}] x) => (float[{shape}] {output}) {{ {output} = {op}(x) }}"


@pytest.mark.parametrize(("op", "kind"), [("Softmax", Kind.PROBABILITIES), ("LogSoftmax", Kind.LOGITS), ("Sigmoid", Kind.SCORES)])
@pytest.mark.parametrize("output", ["y", "pooled", "logits"])
def test_the_op_that_makes_the_output_tells_its_kind_whatever_its_name(infer, op: str, kind: Kind, output: str):
    contract = infer(unary(op, output))
    assert contract.kind is kind
    assert contract.assumed[0].endswith(f"is taken for {kind.value}, because a {op} makes it")


@pytest.mark.parametrize(
    ("output", "kind"),
    [
        ("logits", Kind.LOGITS),
        ("my_Logits_0", Kind.LOGITS),
        ("probabilities", Kind.PROBABILITIES),
        ("prob", Kind.PROBABILITIES),
        ("softmax_out", Kind.PROBABILITIES),
        ("scores", Kind.SCORES),
        ("sentence_embedding", Kind.EMBEDDING),
        ("last_hidden_state", Kind.EMBEDDING),
        ("pooler_output", Kind.EMBEDDING),
    ],
)
def test_the_name_tells_the_kind(infer, output: str, kind: Kind):
    contract = infer(unary("Relu", output))
    assert contract.kind is kind
    assert contract.assumed[0] == (
        f"model.onnx carries no contract: its output {output!r} is taken for {kind.value}, because of its name"
    )


@pytest.mark.parametrize("output", ["log_probs", "log_softmax"])
def test_logarithms_of_probabilities_are_logits(infer, output: str):
    assert infer(unary("Relu", output)).kind is Kind.LOGITS


@pytest.mark.parametrize(
    ("shape", "kind", "reason"),
    [
        ("batch, 3", Kind.LOGITS, "because it is one row of numbers a row of input"),
        ("batch, n", Kind.LOGITS, "because it is one row of numbers a row of input"),
        ("batch, 1", Kind.REGRESSION, "because it is one number a row"),
        ("batch, 7, 3", Kind.EMBEDDING, "because it has 3 dimensions"),
        ("batch", Kind.EMBEDDING, "because it has 1 dimensions"),
    ],
)
def test_the_shape_tells_the_kind_where_nothing_else_does(infer, shape: str, kind: Kind, reason: str):
    contract = infer(unary("Relu", "y", shape))
    assert contract.kind is kind
    assert contract.assumed[0].endswith(reason)


@pytest.mark.parametrize(("output", "has_classes"), [("logits", True), ("probs", True), ("scores", False), ("embedding", False)])
def test_missing_class_names_are_told_where_there_are_classes(infer, output: str, has_classes: bool):
    contract = infer(unary("Relu", output))
    assert contract.class_names is None
    assert contract.assumed[1:] == (("model.onnx names no classes: they are matched by position",) if has_classes else ())


def test_only_the_first_output_tells_the_kind(infer):
    contract = infer("g (float[b, 3] x) => (float[b, 3] y, float[b, 3] probs) { y = Relu(x) probs = Softmax(x) }")
    assert contract.kind is Kind.LOGITS
    assert [spec.name for spec in contract.outputs] == ["y", "probs"]


def test_dimensions_keep_their_sizes_and_names_and_get_one_where_they_have_none(infer):
    contract = infer("g (float[n, 3, h] x, float[?, ?, 2] z) => (float[n, 3, h] y, float[?, ?, 2] w) { y = Relu(x) w = Relu(z) }")
    assert [spec.shape for spec in contract.inputs] == [("n", 3, "h"), ("batch", "z_dim_1", 2)]
    assert contract.outputs[1].shape == ("batch", "w_dim_1", 2)


@pytest.mark.parametrize("dtype", ["float16", "double", "int32", "uint8", "bool", "string"])
def test_dtypes_are_numpys(infer, dtype: str):
    contract = infer(f"g ({dtype}[n] x) => ({dtype}[n] y) {{ y = Identity(x) }}")
    expected = {"double": "float64", "string": "str"}.get(dtype, dtype)
    assert contract.inputs == (TensorSpec("x", expected, ("n",)),)
    assert contract.output.dtype == expected


def test_initializers_are_no_inputs(infer):
    text = "g (float[b, 2] x, float[2, 3] W = {1, 2, 3, 4, 5, 6}) => (float[b, 3] y) { y = MatMul(x, W) }"
    assert [spec.name for spec in infer(text).inputs] == ["x"]


EMBEDDINGS = """
g (int64[b, s] ids, int64[b, s] kinds, float[b, s] x) => (float[b, s, 2] y)
<float[5, 2] words = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, float[3, 2] few = {0, 0, 0, 0, 0, 0}, float[2, 2] two = {0, 0, 0, 0}>
{
    a = Gather(words, ids)
    c = Gather(few, ids)
    d = Gather(two, kinds)
    e = Add(a, c)
    y = Add(e, d)
}
"""


def test_ids_stay_below_the_shortest_table_that_they_index(infer):
    bounds = {spec.name: spec.upper_bound for spec in infer(EMBEDDINGS).inputs}
    assert bounds == {"ids": 3, "kinds": 2, "x": None}


def test_a_gather_from_what_is_computed_bounds_nothing(infer):
    text = "g (int64[b] ids, float[5, 2] table) => (float[b, 2] y) { t = Relu(table) y = Gather(t, ids) }"
    assert [spec.upper_bound for spec in infer(text).inputs] == [None, None]


@pytest.mark.parametrize(
    "text",
    [
        "g (seq(float[n]) x) => (float[n] y) { y = ConcatFromSequence <axis = 0> (x) }",
        "g (float[n] x) => (seq(float[n]) y) { y = SequenceConstruct(x) }",
        "g (optional(float[n]) x) => (float[n] y) { y = OptionalGetElement(x) }",
    ],
    ids=["sequence in", "sequence out", "optional in"],
)
def test_what_is_no_tensor_cannot_cross_a_contract(infer, text: str):
    with pytest.raises(SourceError, match=r"model\.onnx: '[xy]' is not a tensor of known type; only tensors can cross"):
        infer(text)


def test_a_map_cannot_cross_a_contract(linear: onnx.ModelProto):
    """What scikit-learn's converters give for probabilities."""
    key, value = onnx.TensorProto.INT64, helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None)
    linear.graph.output[0].type.CopyFrom(helper.make_sequence_type_proto(helper.make_map_type_proto(key, value)))
    with pytest.raises(SourceError, match="'logits' is not a tensor"):
        infer_contract(linear, "model.onnx")


def test_a_tensor_of_unknown_type_is_refused(linear: onnx.ModelProto):
    linear.graph.input[0].type.tensor_type.ClearField("elem_type")
    with pytest.raises(SourceError, match="'x' is not a tensor of known type"):
        infer_contract(linear, "model.onnx")


def test_a_model_without_inputs_is_refused(infer):
    with pytest.raises(SourceError, match=r"model\.onnx has no inputs: it computes a constant"):
        infer("g () => (float[1] y) { y = Constant <value_floats = [1.0]> () }")
