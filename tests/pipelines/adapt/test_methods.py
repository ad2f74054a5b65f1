"""Each method does to a small network what it says, and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from monograph.errors import ConfigError, MissingPackageError
from monograph.export.trace import export_torch
from monograph.models.data.rows import Rows
from monograph.models.students import separable_conv, two_tower
from monograph.models.torch_model import TorchModel
from monograph.pipelines.adapt.methods import METHODS, Adaptation, Outcome
from monograph.pipelines.adapt.methods.head import _scale, _spread, fit_head
from monograph.pipelines.adapt.methods.layers import depths
from monograph.pipelines.adapt.network import FEATURES, network_of
from monograph.pipelines.adapt.task import Task, TaskKind

MakeAdaptation = Callable[..., Adaptation]
Parts = dict[str, Rows]
ONE_EPOCH = {"epochs": 1, "batch_size": 64}


def weights(adaptation: Adaptation) -> dict[str, torch.Tensor]:
    return copy.deepcopy(adaptation.network.state_dict())


def changed(before: dict[str, torch.Tensor], adaptation: Adaptation) -> set[str]:
    after = adaptation.network.state_dict()
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def outputs(adaptation: Adaptation, rows: Rows) -> np.ndarray:
    return adaptation.model(rows.inputs)["logits"]


class TestHead:
    def test_the_scaling_is_folded_exactly(self):
        torch.manual_seed(0)
        head, features = nn.Linear(5, 3), np.random.default_rng(0).normal(3, 2, (40, 5)).astype(np.float32)
        features[:, 4] = 7.0  # never changes
        mean, spread = _spread(features)
        assert spread[4] == pytest.approx(0.01 * np.sqrt((features**2).mean()), rel=1e-5)
        assert _spread(np.zeros((3, 1), np.float32))[1] == 1
        inputs, plain = torch.from_numpy(features), copy.deepcopy(head)
        scaled = (inputs - torch.from_numpy(mean)) / torch.from_numpy(spread)
        _scale(head, torch.from_numpy(spread), torch.from_numpy(mean))
        torch.testing.assert_close(head(scaled), plain(inputs), atol=1e-5, rtol=1e-5)
        _scale(head, torch.from_numpy(1 / spread), torch.from_numpy(-mean / spread))
        torch.testing.assert_close(head(inputs), plain(inputs), atol=1e-5, rtol=1e-5)

    def test_the_trunk_stays_bit_for_bit(self, make_adaptation: MakeAdaptation, pretrained: TorchModel, odd_parts: Parts):
        adaptation = make_adaptation(pretrained, odd_parts)
        before, chance = weights(adaptation), adaptation.quality(adaptation.model, odd_parts["validation"])
        outcome = METHODS["head"].adapt(adaptation)
        assert changed(before, adaptation) == {"head.weight", "head.bias"}
        assert [stage.name for stage in outcome.stages] == ["head"]
        assert adaptation.quality(adaptation.model, odd_parts["validation"]) > chance + 0.1
        kept = outcome.stages[0].training
        reached = kept.epochs[kept.best_epoch].validation_top1
        assert adaptation.quality(adaptation.model, odd_parts["validation"]) == pytest.approx(reached, abs=0.011)

    def test_a_kept_head_without_a_bias_gets_one(self, make_adaptation: MakeAdaptation, pretrained: TorchModel, odd_parts: Parts):
        adaptation = make_adaptation(pretrained, odd_parts, settings={"epochs": 2})
        head = adaptation.network.head
        head.bias = None
        METHODS["head"].adapt(adaptation)
        assert head.bias.abs().max() > 0

    def test_a_model_that_keeps_all_of_itself(self, make_adaptation: MakeAdaptation):
        towers = TorchModel(*two_tower(4, 4, width=2), "towers")
        rows = Rows({"left": np.array([0, 1]), "right": np.array([0, 1])}, np.array([0.0, 1.0]))
        adaptation = make_adaptation(towers, {"train": rows, "validation": rows}, Task(TaskKind.CLICK, 1, None))
        with pytest.raises(ConfigError, match=r"towers does the task as it is .* adapt it by --method full"):
            fit_head(adaptation)
        assert METHODS["full"].adapt(adaptation).stages[0].name == "full"

    def test_before_the_rest_it_is_smoothed_as_the_rest(
        self, make_adaptation: MakeAdaptation, pretrained: TorchModel, odd_parts: Parts
    ):
        losses = []
        for smoothing in (0.0, 0.4):
            adaptation = make_adaptation(pretrained, odd_parts, name=str(smoothing), settings={"label_smoothing": smoothing})
            losses.append(fit_head(adaptation).training.epochs[-1].train_loss)
        assert losses[1] > losses[0] + 0.1


class TestLastLayers:
    def test_only_these_change(self, make_adaptation: MakeAdaptation, pretrained: TorchModel, odd_parts: Parts):
        adaptation = make_adaptation(pretrained, odd_parts, settings=ONE_EPOCH, options={"layers": 2})
        before, depth = weights(adaptation), depths(adaptation.network)
        METHODS["last-layers"].adapt(adaptation)
        trained = changed(before, adaptation)
        assert trained >= {name for name, deep in depth.items() if deep <= 2 and "bias" not in name}
        assert not [name for name in trained if depth.get(name, 0) > 2]
        frozen_statistics = [name for name in before if "running" in name and f"{name.rpartition('.')[0]}.weight" in depth]
        for name in frozen_statistics:
            assert (name in trained) == (depth[f"{name.rpartition('.')[0]}.weight"] <= 2), name
        assert all(parameter.requires_grad for parameter in adaptation.network.parameters())

    @pytest.mark.parametrize(
        ("layers", "message"),
        [(99, "option layers=99: conv has 6 layers below its head"), (1.5, "layers=1.5: give a whole number"), (0, "whole")],
    )
    def test_as_many_as_there_are(
        self, make_adaptation: MakeAdaptation, pretrained: TorchModel, odd_parts: Parts, layers: float, message: str
    ):
        with pytest.raises(ConfigError, match=message):
            METHODS["last-layers"].adapt(make_adaptation(pretrained, odd_parts, options={"layers": layers}))

    def test_an_option_that_is_no_number(self, make_adaptation: MakeAdaptation, pretrained: TorchModel, odd_parts: Parts):
        with pytest.raises(ConfigError, match="option layers='two': give a number, such as layers=1"):
            METHODS["last-layers"].adapt(make_adaptation(pretrained, odd_parts, options={"layers": "two"}))


def test_layers_learn_slower_the_deeper_they_lie(make_adaptation: MakeAdaptation, pretrained: TorchModel, odd_parts: Parts):
    """With a decay of next to nothing only the head moves."""
    moved = {}
    for decay in (1e-6, 1.0):
        adaptation = make_adaptation(
            pretrained, odd_parts, name=f"{decay}", settings=ONE_EPOCH | {"weight_decay": 0.0}, options={"decay": decay}
        )
        before = weights(adaptation)
        METHODS["layer-decay"].adapt(adaptation)
        first = next(name for name, _ in adaptation.network.trunk.named_parameters(prefix="trunk"))
        moved[decay] = float((adaptation.network.state_dict()[first] - before[first]).abs().max())
    assert moved[1e-6] < 1e-6 < 1e-4 < moved[1.0]
    with pytest.raises(ConfigError, match=r"option decay=1.5: give a factor above 0 and up to 1"):
        METHODS["layer-decay"].adapt(make_adaptation(pretrained, odd_parts, options={"decay": 1.5}))


class TestLora:
    pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")

    @pytest.fixture(autouse=True)
    def _needs_peft(self):
        pytest.importorskip("peft", reason="peft is not installed: pip install 'monograph[adapt]'")

    def test_thin_matrices_are_merged(
        self,
        make_adaptation: MakeAdaptation,
        bert: TorchModel,
        texts: Rows,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ):
        import peft

        adaptation = make_adaptation(
            bert, {"train": texts, "validation": texts}, settings=ONE_EPOCH | {"learning_rate": 0.05}, options={"rank": 2}
        )
        before, unmerged = weights(adaptation), []
        merge = peft.LoraModel.merge_and_unload

        def watched(self: Any, *arguments: Any, **named: Any) -> Any:
            unmerged.append(outputs(adaptation, texts))
            return merge(self, *arguments, **named)

        monkeypatch.setattr(peft.LoraModel, "merge_and_unload", watched)
        outcome = METHODS["lora"].adapt(adaptation)
        np.testing.assert_allclose(outputs(adaptation, texts), unmerged[0], atol=1e-5)
        assert set(adaptation.network.state_dict()) == set(before)
        assert not [module for module in adaptation.network.modules() if type(module).__module__.startswith("peft")]
        assert "trunk.module.model.bert.encoder.layer.0.attention.self.query.weight" in changed(before, adaptation)
        assert not [name for name in changed(before, adaptation) if "LayerNorm" in name or "embeddings" in name]
        assert "merged into them" in outcome.notes[0]
        exported = export_torch(adaptation.model, tmp_path / "lora.onnx", rows=texts.take(slice(0, 8)))
        assert exported.proof.batches

    def test_convolutions_in_groups_are_left_alone(self, make_adaptation: MakeAdaptation, odd_parts: Parts):
        torch.manual_seed(0)
        network = TorchModel(*separable_conv((1, 8, 8), width=4, dropout=0.0), "separable")
        adaptation = make_adaptation(network, odd_parts, settings=ONE_EPOCH)
        before = weights(adaptation)
        METHODS["lora"].adapt(adaptation)
        in_groups = [
            name for name, module in adaptation.network.named_modules() if isinstance(module, nn.Conv2d) and module.groups > 1
        ]
        assert in_groups
        assert not {f"{name}.weight" for name in in_groups} & changed(before, adaptation)

    @pytest.mark.parametrize(
        ("options", "message"),
        [({"rank": 0}, "rank=0: give a whole"), ({"dropout": 2}, "dropout=2: give a share"), ({"alpha": 0}, "alpha=0")],
    )
    def test_options(
        self,
        make_adaptation: MakeAdaptation,
        pretrained: TorchModel,
        odd_parts: Parts,
        options: dict[str, float],
        message: str,
    ):
        with pytest.raises(ConfigError, match=message):
            METHODS["lora"].adapt(make_adaptation(pretrained, odd_parts, options=options))


def test_lora_without_its_library(
    make_adaptation: MakeAdaptation, pretrained: TorchModel, odd_parts: Parts, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(MissingPackageError, match=r"--method lora needs the package peft: pip install 'monograph\[adapt\]'"):
        METHODS["lora"].adapt(make_adaptation(pretrained, odd_parts))


class TestBatchNorm:
    def test_statistics_and_the_head_alone_change(
        self, make_adaptation: MakeAdaptation, pretrained: TorchModel, odd_parts: Parts
    ):
        darker = {name: replace(rows, inputs={"pixels": rows.inputs["pixels"] * 0.2}) for name, rows in odd_parts.items()}
        adaptation = make_adaptation(pretrained, darker)
        before = weights(adaptation)
        outcome = METHODS["batchnorm"].adapt(adaptation)
        statistics = {name for name in before if "running_" in name}
        counts = {name for name in before if "num_batches" in name}
        assert changed(before, adaptation) - counts == statistics | {"head.weight", "head.bias"}
        assert "200 training rows" in outcome.notes[0]
        first = next(module for module in adaptation.network.modules() if isinstance(module, nn.BatchNorm2d))
        convolution = next(module for module in adaptation.network.modules() if isinstance(module, nn.Conv2d))
        with torch.inference_mode():
            given = convolution(torch.from_numpy(darker["train"].inputs["pixels"]))
        torch.testing.assert_close(first.running_mean, given.mean((0, 2, 3)), atol=1e-4, rtol=1e-3)

    def test_a_network_without(self, make_adaptation: MakeAdaptation, bert: TorchModel, texts: Rows):
        with pytest.raises(ConfigError, match="bert has no batch norm to recalibrate"):
            METHODS["batchnorm"].adapt(make_adaptation(bert, {"train": texts, "validation": texts}))


def test_wise_ft_is_the_best_mean_of_old_and_new(
    make_adaptation: MakeAdaptation, pretrained: TorchModel, odd_parts: Parts, monkeypatch: pytest.MonkeyPatch
):
    settings = ONE_EPOCH | {"learning_rate": 0.02}
    shifted = replace(odd_parts["validation"], inputs={"pixels": odd_parts["validation"].inputs["pixels"][:, :, ::-1].copy()})
    parts = odd_parts | {"shifted": shifted}
    old = make_adaptation(pretrained, odd_parts, name="old")
    fit_head(old)
    new = make_adaptation(pretrained, odd_parts, name="new", settings=settings)
    METHODS["lp-ft"].adapt(new)
    adaptation = make_adaptation(pretrained, parts, name="mean", settings=settings)
    outcome: Outcome = METHODS["wise-ft"].adapt(adaptation)
    assert [mix.share for mix in outcome.mixes] == [step / 10 for step in range(11)]
    for adapted, mix in ((old, outcome.mixes[0]), (new, outcome.mixes[-1])):
        assert mix.validation == adapted.quality(adapted.model, odd_parts["validation"])
        if adapted is new:
            assert mix.shifted == adapted.quality(adapted.model, shifted)
    best = max(mix.validation for mix in outcome.mixes)
    chosen = next(mix for mix in outcome.mixes if mix.validation == best)
    assert adaptation.quality(adaptation.model, odd_parts["validation"]) == best
    for name, tensor in adaptation.network.state_dict().items():
        if "running" not in name and "num_batches" not in name:
            mean = torch.lerp(old.network.state_dict()[name], new.network.state_dict()[name], chosen.share)
            torch.testing.assert_close(tensor, mean, atol=1e-6, rtol=1e-5)
    assert f"{chosen.share:.1f} of the new weights are kept" in outcome.notes[0]
    assert "% on shifted rows" in outcome.notes[0]


def test_methods_say_where_they_come_from():
    assert list(METHODS) == ["head", "batchnorm", "last-layers", "full", "lp-ft", "layer-decay", "lora", "wise-ft"]
    assert all(method.source.startswith("https://arxiv.org/abs/") for method in METHODS.values())


def test_features_stand_beside_their_labels(make_adaptation: MakeAdaptation, pretrained: TorchModel, odd_parts: Parts):
    adaptation = make_adaptation(pretrained, odd_parts)
    rows = adaptation.features.of(odd_parts["train"])
    trunk = network_of(adaptation.model).trunk
    with torch.inference_mode():
        expected = trunk(torch.from_numpy(odd_parts["train"].inputs["pixels"]))
    np.testing.assert_allclose(rows.inputs[FEATURES], expected.numpy(), atol=1e-5)
    assert adaptation.features.of(odd_parts["train"]) is rows
