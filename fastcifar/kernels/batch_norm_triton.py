"""Batch norm of a training step with the residual and the ReLU that follow it: two Triton kernels per pass.

Inductor makes three to four kernels per layer. Here each pass has one kernel that reduces rows to a few partial
results, and one in which every program combines these and applies them. Sums are float32 in a fixed order, so equal
inputs give equal bits.

No GPU has run this yet. For tensors on the CPU the plain torch of `batch_norm.py` is used, which also documents the
arguments. Importing this needs Triton, which comes with torch for CUDA.
"""

import math
from typing import Any

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor
from torch.library import triton_op, wrap_triton

from fastcifar.kernels import batch_norm as in_torch

# 32 channels are 64 bytes of a row in bf16; with 128 rows a thread of 8 warps holds 16 values. There are twice as many
# programs as an H100 has multiprocessors. A program that applies reads 8 bytes per channel of each partial result, so
# there must not be too many of these.
_BLOCK_ROWS, _BLOCK_CHANNELS, _NUM_WARPS = 128, 32, 8
_MAX_PROGRAMS, _MAX_PARTIALS = 256, 64


@triton.jit  # type: ignore[untyped-decorator]
def _rows_of_program(num_rows: tl.tensor, rows_per_program: tl.tensor) -> tl.tensor:
    first = tl.program_id(0) * rows_per_program
    return first, tl.minimum(first + rows_per_program, num_rows)


@triton.jit  # type: ignore[untyped-decorator]
def _channels_of_program(num_channels: tl.tensor, BLOCK_CHANNELS: tl.constexpr) -> tl.tensor:
    channels = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    return channels, channels < num_channels


