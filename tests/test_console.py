import io
from pathlib import Path

import pytest
from rich.console import Console as RichConsole

from fastcifar import console as console_module
from fastcifar.console import Console
from fastcifar.recipes import get_recipe

METRICS = {"epoch": 1, "train_loss": 1.23456, "train_accuracy": 0.5512, "val_loss": 1.1, "val_accuracy": 0.6,
           "lr": 0.001, "img_per_s": 12345.6, "seconds": 4.25}  # fmt: skip
ROW = {"epoch": 1, "val_accuracy": 0.6, "test_loss": 1.0, "test_accuracy": 0.61, "test_accuracy_augmented": 0.5}
RESULTS = {"best": ROW, "last": ROW | {"epoch": 2, "test_accuracy": 0.62}, "val_and_test_accuracy": 0.605,
           "num_test_images": 5000, "img_per_s": 1000.0}  # fmt: skip


def test_an_epoch_is_one_plain_line_elsewhere_than_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Console() as console:
        console.begin(10, 5, 8)
        for step in range(5):
            console.step(1, step)
        console.epoch(METRICS)
    assert capsys.readouterr().out == (
        "epoch  2/10  train loss 1.235 acc 55.1%  val loss 1.100 acc 60.0%  lr 0.001  12,346 img/s  4.2 s\n"
    )


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(
        console_module, "RichConsole", lambda **_: RichConsole(file=screen, force_terminal=True, width=100)
    )
    with Console() as console:
        console.begin(4, 5, 8)
        for step in range(5):
            console.step(1, step)
        console._progress.refresh()
    assert "epoch 2/4" in screen.getvalue()
    assert " 50%" in screen.getvalue()
    assert "img/s" in screen.getvalue()


@pytest.mark.parametrize(
    ("config", "is_short"),
    [
        ({"epochs": 55, "train_images": 50_000}, False),
        ({"epochs": 2, "train_images": 50_000}, True),
        ({"epochs": 55, "train_images": 100}, True),
    ],
)
def test_the_summary(capsys: pytest.CaptureFixture[str], config: dict[str, int], is_short: bool) -> None:
    Console().summarise(get_recipe("adam89"), config | {"seed": 42}, Path("runs/x"), RESULTS, again="fastcifar train")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:6] == [
        "test accuracy on 5,000 images    clean   augmented",
        "  best weights (epoch 2)        61.00%      50.00%",
        "  last weights                  62.00%      50.00%",
        "  last weights, val and test    60.50%",
        "  published                        89%   (very likely on augmented images)",
    ]
    # 55 epochs of 50,000 images at 1,000 a second
    duration = "At the 1,000 img/s measured here the full recipe trains for about 0.8 hours."
    assert (duration in lines) == is_short
    assert f"weights   {Path('runs/x/best.pt')}" in lines
    assert lines[-1] == "next      fastcifar train " + ("  (the full recipe)" if is_short else "--seed 43")
