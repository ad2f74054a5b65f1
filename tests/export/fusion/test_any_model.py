"""Members of every make: sparse weights, domains imported twice, functions with data, each opset, quantised networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from monograph.errors import FusionError, SourceError
from monograph.export.fusion import Fused, fuse, plan_fusion
from monograph.export.fusion.build import build_graph
from monograph.models.onnx_file import OnnxFile, read_onnx
from monograph.runtime.session import open_session

WriteModel = Callable[..., OnnxFile]
FuseFiles = Callable[..., Fused]
AssertWeightedSum = Callable[..., None]
MATRIX = np.random.default_rng(7).standard_normal((4, 3), dtype=np.float32)


def classifier(body: str, *, opset: int = 20, ir_version: int = 8, extra_imports: str = "") -> str:
    """A model from ``float32 x [batch, 4]`` to ``float32 logits [batch, 3]``."""
    head = f'<ir_version: {ir_version}, opset_import: ["": {opset}{extra_imports}]>'
    return f"{head} member (float[batch, 4] x) => (float[batch, 3] logits) {{ {body} }}"


def sparse(array: np.ndarray, name: str, *, linear: bool) -> onnx.SparseTensorProto:
    places = np.argwhere(array)
    values = numpy_helper.from_array(array[tuple(places.T)], name)
    indices = np.ravel_multi_index(tuple(places.T), array.shape) if linear else places
    return helper.make_sparse_tensor(values, numpy_helper.from_array(indices.astype(np.int64), f"{name}_indices"), array.shape)


class TestSparse:
    @pytest.mark.parametrize("linear", [True, False])
    @pytest.mark.parametrize("dtype", [np.float32, np.float16])
    def test_weights(
        self,
        write_linear: WriteModel,
        write_model: WriteModel,
        fuse_files: FuseFiles,
        assert_weighted_sum: AssertWeightedSum,
        linear: bool,
        dtype: type,
    ):
        to = {np.float32: 1, np.float16: 10}[dtype]
        proto = onnx.parser.parse_model(classifier(f"h = Cast<to = {to}>(x) y = MatMul(h, w) logits = Cast<to = 1>(y)"))
        proto.graph.sparse_initializer.append(sparse((MATRIX * (MATRIX > 0)).astype(dtype), "w", linear=linear))
        files = [write_linear("a"), write_model("sparse", proto, checked=False)]
        assert_weighted_sum(fuse_files(files, weights=(0.3, 0.7)), files, atol=1e-2 if dtype is np.float16 else 1e-5)

    @pytest.mark.parametrize("linear", [True, False])
    def test_constant(
        self, write_linear: WriteModel, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum, linear: bool
    ):
        """ONNX Runtime itself cannot give such a Constant to every operator, so the expected value is a dense one's."""
        proto = onnx.parser.parse_model(classifier("logits = MatMul(x, w)"))
        array = MATRIX * (MATRIX < 0.5)
        proto.graph.node.insert(0, helper.make_node("Constant", [], ["w"], sparse_value=sparse(array, "w", linear=linear)))
        files = [write_linear("a"), write_model("sparse", proto, checked=False)]
        assert_weighted_sum(fuse_files(files), files)
        x = np.eye(4, dtype=np.float32)
        np.testing.assert_allclose(open_session(files[1].path)({"x": x})["logits"], array)

    @pytest.mark.parametrize("indices", [np.array([0, 12]), np.array([-1, 0]), np.array([[0, 0], [4, 0]]), np.array([[0], [1]])])
    def test_indices_that_do_not_fit(self, write_linear: WriteModel, tmp_path: Path, indices: np.ndarray):
        proto = onnx.parser.parse_model(classifier("logits = MatMul(x, w)"))
        values = numpy_helper.from_array(np.ones(2, np.float32), "w")
        proto.graph.sparse_initializer.append(
            helper.make_sparse_tensor(values, numpy_helper.from_array(indices.astype(np.int64), "w_indices"), [4, 3])
        )
        onnx.save(proto, tmp_path / "bad.onnx")
        with pytest.raises(SourceError, match=r"bad\.onnx") as info:
            fuse(plan_fusion([write_linear("a"), read_onnx(tmp_path / "bad.onnx")]), tmp_path / "fused.onnx")
        assert "\n" not in str(info.value)
        assert not (tmp_path / "fused.onnx").exists()

    def test_a_shape_that_would_fill_the_memory(self, write_linear: WriteModel, tmp_path: Path):
        proto = onnx.parser.parse_model(classifier("h = ReduceSum(w) logits = Add(x, h)"))
        values = numpy_helper.from_array(np.ones(1, np.float32), "w")
        proto.graph.sparse_initializer.append(
            helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([5]), "w_indices"), [10**6, 10**6])
        )
        onnx.save(proto, tmp_path / "bomb.onnx")
        with pytest.raises(SourceError, match=r"sparse tensor 'w' of shape \[1000000, 1000000\] is too large"):
            fuse(plan_fusion([write_linear("a"), read_onnx(tmp_path / "bomb.onnx")]), tmp_path / "fused.onnx")