@triton.jit  # type: ignore[untyped-decorator]
def _forward_statistics(
    in_features: tl.tensor,
    out_partials: tl.tensor,
    num_rows: tl.tensor, num_channels: tl.tensor, rows_per_program: tl.tensor,
    BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
) -> None:  # fmt: skip
    """Each channel's mean over a program's rows, and the sum of squared differences from it (Welford)."""
    first, last = _rows_of_program(num_rows, rows_per_program)
    channels, is_channel = _channels_of_program(num_channels, BLOCK_CHANNELS)
    lanes = tl.arange(0, BLOCK_ROWS)
    means = tl.zeros([BLOCK_ROWS, BLOCK_CHANNELS], tl.float32)  # one for each lane's rows
    squares = tl.zeros([BLOCK_ROWS, BLOCK_CHANNELS], tl.float32)
    count = 0.0
    for start in range(first, last, BLOCK_ROWS):
        rows = start + lanes
        mask = (rows < last)[:, None] & is_channel[None, :]
        values = tl.load(in_features + rows[:, None] * num_channels + channels[None, :], mask, other=0).to(tl.float32)
        count += 1.0
        difference = tl.where(mask, values - means, 0.0)
        means += difference / count
        squares += difference * (values - means)
    counts = (tl.maximum(last - first - lanes + BLOCK_ROWS - 1, 0) // BLOCK_ROWS).to(tl.float32)[:, None]
    mean = tl.sum(means * counts, 0) / (last - first).to(tl.float32)
    difference = means - mean[None, :]
    total = tl.sum(squares + counts * difference * difference, 0)
    out = out_partials + tl.program_id(0) * num_channels + channels
    tl.store(out, mean, is_channel)
    tl.store(out + tl.num_programs(0) * num_channels, total, is_channel)


@triton.jit  # type: ignore[untyped-decorator]
def _forward_apply(
    in_features: tl.tensor, in_residual: tl.tensor, in_weight: tl.tensor, in_bias: tl.tensor, in_partials: tl.tensor,
    out_features: tl.tensor, out_mean: tl.tensor, out_variance: tl.tensor,
    num_rows: tl.tensor, num_channels: tl.tensor, rows_per_program: tl.tensor, rows_per_partial: tl.tensor,
    num_partials: tl.tensor,
    EPS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_RELU: tl.constexpr, BLOCK_PARTIALS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
) -> None:  # fmt: skip
    """Combine the partial statistics, then normalise; the first program of a channel block stores the statistics."""
    first, last = _rows_of_program(num_rows, rows_per_program)
    channels, is_channel = _channels_of_program(num_channels, BLOCK_CHANNELS)
    partials = tl.arange(0, BLOCK_PARTIALS)
    is_partial = (partials < num_partials)[:, None] & is_channel[None, :]
    places = in_partials + partials[:, None] * num_channels + channels[None, :]
    means = tl.load(places, is_partial, other=0)
    squares = tl.load(places + num_partials * num_channels, is_partial, other=0)
    num_left = tl.maximum(num_rows - partials * rows_per_partial, 0)
    counts = tl.minimum(num_left, rows_per_partial).to(tl.float32)[:, None]
    mean = tl.sum(means * counts, 0) / num_rows
    difference = means - mean[None, :]
    variance = tl.sum(squares + counts * difference * difference, 0) / num_rows
    if tl.program_id(0) == 0:
        tl.store(out_mean + channels, mean, is_channel)
        tl.store(out_variance + channels, variance, is_channel)
    scale = tl.load(in_weight + channels, is_channel, other=0) * tl.rsqrt(variance + EPS)
    bias = tl.load(in_bias + channels, is_channel, other=0)
    for start in range(first, last, BLOCK_ROWS):
        rows = start + tl.arange(0, BLOCK_ROWS)
        mask = (rows < last)[:, None] & is_channel[None, :]
        offsets = rows[:, None] * num_channels + channels[None, :]
        values = tl.load(in_features + offsets, mask, other=0).to(tl.float32)
        values = (values - mean[None, :]) * scale[None, :] + bias[None, :]
        if HAS_RESIDUAL:
            values += tl.load(in_residual + offsets, mask, other=0).to(tl.float32)
        if HAS_RELU:
            values = tl.where(values <= 0, 0.0, values)  # passes on NaN
        tl.store(out_features + offsets, values, mask)


@triton.jit  # type: ignore[untyped-decorator]
def _backward_statistics(
    in_gradients: tl.tensor, in_more_gradients: tl.tensor, in_features: tl.tensor, in_result: tl.tensor,
    in_weight: tl.tensor, in_bias: tl.tensor, in_mean: tl.tensor, in_variance: tl.tensor,
    out_gradients: tl.tensor, out_partials: tl.tensor,
    num_rows: tl.tensor, num_channels: tl.tensor, rows_per_program: tl.tensor,
    EPS: tl.constexpr, HAS_MORE: tl.constexpr, HAS_RESULT: tl.constexpr, HAS_RELU: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
) -> None:  # fmt: skip
    """Sums over a program's rows of the gradients at the input of ReLU, and of these times the normalised features.

    These gradients are stored if reading them again costs less than computing them.
    """
    first, last = _rows_of_program(num_rows, rows_per_program)
    channels, is_channel = _channels_of_program(num_channels, BLOCK_CHANNELS)
    mean = tl.load(in_mean + channels, is_channel, other=0)[None, :]
    inverse_std = tl.rsqrt(tl.load(in_variance + channels, is_channel, other=0) + EPS)[None, :]
    weight = tl.load(in_weight + channels, is_channel, other=0)[None, :]
    bias = tl.load(in_bias + channels, is_channel, other=0)[None, :]
    sums = tl.zeros([BLOCK_ROWS, BLOCK_CHANNELS], tl.float32)
    products = tl.zeros([BLOCK_ROWS, BLOCK_CHANNELS], tl.float32)
    for start in range(first, last, BLOCK_ROWS):
        rows = start + tl.arange(0, BLOCK_ROWS)
        mask = (rows < last)[:, None] & is_channel[None, :]
        offsets = rows[:, None] * num_channels + channels[None, :]
        gradients = tl.load(in_gradients + offsets, mask, other=0).to(tl.float32)
        centred = tl.load(in_features + offsets, mask, other=0).to(tl.float32) - mean
        if HAS_MORE:
            gradients += tl.load(in_more_gradients + offsets, mask, other=0).to(tl.float32)
        if HAS_RELU:
            if HAS_RESULT:
                results = tl.load(in_result + offsets, mask, other=0).to(tl.float32)
            else:
                results = centred * (weight * inverse_std) + bias
            gradients = tl.where(results <= 0, 0.0, gradients)
        if HAS_MORE or HAS_RESULT:
            tl.store(out_gradients + offsets, gradients, mask)
        sums += gradients
        products += gradients * (centred * inverse_std)
    out = out_partials + tl.program_id(0) * num_channels + channels
    tl.store(out, tl.sum(sums, 0), is_channel)
    tl.store(out + tl.num_programs(0) * num_channels, tl.sum(products, 0), is_channel)


@triton.jit  # type: ignore[untyped-decorator]
def _backward_apply(
    in_gradients: tl.tensor, in_features: tl.tensor, in_weight: tl.tensor, in_bias: tl.tensor, in_mean: tl.tensor,
    in_variance: tl.tensor, in_partials: tl.tensor,
    out_gradients: tl.tensor, out_weight_gradient: tl.tensor, out_bias_gradient: tl.tensor,
    num_rows: tl.tensor, num_channels: tl.tensor, rows_per_program: tl.tensor, num_partials: tl.tensor,
    EPS: tl.constexpr, IS_MASKED: tl.constexpr, BLOCK_PARTIALS: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
) -> None:  # fmt: skip
    """Combine the partial sums, which are the gradients of bias and weight, then compute the features' gradients."""
    first, last = _rows_of_program(num_rows, rows_per_program)
    channels, is_channel = _channels_of_program(num_channels, BLOCK_CHANNELS)
    partials = tl.arange(0, BLOCK_PARTIALS)
    is_partial = (partials < num_partials)[:, None] & is_channel[None, :]
    places = in_partials + partials[:, None] * num_channels + channels[None, :]
    total = tl.sum(tl.load(places, is_partial, other=0), 0)
    product = tl.sum(tl.load(places + num_partials * num_channels, is_partial, other=0), 0)
    if tl.program_id(0) == 0:
        tl.store(out_bias_gradient + channels, total, is_channel)
        tl.store(out_weight_gradient + channels, product, is_channel)
    mean = tl.load(in_mean + channels, is_channel, other=0)[None, :]
    inverse_std = tl.rsqrt(tl.load(in_variance + channels, is_channel, other=0) + EPS)[None, :]
    scale = tl.load(in_weight + channels, is_channel, other=0)[None, :] * inverse_std
    bias = tl.load(in_bias + channels, is_channel, other=0)[None, :]
    mean_gradient = (total / num_rows)[None, :]
    slope = (product / num_rows)[None, :] * inverse_std
    for start in range(first, last, BLOCK_ROWS):
        rows = start + tl.arange(0, BLOCK_ROWS)
        mask = (rows < last)[:, None] & is_channel[None, :]
        offsets = rows[:, None] * num_channels + channels[None, :]
        gradients = tl.load(in_gradients + offsets, mask, other=0).to(tl.float32)
        centred = tl.load(in_features + offsets, mask, other=0).to(tl.float32) - mean
        if IS_MASKED:
            gradients = tl.where(centred * scale + bias <= 0, 0.0, gradients)
        tl.store(out_gradients + offsets, scale * (gradients - mean_gradient - centred * slope), mask)


def _grid(num_rows: int, num_channels: int, max_programs: int) -> tuple[tuple[int, int], int]:
    """The number of programs by rows and by channels, all with at least one row, and the rows of each."""
    num_blocks = math.ceil(num_channels / _BLOCK_CHANNELS)
    num_programs = min(max(_MAX_PROGRAMS // num_blocks, 1), max_programs)
    num_tiles = math.ceil(math.ceil(num_rows / num_programs) / _BLOCK_ROWS)
    return (math.ceil(num_rows / (num_tiles * _BLOCK_ROWS)), num_blocks), num_tiles * _BLOCK_ROWS


def _as_rows(features: Tensor) -> Tensor:
    """`(B, C, H, W)` as `(B * H * W, C)`, a view if it is channels-last."""
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])


def _as_images(rows: Tensor, like: Tensor) -> Tensor:
    batch_size, num_channels, height, width = like.shape
    return rows.view(batch_size, height, width, num_channels).permute(0, 3, 1, 2)


_BLOCKS: dict[str, int] = {"BLOCK_ROWS": _BLOCK_ROWS, "BLOCK_CHANNELS": _BLOCK_CHANNELS, "num_warps": _NUM_WARPS}


def normalise_by_triton(
    features: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float, has_relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See `batch_norm.batch_norm`."""
    rows = _as_rows(features)
    num_rows, num_channels = rows.shape
    partials_grid, rows_per_partial = _grid(num_rows, num_channels, _MAX_PARTIALS)
    grid, rows_per_program = _grid(num_rows, num_channels, _MAX_PROGRAMS)
    partials = weight.new_empty(2, partials_grid[0], num_channels)
    result, mean, variance = torch.empty_like(rows), torch.empty_like(weight), torch.empty_like(weight)
    wrap_triton(_forward_statistics)[partials_grid](rows, partials, num_rows, num_channels, rows_per_partial, **_BLOCKS)
    wrap_triton(_forward_apply)[grid](
        rows, None if residual is None else _as_rows(residual), weight, bias, partials, result, mean, variance,
        num_rows, num_channels, rows_per_program, rows_per_partial, partials_grid[0], EPS=eps,
        HAS_RESIDUAL=residual is not None, HAS_RELU=has_relu, BLOCK_PARTIALS=_MAX_PARTIALS, **_BLOCKS,
    )  # fmt: skip
    return _as_images(result, features), mean, variance


def differentiate_by_triton(
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
    """See `batch_norm.batch_norm_backward`."""
    rows, row_gradients = _as_rows(features), _as_rows(gradients)
    num_rows, num_channels = rows.shape
    partials_grid, rows_per_partial = _grid(num_rows, num_channels, _MAX_PARTIALS)
    grid, rows_per_program = _grid(num_rows, num_channels, _MAX_PROGRAMS)
    partials = weight.new_empty(2, partials_grid[0], num_channels)
    is_stored = result is not None or more_gradients is not None
    behind_relu = torch.empty_like(rows) if is_stored else rows.new_empty(0)
    feature_gradients = torch.empty_like(rows)
    weight_gradient, bias_gradient = torch.empty_like(weight), torch.empty_like(weight)
    wrap_triton(_backward_statistics)[partials_grid](
        row_gradients, None if more_gradients is None else _as_rows(more_gradients), rows,
        None if result is None else _as_rows(result), weight, bias, mean, variance, behind_relu if is_stored else None,
        partials, num_rows, num_channels, rows_per_partial, EPS=eps, HAS_MORE=more_gradients is not None,
        HAS_RESULT=result is not None, HAS_RELU=has_relu, **_BLOCKS,
    )  # fmt: skip
    wrap_triton(_backward_apply)[grid](
        behind_relu if is_stored else row_gradients, rows, weight, bias, mean, variance, partials, feature_gradients,
        weight_gradient, bias_gradient, num_rows, num_channels, rows_per_program, partials_grid[0], EPS=eps,
        IS_MASKED=has_relu and not is_stored, BLOCK_PARTIALS=_MAX_PARTIALS, **_BLOCKS,
    )  # fmt: skip
    if is_stored:
        behind_relu = _as_images(behind_relu, features)
    return _as_images(feature_gradients, features), weight_gradient, bias_gradient, behind_relu


_normalise = triton_op("fastcifar::batch_norm", mutates_args={})(normalise_by_triton)
_differentiate = triton_op("fastcifar::batch_norm_backward", mutates_args={})(differentiate_by_triton)
_normalise.register_kernel("cpu", in_torch.batch_norm)
_differentiate.register_kernel("cpu", in_torch.batch_norm_backward)


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        has_relu: bool,
        used_twice: bool,
    ) -> tuple[Tensor, ...]:
        result, mean, variance = _normalise(features, residual, weight, bias, eps, has_relu)
        ctx.has_residual, ctx.eps, ctx.has_relu, ctx.used_twice = residual is not None, eps, has_relu, used_twice
        needed = result if ctx.has_residual and has_relu else None
        ctx.save_for_backward(features, needed, weight, bias, mean, variance)
        ctx.mark_non_differentiable(mean, variance)
        return (mean, variance, result, result.view_as(result)) if used_twice else (mean, variance, result)

    @staticmethod
    def backward(ctx: Any, *all_gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradients, more_gradients = all_gradients[2], all_gradients[3] if ctx.used_twice else None
        features, weight, bias, behind_relu = _differentiate(
            gradients, more_gradients, *ctx.saved_tensors, ctx.eps, ctx.has_relu
        )
        residual = behind_relu if ctx.has_relu or ctx.used_twice else gradients
        return features, residual if ctx.has_residual else None, weight, bias, None, None, None


def batch_norm(
    features: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float,
    has_relu: bool,
    used_twice: bool,
) -> tuple[Tensor, ...]:
    """The batch norm of `batch_norm.py`, as a function that autograd can differentiate.

    Args:
        features: see `batch_norm.batch_norm`.
        residual: see `batch_norm.batch_norm`.
        weight: see `batch_norm.batch_norm`.
        bias: see `batch_norm.batch_norm`.
        eps: see `batch_norm.batch_norm`.
        has_relu: see `batch_norm.batch_norm`.
        used_twice: whether the result is used twice. It is then returned twice, so that the backward pass adds the two
            gradients as it reads them, not in a separate kernel.

    Returns:
        Each channel's mean and biased variance, which have no gradients; then the result, once or twice.
    """
    statistics_and_results: tuple[Tensor, ...] = _BatchNorm.apply(
        features, residual, weight, bias, eps, has_relu, used_twice
    )
    return statistics_and_results
