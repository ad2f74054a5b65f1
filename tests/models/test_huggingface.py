import json
import pickle
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from monograph.errors import ConfigError, SourceError
from monograph.models.contract import ImagePreprocessing, Kind, TextPreprocessing, random_inputs
from monograph.models.data.preprocess import preprocess
from monograph.models.huggingface import load_huggingface, quiet_transformers

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "a", "not", "very", "##ly", "real")
NAMES = {0: "negative", 1: "neutral", 2: "positive"}
STD = (0.2, 0.25, 0.3)
TEXTS = ["a very good film", "bad", "not a really bad film at all", "a film " * 40]


def text_config(model_type: str = "bert", **overrides: object):
    from transformers import AutoConfig

    sizes = {"vocab_size": len(WORDS), "max_position_embeddings": 64, "pad_token_id": 0}
    if model_type == "distilbert":
        sizes |= {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}
    else:
        sizes |= {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return AutoConfig.for_model(model_type, **(sizes | {"id2label": NAMES} | overrides))


def save_model(folder: Path, config, head: str = "AutoModelForSequenceClassification") -> Path:
    import transformers

    torch.manual_seed(0)
    with quiet_transformers():
        getattr(transformers, head).from_config(config).save_pretrained(folder)
    return folder


def save_tokenizer(folder: Path, max_length: int = 48) -> None:
    from transformers import BertTokenizerFast

    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=max_length).save_pretrained(folder)


def edit(path: Path, **changes: object) -> None:
    record = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in record.items() if value is not None}))


@pytest.fixture(scope="module")
def bert_original(tmp_path_factory) -> Path:
    folder = save_model(tmp_path_factory.mktemp("models") / "bert", text_config())
    save_tokenizer(folder)
    return folder


@pytest.fixture
def bert(bert_original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bert_original, tmp_path / "bert"))


