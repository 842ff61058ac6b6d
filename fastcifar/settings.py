"""A run's settings: what the user chose, and what was chosen for them."""

import os
import re
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from fastcifar import cifar10
from fastcifar.errors import FastcifarError
from fastcifar.recipes import RECIPES, Recipe
from fastcifar.runs import describe_cpu


@dataclass(frozen=True)
class Settings:
    """Everything that is chosen for a run, automatic choices resolved.

    Attributes:
        recipe: with this run's epochs, batch size and seed.
        device: "cpu", "cuda" or "cuda:<index>".
        device_name: the processor's own name.
        precision: "bf16" (autocast; the weights stay float32) or "fp32" (torch's default, which on CUDA lets
            convolutions use TF32).
        compile: whether torch.compile builds the step.
        loader: "resident" or "streamed".
        num_threads: torch's threads on the CPU.
        num_workers: FFCV's threads, for the streamed loader.
        train_images: of the training set, the first of a fixed permutation.
        eval_images: of val and of test each, likewise.
        deterministic: whether only algorithms are used that give the same bits each time.
    """

    recipe: Recipe
    device: str
    device_name: str
    precision: str
    compile: bool
    loader: str
    num_threads: int
    num_workers: int
    train_images: int
    eval_images: int
    deterministic: bool

    def as_config(self) -> dict[str, Any]:
        """For `config.json`: `recipe` by name, its fields beside it."""
        settings = asdict(self)
        recipe = settings.pop("recipe")
        return {"recipe": recipe.pop("name"), **recipe, **settings}


def resolve_settings(
    recipe: Recipe,
    *,
    epochs: int | None = None,
    train_images: int | None = None,
    eval_images: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    device: str = "auto",
    loader: str = "resident",
    precision: str = "auto",
    compile: bool | None = None,  # noqa: A002 (torch's own word for it)
    deterministic: bool = False,
) -> Settings:
    """Check a run's choices, and make those left open.

    Args:
        recipe: as published.
        epochs: None for the recipe's.
        train_images: None for all 50,000.
        eval_images: of val and of test each; None for all 5,000.
        batch_size: None for the recipe's.
        seed: None for the recipe's.
        device: "auto" takes CUDA where there is one.
        loader: "resident" or "streamed".
        precision: "auto" takes bf16 where the hardware is fast at it.
        compile: None compiles on CUDA only: on a CPU it costs half a minute and gains nothing.
        deterministic: see `Settings`.

    Raises:
        FastcifarError: a choice is impossible.
    """
    content = cifar10.CONTENT
    resolved = recipe if epochs is None else recipe.with_epochs(_within("epochs", epochs, 1, 100_000))
    resolved = replace(
        resolved,
        batch_size=_within("batch-size", recipe.batch_size if batch_size is None else batch_size, 1, content.num_train),
        seed=_within("seed", recipe.seed if seed is None else seed, 0, 2**32 - 1),
    )
    num_train = content.num_train if train_images is None else train_images
    num_eval = content.num_test // 2 if eval_images is None else eval_images
    _within("train-images", num_train, resolved.batch_size, content.num_train, "(one batch is the least)")
    _within("eval-images", num_eval, 1, content.num_test // 2)
    target = resolve_device(device)
    is_cuda = target.type == "cuda"
    return Settings(
        recipe=resolved,
        device=str(target),
        device_name=torch.cuda.get_device_name(target) if is_cuda else describe_cpu(),
        precision=("bf16" if is_bf16_fast(target) else "fp32") if precision == "auto" else precision,
        compile=is_cuda if compile is None else compile,
        loader=loader,
        num_threads=torch.get_num_threads(),
        num_workers=_count_cpus(),
        train_images=num_train,
        eval_images=num_eval,
        deterministic=deterministic,
    )


def parse_settings(config: Any) -> Settings:
    """The settings that `as_config` gave.

    Raises:
        FastcifarError: they are damaged, or of another version.
    """
    try:
        values = dict(config)
        names = [field.name for field in fields(Recipe) if field.name != "name"]
        recipe = Recipe(name=values.pop("recipe"), **{name: values.pop(name) for name in names})
        settings = Settings(recipe=recipe, **values)
        _check_types(recipe)
        _check_types(settings)
    except (KeyError, TypeError, ValueError) as error:
        raise FastcifarError("the settings in its checkpoint are damaged, or of another version") from error
    return settings


def restore_settings(config: Any) -> Settings:
    """The settings that `as_config` gave, for a run that goes on here.

    Raises:
        FastcifarError: they are damaged, the device is not there, or the recipe of that name is another one now.
    """
    settings = parse_settings(config)
    recipe = settings.recipe
    if recipe.name in RECIPES:
        known = RECIPES[recipe.name].with_epochs(recipe.epochs)
        if recipe != replace(known, batch_size=recipe.batch_size, seed=recipe.seed):
            raise FastcifarError(f"the recipe {recipe.name} is another one in this version")
    resolve_device(settings.device)
    return replace(settings, num_workers=_count_cpus())  # which does not change the result


def _check_types(instance: Any) -> None:
    """Raise TypeError unless every simple field holds its declared type."""
    for field in fields(instance):
        value = getattr(instance, field.name)
        if field.type in (int, float, str, bool) and type(value) is not field.type:
            raise TypeError(field.name)


def _count_cpus() -> int:
    return len(os.sched_getaffinity(0))  # FFCV refuses more threads

def _within(name: str, value: int, least: int, most: int, why: str = "") -> int:
    if not least <= value <= most:
        raise FastcifarError(f"--{name} must be between {least:,} and {most:,}, not {value:,} {why}".rstrip())
    return value


def resolve_device(name: str) -> torch.device:
    """The device of that name; for "auto" CUDA where there is one.

    Raises:
        FastcifarError: there is none.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    match = re.fullmatch(r"cpu|cuda(?::([0-9]+))?", name)
    if match is None:
        raise FastcifarError(f"--device must be auto, cpu, cuda or cuda:<index>, not {name!r}")
    if name != "cpu" and int(match[1] or 0) >= torch.cuda.device_count():
        raise FastcifarError(f"--device {name!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices")
    return torch.device("cuda:0" if name == "cuda" else name)


def is_bf16_fast(device: torch.device) -> bool:
    """Whether the hardware multiplies bf16 itself: from Ampere on, and on x86 with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
