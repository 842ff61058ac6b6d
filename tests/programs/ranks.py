"""Checks that the ranks of a world make together; each assertion holds on every rank.

    torchrun --nproc-per-node 3 tests/programs/ranks.py cpu DATA
    torchrun --nproc-per-node 2 tests/programs/ranks.py sync-bn     needs one CUDA device, which the ranks share

torchrun starts one process per rank. They compute in float64, so that another order of summation changes a value by far
less than a mistake does. With equal weights it changes a gradient by about the number of products in its longest sum,
10,000, times float64's rounding, 1e-16; batch norm's division by small deviations may enlarge that a hundredfold:
`TIGHT`, relative to the tensor's largest value. The error does not grow further, because every step is compared
separately, from the weights that the ranks had before it. It could grow in Adam, which divides a gradient by its own
size: after a step, a rounding error in a gradient near zero is no longer small.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from support.batches import read_epoch
from support.containers import NUM_TRAIN, TRAIN_IMAGES, TRAIN_LABELS
from support.tiny_world import tiny_world
from support.training_runs import run, without_timings
from torch import Tensor
from torch.nn.functional import cross_entropy

from fastcifar.distributed import ALONE, World, init_distributed
from fastcifar.kernels.gather import normalise
from fastcifar.pipeline.augment import affine_coeffs, sample_augmentation
from fastcifar.pipeline.loader import EpochPlanner, ResidentLoader
from fastcifar.recipes import Recipe, get_recipe
from fastcifar.results.records import as_plain
from fastcifar.training import evaluate
from fastcifar.training.model import build_model
from fastcifar.training.trainer import Trainer

BATCH_SIZE, NUM_STEPS = 6, NUM_TRAIN // 6
TIGHT = 1e-10


@dataclass
class Step:
    """One training step: the parameters before it, its averaged gradients, and the parameters after it."""

    before: list[Tensor]
    gradients: list[Tensor]
    after: list[Tensor]


def build_loader(world: World, device: torch.device) -> ResidentLoader:
    """This rank's shares of the batches."""
    images, labels = torch.from_numpy(TRAIN_IMAGES).to(device), torch.from_numpy(TRAIN_LABELS).long().to(device)
    indices = torch.arange(NUM_TRAIN, device=device)
    planner = EpochPlanner(indices, replace(get_recipe("sgd92"), global_batch_size=BATCH_SIZE), world)
    return ResidentLoader(images, labels, planner)


def cloned(tensors: Iterator[Any]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


def train(recipe: Recipe, world: World, device: torch.device, *, sync_bn: bool = False) -> tuple[Trainer, list[Step]]:
    """Train for a few steps; the ranks' weights are the same bits after each of them."""
    trainer = Trainer(recipe, device, precision="fp32", compile=False, world=world, sync_bn=sync_bn)
    parameters, gradients = list(trainer.model.parameters()), []
    trainer.optimizer.register_step_pre_hook(lambda *_: gradients.append(cloned(each.grad for each in parameters)))
    steps = []
    trainer.begin_epoch()
    loader = build_loader(world, device)
    for _ in loader.epoch(0):
        before = cloned(iter(parameters))
        trainer.step(loader)
        steps.append(Step(before, gradients.pop(), cloned(iter(parameters))))
        weights = torch.cat([parameter.flatten() for parameter in steps[-1].after]).cpu()
        assert torch.equal(weights, world.broadcast(weights))
    return trainer, steps


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = TIGHT) -> None:
    """Assert equality within a fraction of the largest expected value."""
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=tolerance * expected.abs().max().item())


def check_in_turn(recipe: Recipe, num_ranks: int, steps: list[Step]) -> tuple[dict[str, Tensor], float]:
    """Repeat the work of all ranks in one process: run each share in turn, average the gradients, and step.

    Returns:
        The mean of the ranks' batch-norm statistics by name, and the mean loss of all images.
    """
    model = build_model(recipe.seed)
    parameters = dict(model.named_parameters())
    statistics = [{name: value.clone() for name, value in model.named_buffers()} for _ in range(num_ranks)]
    lr, decay = recipe.learning_rate, recipe.weight_decay
    optimizer = (
        torch.optim.SGD(parameters.values(), lr=lr, momentum=recipe.momentum, weight_decay=decay, foreach=False)
        if recipe.optimizer == "sgd"
        else torch.optim.Adam(parameters.values(), lr=lr, weight_decay=decay, foreach=False)
    )
    assert all(map(torch.equal, steps[0].before, parameters.values()))
    mean, std, losses = torch.tensor(recipe.mean), torch.tensor(recipe.std), []
    loaders = [build_loader(World(rank=rank, size=num_ranks), torch.device("cpu")) for rank in range(num_ranks)]
    every_rank = (read_epoch(loader, 0) for loader in loaders)
    for step, shares in zip(steps, zip(*every_rank, strict=True), strict=True):
        for parameter, value in zip(parameters.values(), step.before, strict=True):
            parameter.data.copy_(value)
        optimizer.zero_grad()
        for (images, labels), buffers in zip(shares, statistics, strict=True):
            logits = torch.func.functional_call(model, {**parameters, **buffers}, (normalise(images, mean, std),))
            loss = cross_entropy(logits, labels)
            (loss / num_ranks).backward()
            losses.append(loss.item())
        for parameter, gradient in zip(parameters.values(), step.gradients, strict=True):
            assert parameter.grad is not None
            assert_close(gradient, parameter.grad)
            parameter.grad.copy_(gradient)
        optimizer.step()
        for parameter, value in zip(parameters.values(), step.after, strict=True):
            assert_close(value, parameter.detach())
    means = {name: torch.stack([buffers[name].double() for buffers in statistics]).mean(0) for name in statistics[0]}
    return means, sum(losses) / len(losses)


