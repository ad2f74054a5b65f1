from dataclasses import replace

import pytest

from monograph.errors import FusionError
from monograph.export.fusion.align import InputLink, align_classes, share_inputs, unify_output_shape
from monograph.models.contract import Contract, ImagePreprocessing, Kind, TensorSpec, TextPreprocessing

PIXELS = TensorSpec("pixels", "float32", ("batch", 3, 8, 8))
IDS = TensorSpec("input_ids", "int64", ("batch", "sequence"))
MASK = TensorSpec("attention_mask", "int64", ("batch", "sequence"))


def contract(
    *inputs: TensorSpec,
    classes: int | str = 3,
    names: tuple[str, ...] | None = None,
    kind: Kind = Kind.LOGITS,
    output: TensorSpec | None = None,
) -> Contract:
    return Contract(inputs or (PIXELS,), (output or TensorSpec("y", "float32", ("batch", classes)),), kind, names)


def share(*contracts: Contract) -> tuple[tuple[TensorSpec, ...], tuple[tuple[InputLink, ...], ...]]:
    return share_inputs(contracts, "abc"[: len(contracts)])


class TestSharedInputs:
    def test_named_as_the_first_members(self):
        shared, links = share(contract(PIXELS), contract(replace(PIXELS, name="image")))
        assert shared == (PIXELS,)
        assert links == ((InputLink("pixels", "pixels", "float32"),), (InputLink("image", "pixels", "float32"),))

    def test_matched_by_name_in_another_order(self):
        shared, links = share(contract(IDS, MASK), contract(MASK, IDS))
        assert shared == (IDS, MASK)
        assert [(link.member_input, link.shared_input) for link in links[1]] == [
            ("attention_mask", "attention_mask"),
            ("input_ids", "input_ids"),
        ]

    def test_matched_by_position_where_names_differ(self):
        _, links = share(contract(IDS, MASK), contract(replace(IDS, name="ids"), replace(MASK, name="mask")))
        assert [(link.member_input, link.shared_input) for link in links[1]] == [
            ("ids", "input_ids"),
            ("mask", "attention_mask"),
        ]

    def test_matched_by_position_where_one_name_is_the_same_there(self):
        _, links = share(contract(IDS, MASK), contract(IDS, replace(MASK, name="mask")))
        assert [link.shared_input for link in links[1]] == ["input_ids", "attention_mask"]

    def test_names_and_positions_that_contradict_each_other(self):
        """By position the mask would be fed with ids."""
        with pytest.raises(FusionError) as info:
            share(contract(IDS, MASK), contract(MASK, replace(IDS, name="ids")))
        assert str(info.value) == (
            "a takes 2 inputs (input_ids, attention_mask) but b takes 2 inputs (attention_mask, ids): which belong together "
            "cannot be told; export them again with the same input names"
        )

    def test_ids_of_both_integer_types(self):
        shared, links = share(contract(replace(IDS, dtype="int32")), contract(IDS), contract(replace(IDS, dtype="int32")))
        assert shared[0].dtype == "int32"
        assert [link.dtype for (link,) in links] == ["int32", "int64", "int32"]

    @pytest.mark.parametrize(("bounds", "expected"), [((9, 5), 5), ((None, 5), 5), ((9, None), 9), ((None, None), None)])
    def test_the_smaller_vocabulary_bounds_the_ids(self, bounds: tuple[int | None, int | None], expected: int | None):
        shared, _ = share(*(contract(replace(IDS, upper_bound=bound)) for bound in bounds))
        assert shared[0].upper_bound == expected

    def test_a_fixed_dimension_is_fixed_for_all(self):
        shared, _ = share(
            contract(replace(PIXELS, shape=("batch", 3, "h", 8))),
            contract(replace(PIXELS, shape=(4, 3, "h", "w"))),
            contract(replace(PIXELS, shape=("n", "k", 8, 8))),
        )
        assert shared[0].shape == (4, 3, 8, 8)

    def test_symbols_are_the_first_members(self):
        shared, _ = share(contract(IDS), contract(replace(IDS, shape=("N", "T"))))
        assert shared[0].shape == ("batch", "sequence")


