import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fastcifar.recipes import Recipe, get_recipe
from fastcifar.training.master_weights import MasterWeights

LR = 0.01


def build_optimizer(recipe: Recipe, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=LR, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    return torch.optim.Adam(parameters, lr=LR, weight_decay=recipe.weight_decay)


def some_parameters(dtype: torch.dtype) -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in ((4, 3, 3, 3), (4,), (10, 4))]


@pytest.mark.parametrize("recipe", [get_recipe("sgd92"), replace(get_recipe("sgd92"), momentum=0.0),
                                    get_recipe("adam89"), replace(get_recipe("adam89"), weight_decay=0.0)])  # fmt: skip
def test_the_update_is_torchs_own(recipe: Recipe) -> None:
    """In float64, over ten steps; the state is torch's, so either can continue from the other's."""
    ours, theirs = (some_parameters(torch.float64) for _ in range(2))
    optimizer, reference = build_optimizer(recipe, ours), build_optimizer(recipe, theirs)
    weights = MasterWeights(optimizer, recipe, list[Tensor](ours))
    for step in range(10):
        gradients = [torch.sin(parameter.detach() * 7 + step) for parameter in theirs]
        weights.update(gradients, torch.tensor(LR, dtype=torch.float64))
        for parameter, gradient in zip(theirs, gradients, strict=True):
            parameter.grad = gradient
        reference.step()
    for mine, torchs in zip(ours, theirs, strict=True):
        rtol = 1e-12 if recipe.optimizer == "sgd" else 1e-6  # Adam's counter, and so its bias correction, is float32
        torch.testing.assert_close(mine, torchs, rtol=rtol, atol=1e-14)
        state, expected = optimizer.state[mine], reference.state[torchs]
        assert {name for name, value in expected.items() if value is not None} == set(state)
        for name, value in state.items():
            torch.testing.assert_close(value.double(), expected[name].double(), rtol=rtol, atol=1e-14, msg=name)
    resumed = build_optimizer(recipe, ours)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert resumed.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]


@pytest.mark.parametrize("name", ["sgd92", "adam89"])
def test_masters_stay_float32_and_copies_follow(name: str) -> None:
    """bf16 gradients update the float32 masters by their exact values, and the copies are the rounded masters."""
    recipe, masters = get_recipe(name), some_parameters(torch.float32)
    leaves: list[Tensor] = [nn.Parameter(masters[0].detach().to(torch.bfloat16)), masters[1], masters[2]]
    weights = MasterWeights(build_optimizer(recipe, masters), recipe, leaves)
    theirs = [nn.Parameter(master.detach().clone()) for master in masters]
    reference = build_optimizer(recipe, theirs)
    for step in range(5):
        gradients = [torch.cos(leaf.detach().float() * 5 + step).to(leaf.dtype) for leaf in leaves]
        weights.update(gradients, torch.tensor(LR))
        for parameter, gradient in zip(theirs, gradients, strict=True):
            parameter.grad = gradient.float()
        reference.step()
    for master, expected in zip(masters, theirs, strict=True):
        assert master.dtype == torch.float32
        torch.testing.assert_close(master, expected, rtol=1e-5, atol=1e-7)  # a few roundings of float32 a step
    assert torch.equal(leaves[0], masters[0].detach().to(torch.bfloat16))
    with torch.no_grad():
        masters[0].fill_(2.0)
    weights.sync()
    assert torch.equal(leaves[0], torch.full_like(leaves[0], 2.0))
