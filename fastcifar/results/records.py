"""The data in a run directory: types for configuration, metrics, results and predictions, and their reader."""

import contextlib
import dataclasses
import datetime
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from fastcifar.data.cifar10 import IMAGE_SIZE, NUM_CLASSES, Images, Labels
from fastcifar.errors import FastcifarError, one_line
from fastcifar.files import read_json, read_text, replacing, write_json, write_text
from fastcifar.machine import describe_environment

CONFIG_FILE, METRICS_FILE, RESULTS_FILE = "config.json", "metrics.jsonl", "results.json"
PREDICTIONS_FILE, BEST_FILE, LAST_FILE = "predictions.npz", "best.pt", "last.pt"

# Keys that version 0.1 wrote, with their new names.
_RENAMED = {
    "train_images": "num_train_images",
    "eval_images": "num_eval_images",
    "val_and_test_accuracy": "test10k_accuracy",
}
_FLOAT32_MAX = 3.4028234663852886e38  # measured values are no greater, and can be drawn
_INT64_MAX = 2**63 - 1
_DESCRIPTIONS: dict[Any, str] = {
    int: "a 64-bit integer",
    float: "a finite float32 number",
    str: "text",
    bool: "true or false",
    datetime.datetime: "a time with its offset from UTC",
    tuple: "a list of the right length",
    dict: "a mapping of names to values",
    Literal: "a known choice",
}

Record = TypeVar("Record")


@dataclass(frozen=True)
class Within:
    """For `Annotated`: the allowed range of a number, both ends included."""

    low: float
    high: float


Share = Annotated[float, Within(0, 1)]


@dataclass(frozen=True)
class EpochMetrics:
    """One epoch: a line of `metrics.jsonl`.

    Attributes:
        epoch: counts from 0.
        train_loss: mean over the epoch's augmented images, while the weights changed.
        train_accuracy: accuracy on the same images.
        val_loss: mean over the clean validation images after the epoch.
        val_accuracy: accuracy on the same images.
        lr: the learning rate at the epoch's start.
        img_per_s: training images per second, of all ranks.
        seconds: wall time of training and validation.
    """

    epoch: int
    train_loss: float
    train_accuracy: Share
    val_loss: float
    val_accuracy: Share
    lr: float
    img_per_s: float
    seconds: float


@dataclass(frozen=True)
class Scores:
    """The scores of one epoch's weights.

    Attributes:
        epoch: counts from 0.
        val_accuracy: on the clean validation images.
        test_loss: on the clean test images.
        test_accuracy: on the clean test images.
        test_accuracy_augmented: on the test images, augmented like the training images.
    """

    epoch: int
    val_accuracy: Share
    test_loss: float
    test_accuracy: Share
    test_accuracy_augmented: Share


@dataclass(frozen=True)
class Results:
    """The results of a finished run: `results.json`.

    Attributes:
        best: scores of the epoch with the highest validation accuracy; of equal ones the first.
        last: scores of the last epoch.
        num_test_images: the number of test images.
        test10k_accuracy: accuracy of the last weights on validation and test images together; all of them, 10,000, are
            the official test set.
        img_per_s: training images per second, the median over the epochs.
        seconds: wall time of the run over all its parts.
    """

    best: Scores
    last: Scores
    num_test_images: Annotated[int, Within(1, 10_000)]
    test10k_accuracy: Share
    img_per_s: float
    seconds: float


@dataclass(frozen=True)
class Resumption:
    """When and where a stopped run was resumed.

    Attributes:
        num_epochs: the number of epochs it had.
        begun: when it was resumed.
        environment: from `machine.describe_environment`, and whether the step was `captured`, or why not.
    """

    num_epochs: int
    begun: datetime.datetime
    environment: dict[str, Any]


@dataclass(frozen=True)
class RunConfig:
    """The configuration that a run was started with: `config.json`.

    Attributes:
        recipe: the recipe's name.
        epochs: the number of epochs of the whole run.
        seed: the seed of initialisation, order and augmentation.
        precision: "bf16" or "fp32".
        device_name: the processor's name.
        num_train_images: the number of training images.
        settings: all settings by name, including those above.
        published_accuracy: the accuracy that the recipe's authors report, 0..1.
        begun: when the run was started.
        environment: from `machine.describe_environment`, and whether the step was `captured`, or why not.
        resumed: when and where the run was resumed, in order.
    """

    recipe: str
    epochs: int
    seed: int
    precision: str
    device_name: str
    num_train_images: int
    settings: dict[str, Any]
    published_accuracy: Share | None = None
    begun: datetime.datetime | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    resumed: tuple[Resumption, ...] = ()


