import itertools
import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from support.command_line import ENVIRONMENT, PROGRAMS
from support.interpreter import needs_interpreter  # before what imports Triton: it skips the module where there is none
from torch import Tensor
from torch.nn import functional

from fastcifar.kernels.batch_norm_triton import batch_norm

FLAGS = list(itertools.product((False, True), repeat=3))


def run(program: str) -> dict[str, dict[str, Any]]:
    """The output of a program, by case."""
    command = [sys.executable, "-W", "ignore", str(PROGRAMS / program)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def assert_small(errors: dict[str, float], *, is_bf16: bool, has_more: bool, num_rows: int) -> None:
    """Each error is a part of the result's largest value.

    In float32 a result is some ten operations, rounded to 2**-24 each, on sums over all rows, whose roundings add up to
    sqrt(num_rows) * 2**-24 or so: a few of both. Images in bf16 are rounded once more, those computed from gradients
    that were added up and stored twice more, by 2**-7 each in the interpreter, which rounds towards zero.
    """
    for name, error in errors.items():
        num_roundings = 0
        if is_bf16 and name in ("result", "features", "behind_relu"):
            num_roundings = 2 if name == "features" and has_more else 1
        assert error <= num_roundings * 2**-7 + 3 * (10 + num_rows**0.5) * 2**-24, name


@needs_interpreter
def test_the_kernels_in_tritons_interpreter_equal_torch_in_float64() -> None:
    found = run("interpreted_batch_norm.py")
    assert len(found) == 8 + 2 + 5
    for case, errors in found.items():
        assert_small(errors, is_bf16="bfloat16" in case, has_more="more=True" in case, num_rows=5 * 13 * 17)


@pytest.mark.gpu
@pytest.mark.parametrize(("has_residual", "has_relu", "has_more"), FLAGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(16, 64, 32, 32), (32, 512, 4, 4), (5, 40, 13, 17)])
def test_the_kernels_on_a_gpu_equal_torch_in_float64(
    shape: tuple[int, ...], dtype: torch.dtype, has_residual: bool, has_relu: bool, has_more: bool
) -> None:
    from support import batch_norm_errors

    with torch.device("cuda"):
        errors = batch_norm_errors.errors(shape, dtype, has_residual, has_relu, has_more)
    num_rows = shape[0] * shape[2] * shape[3]
    assert_small(errors, is_bf16=dtype == torch.bfloat16, has_more=has_more, num_rows=num_rows)


@pytest.mark.parametrize(("has_residual", "has_relu", "used_twice"), FLAGS)
def test_the_plain_torch_twin_equals_torch_in_float64(has_residual: bool, has_relu: bool, used_twice: bool) -> None:
    torch.manual_seed(7)
    features, residual, *factors = (torch.randn(3, 5, 4, 6, dtype=torch.float64) for _ in range(4))
    weight, bias = torch.rand(5, dtype=torch.float64) + 0.5, torch.randn(5, dtype=torch.float64)
    inputs = [features, weight, bias, residual][: 4 if has_residual else 3]
    running_mean, running_var = torch.zeros(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64)

    def gradients(of: list[Tensor], results: list[Tensor]) -> tuple[Tensor, ...]:
        loss = sum((result * factor).sum() for result, factor in zip(results, factors, strict=False))
        assert isinstance(loss, Tensor)
        return torch.autograd.grad(loss, of)

    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    expected = functional.batch_norm(leaves[0], running_mean, running_var, leaves[1], leaves[2], True, 1.0, 1e-5)
    expected = expected + leaves[3] if has_residual else expected
    expected = functional.relu(expected) if has_relu else expected
    ours = [tensor.clone().requires_grad_() for tensor in inputs]
    mean, variance, *results = batch_norm(
        ours[0], ours[3] if has_residual else None, ours[1], ours[2],
        eps=1e-5, has_relu=has_relu, used_twice=used_twice,
    )  # fmt: skip
    assert len(results) == 1 + used_twice
    assert not mean.requires_grad
    assert not variance.requires_grad
    exactly: Any = {"rtol": 1e-11, "atol": 1e-11}
    for result in results:
        torch.testing.assert_close(result, expected, **exactly)
    torch.testing.assert_close(mean, running_mean, **exactly)
    torch.testing.assert_close(variance * (72 / 71), running_var, **exactly)  # 3 * 4 * 6 values a channel
    theirs = gradients(leaves, [expected] * len(results))
    torch.testing.assert_close(gradients(ours, results), theirs, **exactly)


@pytest.mark.slow
def test_the_kernels_compile_for_an_h100_and_spill_no_register() -> None:
    """With 256 threads and 128 registers each, two programs fit on a multiprocessor: as many as are started."""
    found = run("batch_norm_cubins.py")
    assert len(found) == 2 * (1 + 3 + 5 + 2)
    for kernel, resources in found.items():
        assert resources["spilled"] == 0, kernel
        assert resources["registers"] <= 128, kernel


def test_nan_is_passed_on() -> None:
    """ReLU must not hide NaN from the check for the first bad step."""
    features = torch.ones(2, 1, 2, 2).index_fill(0, torch.tensor(0), float("nan"))
    result = batch_norm(features, None, torch.ones(1), torch.zeros(1), eps=1e-5, has_relu=True, used_twice=False)[2]
    assert result.isnan().all()