class TestDomains:
    def test_the_default_domain_under_both_names(
        self, write_linear: WriteModel, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum
    ):
        """Softmax of 3-D data flattens until opset 12, so which version is meant shows in the numbers."""
        body = "r = Reshape(x, shape) s = Softmax<axis = 1>(r) f = Flatten(s) logits = MatMul(f, w)"
        proto = onnx.parser.parse_model(classifier(body, opset=12))
        proto.opset_import.append(helper.make_opsetid("ai.onnx", 12))
        proto.graph.node[1].domain = "ai.onnx"
        arrays = {"w": MATRIX, "shape": np.array([-1, 2, 2])}
        files = [write_model("both", proto, arrays, checked=False), write_linear("one", opset=20)]
        assert_weighted_sum(fuse_files(files), files)

    def test_inside_functions_too(
        self, write_linear: WriteModel, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum
    ):
        text = (
            '<ir_version: 8, opset_import: ["": 18, "pkg": 1]>'
            "m (float[batch, 4] x) => (float[batch, 3] logits) { logits = pkg.layer(x, w) }"
            '<domain: "pkg", opset_import: ["": 18]> layer (x, w) => (y) { y = MatMul(x, w) }'
        )
        proto = onnx.parser.parse_model(text)
        proto.functions[0].opset_import.append(helper.make_opsetid("", 18))
        proto.opset_import.append(helper.make_opsetid("pkg", 1))
        files = [write_model("a", proto, {"w": MATRIX}, checked=False), write_linear("b", opset=20)]
        assert_weighted_sum(fuse_files(files), files)

    def test_two_versions_of_it_are_refused(self, write_model: WriteModel):
        proto = onnx.parser.parse_model(classifier("logits = MatMul(x, w)", opset=12))
        proto.opset_import.append(helper.make_opsetid("ai.onnx", 17))
        with pytest.raises(SourceError, match=r"twice\.onnx imports the operators 'ai\.onnx' at the versions 12 and 17"):
            write_model("twice", proto, {"w": MATRIX}, checked=False)

    def test_members_of_several_custom_domains(
        self, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum
    ):
        ml = "s = ai.onnx.ml.Scaler<offset = [0.5], scale = [2.0]>(x) logits = MatMul(s, w)"
        ms = "h = MatMul(x, w) g = com.microsoft.QuickGelu<alpha = 1.702>(h) logits = com.microsoft.BiasGelu(g, b)"
        files = [
            write_model("ml", classifier(ml, extra_imports=', "ai.onnx.ml": 3'), {"w": MATRIX}),
            write_model(
                "ms", classifier(ms, opset=17, extra_imports=', "com.microsoft": 1'), {"w": MATRIX, "b": MATRIX[0]}, checked=False
            ),
        ]
        assert_weighted_sum(fuse_files(files, weights=(0.2, 0.8)), files)


OPSETS = range(7, 26)


