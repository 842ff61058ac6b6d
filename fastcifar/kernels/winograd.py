"""3x3 convolutions by Winograd's F(4x4, 3x3) on a CPU, as torch operators; `docs/winograd.md` explains them.

They need a quarter of a direct convolution's multiplications, in float32 arithmetic on float32 or bfloat16 images. For
each pass (the convolution and its two gradients) the caller chooses Winograd's or torch's. If the kernel cannot do a
pass (another shape or type, no compiler), torch does it.
"""

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from fastcifar.kernels.native import NativeError, find_openmp, load_library

FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT = "f", "i", "w"
ALL_PASSES = FORWARD + INPUT_GRADIENT + WEIGHT_GRADIENT
# With fewer tiles of 4x4 pixels in a batch, transforming the filters costs more than it saves. And if torch's sums have
# few terms (tiles or channels), they have less rounding error than the transforms.
MIN_TILES = 64
_MIN_CHANNELS = 32
_MAX_CHANNELS = 4096  # as in winograd.cpp
_SOURCE = Path(__file__).with_name("winograd.cpp")


class _Kernel:
    """The compiled passes; the callers check shapes, types and memory formats."""

    def __init__(self) -> None:
        library = load_library(_SOURCE)
        number, address = ctypes.c_int64, ctypes.c_void_p
        self._start_threads = find_openmp()
        self._run, self._scratch_size = library.winograd_run, library.winograd_scratch_size
        self._run.argtypes, self._run.restype = [address] + [number] * 3 + [address] * 4 + [number] * 5, None
        self._scratch_size.argtypes, self._scratch_size.restype = [number] * 7, number
        self.channel_multiple = int(library.winograd_channel_multiple())

    def run(self, which: str, x: Tensor, other: Tensor, result: Tensor, out_channels: int) -> Tensor:
        """One pass of channels-last tensors into `result`; see `winograd_run` in the source."""
        num_images, in_channels, height, width = x.shape
        shape = (num_images, height, width, in_channels, out_channels)
        num_threads = torch.get_num_threads()
        scratch = torch.empty(self._scratch_size(ord(which), num_threads, *shape))
        self._run(
            self._start_threads, ord(which), num_threads, x.dtype == torch.bfloat16,
            x.data_ptr(), other.data_ptr(), result.data_ptr(), scratch.data_ptr(), *shape,
        )  # fmt: skip
        return result


@functools.cache
def _load() -> _Kernel | str:
    """The kernel, or why there is none."""
    try:
        return _Kernel()
    except NativeError as error:
        return str(error)


def why_unavailable() -> str | None:
    """Why the kernel cannot be used on this machine, in a few words; None if it can. May compile it (seconds)."""
    kernel = _load()
    return kernel if isinstance(kernel, str) else None


def _kernel_for(passes: str, which: str, images: Tensor, weight: Tensor) -> _Kernel | None:
    """The kernel, if it should do this pass and can."""
    if which not in passes or images.device.type != "cpu":
        return None
    if images.dtype not in (torch.float32, torch.bfloat16) or weight.dtype != torch.float32:
        return None
    num_images, _, height, width = images.shape
    if height % 4 or width % 4 or num_images * height * width < 16 * MIN_TILES:
        return None
    least, most = sorted(weight.shape[:2])
    if least < _MIN_CHANNELS or most > _MAX_CHANNELS:
        return None
    kernel = _load()
    if isinstance(kernel, str) or least % kernel.channel_multiple or most % kernel.channel_multiple:
        return None
    return kernel


def _dense(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)


def _check_weight(weight: Tensor) -> None:
    if weight.dim() != 4 or weight.shape[2:] != (3, 3) or weight.device.type != "cpu":
        raise ValueError(f"weight must be (O, I, 3, 3) on the CPU, not {tuple(weight.shape)} on {weight.device}")


def _check_images(name: str, images: Tensor, channels: int) -> None:
    if images.dim() != 4 or images.shape[1] != channels:
        raise ValueError(f"{name} must be (N, {channels}, H, W), not {tuple(images.shape)}")


def _torch_backward(dy: Tensor, x: Tensor, weight: Tensor, which: int) -> Tensor:
    mask = [which == position for position in range(3)]
    gradients = torch.ops.aten.convolution_backward(dy, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, mask)
    gradient: Tensor = gradients[which]
    return gradient


