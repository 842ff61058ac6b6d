"""A trained model from a run or a checkpoint, to classify images."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor, nn

from fastcifar.errors import ArgumentError, FastcifarError, check_choice, counted
from fastcifar.inference.weights import load_plain_weights
from fastcifar.kernels.winograd import why_unavailable
from fastcifar.recipes import get_recipe
from fastcifar.results.records import BEST_FILE
from fastcifar.training.checkpoint import load_checkpoint
from fastcifar.training.convolution import TORCH, use_convolution
from fastcifar.training.device import Precision, is_bf16_fast, resolve_device
from fastcifar.training.evaluate import compute_logits
from fastcifar.training.model import ResNet18
from fastcifar.training.settings import Settings, parse_settings, resolve_settings


@dataclass(frozen=True)
class Classifier:
    """A model and the preprocessing of its input.

    Attributes:
        path: the path of its checkpoint.
        model: the network in evaluation mode, on its device.
        mean: `(3,)` float32, the normalisation's mean.
        std: `(3,)` float32, the normalisation's standard deviation.
        settings: the settings of the run that trained it.
        precision: "bf16" or "fp32", in which it classifies.
        num_epochs: the number of epochs it was trained for; 0 if unknown.
        data_dir: the data folder of the run; None if unknown.
        notes: assumptions and choices made in loading it, one line each.
    """

    path: Path
    model: nn.Module
    mean: Tensor
    std: Tensor
    settings: Settings
    precision: str
    num_epochs: int
    data_dir: Path | None = None
    notes: tuple[str, ...] = ()

    def describe(self) -> str:
        """Name the model on one line."""
        return describe_model(self.path, self.settings.recipe.name, self.num_epochs)

    def logits(self, images: Tensor, *, coeffs: Tensor | None = None, mirror_tta: bool = False) -> Tensor:
        """Classify images.

        Args:
            images: `(N, 32, 32, 3)` uint8, on any device.
            coeffs: see `evaluate.compute_logits`.
            mirror_tta: test-time augmentation: the mean of the logits of each image and its mirror image.

        Returns:
            `(N, 10)` float32 on the CPU.
        """
        device = self.mean.device
        images = images.to(device)
        logits = self._classify(images, None if coeffs is None else coeffs.to(device))
        if mirror_tta:
            if coeffs is not None:
                raise ValueError("mirror images of augmented ones are not defined")
            logits = (logits + self._classify(images.flip(2), None)) / 2
        return logits.cpu()

    def _classify(self, images: Tensor, coeffs: Tensor | None) -> Tensor:
        """Logits of images, which are augmented if there are coefficients; all on the model's device."""
        return compute_logits(self.model, images, mean=self.mean, std=self.std, precision=self.precision, coeffs=coeffs)


def describe_model(path: object, recipe: str, num_epochs: int) -> str:
    """Describe a model on one line; 0 epochs, those of plain weights, are left out."""
    return f"{path}: {recipe}" + (f", {counted(num_epochs, 'epoch')}" if num_epochs else "")


def load_classifier(
    path: Path, device: str = "auto", precision: str = "auto", convolution: str | None = None
) -> Classifier:
    """Load a model.

    Args:
        path: a checkpoint, or a run directory for its `best.pt`; weights as safetensors, ONNX, or a plain state dict.
        device: as for training.
        precision: "bf16" or "fp32"; "auto" is the training's, unless that is bf16 and bf16 is slow on the device. An
            ONNX file is always computed in fp32.
        convolution: which are used, see `training.convolution`; None for those of the training.

    Raises:
        FastcifarError: it cannot be read, is damaged, or holds no weights of this network.
    """
    check_choice("precision", precision, "auto", *get_args(Precision))
    classifier = _load(path, device)
    if not isinstance(classifier.model, ResNet18):  # onnxruntime runs it
        if precision not in ("auto", classifier.precision):
            raise ArgumentError("precision", f"must be {classifier.precision} for an ONNX file, not {precision!r}")
        return classifier
    settings, notes = classifier.settings, [*classifier.notes]
    if precision == "auto":
        precision = settings.precision
        if precision == "bf16" and not is_bf16_fast(classifier.mean.device):
            precision = "fp32"
            notes.append("computed in fp32, because bf16 is slow here; precision bf16 gives the run's own figures")
    if convolution is None:
        convolution = settings.convolution
    if convolution != TORCH and classifier.mean.device.type == "cpu":
        if reason := why_unavailable():
            notes.append(f"torch's own convolutions, not those of the training: {reason}")
        else:
            use_convolution(classifier.model, convolution)
    return replace(classifier, precision=precision, notes=tuple(notes))


def _load(path: Path, device: str) -> Classifier:
    """Load a model with the precision of its run."""
    from fastcifar.inference.exported import SUFFIXES, WEIGHTS_FILE, load_exported  # which imports this module

    if (path / WEIGHTS_FILE).exists():
        path /= WEIGHTS_FILE
    if path.suffix in SUFFIXES:
        return load_exported(path, device)
    if path.is_dir():
        if not (path / BEST_FILE).exists():
            raise FastcifarError(f"{path} holds no {BEST_FILE}: no epoch of a run was finished there")
        path /= BEST_FILE
    where = resolve_device(device)
    if (weights := load_plain_weights(path)) is not None:
        return _from_plain_weights(path, weights, where)
    content = load_checkpoint(path)
    try:
        settings = parse_settings(content["settings"])
        model = ResNet18()
        model.load_state_dict(content["model"])
        num_epochs = content["num_epochs"] if "num_epochs" in content else content["epoch"] + 1
    except (KeyError, TypeError, RuntimeError, FastcifarError) as error:
        raise FastcifarError(f"{path} does not hold a model of this version") from error
    data_dir = Path(content["data_dir"]) if isinstance(content.get("data_dir"), str) else None
    return build_classifier(path, model, settings, where, num_epochs=int(num_epochs), data_dir=data_dir)


def _from_plain_weights(path: Path, weights: dict[str, Tensor], where: torch.device) -> Classifier:
    """A classifier for weights without settings."""
    model = ResNet18()
    model.load_state_dict(weights)
    half = (0.5, 0.5, 0.5)
    recipe = replace(get_recipe("sgd92"), name="plain-weights", mean=half, std=half)
    settings = resolve_settings(recipe, global_batch_size=1, device=str(where))
    note = f"{path} does not say how its images were normalised: mean 0.5 and deviation 0.5 are assumed"
    return build_classifier(path, model, settings, where, num_epochs=0, notes=(note,))


def build_classifier(
    path: Path,
    model: ResNet18,
    settings: Settings,
    device: torch.device,
    *,
    num_epochs: int,
    data_dir: Path | None = None,
    notes: tuple[str, ...] = (),
) -> Classifier:
    """Build a classifier from weights; the arguments are attributes of `Classifier`.

    On a CPU this sets the process's number of threads to that of the training: the last bits of logits depend on it.
    """
    if device.type == "cpu":
        torch.set_num_threads(settings.num_threads)
    return Classifier(
        path=path,
        model=model.to(memory_format=torch.channels_last).to(device).eval(),
        mean=torch.tensor(settings.recipe.mean, device=device),
        std=torch.tensor(settings.recipe.std, device=device),
        settings=settings,
        precision=settings.precision,
        num_epochs=num_epochs,
        data_dir=data_dir,
        notes=notes,
    )
