"""The training loop: exact resume, exact accumulation, and a stop where the loss is lost."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from monograph.errors import ConfigError, ContractError, MonographError
from monograph.models.contract import Contract, Kind, TensorSpec
from monograph.models.data.rows import Rows
from monograph.models.students import conv, mlp
from monograph.models.torch_model import TorchModel
from monograph.pipelines.training import UNLABELLED, Augmentation, Batch, TrainingSettings, train
from monograph.pipelines.training.checkpoint import FILE

SETTINGS = TrainingSettings(epochs=4, batch_size=16, learning_rate=1e-2, seed=3)


def model(seed: int = 0, dropout: float = 0.3) -> TorchModel:
    torch.manual_seed(seed)
    return TorchModel(*mlp((1, 4, 4), 3, width=16, dropout=dropout), "net")


def rows(count: int = 100, seed: int = 0) -> Rows:
    """Pictures whose class is the brightest of three places."""
    pixels = np.random.default_rng(seed).standard_normal((count, 1, 4, 4)).astype(np.float32)
    return Rows({"pixels": pixels}, pixels.reshape(count, -1)[:, :3].argmax(1))


def weights(trained: TorchModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trained.module.state_dict().items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def trained(settings: TrainingSettings, **choices: object) -> tuple[dict[str, Tensor], object]:
    one = model()
    training = train(one, rows(), rows(60, seed=1), settings, **choices)
    return weights(one), training


def test_it_learns_and_keeps_the_best_epoch():
    one = model()
    training = train(one, rows(400), rows(200, seed=1), replace(SETTINGS, epochs=15))
    assert training.epochs[training.best_epoch].validation_loss == min(epoch.validation_loss for epoch in training.epochs)
    assert training.epochs[training.best_epoch].validation_top1 > 0.8
    assert not one.module.training


def test_a_seed_gives_the_same_weights_and_another_seed_others():
    assert_same(trained(SETTINGS)[0], trained(SETTINGS)[0])
    assert not torch.equal(trained(SETTINGS)[0]["1.weight"], trained(replace(SETTINGS, seed=4))[0]["1.weight"])


class StopError(Exception):
    """A person's interrupt, at a step of our choosing."""


@pytest.mark.parametrize("stop_at", [1, 7, 8, 12, 17])
@pytest.mark.parametrize("more", [{}, {"ema_decay": 0.9, "schedule": "cosine"}, {"schedule": "constant", "patience": 2}])
def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(
    tmp_path: Path, stop_at: int, more: dict[str, object], monkeypatch: pytest.MonkeyPatch
):
    """Six steps an epoch, a checkpoint every four: so it is resumed within an epoch too."""
    monkeypatch.setattr("monograph.pipelines.training.loop._STEPS_A_CHECKPOINT", 4)
    settings = replace(SETTINGS, **more)
    whole, training = trained(settings)

    def stop(step: int, steps: int, loss: float) -> None:
        if step == stop_at:
            raise StopError

    with pytest.raises(StopError):
        trained(settings, folder=tmp_path, on_step=stop)
    resumed, again = trained(settings, folder=tmp_path)
    assert_same(whole, resumed)
    assert again == training


KILLED = """
import sys; sys.path.insert(0, {tests!r})
import os, signal
from pathlib import Path
import monograph.pipelines.training.loop as loop
from test_loop import SETTINGS, model, rows
loop._STEPS_A_CHECKPOINT = 4
def kill(step, steps, loss):
    if step == {step}: os.kill(os.getpid(), signal.SIGKILL)
loop.train(model(), rows(), rows(60, seed=1), SETTINGS, folder=Path({folder!r}), on_step=kill)
"""


