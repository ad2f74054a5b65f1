from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from monograph.export.fusion import Fused, plan_fusion
from monograph.export.fusion.build import build_graph
from monograph.export.fusion.sharing import share_subgraphs
from monograph.models.onnx_file import OnnxFile
from monograph.runtime.session import open_session

WriteModel = Callable[..., OnnxFile]
FuseFiles = Callable[..., Fused]
AssertWeightedSum = Callable[..., None]
RNG = np.random.default_rng(3)
TRUNK = {"w1": RNG.standard_normal((4, 6), dtype=np.float32), "b1": RNG.standard_normal(6, dtype=np.float32)}
HEADS = [{"w2": RNG.standard_normal((6, 3), dtype=np.float32), "b2": RNG.standard_normal(3, dtype=np.float32)} for _ in range(4)]
GEMM = "logits = Gemm(r, w2, b2)"


def classifier(body: str) -> str:
    return f'<ir_version: 8, opset_import: ["": 20]> m (float[batch, 4] x) => (float[batch, 3] logits) {{ {body} }}'


def mlp(trunk: str = "h = Gemm(x, w1, b1) r = Relu(h)", head: str = GEMM) -> str:
    return classifier(f"{trunk} {head}")


def operators(fused: Fused) -> list[str]:
    return [node.op_type for node in onnx.load(fused.file.path).graph.node]


def weight_count(fused: Fused) -> int:
    return len(onnx.load(fused.file.path).graph.initializer)


class TestEqualMembers:
    def test_two_equal_members_are_one(
        self, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum
    ):
        text = mlp(head="s = Sigmoid(r) z = MatMul(s, w2) y = Add(z, b2) logits = Tanh(y)")
        files = [write_model(name, text, TRUNK | HEADS[0]) for name in ("a", "b")]
        fused = fuse_files(files)
        assert operators(fused) == ["Gemm", "Relu", "Sigmoid", "MatMul", "Add", "Tanh", "Mul", "Add"]
        assert weight_count(fused) == 5
        assert_weighted_sum(fused, files)
        x = RNG.standard_normal((7, 4)).astype(np.float32)
        (one,), (both,) = (open_session(file.path)({"x": x}).values() for file in (files[0], fused.file))
        np.testing.assert_allclose(both, one, atol=1e-6, rtol=0)

    def test_members_stay_apart_without_sharing(
        self, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum
    ):
        files = [write_model(name, mlp(), TRUNK | HEADS[0]) for name in ("a", "b")]
        fused = fuse_files(files, share=False)
        assert operators(fused).count("Gemm") == 4
        assert weight_count(fused) == 10
        assert_weighted_sum(fused, files)

    def test_large_weights_in_external_files_are_stored_once(self, write_model: WriteModel, fuse_files: FuseFiles):
        arrays = TRUNK | HEADS[0] | {"w1": np.ones((4, 6), np.float32), "table": RNG.random((40_000, 3), dtype=np.float32)}
        body = (
            "h = Gemm(x, w1, b1) r = Relu(h) g = Gemm(r, w2, b2) i = ArgMax<axis = 1, keepdims = 0>(g) logits = Gather(table, i)"
        )
        files = [write_model(name, classifier(body), arrays, external=f"{name}.bin") for name in ("a", "b")]
        shared = fuse_files(files)
        assert shared.file.size_bytes < 1.05 * arrays["table"].nbytes

    def test_what_was_saved_is_told_and_provenance_kept(self, write_model: WriteModel):
        text = mlp(head="s = Sigmoid(r) logits = Gemm(s, w2, b2)")
        files = [write_model(f"m{number}", text, TRUNK | HEADS[number]) for number in range(2)]
        model, sharing = build_graph(plan_fusion(files))
        assert (sharing.nodes_before, sharing.nodes_after) == (11, 4)
        assert (sharing.weights_before, sharing.weights_after) == (10, 4)
        assert sharing.bytes_after == sum(value.nbytes for value in (*TRUNK.values(), *HEADS[0].values()))
        assert sharing.heads_folded == 2
        assert "11 to 4 nodes" in sharing.describe()
        first = model.graph[0]
        assert first.name == "m0/Gemm_0"
        assert first.metadata_props["monograph.members"] == "m0,m1"


