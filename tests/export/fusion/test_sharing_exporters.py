"""One network by two exporters: what both write of it runs once.

The networks are of transformers' own architectures, tiny, with random weights; optimum exports by PyTorch's older exporter,
the other route by its newer one, and hardly a line of the two graphs is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from monograph.export.fusion import fuse, plan_fusion
from monograph.export.fusion.build import build_graph
from monograph.export.huggingface import export_huggingface_model
from monograph.models.huggingface import load_huggingface, quiet_transformers
from monograph.models.onnx_file import OnnxFile, read_onnx

pytest.importorskip("optimum.exporters.onnx", reason="optimum-onnx, the other exporter, is not installed")

TEXT = {"vocab_size": 99, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
PICTURE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32}
NETWORKS: Mapping[str, dict[str, object]] = {
    "bert": TEXT,
    "roberta": TEXT | {"type_vocab_size": 1, "max_position_embeddings": 66},
    "distilbert": {"vocab_size": 99, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
    "albert": TEXT | {"embedding_size": 16},
    "vit": PICTURE | {"patch_size": 8},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
    "mobilenet_v2": {"depth_multiplier": 0.25, "image_size": 32},
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
}
PICTURES = ("vit", "resnet", "mobilenet_v2", "convnext")


def exports(model_type: str, folder: Path, head_count: int = 1) -> dict[str, list[OnnxFile]]:
    """Both routes' files of one trunk under ``head_count`` heads."""
    files: dict[str, list[OnnxFile]] = {"optimum": [], "dynamo": []}
    for number in range(head_count):
        source = folder / f"{model_type}-{number}"
        _save(source, model_type, number)
        for route, made in files.items():
            path = folder / f"{source.name}-{route}.onnx"
            export_huggingface_model(load_huggingface(str(source)), path, route=route)
            made.append(read_onnx(path))
    return files


def _save(folder: Path, model_type: str, head: int) -> None:
    import transformers

    with quiet_transformers():
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(model_type, id2label={0: "a", 1: "b", 2: "c"}, **NETWORKS[model_type])
        loader = transformers.AutoModelForImageClassification if model_type in PICTURES else None
        model = (loader or transformers.AutoModelForSequenceClassification).from_config(config)
        torch.manual_seed(1 + head)
        [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)][-1].reset_parameters()  # the head
        model.save_pretrained(folder)
        if model_type in PICTURES:
            transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", NETWORKS)
def test_the_same_network_twice_runs_once(model_type: str, tmp_path: Path):
    files = exports(model_type, tmp_path)
    (old,), (new,) = files.values()
    alone = build_graph(plan_fusion([new, new], combine="probs"))[0]
    fused = fuse(plan_fusion([old, new], combine="probs"), tmp_path / "fused.onnx")
    assert fused.node_count == sum(1 for _ in alone.graph.all_nodes())
    assert fused.cost.saved_macs == fused.cost.fused_macs
    assert fused.file.size_bytes < 1.2 * new.size_bytes


@pytest.mark.slow
def test_four_heads_by_two_exporters_are_one_layer_on_one_trunk(tmp_path: Path):
    files = exports("bert", tmp_path, head_count=4)
    members = [*files["optimum"][:2], *files["dynamo"][2:]]
    fused = fuse(plan_fusion(members, combine="logits"), tmp_path / "fused.onnx")
    assert fused.cost.sharing is not None
    assert fused.cost.sharing.heads_folded == 4
    one = build_graph(plan_fusion([members[2], members[2]], combine="logits"))[0]
    assert fused.node_count <= sum(1 for _ in one.graph.all_nodes())
    apart = fuse(plan_fusion(members, combine="logits", share=False), tmp_path / "apart.onnx")
    assert apart.node_count > 3 * fused.node_count
