"""The ResNet-18 of the published project, for 32x32 images."""

import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from fastcifar.data.cifar10 import NUM_CLASSES


class _Float32Linear(nn.Linear):
    """A linear layer outside autocast: bf16 logits tie with each other, and a tie goes to the lower class."""

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return super().forward(features.to(self.weight.dtype))


class ResNet18(nn.Module):
    """torchvision's ResNet-18 with a 3x3 stride-1 first convolution and no first pooling.

    Its state-dict keys are those of the published `MyResnet` (`backbone.conv1.weight`, ...): weights load with
    `strict=True` there and, with the prefix `backbone.` removed, in torchvision's `resnet18` of the same three
    layers. 11,173,962 parameters.
    """

    def __init__(self) -> None:
        super().__init__()
        self.backbone = resnet18(weights=None)
        num_channels, num_features = self.backbone.conv1.out_channels, self.backbone.fc.in_features  # 64 and 512
        self.backbone.conv1 = nn.Conv2d(3, num_channels, kernel_size=3, stride=1, padding=1, bias=False)
        self.backbone.maxpool = nn.Identity()
        self.backbone.fc = _Float32Linear(num_features, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Classify images.

        Args:
            images: `(B, 3, 32, 32)` normalised float.

        Returns:
            `(B, 10)` logits.
        """
        logits: Tensor = self.backbone(images)
        return logits


def build_model(seed: int) -> ResNet18:
    """A freshly initialised model on the CPU; equal seeds give equal weights.

    Args:
        seed: seeds torch's global generator, which initialisation draws from.
    """
    torch.manual_seed(seed)
    return ResNet18()
