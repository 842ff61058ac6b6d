"""The CUDA step, on a CPU: torch.compile is the identity here, so everything runs except the compiled kernels."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.containers import NUM_TRAIN, TRAIN_IMAGES, TRAIN_LABELS
from support.tiny_world import tiny_world
from support.training_runs import assert_equal

from fastcifar.pipeline.loader import EpochPlanner, ResidentLoader
from fastcifar.recipes import get_recipe
from fastcifar.training import trainer as trainer_module
from fastcifar.training.compiled_network import StepOptions
from fastcifar.training.device import configured_device
from fastcifar.training.trainer import Trainer


@pytest.fixture(autouse=True)
def _no_compiler(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    with tiny_world():
        yield


def build_loader() -> ResidentLoader:
    planner = EpochPlanner(torch.arange(NUM_TRAIN), replace(get_recipe("sgd92"), global_batch_size=8))
    return ResidentLoader(torch.from_numpy(TRAIN_IMAGES), torch.from_numpy(TRAIN_LABELS).long(), planner)


def build_trainer(name: str, precision: str, *, compile: bool = True, **options: Any) -> Trainer:  # noqa: A002
    recipe = replace(get_recipe(name).with_epochs(4), global_batch_size=8)
    step_options = StepOptions(**options)
    return Trainer(recipe, torch.device("cpu"), precision=precision, compile=compile, options=step_options)


def train(trainer: Trainer, *epochs: int) -> list[tuple[float, float]]:
    return [trainer.train_epoch(build_loader(), epoch, lambda step: None) for epoch in epochs]


@pytest.mark.parametrize("name", ["sgd92", "adam89"])
def test_in_float32_it_is_the_plain_step_to_the_bit(name: str) -> None:
    """Including counters of batches, totals and optimizer state."""
    plain, ours = build_trainer(name, "fp32", compile=False), build_trainer(name, "fp32")
    ours.warm_up(build_loader())
    assert train(ours, 0, 1) == train(plain, 0, 1)
    assert_equal(ours.state(), plain.state(), "state")
    assert ours.model.backbone.bn1.num_batches_tracked == 10


@pytest.mark.parametrize("name", ["sgd92", "adam89"])
def test_weights_held_in_bf16_train_as_autocast_does(name: str) -> None:
    """The first step has the same bits before its update. After that roundings differ, float32's and bf16's, and
    training amplifies them: an epoch's loss stays within 5%."""
    plain, ours = build_trainer(name, "bf16", compile=False), build_trainer(name, "bf16")
    ours.warm_up(build_loader())
    losses = []
    for trainer in (plain, ours):
        loader = build_loader()
        trainer.begin_epoch()
        next(loader.epoch(0))
        trainer.step(loader)
        losses.append(trainer.totals.tolist())
    assert losses[0] == losses[1]
    (loss, _), (our_loss, _) = train(plain, 0)[0], train(ours, 0)[0]
    assert our_loss == pytest.approx(loss, rel=0.05)
    state, expected = ours.state(), plain.state()
    assert all(value.dtype == expected["model"][key].dtype for key, value in state["model"].items())
    assert state["optimizer"]["param_groups"] == expected["optimizer"]["param_groups"]
    assert set(state["optimizer"]["state"][0]) == set(expected["optimizer"]["state"][0])


def test_a_loaded_state_reaches_the_bf16_weights() -> None:
    """A resumed run equals the uninterrupted run to the last bit."""
    whole, first, second = (build_trainer("sgd92", "bf16") for _ in range(3))
    train(whole, 0, 1)
    train(first, 0)
    second.load_state(first.state())
    second.warm_up(build_loader())
    train(second, 1)
    assert_equal(second.state(), whole.state(), "state")


def test_a_capture_that_fails_leaves_a_compiled_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(run: Any, num_steps: int) -> None:
        for _ in range(4):
            run()
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(trainer_module, "CudaGraphStep", fail)
    expected, trainer = build_trainer("adam89", "fp32"), build_trainer("adam89", "fp32")
    trainer._captures = True
    trainer.warm_up(build_loader())
    assert not trainer.is_captured
    assert str(trainer.capture_failure).startswith("operation not permitted when stream is capturing, in ")
    assert train(trainer, 0) == train(expected, 0)


def test_out_of_memory_in_a_capture_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer_module, "CudaGraphStep", fail)
    trainer = build_trainer("adam89", "fp32")
    trainer._captures = True
    with pytest.raises(torch.OutOfMemoryError):
        trainer.warm_up(build_loader())


def test_a_captured_step_is_told_how_many_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []

    class Graph:
        def __init__(self, run: Any, num_steps: int) -> None:
            left.append(-num_steps)

        def begin_epoch(self) -> None: ...

        def step(self, num_left: int) -> None:
            left.append(num_left)

    monkeypatch.setattr(trainer_module, "CudaGraphStep", Graph)
    trainer = build_trainer("adam89", "fp32", steps_per_graph=3)
    trainer._captures = True
    trainer.warm_up(build_loader())
    train(trainer, 0, 1)
    assert left == [-3, 5, 4, 3, 2, 1, 5, 4, 3, 2, 1]


def test_cuda_runs_allow_tf32_as_torch_advises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    with configured_device("cuda:0", description="a GPU", num_threads=torch.get_num_threads(), deterministic=False):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == "highest"
