import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from monograph.errors import ContractError, DataError, SourceError
from monograph.models.contract import Contract, ImagePreprocessing, Kind, TensorSpec, TextPreprocessing
from monograph.models.data.preprocess import preprocess

OUTPUT = TensorSpec("logits", "float32", ("b", 10))


def contract(*inputs: TensorSpec) -> Contract:
    return Contract(inputs, (OUTPUT,), Kind.LOGITS)


def image_spec(*shape, dtype="float32", **preprocessing) -> TensorSpec:
    return TensorSpec("x", dtype, ("b", *shape), ImagePreprocessing(**preprocessing))


def one(spec: TensorSpec, values):
    """Preprocess one input and return its array and what was assumed."""
    inputs, assumed = preprocess({spec.name: values}, contract(spec), origin="here")
    return inputs[spec.name], assumed


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


class TestImages:
    @settings(deadline=None, max_examples=40)
    @given(
        pixels=arrays(np.uint8, (2, 4, 5, 3)),
        mean=st.tuples(*[st.floats(-1, 1)] * 3),
        std=st.tuples(*[st.floats(0.1, 2)] * 3),
        layout=st.sampled_from(["NCHW", "NHWC"]),
    )
    def test_undoing_the_scaling_gives_the_pixels_back(self, pixels, mean, std, layout):
        shape = (3, 4, 5) if layout == "NCHW" else (4, 5, 3)
        scaled, assumed = one(image_spec(*shape, mean=mean, std=std, layout=layout), pixels)
        assert scaled.dtype == np.float32
        assert scaled.shape == (2, *shape)
        assert scaled.flags.c_contiguous
        assert assumed == ()
        last = np.moveaxis(scaled, 1, -1) if layout == "NCHW" else scaled
        back = (last.astype(np.float64) * std + mean) * 255
        assert np.abs(back - pixels).max() < 0.01

    @settings(deadline=None, max_examples=30)
    @given(pixels=arrays(np.uint8, (3, 6, 7, 3)), channels=st.sampled_from([1, 3]))
    def test_pictures_and_arrays_give_the_same(self, pixels, channels):
        spec = image_spec(channels, 5, 8, mean=(0.5,), std=(0.2,))
        from_array, _ = one(spec, pixels)
        from_channels_first, _ = one(spec, pixels.transpose(0, 3, 1, 2))
        from_pictures, _ = one(spec, [Image.fromarray(image) for image in pixels])
        np.testing.assert_array_equal(from_array, from_pictures)
        np.testing.assert_array_equal(from_channels_first, from_pictures)

    def test_grey_arrays_need_no_pillow(self, monkeypatch):
        monkeypatch.setattr(Image, "fromarray", None)
        pixels = noise(4, 28, 28)
        grey, assumed = one(image_spec(1, 28, 28), pixels)
        np.testing.assert_allclose(grey[:, 0], pixels / 255, rtol=1e-6)
        assert assumed == ()
        coloured, _ = one(image_spec(28, 28, 3, layout="NHWC", mean=(0, 0.5, 1)), pixels)
        np.testing.assert_allclose(coloured, pixels[..., None] / 255 - [0, 0.5, 1], atol=1e-6)

    def test_colour_goes_to_grey_as_pillow_does_it(self):
        pixels = noise(2, 4, 4, 3)
        grey, _ = one(image_spec(1, 4, 4, scale=1), pixels)
        np.testing.assert_array_equal(grey[1, 0], np.asarray(Image.fromarray(pixels[1]).convert("L")))

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
    def test_pictures_of_every_8_bit_mode(self, mode):
        picture = Image.fromarray(noise(5, 6, 3)).convert(mode)
        scaled, _ = one(image_spec(3, 5, 6, scale=1), [picture])
        np.testing.assert_array_equal(scaled[0].transpose(1, 2, 0), np.asarray(picture.convert("RGB")))

    def test_a_transparent_palette_gives_no_warning(self):
        file = io.BytesIO()
        Image.fromarray(noise(5, 6, 3)).convert("P").save(file, "png", transparency=bytes(range(256)))
        scaled, _ = one(image_spec(3, 5, 6), [Image.open(file)])
        assert scaled.shape == (1, 3, 5, 6)

    def test_a_shorter_side_is_resized_and_the_centre_cropped(self):
        wide = Image.fromarray(noise(20, 61, 3))
        scaled, _ = one(image_spec(3, 8, 8, scale=1, resize_shorter_side=10, resample="bicubic"), [wide, wide.transpose(2)])
        resized = wide.resize((30, 10), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(scaled[0].transpose(1, 2, 0), np.asarray(resized.crop((11, 1, 19, 9))))
        np.testing.assert_array_equal(scaled[1].transpose(1, 2, 0), np.asarray(resized.crop((11, 1, 19, 9)).transpose(2)))

    @pytest.mark.parametrize(("height", "width"), [(20, 60), (50, 31), (10, 10)])
    def test_agrees_with_the_image_processor_of_transformers(self, height, width):
        from transformers import CLIPImageProcessor

        picture = Image.fromarray(noise(height, width, 3))
        mean, std = (0.48, 0.45, 0.4), (0.26, 0.27, 0.28)
        processor = CLIPImageProcessor(size={"shortest_edge": 10}, crop_size=8, image_mean=mean, image_std=std)
        spec = image_spec(3, 8, 8, mean=mean, std=std, resize_shorter_side=10, resample="bicubic")
        expected = processor(picture, return_tensors="np")["pixel_values"]
        np.testing.assert_allclose(one(spec, [picture])[0], expected, atol=1e-5)

    def test_an_array_of_the_models_size_is_not_cropped_again(self):
        pixels = noise(2, 8, 8, 3)
        scaled, assumed = one(image_spec(3, 8, 8, scale=1, resize_shorter_side=10), pixels)
        np.testing.assert_array_equal(scaled, pixels.transpose(0, 3, 1, 2))
        assert assumed == ("here: input 'x' has the model's size 8 x 8 and was taken as resized and cropped already",)

    def test_a_symbolic_size_takes_the_pictures_as_they_are(self):
        spec = image_spec(3, "h", "w", scale=1)
        assert one(spec, [Image.fromarray(noise(5, 6, 3))] * 2)[0].shape == (2, 3, 5, 6)
        assert one(spec, noise(2, 5, 6, 3))[0].shape == (2, 3, 5, 6)
        with pytest.raises(DataError, match=r"row 1 is 7 x 6 pixels but row 0 is 6 x 5, and the model fixes no size"):
            one(spec, [Image.fromarray(noise(5, 6, 3)), Image.fromarray(noise(6, 7, 3))])

    def test_where_either_axis_may_hold_the_channels(self):
        pixels = noise(2, 3, 8, 3)
        by_size, assumed = one(image_spec(3, 3, 8, scale=1), pixels)
        np.testing.assert_array_equal(by_size, pixels.transpose(0, 3, 1, 2))
        assert assumed == ()
        _, assumed = one(image_spec(3, 5, 5, layout="NCHW"), pixels)
        assert assumed == ("here: input 'x' was read as [n x c x h x w]: either axis could hold the channels",)
        _, assumed = one(image_spec(5, 5, 3, layout="NHWC"), pixels)
        assert "[n x h x w x c]" in assumed[0]

    def test_whole_numbers_are_taken_as_pixels_and_floats_as_preprocessed(self):
        spec = image_spec(1, 4, 4)
        scaled, assumed = one(spec, noise(2, 4, 4).astype(np.int64))
        np.testing.assert_allclose(scaled[:, 0], noise(2, 4, 4) / 255, rtol=1e-6)
        assert assumed == ("here: input 'x' holds int64 within 0 to 255 and was taken as 8-bit pixels",)
        ready = np.linspace(-1, 1, 32).reshape(2, 4, 4)
        kept, assumed = one(spec, ready)
        np.testing.assert_array_equal(kept[:, 0], ready.astype(np.float32))
        assert "axis 1 of size 1 was added" in assumed[0]
        assert "is float64 from -1 to 1 and was taken as preprocessed already" in assumed[1]

    def test_more_channels_than_a_picture_has_pass_as_arrays(self):
        pixels = noise(2, 6, 4, 4)
        assert one(image_spec(6, 4, 4), pixels)[0].shape == (2, 6, 4, 4)
        with pytest.raises(DataError, match="6 channels, and only 1, 3 or 4 can be resized"):
            one(image_spec(6, 5, 5), pixels)

    def test_other_dtypes_of_the_input(self):
        assert one(image_spec(1, 4, 4, dtype="float16"), noise(2, 4, 4))[0].dtype == np.float16
        raw, _ = one(image_spec(1, 4, 4, dtype="uint8", scale=1), noise(2, 4, 4))
        np.testing.assert_array_equal(raw[:, 0], noise(2, 4, 4))
        with pytest.raises(ContractError, match="takes uint8, which cannot hold scaled pixels"):
            one(image_spec(1, 4, 4, dtype="uint8"), noise(2, 4, 4))

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            (np.zeros((2, 5, 5), np.float32), r"got float32 \[n x 5 x 5\], expected x: float32 \[b x 1 x 4 x 4\]: give uint8"),
            (np.full((2, 4, 4), 300), "holds int64 from 300 to 300, expected pixels from 0 to 255"),
            (np.full((2, 4, 4), True), "holds bool, expected uint8 pixels"),
            (np.zeros((2, 16), np.uint8), r"got pixels \[n x 16\], expected \[n x h x w\]"),
            (np.zeros((2, 7, 4, 7), np.uint8), r"got pixels \[n x 7 x 4 x 7\], expected \[n x h x w\]"),
            (["a.png"], "got text, expected pictures or uint8 pixels"),
            ([], "has no rows"),
            ([Image.new("I;16", (4, 4))], r"row 0 has pixels of more than 8 bits \(mode I;16\): convert the picture"),
        ],
    )
    def test_values_that_are_no_pictures(self, values, message):
        with pytest.raises(DataError, match=message):
            one(image_spec(1, 4, 4), values)

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            (image_spec(3, 4, 4, mean=(0, 0)), "3 channels but 2 values of mean: give 1 or 3"),
            (image_spec(3, 4, 4, resample="cubic"), "resampling 'cubic', expected one of nearest"),
            (image_spec(3, 4, 4, resize_shorter_side=3), "cannot be cropped from a picture whose shorter side is 3"),
            (image_spec("c", 4, 4), "symbolic number of channels"),
            (image_spec(4, 4), "has 3 dimensions, expected NCHW"),
        ],
    )
    def test_a_contract_that_cannot_be_carried_out(self, spec, message):
        with pytest.raises(ContractError, match=message):
            one(spec, noise(2, 4, 4, 3))