def save_vit(folder: Path, image_size: int = 32, mean: tuple[float, ...] = (0.48145466, 0.5, 0.6), **overrides: object) -> Path:
    from transformers import ViTConfig, ViTImageProcessor

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = ViTConfig(**sizes, image_size=image_size, patch_size=image_size // 4, id2label={0: "cat", 1: "dog"}, **overrides)
    processor = ViTImageProcessor(size={"height": image_size, "width": image_size}, image_mean=mean, image_std=STD[: len(mean)])
    processor.save_pretrained(save_model(folder, config, "AutoModelForImageClassification"))
    return folder


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    return save_vit(tmp_path / "vit")


def test_text_classifier_has_a_full_contract(bert):
    model = load_huggingface(str(bert))
    contract = model.contract
    assert [spec.describe() for spec in contract.inputs] == [
        "input_ids: int64 [batch x sequence]",
        "attention_mask: int64 [batch x sequence]",
        "token_type_ids: int64 [batch x sequence]",
    ]
    assert [spec.upper_bound for spec in contract.inputs] == [len(WORDS), 2, 2]
    assert [spec.preprocessing for spec in contract.inputs] == [TextPreprocessing(spec.name, 48) for spec in contract.inputs]
    assert contract.output.describe() == "logits: float32 [batch x 3]"
    assert (contract.kind, contract.class_names) == (Kind.LOGITS, ("negative", "neutral", "positive"))
    assert contract.assumed == ()
    assert model.name == "bert"
    assert not model.module.training


def test_logits_are_those_of_transformers(bert):
    from transformers import AutoModelForSequenceClassification

    model = load_huggingface(str(bert))
    inputs = random_inputs(model.contract, 3, np.random.default_rng(0))
    reference = AutoModelForSequenceClassification.from_pretrained(bert).eval()
    with torch.inference_mode():
        expected = reference(**{name: torch.from_numpy(array) for name, array in inputs.items()}).logits
    np.testing.assert_allclose(model(inputs)["logits"], expected.numpy(), atol=1e-6)


@pytest.mark.parametrize("kept", ["tokenizer.json", "vocab.txt"])
def test_tokenizer_travels_whole_and_also_from_slow_files(bert, kept):
    from transformers import AutoTokenizer

    for name in {"tokenizer.json", "vocab.txt"} - {kept}:
        (bert / name).unlink()
    model = load_huggingface(str(bert))
    expected = AutoTokenizer.from_pretrained(bert)(TEXTS, padding=True, truncation=True, max_length=48)
    columns = {spec.name: TEXTS for spec in model.contract.inputs}
    inputs, _ = preprocess(columns, model.contract, tokenizer_json=model.tokenizer_json)
    assert inputs["input_ids"].shape == (4, 48)
    for name, array in inputs.items():
        np.testing.assert_array_equal(array, expected[name])


def test_padding_token_of_the_other_files_is_written_into_the_tokenizer(bert):
    edit(bert / "tokenizer_config.json", pad_token="[MASK]")
    (bert / "special_tokens_map.json").unlink(missing_ok=True)
    tokenizer = json.loads(load_huggingface(str(bert)).tokenizer_json)
    assert (tokenizer["padding"]["pad_id"], tokenizer["padding"]["strategy"]) == (WORDS.index("[MASK]"), "BatchLongest")
    assert tokenizer["truncation"] is None


@pytest.mark.parametrize(("model_type", "limit"), [("distilbert", 64), ("roberta", 62), ("mpnet", 62)])
def test_inputs_and_longest_text_follow_the_architecture(tmp_path, model_type, limit):
    overrides = {"type_vocab_size": 1, "pad_token_id": 1} if model_type != "distilbert" else {}
    folder = save_model(tmp_path / model_type, text_config(model_type, **overrides))
    save_tokenizer(folder, max_length=1_000_000_000)
    model = load_huggingface(str(folder))
    assert [spec.name for spec in model.contract.inputs] == ["input_ids", "attention_mask"]
    assert {spec.preprocessing.max_length for spec in model.contract.inputs} == {limit}
    assert model(random_inputs(model.contract, 2, np.random.default_rng(0), limit))["logits"].shape == (2, 3)


def test_model_without_tokenizer_takes_ids(bert):
    for name in ("tokenizer.json", "vocab.txt"):
        (bert / name).unlink()
    model = load_huggingface(str(bert))
    assert [spec.name for spec in model.contract.inputs] == ["input_ids", "attention_mask", "token_type_ids"]
    assert {spec.preprocessing for spec in model.contract.inputs} == {None}
    assert model.tokenizer_json is None
    assert model.contract.assumed == ("bert: has no tokenizer: it takes ids, not texts",)


@pytest.mark.parametrize(
    ("changes", "kind", "names", "assumes"),
    [
        ({"id2label": {0: "score"}}, Kind.REGRESSION, None, []),
        ({"problem_type": "regression"}, Kind.REGRESSION, None, []),
        ({"problem_type": "multi_label_classification"}, Kind.SCORES, ("negative", "neutral", "positive"), []),
        ({"id2label": {2: "c", 0: "a", 1: "b"}}, Kind.LOGITS, ("a", "b", "c"), []),
        (
            {"id2label": {0: "crane", 1: "dog", 2: "crane"}},
            Kind.LOGITS,
            ("crane (0)", "dog", "crane (2)"),
            ["several classes are called crane"],
        ),
        ({"id2label": {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}}, Kind.LOGITS, None, ["names no classes"]),
    ],
)
def test_kind_and_class_names_come_from_the_config(tmp_path, changes, kind, names, assumes):
    folder = save_model(tmp_path / "model", text_config(**changes))
    save_tokenizer(folder)
    contract = load_huggingface(str(folder)).contract
    assert (contract.kind, contract.class_names) == (kind, names)
    assert len(contract.assumed) == len(assumes)
    assert all(words in note for words, note in zip(assumes, contract.assumed, strict=True))


def test_feature_extraction_gives_hidden_states_and_needs_no_pooler(bert, tmp_path):
    contract = load_huggingface(str(bert), task="feature-extraction").contract
    assert (contract.kind, contract.output.describe()) == (
        Kind.EMBEDDING,
        "last_hidden_state: float32 [batch x sequence x 16]",
    )
    poolerless = save_model(tmp_path / "roberta", text_config("roberta", type_vocab_size=1))
    assert load_huggingface(str(poolerless), task="feature-extraction").contract.class_names is None


def test_task_is_a_guess_only_where_no_architecture_is_named(bert):
    edit(bert / "config.json", architectures=None)
    contract = load_huggingface(str(bert)).contract
    assert contract.assumed == ("bert: names no architecture, so it is taken for text-classification",)


def test_image_classifier_prepares_pictures_as_its_processor_does(vit):
    from transformers import AutoImageProcessor

    model = load_huggingface(str(vit))
    (pixels,) = model.contract.inputs
    assert pixels.describe() == "pixel_values: float32 [batch x 3 x 32 x 32]"
    assert pixels.preprocessing == ImagePreprocessing(mean=(0.48145466, 0.5, 0.6), std=STD, resample="bilinear")
    assert (model.contract.class_names, model.contract.assumed) == (("cat", "dog"), ())
    pictures = np.random.default_rng(0).integers(0, 256, (2, 60, 90, 3)).astype(np.uint8)
    with quiet_transformers():
        processor = AutoImageProcessor.from_pretrained(vit, use_fast=False)
        expected = processor(images=list(pictures), return_tensors="np")["pixel_values"]
    inputs, _ = preprocess({"pixel_values": pictures}, model.contract)
    np.testing.assert_allclose(inputs["pixel_values"], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "shorter_side", "assumes"),
    [
        ({"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 40}, "crop_size": 32}, 40, None),
        ({"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 32}, "crop_pct": 0.8}, 40, None),
        ({"image_processor_type": "DeiTImageProcessor", "size": 40, "crop_size": 32}, 40, "resizes and crops otherwise"),
    ],
)
def test_pictures_are_cropped_as_the_processor_does_or_the_difference_is_told(vit, settings, shorter_side, assumes):
    (vit / "preprocessor_config.json").write_text(json.dumps(settings))
    contract = load_huggingface(str(vit)).contract
    assert contract.inputs[0].shape == ("batch", 3, 32, 32)
    assert contract.inputs[0].preprocessing.resize_shorter_side == shorter_side
    assert [assumes in note for note in contract.assumed] == ([] if assumes is None else [True])


def test_scaling_that_the_settings_do_not_tell_is_measured(vit):
    settings = {"image_processor_type": "EfficientNetImageProcessor", "size": 32, "resample": 2}
    settings |= {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.5, 0.5, 0.25], "include_top": True}
    (vit / "preprocessor_config.json").write_text(json.dumps(settings))
    contract = load_huggingface(str(vit)).contract
    assert contract.inputs[0].preprocessing.mean == pytest.approx((0.4, 0.5, 0.6), abs=1e-5)
    assert contract.inputs[0].preprocessing.std == pytest.approx((0.25, 0.25, 0.0625), abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (None, "states no image processor"),
        (
            {"image_processor_type": "MobileViTImageProcessor", "size": {"shortest_edge": 32}, "crop_size": 32},
            "does more to colours",
        ),
        (
            {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 32}, "do_center_crop": False},
            "differing sizes",
        ),
    ],
)
def test_no_preprocessing_is_stated_that_would_be_wrong(vit, settings, reason):
    (vit / "preprocessor_config.json").unlink()
    if settings is not None:
        (vit / "preprocessor_config.json").write_text(json.dumps(settings))
    contract = load_huggingface(str(vit)).contract
    assert contract.inputs[0].preprocessing is None
    assert contract.inputs[0].shape == ("batch", 3, 32, 32)
    assert len(contract.assumed) == 1
    assert reason in contract.assumed[0]


def test_grey_pictures(tmp_path):
    folder = save_vit(tmp_path / "grey", image_size=28, mean=(0.5,), num_channels=1)
    (pixels,) = load_huggingface(str(folder)).contract.inputs
    assert (pixels.shape, pixels.preprocessing.mean) == (("batch", 1, 28, 28), (0.5,))


def to_pickle(folder: Path) -> None:
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def test_pickle_is_read_only_when_allowed(bert):
    inputs = random_inputs(load_huggingface(str(bert)).contract, 2, np.random.default_rng(0))
    expected = load_huggingface(str(bert))(inputs)["logits"]
    to_pickle(bert)
    with pytest.raises(SourceError, match=r"pytorch_model\.bin is a pickle, which can run code .* --allow-pickle"):
        load_huggingface(str(bert))
    np.testing.assert_array_equal(load_huggingface(str(bert), allow_pickle=True)(inputs)["logits"], expected)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "boom")