class TestRefusedInputs:
    @pytest.mark.parametrize(
        ("first", "second", "message"),
        [
            (
                contract(IDS, MASK),
                contract(IDS),
                "a takes 2 inputs (input_ids, attention_mask) but b takes 1 inputs (input_ids): "
                "members must take the same inputs",
            ),
            (
                contract(PIXELS),
                contract(replace(PIXELS, shape=("batch", 192))),
                "a takes pixels: float32 [batch x 3 x 8 x 8] but b takes pixels: float32 [batch x 192]: "
                "members must take the same input; export them again for one shape",
            ),
            (
                contract(PIXELS),
                contract(replace(PIXELS, shape=("batch", 3, 16, 8))),
                "a takes pixels: float32 [batch x 3 x 8 x 8] but b takes pixels: float32 [batch x 3 x 16 x 8]: "
                "8 is not 16; export them again for one shape",
            ),
            (
                contract(PIXELS),
                contract(replace(PIXELS, dtype="float16")),
                "a takes pixels: float32 [batch x 3 x 8 x 8] but b takes pixels: float16 [batch x 3 x 8 x 8]: "
                "export them again with one input type",
            ),
            (
                contract(replace(IDS, dtype="uint8")),
                contract(IDS),
                "a takes input_ids: uint8 [batch x sequence] but b takes input_ids: int64 [batch x sequence]: "
                "export them again with one input type",
            ),
            (
                contract(PIXELS),
                contract(replace(PIXELS, dtype="complex64")),
                "b takes pixels: complex64 [batch x 3 x 8 x 8]: no rows of that type can be fed; "
                "export it again with float32 inputs",
            ),
            (
                contract(replace(PIXELS, dtype="complex64")),
                contract(replace(PIXELS, dtype="complex64")),
                "a takes pixels: complex64 [batch x 3 x 8 x 8]: no rows of that type can be fed; "
                "export it again with float32 inputs",
            ),
            (
                contract(replace(IDS, preprocessing=TextPreprocessing("input_ids", 128))),
                contract(replace(IDS, preprocessing=TextPreprocessing("input_ids", 256))),
                "a and b want input 'input_ids' preprocessed differently "
                "(TextPreprocessing(role='input_ids', max_length=128, type='text') against "
                "TextPreprocessing(role='input_ids', max_length=256, type='text')): "
                "export them again with the same preprocessing",
            ),
        ],
        ids=["count", "rank", "size", "float16", "uint8", "second of no numpy type", "first of no numpy type", "text"],
    )
    def test_message(self, first: Contract, second: Contract, message: str):
        with pytest.raises(FusionError) as info:
            share(first, second)
        assert str(info.value) == message

    @pytest.mark.parametrize(
        "other",
        [
            ImagePreprocessing(mean=(0.5,) * 3),
            ImagePreprocessing(std=(0.5,) * 3),
            ImagePreprocessing(scale=1.0),
            ImagePreprocessing(resample="bicubic"),
            ImagePreprocessing(resize_shorter_side=9),
            None,
        ],
    )
    def test_pictures_prepared_differently(self, other: ImagePreprocessing | None):
        with pytest.raises(FusionError, match="a and b want input 'pixels' preprocessed differently"):
            share(contract(replace(PIXELS, preprocessing=ImagePreprocessing())), contract(replace(PIXELS, preprocessing=other)))

    def test_the_third_member_must_fit_what_the_second_fixed(self):
        free, four, five = (contract(replace(PIXELS, shape=(batch, 3, 8, 8))) for batch in ("batch", 4, 5))
        with pytest.raises(FusionError, match=r"a takes .* but c takes .*: 4 is not 5"):
            share(free, four, five)


