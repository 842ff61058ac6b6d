import re
from typing import Any

import pytest
import tour
from support.narrow import use_narrow_network

from fastcifar.recipes import get_recipe
from fastcifar.training.settings import resolve_settings
from fastcifar.training.trainer import Trainer


@pytest.mark.parametrize(
    ("rate", "num_images"),
    [
        (5, 1024),  # the minimum, on any slow machine
        (27, 1024),
        (70, 2816),  # 22 batches: 121 s
        (110, 4352),
        (100_000, 50_000),  # all images
    ],
)
def test_the_tour_takes_about_two_minutes(rate: float, num_images: int) -> None:
    assert tour.plan_num_images(rate, get_recipe(tour.RECIPE).global_batch_size, 50_000) == num_images


def test_the_expected_accuracy_is_of_a_measured_tour_that_is_no_larger() -> None:
    sizes = sorted(tour.ACCURACIES)
    assert tour.describe_expected(sizes[0]) == f"about {tour.ACCURACIES[sizes[0]]:.0%}"
    assert tour.describe_expected(sizes[1] - 128) == f"about {tour.ACCURACIES[sizes[0]]:.0%}"
    assert tour.describe_expected(50_000) == f"more than {tour.ACCURACIES[sizes[-1]]:.0%}"
    accuracies = [tour.ACCURACIES[size] for size in sizes]
    assert 0.1 < accuracies[0] < accuracies[-1] < 0.89


def test_it_measures_the_step_that_is_trained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    built: list[dict[str, Any]] = []

    def build(recipe: Any, device: Any, **options: Any) -> Trainer:
        built.append(options)
        return Trainer(recipe, device, **options)

    use_narrow_network(monkeypatch)
    monkeypatch.setattr(tour, "Trainer", build)
    monkeypatch.setattr(tour, "MEASURE_S", 0.0)
    tour.main()
    settings = resolve_settings(get_recipe(tour.RECIPE))
    assert built == [{"precision": settings.precision, "compile": False, "convolution": settings.convolution}]
    out, err = capsys.readouterr()
    assert re.fullmatch(r"--epochs 3 --train-images \d+ --eval-images 1000\n", out)
    assert re.match(r"This machine trains about \d+ images a second, so the whole adam89 recipe would take", err)
