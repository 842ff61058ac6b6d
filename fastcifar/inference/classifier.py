"""A trained model taken from a run or a checkpoint, to be used on images."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fastcifar.data import cifar10
from fastcifar.data.cifar10 import CLASSES, Images
from fastcifar.data.folder import load_val_and_test
from fastcifar.errors import FastcifarError
from fastcifar.inference.pictures import find_pictures, load_picture
from fastcifar.inference.weights import load_plain_weights
from fastcifar.kernels.winograd import why_unavailable
from fastcifar.recipes import get_recipe
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
from fastcifar.results.records import BEST_FILE
from fastcifar.training.checkpoint import load_checkpoint
from fastcifar.training.convolution import TORCH, use_convolution
from fastcifar.training.device import is_bf16_fast, resolve_device
from fastcifar.training.evaluate import EvalSet, compute_logits, loss_and_accuracy
from fastcifar.training.model import ResNet18
from fastcifar.training.settings import Settings, parse_settings, resolve_settings


@dataclass(frozen=True)
class Classifier:
    """A model and all that its input needs.

    Attributes:
        path: the checkpoint it is from.
        model: in evaluation mode, on its device.
        mean: `(3,)` float32 of the normalisation.
        std: `(3,)` float32 likewise.
        settings: of the run that trained it.
        num_epochs: that it was trained for; 0 where nobody knows.
        data_dir: where the run had its data; None where nobody knows.
        notes: what was assumed or chosen about it, a line each.
    """

    path: Path
    model: nn.Module
    mean: Tensor
    std: Tensor
    settings: Settings
    num_epochs: int
    data_dir: Path | None = None
    notes: tuple[str, ...] = ()

    def describe(self) -> str:
        """Which model it is, on one line."""
        if not self.num_epochs:
            return f"{self.path}: {self.settings.recipe.name}"
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


@dataclass(frozen=True)
class Evaluation:
    """How well a model does on images it was not trained on.

    Attributes:
        checkpoint: the path of the model.
        recipe: that it was trained by.
        num_epochs: that it was trained for.
        split: "val", "test" or "test10k".
        num_images: that it was evaluated on.
        augmented: whether they were augmented.
        mirror_tta: whether each was classified together with its mirror image.
        accuracy: the share of them that is classified correctly.
        interval_95: the ends of the accuracy's 95% Wilson score interval.
        loss: mean cross-entropy.
        classes: the scores of each class.
        confusions: the most frequent ones, at most ten.
        calibration: how far its confidence is from its accuracy.
        label_errors: the images, at most 40, whose label is least plausible; their numbers are positions in the
            official test set.
    """

    checkpoint: str
    recipe: str
    num_epochs: int
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

    def describe_images(self) -> str:
        """How the images were shown to the model, in a few words."""
        return "augmented" if self.augmented else "clean, mirror TTA" if self.mirror_tta else "clean"


@dataclass(frozen=True)
class Guess:
    """A class that a picture may be of."""

    class_name: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What a model takes a picture for.

    Attributes:
        path: of the picture.
        top: its likeliest classes, likeliest first; none of a file that cannot be read.
        error: why it cannot be read.
        note: what was assumed about it.
    """

    path: str
    top: tuple[Guess, ...]
    error: str | None = None
    note: str | None = None


def load_classifier(
    path: Path, device: str = "auto", precision: str = "auto", convolution: str | None = None
) -> Classifier:
    """Load a model.

    Args:
        path: a checkpoint, or a run directory for its `best.pt`; weights as safetensors, ONNX, or a plain state dict.
        device: as for training.
        precision: "bf16" or "fp32"; "auto" is what it was trained in, unless that is bf16 and slow on the device.
        convolution: whose are used, see `training.convolution`; None for those of the training.

    Raises:
        FastcifarError: it cannot be read, is damaged, or holds no weights of this network.
    """
    classifier = _load(path, device)
    if not isinstance(classifier.model, ResNet18):
        return classifier  # another program runs it
    trained_in = classifier.settings.precision
    if precision == "auto":
        is_slow = trained_in == "bf16" and not is_bf16_fast(classifier.mean.device)
        precision = "fp32" if is_slow else trained_in
        if is_slow:
            note = "computed in fp32, because bf16 is slow here; --precision bf16 gives the run's own figures"
            classifier = replace(classifier, notes=(*classifier.notes, note))
    classifier = replace(classifier, settings=replace(classifier.settings, precision=precision))
    convolution = classifier.settings.convolution if convolution is None else convolution
    if convolution == TORCH or classifier.mean.device.type != "cpu":
        return classifier
    if reason := why_unavailable():
        note = f"torch's own convolutions, not those of the training: {reason}"
        return replace(classifier, notes=(*classifier.notes, note))
    use_convolution(classifier.model, convolution)
    return classifier


