import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from support.figure_parts import lines_of, texts

from fastcifar.results.calibration import draw_calibration
from fastcifar.results.metrics import Calibration, CalibrationBin
from fastcifar.results.style import as_png

EMPTY = CalibrationBin(0, 0, None)
CALIBRATION = Calibration(
    error=0.1234,
    mean_confidence=0.8,
    accuracy=0.75,
    bins=(*[EMPTY] * 6, CalibrationBin(20, 12, 0.45), *[EMPTY] * 7, CalibrationBin(80, 63, 0.96)),
)


def bars(figure: Figure, gid: str) -> list[tuple[float, float]]:
    """Bottom and top of the bars with this gid."""
    found = [bar for bar in figure.findobj(Rectangle) if isinstance(bar, Rectangle) and bar.get_gid() == gid]
    return [(bar.get_y(), bar.get_y() + bar.get_height()) for bar in found]


def test_a_bin_shows_its_accuracy_and_the_gap_to_its_confidence() -> None:
    figure = draw_calibration(CALIBRATION, title="a run")
    assert {"Expected calibration error 12.34%", "a run", "accuracy 75.0%", "mean confidence 80.0%"} <= set(
        texts(figure)
    )
    assert bars(figure, "accuracy-6") == [(0, 0.6)]
    assert bars(figure, "gap-6") == [pytest.approx((0.6, 0.45))]
    assert bars(figure, "gap-14") == [pytest.approx((0.7875, 0.96))]
    assert bars(figure, "accuracy-0") == bars(figure, "gap-0") == []
    (interval,) = lines_of(figure, "interval-6")
    low, high = np.asarray(interval.get_ydata())
    assert low < 0.6 < high
    (accuracy,) = lines_of(figure, "accuracy")
    assert np.asarray(accuracy.get_xdata()).tolist() == [0.75, 0.75]


def test_one_image_is_drawn() -> None:
    alone = Calibration(0.0, 1.0, 1.0, (*[EMPTY] * 14, CalibrationBin(1, 1, 1.0)))
    assert len(as_png(draw_calibration(alone, title=""))) > 10_000