class TestArrays:
    @given(
        array=arrays(np.float32, (3, 4), elements=st.floats(-1e6, 1e6, width=32)),
        dtype=st.sampled_from(["float32", "float64"]),
    )
    def test_numbers_pass_unchanged(self, array, dtype):
        passed, assumed = one(TensorSpec("x", dtype, ("b", 4)), array)
        np.testing.assert_array_equal(passed, array)
        assert passed.dtype == np.dtype(dtype)
        assert assumed == ()

    def test_an_array_that_fits_is_not_copied(self):
        array = np.ones((2, 4), np.float32)
        assert one(TensorSpec("x", "float32", ("b", 4)), array)[0] is array

    @pytest.mark.parametrize(
        ("values", "dtype"),
        [
            (np.array([[1, 2]], np.int64), "int32"),
            (np.array([[1, 2]], np.int64), "float32"),
            (np.array([[0.1, 2]]), "float16"),
            (np.array([[True, False]]), "float32"),
            (np.array([[1, 0]]), "bool"),
        ],
    )
    def test_safe_casts(self, values, dtype):
        cast, _ = one(TensorSpec("x", dtype, ("b", 2)), values)
        assert cast.dtype == np.dtype(dtype)
        np.testing.assert_allclose(cast, values, rtol=1e-3)

    @pytest.mark.parametrize(
        ("values", "dtype", "message"),
        [
            (np.array([[1, 2], [1, 2**40]]), "int32", r"row 1 holds 1099511627776, which int32 cannot hold"),
            (np.array([[1.0, 2.0], [1.0, 1e40]]), "float32", r"row 1 holds 1e\+40, which float32 cannot hold"),
            (np.array([[1.0, 2.0]]), "int64", "holds float64, expected int64: convert the column to int64"),
            (np.array([[2, 0]]), "bool", "row 0 holds 2, which bool cannot hold"),
            (np.array([[0.0, 0.0], [0.0, np.nan]]), "float32", "here: input 'x': row 1 holds nan, expected finite numbers"),
            (np.array([[0.0, -np.inf], [0.0, np.nan]]), "float32", "row 0 holds -inf, expected finite numbers"),
            (np.zeros((2, 3)), "float32", r"got \[n x 3\], expected x: float32 \[b x 2\]"),
            (np.zeros(2), "float32", r"got \[n\], expected x: float32 \[b x 2\]"),
            (np.array(["a"]), "float32", "got text, but the model's contract states no preprocessing for it"),
            (["a"], "float32", "got text, but"),
            ([Image.new("L", (2, 2))], "float32", "got pictures, but"),
            (np.array([[1j, 2]]), "float32", "got complex128 values, but"),
        ],
    )
    def test_what_does_not_fit(self, values, dtype, message):
        with pytest.raises(DataError, match=message):
            one(TensorSpec("x", dtype, ("b", 2)), values)

    @pytest.mark.parametrize(
        ("rows", "shape", "axis"),
        [((4, 5), (1, 4, 5), 1), ((4, 5), (4, 5, 1), 3), ((4, 5), (1, "h", "w"), 1), ((), (1,), 1)],
    )
    def test_a_missing_channel_axis_is_added_and_said(self, rows, shape, axis):
        array, assumed = one(TensorSpec("x", "float32", ("b", *shape)), np.ones((2, *rows), np.float32))
        assert array.ndim == len(shape) + 1
        assert f"axis {axis} of size 1 was added" in assumed[0]

    def test_pixels_without_preprocessing_are_not_scaled_and_that_is_said(self):
        array, assumed = one(TensorSpec("x", "float32", ("b", 4, 4)), noise(2, 4, 4))
        np.testing.assert_array_equal(array, noise(2, 4, 4))
        assert assumed == ("here: input 'x' is uint8 and was taken without scaling: the contract states no preprocessing",)

    def test_ids_beyond_the_vocabulary_are_refused(self):
        spec = TensorSpec("ids", "int64", ("b", "s"), upper_bound=5)
        assert one(spec, np.array([[0, 4]]))[0].tolist() == [[0, 4]]
        with pytest.raises(DataError, match=r"input 'ids': row 1 holds 5, expected 0 to 4"):
            one(spec, np.array([[0, 4], [5, 0]]))

    def test_the_order_is_the_contracts_and_a_missing_input_is_named(self):
        specs = [TensorSpec(name, "float32", ("b",)) for name in "ab"]
        inputs, _ = preprocess({"b": np.ones(1), "a": np.zeros(1)}, contract(*specs))
        assert list(inputs) == ["a", "b"]
        with pytest.raises(DataError, match="rows: input 'b' has no column, got a"):
            preprocess({"a": np.zeros(1)}, contract(*specs))


