from dataclasses import replace

import numpy as np
import pytest
from support.figure_parts import build_metrics, lines_of, text_of, texts

from fastcifar.results.curves import ComparedRun, _spread, draw_comparison, draw_curves
from fastcifar.results.style import as_png


@pytest.mark.parametrize("num_epochs", [1, 3, 70])
def test_curves_show_the_metrics_from_epoch_one(num_epochs: int) -> None:
    metrics = build_metrics(num_epochs)
    figure = draw_curves(metrics, title="a run")
    loss, accuracy = lines_of(figure, "loss-training") + lines_of(figure, "accuracy-training")
    assert np.asarray(loss.get_xdata()).tolist() == list(range(1, num_epochs + 1))
    assert np.asarray(loss.get_ydata()).tolist() == [line.train_loss for line in metrics]
    assert np.asarray(accuracy.get_ydata()).tolist() == [line.train_accuracy for line in metrics]
    loss, accuracy = lines_of(figure, "loss-validation") + lines_of(figure, "accuracy-validation")
    assert np.asarray(loss.get_ydata()).tolist() == [line.val_loss for line in metrics]
    assert np.asarray(accuracy.get_ydata()).tolist() == [line.val_accuracy for line in metrics]
    assert "a run" in texts(figure)


def test_curves_mark_the_first_best_epoch() -> None:
    figure = draw_curves(build_metrics(20), title="")
    (best,) = (drawn for drawn in figure.axes[2].collections if drawn.get_gid() == "best")
    assert np.asarray(best.get_offsets()).tolist() == [[5, 0.44]]
    assert "Best validation accuracy 44.00%, epoch 5" in texts(figure)
    assert figure.axes[2].get_title("right") == "best 44.00%, epoch 5"


def test_the_learning_rate_is_labelled_with_its_rounded_peak() -> None:
    figure = draw_curves([replace(line, lr=0.0999511) for line in build_metrics(3)], title="")
    strip = figure.axes[1]
    assert [label.get_text() for label in strip.get_yticklabels()] == ["0", "0.1"]
    assert [label.get_text() for label in strip.get_xticklabels()] == ["1", "2", "3"]


def test_a_comparison_shows_each_run_by_number_name_and_curve() -> None:
    short, long = build_metrics(2), build_metrics(20)
    figure = draw_comparison(
        [ComparedRun("short", "2 epochs", short), ComparedRun("long", "20 epochs", long)], title="both"
    )
    for number, metrics in ((1, short), (2, long)):
        for gid, key in (
            (f"loss-validation-{number}", "val_loss"),
            (f"accuracy-validation-{number}", "val_accuracy"),
            (f"loss-training-{number}", "train_loss"),
        ):
            (line,) = lines_of(figure, gid)
            assert np.asarray(line.get_xdata()).tolist() == list(range(1, len(metrics) + 1))
            assert np.asarray(line.get_ydata()).tolist() == [getattr(each, key) for each in metrics]
    assert [text_of(figure, f"name-{number}") for number in (1, 2)] == ["short", "long"]
    assert [text_of(figure, f"best-{number}") for number in (1, 2)] == ["41.00%, epoch 2", "44.00%, epoch 5"]
    assert "Best validation accuracy 44.00%: long" in texts(figure)
    assert {"2 epochs", "20 epochs", "both"} <= set(texts(figure))
    assert figure.axes[0].get_xlim()[1] > 20


def test_labels_of_eight_equal_runs_do_not_cover_each_other() -> None:
    compared = [ComparedRun(f"run {number}", "", build_metrics(3)) for number in range(8)]
    figure = draw_comparison(compared, title="")
    for axes in figure.axes[::2]:
        heights = sorted(text.get_position()[1] for text in axes.texts if text.get_text() in list("12345678"))
        assert len(heights) == 8
        assert min(np.diff(heights)) > 0.057
        assert 0 <= heights[0] < heights[-1] <= 1
    colors = [lines_of(figure, f"loss-validation-{number}")[0].get_color() for number in range(1, 9)]
    assert len(set(colors)) == 8


@pytest.mark.parametrize(
    ("heights", "spread"),
    [
        ([0.1, 0.9, 0.5], [0.1, 0.9, 0.5]),  # far enough apart
        ([0.5, 0.5], [0.4, 0.6]),
        ([0.55, 0.45], [0.6, 0.4]),
        ([0.0, 0.01, 0.02], [0.0, 0.2, 0.4]),  # not below the axes
        ([1.0, 0.9], [1.0, 0.8]),  # nor above
        ([0.5, 0.6, 0.1, 0.5], [0.3333, 0.7333, 0.1, 0.5333]),  # 0.1 stays
    ],
)
def test_labels_move_apart_by_as_little_as_it_takes(heights: list[float], spread: list[float]) -> None:
    assert _spread(heights, gap=0.2) == pytest.approx(spread, abs=1e-4)


def test_a_run_that_diverged_is_drawn() -> None:
    diverged = [replace(line, val_loss=float("inf")) for line in build_metrics(3)]
    figure = draw_comparison([ComparedRun("good", "", build_metrics(3)), ComparedRun("bad", "", diverged)], title="")
    assert len(as_png(figure)) > 10_000


def test_long_names_are_cut_in_the_middle() -> None:
    compared = [ComparedRun(name, "", build_metrics(1)) for name in ("a" * 40 + "1", "a" * 40 + "2")]
    figure = draw_comparison(compared, title="")
    assert [text_of(figure, f"name-{number}") for number in (1, 2)] == ["a" * 14 + "…" + "a" * 12 + end for end in "12"]


def test_a_single_epoch_is_drawn_as_a_dot() -> None:
    compared = [ComparedRun(str(num_epochs), "", build_metrics(num_epochs)) for num_epochs in (1, 20)]
    figure = draw_comparison(compared, title="")
    assert [lines_of(figure, f"loss-validation-{number}")[0].get_marker() for number in (1, 2)] == ["o", ""]
