"""What the ranks of a world check together; each assertion holds on every rank.

    torchrun --nproc-per-node 3 tests/programs/ranks.py cpu
    torchrun --nproc-per-node 2 tests/programs/ranks.py sync-bn     needs one CUDA device, which the ranks share

A process of its own for each rank, started by torchrun.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from unittest import mock

import torch
import torch.distributed as dist
from support.containers import NUM_TRAIN, TRAIN_IMAGES, TRAIN_LABELS
from support.published import MyResnet
from torch import Tensor
from torch.nn.functional import cross_entropy

from fastcifar.distributed import ALONE, World, init_distributed
from fastcifar.kernels.gather import normalise
from fastcifar.pipeline.augment import affine_coeffs, sample_augmentation
from fastcifar.pipeline.loader import Batch, EpochPlanner, ResidentLoader
from fastcifar.recipes import Recipe, get_recipe
from fastcifar.training import evaluate
from fastcifar.training.model import build_model
from fastcifar.training.trainer import Trainer

BATCH_SIZE, NUM_STEPS = 6, 10


def batches(world: World, device: torch.device) -> Iterator[Batch]:
    """This rank's shares of the first steps."""
    images, labels = torch.from_numpy(TRAIN_IMAGES).to(device), torch.from_numpy(TRAIN_LABELS).long().to(device)
    indices = torch.arange(NUM_TRAIN, device=device)
    planner = EpochPlanner(indices, BATCH_SIZE, seed=42, padding=4, max_angle_deg=15, world=world)
    loader = ResidentLoader(images, labels, planner)
    for step in range(NUM_STEPS):
        epoch, position = divmod(step, planner.num_steps)
        if position == 0:
            shares = loader.epoch(epoch)
        yield next(shares)


def flat_weights(model: torch.nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def train(recipe: Recipe, world: World, device: torch.device, *, sync_bn: bool = False) -> Trainer:
    """Train for a few steps; the ranks' weights are the same bits after each of them."""
    trainer = Trainer(recipe, device, precision="fp32", compile=False, world=world, sync_bn=sync_bn)
    trainer.begin_epoch()
    for images, labels in batches(world, device):
        trainer.step(images, labels)
        weights = flat_weights(trainer.model)
        assert torch.equal(weights.cpu(), world.broadcast(weights.cpu()))
    return trainer


def train_in_turn(recipe: Recipe, num_ranks: int) -> tuple[dict[str, Tensor], float]:
    """One process does what all ranks do: it runs each share in turn and averages the gradients.

    Returns:
        The weights and the mean of the ranks' batch-norm statistics by name, and the mean loss of all images.
    """
    torch.manual_seed(recipe.seed)
    model = MyResnet()
    parameters = dict(model.named_parameters())
    statistics = [{name: value.clone() for name, value in model.named_buffers()} for _ in range(num_ranks)]
    lr, decay = recipe.learning_rate, recipe.weight_decay
    optimizer = (
        torch.optim.SGD(parameters.values(), lr=lr, momentum=recipe.momentum, weight_decay=decay, foreach=False)
        if recipe.optimizer == "sgd"
        else torch.optim.Adam(parameters.values(), lr=lr, weight_decay=decay, foreach=False)
    )
    mean, std, losses = torch.tensor(recipe.mean), torch.tensor(recipe.std), []
    for shares in zip(
        *(batches(World(rank=rank, size=num_ranks), torch.device("cpu")) for rank in range(num_ranks)), strict=True
    ):
        optimizer.zero_grad()
        for (images, labels), buffers in zip(shares, statistics, strict=True):
            logits = torch.func.functional_call(model, {**parameters, **buffers}, (normalise(images, mean, std),))
            loss = cross_entropy(logits, labels)
            (loss / num_ranks).backward()
            losses.append(loss.item())
        optimizer.step()
    means = {name: torch.stack([buffers[name].double() for buffers in statistics]).mean(0) for name in statistics[0]}
    return {name: value.detach() for name, value in parameters.items()} | means, sum(losses) / len(losses)


def check_training(world: World) -> None:
    recipe = replace(get_recipe("sgd92" if world.size == 2 else "adam89"), global_batch_size=BATCH_SIZE)
    trainer = train(recipe, world, torch.device("cpu"))
    trainer._average_statistics()
    world.all_reduce_sum(trainer.totals)
    if not world.is_main:
        return
    ours = trainer.model.state_dict()
    state, loss = train_in_turn(recipe, world.size)
    for key, expected in state.items():
        torch.testing.assert_close(ours[key].double(), expected, rtol=1e-10, atol=1e-13, msg=key)
    torch.testing.assert_close(trainer.totals[0].item() / (NUM_STEPS * BATCH_SIZE), loss, rtol=1e-10, atol=0.0)


def check_evaluation(world: World) -> None:
    """The same bits for any world, whether the ranks' batches come out even or not."""
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
    """Two ranks that share their statistics are one process; with statistics of their own they are not."""
    device = torch.device("cuda:0")
    recipe = replace(get_recipe("sgd92"), global_batch_size=BATCH_SIZE)
    alone = train(recipe, ALONE, device).model.state_dict()
    together = train(recipe, world, device, sync_bn=True).model.state_dict()
    for key, value in alone.items():
        torch.testing.assert_close(together[key], value, rtol=1e-7, atol=1e-9, msg=key)
    apart = train(recipe, world, device).model.state_dict()
    assert not torch.allclose(apart["backbone.fc.weight"], alone["backbone.fc.weight"], rtol=1e-3)


def check_messages(world: World) -> None:
    assert world.all_reduce_max(-float(world.rank)) == 0
    assert world.all_reduce_max(0.1 + world.rank) == 0.1 + world.size - 1
    assert world.broadcast({"rank": world.rank} if world.is_main else None) == {"rank": 0}
    total = torch.full((3,), 2.0**world.rank)
    world.all_reduce_sum(total)
    assert total.tolist() == [2.0**world.size - 1] * 3


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    if sys.argv[1] == "sync-bn":
        dist.init_process_group("gloo")  # NCCL gives each rank a device of its own
    with init_distributed() as this_world:
        if sys.argv[1] == "sync-bn":
            check_sync_bn(this_world)
        else:
            check_messages(this_world)
            check_training(this_world)
            check_evaluation(this_world)