def test_pickle_that_runs_code_does_not_run_it(bert, tmp_path):
    (bert / "model.safetensors").unlink()
    (bert / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
    with pytest.raises(SourceError, match="more than tensors, or is cut short, and was not read"):
        load_huggingface(str(bert), allow_pickle=True)
    assert not (tmp_path / "boom").exists()


def truncate(path: Path, size_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:size_bytes])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
        (lambda folder: truncate(folder / "config.json", 50), "config.json is not JSON, or is cut short"),
        (lambda folder: (folder / "config.json").write_text("[]"), "names no model_type"),
        (lambda folder: edit(folder / "config.json", model_type=None), "names no model_type"),
        (lambda folder: edit(folder / "config.json", model_type="mystery"), "'mystery', which transformers .* does not know"),
        (
            lambda folder: edit(folder / "config.json", model_type="mystery", auto_map={"AutoModel": "code.Mystery"}),
            "brings its own code .* never run",
        ),
        (lambda folder: edit(folder / "config.json", hidden_size="wide"), "cannot be loaded for text-classification"),
        (lambda folder: edit(folder / "config.json", hidden_size=32), "cannot be loaded for text-classification"),
        (lambda folder: edit(folder / "config.json", num_hidden_layers=2), "no weights for bert.encoder.layer.1"),
        (
            lambda folder: edit(folder / "config.json", num_hidden_layers=2, auto_map={"AutoModel": "code.Bert"}),
            "code of its own, and such code is never run",
        ),
        (lambda folder: edit(folder / "config.json", id2label={"1": "a", "2": "b", "3": "c"}), "expected 0 to c-1"),
        (lambda folder: edit(folder / "config.json", architectures=["BertForMaskedLM"]), "holds a BertForMaskedLM"),
        (lambda folder: edit(folder / "config.json", model_type="bart"), "an encoder with a decoder"),
        (lambda folder: truncate(folder / "model.safetensors", 5000), "cannot be loaded for text-classification"),
        (lambda folder: truncate(folder / "model.safetensors", 4), "cannot be loaded for text-classification"),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no model.safetensors"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "holds a PEFT adapter"),
        (lambda folder: truncate(folder / "tokenizer.json", 100), "the tokenizer in .* cannot be read: .* remove them"),
    ],
)  # fmt: skip
def test_damaged_folder_is_refused_in_one_line(bert, damage: Callable[[Path], object], message):
    damage(bert)
    task = "text-classification" if "decoder" in message else None
    with pytest.raises(SourceError, match=message) as caught:
        load_huggingface(str(bert), task=task)
    assert len(str(caught.value).splitlines()) == 1


