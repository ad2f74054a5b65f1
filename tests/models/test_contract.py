import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monograph.errors import ContractError, InputError
from monograph.models.contract import (
    Contract,
    ImagePreprocessing,
    Kind,
    TensorSpec,
    TextPreprocessing,
    random_inputs,
)

LOGITS = TensorSpec("logits", "float32", ("batch", 3))
PIXELS = TensorSpec("pixels", "float32", ("batch", 3, 8, 8), ImagePreprocessing(mean=(0.5,) * 3, std=(0.5,) * 3))
CONTRACT = Contract((PIXELS,), (LOGITS,), Kind.LOGITS, ("cat", "dog", "ibis"))

# What the first version of monograph wrote. Files with it are out there: it must always be read.
VERSION_1 = """
{"version": 1,
 "inputs": [
  {"name": "pixels", "dtype": "float32", "shape": ["batch", 3, 8, 8], "upper_bound": null,
   "preprocessing": {"scale": 0.00392156862745098, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "layout": "NCHW",
                     "resample": "bilinear", "resize_shorter_side": null, "type": "image"}},
  {"name": "ids", "dtype": "int64", "shape": ["batch", "sequence"], "upper_bound": 30522,
   "preprocessing": {"role": "input_ids", "max_length": 128, "type": "text"}}],
 "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 3], "preprocessing": null, "upper_bound": null}],
 "kind": "logits",
 "class_names": ["cat", "dog", "ibis"]}
"""

finite = st.floats(allow_nan=False, allow_infinity=False)
names = st.text(min_size=1, max_size=8)
images = st.builds(
    ImagePreprocessing,
    scale=finite,
    mean=st.lists(finite, min_size=1, max_size=4).map(tuple),
    std=st.lists(finite.filter(bool), min_size=1, max_size=4).map(tuple),
    layout=st.sampled_from(["NCHW", "NHWC"]),
    resample=names,
    resize_shorter_side=st.none() | st.integers(1, 4096),
)
texts = st.builds(TextPreprocessing, role=names, max_length=st.integers(1, 10_000))
dims = st.integers(0, 2**40) | names
specs = st.builds(
    TensorSpec,
    name=names,
    dtype=st.sampled_from(["float16", "float32", "float64", "int8", "uint8", "int32", "int64", "bool", "str"]),
    shape=st.lists(dims, max_size=5).map(tuple),
    preprocessing=st.none() | images | texts,
    upper_bound=st.none() | st.integers(1, 2**63),
)


@st.composite
def contracts(draw: st.DrawFn) -> Contract:
    class_names = draw(st.none() | st.lists(names, unique=True, min_size=1, max_size=5).map(tuple))
    outputs = draw(st.lists(specs, min_size=1, max_size=3))
    if class_names is not None:
        outputs[0] = TensorSpec("classes", "float32", ("batch", draw(st.sampled_from([len(class_names), "classes"]))))
    inputs = draw(st.lists(specs, min_size=1, max_size=3).map(tuple))
    return Contract(inputs, tuple(outputs), draw(st.sampled_from(Kind)), class_names, draw(st.lists(names).map(tuple)))


def only_input(spec: TensorSpec) -> Contract:
    return Contract((spec,), (LOGITS,), Kind.LOGITS)


def draw_one(spec: TensorSpec, batch_size: int = 4, seed: int = 0, sequence_length: int = 12) -> np.ndarray:
    return random_inputs(only_input(spec), batch_size, np.random.default_rng(seed), sequence_length)[spec.name]


@settings(deadline=None)
@given(contract=contracts())
def test_a_contract_comes_back_from_its_json(contract: Contract):
    back = Contract.from_json(contract.to_json())
    assert back == contract
    assert back.inputs == contract.inputs
    assert back.assumed == (), "what was guessed once is stated now"


def test_the_first_version_is_still_read():
    contract = Contract.from_json(VERSION_1)
    assert contract.inputs[0] == PIXELS
    assert contract.inputs[1] == TensorSpec("ids", "int64", ("batch", "sequence"), TextPreprocessing("input_ids", 128), 30522)
    assert contract.outputs == (LOGITS,)
    assert (contract.kind, contract.class_names) == (Kind.LOGITS, ("cat", "dog", "ibis"))


def test_the_first_version_is_still_written():
    assert json.loads(Contract.from_json(VERSION_1).to_json()) == json.loads(VERSION_1)


@pytest.mark.parametrize("version", [2, 0, -1, "1", 1.5, None, [], {}])
def test_another_version_is_refused_with_the_remedy(version: object):
    record = json.loads(VERSION_1) | {"version": version}
    with pytest.raises(ContractError, match="this monograph reads 1: update monograph"):
        Contract.from_json(json.dumps(record))


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "[]", "3", '"text"', "{}", '{"version": 1}', VERSION_1[:200], VERSION_1 + "}"],
)
def test_damaged_json_is_refused(text: str):
    with pytest.raises(ContractError, match=r"metadata 'monograph\.contract' is not a contract"):
        Contract.from_json(text)


