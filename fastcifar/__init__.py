"""The classic CIFAR-10 ResNet-18, trained fast and exactly."""

__version__ = "0.1.0"
