import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from scipy.special import log_softmax

from monograph.errors import DataError, FusionError, InputError, ParityError, SourceError
from monograph.export.fusion import FUSION_KEY, Fused, fit_fusion, fuse, plan_fusion
from monograph.export.fusion.build import build_graph
from monograph.export.trace import PROOF_KEY
from monograph.models.contract import CONTRACT_KEY, Contract, Kind, TensorSpec
from monograph.models.data.rows import Rows
from monograph.models.onnx_file import OnnxFile, read_onnx
from monograph.runtime.session import open_session

WriteModel = Callable[..., OnnxFile]
FuseFiles = Callable[..., Fused]
AssertWeightedSum = Callable[..., None]

MATRIX = np.random.default_rng(7).standard_normal((4, 3), dtype=np.float32)


def head(opset: int = 20, ir_version: int = 8, extra_imports: str = "") -> str:
    return f'<ir_version: {ir_version}, opset_import: ["": {opset}{extra_imports}]>'


def classifier(body: str, *, opset: int = 20, ir_version: int = 8, extra_imports: str = "") -> str:
    """A model from ``float32 x [batch, 4]`` to ``float32 logits [batch, 3]``."""
    signature = "member (float[batch, 4] x) => (float[batch, 3] logits)"
    return f"{head(opset, ir_version, extra_imports)} {signature} {{ {body} }}"


class TestArithmetic:
    def test_logits(self, write_linear: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum):
        files = [write_linear(f"m{seed}", seed=seed) for seed in range(3)]
        fused = fuse_files(files, weights=(0.2, 0.3, 0.5))
        assert fused.plan.form == "logits"
        assert_weighted_sum(fused, files)

    def test_probabilities_of_a_member_that_gives_logits_and_one_that_gives_probabilities(
        self, write_linear: WriteModel, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum
    ):
        text = head() + "m (float[batch, 4] x) => (float[batch, 3] y) { z = MatMul(x, w) y = Softmax(z) }"
        files = [write_linear("a"), write_model("b", text, {"w": MATRIX})]
        fused = fuse_files(files, weights=(0.25, 0.75))
        assert fused.plan.form == "probs"
        assert_weighted_sum(fused, files)
        rows = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
        np.testing.assert_allclose(open_session(fused.file.path)({"x": rows})["probabilities"].sum(1), 1, atol=1e-6)

    def test_mean_of_three_dimensional_embeddings(
        self, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum
    ):
        text = head() + "m (float[b, s, 4] x) => (float[b, s, 3] hidden) { hidden = MatMul(x, w) }"
        files = [write_model("a", text, {"w": MATRIX}), write_model("b", text, {"w": -2 * MATRIX})]
        fused = fuse_files(files, weights=(0.9, 0.1))
        assert (fused.plan.form, fused.file.contract.kind) == ("mean", Kind.EMBEDDING)
        assert_weighted_sum(fused, files)

    def test_equal_weights_by_default(
        self, write_linear: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum
    ):
        files = [write_linear(f"m{seed}", seed=seed) for seed in range(2)]
        fused = fuse_files(files)
        assert [member.weight for member in fused.plan.members] == [0.5, 0.5]
        assert_weighted_sum(fused, files)

    @pytest.mark.parametrize("dtype", ["double", "float16"])
    def test_output_of_another_float_type_is_cast(
        self, write_linear: WriteModel, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum, dtype: str
    ):
        to = {"double": TensorProto.DOUBLE, "float16": TensorProto.FLOAT16}[dtype]
        text = head() + f"m (float[batch, 4] x) => ({dtype}[batch, 3] y) {{ z = MatMul(x, w) y = Cast<to={to}>(z) }}"
        files = [write_linear("a"), write_model("b", text, {"w": MATRIX})]
        fused = fuse_files(files)
        assert fused.file.contract.output.dtype == "float32"
        assert_weighted_sum(fused, files, atol=1e-3 if dtype == "float16" else 1e-6)

    def test_float16_throughout(self, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum):
        text = head() + "m (float16[batch, 4] x) => (float16[batch, 3] y) { z = MatMul(x, w) t = Tanh(z) y = Exp(t) }"
        files = [write_model(name, text, {"w": (MATRIX * scale).astype(np.float16)}) for name, scale in (("a", 1), ("b", -1))]
        assert_weighted_sum(fuse_files(files), files, atol=2e-3)

    def test_classes_are_reordered_by_name(
        self, write_linear: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum
    ):
        specs = (TensorSpec("x", "float32", ("batch", 4)),), (TensorSpec("logits", "float32", ("batch", 3)),)
        files = [
            write_linear("a", seed=1, contract=Contract(*specs, Kind.LOGITS, ("cat", "dog", "owl"))),
            write_linear("b", seed=2, contract=Contract(*specs, Kind.LOGITS, ("owl", "cat", "dog"))),
        ]
        fused = fuse_files(files, weights=(0.4, 0.6))
        assert fused.file.contract.class_names == ("cat", "dog", "owl")
        rows = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
        a, b = (open_session(file.path)({"x": rows})["logits"] for file in files)
        np.testing.assert_allclose(
            open_session(fused.file.path)({"x": rows})["logits"], 0.4 * a + 0.6 * b[:, [1, 2, 0]], atol=1e-6
        )

    def test_int32_and_int64_ids_share_one_input(
        self, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum
    ):
        body = "{ e = Gather(w, ids) logits = ReduceMean<keepdims = 0>(e, a) }"
        text = head() + "m (%s[batch, s] ids) => (float[batch, 3] logits) " + body
        table = np.random.default_rng(3).standard_normal((11, 3), dtype=np.float32)
        arrays = {"w": table, "a": np.array([1])}
        files = [write_model("a", text % "int32", arrays), write_model("b", text % "int64", arrays | {"w": table[:7] * 2})]
        fused = fuse_files(files)
        (ids,) = fused.file.contract.inputs
        assert (ids.dtype, ids.upper_bound) == ("int32", 7)
        assert_weighted_sum(fused, files)

    def test_two_inputs_in_another_order_are_matched_by_name(
        self, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum
    ):
        arrays = {"w": MATRIX}
        body = "{ d = Sub(left, right) y = MatMul(d, w) }"
        files = [
            write_model("a", head() + f"m (float[n, 4] left, float[n, 4] right) => (float[n, 3] y) {body}", arrays),
            write_model("b", head() + f"m (float[n, 4] right, float[n, 4] left) => (float[n, 3] y) {body}", arrays),
        ]
        fused = fuse_files(files)
        x = {side: np.random.default_rng(len(side)).standard_normal((3, 4)).astype(np.float32) for side in ("left", "right")}
        (got,) = open_session(fused.file.path)(x).values()
        np.testing.assert_allclose(got, (x["left"] - x["right"]) @ MATRIX, atol=1e-5)

    def test_differently_named_inputs_and_dimensions(
        self, write_linear: WriteModel, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum
    ):
        text = head() + "m (float[N, 4] pixels) => (float[N, 3] out) { out = MatMul(pixels, w) }"
        files = [write_linear("a"), write_model("b", text, {"w": MATRIX})]
        fused = fuse_files(files)
        assert [spec.describe() for spec in fused.file.contract.inputs] == ["x: float32 [batch x 4]"]
        assert_weighted_sum(fused, files)

    def test_real_rows_are_what_the_proof_runs_on(self, write_linear: WriteModel, fuse_files: FuseFiles):
        rows = Rows({"x": np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)})
        fused = fuse_files([write_linear("a"), write_linear("b", seed=1)], rows=rows)
        assert {batch.rows for batch in fused.proof.batches} == {"real"}

    def test_rows_without_the_input_are_refused(self, write_linear: WriteModel, fuse_files: FuseFiles):
        with pytest.raises(InputError, match="'x'"):
            fuse_files([write_linear("a"), write_linear("b", seed=1)], rows=Rows({"z": np.zeros((4, 4), np.float32)}))


