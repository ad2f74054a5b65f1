from dataclasses import replace
from typing import Any

import pytest

from monograph.errors import FusionError
from monograph.export.fusion.adapters import Cast, Normalise, Resize, RoundPixels, Step, Transpose, Truncate
from monograph.export.fusion.align import InputLink, align_classes, input_notes, share_inputs, unify_output_shape
from monograph.models.contract import Contract, ImagePreprocessing, Kind, TensorSpec, TextPreprocessing

PIXELS = TensorSpec("pixels", "float32", ("batch", 3, 8, 8))
IDS = TensorSpec("input_ids", "int64", ("batch", "sequence"))
MASK = TensorSpec("attention_mask", "int64", ("batch", "sequence"))
TYPES = TensorSpec("token_type_ids", "int64", ("batch", "sequence"))
PICTURE = replace(PIXELS, preprocessing=ImagePreprocessing())


def text(spec: TensorSpec, role: str, max_length: int = 512, **changes: Any) -> TensorSpec:
    return replace(spec, preprocessing=TextPreprocessing(role, max_length), **changes)


def pictures(
    *, shape: tuple[int | str, ...] = ("batch", 3, 8, 8), dtype: str = "float32", name: str = "pixels", **preprocessing: Any
) -> Contract:
    return contract(TensorSpec(name, dtype, shape, ImagePreprocessing(**preprocessing)))


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


class TestTexts:
    def test_the_longest_limit_counts_and_others_see_the_beginning(self):
        ids, mask = text(IDS, "input_ids", 64), text(MASK, "attention_mask", 64)
        shared, links = share(contract(ids, mask), contract(text(IDS, "input_ids", 128), text(MASK, "attention_mask", 128)))
        assert [spec.preprocessing for spec in shared] == [
            TextPreprocessing("input_ids", 128),
            TextPreprocessing("attention_mask", 128),
        ]
        assert [link.steps for link in links[0]] == [(Truncate(64),)] * 2
        assert [link.steps for link in links[1]] == [()] * 2

    def test_fixed_lengths(self):
        shared, links = share(*(contract(text(IDS, "input_ids", shape=("batch", size))) for size in (16, 24, "sequence")))
        assert shared[0].shape == ("batch", 24)
        assert [link.steps for (link,) in links] == [(Truncate(16),), (), ()]

    def test_an_array_that_one_member_lacks(self):
        small = contract(replace(IDS, name="ids", shape=("N", "T"), preprocessing=TextPreprocessing("input_ids")))
        types = text(TYPES, "token_type_ids", shape=("N", "T"), dtype="int32")
        whole = contract(types, text(IDS, "input_ids", shape=("N", "T")))
        shared, links = share(small, whole)
        assert [spec.describe() for spec in shared] == ["ids: int64 [N x T]", "token_type_ids: int32 [N x T]"]
        assert [[(link.member_input, link.shared_input) for link in own] for own in links] == [
            [("ids", "ids")],
            [("token_type_ids", "token_type_ids"), ("input_ids", "ids")],
        ]
        assert input_notes((small, whole), "ab", shared, links) == [
            "a takes no token_type_ids: what is given there does not reach it",
            "inputs of b are matched by role: token_type_ids to token_type_ids, input_ids to ids",
        ]

    def test_an_added_array_has_the_symbols_and_sizes_of_the_others(self):
        shared, _ = share(
            contract(IDS),
            contract(replace(IDS, shape=("N", "T")), replace(MASK, shape=("N", "T"))),
            contract(replace(IDS, shape=("b", 9))),
        )
        assert [spec.shape for spec in shared] == [("batch", 9), ("batch", 9)]

    def test_padding_is_spoken_of(self):
        contracts = (contract(IDS, MASK), contract(IDS))
        assert input_notes(contracts, "ab", *share(*contracts)) == [
            "b takes no attention_mask: padding is text to it, so feed it texts of one length at a time"
        ]

    def test_a_cut_is_spoken_of(self):
        contracts = (contract(text(IDS, "input_ids", 64)), contract(text(IDS, "input_ids", 128)))
        assert input_notes(contracts, "ab", *share(*contracts)) == [
            "a sees the first 64 tokens of longer texts: their final special token is cut off for it"
        ]


