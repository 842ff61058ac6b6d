"""Weights of the network that were saved without fastcifar: a plain state dict."""

import io
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastcifar.errors import FastcifarError
from fastcifar.files import reading
from fastcifar.training.checkpoint import check_archive, is_sealed, is_state
from fastcifar.training.model import ResNet18

# The keys under which files hold a state dict, and the prefixes that training wrappers add to its names.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES = re.compile(r"((module|_orig_mod|model|net|backbone)\.)+")


def load_plain_weights(path: Path) -> dict[str, Tensor] | None:
    """Read a state dict of torchvision's ResNet-18 or of the published `MyResnet`; no code in it is run.

    Args:
        path: a file of torch.save: a state dict, or a dict that has one under `state_dict`, `model_state_dict`,
            `model` or `net`.

    Returns:
        The weights under the published model's names; None if the file is fastcifar's or holds no state dict.

    Raises:
        FastcifarError: it cannot be read, or holds weights of another network.
    """
    with reading(path):
        file_content = path.read_bytes()
    if is_sealed(file_content):
        return None
    try:
        check_archive(file_content)
        content = torch.load(io.BytesIO(file_content), map_location="cpu", weights_only=True)
    except Exception:  # another kind of file may make its parser raise anything
        return None
    state = _find_state(content)
    if state is None:
        return None
    return _renamed(path, state)


def _find_state(content: Any) -> dict[str, Tensor] | None:
    """The state dict in a file's content; None if there is none, or if it is a damaged checkpoint of ours."""
    if not isinstance(content, dict) or "settings" in content:
        return None
    if content and is_state(content):
        return dict(content)
    return next((found for name in _WRAPPERS if (found := _find_state(content.get(name))) is not None), None)


def _renamed(path: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the published model's names, with every shape checked."""
    expected = ResNet18().state_dict()
    found = {f"backbone.{_PREFIXES.sub('', name, count=1)}": value for name, value in state.items()}
    for name, value in expected.items():
        if name.endswith(".num_batches_tracked"):  # old versions of torch did not count
            found.setdefault(name, torch.zeros_like(value))
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    if set(found) == set(expected) and shapes["backbone.conv1.weight"][2:] == (7, 7):
        num_classes = shapes["backbone.fc.weight"][0]
        what = f"a ResNet-18 for ImageNet (7x7 first convolution, {num_classes:,} classes)"
        raise FastcifarError(f"{path} holds {what}, not one for CIFAR-10")
    if shapes != {name: tuple(value.shape) for name, value in expected.items()}:
        odd = sorted(set(found) ^ set(expected)) or [n for n, v in expected.items() if shapes[n] != tuple(v.shape)]
        raise FastcifarError(f"{path} does not hold torchvision's ResNet-18 for CIFAR-10: see {odd[0]}")
    return found