@pytest.mark.slow
def test_a_killed_process_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    step = int(np.random.default_rng().integers(1, 24))
    code = KILLED.format(tests=str(Path(__file__).parent), step=step, folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    monkeypatch.setattr("monograph.pipelines.training.loop._STEPS_A_CHECKPOINT", 4)
    assert_same(trained(SETTINGS)[0], trained(SETTINGS, folder=tmp_path)[0])


@pytest.mark.parametrize("parts", [2, 3, 16])
def test_a_batch_that_is_cut_gives_the_gradient_of_the_whole(parts: int):
    """Batches of 16 rows in parts of unequal size: averaging parts alike would be another gradient."""
    gradients = []
    for count in (1, parts):
        one = model(dropout=0.0)
        seen: list[Tensor] = []
        one.module[1].weight.register_post_accumulate_grad_hook(lambda weight, seen=seen: seen.append(weight.grad.clone()))
        train(one, rows(16), rows(60, seed=1), replace(SETTINGS, epochs=1, gradient_accumulation=count))
        gradients.append(seen[-1])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-6)


def test_an_objective_is_told_which_rows_are_meant():
    """Every row's own number, however they are shuffled; labels of rows without any."""
    given = rows(64)
    unlabelled = Rows(given.inputs)
    met: list[int] = []

    def objective(outputs: list[Tensor], batch: Batch) -> Tensor:
        met.extend(batch.rows.tolist())
        assert (batch.labels == UNLABELLED).all()
        for row, pixels in zip(batch.rows.tolist(), batch.inputs[0], strict=True):
            assert np.array_equal(pixels.numpy(), given.inputs["pixels"][row])
        return (outputs[0] ** 2).mean(1)

    train(model(), unlabelled, rows(60, seed=1), replace(SETTINGS, epochs=2), objective=objective)
    assert sorted(met) == sorted([*range(64)] * 2)


def test_a_lost_loss_stops_it_and_the_last_checkpoint_stays(tmp_path: Path):
    def objective(outputs: list[Tensor], batch: Batch) -> Tensor:
        return outputs[0].sum(1) * (torch.nan if (tmp_path / FILE).exists() else 1.0)

    with pytest.raises(MonographError, match=r"the loss is not finite in epoch 2, at step 7; the last checkpoint is kept"):
        trained(SETTINGS, folder=tmp_path, objective=objective)
    assert (tmp_path / FILE).exists()
    with pytest.raises(MonographError, match=r"net: the loss is not finite in epoch 1, at step 1: try a lower learning rate"):
        trained(SETTINGS, objective=lambda outputs, batch: outputs[0].sum(1) * torch.nan)


def test_other_settings_are_refused_by_name(tmp_path: Path):
    trained(SETTINGS, folder=tmp_path, identity={"teacher": "abc"})
    with pytest.raises(ConfigError, match=r"other settings \(learning_rate was 0\.01 and is 0\.02\)"):
        trained(replace(SETTINGS, learning_rate=0.02), folder=tmp_path, identity={"teacher": "abc"})
    with pytest.raises(ConfigError, match=r"teacher was 'abc' and is 'def'"):
        trained(SETTINGS, folder=tmp_path, identity={"teacher": "def"})


def test_a_damaged_checkpoint_is_told(tmp_path: Path):
    trained(SETTINGS, folder=tmp_path)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:300])
    with pytest.raises(ConfigError, match="cannot be read, so nothing can be resumed"):
        trained(SETTINGS, folder=tmp_path)


def test_a_full_disk_is_told_and_the_last_checkpoint_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save: Callable[..., None] = torch.save
    saved: list[int] = []

    def full(state: object, path: Path) -> None:
        saved.append(1)
        if len(saved) == 2:
            raise OSError(28, "No space left on device")
        save(state, path)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(MonographError, match=r"cannot be written \(\[Errno 28\] No space left on device\): make room"):
        trained(SETTINGS, folder=tmp_path)
    monkeypatch.undo()
    assert_same(trained(SETTINGS)[0], trained(SETTINGS, folder=tmp_path)[0])


def test_patience_ends_it():
    training = trained(replace(SETTINGS, epochs=30, patience=2, learning_rate=1e-6))[1]
    still = trained(replace(SETTINGS, epochs=30, patience=2, learning_rate=0.5))[1]
    assert len(training.epochs) == 30, "it always gets a little better"
    assert len(still.epochs) - 1 - still.best_epoch == 2


def test_the_epoch_may_be_chosen_by_top1():
    training = trained(replace(SETTINGS, epochs=8, select="top1"))[1]
    best = max(epoch.validation_top1 for epoch in training.epochs)
    assert training.epochs[training.best_epoch].validation_top1 == best