class TestPictures:
    def test_equal_ones_are_left_alone(self):
        shared, links = share(pictures(mean=(0.5,)), pictures(mean=(0.5,), name="image"))
        assert shared == (replace(PIXELS, preprocessing=ImagePreprocessing(mean=(0.5,))),)
        assert [link.steps for (link,) in links] == [(), ()]

    @pytest.mark.parametrize(
        ("other", "steps"),
        [
            (pictures(mean=(0.5,)), (Normalise(1 / 255, (0.5,), (1.0,), 1),)),
            (pictures(std=(0.5, 1.0, 2.0)), (Normalise(1 / 255, (0.0,), (0.5, 1.0, 2.0), 1),)),
            (pictures(scale=1.0), ()),
            (pictures(scale=1.0, dtype="uint8"), (RoundPixels("uint8"),)),
            (pictures(dtype="float16"), (Normalise(1 / 255, (0.0,), (1.0,), 1), Cast("float16"))),
            (
                pictures(shape=("n", 8, 8, 3), layout="NHWC", mean=(0.5,)),
                (Transpose((0, 2, 3, 1)), Normalise(1 / 255, (0.5,), (1.0,), 3)),
            ),
            (pictures(shape=("n", 3, 6, 4), scale=1.0, resample="bicubic"), (Resize(6, 4, "bicubic"),)),
        ],
    )
    def test_different_ones_share_raw_pixels(self, other: Contract, steps: tuple[Step, ...]):
        shared, links = share(pictures(), other)
        assert shared == (replace(PIXELS, preprocessing=ImagePreprocessing(scale=1.0)),)
        assert links[0][0].steps == (Normalise(1 / 255, (0.0,), (1.0,), 1),)
        assert links[1][0].steps == steps

    def test_pictures_are_read_as_the_largest_member_reads_them_in_the_layout_of_the_first(self):
        shared, links = share(
            pictures(shape=("batch", 24, 24, 3), layout="NHWC"),
            pictures(shape=(4, 3, 32, 32), resample="bicubic", resize_shorter_side=40),
            pictures(shape=("n", 3, "h", "w"), resample="bicubic", resize_shorter_side=40),
        )
        assert shared[0].describe() == "pixels: float32 [4 x 32 x 32 x 3]"
        assert shared[0].preprocessing == ImagePreprocessing(1.0, (0.0,), (1.0,), "NHWC", "bicubic", 40)
        to_nchw, normalise = Transpose((0, 3, 1, 2)), Normalise(1 / 255, (0.0,), (1.0,), 1)
        assert [link.steps for (link,) in links] == [
            (to_nchw, Resize(24, 24, "bilinear"), Transpose((0, 2, 3, 1)), replace(normalise, channel_axis=3)),
            (to_nchw, normalise),
            (to_nchw, normalise),
        ]

    def test_what_was_decided_is_said(self):
        contracts = (
            pictures(shape=("batch", 3, 32, 32), resample="bicubic", resize_shorter_side=40),
            pictures(shape=("batch", 3, 24, 24)),
            pictures(shape=("batch", 3, 32, 32)),
        )
        assert input_notes(contracts, "abc", *share(*contracts)) == [
            "input pixels takes raw pixels from 0 to 255, NCHW: what each member does to them is in the graph",
            "b is given the 32 x 32 pixels resized to its 24 x 24: close to pictures read at that size, not equal",
            "c reads pictures by bilinear to the input size and is given them as a does, by bicubic to a shorter side of 40",
        ]

    def test_whole_pixels_beside_floats_without_preprocessing(self):
        contracts = (contract(replace(PIXELS, dtype="uint8")), contract(PIXELS))
        shared, links = share(*contracts)
        assert shared == (PIXELS,)
        assert [link.steps for (link,) in links] == [(RoundPixels("uint8"),), ()]
        assert input_notes(contracts, "ab", shared, links) == ["input pixels takes float32 pixels; a rounds them"]


