from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monograph.errors import DataError, ParityError, WorkerError
from monograph.export.parity import TOLERANCE, prove_parity
from monograph.models.contract import Contract, Kind, TensorSpec
from monograph.models.data.rows import Rows

Array = npt.NDArray[Any]
Batch = Mapping[str, Array]

X = TensorSpec("x", "float32", ("batch", 4))
Y = TensorSpec("logits", "float32", ("batch", 3))
CONTRACT = Contract((X,), (Y,), Kind.LOGITS)
WEIGHTS = np.random.default_rng(0).standard_normal((4, 3))
NAMES = ("the old", "the new")


def linear(batch: Batch) -> dict[str, Array]:
    return {"logits": batch["x"] @ WEIGHTS}


def prove(
    candidate: Callable[[Batch], Batch],
    reference: Callable[[Batch], Batch] = linear,
    contract: Contract = CONTRACT,
    **options: Any,
):
    return prove_parity(reference, candidate, contract, names=NAMES, **options)


def constant(values: object) -> Callable[[Batch], dict[str, Array]]:
    """The same row for every row of the batch."""
    row = np.asarray(values, np.float64)
    return lambda batch: {"logits": np.repeat(row[None], len(batch["x"]), axis=0)}


class TestEqual:
    def test_at_every_batch_size(self):
        proof = prove(linear)
        assert [batch.batch_size for batch in proof.batches] == [1, 2, 5]
        assert {batch.max_abs_error for batch in proof.batches} == {0.0}
        assert {batch.top1_agreement for batch in proof.batches} == {1.0}
        assert {batch.rows for batch in proof.batches} == {"random"}
        assert min(batch.cosine for batch in proof.batches) == pytest.approx(1)
        assert (proof.reference, proof.candidate, proof.tolerance) == (*NAMES, TOLERANCE)

    def test_description_names_the_worst_batch(self):
        proof = prove(lambda batch: {"logits": linear(batch)["logits"] + (len(batch["x"]) == 2) * 1e-6})
        assert proof.worst.batch_size == 2
        assert proof.describe() == (
            f"equal at batch 1, 2, 5 on random rows: max abs error 1e-06 (scale {proof.worst.scale:.3g}), "
            "cosine 1.0000000, top-1 agreement 100%"
        )

    def test_same_numbers_in_another_dtype(self):
        prove(lambda batch: {"logits": linear(batch)["logits"].astype(np.float32)})

    def test_other_batch_sizes_on_request(self):
        assert [batch.batch_size for batch in prove(linear, batch_sizes=(3, 8)).batches] == [3, 8]

    def test_seed_repeats_the_rows(self):
        seen: dict[int, list[Array]] = {0: [], 1: []}
        for seed in (0, 0, 1):
            prove(lambda batch, seed=seed: (seen[seed].append(batch["x"]), linear(batch))[1], seed=seed)
        np.testing.assert_array_equal(np.concatenate(seen[0][:3]), np.concatenate(seen[0][3:]))
        assert not np.array_equal(np.concatenate(seen[0][:3]), np.concatenate(seen[1]))

    def test_both_get_the_same_rows(self):
        prove(lambda batch: {"logits": batch["x"]}, lambda batch: {"logits": batch["x"].copy()})

    def test_zeros(self):
        proof = prove(constant([0, 0, 0]), constant([0, 0, 0]))
        assert (proof.worst.scale, proof.worst.relative_error, proof.worst.cosine) == (0.0, 0.0, 1.0)

    def test_empty_outputs(self):
        contract = Contract((X,), (TensorSpec("logits", "float32", ("batch", "c")),), Kind.LOGITS)
        empty: Callable[[Batch], Batch] = lambda batch: {"logits": np.zeros((len(batch["x"]), 0))}  # noqa: E731
        assert prove(empty, empty, contract).worst.top1_agreement is None

    @given(scale=st.floats(1e-6, 1e6), share=st.floats(0, 2))
    @settings(max_examples=30, deadline=None)
    def test_tolerance_is_a_share_of_the_references_scale(self, scale: float, share: float):
        """Two classes fixed at ±scale; the candidate is off by ``share`` of what is allowed."""
        old, new = constant([scale, -scale, 0]), constant([scale, -scale + share * TOLERANCE * scale, 0])
        if abs(share - 1) < 1e-6:
            return
        if share < 1:
            assert prove(new, old).worst.relative_error == pytest.approx(share * TOLERANCE, rel=1e-6)
        else:
            with pytest.raises(ParityError):
                prove(new, old)