def test_numbers_are_fitted_by_squared_error():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 5)).astype(np.float32)
    contract = Contract((TensorSpec("x", "float32", ("batch", 5)),), (TensorSpec("y", "float32", ("batch", 1)),), Kind.REGRESSION)
    linear = TorchModel(nn.Linear(5, 1), contract, "linear")
    data = Rows({"x": x}, (x @ np.arange(5)).astype(np.float64))
    training = train(linear, data, data, replace(SETTINGS, epochs=30, learning_rate=0.1))
    assert training.epochs[-1].validation_loss < 0.05


def test_numbers_have_no_top1_to_be_chosen_by():
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))
    contract = Contract(model().contract.inputs, (TensorSpec("value", "float32", ("batch", 1)),), Kind.REGRESSION)
    given = rows()
    targets = Rows(given.inputs, given.inputs["pixels"].reshape(100, -1)[:, 0].astype(np.float64))
    training = train(TorchModel(module, contract, "numbers"), targets, targets, replace(SETTINGS, epochs=8, select="top1"))
    assert training.best_epoch > 0


def test_wrong_settings_are_one_line():
    for change, message in (
        ({"schedule": "linear"}, "unknown schedule 'linear': choose from one-cycle, cosine, constant"),
        ({"select": "f1"}, "unknown selection 'f1'"),
        ({"epochs": 0}, "have to be at least 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            trained(replace(SETTINGS, **change))
    one = model()
    probabilities = replace(one.contract, kind=Kind.PROBABILITIES)
    with pytest.raises(ContractError, match="needs logits"):
        train(replace(one, contract=probabilities), rows(), rows(), SETTINGS)


def test_a_training_may_take_another_precision_than_the_one_before():
    for precision in ("no", "bf16", "no"):
        _, training = trained(TrainingSettings(epochs=1, mixed_precision=precision))
        assert np.isfinite(training.epochs[0].train_loss)


def test_a_model_that_learned_in_mixed_precision_answers_in_full():
    one, other = model(), model(seed=1)
    train(one, rows(), rows(60, seed=1), replace(SETTINGS, epochs=1, mixed_precision="bf16"))
    other.module.load_state_dict(weights(one))
    asked = rows(20, seed=2).inputs
    np.testing.assert_array_equal(one(asked)["logits"], other(asked)["logits"])


def test_convolutions_lie_in_memory_as_they_did():
    """They are trained channels last, and are kept, saved and exported as anybody expects them."""
    network = TorchModel(*conv((1, 8, 8), 3, width=4), "network")
    pictures = Rows({"pixels": np.random.default_rng(0).standard_normal((64, 1, 8, 8)).astype(np.float32)}, np.arange(64) % 3)
    train(network, pictures, pictures, TrainingSettings(epochs=1))
    assert all(tensor.is_contiguous() for tensor in network.module.state_dict().values())


def test_an_augmented_training_goes_on_as_if_it_had_not_been_stopped(tmp_path: Path):
    """The view belongs to the epoch; another augmentation is other settings."""
    pictures = Rows({"pixels": np.random.default_rng(0).standard_normal((64, 1, 8, 8)).astype(np.float32)}, np.arange(64) % 3)
    settings = TrainingSettings(epochs=3, batch_size=16)

    def run(folder: Path, stop_at: int, augmentation: Augmentation) -> TorchModel:
        torch.manual_seed(0)
        network = TorchModel(*conv((1, 8, 8), 3, width=4), "network")

        def stop(step: int, steps: int, loss: float) -> None:
            if step == stop_at:
                raise KeyboardInterrupt

        train(network, pictures, pictures, settings, augmentation=augmentation, folder=folder, on_step=stop)
        return network

    views = Augmentation(("shift", "erase"), views=2)
    whole = run(tmp_path / "whole", -1, views)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", 7, views)
    with pytest.raises(ConfigError, match="augmentation was"):
        run(tmp_path / "cut", -1, Augmentation(("shift",), views=2))
    assert_same(weights(run(tmp_path / "cut", -1, views)), weights(whole))
