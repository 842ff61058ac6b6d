import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure
from PIL import Image
from support.figure_parts import build_metrics, build_results, text_of, texts, write_run

from fastcifar.errors import FastcifarError
from fastcifar.results import charts
from fastcifar.results.charts import comparison_figure, left_out, name_runs, write_charts, write_comparison
from fastcifar.results.records import CONFIG_FILE, METRICS_FILE, PREDICTIONS_FILE

RESULTS_FILE = build_results(0.5, 0.4)


def check_pictures(paths: list[Path], folder: Path, names: list[str]) -> None:
    """Check that the folder has these files and no others, and that each can be read."""
    assert paths == [folder / f"{name}.{suffix}" for name in names for suffix in ("png", "svg")]
    assert sorted(folder.iterdir()) == sorted(paths)
    for path in paths[::2]:
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert picture.width == 1600
    for path in paths[1::2]:
        assert ElementTree.parse(path).getroot().get("width") == "576pt"


@pytest.mark.parametrize("num_epochs", [1, 3])
def test_charts_of_a_finished_run(tmp_path: Path, num_epochs: int) -> None:
    run_dir = write_run(tmp_path / "run", build_metrics(num_epochs), RESULTS_FILE)
    check_pictures(write_charts(run_dir), run_dir / "charts", ["curves", "confusion", "samples"])
    check_pictures(write_charts(run_dir, tmp_path / "out"), tmp_path / "out", ["curves", "confusion", "samples"])
    assert left_out(run_dir) == ""


def test_charts_of_an_unfinished_run(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", build_metrics(1), epochs=3)
    check_pictures(write_charts(run_dir), run_dir / "charts", ["curves"])
    assert left_out(run_dir) == (
        f"{run_dir} is not finished: confusion and samples are left out, because the model is tested at the end"
    )


@pytest.mark.parametrize(
    ("config", "title"),
    [
        ({}, "adam89 · 3 epochs · 4,096 of 50,000 training images · seed 7 · bf16 on Some CPU"),
        ({"num_train_images": 50_000, "epochs": 55}, "adam89 · 3 of 55 epochs · seed 7 · bf16 on Some CPU"),
    ],
)
def test_the_title_says_how_the_run_was_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, int], title: str
) -> None:
    titles: list[str] = []

    def draw(*_: Any, title: str) -> Figure:
        titles.append(title)
        return Figure()

    for name in ("draw_curves", "draw_confusion", "draw_samples"):
        monkeypatch.setattr(charts, name, draw)
    write_charts(write_run(tmp_path / "run", build_metrics(3), RESULTS_FILE, **config))
    assert titles == [title] * 3


def test_a_comparison_says_what_is_common_and_what_differs(tmp_path: Path) -> None:
    run_dirs = [
        write_run(tmp_path / "first", build_metrics(3), RESULTS_FILE),
        write_run(tmp_path / "second", build_metrics(2), epochs=3, seed=8),
        write_run(tmp_path / "third", build_metrics(1), RESULTS_FILE, seed=9),
    ]
    figure = comparison_figure(run_dirs)
    assert "3 runs, each adam89 · 4,096 of 50,000 training images · bf16 on Some CPU" in texts(figure)
    assert {"3 epochs · seed 7", "2 of 3 epochs · seed 8", "1 epoch · seed 9"} <= set(texts(figure))
    assert [text_of(figure, f"name-{number}") for number in (1, 2, 3)] == ["first", "second", "third"]
    assert [text_of(figure, f"best-{number}") for number in (1, 2, 3)] == [
        "42.00%, epoch 3",
        "41.00%, epoch 2",
        "40.00%, epoch 1",
    ]
    paths = write_comparison(run_dirs, tmp_path / "compared")
    check_pictures(paths, tmp_path / "compared", ["comparison"])
    assert not (run_dirs[0] / "charts").exists()


def test_runs_are_named_by_as_much_of_their_paths_as_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("a/run", "b/run", "c"):
        (tmp_path / folder).mkdir(parents=True)
    assert name_runs([Path("a/run"), Path("b/run"), Path("c")]) == ["a/run", "b/run", "c"]
    assert name_runs([Path("a/run"), Path("c")]) == ["run", "c"]
    monkeypatch.chdir(tmp_path / "c")
    assert name_runs([Path()]) == ["c"]
    with pytest.raises(FastcifarError, match=r"^\.\./c is given twice$"):
        name_runs([Path("../c"), Path("../a/run"), Path()])


def test_nine_runs_are_too_many(tmp_path: Path) -> None:
    run_dirs = [write_run(tmp_path / str(number), build_metrics(1)) for number in range(9)]
    with pytest.raises(FastcifarError, match=r"^9 runs are too many for one picture: give at most 8$"):
        write_comparison(run_dirs, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert len(write_comparison(run_dirs[:8], tmp_path / "out")) == 2


@pytest.mark.parametrize("name", [CONFIG_FILE, METRICS_FILE, PREDICTIONS_FILE])
def test_nothing_is_drawn_of_a_damaged_run(tmp_path: Path, name: str) -> None:
    run_dir = write_run(tmp_path / "run", build_metrics(2), RESULTS_FILE)
    other = write_run(tmp_path / "other", build_metrics(2), RESULTS_FILE)
    (run_dir / name).write_text("{")
    with pytest.raises(FastcifarError, match=rf"^{run_dir / name} is damaged: [^\n]+$"):
        write_charts(run_dir)
    assert not (run_dir / "charts").exists()
    if name != PREDICTIONS_FILE:  # which a comparison does not need
        with pytest.raises(FastcifarError, match=rf"^{run_dir / name} is damaged: [^\n]+$"):
            write_comparison([other, run_dir], tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_a_finished_run_without_predictions_is_damaged(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", build_metrics(2), RESULTS_FILE)
    (run_dir / PREDICTIONS_FILE).unlink()
    with pytest.raises(FastcifarError, match=r"predictions\.npz is missing"):
        write_charts(run_dir)


def test_charts_and_reports_need_no_torch() -> None:
    script = "import fastcifar.results.report, sys; print('torch' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parent.parent, check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == ["False", "False"]