def _load(path: Path, device: str) -> Classifier:
    """Load a model with its run's own precision."""
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
        return _classifier_of(path, weights, where)
    content = load_checkpoint(path)
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
        data_dir=Path(content["data_dir"]) if isinstance(content.get("data_dir"), str) else None,
    )


def _classifier_of(path: Path, weights: dict[str, Tensor], where: torch.device) -> Classifier:
    """A model of weights that come without settings."""
    model = ResNet18()
    model.load_state_dict(weights)
    half = (0.5, 0.5, 0.5)
    recipe = replace(get_recipe("sgd92"), name="plain-weights", mean=half, std=half)
    return Classifier(
        path=path,
        model=model.to(memory_format=torch.channels_last).to(where).eval(),
        mean=torch.tensor(half, device=where),
        std=torch.tensor(half, device=where),
        settings=resolve_settings(recipe, global_batch_size=1, device=str(where)),
        num_epochs=0,
        notes=(f"{path} does not say how its images were normalised: mean 0.5 and deviation 0.5 are assumed",),
    )


def evaluate_split(
    classifier: Classifier,
    data_dir: Path,
    split: str,
    *,
    augmented: bool = False,
    mirror_tta: bool = False,
    num_images: int | None = None,
) -> Evaluation:
    """Measure how well a model does on images it was not trained on.

    Args:
        classifier: the model.
        data_dir: a folder that `prepare` filled.
        split: "val", "test", or "test10k" for both together, the official test set.
        augmented: on the augmented images of the run's seed, as `test_accuracy_augmented` in `results.json`.
        mirror_tta: see `Classifier.logits`.
        num_images: of val and of test, the fixed choice that `--eval-images` makes; None for all.

    Raises:
        FastcifarError: the data is damaged, or there is no such split or number of images.
    """
    if split not in ("val", "test", "test10k"):
        raise FastcifarError(f"split must be val, test or test10k, not {split!r}")
    if num_images is not None and not 1 <= num_images <= cifar10.SPEC.num_test // 2:
        raise FastcifarError(f"num_images must be between 1 and {cifar10.SPEC.num_test // 2:,}, not {num_images:,}")
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


def load_label_errors(evaluation: Evaluation, data_dir: Path) -> Images:
    """The images of an evaluation's label errors.

    Args:
        evaluation: from `evaluate_split`.
        data_dir: a folder that `prepare` filled.

    Returns:
        `(N, 32, 32, 3)` uint8, in the order of `label_errors`.

    Raises:
        FastcifarError: the data is damaged.
    """
    halves = load_val_and_test(data_dir)
    official = np.empty((cifar10.SPEC.num_test, *halves[0].images.shape[1:]), np.uint8)
    for half in halves:
        official[half.indices - cifar10.SPEC.num_train] = half.images
    return official[np.array([error.image for error in evaluation.label_errors], np.intp)]


def predict_pictures(
    classifier: Classifier, paths: list[Path], num_classes: int = 3, *, recursive: bool = False
) -> list[Prediction]:
    """Find the likeliest classes of picture files.

    Args:
        classifier: the model.
        paths: of pictures, or of folders of them.
        num_classes: how many for each, likeliest first.
        recursive: whether the folders' sub-folders are searched, too.

    Returns:
        One for each file, those that cannot be read included.

    Raises:
        FastcifarError: a folder holds no pictures, or cannot be read.
    """
    return classify_pictures(classifier, find_pictures(paths, recursive=recursive), num_classes)[0]


def classify_pictures(
    classifier: Classifier, files: list[Path], num_classes: int = 3
) -> tuple[list[Prediction], list[Images]]:
    """Do the same for files, each of which is read once; also returns the images of those that can be read."""
    pictures, errors = {}, {}
    for position, file in enumerate(files):
        try:
            pictures[position] = load_picture(file)
        except FastcifarError as error:
            errors[position] = str(error)
    images = [picture.image for picture in pictures.values()]
    top = {}
    if images:
        found = classifier.logits(torch.from_numpy(np.stack(images))).softmax(1).topk(num_classes)
        for position, *row in zip(pictures, found.values.tolist(), found.indices.tolist(), strict=True):
            top[position] = tuple(Guess(CLASSES[label], share) for share, label in zip(*row, strict=True))
    predictions = [
        Prediction(str(file), (), error=errors[position])
        if position in errors
        else Prediction(str(file), top[position], note=pictures[position].note or None)
        for position, file in enumerate(files)
    ]
    return predictions, images
