"""What must hold of members with branches, loops, several outputs, copies, constants and shared values in any order.

Shape: every value between the steps is ``float32 [batch, WIDTH]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from monograph.export.fusion import fuse, plan_fusion
from monograph.models.onnx_file import OnnxFile, read_onnx
from monograph.runtime.session import open_session

Array = npt.NDArray[Any]

WIDTH, CLASSES, ROWS = 6, 3, 5
OPSETS = (13, 15, 17, 18, 20, 21, 23)
STEPS = (
    "dense",
    "activation",
    "copies",
    "dropout",
    "constant",
    "turn",
    "split",
    "residual",
    "branch",
    "loop",
    "scan",
    "unused",
    "function",
)
ACTIVATIONS = ("Relu", "Tanh", "Sigmoid", "Softsign")
RELATIVE_ERROR = 1e-5

few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@dataclass(frozen=True)
class Recipe:
    """Steps, and for each the numbers by which it chooses its inputs among the values there are."""

    steps: tuple[tuple[str, int, int], ...]
    opset: int
    seed: int
    weights_are_inputs: bool
    output_twice: bool
    hidden_output: bool


recipes = st.builds(
    Recipe,
    steps=st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=6).map(tuple),
    opset=st.sampled_from(OPSETS),
    seed=st.integers(0, 5),
    weights_are_inputs=st.booleans(),
    output_twice=st.booleans(),
    hidden_output=st.booleans(),
)
"""Few seeds, so that members have equal weights and parts now and then."""


class Builder:
    """The graph that a recipe describes."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.rng = np.random.default_rng(recipe.seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.functions: list[onnx.FunctionProto] = []
        self.values = ["x"]
        self.count = 0

    def name(self) -> str:
        self.count += 1
        return f"v{self.count}"

    def weight(self, array: npt.ArrayLike, dtype: type = np.float32) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(array, dtype), self.name()))
        return str(self.weights[-1].name)

    def random(self, *shape: int) -> Array:
        return self.rng.standard_normal(shape).astype(np.float32) / 2

    def emit(self, op: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> list[str]:
        names = [self.name() for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, domain=domain, **attributes))
        return names

    def build(self) -> onnx.ModelProto:
        for step, first, second in self.recipe.steps:
            one, other = self.values[first % len(self.values)], self.values[second % len(self.values)]
            self.values += getattr(self, step)(one, other)
        self.nodes.append(helper.make_node("MatMul", [self.values[-1], self.weight(self.random(WIDTH, CLASSES))], ["logits"]))
        outputs = {"logits": CLASSES}
        if self.recipe.output_twice:
            self.nodes.append(helper.make_node("Identity", ["logits"], ["again"]))
            outputs["again"] = CLASSES
        if self.recipe.hidden_output and self.values[-1] != "x":
            outputs[self.values[-1]] = WIDTH
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])]
        if self.recipe.weights_are_inputs:
            inputs += [helper.make_tensor_value_info(one.name, one.data_type, one.dims) for one in self.weights]
        shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in outputs.items()]
        graph = helper.make_graph(self.nodes, "random", inputs, shapes, self.weights)
        imports = [helper.make_opsetid("", self.recipe.opset), helper.make_opsetid("ours", 1)]
        return helper.make_model(graph, opset_imports=imports, functions=self.functions, ir_version=8)

    def dense(self, one: str, _: str) -> list[str]:
        (product,) = self.emit("MatMul", one, self.weight(self.random(WIDTH, WIDTH)))
        return self.emit("Add", product, self.weight(self.random(WIDTH)))

    def activation(self, one: str, other: str) -> list[str]:
        return self.emit(ACTIVATIONS[len(one + other) % len(ACTIVATIONS)], one)

    def copies(self, one: str, _: str) -> list[str]:
        return self.emit("Identity", self.emit("Identity", one)[0])

    def dropout(self, one: str, _: str) -> list[str]:
        kept, _mask = self.emit("Dropout", one, self.weight(0.4), outputs=2)
        return [kept]

    def constant(self, one: str, _: str) -> list[str]:
        (value,) = self.emit("Constant", value=numpy_helper.from_array(self.random(WIDTH)))
        (scale,) = self.emit("Constant", value_float=0.5)
        return self.emit("Mul", self.emit("Add", one, value)[0], scale)

    def turn(self, one: str, _: str) -> list[str]:
        (folded,) = self.emit("Reshape", one, self.weight([0, 2, 3], np.int64))
        (turned,) = self.emit("Transpose", folded, perm=[0, 2, 1])
        return self.emit("Reshape", turned, self.weight([0, -1], np.int64))

    def split(self, one: str, _: str) -> list[str]:
        left, right = self.emit("Split", one, self.weight([2, 4], np.int64), outputs=2, axis=1)
        return self.emit("Concat", right, left, axis=1)

    def residual(self, one: str, other: str) -> list[str]:
        return self.emit("Add", one, other)

    def unused(self, one: str, other: str) -> list[str]:
        self.emit("Split", other, self.weight([3, 3], np.int64), outputs=2, axis=1)
        _values, _places = self.emit("TopK", one, self.weight([2], np.int64), outputs=2)
        return self.emit("Neg", one)

    def branch(self, one: str, other: str) -> list[str]:
        (total,) = self.emit("ReduceSum", one, keepdims=0)
        (positive,) = self.emit("Greater", total, self.weight(0.0))
        matrix = self.weight(self.random(WIDTH, WIDTH))
        yes, no, inner = self.name(), self.name(), self.name()
        own = numpy_helper.from_array(self.random(WIDTH), inner)
        graphs = [
            helper.make_graph([helper.make_node("MatMul", [other, matrix], [yes])], "yes", [], [self._info(yes)]),
            helper.make_graph([helper.make_node("Sub", [one, inner], [no])], "no", [], [self._info(no)], [own]),
        ]
        return self.emit("If", positive, then_branch=graphs[0], else_branch=graphs[1])

    def loop(self, one: str, other: str) -> list[str]:
        i, go, acc, on, scaled, summed, out = (self.name() for _ in range(7))
        half = self.weight(0.5)
        nodes = [
            helper.make_node("Identity", [go], [on]),
            helper.make_node("Mul", [other, half], [scaled]),
            helper.make_node("Add", [acc, scaled], [summed]),
            helper.make_node("Tanh", [summed], [out]),
        ]
        inputs = [
            helper.make_tensor_value_info(i, TensorProto.INT64, []),
            helper.make_tensor_value_info(go, TensorProto.BOOL, []),
            self._info(acc),
        ]
        outputs = [helper.make_tensor_value_info(on, TensorProto.BOOL, []), self._info(out)]
        body = helper.make_graph(nodes, "body", inputs, outputs)
        return self.emit("Loop", self.weight(3, np.int64), self.weight(True, np.bool_), one, body=body)

    def scan(self, one: str, other: str) -> list[str]:
        """A running sum over the columns, from a bias that the step reads outside of it."""
        (columns,) = self.emit("Transpose", one, perm=[1, 0])
        (start,) = self.emit("ReduceSum", other, self.weight([1], np.int64), keepdims=0)
        acc, column, total, out = (self.name() for _ in range(4))
        nodes = [helper.make_node("Add", [acc, column], [total]), helper.make_node("Identity", [total], [out])]
        vector = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in (acc, column, total, out)]
        body = helper.make_graph(nodes, "step", vector[:2], vector[2:])
        _last, rows = self.emit("Scan", start, columns, outputs=2, body=body, num_scan_inputs=1)
        return self.emit("Transpose", rows, perm=[1, 0])

    def function(self, one: str, other: str) -> list[str]:
        if not self.functions:
            body = [helper.make_node("Sub", ["a", "b"], ["d"]), helper.make_node("Tanh", ["d"], ["c"])]
            imports = [helper.make_opsetid("", self.recipe.opset)]
            self.functions.append(helper.make_function("ours", "Difference", ["a", "b"], ["c"], body, imports))
        return self.emit("Difference", one, other, domain="ours")

    def _info(self, name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", WIDTH])


class Workshop:
    """A folder in which recipes become files and files become fusions."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.count = 0

    def write(self, recipes: Sequence[Recipe]) -> list[OnnxFile]:
        files = []
        for recipe in recipes:
            path = self._next()
            onnx.save(Builder(recipe).build(), path)
            files.append(read_onnx(path))
        return files

    def fuse(self, files: Sequence[OnnxFile], weights: Sequence[float], *, share: bool = True) -> OnnxFile:
        plan = plan_fusion(files, weights=weights, combine="logits", share=share)
        fused = fuse(plan, self._next()).file
        onnx.checker.check_model(str(fused.path), full_check=True)
        return fused

    def _next(self) -> Path:
        self.count += 1
        return self.folder / f"m{self.count}.onnx"


def outputs(file: OnnxFile) -> Array:
    """What the file computes on rows that are the same for every file, some that sum to more than 0 and some to less."""
    rows = np.random.default_rng(0).standard_normal((2, ROWS, WIDTH)).astype(np.float32) + np.array([[[1]], [[-1]]], np.float32)
    session = open_session(file.path)
    return np.stack([session({file.contract.inputs[0].name: part})["logits"].astype(np.float64) for part in rows])


def assert_same(one: Array, other: Array) -> None:
    assert one.shape == other.shape
    assert float(np.abs(one - other).max()) <= RELATIVE_ERROR * max(1.0, float(np.abs(other).max()))


@given(recipe=recipes, share=st.booleans())
@few
def test_a_model_fused_with_itself_is_itself(recipe: Recipe, share: bool):
    with TemporaryDirectory() as folder:
        shop = Workshop(folder)
        (file,) = shop.write([recipe])
        assert_same(outputs(shop.fuse([file, file], (0.3, 0.7), share=share)), outputs(file))


@given(pair=st.tuples(recipes, recipes), share=st.floats(0.05, 0.95))
@few
def test_weights_order_and_sharing(pair: tuple[Recipe, Recipe], share: float):
    with TemporaryDirectory() as folder:
        shop = Workshop(folder)
        a, b = shop.write(pair)
        expected = share * outputs(a) + (1 - share) * outputs(b)
        assert_same(outputs(shop.fuse([a, b], (share, 1 - share))), expected)
        assert_same(outputs(shop.fuse([a, b], (share, 1 - share), share=False)), expected)
        assert_same(outputs(shop.fuse([b, a], (1 - share, share))), expected)
        assert_same(outputs(shop.fuse([a, b], (0, 1))), outputs(b))


@given(three=st.tuples(recipes, recipes, recipes), inner=st.floats(0.05, 0.95), outer=st.floats(0.05, 0.95))
@few
def test_a_fusion_of_a_fusion_is_one_fusion(three: tuple[Recipe, Recipe, Recipe], inner: float, outer: float):
    with TemporaryDirectory() as folder:
        shop = Workshop(folder)
        a, b, c = shop.write(three)
        nested = shop.fuse([shop.fuse([a, b], (inner, 1 - inner)), c], (outer, 1 - outer))
        flat = shop.fuse([a, b, c], (outer * inner, outer * (1 - inner), 1 - outer))
        assert_same(outputs(nested), outputs(flat))
