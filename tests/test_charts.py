import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.text import Text
from PIL import Image

from fastcifar import runs
from fastcifar.charts import CHECK, CROSS, draw_charts, draw_confusion, draw_curves, draw_samples
from fastcifar.cifar10 import CLASSES
from fastcifar.errors import FastcifarError
from fastcifar.scores import wilson_interval

RNG = np.random.default_rng(3)


def build_metrics(num_epochs: int) -> list[dict[str, float]]:
    return [
        {"epoch": epoch, "train_loss": 2 / (epoch + 1), "train_accuracy": 0.3 + 0.01 * epoch,
         "val_loss": 1.8 / (epoch + 1), "val_accuracy": 0.4 + 0.01 * (epoch if epoch < 5 else 1),
         "lr": 0.1, "img_per_s": 100.0, "seconds": 1.0}
        for epoch in range(num_epochs)
    ]  # fmt: skip


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if isinstance(text, Text) and text.get_text()]


def text_of(figure: Figure, gid: str) -> str | None:
    found = [text.get_text() for text in figure.findobj(Text) if isinstance(text, Text) and text.get_gid() == gid]
    assert len(found) <= 1
    return found[0] if found else None


def lines_of(figure: Figure, gid: str) -> list[Line2D]:
    return [line for line in figure.findobj(Line2D) if isinstance(line, Line2D) and line.get_gid() == gid]


@pytest.mark.parametrize("num_epochs", [1, 3, 70])
def test_curves_show_the_metrics_from_epoch_one(num_epochs: int) -> None:
    metrics = build_metrics(num_epochs)
    figure = draw_curves(metrics, title="a run")
    loss, accuracy = lines_of(figure, "training")
    assert np.asarray(loss.get_xdata()).tolist() == list(range(1, num_epochs + 1))
    assert np.asarray(loss.get_ydata()).tolist() == [line["train_loss"] for line in metrics]
    assert np.asarray(accuracy.get_ydata()).tolist() == [line["train_accuracy"] for line in metrics]
    loss, accuracy = lines_of(figure, "validation")
    assert np.asarray(loss.get_ydata()).tolist() == [line["val_loss"] for line in metrics]
    assert np.asarray(accuracy.get_ydata()).tolist() == [line["val_accuracy"] for line in metrics]
    assert "a run" in texts(figure)


def test_curves_mark_the_first_best_epoch() -> None:
    figure = draw_curves(build_metrics(20), title="")
    (best,) = lines_of(figure, "best")
    assert (np.asarray(best.get_xdata()).tolist(), np.asarray(best.get_ydata()).tolist()) == ([5], [0.44])
    assert "Best validation accuracy 44.00%, epoch 5" in texts(figure)
    assert "best 44.00%\nepoch 5" in texts(figure)


@pytest.mark.parametrize(
    ("val_accuracies", "side", "height"),
    [
        ([0.4, 0.7, 0.9], "right", "bottom"),  # a rising curve leaves the bottom right free
        ([0.38, 0.36, 0.36], "left", "top"),  # a flat one runs along the bottom
        ([0.69], "left", "top"),
    ],
)
def test_the_label_of_the_best_epoch_keeps_clear_of_the_curves(
    val_accuracies: list[float], side: str, height: str
) -> None:
    metrics = build_metrics(len(val_accuracies))
    for line, val_accuracy in zip(metrics, val_accuracies, strict=True):
        line["train_accuracy"] = line["val_accuracy"] = val_accuracy
    figure = draw_curves(metrics, title="")
    (label,) = [text for text in figure.findobj(Text) if isinstance(text, Text) and text.get_gid() == "best label"]
    assert (label.get_horizontalalignment(), label.get_verticalalignment()) == (side, height)


def test_the_learning_rate_is_labelled_with_its_rounded_peak() -> None:
    figure = draw_curves([line | {"lr": 0.0999511} for line in build_metrics(3)], title="")
    strip = figure.axes[1]
    assert [label.get_text() for label in strip.get_yticklabels()] == ["0", "0.1"]
    assert [label.get_text() for label in strip.get_xticklabels()] == ["1", "2", "3"]


def test_confusion_shows_rates_counts_and_recall() -> None:
    labels = np.array([0] * 8 + [3] * 4)
    predictions = np.array([0] * 6 + [8, 8] + [3, 5, 5, 5])
    figure = draw_confusion(labels, predictions, title="a run")
    shown = {(row, column): (text_of(figure, f"rate {row} {column}"), text_of(figure, f"count {row} {column}"))
             for row in range(10) for column in range(10)}  # fmt: skip
    assert {cell: content for cell, content in shown.items() if content != (None, None)} == {
        (0, 0): ("75.0", "6"), (0, 8): ("25.0", "2"), (3, 3): ("25.0", "1"), (3, 5): ("75.0", "3"),
    }  # fmt: skip
    assert [text_of(figure, f"recall {label}") for label in (0, 3, 9)] == ["75.0%", "25.0%", "no images"]
    low, high = wilson_interval(7, 12)
    assert f"Test accuracy 58.33%  (95% interval {low:.2%} to {high:.2%})" in texts(figure)
    assert "a run" in texts(figure)
    assert any(text.startswith("12 test images. ") for text in texts(figure))