class TestWhatIsLeftOut:
    def test_member_of_weight_zero(self, write_linear: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum):
        files = [write_linear(name, seed=seed) for seed, name in enumerate(("kept", "dropped", "also"))]
        fused = fuse_files(files, weights=(0.5, 0, 0.5))
        nodes = [node.name for node in onnx.load(fused.file.path).graph.node]
        assert not [name for name in nodes if name.startswith("dropped")]
        assert any("dropped has weight 0" in note for note in fused.plan.notes)
        assert_weighted_sum(fused, files)

    def test_all_but_one(self, write_linear: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum):
        files = [write_linear("a"), write_linear("b", seed=1, input_name="other")]
        fused = fuse_files(files, weights=(0, 1))
        assert [spec.name for spec in fused.file.contract.inputs] == ["x"]
        assert [node.op_type for node in onnx.load(fused.file.path).graph.node] == ["Gemm"]
        assert_weighted_sum(fused, files)

    def test_extra_outputs_and_what_only_they_need(
        self, write_linear: WriteModel, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum
    ):
        text = (
            head()
            + """m (float[batch, 4] x) => (float[batch, 3] logits, float[batch, 4] hidden, int64[batch] best)
            { hidden = Erf(x) logits = MatMul(x, w) best = ArgMax<axis=1, keepdims=0>(logits) }"""
        )
        files = [write_linear("a"), write_model("b", text, {"w": MATRIX})]
        fused = fuse_files(files)
        proto = onnx.load(fused.file.path)
        assert [value.name for value in proto.graph.output] == ["logits"]
        assert not {"Erf", "ArgMax"} & {node.op_type for node in proto.graph.node}
        assert_weighted_sum(fused, files)


