import datetime
from pathlib import Path
from typing import Any

import click
import pytest
from support.terminals import pretend_terminal

from fastcifar.data.cifar10 import CLASSES
from fastcifar.inference.evaluation import Evaluation
from fastcifar.inference.prediction import Guess, Prediction
from fastcifar.recipes import get_recipe
from fastcifar.results.metrics import Calibration, ClassScores, Confusion
from fastcifar.results.records import Results, Scores
from fastcifar.results.run_dir import RunSummary
from fastcifar.terminal import print_table, show_evaluation, show_predictions, show_runs, show_summary
from fastcifar.training.settings import resolve_settings

RESULTS = Results(
    best=Scores(1, 0.6, 1.0, 0.61, 0.5),
    last=Scores(2, 0.6, 1.0, 0.62, 0.5),
    num_test_images=5000,
    test10k_accuracy=0.605,
    img_per_s=1000.0,
    seconds=9.0,
)
PREDICTIONS = [
    Prediction(name, (Guess("automobile", 0.435),) * 3)
    for name in ("cat.jpg", "[red]x[/red] :cat:.png", "new\nline\x1b[31m.png")
]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def summarise(capsys: pytest.CaptureFixture[str], run_dir: str = "runs/x", **choices: Any) -> list[str]:
    capsys.readouterr()
    settings = resolve_settings(get_recipe("adam89"), device="cpu", **choices)
    show_summary(get_recipe("adam89"), settings, Path(run_dir), RESULTS, again="fastcifar train --recipe adam89")
    return printed(capsys)


def test_the_summary_of_a_whole_run(capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs/x/charts").mkdir(parents=True)
    assert summarise(capsys) == [
        "",
        "accuracy on 5,000 test images",
        "weights            clean  augmented",
        "best, epoch 2     61.00%     50.00%",
        "last, epoch 3     62.00%     50.00%",
        "last, val + test  60.50%",
        "published                       89%",
        "The published accuracy is very likely on augmented images.",
        "",
        "run       runs/x",
        "weights   runs/x/best.pt",
        "charts    runs/x/charts",
        "next      fastcifar report runs/x  # everything on one page",
        "          fastcifar evaluate runs/x  # scores of each class",
        "          fastcifar predict runs/x PICTURE  # classify your own picture",
        "          fastcifar train --recipe adam89 --seed 43  # another seed",
    ]


@pytest.mark.parametrize(
    ("choices", "command"),
    [
        ({"seed": 7}, "--seed 8  # another seed"),
        ({"seed": 41}, " # another seed"),  # the recipe's own
        ({"seed": 7, "epochs": 2}, "--seed 7  # the full recipe"),
    ],
)
def test_the_next_command_names_a_seed_once(
    capsys: pytest.CaptureFixture[str], choices: dict[str, Any], command: str
) -> None:
    assert summarise(capsys, **choices)[-1] == f"          fastcifar train --recipe adam89 {command}"


@pytest.mark.parametrize("config", [{"epochs": 2}, {"num_train_images": 1000}])
def test_the_summary_of_a_short_run(capsys: pytest.CaptureFixture[str], config: dict[str, int]) -> None:
    lines = summarise(capsys, "my runs/x", **config)
    assert lines[9] == (
        f"This was a short run: {config.get('epochs', 55)} of 55 epochs, {config.get('num_train_images', 50_000):,} of"
        # 55 epochs of 50,000 images at 1,000 a second
        " 50,000 training images. At the 1,000 img/s measured here the full recipe trains for about 0.8 hours."
    )
    assert lines[11:13] == ["run       my runs/x", "weights   my runs/x/best.pt"]  # and no charts: there are none
    assert lines[13:] == [
        "next      fastcifar report 'my runs/x'  # everything on one page",
        "          fastcifar evaluate 'my runs/x'  # scores of each class",
        "          fastcifar predict 'my runs/x' PICTURE  # classify your own picture",
        "          fastcifar train --recipe adam89  # the full recipe",
    ]


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line.rstrip() for line in click.unstyle(capsys.readouterr().out).splitlines()]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_summary_fits_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    pretend_terminal(monkeypatch, width)
    lines = summarise(capsys, epochs=2)
    assert "best, epoch 2     61.00%     50.00%" in lines
    start = lines.index("run       runs/x")
    assert max(map(len, lines[:start])) <= width
    # Commands stay whole, to be copied.
    command = "          fastcifar predict runs/x PICTURE"
    assert lines[start + 4] == command + ("" if width == 40 else "  # classify your own picture")


