import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from fastcifar.errors import FastcifarError
from fastcifar.recipes import RECIPES, get_recipe
from fastcifar.training.settings import parse_settings, resolve_settings

BOTH = {
    "global_batch_size": 128,
    "padding": 4,
    "max_angle_deg": 15.0,
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "seed": 42,
}


def test_recipes_are_as_published() -> None:
    assert {name: asdict(recipe) for name, recipe in RECIPES.items()} == {
        "sgd92": BOTH
        | {
            "name": "sgd92",
            "published_accuracy": 0.92,
            "epochs": 70,
            "optimizer": "sgd",
            "learning_rate": 0.1,
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "schedule": "cosine",
            "step_epochs": 0,
            "step_factor": 1.0,
        },
        "adam89": BOTH
        | {
            "name": "adam89",
            "published_accuracy": 0.89,
            "epochs": 55,
            "optimizer": "adam",
            "learning_rate": 0.001,
            "momentum": 0.0,
            "weight_decay": 1e-4,
            "schedule": "step",
            "step_epochs": 30,
            "step_factor": 0.5,
        },
    }


@pytest.mark.parametrize(("epochs", "step_epochs"), [(55, 30), (110, 60), (11, 6), (3, 2), (1, 1)])
def test_steps_scale_with_the_epochs(epochs: int, step_epochs: int) -> None:
    recipe = get_recipe("adam89").with_epochs(epochs)
    assert (recipe.epochs, recipe.step_epochs) == (epochs, step_epochs)


def test_a_cosine_has_no_steps_to_scale() -> None:
    assert get_recipe("sgd92").with_epochs(7).step_epochs == 0


def test_an_unknown_recipe_names_those_there_are() -> None:
    with pytest.raises(FastcifarError, match="no recipe is called 'x': choose from sgd92, adam89"):
        get_recipe("x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "my/own"}, "the recipe 'my/own' cannot have name='my/own'"),
        ({"optimizer": "adamw"}, "the recipe 'adam89' cannot have optimizer='adamw'"),
        ({"schedule": "linear"}, "the recipe 'adam89' cannot have schedule='linear'"),
        ({"step_epochs": 0}, "the recipe 'adam89' cannot have step_epochs=0"),
        ({"learning_rate": float("nan")}, "the recipe 'adam89' cannot have learning_rate=nan"),
        ({"max_angle_deg": -1}, r"the recipe 'adam89' cannot have max_angle_deg=-1"),
        ({"mean": (0.5, 0.5)}, r"the recipe 'adam89' cannot have mean=\(0\.5, 0\.5\)"),
        ({"std": (0.5, 0.5, 0.0)}, r"the recipe 'adam89' cannot have std=\(0\.5, 0\.5, 0\.0\)"),
    ],
)
def test_impossible_recipes_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(FastcifarError, match=message):
        replace(get_recipe("adam89"), **change)


def test_whole_numbers_are_accepted_for_floats() -> None:
    recipe = replace(get_recipe("sgd92"), max_angle_deg=0, weight_decay=0)
    settings = resolve_settings(recipe, device="cpu")
    assert parse_settings(json.loads(json.dumps(settings.as_config()))) == settings
