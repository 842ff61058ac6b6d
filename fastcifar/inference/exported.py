"""Classifiers from exported files: safetensors and ONNX. Neither format runs code from the file."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastcifar.data.cifar10 import IMAGE_SIZE, NUM_CLASSES
from fastcifar.errors import ArgumentError, FastcifarError
from fastcifar.files import reading
from fastcifar.inference.classifier import Classifier, build_classifier
from fastcifar.kernels.gather import gather_augmented
from fastcifar.machine import check_installed
from fastcifar.training.device import resolve_device
from fastcifar.training.model import ResNet18
from fastcifar.training.settings import Settings, parse_settings

SUFFIXES = (".safetensors", ".onnx", ".pt2")
WEIGHTS_FILE = "model.safetensors"  # in the folder for a model hub
METADATA_KEY = "fastcifar"  # the key of the run's settings, as JSON, in both formats

_MAX_BATCH_SIZE = 500


def load_exported(path: Path, device: str = "auto") -> Classifier:
    """Load an exported model.

    Args:
        path: a file that ends in one of `SUFFIXES`.
        device: as for training; ONNX runs on the CPU.

    Raises:
        FastcifarError: it cannot be read, is damaged, was not exported by this package, or is a `.pt2` file, which
            torch loads through pickle.
    """
    if path.suffix == ".pt2":
        raise FastcifarError(
            f"{path} is not loaded, because torch unpickles it: name the run, or export it as safetensors or onnx"
        )
    return (load_onnx if path.suffix == ".onnx" else load_safetensors)(path, device)


def write_metadata(settings: Settings, num_epochs: int) -> str:
    """The metadata of an exported file, for `load_exported`."""
    return json.dumps({"settings": settings.as_config(), "num_epochs": num_epochs})


def _parse_metadata(path: Path, text: str | None) -> tuple[Settings, int]:
    try:
        content = json.loads(text or "")
        settings, num_epochs = parse_settings(content["settings"]), content["num_epochs"]
        if type(num_epochs) is not int:
            raise TypeError("num_epochs")
    except (ValueError, KeyError, TypeError, RecursionError, FastcifarError) as error:
        raise FastcifarError(f"{path} was not exported by this version of fastcifar") from error
    return settings, num_epochs


def load_safetensors(path: Path, device: str) -> Classifier:
    """See `load_exported`; the file may have any name."""
    check_installed("export", "safetensors")
    import safetensors.torch

    with reading(path):
        content = path.read_bytes()
    try:
        weights = safetensors.torch.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = header.get("__metadata__", {}).get(METADATA_KEY)
    except Exception as error:  # the parser may raise anything
        raise FastcifarError(f"{path} is damaged: it is not a safetensors file") from error
    settings, num_epochs = _parse_metadata(path, metadata)
    model = ResNet18()
    try:
        model.backbone.load_state_dict(weights)
    except RuntimeError as error:
        raise FastcifarError(f"{path} does not hold a model of this version") from error
    return build_classifier(path, model, settings, resolve_device(device), num_epochs=num_epochs)


def load_onnx(path: Path, device: str) -> Classifier:
    """See `load_exported`; the file may have any name."""
    check_installed("export", "onnxruntime")
    import onnxruntime

    with reading(path):
        content = path.read_bytes()
    if device not in ("auto", "cpu"):
        raise ArgumentError("device", f"must be cpu for an ONNX file, not {device!r}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # log errors only, which are also raised
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        # From bytes, so that it cannot refer to another file.
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a type for each kind of failure
        raise FastcifarError(f"{path} is damaged: it is not an ONNX model") from error
    metadata = session.get_modelmeta().custom_metadata_map
    settings, num_epochs = _parse_metadata(path, metadata.get(METADATA_KEY))
    (given,), (wanted,) = session.get_inputs(), session.get_outputs()
    if (
        given.type != "tensor(uint8)"
        or given.shape[1:] != [IMAGE_SIZE, IMAGE_SIZE, 3]
        or wanted.shape[1:] != [NUM_CLASSES]
    ):
        raise FastcifarError(f"{path} was not exported by this version of fastcifar")
    return OnnxClassifier(
        path=path,
        model=nn.Identity(),
        mean=torch.tensor(settings.recipe.mean),
        std=torch.tensor(settings.recipe.std),
        settings=settings,
        precision="fp32",
        num_epochs=num_epochs,
        session=session,
    )


@dataclass(frozen=True, kw_only=True)
class OnnxClassifier(Classifier):
    """A model that onnxruntime runs on the CPU.

    Attributes:
        session: the onnxruntime session, from uint8 images to logits.
    """

    session: Any

    def _classify(self, images: Tensor, coeffs: Tensor | None) -> Tensor:
        logits = []
        for positions in torch.arange(len(images)).split(_MAX_BATCH_SIZE):
            batch = images[positions] if coeffs is None else gather_augmented(images, positions, coeffs[positions])
            logits.append(torch.from_numpy(self.session.run(None, {"images": batch.numpy()})[0]))
        return torch.cat(logits)
