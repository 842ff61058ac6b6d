import contextlib
import itertools
from dataclasses import replace

import pytest
import torch
from support.all_levels import AllLevels
from support.batches import read_epoch
from support.containers import NUM_TRAIN, TRAIN_IMAGES, TRAIN_LABELS
from support.published import MyResnet
from support.tiny_world import tiny_world
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torchvision.transforms import Normalize

from fastcifar.pipeline.loader import EpochPlanner, ResidentLoader
from fastcifar.recipes import get_recipe
from fastcifar.training.trainer import Trainer

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def build_loader(
    batch_size: int = 8,
    device: torch.device = CPU,
    num_images: int = NUM_TRAIN,
) -> ResidentLoader:
    indices = torch.arange(num_images, device=device)
    planner = EpochPlanner(indices, replace(get_recipe("sgd92"), global_batch_size=batch_size))
    images, labels = torch.from_numpy(TRAIN_IMAGES), torch.from_numpy(TRAIN_LABELS).long()
    return ResidentLoader(images.to(device), labels.to(device), planner)


def build_trainer(
    name: str,
    device: torch.device = CPU,
    precision: str = "fp32",
    compile: bool = False,  # noqa: A002
    seed: int = 42,
    num_epochs: int = 4,
    is_narrow: bool = True,
) -> Trainer:
    recipe = replace(get_recipe(name).with_epochs(num_epochs), global_batch_size=8, seed=seed)
    with tiny_world() if is_narrow else contextlib.nullcontext():
        return Trainer(recipe, device, precision=precision, compile=compile)


def as_a_notebook(name: str, num_epochs: int) -> tuple[MyResnet, list[float]]:
    """The recipe as its authors wrote it, on the same batches, in float64."""
    torch.manual_seed(42)
    model = MyResnet().double()
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    if name == "sgd92":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, foreach=False)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)
    else:
        optimizer = torch.optim.Adam(model.parameters(), lr=0.001, weight_decay=1e-4, foreach=False)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    losses = []
    for epoch in range(num_epochs):
        total = 0.0
        for images, labels in read_epoch(build_loader(num_images=8), epoch):
            scaled = (images.permute(0, 3, 1, 2).contiguous().float() / 255).double()
            inputs: Tensor = Normalize((0.5,) * 3, (0.5,) * 3)(scaled)
            optimizer.zero_grad()
            loss = nn.CrossEntropyLoss()(model(inputs), labels)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(labels)
        losses.append(total / 8)
        scheduler.step()
    return model, losses


@pytest.mark.parametrize("name", ["sgd92", "adam89"])
def test_training_equals_the_notebooks(name: str) -> None:
    """Three epochs of one step each, so with three learning rates, in float64, and with the real network.

    Another order of summation changes a gradient by at most 1e-12 (10,000 products, rounded to 1e-16 each). Adam
    divides a change by at least its epsilon, 1e-8, and multiplies by the learning rate, 1e-3: a weight changes by at
    most 1e-7. In float32 the change could be a whole step.
    """
    notebook, losses = as_a_notebook(name, 3)
    trainer = build_trainer(name, is_narrow=False)
    trainer.model.double()
    trainer.mean, trainer.std = trainer.mean.double(), trainer.std.double()
    for epoch, expected in enumerate(losses):
        loss, _ = trainer.train_epoch(build_loader(num_images=8), epoch, lambda step: None)
        assert loss == pytest.approx(expected, rel=1e-6)
    weights = trainer.model.state_dict()
    for key, value in notebook.state_dict().items():
        torch.testing.assert_close(weights[key], value, rtol=1e-5, atol=1e-7, msg=key)


@pytest.mark.parametrize(
    ("name", "rates"),
    [("sgd92", [0.1, 0.0853553, 0.05, 0.0146447, 0.0]), ("adam89", [0.001, 0.001, 0.0005, 0.0005, 0.00025])],
)
def test_learning_rates(name: str, rates: list[float]) -> None:
    trainer = build_trainer(name)
    seen = [trainer.optimizer.param_groups[0]["lr"]]
    for _ in range(4):
        trainer.optimizer.step()
        trainer.scheduler.step()
        seen.append(trainer.optimizer.param_groups[0]["lr"])
    assert seen == pytest.approx(rates, abs=1e-7)


def test_loss_and_accuracy_are_means_over_the_epoch() -> None:
    trainer = build_trainer("adam89")
    seen = []
    real_forward = trainer.forward

    def forward(inputs: Tensor, labels: Tensor) -> Tensor:
        num_correct = trainer.totals[1].item()
        loss = real_forward(inputs, labels)
        seen.append((loss.item(), trainer.totals[1].item() - num_correct))
        return loss

    trainer.forward = forward
    steps: list[int] = []
    loss, accuracy = trainer.train_epoch(build_loader(), 0, steps.append)
    assert steps == [1, 2, 3, 4, 5]
    assert loss == pytest.approx(sum(loss for loss, _ in seen) / 5)
    assert accuracy == pytest.approx(sum(correct for _, correct in seen) / NUM_TRAIN)