class TestOpsets:
    @pytest.mark.parametrize("opset", [11, 12, 13, 17, 18, 20])
    def test_softmax_over_all_later_axes_until_opset_12(
        self, write_linear: WriteModel, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum, opset: int
    ):
        """Softmax of a 3-D tensor with axis 1 flattens it before opset 13 and takes one axis from then on."""
        text = classifier("r = Reshape(x, shape) s = Softmax<axis = 1>(r) f = Flatten(s) logits = MatMul(f, w)", opset=opset)
        old = write_model("old", text, {"w": MATRIX, "shape": np.array([-1, 2, 2])})
        files = [old, write_linear("new", opset=20)]
        fused = fuse_files(files)
        assert fused.file.opset == 20
        assert_weighted_sum(fused, files)

    @pytest.mark.parametrize("opset", [11, 12])
    def test_softmax_in_a_branch(
        self, write_linear: WriteModel, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum, opset: int
    ):
        text = classifier(
            """r = Reshape(x, shape)
            total = ReduceSum<keepdims = 0>(x)
            positive = Greater(total, zero)
            s = If (positive) <
                then_branch = yes () => (float[n, 2, 2] t) { t = Softmax<axis = 1>(r) },
                else_branch = no () => (float[n, 2, 2] e) { u = Neg(r) e = Softmax<axis = 1>(u) }
            >
            f = Flatten(s)
            logits = MatMul(f, w)""",
            opset=opset,
        )
        arrays = {"w": MATRIX, "shape": np.array([-1, 2, 2]), "zero": np.float32(0)}
        files = [write_model("old", text, arrays), write_linear("new", opset=20)]
        fused = fuse_files(files)
        assert_weighted_sum(fused, files)

    def test_operators_whose_attributes_became_inputs(
        self, write_linear: WriteModel, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum
    ):
        text = classifier(
            """u = Unsqueeze<axes = [1]>(x)
            q = Squeeze<axes = [1]>(u)
            d = Dropout<ratio = 0.3>(q)
            m = ReduceMean<axes = [1], keepdims = 1>(d)
            c = Sub(d, m)
            left, right = Split<axis = 1, split = [1, 3]>(c)
            p = Pad(right, pads)
            h = Hardmax(p)
            both = Add(h, p)
            logits = MatMul(both, w)""",
            opset=11,
        )
        files = [
            write_model("old", text, {"w": MATRIX, "pads": np.array([0, 1, 0, 0])}),
            write_linear("middle", opset=13, seed=4),
            write_linear("new", opset=21),
        ]
        assert_weighted_sum(fuse_files(files), files)

    def test_large_weights_survive_conversion(
        self, write_linear: WriteModel, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum
    ):
        wide = np.random.default_rng(0).standard_normal((4, 700), dtype=np.float32)
        text = classifier(
            """h = MatMul(x, w) r = Relu(h) total = ReduceSum<keepdims = 0>(x) positive = Greater(total, zero)
            logits = If (positive) <
                then_branch = yes () => (float[n, 3] t) { t = MatMul(r, v) },
                else_branch = no () => (float[n, 3] e) { u = Neg(r) e = MatMul(u, v) }
            >""",
            opset=12,
        )
        files = [write_model("old", text, {"w": wide, "v": wide[:3].T.copy(), "zero": np.float32(0)}), write_linear("new")]
        assert_weighted_sum(fuse_files(files), files, atol=1e-4)

    def test_old_ir_version_with_initializers_among_the_inputs(
        self, write_linear: WriteModel, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum
    ):
        text = head(11, 3) + "m (float[batch, 4] x, float[4, 3] w) => (float[batch, 3] y) { y = MatMul(x, w) }"
        files = [write_linear("new"), write_model("old", text, {"w": MATRIX})]
        fused = fuse_files(files)
        assert [value.name for value in onnx.load(fused.file.path).graph.input] == ["x"]
        assert_weighted_sum(fused, files)

    def test_ir_version_is_the_newest_members(self, write_linear: WriteModel, write_model: WriteModel, fuse_files: FuseFiles):
        files = [write_linear("a"), write_model("b", classifier("logits = MatMul(x, w)", opset=21, ir_version=10), {"w": MATRIX})]
        assert onnx.load(fuse_files(files).file.path).ir_version == 10

    def test_operator_that_was_replaced(
        self, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum, caplog
    ):
        text = (
            head(9)
            + """m (float[batch, 1, 2, 2] x) => (float[batch, 1, 4, 4] hidden)
            { hidden = Upsample<mode = "nearest">(x, scales) }"""
        )
        new = head(20) + "m (float[batch, 1, 2, 2] x) => (float[batch, 1, 4, 4] hidden) { hidden = Resize(x, , scales) }"
        scales = {"scales": np.array([1, 1, 2, 2], np.float32)}
        files = [write_model("old", text, scales), write_model("new", new, scales)]
        assert_weighted_sum(fuse_files(files), files)
        assert caplog.records == []

    def test_conversion_that_fails(self, write_linear: WriteModel, write_model: WriteModel, caplog):
        """The plan takes the newest opset; by hand one can be asked for that has no Gelu yet."""
        gelu = write_model("b", classifier("h = MatMul(x, w) logits = Gelu(h)", opset=20), {"w": MATRIX})
        plan = replace(plan_fusion([write_linear("a", opset=19), gelu]), opset=19)
        reason = "because of its node 'logits' (Gelu): No Previous Version of Gelu exists"
        message = f"b has opset 20 and cannot be converted to 19, {reason}: export it again with opset 19"
        with pytest.raises(FusionError, match=f"^{re.escape(message)}$"):
            build_graph(plan)
        assert caplog.records == []

    def test_two_versions_of_a_custom_domain(self, write_model: WriteModel, fuse_files: FuseFiles):
        body = "s = ai.onnx.ml.Scaler<offset = [0.5], scale = [2.0]>(x) logits = MatMul(s, w)"
        text = classifier(body, extra_imports=', "ai.onnx.ml": %d')
        files = [write_model(f"v{version}", text % version, {"w": MATRIX}) for version in (1, 3)]
        with pytest.raises(FusionError, match=r"v3 needs version 3 of the operators 'ai\.onnx\.ml', another member version 1"):
            fuse_files(files)

    def test_an_unused_custom_domain_hinders_nobody(
        self, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum
    ):
        text = classifier("logits = MatMul(x, w)", extra_imports=', "ai.onnx.ml": %d')
        files = [write_model(f"v{version}", text % version, {"w": MATRIX}) for version in (1, 3)]
        assert_weighted_sum(fuse_files(files), files)

    def test_the_default_domain_by_its_long_name(
        self, write_linear: WriteModel, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum
    ):
        body = "r = Reshape(x, shape) s = Softmax<axis = 1>(r) f = Flatten(s) logits = MatMul(f, w)"
        proto = onnx.parser.parse_model(classifier(body, opset=12))
        proto.opset_import[0].domain = "ai.onnx"
        files = [write_model("long", proto, {"w": MATRIX, "shape": np.array([-1, 2, 2])}), write_linear("short")]
        assert_weighted_sum(fuse_files(files), files)


