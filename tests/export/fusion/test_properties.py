"""What must hold of any members: random small networks, with random names that are meant to collide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from monograph.export.fusion import fuse, plan_fusion
from monograph.models.onnx_file import OnnxFile, read_onnx
from monograph.runtime.session import open_session

Array = npt.NDArray[Any]

FEATURES, CLASSES, PIXELS = 4, 3, (2, 5, 5)
OPSETS = (11, 12, 13, 15, 17, 18, 20, 21)
ACTIVATIONS = ("Relu", "Tanh", "Sigmoid", "Softplus", "LeakyRelu", "Softmax", "Identity")
NAMES = (
    "x",
    "w",
    "b",
    "logits",
    "h",
    "h_1",
    "a/h",
    "m1/h",
    "m2/h",
    "fusion/Mul_0",
    "Sum_1",
    "batch",
    "0",
    "val.1",
    "ä",
    "x:0",
    "__",
)
RELATIVE_ERROR = 1e-5

few = settings(max_examples=15, deadline=None)


@dataclass(frozen=True)
class Network:
    """A recipe; ``names`` are given out in order, made distinct by a number where they run out."""

    picture: bool
    widths: tuple[int, ...]
    activations: tuple[str, ...]
    opset: int
    names: tuple[str, ...]
    symbol: str
    named_nodes: bool
    seed: int


networks = st.builds(
    Network,
    picture=st.just(False),
    widths=st.lists(st.integers(1, 6), max_size=3).map(tuple),
    activations=st.tuples(*[st.sampled_from(ACTIVATIONS)] * 4),
    opset=st.sampled_from(OPSETS),
    names=st.permutations(NAMES).map(tuple),
    symbol=st.sampled_from(["batch", "N", "s0", "2*s0"]),
    named_nodes=st.booleans(),
    seed=st.integers(0, 10**6),
)


@st.composite
def members(draw: st.DrawFn, count: int) -> Sequence[Network]:
    """Networks for one kind of input: rows of features or pictures."""
    picture = draw(st.booleans())
    return [Network(**vars(draw(networks)) | {"picture": picture}) for _ in range(count)]


def build(network: Network) -> onnx.ModelProto:
    """Gemm and activation in turn, on the features or on what one convolution made of the picture."""
    rng = np.random.default_rng(network.seed)
    free = iter([*network.names, *(f"v{index}" for index in range(99))])
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def weight(*shape: int) -> str:
        weights.append(numpy_helper.from_array(rng.standard_normal(shape, dtype=np.float32), next(free)))
        return weights[-1].name

    def emit(op: str, *inputs: str, **attributes: Any) -> str:
        name = f"{next(free)}" if network.named_nodes else ""
        nodes.append(helper.make_node(op, inputs, [next(free)], name=name, **attributes))
        return str(nodes[-1].output[0])

    source = value = next(free)
    size = FEATURES
    if network.picture:
        size = 4
        value = emit("Conv", value, weight(size, PIXELS[0], 3, 3), weight(size), pads=[1] * 4)
        value = emit("Flatten", emit("GlobalAveragePool", emit("Relu", value)))
    for width, activation in zip((*network.widths, CLASSES), network.activations, strict=False):
        value = emit(activation, emit("Gemm", value, weight(size, width), weight(width)))
        size = width
    shape = [network.symbol, *(PIXELS if network.picture else (FEATURES,))]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info(source, TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, [network.symbol, CLASSES])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", network.opset)], ir_version=8)


class Workshop:
    """A folder in which networks become files and files become fusions."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.count = 0

    def write(self, networks: Sequence[Network]) -> list[OnnxFile]:
        files = []
        for network in networks:
            path = self._next()
            onnx.save(build(network), path)
            files.append(read_onnx(path))
        return files

    def fuse(self, files: Sequence[OnnxFile], weights: Sequence[float], combine: str) -> OnnxFile:
        return fuse(plan_fusion(files, weights=weights, combine=combine), self._next()).file

    def _next(self) -> Path:
        self.count += 1
        return self.folder / f"m{self.count}.onnx"


def outputs(file: OnnxFile, batch_size: int = 6) -> Array:
    """What the file computes on rows that are the same for every file."""
    (spec,) = file.contract.inputs
    shape = [batch_size, *spec.shape[1:]]
    rows = np.random.default_rng(0).standard_normal(shape).astype(np.float32)  # type: ignore[arg-type]
    return open_session(file.path)({spec.name: rows})[file.contract.output.name]


def assert_same(one: Array, other: Array) -> None:
    assert one.shape == other.shape
    assert float(np.abs(one - other).max()) <= RELATIVE_ERROR * max(1.0, float(np.abs(other).max()))


combines = st.sampled_from(["logits", "probs"])
shares = st.floats(0.05, 0.95)


def as_logits(networks: Sequence[Network]) -> Sequence[Network]:
    """Without an activation at the end that would make the output something else than logits."""
    return [Network(**vars(one) | {"activations": (*one.activations[: len(one.widths)], "Identity")}) for one in networks]


@given(networks=members(1).map(as_logits), share=shares)
@few
def test_a_model_fused_with_itself_is_itself(networks: Sequence[Network], share: float):
    with TemporaryDirectory() as folder:
        shop = Workshop(folder)
        (file,) = shop.write(networks)
        assert_same(outputs(shop.fuse([file, file], (share, 1 - share), "logits")), outputs(file))


@given(networks=members(2).map(as_logits), position=st.sampled_from([0, 1]))
@few
def test_all_weight_on_one_member_is_that_member(networks: Sequence[Network], position: int):
    with TemporaryDirectory() as folder:
        shop = Workshop(folder)
        files = shop.write(networks)
        weights = (1.0, 0.0) if position == 0 else (0.0, 1.0)
        assert_same(outputs(shop.fuse(files, weights, "logits")), outputs(files[position]))


@given(
    networks=members(3).map(as_logits),
    weights=st.tuples(shares, shares, shares),
    order=st.permutations(range(3)),
    combine=combines,
)
@few
def test_the_order_of_members_does_not_matter(
    networks: Sequence[Network], weights: Sequence[float], order: Sequence[int], combine: str
):
    weights = [weight / sum(weights) for weight in weights]
    with TemporaryDirectory() as folder:
        shop = Workshop(folder)
        files = shop.write(networks)
        turned = shop.fuse([files[index] for index in order], [weights[index] for index in order], combine)
        assert_same(outputs(turned), outputs(shop.fuse(files, weights, combine)))


@given(networks=members(3).map(as_logits), inner=shares, outer=shares, combine=combines)
@few
def test_a_fusion_of_a_fusion_is_one_fusion(networks: Sequence[Network], inner: float, outer: float, combine: str):
    with TemporaryDirectory() as folder:
        shop = Workshop(folder)
        a, b, c = shop.write(networks)
        pair = shop.fuse([a, b], (inner, 1 - inner), combine)
        nested = shop.fuse([pair, c], (outer, 1 - outer), combine)
        flat = shop.fuse([a, b, c], (outer * inner, outer * (1 - inner), 1 - outer), combine)
        assert_same(outputs(nested), outputs(flat))


@given(networks=members(2).map(as_logits), share=shares)
@few
def test_a_batch_is_its_rows(networks: Sequence[Network], share: float):
    """No row of a batch touches another."""
    with TemporaryDirectory() as folder:
        shop = Workshop(folder)
        file = shop.fuse(shop.write(networks), (share, 1 - share), "probs")
        assert_same(outputs(file, 6)[:1], outputs(file, 1))
        np.testing.assert_allclose(outputs(file).sum(axis=1), 1, atol=1e-5)