@torch.library.custom_op("fastcifar::conv3x3", mutates_args=(), device_types="cpu")
def conv3x3(x: Tensor, weight: Tensor, passes: str) -> Tensor:
    """A 3x3 convolution with stride 1, padding 1 and no bias; differentiable once.

    Args:
        x: `(N, I, H, W)` float; any memory format, fastest in channels-last.
        weight: `(O, I, 3, 3)`, float32 for Winograd's algorithm; its gradient has the same type.
        passes: the passes that use Winograd's algorithm, of `FORWARD`, `INPUT_GRADIENT` and `WEIGHT_GRADIENT`.

    Returns:
        `(N, O, H, W)` of x's type, channels-last.

    Raises:
        ValueError: the shapes do not match.
    """
    _check_weight(weight)
    out_channels, in_channels = weight.shape[:2]
    _check_images("x", x, in_channels)
    kernel = _kernel_for(passes, FORWARD, x, weight)
    if kernel is None:
        return _dense(torch.conv2d(x, weight.to(x.dtype), padding=1))
    y = _empty((x.shape[0], out_channels, *x.shape[2:]), x.dtype)
    return kernel.run(FORWARD, _dense(x), _dense(weight), y, out_channels)


@torch.library.custom_op("fastcifar::conv3x3_input_gradient", mutates_args=(), device_types="cpu")
def conv3x3_input_gradient(dy: Tensor, x: Tensor, weight: Tensor, passes: str) -> Tensor:
    """The gradient of x in `conv3x3`, of its shape and type, channels-last; `dy` is the result's gradient."""
    _check_weight(weight)
    out_channels, in_channels = weight.shape[:2]
    _check_images("dy", dy, out_channels)
    kernel = _kernel_for(passes, INPUT_GRADIENT, dy, weight)
    if kernel is None:
        return _dense(_torch_backward(dy, x, weight.to(x.dtype), 0))
    dx = _empty((dy.shape[0], in_channels, *dy.shape[2:]), dy.dtype)
    return kernel.run(INPUT_GRADIENT, _dense(dy), _dense(weight), dx, in_channels)


@torch.library.custom_op("fastcifar::conv3x3_weight_gradient", mutates_args=(), device_types="cpu")
def conv3x3_weight_gradient(dy: Tensor, x: Tensor, weight: Tensor, passes: str) -> Tensor:
    """The gradient of the weight in `conv3x3`, of its shape and type, channels-last; `dy` is the result's gradient."""
    _check_weight(weight)
    out_channels, in_channels = weight.shape[:2]
    _check_images("dy", dy, out_channels)
    _check_images("x", x, in_channels)
    if dy.shape[2:] != x.shape[2:] or len(dy) != len(x) or dy.dtype != x.dtype:
        raise ValueError(f"dy {dy.dtype} {tuple(dy.shape)} does not fit x {x.dtype} {tuple(x.shape)}")
    kernel = _kernel_for(passes, WEIGHT_GRADIENT, x, weight)
    if kernel is None:
        return _dense(_torch_backward(dy, x, weight.to(x.dtype), 1)).to(weight.dtype)
    return kernel.run(WEIGHT_GRADIENT, _dense(x), _dense(dy), _empty(tuple(weight.shape), torch.float32), out_channels)


@conv3x3.register_fake
def _(x: Tensor, weight: Tensor, passes: str) -> Tensor:
    shape = (x.shape[0], weight.shape[0], *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@conv3x3_input_gradient.register_fake
def _(dy: Tensor, x: Tensor, weight: Tensor, passes: str) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


@conv3x3_weight_gradient.register_fake
def _(dy: Tensor, x: Tensor, weight: Tensor, passes: str) -> Tensor:
    return torch.empty_like(weight, memory_format=torch.channels_last)


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, Tensor, str], output: Tensor) -> None:
    x, weight, ctx.passes = inputs  # type: ignore[attr-defined]
    ctx.save_for_backward(x, weight)


def _backward(ctx, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # type: ignore[no-untyped-def]
    x, weight = ctx.saved_tensors
    dx = conv3x3_input_gradient(dy, x, weight, ctx.passes) if ctx.needs_input_grad[0] else None
    dw = conv3x3_weight_gradient(dy, x, weight, ctx.passes) if ctx.needs_input_grad[1] else None
    return dx, dw, None


conv3x3.register_autograd(_backward, setup_context=_save)