@pytest.mark.parametrize("key", ["inputs", "outputs", "kind", "class_names"])
@pytest.mark.parametrize("value", [..., 5, -1, True, [1], [[]], "a", {"a": 1}])
def test_a_damaged_field_is_refused(key: str, value: object):
    record = json.loads(VERSION_1) | {key: value}
    if value is ...:
        del record[key]
    with pytest.raises(ContractError):
        Contract.from_json(json.dumps(record))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", ...),
        ("shape", ...),
        ("shape", None),
        ("shape", [-1]),
        ("shape", [1.5]),
        ("shape", [True]),
        ("dtype", ...),
        ("dtype", "float31"),
        ("dtype", 4),
        ("preprocessing", {}),
        ("preprocessing", {"type": "audio"}),
        ("preprocessing", {"type": "image", "layout": "CHW"}),
        ("preprocessing", {"type": "image", "std": [1.0, 0.0]}),
        ("preprocessing", {"type": "image", "of_a_newer_monograph": 1}),
        ("of_a_newer_monograph", 1),
    ],
)
def test_a_damaged_tensor_is_refused(key: str, value: object):
    record = json.loads(VERSION_1)
    record["inputs"][0][key] = value
    if value is ...:
        del record["inputs"][0][key]
    with pytest.raises(ContractError):
        Contract.from_json(json.dumps(record))


@pytest.mark.parametrize("preprocessing", ["image", 3, [1]])
def test_preprocessing_that_is_no_mapping_is_refused(preprocessing: object):
    record = json.loads(VERSION_1)
    record["inputs"][0]["preprocessing"] = preprocessing
    with pytest.raises(ContractError):
        Contract.from_json(json.dumps(record))


def test_endless_nesting_is_refused():
    with pytest.raises(ContractError):
        Contract.from_json("[" * 100_000)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", 5),
        ("name", None),
        ("name", []),
        ("dtype", None),
        ("dtype", []),
        ("shape", "abc"),
        ("upper_bound", "many"),
        ("upper_bound", -3),
    ],
)
def test_a_field_of_another_type_is_refused(key: str, value: object):
    record = json.loads(VERSION_1)
    record["inputs"][0][key] = value
    with pytest.raises(ContractError):
        Contract.from_json(json.dumps(record))


def test_class_names_in_one_text_are_refused():
    with pytest.raises(ContractError):
        Contract.from_json(json.dumps(json.loads(VERSION_1) | {"class_names": "abc"}))


def test_every_class_needs_a_name_of_its_own():
    with pytest.raises(ContractError, match="class names repeat: cat; each class needs a name of its own"):
        CONTRACT.with_class_names(("cat", "dog", "cat"))


@pytest.mark.parametrize("names", [(), ("a", "b"), ("a", "b", "c", "d")])
def test_the_number_of_class_names_is_that_of_the_output(names: tuple[str, ...]):
    with pytest.raises(ContractError, match=f"output 'logits' has 3 classes but {len(names)} class names are given"):
        CONTRACT.with_class_names(names)


def test_class_names_may_number_what_the_shape_leaves_open():
    output = TensorSpec("logits", "float32", ("batch", "classes"))
    assert Contract((PIXELS,), (output,), Kind.LOGITS).class_count is None
    assert Contract((PIXELS,), (output,), Kind.LOGITS, ("a", "b")).class_count == 2


@pytest.mark.parametrize("kind", Kind)
def test_only_logits_and_probabilities_have_classes(kind: Kind):
    contract = Contract((PIXELS,), (LOGITS,), kind)
    assert contract.class_count == (3 if kind in (Kind.LOGITS, Kind.PROBABILITIES) else None)


def test_with_class_names_changes_nothing_else():
    contract = Contract((PIXELS,), (LOGITS,), Kind.LOGITS, assumed=("guessed",))
    named = contract.with_class_names(("a", "b", "c"))
    assert named.class_names == ("a", "b", "c")
    assert (named.inputs, named.outputs, named.kind, named.assumed) == ((PIXELS,), (LOGITS,), Kind.LOGITS, ("guessed",))


@pytest.mark.parametrize(("inputs", "outputs"), [((), (LOGITS,)), ((PIXELS,), ())])
def test_a_contract_needs_inputs_and_outputs(inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]):
    with pytest.raises(ContractError, match="a contract needs inputs and outputs"):
        Contract(inputs, outputs, Kind.LOGITS)


def test_the_first_output_is_the_primary_one():
    hidden = TensorSpec("hidden", "float32", ("batch", 7))
    contract = Contract((PIXELS,), (LOGITS, hidden), Kind.LOGITS, ("a", "b", "c"))
    assert contract.output is LOGITS


def test_the_batch_is_dynamic_where_all_inputs_say_so():
    fixed = TensorSpec("fixed", "float32", (1, 4))
    scalar = TensorSpec("scalar", "float32", ())
    assert only_input(PIXELS).batch_is_dynamic
    assert not only_input(fixed).batch_is_dynamic
    assert not only_input(scalar).batch_is_dynamic
    assert not Contract((PIXELS, fixed), (LOGITS,), Kind.LOGITS).batch_is_dynamic


