"""A trained model taken from a run or a checkpoint, to be used on images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastcifar.data import cifar10
from fastcifar.data.cifar10 import CLASSES
from fastcifar.data.folder import load_val_and_test
from fastcifar.errors import FastcifarError
from fastcifar.inference.pictures import find_pictures, load_picture
from fastcifar.results.metrics import class_scores, confusion_matrix, top_confusions, wilson_interval
from fastcifar.results.records import BEST_FILE
from fastcifar.training.checkpoint import load_checkpoint
from fastcifar.training.device import resolve_device
from fastcifar.training.evaluate import EvalSet, compute_logits, loss_and_accuracy
from fastcifar.training.model import ResNet18
from fastcifar.training.settings import Settings, parse_settings


@dataclass(frozen=True)
class Classifier:
    """A model and all that its input needs.

    Attributes:
        path: the checkpoint it is from.
        model: in evaluation mode, on its device.
        mean: `(3,)` float32 of the normalisation.
        std: `(3,)` float32 likewise.
        settings: of the run that trained it.
        num_epochs: that it was trained for.
    """

    path: Path
    model: nn.Module
    mean: Tensor
    std: Tensor
    settings: Settings
    num_epochs: int

    def describe(self) -> str:
        """Which model it is, on one line."""
        plural = "" if self.num_epochs == 1 else "s"
        return f"{self.path}: {self.settings.recipe.name}, {self.num_epochs} epoch{plural}"

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
        """Logits of images, augmented if there are coefficients; all on the model's device."""
        return compute_logits(
            self.model, images, mean=self.mean, std=self.std, precision=self.settings.precision, coeffs=coeffs
        )


def load_classifier(path: Path, device: str = "auto") -> Classifier:
    """Load a model.

    Args:
        path: a checkpoint, a run directory for its `best.pt`, or what `export` wrote as safetensors or ONNX.
        device: as for training.

    Raises:
        FastcifarError: it cannot be read, is damaged, or is no checkpoint of a run.
    """
    from fastcifar.inference.exported import SUFFIXES, WEIGHTS_FILE, load_exported  # which imports this module

    if (path / WEIGHTS_FILE).exists():
        path /= WEIGHTS_FILE
    if path.suffix in SUFFIXES:
        return load_exported(path, device)
    if path.is_dir():
        if not (path / BEST_FILE).exists():
            raise FastcifarError(f"{path} holds no {BEST_FILE}: no epoch of a run was finished there")
        path /= BEST_FILE
    content = load_checkpoint(path)
    where = resolve_device(device)
    try:
        settings = parse_settings(content["settings"])
        model = ResNet18()
        model.load_state_dict(content["model"])
        num_epochs = content["num_epochs"] if "num_epochs" in content else content["epoch"] + 1
    except (KeyError, TypeError, RuntimeError, FastcifarError) as error:
        raise FastcifarError(f"{path} does not hold a model of this version") from error
    if where.type == "cpu":
        torch.set_num_threads(settings.num_threads)  # the result's last bits depend on it
    return Classifier(
        path=path,
        model=model.to(memory_format=torch.channels_last).to(where).eval(),
        mean=torch.tensor(settings.recipe.mean, device=where),
        std=torch.tensor(settings.recipe.std, device=where),
        settings=settings,
        num_epochs=int(num_epochs),
    )


def evaluate_split(
    classifier: Classifier,
    data_dir: Path,
    split: str,
    *,
    augmented: bool = False,
    mirror_tta: bool = False,
    num_images: int | None = None,
) -> dict[str, Any]:
    """How well a model does on images it was not trained on.

    Args:
        classifier: the model.
        data_dir: a folder that `prepare` filled.
        split: "val", "test", or "test10k" for both together, the official test set.
        augmented: on the augmented images of the run's seed, as `test_accuracy_augmented` in `results.json`.
        mirror_tta: see `Classifier.logits`.
        num_images: of val and of test, the fixed choice that `--eval-images` makes; None for all.

    Returns:
        Plain values by name: `accuracy`, its `interval_95`, `loss`, `classes` and `confusions` of `scores`, and what
        was asked for.

    Raises:
        FastcifarError: the data is damaged, or there is no such split or number of images.
    """
    if split not in ("val", "test", "test10k"):
        raise FastcifarError(f"split must be val, test or test10k, not {split!r}")
    if num_images is not None and not 1 <= num_images <= cifar10.SPEC.num_test // 2:
        raise FastcifarError(f"num_images must be between 1 and {cifar10.SPEC.num_test // 2:,}, not {num_images:,}")
    halves = dict(zip(("val", "test"), load_val_and_test(data_dir), strict=True))
    chosen = list(halves.values()) if split == "test10k" else [halves[split]]
    labels, logits = [], []
    for half in chosen:
        images = EvalSet(half, num_images or len(half.labels), classifier.mean.device, classifier.settings.recipe)
        coeffs = images.coeffs if augmented else None
        logits.append(classifier.logits(images.images, coeffs=coeffs, mirror_tta=mirror_tta))
        labels.append(images.labels.cpu())
    all_logits, all_labels = torch.cat(logits), torch.cat(labels)
    loss, accuracy = loss_and_accuracy(all_logits, all_labels)
    counts = confusion_matrix(all_labels.numpy(), all_logits.argmax(1).numpy())
    return {
        "checkpoint": str(classifier.path),
        "recipe": classifier.settings.recipe.name,
        "num_epochs": classifier.num_epochs,
        "split": split,
        "num_images": len(all_labels),
        "augmented": augmented,
        "mirror_tta": mirror_tta,
        "accuracy": accuracy,
        "interval_95": list(wilson_interval(int(counts.trace()), len(all_labels))),
        "loss": loss,
        "classes": class_scores(counts),
        "confusions": top_confusions(counts, 10),
    }


def predict_pictures(classifier: Classifier, paths: list[Path], num_classes: int = 3) -> list[dict[str, Any]]:
    """The likeliest classes of picture files.

    Args:
        classifier: the model.
        paths: of pictures, or of folders of them.
        num_classes: how many for each, likeliest first.

    Returns:
        For each picture its `path`, and under `top` a list of `class` and `probability`.

    Raises:
        FastcifarError: one cannot be read; nothing is returned then.
    """
    files = find_pictures(paths)
    images = torch.stack([torch.from_numpy(load_picture(file).copy()) for file in files])
    found = classifier.logits(images).softmax(1).topk(num_classes)
    return [
        {
            "path": str(file),
            "top": [
                {"class": CLASSES[label], "probability": probability} for probability, label in zip(*row, strict=True)
            ],
        }
        for file, *row in zip(files, found.values.tolist(), found.indices.tolist(), strict=True)
    ]