class TestNames:
    def test_equal_names_everywhere(self, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum):
        body = "[same] h = MatMul(x, w) [same2] r = Relu(h) [last] logits = Add(r, b)"
        files = [
            write_model(f"m{index}", classifier(body), {"w": MATRIX * index, "b": np.full(3, index, np.float32)})
            for index in (1, 2, 3)
        ]
        fused = fuse_files(files)
        assert_weighted_sum(fused, files)
        names = [node.name for node in onnx.load(fused.file.path).graph.node]
        assert len(set(names)) == len(names)
        assert {name.split("/")[0] for name in names} == {"m1", "m2", "m3", "fusion"}

    def test_nodes_without_names_get_their_members_name(self, write_linear: WriteModel, fuse_files: FuseFiles):
        fused = fuse_files([write_linear("a"), write_linear("b", seed=1)], share=False)
        names = [node.name for node in onnx.load(fused.file.path).graph.node]
        assert names[:2] == ["a/Gemm_0", "b/Gemm_0"]

    def test_input_of_one_is_called_like_a_weight_of_the_other(
        self, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum
    ):
        a = head() + "m (float[batch, 4] w) => (float[batch, 3] y) { y = MatMul(w, x) }"
        b = head() + "m (float[batch, 4] x) => (float[batch, 3] y) { y = MatMul(x, w) }"
        files = [write_model("a", a, {"x": MATRIX}), write_model("b", b, {"w": MATRIX * 3})]
        assert_weighted_sum(fuse_files(files), files)

    def test_output_is_called_like_the_shared_input(
        self, write_linear: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum
    ):
        files = [
            write_linear("a", input_name="logits", output_name="y"),
            write_linear("b", seed=1, input_name="y", output_name="logits"),
        ]
        fused = fuse_files(files)
        assert_weighted_sum(fused, files)

    @pytest.mark.parametrize("input_name", ["b/y", "b//y", "a/h", "fusion/Sum_2_output"])
    def test_shared_input_is_called_like_something_inside(
        self, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum, input_name: str
    ):
        files = []
        for name in "ab":
            proto = onnx.parser.parse_model(classifier("y = Relu(x) logits = MatMul(y, w)"))
            proto.graph.input[0].name = proto.graph.node[0].input[0] = input_name
            files.append(write_model(name, proto, {"w": MATRIX * (2 if name == "b" else 1)}))
        assert_weighted_sum(fuse_files(files), files)

    @pytest.mark.parametrize("name", ["fusion", "monograph", "logits", "x"])
    def test_member_files_with_awkward_names(
        self, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum, name: str
    ):
        proto = onnx.parser.parse_model(classifier("y = Relu(x) logits = MatMul(y, w)"))
        renamed = {"w": "weight/other", "y": "Mul_0_output"}
        for node in proto.graph.node:
            node.input[:] = [renamed.get(value, value) for value in node.input]
            node.output[:] = [renamed.get(value, value) for value in node.output]
        awkward = write_model(name, proto, {"weight/other": MATRIX})
        files = [awkward, write_model("other", classifier("logits = MatMul(x, w)"), {"w": MATRIX})]
        assert_weighted_sum(fuse_files(files), files)

    def test_weights_that_are_already_called_like_the_members(
        self, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum
    ):
        """As in a fusion of a fusion: ``b/w`` becomes ``a/b/w``, a name that another weight gives up only afterwards."""
        body = "h = MatMul(x, one) y = Add(h, two) logits = Add(y, three)"
        files = []
        for name, scale in (("a", 1), ("b", 2)):
            proto = onnx.parser.parse_model(classifier(body))
            for node, own in zip(proto.graph.node, ("w", "a/w", "a/a/w"), strict=True):
                node.input[1] = own
            arrays = {"w": MATRIX * scale, "a/w": MATRIX[0], "a/a/w": MATRIX[1]}
            files.append(write_model(name, proto, arrays))
        assert_weighted_sum(fuse_files(files), files)

    def test_fusion_of_a_fusion_of_files_of_the_same_names(
        self, write_linear: WriteModel, tmp_path: Path, assert_weighted_sum: AssertWeightedSum
    ):
        a, b = write_linear("a"), write_linear("b", seed=1)
        inner = fuse(plan_fusion([a, b], share=False), tmp_path / "inner" / "a.onnx")
        middle = fuse(plan_fusion([inner.file, b], share=False), tmp_path / "middle" / "a.onnx")
        outer = fuse(plan_fusion([middle.file, b], share=False), tmp_path / "outer" / "a.onnx")
        assert_weighted_sum(outer, [middle.file, b])
        names = {tensor.name for tensor in onnx.load(outer.file.path).graph.initializer}
        assert {"a/a/a/w", "a/a/b/w", "a/b/w", "b/w"} <= names

    def test_the_same_file_twice(self, write_linear: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum):
        file = write_linear("a")
        fused = fuse_files([file, file])
        assert [member.name for member in fused.plan.members] == ["a", "a-2"]
        assert_weighted_sum(fused, [file, file])

    def test_symbols_of_one_name_that_mean_different_things(
        self, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum
    ):
        body = "{ t = Transpose<perm = [1, 0, 2]>(x) u = Transpose<perm = [1, 0, 2]>(t) hidden = MatMul(u, w) }"
        a = head() + "m (float[s0, s1, 4] x) => (float[s0, s1, 3] hidden) <float[s1, s0, 4] t>" + body
        b = head() + "m (float[s1, s0, 4] x) => (float[s1, s0, 3] hidden) <float[s0, s1, 4] t>" + body
        files = [write_model("a", a, {"w": MATRIX}), write_model("b", b, {"w": -MATRIX})]
        fused = fuse_files(files, weights=(0.3, 0.7), share=False)
        assert fused.file.contract.inputs[0].shape == ("s0", "s1", 4)
        dims = {
            value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in onnx.load(fused.file.path).graph.value_info
        }
        assert dims["a/t"] == dims["b/t"] == ["s1", "s0", 4]
        assert_weighted_sum(fused, files)

    @pytest.mark.parametrize("dim", ["2*s0", "floor(s0/2) + 1", "batch size", "unk__12", "a/b", "7x", "batch-size"])
    def test_dimensions_of_any_name(
        self, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum, dim: str
    ):
        files = []
        for name in "ab":
            proto = onnx.parser.parse_model(classifier("y = Relu(x) logits = MatMul(y, w)"))
            proto.graph.value_info.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [dim, 4]))
            for value in (*proto.graph.input, *proto.graph.output):
                value.type.tensor_type.shape.dim[0].dim_param = dim
            files.append(write_model(name, proto, {"w": MATRIX * (2 if name == "b" else 1)}))
        fused = fuse_files(files)
        assert fused.file.contract.inputs[0].shape == (dim, 4)
        assert_weighted_sum(fused, files)


BRANCHES = """
    total = ReduceSum<keepdims = 0>(x)
    positive = Greater(total, zero)
    h = If (positive) <
        then_branch = yes () => (float[n, 3] t) { m = MatMul(x, w) t = Add(m, b) },
        else_branch = no () => (float[n, 3] e) <float[3] inner = {1.0, 2.0, 3.0}> { m = MatMul(x, w) e = Sub(m, inner) }
    >
    logits = Mul(h, two)
"""
LOOP = """
    logits = Loop (trips, keep, start) <
        body = step (int64 i, bool c, float[n, 3] acc) => (bool go, float[n, 3] next)
        { go = Identity(c) m = MatMul(x, w) f = Cast<to = 1>(i) k = Mul(m, f) next = Add(acc, k) }
    >
"""
SCAN = """
    cols = Transpose<perm = [1, 0]>(x)
    last, all = Scan (start, cols) <num_scan_inputs = 1,
        body = step (float[n] acc, float[n] col) => (float[n] next, float[n] out)
        { t = Mul(col, two) next = Add(acc, t) out = Identity(next) }
    >
    back = Transpose<perm = [1, 0]>(all)
    logits = MatMul(back, w)
"""


