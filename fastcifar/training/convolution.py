"""Chooses the convolutions and passes that use Winograd's algorithm, from a table of measurements and not by timing.

A choice is text, as in a run's `config.json`: "torch" for torch's convolutions, or a table such as "64@32:fiw
512@4:iw". Here the 3x3 convolutions with 64 channels on 32x32 pixels use Winograd's algorithm in all passes (forward,
input gradient, weight gradient), those with 512 channels on 4x4 pixels in both gradients, and all others use torch's.
"""

import re

import torch
from torch import Tensor, nn

from fastcifar.errors import check_choice
from fastcifar.kernels.winograd import ALL_PASSES, conv3x3
from fastcifar.machine import cpu_flags

TORCH = "torch"
_EVERYTHING = f"all:{ALL_PASSES}"
# By precision and instruction set: the passes in which Winograd's took no more time than torch's, at batch size 128,
# measured with `benchmarks/convolutions.py`; on Zen 3 with a prototype of the kernel.
_MEASURED = {
    ("fp32", "avx512f"): "64@32:fiw 128@16:fiw 256@8:fiw 512@4:fiw",  # AMD EPYC, Zen 4
    ("fp32", "avx2"): "64@32:fiw 128@16:fiw 256@8:fiw 512@4:fiw",  # AMD EPYC, Zen 3
    ("bf16", "avx512_bf16"): "64@32:fiw 128@16:fiw 256@8:fiw 512@4:w",  # AMD EPYC, Zen 4
}


def choose_convolution(choice: str, device: torch.device, precision: str) -> str:
    """The convolutions of a run.

    Args:
        choice: "torch"; "winograd" wherever the kernel supports it; or "auto" for the passes measured to be faster on
            this kind of CPU, and torch's where nothing was measured.
        device: Winograd's algorithm is for the CPU only.
        precision: "bf16" or "fp32".

    Raises:
        ArgumentError: the choice is not known.
    """
    check_choice("convolution", choice, "auto", TORCH, "winograd")
    if choice == TORCH or device.type != "cpu":
        return TORCH
    if choice == "winograd":
        return _EVERYTHING
    flags = cpu_flags()
    if precision == "bf16" and "amx_bf16" in flags:
        return TORCH
    return next((table for (kind, flag), table in _MEASURED.items() if kind == precision and flag in flags), TORCH)


def parse_convolution(convolution: str) -> dict[str, str]:
    """The passes by shape, "channels@size" or "all"; nothing for "torch".

    Raises:
        ValueError: the text is not a valid choice.
    """
    if convolution == TORCH:
        return {}
    if not re.fullmatch(rf"((all|\d+@\d+):[{ALL_PASSES}]+ )+", convolution + " "):
        raise ValueError(f"convolution must be torch or a table of shapes and passes, not {convolution!r}")
    return dict(entry.split(":") for entry in convolution.split(" "))


class _Conv3x3(nn.Conv2d):
    """A convolution that uses Winograd's algorithm by a table; its parameter is the original's."""

    def __init__(self, original: nn.Conv2d, table: dict[str, str]) -> None:
        # On "meta" no weight is drawn, so the generator's state stays.
        super().__init__(original.in_channels, original.out_channels, 3, padding=1, bias=False, device="meta")
        self.weight = original.weight
        self._table = table

    def forward(self, images: Tensor) -> Tensor:
        passes = self._passes(images)
        if not passes:
            return super().forward(images)
        if torch.is_autocast_enabled(images.device.type):
            images = images.to(torch.get_autocast_dtype(images.device.type))
        result: Tensor = conv3x3(images, self.weight, passes)
        return result

    def _passes(self, images: Tensor) -> str:
        height, width = images.shape[2:]
        if self.in_channels == self.out_channels and height == width and f"{self.in_channels}@{height}" in self._table:
            return self._table[f"{self.in_channels}@{height}"]
        return self._table.get("all", "")


def use_convolution(model: nn.Module, convolution: str) -> None:
    """Make a model on the CPU use these convolutions, in place; its parameters and their names stay.

    Args:
        model: its 3x3 convolutions of stride 1 and padding 1, without bias, may change.
        convolution: from `choose_convolution`.

    Raises:
        ValueError: `convolution` is not a valid choice.
    """
    table = parse_convolution(convolution)
    if not table:
        return
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Conv2d) and _is_plain_3x3(child):
                setattr(module, name, _Conv3x3(child, table).train(child.training))


def _is_plain_3x3(layer: nn.Conv2d) -> bool:
    shape = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode)
    return shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros") and layer.bias is None