class TestRefusedInputs:
    @pytest.mark.parametrize(
        ("first", "second", "message"),
        [
            (
                contract(PIXELS, MASK),
                contract(PIXELS),
                "a takes 2 inputs (pixels, attention_mask) but b takes 1 inputs (pixels): members must take the same inputs",
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
                contract(IDS),
                "a and b want input 'input_ids' preprocessed differently "
                "(TextPreprocessing(role='input_ids', max_length=128, type='text') against None): "
                "export them again with the same preprocessing",
            ),
            (
                contract(replace(IDS, shape=("batch", 16))),
                contract(replace(IDS, shape=("batch", 12))),
                "a takes input_ids: int64 [batch x 16] but b takes input_ids: int64 [batch x 12]: "
                "16 is not 12; export them again for one shape",
            ),
            (
                contract(IDS, MASK),
                contract(replace(MASK, name="types", preprocessing=TextPreprocessing("token_type_ids"))),
                "a takes 2 inputs (input_ids, attention_mask) but b takes 1 inputs (types): members must take the same inputs",
            ),
            (
                contract(replace(IDS, name="text", preprocessing=TextPreprocessing("input_ids"))),
                contract(
                    replace(IDS, name="ids", preprocessing=TextPreprocessing("input_ids")),
                    replace(MASK, name="text", preprocessing=TextPreprocessing("attention_mask")),
                ),
                "a and b both take 'text', but not for the same of a text's arrays: export them again with the same input names",
            ),
            (
                contract(replace(PIXELS, preprocessing=ImagePreprocessing())),
                contract(replace(PIXELS, shape=("batch", 1, 8, 8), preprocessing=ImagePreprocessing(scale=1.0))),
                "a takes pixels: float32 [batch x 3 x 8 x 8] but b takes pixels: float32 [batch x 1 x 8 x 8]: "
                "3 channels are not 1; export them again for one shape",
            ),
            (
                contract(replace(PIXELS, preprocessing=ImagePreprocessing())),
                contract(replace(PIXELS, dtype="uint8", preprocessing=ImagePreprocessing())),
                "b takes pixels: uint8 [batch x 3 x 8 x 8], which cannot hold pixels with scale 0.00392157, mean (0.0,) and "
                "std (1.0,): export it again with float32 inputs",
            ),
            (
                contract(replace(PIXELS, preprocessing=ImagePreprocessing())),
                contract(replace(PIXELS, preprocessing=ImagePreprocessing(mean=(0.5, 0.5)))),
                "b takes pixels: float32 [batch x 3 x 8 x 8] but states 2 values of mean: "
                "export it again with one value a channel",
            ),
            (
                contract(replace(PIXELS, preprocessing=ImagePreprocessing())),
                contract(replace(PIXELS, preprocessing=ImagePreprocessing(resample="spline"))),
                "b asks for resampling 'spline', which Pillow does not know: export it again with bilinear or bicubic",
            ),
        ],
        ids=[
            "count",
            "rank",
            "size",
            "float16",
            "uint8",
            "second of no numpy type",
            "first of no numpy type",
            "text beside none",
            "lengths without text",
            "texts with nothing in common",
            "one name for two roles",
            "channels",
            "scaled uint8",
            "values of mean",
            "resampling",
        ],
    )
    def test_message(self, first: Contract, second: Contract, message: str):
        with pytest.raises(FusionError) as info:
            share(first, second)
        assert str(info.value) == message

    def test_pictures_beside_an_input_that_says_nothing(self):
        with pytest.raises(FusionError, match="a and b want input 'pixels' preprocessed differently"):
            share(contract(PICTURE), contract(PIXELS))

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
                "a and b name different classes (cow unknown to a): export them again with the same class names",
            ),
            (
                contract(classes=7, names=tuple("abcdefg")),
                contract(classes=7, names=tuple("ABCDEFG")),
                "a and b name different classes (A, B, C, D, E unknown to a): export them again with the same class names",
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
