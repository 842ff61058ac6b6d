"""The recipes, as data. To add a recipe, add an entry to `RECIPES`."""

import math
import re
from dataclasses import dataclass, replace
from typing import Literal, get_args

from fastcifar.errors import FastcifarError

Optimizer = Literal["sgd", "adam"]
Schedule = Literal["cosine", "step"]


@dataclass(frozen=True)
class Recipe:
    """What defines a training. Choices that must not change the result, such as the device, are in `Settings`.

    Attributes:
        name: its name on the command line.
        published_accuracy: the accuracy that its authors report, 0..1, or None.
        epochs: passes over the training set.
        global_batch_size: images per step, over all devices.
        optimizer: "sgd" or "adam".
        learning_rate: the initial one.
        weight_decay: L2 penalty, added to the gradient.
        schedule: "cosine" falls to 0 at the last epoch's end; "step" multiplies by `step_factor` every `step_epochs`.
        momentum: SGD's momentum.
        step_epochs: see `schedule`.
        step_factor: see `schedule`.
        padding: black pixels on each side before the random crop.
        max_angle_deg: the random rotation lies in [-max_angle_deg, max_angle_deg).
        mean: subtracted from each channel, on the scale of [0, 1].
        std: each channel is divided by it, on the scale of [0, 1].
        seed: the seed of initialisation, order and augmentation.

    Raises:
        FastcifarError: a value cannot be trained with.
    """

    name: str
    published_accuracy: float | None
    epochs: int
    global_batch_size: int
    optimizer: Optimizer
    learning_rate: float
    weight_decay: float
    schedule: Schedule
    momentum: float = 0.0
    step_epochs: int = 0
    step_factor: float = 1.0
    padding: int = 4
    max_angle_deg: float = 15.0
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    seed: int = 42

    def __post_init__(self) -> None:
        is_sound = {
            "name": re.fullmatch(r"[A-Za-z0-9][\w.-]*", self.name),  # run directories are named after it
            "epochs": self.epochs >= 1,
            "global_batch_size": self.global_batch_size >= 1,
            "optimizer": self.optimizer in get_args(Optimizer),
            "schedule": self.schedule in get_args(Schedule),
            "learning_rate": 0 < self.learning_rate < math.inf,
            "weight_decay": 0 <= self.weight_decay < math.inf,
            "momentum": 0 <= self.momentum < 1,
            "step_epochs": self.step_epochs >= 1 or self.schedule != "step",
            "padding": self.padding >= 0,
            "max_angle_deg": 0 <= self.max_angle_deg <= 180,
            "mean": len(self.mean) == 3 and all(map(math.isfinite, self.mean)),
            "std": len(self.std) == 3 and all(0 < value < math.inf for value in self.std),
        }
        for name, is_good in is_sound.items():
            if not is_good:
                raise FastcifarError(f"the recipe {self.name!r} cannot have {name}={getattr(self, name)!r}")

    def with_epochs(self, epochs: int) -> "Recipe":
        """The same recipe in more or fewer epochs, its schedule stretched to keep its shape."""
        step_epochs = max(1, round(self.step_epochs * epochs / self.epochs)) if self.schedule == "step" else 0
        return replace(self, epochs=epochs, step_epochs=step_epochs)


# The batch size was not published; 128 is ours, for both.
RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="sgd92",
            published_accuracy=0.92,
            epochs=70,
            global_batch_size=128,
            optimizer="sgd",
            learning_rate=0.1,
            momentum=0.9,
            weight_decay=5e-4,
            schedule="cosine",
        ),
        Recipe(
            name="adam89",
            published_accuracy=0.89,
            epochs=55,
            global_batch_size=128,
            optimizer="adam",
            learning_rate=0.001,
            weight_decay=1e-4,
            schedule="step",
            step_epochs=30,
            step_factor=0.5,
        ),
    )
}


def get_recipe(name: str) -> Recipe:
    """Look up a recipe by its name.

    Raises:
        FastcifarError: no recipe has that name.
    """
    if name not in RECIPES:
        raise FastcifarError(f"no recipe is called {name!r}: choose from {', '.join(RECIPES)}")
    return RECIPES[name]
