"""Evaluates a model on images that it was not trained on."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fastcifar.data import cifar10
from fastcifar.data.folder import load_val_and_test
from fastcifar.errors import ArgumentError, check_choice, counted
from fastcifar.inference.classifier import Classifier, describe_model
from fastcifar.results.metrics import (
    NUM_LABEL_ERRORS,
    Calibration,
    ClassScores,
    Confusion,
    LabelError,
    calibrate,
    class_scores,
    confusion_matrix,
    rank_label_errors,
    top_confusions,
    wilson_interval,
)
from fastcifar.training.evaluate import EvalSet, loss_and_accuracy


@dataclass(frozen=True)
class Evaluation:
    """A model's performance on images that it was not trained on.

    Attributes:
        checkpoint: the path of the model.
        recipe: the name of the recipe it was trained with.
        num_epochs: the number of epochs it was trained for.
        precision: "bf16" or "fp32", in which it was computed.
        split: "val", "test" or "test10k".
        num_images: the number of images.
        augmented: whether they were augmented.
        mirror_tta: whether each image was classified together with its mirror image.
        accuracy: the share of images that are classified correctly.
        interval_95: the ends of the accuracy's 95% Wilson score interval.
        loss: mean cross-entropy.
        classes: the scores of each class.
        confusions: the most frequent confusions, at most ten.
        calibration: how far its confidence is from its accuracy.
        label_errors: the images, at most 40, whose label is least plausible; their numbers are positions in the
            official test set.
    """

    checkpoint: str
    recipe: str
    num_epochs: int
    precision: str
    split: str
    num_images: int
    augmented: bool
    mirror_tta: bool
    accuracy: float
    interval_95: tuple[float, float]
    loss: float
    classes: tuple[ClassScores, ...]
    confusions: tuple[Confusion, ...]
    calibration: Calibration
    label_errors: tuple[LabelError, ...]

    def describe_model(self) -> str:
        """Describe the model on one line."""
        return describe_model(self.checkpoint, self.recipe, self.num_epochs)

    def describe_images(self) -> str:
        """Describe the images in a few words: how many of which split, and how they were transformed."""
        transformed = "augmented" if self.augmented else "clean, mirror TTA" if self.mirror_tta else "clean"
        return f"{counted(self.num_images, 'image')} of {self.split}, {transformed}"


def evaluate_split(
    classifier: Classifier,
    data_dir: Path,
    split: str,
    *,
    augmented: bool = False,
    mirror_tta: bool = False,
    num_images: int | None = None,
) -> Evaluation:
    """Evaluate a model on images that it was not trained on.

    Args:
        classifier: the model.
        data_dir: a folder that `prepare` filled.
        split: "val", "test", or "test10k" for both together, the official test set.
        augmented: whether to augment the images with the run's seed, as for `test_accuracy_augmented` in
            `results.json`.
        mirror_tta: see `Classifier.logits`.
        num_images: the number of images of val and of test each, chosen as by `--eval-images`; None for all.

    Raises:
        FastcifarError: the data is damaged, or there is no such split or number of images.
    """
    check_choice("split", split, "val", "test", "test10k")
    if num_images is not None and not 1 <= num_images <= cifar10.SPEC.num_test // 2:
        problem = f"must be between 1 and {cifar10.SPEC.num_test // 2:,}, not {num_images:,}"
        raise ArgumentError("num_images", problem)
    halves = dict(zip(("val", "test"), load_val_and_test(data_dir), strict=True))
    chosen = list(halves.values()) if split == "test10k" else [halves[split]]
    labels, logits, indices = [], [], []
    for half in chosen:
        images = EvalSet(half, num_images or len(half.labels), classifier.mean.device, classifier.settings.recipe)
        coeffs = images.coeffs if augmented else None
        logits.append(classifier.logits(images.images, coeffs=coeffs, mirror_tta=mirror_tta))
        labels.append(images.labels.cpu())
        indices.append(images.indices)
    all_logits, all_labels = torch.cat(logits), torch.cat(labels)
    loss, accuracy = loss_and_accuracy(all_logits, all_labels)
    counts = confusion_matrix(all_labels.numpy(), all_logits.argmax(1).numpy())
    positions = (torch.cat(indices) - cifar10.SPEC.num_train).tolist()
    errors = rank_label_errors(all_labels.numpy(), all_logits.numpy(), NUM_LABEL_ERRORS)
    return Evaluation(
        checkpoint=str(classifier.path),
        recipe=classifier.settings.recipe.name,
        num_epochs=classifier.num_epochs,
        precision=classifier.precision,
        split=split,
        num_images=len(all_labels),
        augmented=augmented,
        mirror_tta=mirror_tta,
        accuracy=accuracy,
        interval_95=wilson_interval(int(counts.trace()), len(all_labels)),
        loss=loss,
        classes=class_scores(counts),
        confusions=top_confusions(counts, 10),
        calibration=calibrate(all_labels.numpy(), all_logits.numpy()),
        label_errors=tuple(replace(error, image=positions[error.image]) for error in errors),
    )
