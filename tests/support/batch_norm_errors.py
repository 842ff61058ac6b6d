"""The Triton batch norm compared with torch in float64, on a GPU or in Triton's interpreter."""

import torch
from torch import Tensor
from torch.nn import functional

from fastcifar.kernels import batch_norm_triton

EPS = 1e-5


def errors(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    has_residual: bool,
    has_relu: bool,
    has_more: bool,
) -> dict[str, float]:
    """The largest difference of each result, relative to the result's largest value; on torch's default device."""
    torch.manual_seed(sum(shape))
    features, residual, gradient, more = (
        torch.randn(shape).to(dtype).to(memory_format=torch.channels_last) for _ in range(4)
    )
    num_channels = shape[1]
    features = (features * 3 + 20 * torch.arange(num_channels).view(-1, 1, 1) / num_channels).to(dtype)
    weight, bias = torch.rand(num_channels) + 0.5, torch.randn(num_channels)
    added = residual if has_residual else None
    result, mean, variance = batch_norm_triton.normalise_by_triton(features, added, weight, bias, EPS, has_relu)
    needed = result if has_residual and has_relu else None
    gradients = batch_norm_triton.differentiate_by_triton(
        gradient, more if has_more else None, features, needed, weight, bias, mean, variance, EPS, has_relu
    )
    assert result.dtype == gradients[0].dtype == dtype
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert gradients[0].is_contiguous(memory_format=torch.channels_last)

    exact = [tensor.double().requires_grad_() for tensor in (features, weight, bias, residual)]
    running_mean, running_var = torch.zeros(num_channels).double(), torch.ones(num_channels).double()
    expected = functional.batch_norm(
        exact[0], running_mean, running_var, exact[1], exact[2], training=True, momentum=1.0, eps=EPS
    )
    expected = expected + exact[3] if has_residual else expected
    # Rounding decides values next to ReLU's kink, so the gradients are compared with the result's own mask.
    behind_relu = gradient.double() + more.double() if has_more else gradient.double()
    behind_relu = behind_relu.where(result > 0, 0) if has_relu else behind_relu
    expected_gradients = torch.autograd.grad(expected, exact[: 4 if has_residual else 3], behind_relu)
    expected = functional.relu(expected) if has_relu else expected
    num_rows = features.numel() // num_channels
    found = {
        "result": (result, expected.detach()),
        "running_mean": (mean, running_mean),
        "running_var": (variance * (num_rows / (num_rows - 1)), running_var),
        "features": (gradients[0], expected_gradients[0]),
        "weight": (gradients[1], expected_gradients[1]),
        "bias": (gradients[2], expected_gradients[2]),
    }
    if needed is not None or has_more:
        found["behind_relu"] = (gradients[3], behind_relu)
    return {name: relative(ours, theirs) for name, (ours, theirs) in found.items()}


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs).abs().max() / theirs.abs().max())