def test_damaged_image_processor(vit):
    truncate(vit / "preprocessor_config.json", 30)
    with pytest.raises(SourceError, match=r"the image processor in .* cannot be used: .* prepared pixels only"):
        load_huggingface(str(vit))


def test_base_model_is_no_classifier(tmp_path):
    folder = save_model(tmp_path / "base", text_config(), "AutoModel")
    with pytest.raises(SourceError, match=r"no weights for classifier\.bias, classifier\.weight: it is no complete"):
        load_huggingface(str(folder), task="text-classification")
    with pytest.raises(SourceError, match=r"no image-classification model: pass --task text-classification or feature-extr"):
        load_huggingface(str(folder), task="image-classification")


def test_unknown_task_lists_the_known_ones():
    with pytest.raises(ConfigError, match="'summarise', expected one of: text-classification, image-classification, feature"):
        load_huggingface("never-loaded", task="summarise")


@pytest.mark.parametrize("place", ["/no/such/folder", "./missing", "a/b/c", __file__])
def test_missing_folder(place):
    with pytest.raises(SourceError, match=r"no such model folder|is a file, expected a Hugging Face folder"):
        load_huggingface(place)


def test_hub_id_while_offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match="monograph-tests/nothing is no folder here, and the Hugging Face hub") as caught:
        load_huggingface("monograph-tests/nothing")
    assert caught.value.__cause__ is not None
    assert len(str(caught.value).splitlines()) == 1


def test_hub_id_is_downloaded_and_then_read_as_a_folder(bert, monkeypatch):
    asked = {}

    def snapshot_download(repo_id: str, **options: object) -> str:
        asked.update(options, repo_id=repo_id)
        return str(bert)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert load_huggingface("someone/bert").name == "someone/bert"
    assert asked["repo_id"] == "someone/bert"
    assert "*.safetensors" in asked["allow_patterns"]
    assert not any("bin" in pattern or "py" in pattern for pattern in asked["allow_patterns"])


def test_local_folder_reaches_for_no_network_and_prints_nothing(bert, vit, monkeypatch, capfd):
    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load_huggingface(str(bert))
    load_huggingface(str(bert), task="feature-extraction")
    load_huggingface(str(vit))
    assert capfd.readouterr() == ("", "")