def build_predictions(num_images: int, wrong: dict[int, float]) -> runs.Predictions:
    """All right with one confidence, but for some positions, wrong by one class with logits of their own."""
    labels = (np.arange(num_images) % 10).astype(np.uint8)
    logits = np.zeros((num_images, 10), np.float32)
    logits[np.arange(num_images), labels] = 2.0
    for position, logit in wrong.items():
        logits[position, labels[position]] = 0.0
        logits[position, (labels[position] + 1) % 10] = logit
    return runs.Predictions(RNG.integers(0, 256, (num_images, 32, 32, 3), np.uint8), labels, logits)


def samples_of(figure: Figure) -> list[tuple[int, list[str]]]:
    """Position and texts of every image shown, in drawing order."""
    shown = []
    for axes in figure.axes:
        assert isinstance(axes, Axes)
        gid = axes.get_gid() or ""
        assert gid.startswith("sample ")
        shown.append((int(gid.removeprefix("sample ")), [text.get_text() for text in axes.texts]))
    return shown


def test_samples_are_the_first_of_each_class_then_the_most_confident_mistakes() -> None:
    predictions = build_predictions(100, wrong={13: 3.0, 55: 9.0, 70: 5.0})
    figure = draw_samples(predictions.images, predictions.labels, predictions.logits, title="a run")
    shown = samples_of(figure)
    assert [position for position, _ in shown[:30]] == [row * 10 + label for label in range(10) for row in range(3)]
    assert [position for position, _ in shown[30:]] == [55, 70, 13]
    right = np.exp(2) / (np.exp(2) + 9)
    assert shown[0][1] == [f"{CHECK} {CLASSES[0]}", f"{right:.1%}", CLASSES[0]]
    assert shown[30][1] == [f"{CROSS} {CLASSES[6]}", f"{np.exp(9) / (np.exp(9) + 9):.1%}", CLASSES[5]]
    assert "3 of 100 test images classified wrongly" in texts(figure)
    (picture,) = [child for child in figure.axes[0].get_children() if isinstance(child, AxesImage)]
    np.testing.assert_array_equal(picture.get_array(), predictions.images[0])
    assert picture.get_interpolation() == "nearest"


def test_samples_without_mistakes_say_so() -> None:
    predictions = build_predictions(16, wrong={})
    figure = draw_samples(predictions.images, predictions.labels, predictions.logits, title="")
    assert len(samples_of(figure)) == 16
    assert "None: every test image is classified correctly." in texts(figure)


def write_run(folder: Path, metrics: list[dict[str, float]], predictions: runs.Predictions) -> Path:
    folder.mkdir(parents=True)
    config = {"recipe": "adam89", "epochs": len(metrics), "seed": 7, "precision": "bf16", "device_name": "Some CPU"}
    runs.write_config(folder, config | {"train_images": 4096})
    runs.write_metrics(folder, metrics)
    runs.write_predictions(folder, predictions)
    return folder


def test_charts_of_a_run_directory(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", build_metrics(3), build_predictions(40, {3: 4.0}))
    paths = draw_charts(run_dir)
    assert paths == [run_dir / "charts" / name for name in ("curves.png", "confusion.png", "samples.png")]
    assert sorted((run_dir / "charts").iterdir()) == sorted(paths)
    for path in paths:
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert picture.width == 1600


def test_the_title_says_how_the_run_was_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastcifar import charts

    titles: list[str] = []

    def draw(*_: Any, title: str) -> Figure:
        titles.append(title)
        return Figure()

    for name in ("draw_curves", "draw_confusion", "draw_samples"):
        monkeypatch.setattr(charts, name, draw)
    draw_charts(write_run(tmp_path / "run", build_metrics(3), build_predictions(40, {})))
    assert titles == ["adam89 · 3 epochs · 4,096 of 50,000 training images · seed 7 · bf16 on Some CPU"] * 3


def test_a_failing_picture_leaves_no_half_file(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", build_metrics(3), build_predictions(40, {}))
    (run_dir / "charts").write_text("in the way")
    with pytest.raises(FastcifarError, match=r"cannot write .*curves\.png: a file is in the way"):
        draw_charts(run_dir)


def test_charts_need_no_torch() -> None:
    script = "import fastcifar.charts, sys; print('torch' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parent.parent, check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == ["False", "False"]