class TestControlFlow:
    def test_branches_that_capture_weights_and_the_shared_input(
        self, write_linear: WriteModel, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum
    ):
        body = BRANCHES
        arrays = {"w": MATRIX, "b": np.ones(3, np.float32), "zero": np.float32(0), "two": np.float32(2)}
        files = [
            write_model("a", classifier(body), arrays),
            write_model("b", classifier(body, opset=17), arrays | {"b": np.full(3, 5, np.float32), "w": -MATRIX}),
            write_linear("c"),
        ]
        fused = fuse_files(files)
        for sign in (1, -1):
            rows = sign * np.abs(np.random.default_rng(0).standard_normal((5, 4))).astype(np.float32)
            (got,) = open_session(fused.file.path)({"x": rows}).values()
            expected = sum(open_session(file.path)({"x": rows})["logits"] / 3 for file in files)
            np.testing.assert_allclose(got, expected, atol=1e-5)
        assert_weighted_sum(fused, files)

    @pytest.mark.parametrize("opset", [11, 13, 17, 20])
    def test_loop(
        self, write_linear: WriteModel, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum, opset: int
    ):
        arrays = {"w": MATRIX, "trips": np.array(4), "keep": np.array(True), "start": np.zeros((1, 3), np.float32)}
        files = [write_model("a", classifier(LOOP, opset=opset), arrays, checked=False), write_linear("b")]
        assert_weighted_sum(fuse_files(files), files)

    def test_scan(self, write_linear: WriteModel, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum):
        text = head() + f"m (float[5, 4] x) => (float[5, 3] logits) {{ {SCAN} }}"
        arrays = {"w": MATRIX, "start": np.zeros(5, np.float32), "two": np.float32(2)}
        files = [write_model("a", text, arrays), write_linear("b")]
        fused = fuse_files(files)
        assert fused.file.contract.inputs[0].shape == (5, 4)
        assert_weighted_sum(fused, files)

    def test_branch_in_a_loop_in_a_function(
        self, write_linear: WriteModel, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum
    ):
        text = (
            '<ir_version: 8, opset_import: ["": 17, "local": 1]>'
            "m (float[batch, 4] x) => (float[batch, 3] logits) { logits = local.steps(x, w) }"
            """<domain: "local", opset_import: ["": 17, "local": 1]> steps (x, w) => (y) {
                trips = Constant<value = int64 {3}>()
                keep = Constant<value = bool {1}>()
                start = MatMul(x, w)
                y = Loop (trips, keep, start) <
                    body = step (int64 i, bool c, float[n, k] acc) => (bool go, float[n, k] next) {
                        go = Identity(c)
                        one = Constant<value = int64 {1}>()
                        first = Less(i, one)
                        d = If (first) <
                            then_branch = yes () => (float[n, k] t) { t = local.double(acc) },
                            else_branch = no () => (float[n, k] e) { e = Sub(acc, start) }
                        >
                        next = Identity(d)
                    }
                >
            }
            <domain: "local", opset_import: ["": 17]> double (v) => (u) { u = Add(v, v) }"""
        )
        files = [write_model("a", text, {"w": MATRIX}, checked=False), write_linear("b"), write_linear("c", opset=18)]
        fused = fuse_files(files)
        assert not onnx.load(fused.file.path).functions
        assert_weighted_sum(fused, files)

    def test_local_functions_of_one_name(
        self, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum
    ):
        text = (
            '<ir_version: 8, opset_import: ["": 18, "pkg": %d]>'
            "m (float[batch, 4] x) => (float[batch, 3] logits) { logits = pkg.layer<scale = 3.0>(x, w) }"
            '<domain: "pkg", opset_import: ["": 18]> layer <scale> (x, w) => (y) '
            "{ h = MatMul(x, w) k = Constant<value_float: float = @scale>() y = %s(h, k) }"
        )
        files = [
            write_model("a", text % (1, "Mul"), {"w": MATRIX}, checked=False),
            write_model("b", text % (2, "Sub"), {"w": MATRIX}, checked=False),
        ]
        assert_weighted_sum(fuse_files(files), files)

    def test_sequences_inside(
        self, write_linear: WriteModel, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum
    ):
        body = "s = SplitToSequence<axis = 1>(x, one) c = ConcatFromSequence<axis = 1>(s) logits = MatMul(c, w)"
        files = [write_model("a", classifier(body), {"w": MATRIX, "one": np.array(1)}), write_linear("b")]
        assert_weighted_sum(fuse_files(files), files)