def tokenizer_json(**settings) -> str:
    """A tokenizer of words: [CLS] words [SEP], as BERT's."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "good", "film"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return json.dumps(json.loads(tokenizer.to_str()) | settings)


class TestText:
    def specs(self, length="s", max_length=8, dtype="int64", roles=("input_ids", "attention_mask", "token_type_ids")):
        return [TensorSpec(role, dtype, ("b", length), TextPreprocessing(role, max_length)) for role in roles]

    def tokens(self, texts, specs, tokenizer=None):
        return preprocess({spec.name: texts for spec in specs}, contract(*specs), tokenizer_json=tokenizer or tokenizer_json())[0]

    def test_pads_to_the_longest(self):
        inputs = self.tokens(["a good film", "film"], self.specs())
        assert inputs["input_ids"].tolist() == [[2, 4, 5, 6, 3], [2, 6, 3, 0, 0]]
        assert inputs["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
        assert inputs["token_type_ids"].tolist() == [[0] * 5] * 2
        assert all(array.dtype == np.int64 for array in inputs.values())

    def test_cuts_at_the_maximal_length_and_keeps_the_end_token(self):
        inputs = self.tokens(["a good film"], self.specs(max_length=4))
        assert inputs["input_ids"].tolist() == [[2, 4, 5, 3]]

    def test_a_fixed_length_is_filled(self):
        inputs = self.tokens(["a", "a good film a good film"], self.specs(length=6, dtype="int32"))
        assert inputs["input_ids"].tolist() == [[2, 4, 3, 0, 0, 0], [2, 4, 5, 6, 4, 3]]
        assert inputs["input_ids"].dtype == np.int32

    def test_padding_that_the_tokenizer_states_is_kept(self):
        padding = {"strategy": {"Fixed": 99}, "direction": "Left", "pad_id": 1, "pad_type_id": 0, "pad_token": "[UNK]"}
        padding["pad_to_multiple_of"] = None
        inputs = self.tokens(["a film", "a"], self.specs(), tokenizer_json(padding=padding))
        assert inputs["input_ids"].tolist() == [[2, 4, 6, 3], [1, 2, 4, 3]]

    def test_arrays_of_strings_and_arrays_of_ids_are_both_taken(self):
        specs = self.specs(roles=("input_ids",))
        assert self.tokens(np.array(["a", "film"]), specs)["input_ids"].tolist() == [[2, 4, 3], [2, 6, 3]]
        assert self.tokens(np.array([[2, 4, 3]]), specs)["input_ids"].tolist() == [[2, 4, 3]]

    @given(texts=st.lists(st.text(max_size=30), min_size=1, max_size=5))
    @settings(deadline=None, max_examples=30)
    def test_every_text_gives_a_row_and_the_mask_counts_its_tokens(self, texts):
        inputs = self.tokens(texts, self.specs())
        assert len(inputs["input_ids"]) == len(texts)
        assert inputs["input_ids"].shape[1] == inputs["attention_mask"].sum(axis=1).max() <= 8
        assert ((inputs["input_ids"] == 0) == (inputs["attention_mask"] == 0)).all()

    def test_without_a_tokenizer_text_is_refused(self):
        with pytest.raises(DataError, match="got text, but the model carries no tokenizer: give arrays of token ids"):
            preprocess({"input_ids": ["a"]}, contract(*self.specs(roles=("input_ids",))))

    def test_a_damaged_tokenizer_is_refused(self):
        with pytest.raises(SourceError, match="the model's tokenizer cannot be read"):
            self.tokens(["a"], self.specs(), "{}")

    def test_a_missing_text_is_named(self):
        with pytest.raises(DataError, match="row 1 holds None, expected text"):
            self.tokens(["a", None], self.specs())

    def test_an_unknown_role_is_named(self):
        with pytest.raises(ContractError, match="has the role 'bbox' in the contract, expected one of input_ids"):
            self.tokens(["a"], self.specs(roles=("bbox",)))

    def test_pictures_for_a_text_input_are_refused(self):
        with pytest.raises(DataError, match="got pictures, but the model's contract states text preprocessing"):
            self.tokens([Image.new("L", (1, 1))], self.specs(roles=("input_ids",)))
