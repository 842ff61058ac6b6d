"""The network as a compiled step computes it: the model's mathematics and parameters, in fewer kernels and bytes."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock

from fastcifar.training.model import ResNet18

_PADDED_CHANNELS = 8  # what tensor cores take at once in bf16


@dataclass(frozen=True)
class StepOptions:
    """How a compiled step is built; none of it changes what is computed, beyond rounding.

    Attributes:
        combo_kernels: Inductor puts independent small kernels into one launch.
        bf16_weights: in bf16, convolutions read weights held in bf16, which the optimizer's pass writes.
        recompute_relu_mask: where no residual is added, the backward pass takes ReLU's mask from the convolution's
            output, which it reads for batch norm anyway.
        padded_input: the first convolution sees 8 channels, of which 5 are zero.
        steps_per_graph: steps in one CUDA graph, where the loader can read ahead.
    """

    combo_kernels: bool = True
    bf16_weights: bool = True
    recompute_relu_mask: bool = True
    padded_input: bool = False
    steps_per_graph: int = 1


class CompiledNetwork(nn.Module):
    """A model in training, for torch.compile.

    Batch norm's `num_batches_tracked` is left to the caller: as a tensor in the graph it would be a kernel a layer.

    Args:
        model: whose parameters and buffers are used, and whose running statistics are updated.
        options: see there.
        precision: "bf16", then it is called under autocast, or "fp32".

    Attributes:
        leaves: what gradients are taken of, one for each of the model's parameters: that itself, or its copy in bf16.
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
        """Logits, `(B, 10)` float32, of what `to_input` gave."""
        features = self.stem(images)
        for block in self.blocks:
            features = block(features)
        logits: Tensor = self.fc(self.avgpool(features).flatten(1))
        return logits


class _StoredGradient(torch.autograd.Function):
    """The identity; its gradient is computed once and stored, rather than again in each kernel that reads it."""

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.as_strided(gradient.size(), gradient.stride())  # which Inductor reads from memory only


class _Unit(nn.Module):
    """Convolution, batch norm and, if wanted, a residual and ReLU."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d, options: StepOptions, precision: str) -> None:
        super().__init__()
        self.conv, self.norm, self._options = conv, norm, options
        has_copy = options.bf16_weights and precision == "bf16" and type(conv) is nn.Conv2d  # not Winograd's
        self.weight = nn.Parameter(conv.weight.detach().to(torch.bfloat16)) if has_copy else conv.weight

    def forward(self, features: Tensor, residual: Tensor | None = None, *, has_relu: bool = True) -> Tensor:
        num_added = features.shape[1] - self.weight.shape[1]
        if self.weight is self.conv.weight and not num_added:
            features = self.conv(features)
        else:
            weight = functional.pad(self.weight, (0, 0, 0, 0, 0, num_added)) if num_added else self.weight
            features = functional.conv2d(features, weight, stride=self.conv.stride, padding=self.conv.padding)
        norm = self.norm
        features = functional.batch_norm(
            features, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=True,
            momentum=norm.momentum or 0.0, eps=norm.eps,
        )  # fmt: skip
        if residual is not None:
            features = _StoredGradient.apply(features + residual)
        if not has_relu:
            return features
        if residual is None and self._options.recompute_relu_mask:
            # ReLU's derivative is defined by its output. This one's is by its input, which can be recomputed.
            return torch.where(features <= 0, 0, features)
        return functional.relu(features)


class _Block(nn.Module):
    """torchvision's BasicBlock."""

    def __init__(self, block: BasicBlock, options: StepOptions, precision: str) -> None:
        super().__init__()
        self.first = _Unit(block.conv1, block.bn1, options, precision)
        self.second = _Unit(block.conv2, block.bn2, options, precision)
        shortcut = block.downsample
        self.shortcut = None if shortcut is None else _Unit(shortcut[0], shortcut[1], options, precision)

    def forward(self, features: Tensor) -> Tensor:
        residual = features if self.shortcut is None else self.shortcut(features, has_relu=False)
        result: Tensor = self.second(self.first(features), residual)
        return result