def check_training(recipe: Recipe, world: World) -> None:
    """Each step equals that of one process with all shares; an epoch's end averages batch norm's statistics."""
    trainer, steps = train(replace(recipe, global_batch_size=BATCH_SIZE), world, torch.device("cpu"))
    trainer._finish_statistics(NUM_STEPS)
    world.all_reduce_sum(trainer.totals)
    if world.is_main:
        statistics, loss = check_in_turn(recipe, world.size, steps)
        for name, value in trainer.model.named_buffers():
            assert_close(value.double(), statistics[name])
        assert_close(trainer.totals[0] / (NUM_STEPS * BATCH_SIZE), torch.tensor(loss))


def check_evaluation(world: World) -> None:
    """The bits are the same for any world, whether or not the ranks' batches have equal sizes."""
    model = build_model(1)
    images = torch.from_numpy(TRAIN_IMAGES)
    coeffs = affine_coeffs(sample_augmentation(42, 0, torch.arange(NUM_TRAIN), padding=4, max_angle_deg=15))
    half = torch.full((3,), 0.5)
    with mock.patch.object(evaluate, "_MAX_BATCH_SIZE", 4):
        for num_images in (1, 4, 7, NUM_TRAIN):
            for rows in (None, coeffs[:num_images]):
                alone, together = (
                    evaluate.compute_logits(
                        model, images[:num_images], mean=half, std=half, precision="fp32", coeffs=rows, world=each
                    )
                    for each in (ALONE, world)
                )
                assert torch.equal(alone, together)


def check_sync_bn(world: World) -> None:
    """Two ranks that share their statistics equal one process; with separate statistics they do not."""
    device = torch.device("cuda:0")
    recipe = replace(get_recipe("sgd92"), global_batch_size=BATCH_SIZE)
    (_, alone), (_, together), (_, apart) = (
        train(recipe, each, device, sync_bn=sync_bn)
        for each, sync_bn in ((ALONE, False), (world, True), (world, False))
    )
    for expected, ours, others in zip(alone[0].gradients, together[0].gradients, apart[0].gradients, strict=True):
        assert_close(ours, expected)
        assert (others - expected).abs().max() > 1e-3 * expected.abs().max()
    for expected, ours in zip(alone[-1].after, together[-1].after, strict=True):
        assert_close(ours, expected, 1e-5)  # each step enlarges the previous rounding errors, and cuDNN's order varies


def check_messages(world: World) -> None:
    assert world.all_reduce_max(-float(world.rank)) == 0
    assert world.all_reduce_max(0.1 + world.rank) == 0.1 + world.size - 1
    assert world.broadcast({"rank": world.rank} if world.is_main else None) == {"rank": 0}
    total = torch.full((3,), 2.0**world.rank)
    world.all_reduce_sum(total)
    assert total.tolist() == [2.0**world.size - 1] * 3


def check_run(world: World, data: Path) -> None:
    """Every rank returns the results that rank 0 wrote to the run directory."""
    results = run(data, Path("run"), recipe="sgd92", global_batch_size=BATCH_SIZE)
    ours = without_timings(as_plain(results))
    assert ours == world.broadcast(ours)
    assert results.last.epoch == 2
    assert results.num_test_images == 10


if __name__ == "__main__":
    with tiny_world(), init_distributed() as this_world:
        if sys.argv[1] == "cpu":
            check_run(this_world, Path(sys.argv[2]))
        torch.set_default_dtype(torch.float64)
        if sys.argv[1] == "sync-bn":
            check_sync_bn(this_world)
        else:
            check_messages(this_world)
            for name in ("sgd92", "adam89"):
                check_training(get_recipe(name), this_world)
            check_evaluation(this_world)