class TestOpsets:
    @pytest.mark.parametrize("opset", OPSETS)
    def test_each_beside_the_newest(
        self, write_linear: WriteModel, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum, opset: int
    ):
        """Operators that changed between versions: Softmax, BatchNormalization, Dropout, and a branch from opset 11 on."""
        body = """h = MatMul(x, w) n = BatchNormalization(h, scale, bias, mean, var) d = Dropout(n)
            f = Flatten<axis = 1>(d) s = Softmax<axis = 1>(f) logits = Add(s, bias)"""
        arrays = {
            "w": MATRIX,
            "scale": np.full(3, 2, np.float32),
            "bias": MATRIX[0],
            "mean": MATRIX[1],
            "var": MATRIX[2] ** 2 + 1,
        }
        ir_version = 3 if opset == 7 else 8 if opset < 19 else 11
        proto = onnx.parser.parse_model(classifier(body, opset=opset, ir_version=ir_version))
        if ir_version < 4:  # initializers had to be inputs then
            inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape) for name, array in arrays.items()]
            proto.graph.input.extend(inputs)
        old = write_model("old", proto, arrays, checked=False)
        files = [old, write_linear("new", opset=25)]
        fused = fuse_files(files, weights=(0.6, 0.4))
        assert fused.file.opset == 25
        assert_weighted_sum(fused, files)

    def test_all_at_once(self, write_linear: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum):
        files = [write_linear(f"v{opset}", seed=opset, opset=opset) for opset in OPSETS]
        assert_weighted_sum(fuse_files(files), files, atol=1e-4)

    @pytest.mark.parametrize("opset", [13, 14])
    def test_sizes_that_sharing_reads_need_a_newer_one_than_the_members_have(
        self, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum, opset: int
    ):
        """As PP-OCR's recogniser of opset 11 reads the size of its batch; Shape of some axes only is there since opset 15."""
        body = """sizes = Shape(x) batch = Gather(sizes, zero) again = Unsqueeze(batch, axes)
            shape = Concat<axis = 0>(again, three) wide = Expand(bias, shape) h = MatMul(x, w) logits = Add(h, wide)"""
        arrays = {"zero": np.int64(0), "axes": np.array([0], np.int64), "three": np.array([3], np.int64), "bias": MATRIX[0]}
        files = [
            write_model(name, classifier(body, opset=opset), arrays | {"w": MATRIX * scale})
            for name, scale in (("a", 1), ("b", -2))
        ]
        fused = fuse_files(files, weights=(0.25, 0.75))
        nodes = onnx.load(fused.file.path).graph.node
        assert any(node.op_type == "Shape" and node.attribute for node in nodes), "else the test says nothing"
        assert_weighted_sum(fused, files)


class TestQuantised:
    """Networks quantised by ONNX Runtime's own tools, beside the float network they were made from."""

    @pytest.fixture
    def network(self, write_model: WriteModel) -> OnnxFile:
        text = """<ir_version: 8, opset_import: ["": 17]>
            net (float[batch, 3, 8, 8] x) => (float[batch, 5] logits)
            { c = Conv<pads = [1, 1, 1, 1]>(x, k, kb) r = Relu(c) p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r)
              d = Conv<group = 8>(p, k2, kb) s = Add(d, p) g = GlobalAveragePool(s) f = Flatten(g) logits = Gemm(f, w, b) }"""
        rng = np.random.default_rng(0)
        shapes = {"k": (8, 3, 3, 3), "kb": (8,), "k2": (8, 1, 1, 1), "w": (8, 5), "b": (5,)}
        return write_model("net", text, {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()})

    @pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator])
    @pytest.mark.parametrize("weights", [QuantType.QInt8, QuantType.QUInt8])
    @pytest.mark.parametrize("per_channel", [True, False])
    def test_static(
        self,
        network: OnnxFile,
        tmp_path: Path,
        fuse_files: FuseFiles,
        assert_weighted_sum: AssertWeightedSum,
        form: QuantFormat,
        weights: QuantType,
        per_channel: bool,
    ):
        class Reader(CalibrationDataReader):
            def __init__(self) -> None:
                rng = np.random.default_rng(1)
                self.rows = iter([{"x": rng.standard_normal((4, 3, 8, 8)).astype(np.float32)} for _ in range(4)])

            def get_next(self) -> dict[str, np.ndarray] | None:
                return next(self.rows, None)

        path = tmp_path / "quantised.onnx"
        quantize_static(
            network.path,
            path,
            Reader(),
            quant_format=form,
            weight_type=weights,
            activation_type=QuantType.QUInt8,
            per_channel=per_channel,
        )
        files = [network, read_onnx(path)]
        for share in (True, False):
            assert_weighted_sum(fuse_files(files, weights=(0.4, 0.6), share=share), files, atol=1e-5)

    @pytest.mark.parametrize("weights", [QuantType.QInt8, QuantType.QUInt8])
    def test_dynamic(
        self, network: OnnxFile, tmp_path: Path, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum, weights: QuantType
    ):
        path = tmp_path / "quantised.onnx"
        quantize_dynamic(network.path, path, weight_type=weights, op_types_to_quantize=["MatMul", "Gemm"])
        files = [network, read_onnx(path)]
        assert_weighted_sum(fuse_files(files), files)

    def test_four_bit_weights(
        self, write_linear: WriteModel, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum
    ):
        proto = onnx.parser.parse_model(classifier("w = DequantizeLinear(q, s) logits = MatMul(x, w)", opset=21, ir_version=10))
        proto.graph.initializer.append(
            helper.make_tensor("q", TensorProto.INT4, [4, 3], [1, -2, 3, 4, -5, 6, 7, -8, 0, 1, 2, -3])
        )
        files = [write_model("int4", proto, {"s": np.float32(0.1)}), write_linear("float")]
        assert_weighted_sum(fuse_files(files), files)


