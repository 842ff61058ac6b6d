"""Batch norm of a training step with the residual and the ReLU that follow it, in plain torch."""

import torch
from torch import Tensor


def batch_norm(
    features: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float, has_relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Batch norm in training, then an optional residual and ReLU.

    Args:
        features: `(B, C, H, W)` bf16 or float32, channels-last, of at most 2**31 elements.
        residual: of the same shape and type, added after batch norm; or None.
        weight: `(C,)` float32.
        bias: `(C,)` float32.
        eps: added to the variance.
        has_relu: whether ReLU comes last.

    Returns:
        The result, of the shape and type of `features`; then each channel's mean and biased variance, `(C,)` float32.
    """
    values = features.to(weight.dtype)
    variance, mean = torch.var_mean(values, (0, 2, 3), correction=0)
    values = (values - _per_channel(mean)) * _per_channel(weight * (variance + eps).rsqrt()) + _per_channel(bias)
    if residual is not None:
        values = values + residual
    if has_relu:
        values = torch.where(values <= 0, 0, values)  # passes on NaN
    return values.to(features.dtype), mean, variance


def batch_norm_backward(
    gradients: Tensor,
    more_gradients: Tensor | None,
    features: Tensor,
    result: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    eps: float,
    has_relu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of `batch_norm`, whose arguments and results have the same names here.

    Args:
        gradients: the gradients of the result.
        more_gradients: gradients to add to `gradients`, or None.
        features: see `batch_norm`.
        result: the result, if it had both a residual and ReLU; otherwise None.
        weight: see `batch_norm`.
        bias: see `batch_norm`.
        mean: see `batch_norm`.
        variance: see `batch_norm`.
        eps: see `batch_norm`.
        has_relu: see `batch_norm`.

    Returns:
        Gradients of features, weight and bias; then the gradients at the input of ReLU, which are the residual's. These
        are empty if there is neither `result` nor `more_gradients`.
    """
    inverse_std = (variance + eps).rsqrt()
    centred, behind_relu = features.to(weight.dtype) - _per_channel(mean), gradients.to(weight.dtype)
    if more_gradients is not None:
        behind_relu = behind_relu + more_gradients
    if has_relu:
        outputs = centred * _per_channel(weight * inverse_std) + _per_channel(bias) if result is None else result
        behind_relu = torch.where(outputs <= 0, 0, behind_relu)
    normalised = centred * _per_channel(inverse_std)
    bias_gradient, weight_gradient = behind_relu.sum((0, 2, 3)), (behind_relu * normalised).sum((0, 2, 3))
    num_rows = features.numel() / len(mean)
    feature_gradients = _per_channel(weight * inverse_std) * (
        behind_relu - _per_channel(bias_gradient / num_rows) - normalised * _per_channel(weight_gradient / num_rows)
    )
    is_empty = result is None and more_gradients is None
    behind_relu = features.new_empty(0) if is_empty else behind_relu.to(features.dtype)
    return feature_gradients.to(features.dtype), weight_gradient, bias_gradient, behind_relu


def _per_channel(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1)