class TestNotEqual:
    def test_just_above_the_tolerance(self):
        old = constant([100, 0, 0])
        assert prove(constant([100, 0.0099, 0]), old).worst.relative_error == pytest.approx(9.9e-5)
        with pytest.raises(ParityError) as info:
            prove(constant([100, 0.0101, 0]), old)
        assert str(info.value) == (
            "the new does not compute the same as the old: output 'logits' at batch 1 on random rows differs by 0.0101, "
            "allowed 0.0001 of 100; nothing was written"
        )
        assert info.value.exit_code == 1

    def test_looser_and_tighter_tolerance(self):
        old, new = constant([1, 0, 0]), constant([1, 1e-3, 0])
        with pytest.raises(ParityError):
            prove(new, old)
        prove(new, old, tolerance=2e-3)
        with pytest.raises(ParityError):
            prove(constant([1, 1e-7, 0]), old, tolerance=1e-8)

    def test_a_change_at_one_batch_size_only(self):
        with pytest.raises(ParityError, match="at batch 5 "):
            prove(lambda batch: {"logits": linear(batch)["logits"] + (len(batch["x"]) == 5)})

    def test_a_change_in_the_last_row_only(self):
        def off(batch: Batch) -> Batch:
            logits = linear(batch)["logits"]
            logits[-1] += len(logits) > 1
            return {"logits": logits}

        with pytest.raises(ParityError, match="at batch 2 "):
            prove(off)

    @pytest.mark.parametrize(
        "reshape", [lambda y: y[:, :2], lambda y: y[:, None], lambda y: np.concatenate([y, y]), lambda y: y.T, lambda y: y[:0]]
    )
    def test_another_shape(self, reshape: Callable[[Array], Array]):
        with pytest.raises(ParityError, match=r"has shape \(.*\), expected \(1, 3\); nothing was written"):
            prove(lambda batch: {"logits": reshape(linear(batch)["logits"])})

    def test_baked_in_batch_size_that_runs_everywhere(self):
        """The candidate always computes two rows."""
        with pytest.raises(ParityError, match=r"at batch 1 has shape \(2, 3\), expected \(1, 3\)"):
            prove(lambda batch: {"logits": np.resize(batch["x"], (2, 4)) @ WEIGHTS})

    def test_baked_in_batch_size_that_runs_at_that_size_only(self):
        def two_rows_only(batch: Batch) -> Batch:
            if len(batch["x"]) != 2:
                raise WorkerError("new.onnx failed while running: got 5, expected 2")
            return linear(batch)

        with pytest.raises(ParityError, match=r"the new does not run at batch 1: new.onnx failed .*; nothing was written"):
            prove(two_rows_only)

    def test_baked_in_sequence_length(self):
        contract = Contract((TensorSpec("x", "float32", ("batch", "sequence")),), (Y,), Kind.LOGITS)
        with pytest.raises(ParityError, match="at batch 2 "):
            prove(
                lambda batch: {"logits": np.repeat(batch["x"].sum(1, keepdims=True) / 12, 3, 1)},
                lambda batch: {"logits": np.repeat(batch["x"].mean(1, keepdims=True), 3, 1)},
                contract,
            )

    def test_swapped_classes(self):
        with pytest.raises(ParityError):
            prove(lambda batch: {"logits": linear(batch)["logits"][:, [1, 0, 2]]})


class TestNotFinite:
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_equal_where_both_have_it(self, value: float):
        proof = prove(constant([1, value, 2]), constant([1, value, 2]))
        assert (proof.worst.max_abs_error, proof.worst.scale) == (0.0, 2.0)

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ([1, 2, 3], [1, np.nan, 3]),
            ([1, np.nan, 3], [1, 2, 3]),
            ([1, np.nan, 3], [np.nan, 2, 3]),
            ([1, np.inf, 3], [1, -np.inf, 3]),
            ([1, np.nan, 3], [1, np.inf, 3]),
            ([1, np.inf, 3], [1, 1e30, 3]),
        ],
    )
    def test_unequal_elsewhere(self, old: list[float], new: list[float]):
        with pytest.raises(ParityError, match="differs by inf"):
            prove(constant(new), constant(old))

    def test_the_rest_must_still_agree(self):
        with pytest.raises(ParityError, match="differs by 1"):
            prove(constant([2, np.nan, 3]), constant([1, np.nan, 3]))