def test_a_tensor_describes_itself():
    assert PIXELS.describe() == "pixels: float32 [batch x 3 x 8 x 8]"
    assert TensorSpec("scale", "float64", ()).describe() == "scale: float64 []"


@settings(deadline=None)
@given(
    dtype=st.sampled_from(["float16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64", "uint64", "bool"]),
    shape=st.lists(st.integers(0, 4) | st.sampled_from(["batch", "sequence"]), max_size=4).map(tuple),
    batch_size=st.integers(1, 5),
    sequence_length=st.integers(1, 6),
    upper_bound=st.none() | st.integers(1, 1000),
)
def test_random_inputs_are_what_the_contract_allows(dtype, shape, batch_size, sequence_length, upper_bound):
    array = draw_one(TensorSpec("x", dtype, shape, upper_bound=upper_bound), batch_size, 0, sequence_length)
    expected = [dim if isinstance(dim, int) else sequence_length if axis else batch_size for axis, dim in enumerate(shape)]
    assert array.dtype == dtype
    assert list(array.shape) == expected
    if array.dtype.kind in "iu" and array.size:
        assert array.min() >= 0
        assert upper_bound is None or array.max() < upper_bound


@pytest.mark.parametrize(("dtype", "bound", "highest"), [("uint8", None, 255), ("int8", None, 127), ("int64", None, 1)])
def test_random_integers_use_their_whole_range(dtype: str, bound: int | None, highest: int):
    array = draw_one(TensorSpec("x", dtype, (4000,), upper_bound=bound))
    assert (array.min(), array.max()) == (0, highest)


def test_random_ids_run_over_the_whole_vocabulary():
    array = draw_one(TensorSpec("ids", "int64", ("batch", "sequence"), upper_bound=7), 50, 0, 50)
    assert set(np.unique(array)) == set(range(7))


def test_a_bound_beyond_the_dtype_does_not_wrap_around():
    array = draw_one(TensorSpec("x", "int8", (4000,), upper_bound=1000))
    assert (array.min(), array.max()) == (0, 127)


def test_random_floats_are_standard_normal():
    array = draw_one(TensorSpec("x", "float32", (100_000,)))
    assert abs(array.mean()) < 0.02
    assert abs(array.std() - 1) < 0.02


def test_random_floats_are_pixels_where_the_contract_takes_them_unscaled():
    raw = TensorSpec("pixels", "float32", ("batch", 3, 16, 16), ImagePreprocessing(scale=1.0))
    drawn = draw_one(raw)
    assert np.array_equal(drawn, np.rint(drawn))
    assert (drawn.min(), drawn.max()) == (0, 255)
    assert draw_one(TensorSpec("pixels", "float32", ("batch", 3, 16, 16), ImagePreprocessing())).max() < 10


@pytest.mark.parametrize("seed", range(10))
def test_a_random_mask_is_ones_then_padding_and_its_first_row_is_full(seed: int):
    mask = draw_one(TensorSpec("attention_mask", "int64", ("batch", "sequence")), 20, seed, 9)
    assert (mask.shape, mask.dtype) == ((20, 9), np.int64)
    assert mask[0].tolist() == [1] * 9
    assert (mask.sum(axis=1) >= 1).all()
    assert (np.diff(mask, axis=1) <= 0).all(), "no real token after padding"
    assert mask.min() == 0, "some padding is there to be tested"


def test_a_mask_of_another_rank_is_all_ones():
    assert draw_one(TensorSpec("mask", "int64", ("batch", 1, "sequence", "sequence")), 2, 0, 3).min() == 1


def test_a_bool_mask_is_ones_then_padding_too():
    mask = draw_one(TensorSpec("attention_mask", "bool", ("batch", "sequence")), 50, 0, 4)
    assert mask[0].all()
    assert mask.any(axis=1).all()


def test_inputs_of_one_batch_fit_one_another():
    ids = TensorSpec("ids", "int64", ("batch", "sequence"), upper_bound=9)
    mask = TensorSpec("attention_mask", "int64", ("batch", "sequence"))
    arrays = random_inputs(Contract((ids, mask), (LOGITS,), Kind.LOGITS), 3, np.random.default_rng(0), 5)
    assert list(arrays) == ["ids", "attention_mask"]
    assert arrays["ids"].shape == arrays["attention_mask"].shape == (3, 5)


def test_random_inputs_are_fresh_and_repeatable():
    first, again, other = draw_one(PIXELS, seed=1), draw_one(PIXELS, seed=1), draw_one(PIXELS, seed=2)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("dtype", ["str", "object", "complex64", "datetime64[s]"])
def test_no_random_rows_for_a_dtype_without_numbers(dtype: str):
    with pytest.raises(ContractError, match="no random rows can be made: give --data"):
        draw_one(TensorSpec("words", dtype, ("batch", 1)))


@pytest.mark.parametrize("dtype", ["", "float31", "tensor(float)", "bfloat99", "("])
def test_a_dtype_that_numpy_does_not_know_is_refused(dtype: str):
    with pytest.raises(InputError, match="expected a numpy dtype name"):
        TensorSpec("x", dtype, (1,))