TABLE = (["name", "first", "n"], [["a [b]", "four", "1"], ["\N{CAT FACE} c", "x" * 12, "22"]])


def test_a_table_too_wide_for_a_terminal_becomes_blocks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend_terminal(monkeypatch, 23)
    print_table(*TABLE, num_text_columns=2)
    assert printed(capsys) == [
        "name   first          n",
        "a [b]  four           1",
        "\N{CAT FACE} c   xxxxxxxxxxxx  22",  # a cat is two columns wide
    ]
    pretend_terminal(monkeypatch, 22)
    print_table(*TABLE, num_text_columns=2)
    assert printed(capsys) == [
        "a [b]",
        "  first  four",
        "  n      1",
        "\N{CAT FACE} c",
        "  first  xxxxxxxxxxxx",
        "  n      22",
    ]


def test_a_pipe_gets_the_table_however_wide_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "0")
    print_table(["name", "n"], [["x" * 2000, "10"], [":cat: [b]", ""], ["y", "1"]], num_text_columns=1)
    assert capsys.readouterr().out.splitlines() == [  # no line ends with spaces
        "name".ljust(2000) + "   n",
        "x" * 2000 + "  10",
        ":cat: [b]",
        "y".ljust(2000) + "   1",
    ]


def test_predictions_show_any_name_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    show_predictions(PREDICTIONS)
    lines = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert lines == ["picture", "cat.jpg", "[red]x[/red] :cat:.png", r"new\nline\x1b[31m.png"]


def test_an_evaluation_on_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = Evaluation(
        checkpoint="runs/x/best.pt",
        recipe="adam89",
        num_epochs=3,
        precision="fp32",
        split="test",
        num_images=1000,
        augmented=False,
        mirror_tta=False,
        accuracy=0.462,
        interval_95=(0.4313, 0.493),
        loss=1.4952,
        classes=tuple(ClassScores(name, 89, precision=0.435, recall=0.416, f1=0.425) for name in CLASSES),
        confusions=(Confusion("truck", "automobile", 39),),
        calibration=Calibration(error=0.0312, mean_confidence=0.431, accuracy=0.462, bins=()),
        label_errors=(),
    )
    pretend_terminal(monkeypatch, 40)
    show_evaluation(evaluation)
    lines = printed(capsys)
    assert lines[0] == "runs/x/best.pt: adam89, 3 epochs"
    assert " ".join(lines[1:6]) == (
        "accuracy 46.20% (95% interval 43.13% to 49.30%), loss 1.4952, on 1,000 images of test, clean"
        " expected calibration error 3.12% (mean confidence 43.1%)"
    )
    assert lines[7:10] == ["airplane", "  precision  43.5%", "  recall     41.6%"]
    assert lines[-1] == "top confusions: truck as automobile 39"


def test_runs_and_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    begun = datetime.datetime(2026, 11, 22, 16, 3)
    show_runs(
        Path("runs"),
        [
            RunSummary(Path("runs/b"), "stopped", "sgd92", 3, 70, 42, begun=begun),
            RunSummary(Path("runs/a"), "finished", "adam89", 55, 55, 42, 0.8912, 1234.5, begun),
        ],
    )
    *table, _, hint = printed(capsys)
    assert [line.split() for line in table] == [
        ["run", "state", "recipe", "epochs", "seed", "test", "img/s", "begun"],
        ["b", "stopped", "sgd92", "3/70", "42", "2026-11-22", "16:03"],
        ["a", "finished", "adam89", "55/55", "42", "89.12%", "1,234", "2026-11-22", "16:03"],
    ]
    assert hint == "to continue a stopped run, for example: fastcifar train --resume runs/b"
