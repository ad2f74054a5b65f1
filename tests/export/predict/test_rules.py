"""Each rule with a node that it takes and one that it refuses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from monograph.export.predict.operator_lists import COREML_MLPROGRAM, COREML_NEURALNETWORK, NNAPI, listed_operators

Reason = Callable[..., str | None]
ALL = ("xnnpack", "nnapi", "mlprogram", "neuralnetwork")
PICTURE = "(float[1, 4, 8, 8] x)"


def _weight(*shape: int) -> np.ndarray:
    return (np.arange(1, 1 + int(np.prod(shape))).reshape(shape) % 7 + 1).astype(np.float32)


CONV = {"w": _weight(6, 4, 3, 3), "b": _weight(6)}


@pytest.mark.parametrize("book", ALL)
def test_a_convolution_with_constant_weights_is_taken(reason: Reason, book: str):
    assert reason(book, f"{PICTURE} => (float[1, 6, 6, 6] y) {{ y = Conv(x, w, b) }}", CONV) is None


@pytest.mark.parametrize("book", ["xnnpack", "nnapi", "neuralnetwork"])
def test_a_convolution_with_weights_that_are_computed_is_refused(reason: Reason, book: str):
    text = "(float[1, 4, 8, 8] x, float[6, 4, 3, 3] w) => (float[1, 6, 6, 6] y) { y = Conv(x, w) }"
    assert reason(book, text) == "input 1 is not a constant"


def test_an_mlprogram_takes_computed_weights_and_no_computed_bias(reason: Reason):
    text = "(float[1, 4, 8, 8] x, float[6, 4, 3, 3] w) => (float[1, 6, 6, 6] y) { y = Conv(x, w) }"
    assert reason("mlprogram", text) is None
    text = "(float[1, 4, 8, 8] x, float[6] b) => (float[1, 6, 6, 6] y) { y = Conv(x, w, b) }"
    assert reason("mlprogram", text, {"w": CONV["w"]}) == "input 2 is not a constant"


@pytest.mark.parametrize(("book", "ranks"), [("xnnpack", "4"), ("nnapi", "4"), ("mlprogram", None), ("neuralnetwork", None)])
def test_a_convolution_over_one_axis(reason: Reason, book: str, ranks: str | None):
    said = reason(book, "(float[1, 4, 8] x) => (float[1, 6, 6] y) { y = Conv(x, w) }", {"w": _weight(6, 4, 3)})
    assert said == (None if ranks is None else f"input 0 has rank 3, it takes {ranks}")


def test_xnnpack_needs_the_picture_size_and_not_the_batch(reason: Reason):
    assert reason("xnnpack", "(float[n, 4, 8, 8] x) => (float[n, 6, 6, 6] y) { y = Conv(x, w, b) }", CONV) is None
    said = reason("xnnpack", "(float[n, 4, h, 8] x) => (float[n, 6, k, 6] y) { y = Conv(x, w, b) }", CONV)
    assert said == "axis 2 of input 0 is free"


def test_nnapi_takes_no_free_dimension_at_all(reason: Reason):
    said = reason("nnapi", "(float[n, 4, 8, 8] x) => (float[n, 6, 6, 6] y) { y = Conv(x, w, b) }", CONV)
    assert said == "axis 0 of input 0 is free"


@pytest.mark.parametrize(("padding", "is_taken"), [("SAME_UPPER", True), ("VALID", True), ("SAME_LOWER", False)])
def test_xnnpack_has_no_lower_padding(reason: Reason, padding: str, is_taken: bool):
    said = reason("xnnpack", f'{PICTURE} => (float[1, 6, a, b2] y) {{ y = Conv <auto_pad = "{padding}"> (x, w, b) }}', CONV)
    assert (said is None) == is_taken
    assert is_taken or said == "auto_pad is SAME_LOWER, it takes NOTSET or VALID or SAME_UPPER"


def test_nnapi_takes_no_dilated_groups(reason: Reason):
    text = f"{PICTURE} => (float[1, 6, a, b2] y) {{ y = Conv <group = 2, dilations = [2, 2]> (x, w) }}"
    assert reason("nnapi", text, {"w": _weight(6, 2, 3, 3)}) == "dilations is [2, 2], it takes ones"
    depthwise = f"{PICTURE} => (float[1, 4, a, b2] y) {{ y = Conv <group = 4, dilations = [2, 2]> (x, w) }}"
    assert reason("nnapi", depthwise, {"w": _weight(4, 1, 3, 3)}) is None


@pytest.mark.parametrize("book", ALL)
def test_no_pooling_with_ceil_mode(reason: Reason, book: str):
    plain = f"{PICTURE} => (float[1, 4, 4, 4] y) {{ y = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x) }}"
    assert reason(book, plain) is None
    ceil = plain.replace("strides", "ceil_mode = 1, strides")
    assert reason(book, ceil) == "ceil_mode is 1, it takes 0"


def test_xnnpack_pools_no_single_pixels_and_gives_no_indices(reason: Reason):
    text = f"{PICTURE} => (float[1, 4, 8, 8] y) {{ y = MaxPool <kernel_shape = [1, 1]> (x) }}"
    assert reason("xnnpack", text) == "a window of 1 x 1"
    text = (
        f"{PICTURE} => (float[1, 4, 4, 4] y, int64[1, 4, 4, 4] i) {{ y, i = MaxPool <kernel_shape=[2, 2], strides=[2, 2]> (x) }}"
    )
    assert reason("xnnpack", text) == "gives 2 outputs, it takes 1"


def test_xnnpack_counts_no_padding_into_an_average(reason: Reason):
    text = f"{PICTURE} => (float[1, 4, 8, 8] y) {{ y = AveragePool <kernel_shape=[3, 3], pads=[1, 1, 1, 1]> (x) }}"
    assert reason("xnnpack", text) is None
    assert reason("xnnpack", text.replace("<", "<count_include_pad = 1, ")) == "count_include_pad is 1, it takes 0"


def test_xnnpack_has_kernels_for_certain_versions(reason: Reason):
    text = f"{PICTURE} => (float[1, 4, 7, 7] y) {{ y = AveragePool <kernel_shape = [2, 2]> (x) }}"
    assert reason("xnnpack", text, opset=18) is None
    assert reason("xnnpack", text, opset=20) == "is AveragePool-19, it takes versions 11 to 11"


def test_xnnpack_takes_softmax_over_the_last_axis(reason: Reason):
    text = "(float[2, 3, 5] x) => (float[2, 3, 5] y) { y = Softmax <axis = AXIS> (x) }"
    assert reason("xnnpack", text.replace("AXIS", "-1")) is None
    assert reason("xnnpack", text.replace("AXIS", "2")) is None
    assert reason("xnnpack", text.replace("AXIS", "1")) == "over axis 1, it takes the last"


def test_nnapi_takes_softmax_of_two_or_four_axes(reason: Reason):
    assert reason("nnapi", "(float[2, 5] x) => (float[2, 5] y) { y = Softmax(x) }") is None
    assert reason("nnapi", "(float[2, 3, 5] x) => (float[2, 3, 5] y) { y = Softmax(x) }") == "input 0 has rank 3, it takes 2 or 4"


@pytest.mark.parametrize("book", ALL)
def test_a_linear_layer_is_taken_unless_it_is_scaled(reason: Reason, book: str):
    text = "(float[2, 4] x) => (float[2, 3] y) { y = Gemm <alpha = ALPHA> (x, w, b) }"
    arrays = {"w": _weight(4, 3), "b": _weight(3)}
    assert reason(book, text.replace("ALPHA", "1.0"), arrays) is None
    assert reason(book, text.replace("ALPHA", "0.5"), arrays) == "alpha is 0.5, it takes 1.0"


def test_xnnpack_takes_up_to_three_axes_by_a_constant_matrix(reason: Reason):
    text = "(float[2, 5, 4] x) => (float[2, 5, 3] y) { y = MatMul(x, w) }"
    assert reason("xnnpack", text, {"w": _weight(4, 3)}) is None
    text = "(float[1, 2, 5, 4] x) => (float[1, 2, 5, 3] y) { y = MatMul(x, w) }"
    assert reason("xnnpack", text, {"w": _weight(4, 3)}) == "ranks 4 and 2, it takes up to 3 by a matrix"
    text = "(float[5, 4] x, float[4, 3] w) => (float[5, 3] y) { y = MatMul(x, w) }"
    assert reason("xnnpack", text) == "input 1 is not a constant"


def test_nnapi_takes_two_matrices_or_equal_stacks(reason: Reason):
    assert reason("nnapi", "(float[5, 4] x) => (float[5, 3] y) { y = MatMul(x, w) }", {"w": _weight(4, 3)}) is None
    assert reason("nnapi", "(float[2, 5, 4] x, float[2, 4, 3] w) => (float[2, 5, 3] y) { y = MatMul(x, w) }") is None
    said = reason("nnapi", "(float[2, 5, 4] x) => (float[2, 5, 3] y) { y = MatMul(x, w) }", {"w": _weight(4, 3)})
    assert said == "ranks 3 and 2, it takes two matrices, or stacks with equal leading axes"


def test_an_mlprogram_multiplies_any_ranks_and_a_neuralnetwork_constant_matrices(reason: Reason):
    text = "(float[2, 5, 4] x, float[2, 4, 3] w) => (float[2, 5, 3] y) { y = MatMul(x, w) }"
    assert reason("mlprogram", text) is None
    assert reason("neuralnetwork", text) == "input 0 has rank 3, it takes 2"


@pytest.mark.parametrize(
    ("bounds", "said"),
    [((0, 6), None), ((-1, 1), None), ((0, 1), "clips to [0.0, 1.0], it takes [0, 6] or [-1, 1]")],
)
def test_nnapi_clips_to_two_ranges(reason: Reason, bounds: tuple[int, int], said: str | None):
    arrays = {"low": np.float32(bounds[0]), "high": np.float32(bounds[1])}
    assert reason("nnapi", f"{PICTURE} => (float[1, 4, 8, 8] y) {{ y = Clip(x, low, high) }}", arrays) == said
    assert reason("mlprogram", f"{PICTURE} => (float[1, 4, 8, 8] y) {{ y = Clip(x, low, high) }}", arrays) is None


def test_xnnpack_takes_an_activation_only_with_what_it_follows(reason: Reason):
    text = f"{PICTURE} => (float[1, 6, 6, 6] y) {{ c = Conv(x, w, b) y = Relu(c) }}"
    assert reason("xnnpack", text, CONV) is None
    for text in ("y = Relu(x)", "e = Exp(x) y = Relu(e)"):
        said = reason("xnnpack", f"{PICTURE} => (float[1, 4, 8, 8] y) {{ {text} }}")
        assert said == "runs only with the AveragePool or Conv or MaxPool before it, and there is none that it takes"


RESIZE = f"""{PICTURE} => (float[1, 4, 16, 16] y)
{{ y = Resize <mode = "MODE", coordinate_transformation_mode = "COORDINATES", nearest_mode = "floor"> (x, none, scales) }}"""
SCALES = {"none": np.zeros(0, np.float32), "scales": np.array([1, 1, 2, 2], np.float32)}


@pytest.mark.parametrize(
    ("book", "mode", "coordinates", "said"),
    [
        ("xnnpack", "linear", "half_pixel", None),
        ("xnnpack", "nearest", "asymmetric", "mode is nearest, it takes linear"),
        ("nnapi", "linear", "half_pixel", None),
        ("nnapi", "nearest", "asymmetric", None),
        ("nnapi", "nearest", "half_pixel", "nearest with another mode than asymmetric and floor"),
        ("neuralnetwork", "linear", "asymmetric", None),
        ("neuralnetwork", "linear", "half_pixel", "coordinate_transformation_mode is half_pixel, it takes asymmetric"),
    ],
)
def test_resizing(reason: Reason, book: str, mode: str, coordinates: str, said: str | None):
    assert reason(book, RESIZE.replace("MODE", mode).replace("COORDINATES", coordinates), SCALES) == said


def test_xnnpack_shrinks_only_by_a_divisor(reason: Reason):
    text = f'{PICTURE} => (float[1, 4, a, b] y) {{ y = Resize <mode = "linear"> (x, none, scales) }}'
    assert reason("xnnpack", text, SCALES | {"scales": np.array([1, 1, 0.5, 0.5], np.float32)}) is None
    said = reason("xnnpack", text, SCALES | {"scales": np.array([1, 1, 0.4, 0.5], np.float32)})
    assert said is not None
    assert "which does not divide it" in said


@pytest.mark.parametrize("book", ["mlprogram", "neuralnetwork"])
def test_coreml_takes_up_to_five_axes_of_up_to_16384(reason: Reason, book: str):
    assert reason(book, "(float[1, 1, 2, 2, 2] x) => (float[1, 1, 2, 2, 2] y) { y = Sigmoid(x) }") is None
    said = reason(book, "(float[1, 1, 1, 2, 2, 2] x) => (float[1, 1, 1, 2, 2, 2] y) { y = Sigmoid(x) }")
    assert said == "input 0 has rank 6, it takes up to 5"
    said = reason(book, "(float[1, 20000] x) => (float[1, 20000] y) { y = Sigmoid(x) }")
    assert said == "axis 1 of input 0 has size 20000, it takes up to 16384"


@pytest.mark.parametrize("book", ALL)
def test_reshape_needs_its_shape_beforehand(reason: Reason, book: str):
    said = reason(book, "(float[2, 6] x, int64[2] s) => (float[a, b] y) { y = Reshape(x, s) }")
    known = {"xnnpack": "XNNPACK has no Reshape", "nnapi": "input 1 is not a constant"}
    assert said == known.get(book, "the new shape is not constant, or empty")


@pytest.mark.parametrize("book", ["nnapi", "mlprogram", "neuralnetwork"])
def test_a_sum_of_int64_is_not_taken(reason: Reason, book: str):
    said = reason(book, "(int64[2] x, int64[2] z) => (int64[2] y) { y = Add(x, z) }")
    assert said is not None
    assert said.startswith("input 0 is int64, it takes float")


@pytest.mark.parametrize("book", ["nnapi", "mlprogram", "neuralnetwork"])
@pytest.mark.parametrize(
    "text",
    [
        "(float[4] x, bool[4] c) => (float[n] y) { y = Compress(x, c) }",
        "(float[4] x) => (int64[1, n] y) { y = NonZero(x) }",
        "(float[4] x, int64[1, 1] i, float[1] u) => (float[4] y) { y = ScatterND(x, i, u) }",
        "(int64[4] x, int64 d, float[2] v) => (float[4, n] y) { y = OneHot(x, d, v) }",
        """(bool x, float[2] a, float[2] b) => (float[2] y)
        { y = If (x) <then_branch = t () => (float[2] p) { p = Identity(a) },
                      else_branch = e () => (float[2] q) { q = Identity(b) }> }""",
    ],
)
def test_what_a_cascade_is_made_of_is_in_no_list(reason: Reason, book: str, text: str):
    said = reason(book, text)
    assert said is not None
    assert " has no " in said


def test_lists_are_read_whatever_their_spelling():
    assert {"Conv", "com.microsoft:QLinearAdd"} <= listed_operators(NNAPI)
    assert "ArgMax" in listed_operators(COREML_MLPROGRAM)
    assert "Argmax" not in listed_operators(COREML_MLPROGRAM)
    assert "ReduceSum" in listed_operators(COREML_NEURALNETWORK)
