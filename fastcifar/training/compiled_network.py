"""The network for a compiled step: the same mathematics and parameters as the model, in fewer kernels and bytes."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock

from fastcifar.training.model import ResNet18

_PADDED_CHANNELS = 8  # the number that tensor cores process together in bf16


@dataclass(frozen=True)
class StepOptions:
    """How a compiled step is built; no option changes the results beyond rounding.

    Attributes:
        combo_kernels: Inductor puts independent small kernels into one launch.
        bf16_weights: in bf16, convolutions read weights held in bf16, which the optimizer's pass writes.
        recompute_relu_mask: if no residual is added, the backward pass takes ReLU's mask from the convolution's output,
            which it reads for batch norm anyway.
        triton_batch_norm: batch norm, with residual and ReLU, uses our kernels instead of Inductor's; they always
            recompute ReLU's mask.
        padded_input: the first convolution gets 8 channels, of which 5 are zero.
        steps_per_graph: steps in one CUDA graph, if the loader can read ahead.
    """

    combo_kernels: bool = True
    bf16_weights: bool = True
    recompute_relu_mask: bool = True
    triton_batch_norm: bool = False
    padded_input: bool = False
    steps_per_graph: int = 1


class CompiledNetwork(nn.Module):
    """A model in training, for torch.compile.

    The caller updates batch norm's `num_batches_tracked`, which as a tensor in the graph would cost a kernel per layer.

    Args:
        model: its parameters and buffers are used, and its running statistics are updated.
        options: how the step is built.
        precision: "bf16", for calls under autocast, or "fp32".

    Attributes:
        leaves: the tensors to differentiate by, one per parameter of the model: the parameter, or its copy in bf16.
    """

    def __init__(self, model: ResNet18, options: StepOptions, precision: str) -> None:
        super().__init__()
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._num_channels = _PADDED_CHANNELS if options.padded_input else 3
        backbone = model.backbone
        self.stem = _Unit(backbone.conv1, backbone.bn1, options, precision)
        layers = (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4)
        self.blocks = nn.ModuleList(_Block(block, options, precision) for layer in layers for block in layer)
        self.avgpool, self.fc = backbone.avgpool, backbone.fc
        units = {unit.conv.weight: unit.weight for unit in self.modules() if isinstance(unit, _Unit)}
        self.leaves: list[Tensor] = [units.get(parameter, parameter) for parameter in model.parameters()]

    def to_input(self, images: Tensor) -> Tensor:
        """Normalised `(B, 3, 32, 32)` images as `forward` takes them."""
        padding = (0, 0, 0, 0, 0, self._num_channels - images.shape[1])
        return functional.pad(images.to(self._dtype), padding).contiguous(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, `(B, 10)` float32, from the output of `to_input`."""
        features, residual = self.stem(images, used_twice=True)
        for block in self.blocks:
            features, residual = block(features, residual, is_last=block is self.blocks[-1])
        logits: Tensor = self.fc(self.avgpool(features).flatten(1))
        return logits


class _StoredGradient(torch.autograd.Function):
    """The identity; its gradient is computed once and stored, not again in each kernel that reads it."""

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.as_strided(gradient.size(), gradient.stride())  # Inductor reads this from memory only


class _Unit(nn.Module):
    """Convolution, batch norm, and an optional residual and ReLU."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d, options: StepOptions, precision: str) -> None:
        super().__init__()
        self.conv, self.norm, self._options = conv, norm, options
        has_copy = options.bf16_weights and precision == "bf16" and type(conv) is nn.Conv2d  # not Winograd's
        self.weight = nn.Parameter(conv.weight.detach().to(torch.bfloat16)) if has_copy else conv.weight

    def forward(
        self, features: Tensor, residual: Tensor | None = None, *, has_relu: bool = True, used_twice: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The result, twice: as two tensors for autograd if it `used_twice`; otherwise only one may be used."""
        num_added = features.shape[1] - self.weight.shape[1]
        if self.weight is self.conv.weight and not num_added:
            features = self.conv(features)
        else:
            weight = functional.pad(self.weight, (0, 0, 0, 0, 0, num_added)) if num_added else self.weight
            features = functional.conv2d(features, weight, stride=self.conv.stride, padding=self.conv.padding)
        norm = self.norm
        if self._options.triton_batch_norm:
            return self._normalise_by_triton(features, residual, has_relu=has_relu, used_twice=used_twice)
        features = functional.batch_norm(
            features, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=True,
            momentum=norm.momentum or 0.0, eps=norm.eps,
        )  # fmt: skip
        if residual is not None:
            features = _StoredGradient.apply(features + residual)
        if has_relu and residual is None and self._options.recompute_relu_mask:
            # The derivative of torch's ReLU uses its output; this one's uses the input, which can be recomputed.
            features = torch.where(features <= 0, 0, features)
        elif has_relu:
            features = functional.relu(features)
        return features, features

    def _normalise_by_triton(
        self, features: Tensor, residual: Tensor | None, *, has_relu: bool, used_twice: bool
    ) -> tuple[Tensor, Tensor]:
        from fastcifar.kernels.batch_norm_triton import batch_norm  # torch for the CPU has no Triton

        norm = self.norm
        mean, variance, *results = batch_norm(
            features, residual, norm.weight, norm.bias, eps=norm.eps, has_relu=has_relu, used_twice=used_twice
        )
        num_rows = features.numel() // features.shape[1]
        new_statistics = mean, variance * (num_rows / (num_rows - 1))
        for statistics, new in zip((norm.running_mean, norm.running_var), new_statistics, strict=True):
            assert statistics is not None
            statistics.lerp_(new, norm.momentum or 0.0)
        return results[0], results[-1]


class _Block(nn.Module):
    """torchvision's BasicBlock."""

    def __init__(self, block: BasicBlock, options: StepOptions, precision: str) -> None:
        super().__init__()
        self.first = _Unit(block.conv1, block.bn1, options, precision)
        self.second = _Unit(block.conv2, block.bn2, options, precision)
        shortcut = block.downsample
        self.shortcut = None if shortcut is None else _Unit(shortcut[0], shortcut[1], options, precision)

    def forward(self, features: Tensor, residual: Tensor, *, is_last: bool) -> tuple[Tensor, Tensor]:
        if self.shortcut is not None:
            residual, _ = self.shortcut(residual, has_relu=False)
        features, _ = self.first(features)
        results: tuple[Tensor, Tensor] = self.second(features, residual, used_twice=not is_last)
        return results
