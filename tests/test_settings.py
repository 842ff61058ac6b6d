from typing import Any

import pytest
import torch

from fastcifar.errors import FastcifarError, counted
from fastcifar.recipes import get_recipe
from fastcifar.training.settings import resolve_settings

SGD92 = get_recipe("sgd92")


def test_defaults_are_the_recipe_on_all_images() -> None:
    settings = resolve_settings(SGD92, device="cpu", precision="fp32")
    assert settings.recipe == SGD92
    assert (settings.num_train_images, settings.num_eval_images) == (50_000, 5_000)
    assert (settings.loader, settings.compile, settings.precision) == ("resident", False, "fp32")
    assert settings.num_threads == torch.get_num_threads()


def test_choices_are_taken() -> None:
    settings = resolve_settings(
        SGD92,
        epochs=7,
        num_train_images=256,
        num_eval_images=9,
        global_batch_size=64,
        seed=5,
        device="cpu",
        compile=True,
    )
    config = settings.as_config()
    expected = {
        "recipe": "sgd92",
        "epochs": 7,
        "num_train_images": 256,
        "num_eval_images": 9,
        "global_batch_size": 64,
        "seed": 5,
        "compile": True,
        "device": "cpu",
        "learning_rate": 0.1,
    }
    assert {key: config[key] for key in expected} == expected
    assert settings.precision in ("bf16", "fp32")


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"epochs": 0}, "epochs must be between 1 and 100,000, not 0"),
        ({"global_batch_size": 0}, "global_batch_size must be between 1 and 50,000, not 0"),
        (
            {"num_train_images": 127},
            "num_train_images must be between 128 and 50,000, not 127 (at least one batch)",
        ),
        (
            {"num_train_images": 60_000, "global_batch_size": 8},
            "num_train_images must be between 8 and 50,000, not 60,000 (at least one batch)",
        ),
        ({"num_eval_images": 0}, "num_eval_images must be between 1 and 5,000, not 0"),
        ({"seed": 2**32}, "seed must be between 0 and 4,294,967,295, not 4,294,967,296"),
        ({"loader": "steamed"}, "loader must be resident or streamed, not 'steamed'"),
        ({"precision": "fp16"}, "precision must be auto, bf16 or fp32, not 'fp16'"),
        ({"device": "gpu"}, "device must be auto, cpu, cuda or cuda:<index>, not 'gpu'"),
        ({"device": "meta"}, "device must be auto, cpu, cuda or cuda:<index>, not 'meta'"),
        ({"device": "cpu:1"}, "device must be auto, cpu, cuda or cuda:<index>, not 'cpu:1'"),
        (
            {"device": "cuda:256"},
            f"device 'cuda:256' does not exist: torch sees {counted(torch.cuda.device_count(), 'CUDA device')}",
        ),
        (
            {"device": "cuda:99"},
            f"device 'cuda:99' does not exist: torch sees {counted(torch.cuda.device_count(), 'CUDA device')}",
        ),
    ],
)
def test_impossible_choices_are_refused(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(FastcifarError) as caught:
        resolve_settings(SGD92, **choices)
    assert str(caught.value) == message