class TestHeads:
    @pytest.mark.parametrize(
        "head",
        [
            GEMM,
            "z = MatMul(r, w2) logits = Add(z, b2)",
            "z = MatMul(r, w2) logits = Add(b2, z)",
            "logits = Gemm<alpha = 0.5, beta = 2.0>(r, w2, b2)",
            "logits = MatMul(r, w2)",
        ],
    )
    def test_four_heads_on_one_trunk_are_one_layer(
        self, head: str, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum
    ):
        files = [write_model(f"m{number}", mlp(head=head), TRUNK | HEADS[number]) for number in range(4)]
        fused = fuse_files(files, weights=(0.1, 0.2, 0.3, 0.4))
        assert operators(fused)[:2] == ["Gemm", "Relu"]
        assert operators(fused)[2:] in (["Gemm"], ["MatMul", "Add"])
        assert_weighted_sum(fused, files)

    def test_temperatures_are_folded_in(self, write_model: WriteModel, fuse_files: FuseFiles):
        files = [write_model(f"m{number}", mlp(), TRUNK | HEADS[number]) for number in range(3)]
        fused = fuse_files(files, temperatures=(1.0, 2.0, 0.5))
        assert operators(fused) == ["Gemm", "Relu", "Gemm"]

    def test_probabilities_are_not_folded(
        self, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum
    ):
        files = [write_model(f"m{number}", mlp(), TRUNK | HEADS[number]) for number in range(2)]
        fused = fuse_files(files, combine="probs")
        assert operators(fused).count("Gemm") == 3
        assert_weighted_sum(fused, files)

    def test_heads_on_different_trunks_are_not_folded(
        self, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum
    ):
        trunks = [TRUNK, TRUNK | {"b1": TRUNK["b1"] + 1}]
        files = [write_model(f"m{number}", mlp(), trunks[number] | HEADS[number]) for number in range(2)]
        fused = fuse_files(files)
        assert operators(fused).count("Gemm") == 4
        assert_weighted_sum(fused, files)


class TestCanonicalForms:
    def test_default_settings_copies_constants_and_the_order_of_operands(
        self, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum
    ):
        signature = "m (float[batch, 1, 6, 6] x) => (float[batch, 4] logits)"
        head = f'<ir_version: 8, opset_import: ["": 20]> {signature}'
        plain = "c = Conv(x, k) s = Add(c, one) g = GlobalAveragePool(s) f = Flatten(g) logits = Relu(f)"
        wordy = """one = Constant<value = float {1.0}>() i = Identity(x)
            c = Conv<auto_pad = "NOTSET", dilations = [1, 1], group = 1,
            kernel_shape = [3, 3], pads = [0, 0, 0, 0], strides = [1, 1]>(i, k)
            s = Add(one, c) g = GlobalAveragePool(s) f = Flatten<axis = 1>(g) logits = Relu(f)"""
        kernel = {"k": RNG.standard_normal((4, 1, 3, 3), dtype=np.float32)}
        files = [
            write_model("plain", f"{head} {{ {plain} }}", kernel | {"one": np.array(1, np.float32)}),
            write_model("wordy", f"{head} {{ {wordy} }}", kernel),
        ]
        fused = fuse_files(files)
        assert operators(fused) == ["Conv", "Add", "GlobalAveragePool", "Flatten", "Relu", "Mul", "Add"]
        assert_weighted_sum(fused, files)

    def test_other_settings_and_another_order_of_a_difference_stay_apart(
        self, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum
    ):
        heads = ("l = LeakyRelu<alpha = 0.1>(y) logits = Sub(y, l)", "l = LeakyRelu<alpha = 0.2>(y) logits = Sub(l, y)")
        arrays = {"w": TRUNK["w1"][:, :3]}
        files = [write_model(f"m{n}", classifier(f"y = MatMul(x, w) {text}"), arrays) for n, text in enumerate(heads)]
        fused = fuse_files(files)
        assert operators(fused).count("MatMul") == 1
        assert operators(fused).count("LeakyRelu") == operators(fused).count("Sub") == 2
        assert_weighted_sum(fused, files)