def test_it_learns_the_tiny_training_set() -> None:
    trainer = build_trainer("adam89", num_epochs=40)
    losses = [trainer.train_epoch(build_loader(), epoch % 2, lambda step: None)[0] for epoch in range(40)]
    assert losses[-1] < 0.5 < 2 < losses[0]


def test_bf16_follows_fp32() -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        trainer = build_trainer("adam89", precision=precision)
        losses[precision] = trainer.train_epoch(build_loader(), 0, lambda step: None)[0]
        assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)
    assert losses["bf16"] != losses["fp32"]


@pytest.mark.parametrize("name", ["sgd92", "adam89"])
@pytest.mark.parametrize("epochs_before", [0, 1])
def test_warming_up_changes_nothing(name: str, epochs_before: int) -> None:
    states = []
    for warms_up in (False, True):
        trainer = build_trainer(name)
        for epoch in range(epochs_before):
            trainer.train_epoch(build_loader(), epoch, lambda step: None)
        if warms_up:
            trainer.warm_up(build_loader())
            assert all(parameter.grad is None for parameter in trainer.model.parameters())
        trainer.train_epoch(build_loader(), epochs_before, lambda step: None)
        states.append(trainer.state())
    for key, value in states[0]["model"].items():
        assert torch.equal(value, states[1]["model"][key]), key
    for position, values in states[0]["optimizer"]["state"].items():
        for key, value in values.items():
            assert torch.equal(value, states[1]["optimizer"]["state"][position][key]), key


def test_the_model_is_channels_last() -> None:
    for parameter in build_trainer("sgd92").model.parameters():
        assert parameter.dim() != 4 or parameter.is_contiguous(memory_format=torch.channels_last)


def test_state_is_detached_from_further_training() -> None:
    trainer = build_trainer("sgd92")
    trainer.train_epoch(build_loader(), 0, lambda step: None)
    state = trainer.state()
    weights = state["model"]["backbone.fc.weight"].clone()
    momentum = state["optimizer"]["state"][0]["momentum_buffer"].clone()
    trainer.train_epoch(build_loader(), 1, lambda step: None)
    assert torch.equal(state["model"]["backbone.fc.weight"], weights)
    assert torch.equal(state["optimizer"]["state"][0]["momentum_buffer"], momentum)
    assert not torch.equal(trainer.model.backbone.fc.weight, weights)


@pytest.mark.slow
def test_compiled_training_equals_eager_and_never_recompiles() -> None:
    losses = []
    for compile in (False, True):  # noqa: A001
        for seed in (42, 43):  # several trainings in one process
            trainer = build_trainer("adam89", compile=compile, seed=seed)
            if seed == 42:
                trainer.warm_up(build_loader())
                num_graphs = counters["stats"]["unique_graphs"]
            losses += [trainer.train_epoch(build_loader(), epoch, lambda step: None)[0] for epoch in range(2)]
            assert counters["stats"]["unique_graphs"] == num_graphs
    eager, compiled = losses[:4], losses[4:]
    assert compiled[::2] == pytest.approx(eager[::2], rel=2e-3)
    assert compiled[1::2] == pytest.approx(eager[1::2], rel=5e-2)  # training amplifies rounding


