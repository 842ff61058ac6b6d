from pathlib import Path

import draw_augmentation
import numpy as np
import torch
from click.testing import CliRunner
from support.containers import TEST_IMAGES

from fastcifar.pipeline.augment import sample_augmentation


def test_the_difference_is_black_and_the_images_are_not() -> None:
    images = TEST_IMAGES[:3]
    figure = draw_augmentation.draw(images, sample_augmentation(42, 0, torch.arange(50_000, 50_003)))
    rows = [[np.asarray(axes.images[0].get_array()) for axes in figure.axes[i : i + 3]] for i in range(0, 12, 3)]
    np.testing.assert_array_equal(rows[0], images)
    np.testing.assert_array_equal(rows[1], rows[2])
    assert not np.array_equal(rows[2], images)
    assert not np.any(rows[3])


def test_the_picture_is_written(tiny_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "augmentation.png"
    result = CliRunner().invoke(draw_augmentation.main, ["--data", str(tiny_data), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert out.stat().st_size > 10_000