class TestData:
    @pytest.mark.parametrize("external", [None, "weights.bin"])
    def test_a_function_whose_weights_are_in_a_file(
        self,
        write_linear: WriteModel,
        tmp_path: Path,
        fuse_files: FuseFiles,
        assert_weighted_sum: AssertWeightedSum,
        external: str | None,
    ):
        constant = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(MATRIX, "w"))
        if external:
            tensor = constant.attribute[0].t
            (tmp_path / external).write_bytes(b"pad!" + tensor.raw_data)
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", external), ("offset", "4"), ("length", str(MATRIX.nbytes))):
                tensor.external_data.add(key=key, value=value)
        opsets = [helper.make_opsetid("", 18)]
        function = helper.make_function(
            "ours", "Layer", ["x"], ["y"], [constant, helper.make_node("MatMul", ["x", "w"], ["y"])], opsets
        )
        proto = onnx.parser.parse_model(classifier("logits = ours.Layer(x)", opset=18, extra_imports=', "ours": 1'))
        proto.functions.append(function)
        (tmp_path / "with.onnx").write_bytes(proto.SerializeToString())
        files = [read_onnx(tmp_path / "with.onnx"), write_linear("b")]
        fused = fuse_files(files, weights=(0.5, 0.5))
        assert [path.name for path in fused.file.path.parent.iterdir()] == ["fused.onnx"]
        x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
        (expected,) = open_session(files[1].path)({"x": x}).values()
        np.testing.assert_allclose(open_session(fused.file.path)({"x": x})["logits"], (x @ MATRIX + expected) / 2, atol=1e-5)

    def test_data_files_that_have_a_second_name(
        self, write_model: WriteModel, tmp_path: Path, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum
    ):
        """Package managers link files from a cache of theirs into the folder."""
        wide = np.random.default_rng(0).standard_normal((4, 500), dtype=np.float32)
        text = classifier("h = MatMul(x, w) logits = MatMul(h, v)")
        arrays = {"w": wide, "v": wide[:3].T.copy() / 20}
        files = [write_model(f"{name}/model", text, arrays, external="model.data") for name in "ab"]
        for file in files:
            (tmp_path / f"{file.path.parent.name}.cached").hardlink_to(file.path.parent / "model.data")
        assert_weighted_sum(fuse_files(files), files)

    def test_dimensions_of_other_names(
        self, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum
    ):
        """One member ties a free size of its input to that of a second one; both are free in the other, under other names."""
        body = "{ both = Add(ids_a, ids_b) t = MatMul(both, w) logits = ReduceMean<keepdims = 0>(t, axis) }"
        arrays = {"w": MATRIX, "axis": np.array([1])}
        head = '<ir_version: 8, opset_import: ["": 20]> m '
        one = "(float[batch, seq, 4] ids_a, float[batch, seq, 4] ids_b) => (float[batch, 3] logits)"
        two = "(float[N, s77, 4] ids_a, float[N, s78, 4] ids_b) => (float[N, 3] logits)"
        files = [write_model("a", head + one + body, arrays), write_model("b", head + two + body, arrays | {"w": -2 * MATRIX})]
        fused = fuse_files(files, weights=(0.9, 0.1))
        assert [spec.shape for spec in fused.file.contract.inputs] == [("batch", "seq", 4)] * 2
        assert_weighted_sum(fused, files)


