"""A run's settings: the user's choices and the automatic ones."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

import torch

from fastcifar.data import cifar10
from fastcifar.distributed import World, world_from_env
from fastcifar.errors import ArgumentError, FastcifarError, check_choice
from fastcifar.machine import count_cpus, describe_cpu
from fastcifar.recipes import RECIPES, Recipe
from fastcifar.results.records import parse_record
from fastcifar.training.convolution import TORCH, choose_convolution, parse_convolution
from fastcifar.training.device import Precision, choose_precision, resolve_device

LoaderName = Literal["resident", "streamed"]


@dataclass(frozen=True)
class Settings:
    """All choices for a run, with automatic ones resolved.

    Attributes:
        recipe: the recipe with this run's epochs, batch size and seed.
        device: "cpu", "cuda" or "cuda:<index>".
        device_name: the processor's name.
        precision: "bf16" (autocast; the weights stay float32) or "fp32" (torch's default, which on CUDA lets
            convolutions use TF32).
        compile: whether torch.compile builds the step.
        loader: "resident" or "streamed".
        num_threads: torch's threads on the CPU.
        num_workers: FFCV's threads, for the streamed loader.
        num_train_images: the number of training images, the first of a fixed permutation.
        num_eval_images: the number of images of val and of test each, the first of a fixed permutation.
        deterministic: whether to use only algorithms that give the same bits each time.
        world_size: how many processes train together, each on its device and on an equal share of every batch.
        sync_bn: whether they share batch norm's statistics in training.
        convolution: which convolutions are used, see `training.convolution`; "torch" if a stored run does not say.
    """

    recipe: Recipe
    device: str
    device_name: str
    precision: Precision
    compile: bool
    loader: LoaderName
    num_threads: int
    num_workers: int
    num_train_images: int
    num_eval_images: int
    deterministic: bool
    world_size: int
    sync_bn: bool
    convolution: str = TORCH

    def as_config(self) -> dict[str, Any]:
        """The settings for `config.json`: the recipe's name, and its fields beside it."""
        settings = asdict(self)
        recipe = settings.pop("recipe")
        return {"recipe": recipe.pop("name"), **recipe, **settings}