def parse_record(kind: type[Record], values: object, damaged: str, *, strict: bool = False) -> Record:
    """Make a dataclass of plain values, as `json.loads` or `torch.load` return them, and check each field's type.

    The only conversions are from integers to floats, lists to tuples, and ISO 8601 text to times.

    Args:
        kind: a dataclass. Its fields are int, float, str, bool, datetime, Literal, `tuple`, `dict[str, ...]`, a
            dataclass, another class (whose instances are taken as they are), or one of these `| None`.
        values: a dict by the fields' names, or by those of version 0.1. A field with a default may be missing.
        damaged: the start of an error's message, such as "results.json is damaged".
        strict: whether an unknown key is an error; it is ignored otherwise.

    Raises:
        FastcifarError: a field is missing, its value is of another type or out of its range, or it is a number that
            float32 or 64 bits cannot hold. The message names the field.
    """
    present = {_RENAMED.get(key, key): value for key, value in values.items()} if isinstance(values, dict) else values
    try:
        return _parse_fields(kind, present, "", strict=strict)
    except FastcifarError as error:
        raise FastcifarError(f"{damaged}: {error}") from error


def _parse_fields(kind: type[Record], values: object, prefix: str, *, strict: bool = False) -> Record:
    if not isinstance(values, dict):
        raise FastcifarError(f"{prefix.rstrip('.') or 'it'} is not a mapping of names to values")
    types, parsed = get_type_hints(kind, include_extras=True), {}
    for each in dataclasses.fields(kind):  # type: ignore[arg-type]
        if each.name in values:
            parsed[each.name] = _parse_value(types[each.name], values[each.name], prefix + each.name)
        elif each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING:
            raise FastcifarError(f"{prefix}{each.name} is missing")
    unknown = [key for key in values if key not in types]
    if strict and unknown:
        raise FastcifarError(f"{prefix}{one_line(str(unknown[0]))} is not known")
    return kind(**parsed)


def _parse_value(kind: Any, value: Any, name: str) -> Any:
    outer, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if outer in (Union, UnionType):  # Union if one of its parts is Annotated
        return None if value is None else _parse_value(inner[0], value, name)
    if outer is Annotated:
        number, limits = _parse_value(inner[0], value, name), inner[1]
        if not limits.low <= number <= limits.high:
            raise FastcifarError(f"{name} is not within {limits.low:,} to {limits.high:,}")
        return number
    if outer is tuple and isinstance(value, list | tuple):
        kinds = inner[:1] * len(value) if inner[-1] is ... else inner
        if len(kinds) == len(value):
            pairs = zip(kinds, value, strict=True)
            return tuple(_parse_value(each, item, f"{name}[{i}]") for i, (each, item) in enumerate(pairs))
    elif outer is dict and isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _parse_value(inner[1], item, f"{name}.{one_line(key)}") for key, item in value.items()}
    elif outer is Literal and type(value) is str and value in inner:
        return value
    elif kind is float and type(value) in (int, float) and abs(value) <= _FLOAT32_MAX:
        return float(value)
    elif kind is int and type(value) is int and abs(value) <= _INT64_MAX:
        return value
    elif kind is datetime.datetime and isinstance(value, str):
        with contextlib.suppress(ValueError):
            time = datetime.datetime.fromisoformat(value)
            if time.tzinfo is not None:
                return time
    elif outer is None and kind not in (int, float) and type(value) is kind:
        return value
    elif dataclasses.is_dataclass(kind):
        return _parse_fields(kind, value, f"{name}.")  # type: ignore[arg-type]
    raise FastcifarError(f"{name} is not {_DESCRIPTIONS.get(outer or kind, kind)}")


def as_plain(record: Any) -> dict[str, Any]:
    """A dataclass as a dict; the field `class_name` gets the key `class`, which Python reserves."""

    def plain(items: list[tuple[str, Any]]) -> dict[str, Any]:
        return {"class" if name == "class_name" else name: value for name, value in items}

    return dataclasses.asdict(record, dict_factory=plain)


