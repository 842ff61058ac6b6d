"""Plan a tour of a recipe that trains for about two minutes on this machine.

Measures a few training steps. Prints what it cut and what to expect on standard error, and the options for
`fastcifar train` on standard output.
"""

import sys
import time

import torch

from fastcifar.pipeline.loader import FixedBatch
from fastcifar.recipes import get_recipe
from fastcifar.training.device import configured_device
from fastcifar.training.settings import Settings, resolve_settings
from fastcifar.training.trainer import Trainer

RECIPE, EPOCHS, NUM_EVAL_IMAGES = "adam89", 3, 1000
TRAIN_S = 120.0  # the target for all epochs together
MEASURE_S, MIN_STEPS = 4.0, 2  # after a first step that is not timed
# Clean test accuracy of 500 or 1,000 images after 3 epochs of so many training images: measured, docs/results.md.
ACCURACIES = {1024: 0.28, 2048: 0.38, 4096: 0.46}


def measure_rate(settings: Settings) -> float:
    """Measure the training images per second of the recipe's step, on black images."""
    device, batch_size = torch.device(settings.device), settings.recipe.global_batch_size
    with configured_device(
        settings.device,
        description=settings.device_name,
        num_threads=settings.num_threads,
        deterministic=settings.deterministic,
    ):
        trainer = Trainer(
            settings.recipe, device, precision=settings.precision, compile=False, convolution=settings.convolution
        )
        images = torch.zeros((batch_size, 32, 32, 3), dtype=torch.uint8, device=device)
        loader = FixedBatch(images, torch.zeros(batch_size, dtype=torch.int64, device=device))
        trainer.begin_epoch()
        trainer.step(loader)
        start, num_steps = time.perf_counter(), 0
        while num_steps < MIN_STEPS or time.perf_counter() - start < MEASURE_S:
            trainer.step(loader)
            num_steps += 1
        return num_steps * batch_size / (time.perf_counter() - start)


def plan_num_images(rate: float, batch_size: int, most: int) -> int:
    """The number of training images of the tour: as many whole batches as it has time for.

    Args:
        rate: training images per second.
        batch_size: images per step.
        most: the number of available images.
    """
    num_batches = round(rate * TRAIN_S / EPOCHS / batch_size)
    return min(max(num_batches, min(ACCURACIES) // batch_size) * batch_size, most)


def describe_expected(num_images: int) -> str:
    """The accuracy to expect: that of the largest measured tour that is not larger than this one."""
    size = max(size for size in ACCURACIES if size <= num_images)
    return f"{'about' if num_images < 2 * size else 'more than'} {ACCURACIES[size]:.0%}"


def main() -> None:
    """Measure, explain, and print the options."""
    recipe = get_recipe(RECIPE)
    settings = resolve_settings(recipe)
    rate = measure_rate(settings)
    num_images = plan_num_images(rate, recipe.global_batch_size, settings.num_train_images)
    hours = recipe.epochs * settings.num_train_images / rate / 3600
    print(
        f"This machine trains about {rate:.0f} images a second, so the whole {RECIPE} recipe would take about"
        f" {hours:.1f} hours.\n"
        f"This is a tour of it: {EPOCHS} of {recipe.epochs} epochs, {num_images:,} of {settings.num_train_images:,}"
        f" training images, {NUM_EVAL_IMAGES:,} of 5,000 images\nfor validation and for the test. It trains for about"
        f" {EPOCHS * num_images / rate / 60:.0f} minutes. Expect an accuracy of"
        f" {describe_expected(num_images)}, where guessing gives 10%.",
        file=sys.stderr,
    )
    print(f"--epochs {EPOCHS} --train-images {num_images} --eval-images {NUM_EVAL_IMAGES}")


if __name__ == "__main__":
    main()