class TestUnusualMembers:
    def test_output_that_is_also_read_inside(
        self, write_linear: WriteModel, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum
    ):
        text = (
            head()
            + """m (float[batch, 4] x) => (float[batch, 3] logits, float[batch, 3] p)
            { logits = MatMul(x, w) p = Softmax(logits) }"""
        )
        files = [write_model("a", text, {"w": MATRIX}), write_linear("b")]
        assert_weighted_sum(fuse_files(files), files)

    @pytest.mark.parametrize("body", ["{ hidden = Identity(x) }", "{ h = Relu(x) hidden = Identity(x) }"])
    def test_input_passed_through(
        self, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum, body: str
    ):
        text = head() + f"m (float[batch, 4] x) => (float[batch, 4] hidden) {body}"
        files = [
            write_model("a", text),
            write_model("b", head() + "m (float[batch, 4] x) => (float[batch, 4] hidden) { hidden = Relu(x) }"),
        ]
        assert_weighted_sum(fuse_files(files), files)
        assert_weighted_sum(fuse_files(files, weights=(1, 0)), files)

    def test_output_that_is_the_input(self, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum):
        text = head() + "m (float[batch, 4] x) => (float[batch, 4] x) { }"
        spec = TensorSpec("x", "float32", ("batch", 4))
        bare = write_model("bare", text, contract=Contract((spec,), (spec,), Kind.EMBEDDING), checked=False)
        other = write_model("b", head() + "m (float[batch, 4] x) => (float[batch, 4] hidden) { hidden = Relu(x) }")
        assert_weighted_sum(fuse_files([bare, other]), [bare, other])
        assert_weighted_sum(fuse_files([other, bare], weights=(0, 1)), [other, bare])

    def test_output_that_is_a_weight(
        self, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum
    ):
        text = head() + "m (float[2, 4] x) => (float[2, 4] hidden) { unused = Relu(x) }"
        constant = write_model("constant", text, {"hidden": np.arange(8, dtype=np.float32).reshape(2, 4)}, checked=False)
        other = write_model("b", head() + "m (float[2, 4] x) => (float[2, 4] hidden) { hidden = Relu(x) }")
        assert_weighted_sum(fuse_files([constant, other]), [constant, other])

    def test_fixed_batch_beside_a_dynamic_one(self, write_linear: WriteModel, fuse_files: FuseFiles, assert_weighted_sum):
        files = [write_linear("free"), write_linear("fixed", seed=1, batch=4)]
        fused = fuse_files(files)
        assert fused.file.contract.inputs[0].shape == (4, 4)
        assert fused.file.contract.output.shape == (4, 3)
        assert [batch.batch_size for batch in fused.proof.batches] == [4]
        assert_weighted_sum(fused, files)

    def test_left_out_inputs_and_outputs(
        self, write_linear: WriteModel, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum
    ):
        body = """c = Clip(x, , two) r = Reshape(c, shape) seq = Transpose<perm = [1, 0, 2]>(r)
            , hidden, = LSTM<hidden_size = 3>(seq, w, r3) f = Squeeze(hidden, zero) logits = Identity(f)"""
        rng = np.random.default_rng(0)
        arrays = {
            "two": np.float32(2),
            "zero": np.array([0]),
            "shape": np.array([-1, 2, 2]),
            "w": rng.standard_normal((1, 12, 2), dtype=np.float32),
            "r3": rng.standard_normal((1, 12, 3), dtype=np.float32),
        }
        files = [write_model("a", classifier(body), arrays), write_linear("b", opset=21)]
        assert_weighted_sum(fuse_files(files), files)

    @pytest.mark.parametrize("opset", [11, 17, 20])
    def test_operators_of_onnx_runtime(
        self, write_linear: WriteModel, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum, opset: int
    ):
        body = 'h = com.microsoft.FusedGemm<activation = "Relu">(x, w, b) logits = com.microsoft.Gelu(h)'
        text = classifier(body, opset=opset, extra_imports=', "com.microsoft": 1')
        files = [write_model("a", text, {"w": MATRIX, "b": MATRIX[0]}, checked=False), write_linear("b", opset=opset)]
        fused = fuse_files(files)
        imports = {entry.domain: entry.version for entry in onnx.load(fused.file.path).opset_import}
        assert imports == {"": max(opset, 15), "com.microsoft": 1}
        assert_weighted_sum(fused, files)

    def test_an_operator_of_onnx_runtime_beside_another_opset(
        self, write_linear: WriteModel, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum
    ):
        text = classifier("h = MatMul(x, w) logits = com.microsoft.Gelu(h)", opset=12, extra_imports=', "com.microsoft": 1')
        files = [write_model("a", text, {"w": MATRIX}, checked=False), write_linear("b", opset=20)]
        assert_weighted_sum(fuse_files(files), files)

    def test_quantised_member(
        self, write_linear: WriteModel, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum
    ):
        body = """xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z)
            wd = DequantizeLinear(w, ws, wz) h = MatMul(xd, wd)
            hq = QuantizeLinear(h, s, z) logits = DequantizeLinear(hq, s, z)"""
        arrays = {
            "s": np.float32(0.05),
            "z": np.uint8(128),
            "w": np.random.default_rng(0).integers(-127, 128, (4, 3)).astype(np.int8),
            "ws": np.float32(0.01),
            "wz": np.int8(0),
        }
        files = [write_model("a", classifier(body, opset=13), arrays), write_linear("b", opset=20)]
        assert_weighted_sum(fuse_files(files), files)

    def test_text_input(self, write_model: WriteModel, fuse_files: FuseFiles):
        text = (
            head()
            + """m (string[batch, 1] words) => (float[batch, 3] logits)
            { h = ai.onnx.ml.LabelEncoder<keys_strings = ["cat", "dog"], values_floats = [1.0, 2.0], default_float = %s>(words)
            logits = MatMul(h, w) }"""
        )
        text = text.replace("20]", '20, "ai.onnx.ml": 2]')
        head_row = {"w": np.array([[1, 2, 3]], np.float32)}
        files = [write_model(name, text % unknown, head_row) for name, unknown in (("a", "-1.0"), ("b", "-3.0"))]
        with pytest.raises(InputError, match="give --data"):
            fuse_files(files)
        words = np.array([["cat"], ["bird"], ["dog"]])
        fused = fuse_files(files, rows=Rows({"words": words}))
        got = open_session(fused.file.path)({"words": words})["logits"][:, 0]
        np.testing.assert_allclose(got, [1, -2, 2])

    def test_random_member_cannot_be_proven(self, write_linear: WriteModel, write_model: WriteModel, fuse_files: FuseFiles):
        text = classifier("h = MatMul(x, w) n = RandomNormalLike(h) logits = Add(h, n)")
        files = [write_linear("a"), write_model("b", text, {"w": MATRIX})]
        with pytest.raises(ParityError, match="nothing was written"):
            fuse_files(files)

    def test_masked_classes_at_minus_infinity(self, write_linear: WriteModel, write_model: WriteModel, fuse_files: FuseFiles):
        mask = np.array([0, -np.inf, 0], np.float32)
        files = [
            write_linear("a"),
            write_model("b", classifier("h = MatMul(x, w) logits = Add(h, m)"), {"w": MATRIX, "m": mask}),
        ]
        fused = fuse_files(files)
        (got,) = open_session(fused.file.path)({"x": np.ones((2, 4), np.float32)}).values()
        assert np.isneginf(got[:, 1]).all()
        assert np.isfinite(got[:, [0, 2]]).all()


class TestExternalData:
    def test_data_files_of_one_name(self, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum):
        text = classifier("h = MatMul(x, w) logits = Add(h, b)")
        files = [
            write_model(f"{name}/model", text, {"w": MATRIX * scale, "b": MATRIX[0] + scale}, external="model.onnx.data")
            for name, scale in (("one", 1), ("two", 2))
        ]
        fused = fuse_files(files)
        assert [member.name for member in fused.plan.members] == ["model", "model-2"]
        for file in files:
            assert (file.path.parent / "model.onnx.data").stat().st_size > 0
        assert_weighted_sum(fused, files)
        assert [path.name for path in fused.file.path.parent.iterdir()] == ["fused.onnx"]

    def test_through_version_conversion_and_in_branches(
        self, write_model: WriteModel, write_linear: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum
    ):
        wide = np.random.default_rng(0).standard_normal((4, 700), dtype=np.float32)
        text = classifier(
            """h = MatMul(x, w) r = Relu(h) m = MatMul(r, v)
            total = ReduceSum<keepdims = 0>(x) positive = Greater(total, zero)
            logits = If (positive) <
                then_branch = t () => (float[n, 3] p) <float[3] inner = {1.0, 2.0, 3.0}> { p = Add(m, inner) },
                else_branch = e () => (float[n, 3] q) { q = Sub(m, b) }
            >""",
            opset=12,
        )
        arrays = {"w": wide, "v": wide[:3].T.copy(), "b": MATRIX[0], "zero": np.float32(0)}
        files = [write_model("old", text, arrays, external="w.bin"), write_linear("new")]
        assert_weighted_sum(fuse_files(files), files, atol=1e-4)

    def test_a_fusion_too_large_for_one_file_gets_a_data_file(
        self, write_linear: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum, monkeypatch
    ):
        monkeypatch.setattr("monograph.models.onnx_file.LARGEST_INLINE_BYTES", 1000)
        files = [write_linear(f"m{seed}", seed=seed, features=64) for seed in range(2)]
        fused = fuse_files(files, share=False)
        assert len(list(fused.file.path.parent.iterdir())) == 2
        assert_weighted_sum(fused, files)