class TestWhatMustStayApart:
    def test_random_operators(self, write_model: WriteModel):
        noise = "n = RandomNormalLike<seed = 1.0>(y) logits = Add(y, n)"
        files = [write_model(n, classifier(f"y = MatMul(x, w) {noise}"), {"w": TRUNK["w1"][:, :3]}) for n in "ab"]
        types = [node.op_type for node in build_graph(plan_fusion(files))[0].graph]
        assert types.count("MatMul") == 1
        assert (types.count("RandomNormalLike"), types.count("Add")) == (2, 3), "the fusion adds once itself"

    def test_operators_of_unknown_domains(self):
        x = ir.val("x", dtype=ir.DataType.FLOAT, shape=ir.Shape(["b"]))
        nodes = [ir.node("Guess", [x], domain="mine", name=f"{name}/guess") for name in "ab"]
        total = ir.node("Add", [node.outputs[0] for node in nodes], name="fusion/Add_0")
        graph = ir.Graph([x], total.outputs, nodes=[*nodes, total], opset_imports={"": 20, "mine": 1}, name="g")
        share_subgraphs(ir.Model(graph, ir_version=8))
        assert [node.op_type for node in graph] == ["Guess", "Guess", "Add"]


BRANCH_ARRAYS = {"w": TRUNK["w1"][:, :3], "zero": np.array(0, np.float32)}


class TestBranches:
    BODY = """s = ReduceSum<keepdims = 0>(x) many = Greater(s, zero) y = MatMul(x, w)
        logits = If (many) <
            then_branch = yes () => (float[n, 3] t) { c = Constant<value = float {2.0}>() r = Relu(y) t = Mul(r, c) },
            else_branch = no () => (float[n, 3] u) { c = Constant<value = float {3.0}>() r = Relu(y) u = Mul(r, c) }
        >"""

    def test_constants_of_one_name_in_two_branches(
        self, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum
    ):
        files = [write_model(name, classifier(self.BODY), BRANCH_ARRAYS) for name in ("a", "b")]
        fused = fuse_files(files)
        assert operators(fused).count("MatMul") == 1
        assert_weighted_sum(fused, files)

    def test_a_branch_reads_what_was_computed_before_it(
        self, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum
    ):
        before = write_model("before", classifier("y = MatMul(x, w) r = Relu(y) logits = Tanh(r)"), {"w": BRANCH_ARRAYS["w"]})
        files = [before, write_model("branch", classifier(self.BODY), BRANCH_ARRAYS)]
        fused = fuse_files(files)
        branches = [a.g for node in onnx.load(fused.file.path).graph.node for a in node.attribute if a.HasField("g")]
        assert [[node.op_type for node in branch.node] for branch in branches] == [["Mul"], ["Mul"]]
        assert_weighted_sum(fused, files)

    def test_what_only_branches_compute_is_not_read_from_outside(
        self, write_model: WriteModel, fuse_files: FuseFiles, assert_weighted_sum: AssertWeightedSum
    ):
        after = write_model("after", classifier("y = MatMul(x, w) r = Relu(y) logits = Tanh(r)"), {"w": BRANCH_ARRAYS["w"]})
        files = [write_model("branch", classifier(self.BODY), BRANCH_ARRAYS), after]
        fused = fuse_files(files)
        assert operators(fused).count("Relu") == 1
        assert_weighted_sum(fused, files)