class TestBatchSizes:
    def test_fixed_size_is_proven_at_that_size_only(self):
        contract = Contract((replace(X, shape=(3, 4)),), (replace(Y, shape=(3, 3)),), Kind.LOGITS)
        proof = prove(linear, contract=contract)
        assert [batch.batch_size for batch in proof.batches] == [3]
        assert proof.describe().startswith("equal at batch 3 on")

    def test_fixed_size_beside_a_free_one_is_proven_at_all(self):
        contract = Contract((TensorSpec("scale", "float32", (1, 4)), X), (Y,), Kind.LOGITS)
        proof = prove(
            lambda batch: {"logits": (batch["x"] * batch["scale"]) @ WEIGHTS},
            lambda batch: {"logits": (batch["scale"] * batch["x"]) @ WEIGHTS},
            contract,
        )
        assert [batch.batch_size for batch in proof.batches] == [1, 2, 5]

    def test_masks_are_ones_then_padding_and_differ(self):
        masks: list[Array] = []
        ids = TensorSpec("input_ids", "int64", ("batch", "sequence"), upper_bound=50)
        contract = Contract((ids, replace(ids, name="attention_mask", upper_bound=None)), (Y,), Kind.LOGITS)

        def pooled(batch: Batch) -> Batch:
            masks.append(batch["attention_mask"])
            assert batch["input_ids"].max() < 50
            return {"logits": np.repeat((batch["input_ids"] * batch["attention_mask"]).sum(1, keepdims=True) * 1.0, 3, 1)}

        prove(pooled, pooled, contract)
        assert [mask.shape for mask in masks[::2]] == [(1, 12), (2, 7), (5, 19)]
        for mask in masks:
            assert set(np.unique(mask)) <= {0, 1}
            assert (np.diff(mask, axis=1) <= 0).all()
            assert mask[0].all()
        assert any(not mask.all() for mask in masks)

    def test_a_candidate_that_ignores_the_mask_is_caught(self):
        ids = TensorSpec("input_ids", "int64", ("batch", "sequence"), upper_bound=50)
        contract = Contract((ids, replace(ids, name="attention_mask", upper_bound=None)), (Y,), Kind.LOGITS)

        def total(array: Array) -> Batch:
            return {"logits": np.repeat(array.sum(1, keepdims=True) * 1.0, 3, 1)}

        with pytest.raises(ParityError):
            prove(
                lambda batch: total(batch["input_ids"]),
                lambda batch: total(batch["input_ids"] * batch["attention_mask"]),
                contract,
            )


class TestOutputs:
    @pytest.mark.parametrize("kind", [Kind.REGRESSION, Kind.EMBEDDING, Kind.SCORES])
    def test_no_top1_where_there_are_no_classes(self, kind: Kind):
        proof = prove(linear, contract=replace(CONTRACT, kind=kind))
        assert {batch.top1_agreement for batch in proof.batches} == {None}
        assert "top-1" not in proof.describe()

    def test_top1_counts_rows_with_another_best_class(self):
        old = lambda batch: {"logits": np.tile([1.0, 1.0 - 1e-6, 0], (len(batch["x"]), 1))}  # noqa: E731
        new = lambda batch: {"logits": np.tile([1.0 - 2e-6, 1.0 - 1e-6, 0], (len(batch["x"]), 1))}  # noqa: E731
        proof = prove(new, old)
        assert {batch.top1_agreement for batch in proof.batches} == {0.0}
        assert "top-1 agreement 0%" in proof.describe()

    def test_every_output_is_compared(self):
        contract = Contract((X,), (Y, TensorSpec("hidden", "float32", ("batch", 4))), Kind.LOGITS)
        both = lambda batch: linear(batch) | {"hidden": batch["x"]}  # noqa: E731
        proof = prove(both, both, contract)
        assert [batch.output for batch in proof.batches] == ["logits", "hidden"] * 3
        assert [batch.top1_agreement for batch in proof.batches] == [1.0, None] * 3
        with pytest.raises(ParityError, match="output 'hidden' at batch 1 "):
            prove(lambda batch: linear(batch) | {"hidden": batch["x"] + 1}, both, contract)


class TestRealRows:
    def test_rows_are_drawn_from_those_given(self):
        rows = Rows({"x": np.arange(40, dtype=np.float32).reshape(10, 4)})
        seen: list[Array] = []
        proof = prove(lambda batch: (seen.append(batch["x"]), linear(batch))[1], rows=rows)
        assert {batch.rows for batch in proof.batches} == {"real"}
        assert {tuple(row) for batch in seen for row in batch} <= {tuple(row) for row in rows.inputs["x"]}
        assert [len(batch) for batch in seen] == [1, 2, 5]

    def test_fewer_rows_than_a_batch_repeat(self):
        rows = Rows({"x": np.ones((2, 4), np.float32)})
        assert [batch.batch_size for batch in prove(linear, rows=rows).batches] == [1, 2, 5]

    def test_more_columns_than_the_model_takes_are_no_harm(self):
        prove(linear, rows=Rows({"x": np.ones((6, 4), np.float32), "other": np.ones(6)}))

    def test_a_missing_column(self):
        with pytest.raises(DataError, match="'x'"):
            prove(linear, rows=Rows({"pixels": np.ones((2, 4), np.float32)}))