def test_half_precision_with_a_branch_and_a_scan(
    write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum
):
    text = """<ir_version: 8, opset_import: ["": 18]> m (float16[6, 4] x) => (float16[6, 3] logits) {
        total = ReduceSum<keepdims = 0>(x)
        positive = Greater(total, zero)
        start = If (positive) <
            then_branch = yes () => (float16[3] t) { t = Neg(bias) }, else_branch = no () => (float16[3] e) { e = Identity(bias) }
        >
        h = MatMul(x, w)
        last, logits = Scan (start, h) <num_scan_inputs = 1,
            body = step (float16[3] acc, float16[3] row) => (float16[3] next, float16[3] out)
            { s = Add(acc, row) next = Mul(s, half) out = Tanh(next) }
        > }"""
    arrays = {"zero": np.float16(0), "half": np.float16(0.5), "bias": MATRIX[0].astype(np.float16)}
    files = [write_model(name, text, arrays | {"w": (MATRIX * s).astype(np.float16)}) for name, s in (("a", 1), ("b", -1))]
    assert_weighted_sum(fuse_files(files, weights=(0.7, 0.3)), files, atol=2e-3)


def test_attention_with_a_cache(write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum):
    """Its next cache is an output that no fusion has, but without which ONNX Runtime does not run it."""
    text = """<ir_version: 11, opset_import: ["": 23]>
        m (float[2, 2, 4, 8] q, float[2, 2, 3, 8] past_k, float[2, 2, 3, 8] past_v)
        => (float[2, 2, 4, 8] hidden, float[2, 2, 7, 8] k)
        { s = Mul(q, scale) hidden, k, v = Attention(s, q, q, , past_k, past_v) }"""
    files = [write_model(name, text, {"scale": np.float32(scale)}) for name, scale in (("a", 1), ("b", -2))]
    for share in (True, False):
        assert_weighted_sum(fuse_files(files, weights=(0.25, 0.75), share=share), files)


def test_a_conversion_that_would_change_what_a_member_takes_is_refused(write_model: WriteModel):
    """Scan of opset 8 ran over a batch; the converter takes that dimension away from the model's inputs."""
    text = """<ir_version: 3, opset_import: ["": 8]>
        m (float[1, 4] start, float[1, 3, 4] x) => (float[1, 4] logits, float[1, 3, 4] all) {
            logits, all = Scan("", start, x) <num_scan_inputs = 1,
                body = step (float[4] acc, float[4] row) => (float[4] next, float[4] out)
                { next = Add(acc, row) out = Identity(next) }
            >
        }"""
    file = write_model("old", text, checked=False)
    with pytest.raises(FusionError, match=r"^one has opset 8 and cannot be converted to 15: 'start' would get another number"):
        build_graph(plan_fusion([file, file], names=("one", "two")))


def test_a_node_that_cannot_be_converted_is_named_with_the_reason(write_linear: WriteModel, write_model: WriteModel):
    text = classifier("h = MatMul(x, w) [odd] logits = BatchNormalization<spatial = 0>(h, s, b, s, s)", opset=7, ir_version=3)
    proto = onnx.parser.parse_model(text)
    proto.graph.input.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("w", (4, 3)), ("s", (3,)), ("b", (3,)))
    )
    arrays = {"w": MATRIX, "s": np.ones(3, np.float32), "b": MATRIX[0]}
    files = [write_model("old", proto, arrays, checked=False), write_linear("new")]
    with pytest.raises(
        FusionError, match=r"^old has opset 7 .*because of its node 'odd' \(BatchNormalization\): .*spatial"
    ) as info:
        build_graph(plan_fusion(files))
    assert "\n" not in str(info.value)