class TestClasses:
    def test_none_named(self):
        assert align_classes((contract(), contract()), "ab") == (None, (None, None))

    def test_mapped_by_name(self):
        order, positions = align_classes(
            (
                contract(names=("cat", "dog", "owl")),
                contract(names=("owl", "cat", "dog")),
                contract(names=("cat", "dog", "owl")),
                contract(),
            ),
            "abcd",
        )
        assert order == ("cat", "dog", "owl")
        assert positions == (None, (1, 2, 0), None, None)

    def test_the_first_that_names_its_classes_sets_the_order(self):
        order, positions = align_classes((contract(), contract(names=("z", "y", "x")), contract(names=("x", "y", "z"))), "abc")
        assert order == ("z", "y", "x")
        assert positions == (None, None, (2, 1, 0))

    @pytest.mark.parametrize(
        ("first", "second", "message"),
        [
            (
                contract(classes=3),
                contract(classes=4),
                "a has 3 classes but b has 4: only models of the same classes can be fused",
            ),
            (
                contract(names=("x", "y", "z")),
                contract(classes=4),
                "a has 3 classes but b has 4: only models of the same classes can be fused",
            ),
            (
                contract(names=("cat", "dog", "owl")),
                contract(names=("cat", "dog", "cow")),
                "a and b name different classes (cow, owl): export them again with the same class names",
            ),
            (
                contract(classes=7, names=tuple("abcdefg")),
                contract(classes=7, names=tuple("ABCDEFG")),
                "a and b name different classes (A, B, C, D, E): export them again with the same class names",
            ),
        ],
        ids=["counts", "counts by name", "other names", "at most five are shown"],
    )
    def test_refused(self, first: Contract, second: Contract, message: str):
        with pytest.raises(FusionError) as info:
            align_classes((first, second), "ab")
        assert str(info.value) == message

    def test_a_stranger_to_the_leader_is_named_though_others_stand_between(self):
        with pytest.raises(FusionError, match="b and d name different classes"):
            align_classes((contract(), contract(names=tuple("xyz")), contract(), contract(names=tuple("xyw"))), "abcd")

    def test_unknown_counts_are_no_contradiction(self):
        assert align_classes((contract(classes="c"), contract(classes=4)), "ab") == (None, (None, None))


class TestOutputShape:
    def embedding(self, *shape: int | str, dtype: str = "float32") -> Contract:
        return contract(kind=Kind.EMBEDDING, output=TensorSpec("hidden", dtype, shape))

    def test_fixed_dimensions_win(self):
        shapes = (self.embedding("batch", "s", 8), self.embedding("n", 12, 8), self.embedding(4, "t", 8))
        assert unify_output_shape(shapes, "abc") == (4, 12, 8)

    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
    def test_floats(self, dtype: str):
        assert unify_output_shape((self.embedding("b", 8, dtype=dtype),) * 2, "ab") == ("b", 8)

    def test_rank(self):
        with pytest.raises(FusionError) as info:
            unify_output_shape((self.embedding("b", 8), self.embedding("b", 1, 8)), "ab")
        assert str(info.value) == (
            "a gives hidden: float32 [b x 8] but b gives hidden: float32 [b x 1 x 8]: only outputs of one shape can be fused"
        )

    def test_size(self):
        with pytest.raises(FusionError, match=r"a gives .* but b gives .*: 8 is not 9; export them again for one shape"):
            unify_output_shape((self.embedding("b", 8), self.embedding("b", 9)), "ab")

    @pytest.mark.parametrize("dtype", ["int64", "bool", "str", "complex64"])
    def test_no_floats(self, dtype: str):
        with pytest.raises(FusionError) as info:
            unify_output_shape((self.embedding("b", 8), self.embedding("b", 8, dtype=dtype)), "ab")
        assert str(info.value) == f"b gives hidden: {dtype} [b x 8]: only float outputs can be fused"