def resolve_settings(
    recipe: Recipe,
    *,
    epochs: int | None = None,
    num_train_images: int | None = None,
    num_eval_images: int | None = None,
    global_batch_size: int | None = None,
    seed: int | None = None,
    device: str = "auto",
    loader: LoaderName = "resident",
    precision: Precision | Literal["auto"] = "auto",
    compile: bool | None = None,  # noqa: A002 (torch's name for it)
    deterministic: bool = False,
    sync_bn: bool = False,
    convolution: str = "auto",
) -> Settings:
    """Check the choices for a run, and make the automatic ones, for this process of torchrun's world.

    Args:
        recipe: the recipe as published.
        epochs: None for the recipe's.
        num_train_images: None for all 50,000.
        num_eval_images: of val and of test each; None for all 5,000.
        global_batch_size: None for the recipe's.
        seed: None for the recipe's.
        device: "auto" takes CUDA if there is a device.
        loader: "resident" or "streamed".
        precision: "auto" takes bf16 if the hardware is fast at it.
        compile: None compiles on CUDA only, because on a CPU it costs half a minute and gains nothing; and not with
            `sync_bn`, which torch cannot trace.
        deterministic: see `Settings`.
        sync_bn: see `Settings`.
        convolution: "auto", "torch" or "winograd", see `choose_convolution`.

    Raises:
        FastcifarError: a choice is impossible.
    """
    check_choice("loader", loader, *get_args(LoaderName))
    check_choice("precision", precision, "auto", *get_args(Precision))
    content = cifar10.SPEC
    batch_size = recipe.global_batch_size if global_batch_size is None else global_batch_size
    resolved = recipe if epochs is None else recipe.with_epochs(_within("epochs", epochs, 1, 100_000))
    resolved = replace(
        resolved,
        global_batch_size=_within("global_batch_size", batch_size, 1, content.num_train),
        seed=_within("seed", recipe.seed if seed is None else seed, 0, 2**32 - 1),
    )
    num_train = content.num_train if num_train_images is None else num_train_images
    num_eval = content.num_test // 2 if num_eval_images is None else num_eval_images
    _within("num_train_images", num_train, resolved.global_batch_size, content.num_train, "(at least one batch)")
    _within("num_eval_images", num_eval, 1, content.num_test // 2)
    world = world_from_env()
    _check_divides(world, resolved.global_batch_size)
    target = resolve_device(device, world)
    is_cuda = target.type == "cuda"
    if sync_bn and not is_cuda:
        raise ArgumentError("sync_bn", "needs CUDA: torch synchronises batch norm on CUDA devices only")
    resolved_precision = choose_precision(target) if precision == "auto" else precision
    return Settings(
        recipe=resolved,
        device=str(target),
        device_name=torch.cuda.get_device_name(target) if is_cuda else describe_cpu(),
        precision=resolved_precision,
        compile=is_cuda and not sync_bn if compile is None else compile,
        loader=loader,
        num_threads=_count_threads(),
        num_workers=_count_workers(world),
        num_train_images=num_train,
        num_eval_images=num_eval,
        deterministic=deterministic,
        world_size=world.size,
        sync_bn=sync_bn,
        convolution=choose_convolution(convolution, target, resolved_precision),
    )


def parse_settings(config: object) -> Settings:
    """The settings from the output of `as_config`.

    Raises:
        FastcifarError: they are damaged, or of another version.
    """
    damaged = "the settings in its checkpoint are damaged, or of another version"
    if not isinstance(config, dict):
        raise FastcifarError(damaged)
    names = {field.name for field in fields(Recipe)} - {"name"}
    missing = sorted({"recipe", *names} - config.keys())
    if missing:  # also those with a default
        raise FastcifarError(f"{damaged}: {missing[0]} is missing")
    recipe = parse_record(Recipe, {**config, "name": config["recipe"]}, damaged)
    others = {key: value for key, value in config.items() if key not in names}
    settings = parse_record(Settings, others | {"recipe": recipe}, damaged, strict=True)
    try:
        parse_convolution(settings.convolution)
    except ValueError as error:
        raise FastcifarError(damaged) from error
    return settings


def restore_settings(config: object) -> Settings:
    """The settings from the output of `as_config`, for a run that is resumed here, even in a world of another size.

    Raises:
        FastcifarError: they are damaged, the device does not exist, the world's size does not divide the batch size, or
            the recipe of that name has changed.
    """
    settings = parse_settings(config)
    recipe = settings.recipe
    if recipe.name in RECIPES:
        known = RECIPES[recipe.name].with_epochs(recipe.epochs)
        if recipe != replace(known, global_batch_size=recipe.global_batch_size, seed=recipe.seed):
            raise FastcifarError(f"the recipe {recipe.name} is different in this version")
    world = world_from_env()
    _check_divides(world, recipe.global_batch_size)
    if world.size == settings.world_size == 1:
        device, num_threads = resolve_device(settings.device), settings.num_threads
    else:
        device = resolve_device(settings.device.split(":")[0], world)
        num_threads = settings.num_threads if world.size == settings.world_size else _count_threads()
    return replace(
        settings, device=str(device), num_threads=num_threads, num_workers=_count_workers(world), world_size=world.size
    )


def _check_divides(world: World, global_batch_size: int) -> None:
    if global_batch_size % world.size:
        below = global_batch_size - global_batch_size % world.size
        nearest = " or ".join(str(size) for size in (below, below + world.size) if size)
        raise ArgumentError(
            "global_batch_size",
            f"{global_batch_size} cannot be shared equally by {world.size} processes: give {nearest}",
        )


def _count_threads() -> int:
    """Torch's threads: as torch or OMP_NUM_THREADS chose, but at most a container's share of the CPUs."""
    return min(torch.get_num_threads(), count_cpus())


def _count_workers(world: World) -> int:
    return max(1, count_cpus() // world.local_size)


def _within(name: str, value: int, least: int, most: int, why: str = "") -> int:
    if not least <= value <= most:
        raise ArgumentError(name, f"must be between {least:,} and {most:,}, not {value:,} {why}".rstrip())
    return value
