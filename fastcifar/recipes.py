"""The recipes, as data. Adding one is adding an entry to `RECIPES`."""

from dataclasses import dataclass, replace
from typing import Literal

from fastcifar.errors import FastcifarError


@dataclass(frozen=True)
class Recipe:
    """How a model is trained, apart from anything that must not change the result.

    Attributes:
        name: by which the command line knows it.
        published_accuracy: what its authors report, 0..1, or None.
        epochs: passes over the training set.
        batch_size: images a step, over all devices.
        optimizer: "sgd" or "adam".
        learning_rate: at the start.
        weight_decay: L2 penalty, added to the gradient.
        schedule: "cosine" falls to 0 at the last epoch's end; "step" multiplies by `step_factor` every `step_epochs`.
        momentum: of SGD.
        step_epochs: see `schedule`.
        step_factor: see `schedule`.
        padding: black pixels on each side before the random crop.
        max_angle_deg: the random rotation lies in [-max_angle_deg, max_angle_deg).
        mean: subtracted from each channel, on the scale of [0, 1].
        std: each channel is divided by it, on the scale of [0, 1].
        seed: of initialisation, order and augmentation.
    """

    name: str
    published_accuracy: float | None
    epochs: int
    batch_size: int
    optimizer: Literal["sgd", "adam"]
    learning_rate: float
    weight_decay: float
    schedule: Literal["cosine", "step"]
    momentum: float = 0.0
    step_epochs: int = 0
    step_factor: float = 1.0
    padding: int = 4
    max_angle_deg: float = 15.0
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    seed: int = 42

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
            batch_size=128,
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
            batch_size=128,
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
    """Look a recipe up by its name.

    Raises:
        FastcifarError: there is none of that name.
    """
    try:
        return RECIPES[name]
    except KeyError:
        raise FastcifarError(f"no recipe is called {name!r}: choose from {', '.join(RECIPES)}") from None