def write_config(
    run_dir: Path,
    settings: dict[str, Any],
    *,
    captured: bool = False,
    capture_failure: str | None = None,
    resumed_at: int | None = None,
) -> None:
    """Write `config.json`: all resolved settings, and the machine and versions they ran on.

    Args:
        run_dir: the run directory.
        settings: from `Settings.as_config`.
        captured: whether the step is a CUDA graph here; recorded under the environment, because it is not a setting.
        capture_failure: why the capture failed; None if it succeeded or was not tried.
        resumed_at: for a resumed run, the number of epochs it had; the environments of all its parts are kept.
    """
    now = datetime.datetime.now().astimezone().replace(microsecond=0)
    environment = describe_environment() | {"captured": captured}
    if capture_failure is not None:
        environment["capture_failure"] = capture_failure
    here = {"begun": now, "environment": environment}
    content: dict[str, Any] = {**settings, **here}
    if resumed_at is not None:
        with contextlib.suppress(FastcifarError):  # a run that was killed early has no file yet
            before = read_config(run_dir)
            parts = [*map(as_plain, before.resumed), {"num_epochs": resumed_at, **here}]
            content |= {"begun": before.begun, "environment": before.environment, "resumed": parts}
    write_json(run_dir / CONFIG_FILE, content)


def read_config(run_dir: Path) -> RunConfig:
    """Read `config.json`.

    Raises:
        FastcifarError: it is missing or damaged, or was not written by a run.
    """
    path = run_dir / CONFIG_FILE
    values = read_json(path)
    if isinstance(values, dict):
        others = ("begun", "environment", "resumed")
        settings = {_RENAMED.get(key, key): value for key, value in values.items() if key not in others}
        # A run that records no convolution used torch's: there was no other.
        settings.setdefault("convolution", "torch")
        values = values | {"settings": settings}
    return parse_record(RunConfig, values, f"{path} is damaged, or not a run's configuration")


def write_metrics(run_dir: Path, metrics: Sequence[EpochMetrics]) -> None:
    """Write `metrics.jsonl`, one line per epoch; the file is replaced, so it is complete at any moment."""
    write_text(run_dir / METRICS_FILE, "".join(json.dumps(as_plain(line)) + "\n" for line in metrics))


def read_metrics(run_dir: Path) -> list[EpochMetrics]:
    """Read the lines of `metrics.jsonl`, at least one.

    Raises:
        FastcifarError: it is missing, empty or damaged.
    """
    path = run_dir / METRICS_FILE
    metrics = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise FastcifarError(f"{path} is damaged: line {number} is not valid JSON") from error
        metrics.append(parse_record(EpochMetrics, values, f"{path} is damaged: line {number}"))
    if not metrics:
        raise FastcifarError(f"{path} has no lines: the run finished no epoch")
    return metrics


def write_results(run_dir: Path, results: Results) -> None:
    """Write `results.json`."""
    write_json(run_dir / RESULTS_FILE, as_plain(results))


def read_results(run_dir: Path) -> Results:
    """Read `results.json`.

    Raises:
        FastcifarError: it is missing or damaged.
    """
    path = run_dir / RESULTS_FILE
    return parse_record(Results, read_json(path), f"{path} is damaged")


@dataclass(frozen=True, eq=False)
class Predictions:
    """A model's logits of the test split, with its images and labels.

    Attributes:
        images: `(N, 32, 32, 3)` uint8, N at least 1.
        labels: `(N,)` uint8 in 0..9.
        logits: `(N, 10)` float32, finite.
    """

    images: Images
    labels: Labels
    logits: NDArray[np.float32]


def write_predictions(run_dir: Path, predictions: Predictions) -> None:
    """Write `predictions.npz`."""
    with replacing(run_dir / PREDICTIONS_FILE) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, images=predictions.images, labels=predictions.labels, logits=predictions.logits)


def read_predictions(run_dir: Path) -> Predictions:
    """Read `predictions.npz`.

    Raises:
        FastcifarError: it is missing or damaged.
    """
    path = run_dir / PREDICTIONS_FILE
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:  # numpy leaves a bad file open
            images, labels, logits = arrays["images"], arrays["labels"], arrays["logits"]
    except FileNotFoundError as error:
        raise FastcifarError(f"{path} is missing: the run was not finished") from error
    except Exception as error:  # a damaged archive makes its parser raise almost anything
        raise FastcifarError(f"{path} is damaged: it is not an archive of images, labels and logits") from error
    num_images = len(labels) if labels.ndim == 1 else -1
    for name, array, dtype, shape in (
        ("labels", labels, np.uint8, (num_images,)),
        ("images", images, np.uint8, (num_images, IMAGE_SIZE, IMAGE_SIZE, 3)),
        ("logits", logits, np.float32, (num_images, NUM_CLASSES)),
    ):
        if array.dtype != dtype or array.shape != shape or num_images < 1:
            raise FastcifarError(f"{path} is damaged: its {name} are {array.dtype} {array.shape}")
    if labels.max() >= NUM_CLASSES or not np.isfinite(logits).all():
        raise FastcifarError(f"{path} is damaged: a label is not 0..9, or a logit is not finite")
    return Predictions(images, labels, logits)