@pytest.mark.parametrize(
    "device", [pytest.param(CPU, marks=pytest.mark.slow), pytest.param(CUDA, marks=pytest.mark.gpu)]
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_compiled_gather_picks_the_same_pixels_at_all_levels(device: torch.device, precision: str) -> None:
    """As a compiled step reads them; test_augment.py compares the plain gather with Pillow."""
    trainer = build_trainer("sgd92", device, precision, compile=True)
    images, labels = (torch.from_numpy(values).to(device) for values in (TRAIN_IMAGES, TRAIN_LABELS))
    loader = ResidentLoader(images, labels.long(), AllLevels(NUM_TRAIN, batch_size=4096, device=device))
    with contextlib.closing(loader.epoch(0)) as steps:
        for step in steps:
            position = torch.tensor([step], device=device)
            inputs, compiled_labels = trainer._read(loader, position)
            pixels, expected_labels = loader.read(position)
            assert torch.equal(compiled_labels, expected_labels)
            # Normalised, pixel values lie 2 / 255 apart in -1..1, where bf16 rounds by 2**-9 at most.
            assert torch.equal(((inputs.float().permute(0, 2, 3, 1) + 1) * 127.5).round().to(torch.uint8), pixels)


def step_losses(trainer: Trainer, loader: ResidentLoader, epoch: int) -> list[float]:
    """The mean loss of each step of an epoch."""
    trainer.begin_epoch()
    totals = [0.0]
    for _ in loader.epoch(epoch):
        trainer.step(loader)
        totals.append(trainer.totals[0].item())
    return [(after - before) / 8 for before, after in itertools.pairwise(totals)]


# Of losses on CUDA. The first one follows from equal weights by a forward pass, whose convolutions may round factors to
# TF32, by 2**-11 at most: through 20 layers that stays below 20 * 2**-11. Where both sides round alike, only float32's
# sums differ. Later ones differ by what training makes of it, and cuDNN's gradients differ from run to run: bf16, which
# rounds eight times as coarsely, stays within 5% for an epoch of these five steps (test_bf16_follows_fp32).
TF32_FIRST, SAME_FIRST, LATER = 1e-2, 1e-4, 0.05


def assert_losses_follow(losses: list[float], expected: list[float], first: float) -> None:
    assert losses[0] == pytest.approx(expected[0], rel=first)
    assert sum(losses) == pytest.approx(sum(expected), rel=LATER)


@pytest.mark.gpu
@pytest.mark.parametrize("compile", [False, True])
def test_cuda_training_follows_the_cpu(compile: bool) -> None:  # noqa: A002
    on_cpu, on_cuda = build_trainer("adam89"), build_trainer("adam89", CUDA, compile=compile)
    loader = build_loader(device=CUDA)
    on_cuda.warm_up(loader)
    assert_losses_follow(step_losses(on_cuda, loader, 0), step_losses(on_cpu, build_loader(), 0), TF32_FIRST)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["sgd92", "adam89"])
def test_a_captured_step_follows_the_same_step_uncaptured(name: str) -> None:
    """From the first step on: if the capture had changed the statistics, they would differ after that step."""
    losses, statistics = [], []
    loader = build_loader(device=CUDA)
    for captures in (False, True):
        trainer = build_trainer(name, CUDA, compile=True)
        if captures:
            trainer.warm_up(loader)
        assert trainer.is_captured == captures, trainer.capture_failure
        trainer.begin_epoch()
        steps = loader.epoch(0)
        next(steps)
        trainer.step(loader)
        statistics.append(trainer.model.backbone.bn1.running_mean.clone())
        steps.close()
        losses.append([trainer.totals[0].item() / 8, *step_losses(trainer, loader, 1)])
        assert trainer.model.backbone.bn1.num_batches_tracked == 0  # counted when an epoch ends
    assert_losses_follow(losses[1], losses[0], SAME_FIRST)
    torch.testing.assert_close(statistics[1], statistics[0], rtol=1e-3, atol=1e-5)  # of one step: float32's sums


@pytest.mark.gpu
def test_a_captured_step_takes_its_learning_rate_from_the_schedule() -> None:
    """At rate 0 SGD changes exactly nothing; at the next rate it does."""
    trainer, loader = build_trainer("sgd92", CUDA, compile=True), build_loader(device=CUDA)
    trainer.warm_up(loader)
    assert trainer.is_captured, trainer.capture_failure
    before = trainer.state()["model"]["backbone.fc.weight"]
    for rate, changes in ((0.0, False), (0.1, True)):
        trainer.optimizer.param_groups[0]["lr"] = rate
        step_losses(trainer, loader, 0)
        assert torch.equal(trainer.model.backbone.fc.weight, before) != changes


@pytest.mark.gpu
def test_a_captured_step_goes_on_from_a_loaded_state() -> None:
    before, loader = build_trainer("sgd92", CUDA, compile=True), build_loader(device=CUDA)
    before.warm_up(loader)
    before.train_epoch(loader, 0, lambda step: None)
    after = build_trainer("sgd92", CUDA, compile=True)
    after.load_state(before.state())
    after.warm_up(loader)
    assert_losses_follow(step_losses(after, loader, 1), step_losses(before, loader, 1), SAME_FIRST)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
@pytest.mark.parametrize("name", ["sgd92", "adam89"])
def test_a_warm_step_never_waits_for_the_device(name: str) -> None:
    trainer, loader = build_trainer(name, CUDA, "bf16", compile=True), build_loader(device=CUDA)
    trainer.warm_up(loader)
    assert trainer.is_captured, trainer.capture_failure
    trainer.train_epoch(loader, 0, lambda step: None)
    trainer.begin_epoch()
    steps = loader.epoch(1)
    next(steps)
    trainer.step(loader)
    try:
        torch.cuda.set_sync_debug_mode("error")
        for _ in steps:
            trainer.step(loader)
    finally:
        torch.cuda.set_sync_debug_mode("default")