class TestWhatIsWritten:
    def test_contract_members_and_proof_travel_inside(self, write_linear: WriteModel, fuse_files: FuseFiles):
        files = [write_linear("a"), write_linear("b", seed=1)]
        fused = fuse_files(files, weights=(0.25, 0.75))
        metadata = read_onnx(fused.file.path).metadata
        assert Contract.from_json(metadata[CONTRACT_KEY]) == fused.plan.contract
        record = json.loads(metadata[FUSION_KEY])
        assert record["form"] == "logits"
        assert [(one["name"], one["file"], one["sha256"], one["weight"]) for one in record["members"]] == [
            ("a", "a.onnx", files[0].sha256, 0.25),
            ("b", "b.onnx", files[1].sha256, 0.75),
        ]
        proof = json.loads(metadata[PROOF_KEY])
        assert [batch["batch_size"] for batch in proof["batches"]] == [1, 2, 5, 16]
        assert max(batch["max_abs_error"] for batch in proof["batches"]) < 1e-5
        assert fused.node_count == len(onnx.load(fused.file.path).graph.node)

    def test_members_stay_as_they_were(self, write_linear: WriteModel, fuse_files: FuseFiles):
        files = [write_linear("a", opset=12), write_linear("b", seed=1)]
        before = [file.path.read_bytes() for file in files]
        fuse_files(files)
        assert [file.path.read_bytes() for file in files] == before

    def test_twice_gives_the_same_bytes(self, write_linear: WriteModel, tmp_path: Path):
        plan = plan_fusion([write_linear("a", opset=17), write_linear("b", seed=1)])
        for name in ("one", "two"):
            fuse(plan, tmp_path / name / "fused.onnx")
        assert (tmp_path / "one/fused.onnx").read_bytes() == (tmp_path / "two/fused.onnx").read_bytes()

    def test_a_failed_proof_leaves_the_old_file(self, write_linear: WriteModel, fuse_files: FuseFiles):
        fused = fuse_files([write_linear("a"), write_linear("b", seed=1)])
        before = fused.file.path.read_bytes()
        with pytest.raises(ParityError):
            fuse_files([write_linear("a"), write_linear("c", seed=2)], tolerance=-1)
        assert fused.file.path.read_bytes() == before


class TestRefusals:
    """What cannot be fused is told in one line; the fixture sees to it that nothing is written."""

    def test_member_that_fails_on_the_proofs_rows(self, write_linear: WriteModel, write_model: WriteModel, fuse_files: FuseFiles):
        text = classifier("r = Reshape(x, shape) logits = MatMul(r, w)")
        files = [write_linear("good"), write_model("baked", text, {"w": MATRIX, "shape": np.array([2, 4])}, checked=False)]
        with pytest.raises(FusionError, match=r"baked") as info:
            fuse_files(files)
        assert "\n" not in str(info.value)

    def test_member_that_onnx_runtime_cannot_load(self, write_linear: WriteModel, write_model: WriteModel, fuse_files: FuseFiles):
        text = classifier("h = MatMul(x, w) logits = nowhere.Op(h)", extra_imports=', "nowhere": 1')
        files = [write_linear("good"), write_model("odd", text, {"w": MATRIX}, checked=False)]
        with pytest.raises(SourceError, match=r"cannot load .*odd\.onnx"):
            fuse_files(files)

    def test_outputs_that_turn_out_to_differ(self, write_linear: WriteModel, write_model: WriteModel, fuse_files: FuseFiles):
        text = head() + "m (float[batch, 4] x) => (float[batch, c] logits) { logits = MatMul(x, w) }"
        files = [write_linear("three"), write_model("four", text, {"w": np.ones((4, 4), np.float32)})]
        with pytest.raises(FusionError, match=r"four gives .*\(1, 4\).*\(1, 3\)"):
            fuse_files(files)

    def test_one_class_is_not_broadcast(self, write_linear: WriteModel, write_model: WriteModel, fuse_files: FuseFiles):
        text = head() + "m (float[batch, 4] x) => (float[batch, c] logits) { logits = MatMul(x, w) }"
        files = [write_linear("three"), write_model("one", text, {"w": np.ones((4, 1), np.float32)})]
        with pytest.raises(FusionError, match=r"one gives"):
            fuse_files(files)

    def test_fewer_classes_than_named(self, write_linear: WriteModel, write_model: WriteModel, fuse_files: FuseFiles):
        text = head() + "m (float[batch, 4] x) => (float[batch, c] logits) { logits = MatMul(x, w) }"
        x = TensorSpec("x", "float32", ("batch", 4))
        three, some = (TensorSpec("logits", "float32", ("batch", classes)) for classes in (3, "c"))
        files = [
            write_linear("a", contract=Contract((x,), (three,), Kind.LOGITS, ("p", "q", "r"))),
            write_model("b", text, {"w": MATRIX[:, :2]}, contract=Contract((x,), (some,), Kind.LOGITS, ("r", "q", "p"))),
        ]
        with pytest.raises(FusionError, match=r"b gives"):
            fuse_files(files)

    @pytest.mark.parametrize("dtype", ["float8e5m2", "bfloat16", "complex64"])
    def test_exotic_inputs(self, write_model: WriteModel, fuse_files: FuseFiles, dtype: str):
        text = head() + f"m ({dtype}[batch, 4] x) => (float[batch, 4] hidden) {{ hidden = Cast<to = 1>(x) }}"
        files = [write_model(name, text, checked=False) for name in "ab"]
        with pytest.raises(InputError, match=r"'x'|x: "):
            fuse_files(files)

    @pytest.mark.parametrize("dtype", ["float8e5m2", "bfloat16", "int64", "bool"])
    def test_exotic_outputs(self, write_model: WriteModel, fuse_files: FuseFiles, dtype: str):
        to = {"float8e5m2": 19, "bfloat16": 16, "int64": 7, "bool": 9}[dtype]
        text = head() + f"m (float[batch, 4] x) => ({dtype}[batch, 4] hidden) {{ hidden = Cast<to = {to}>(x) }}"
        files = [write_model(name, text) for name in "ab"]
        with pytest.raises(FusionError, match=r"a gives hidden: .* only float outputs can be fused"):
            fuse_files(files)

    def test_local_function_of_another_opset(self, write_linear: WriteModel, write_model: WriteModel, fuse_files: FuseFiles):
        text = (
            '<ir_version: 8, opset_import: ["": 20, "pkg": 1]>'
            "m (float[batch, 4] x) => (float[batch, 3] logits) { logits = pkg.layer(x, w) }"
            '<domain: "pkg", opset_import: ["": 17]> layer (x, w) => (y) { y = MatMul(x, w) }'
        )
        files = [write_linear("a"), write_model("b", text, {"w": MATRIX}, checked=False)]
        with pytest.raises(
            FusionError, match=r"^b cannot be taken into another graph: .* version 17 .*; export it again, for opset 20$"
        ):
            fuse_files(files)

    def test_operator_that_the_converter_converts_wrongly(self, write_model: WriteModel, fuse_files: FuseFiles):
        """Resize of opset 10 placed its pixels otherwise than that of 11 does by default: the proof must see it."""
        signature = "m (float[batch, 1, 2, 2] x) => (float[batch, 1, 4, 4] hidden) "
        scales = {"s": np.array([1, 1, 2, 2], np.float32)}
        files = [
            write_model("old", head(10) + signature + '{ hidden = Resize<mode = "linear">(x, s) }', scales),
            write_model("new", head(21) + signature + '{ hidden = Resize<mode = "linear">(x, , s) }', scales),
        ]
        with pytest.raises(ParityError, match="does not compute the same as the members run apart"):
            fuse_files(files)


