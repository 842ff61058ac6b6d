"""The network with fewer channels, for tests that do not need its accuracy."""

from typing import Any

import pytest
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from fastcifar.training import model


class NarrowResNet18(ResNet):  # type: ignore[misc] # torchvision is not typed
    """torchvision's ResNet-18 with `width` channels, where it has 64, in its first stage.

    Args:
        width: channels of the first of the four stages; each further stage has twice as many.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        super().__init__(BasicBlock, [2, 2, 2, 2])
        self.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.fc = nn.Linear(8 * width, 1000)

    def _make_layer(self, block: Any, planes: int, *arguments: Any, **options: Any) -> nn.Sequential:
        if planes == 64:
            self.inplanes = self._width
        stage: nn.Sequential = super()._make_layer(block, planes // 64 * self._width, *arguments, **options)
        return stage


def use_narrow_network(patch: pytest.MonkeyPatch, width: int = 8) -> None:
    """Build models with `width` channels in the first stage, and all layers of the real network."""
    patch.setattr(model, "resnet18", lambda weights: NarrowResNet18(width))
