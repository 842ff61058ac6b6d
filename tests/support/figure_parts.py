"""Read the parts of a figure, and make runs to draw."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from fastcifar.results.records import (
    LAST_FILE,
    EpochMetrics,
    Predictions,
    Results,
    Scores,
    write_config,
    write_metrics,
    write_predictions,
    write_results,
)

RNG = np.random.default_rng(3)


def build_metrics(num_epochs: int) -> list[EpochMetrics]:
    return [
        EpochMetrics(
            epoch=epoch,
            train_loss=2 / (epoch + 1),
            train_accuracy=0.3 + 0.01 * epoch,
            val_loss=1.8 / (epoch + 1),
            val_accuracy=0.4 + 0.01 * (epoch if epoch < 5 else 1),
            lr=0.1,
            img_per_s=100.0,
            seconds=1.0,
        )
        for epoch in range(num_epochs)
    ]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if isinstance(text, Text) and text.get_text()]


def text_of(figure: Figure, gid: str) -> str | None:
    found = [text.get_text() for text in figure.findobj(Text) if isinstance(text, Text) and text.get_gid() == gid]
    assert len(found) <= 1
    return found[0] if found else None


def lines_of(figure: Figure, gid: str) -> list[Line2D]:
    return [line for line in figure.findobj(Line2D) if isinstance(line, Line2D) and line.get_gid() == gid]


def build_predictions(num_images: int, wrong: dict[int, float]) -> Predictions:
    """All correct with one confidence, except at the positions in `wrong`: wrong by one class, with these logits."""
    labels = (np.arange(num_images) % 10).astype(np.uint8)
    logits = np.zeros((num_images, 10), np.float32)
    logits[np.arange(num_images), labels] = 2.0
    for position, logit in wrong.items():
        logits[position, labels[position]] = 0.0
        logits[position, (labels[position] + 1) % 10] = logit
    return Predictions(RNG.integers(0, 256, (num_images, 32, 32, 3), np.uint8), labels, logits)


def build_results(accuracy: float, augmented: float) -> Results:
    best, last = (Scores(epoch, 0.6, 1.0, accuracy, augmented) for epoch in (1, 2))
    return Results(best, last, num_test_images=1000, test10k_accuracy=0.6, img_per_s=100.0, seconds=75.0)


def write_run(folder: Path, metrics: list[EpochMetrics], results: Results | None = None, **config: Any) -> Path:
    """A run directory; one without results is that of a stopped run."""
    folder.mkdir(parents=True)
    usual = {
        "recipe": "adam89",
        "published_accuracy": 0.89,
        "epochs": len(metrics),
        "seed": 7,
        "precision": "bf16",
        "device_name": "Some CPU",
        "num_train_images": 4096,
    }
    write_config(folder, usual | config)
    write_metrics(folder, metrics)
    if results is None:
        (folder / LAST_FILE).touch()
    else:
        write_predictions(folder, build_predictions(20, {3: 4.0}))
        write_results(folder, results)
    return folder