class TestFit:
    @pytest.fixture
    def rows(self) -> Rows:
        rng = np.random.default_rng(0)
        return Rows({"x": rng.standard_normal((60, 4)).astype(np.float32)}, rng.integers(0, 3, 60))

    def test_weights_end_in_the_graph(
        self, write_linear: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum, rows: Rows
    ):
        files = [write_linear(f"m{seed}", seed=seed) for seed in range(3)]
        fit = fit_fusion(files, [rows] * 3)
        assert fit.rows_sha256 == rows.sha256()
        fused = fuse_files(files, fit=fit)
        assert [member.weight for member in fused.plan.members] == pytest.approx(fit.weights)
        assert json.loads(fused.file.metadata[FUSION_KEY])["fit"]["row_count"] == 60
        assert_weighted_sum(fused, files)
        logits = open_session(fused.file.path)(rows.inputs)["logits"].astype(np.float64)
        got_nll = -np.mean(log_softmax(logits, axis=1)[np.arange(60), rows.required_labels()])
        assert got_nll == pytest.approx(fit.loss, abs=1e-5)

    def test_probabilities(self, write_linear: WriteModel, fuse_files: FuseFiles, rows: Rows):
        files = [write_linear(f"m{seed}", seed=seed) for seed in range(2)]
        fit = fit_fusion(files, [rows] * 2, combine="probs")
        fused = fuse_files(files, fit=fit, combine="probs")
        probabilities = open_session(fused.file.path)(rows.inputs)["probabilities"]
        got_nll = -np.mean(np.log(probabilities[np.arange(60), rows.required_labels()]))
        assert got_nll == pytest.approx(fit.loss, abs=1e-5)

    def test_labels_are_counted_as_the_fused_classes(self, write_linear: WriteModel, rows: Rows):
        """The first member names no classes, the second does: its numbering of the labels is the fused one's."""
        specs = (TensorSpec("x", "float32", ("batch", 4)),), (TensorSpec("logits", "float32", ("batch", 3)),)
        plain = [write_linear(f"m{seed}", seed=seed) for seed in range(2)]
        named = write_linear("named", seed=1, contract=Contract(*specs, Kind.LOGITS, ("r", "q", "p")))
        turned = Rows(rows.inputs, 2 - rows.required_labels())
        assert fit_fusion([plain[0], named], [rows, turned]).weights == fit_fusion(plain, [turned, turned]).weights

    def test_rows_without_labels(self, write_linear: WriteModel, rows: Rows):
        bare = Rows(rows.inputs)
        with pytest.raises(DataError, match="no labels"):
            fit_fusion([write_linear("a"), write_linear("b")], [bare, bare])

    def test_labels_of_other_classes(self, write_linear: WriteModel, rows: Rows):
        more = Rows(rows.inputs, rows.required_labels() + 1, origin="rows.npz")
        with pytest.raises(DataError, match=r"rows.npz: labels run from 1 to 3, but a has 3 classes, counted from 0"):
            fit_fusion([write_linear("a"), write_linear("b")], [more, more])

    def test_one_output_per_token(self, write_model: WriteModel, rows: Rows):
        text = head() + "m (float[batch, 4] x) => (float[batch, s, 2] logits) { logits = Reshape(x, shape) }"
        file = write_model("a", text, {"shape": np.array([-1, 2, 2])})
        with pytest.raises(FusionError, match=r"a gives an array of shape \(60, 2, 2\) for 60 labels"):
            fit_fusion([file, file], [rows, rows])

    def test_classes_that_turn_out_to_differ(self, write_linear: WriteModel, write_model: WriteModel, rows: Rows):
        text = head() + "m (float[batch, 4] x) => (float[batch, c] logits) { logits = Relu(x) }"
        with pytest.raises(FusionError, match=r"different numbers of classes \(three 3, four 4\)"):
            fit_fusion([write_linear("three"), write_model("four", text)], [rows, rows])


def test_the_graph_reads_back_as_onnx_ir(write_linear: WriteModel, fuse_files: FuseFiles):
    fused = fuse_files([write_linear("a"), write_linear("b", seed=1)])
    model = ir.load(fused.file.path)
    assert model.producer_name == "monograph"
    assert model.graph.name == "monograph"
