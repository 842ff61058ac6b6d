import importlib.util
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.command_line import TRAIN, call
from support.figure_parts import build_metrics, build_results
from support.training_runs import Listener

from fastcifar.errors import FastcifarError
from fastcifar.results.records import EpochMetrics, read_metrics, read_results
from fastcifar.training.callbacks import Callback, Callbacks
from fastcifar.training.tensorboard import TensorBoardLogger

TAGS = {
    "loss/train": "train_loss",
    "loss/val": "val_loss",
    "accuracy/train": "train_accuracy",
    "accuracy/val": "val_accuracy",
    "learning_rate": "lr",
    "throughput_img_per_s": "img_per_s",
}


class View(Listener):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def on_warning(self, line: str) -> None:
        self.lines.append(line)


class Broken(Callback):
    def __init__(self) -> None:
        self.told = 0

    def on_epoch_end(self, metrics: EpochMetrics) -> None:
        self.told += 1
        raise ConnectionError("the service\nis away")


def tell(callback: Callback, run_dir: Path, metrics: Sequence[EpochMetrics], num_finished: int = 0) -> None:
    """Make all calls of a run, from its beginning to its end."""
    callback.on_run_begin(run_dir, {"recipe": "adam89"})
    callback.on_train_begin(len(metrics), 5, 8, metrics[:num_finished])
    for line in metrics[num_finished:]:
        callback.on_step_end(line.epoch, 0)
        callback.on_epoch_end(line)
    callback.on_train_end(build_results(0.7, 0.65))


def scalars(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = accumulators.EventAccumulator(str(run_dir / "tensorboard"))
    log.Reload()
    return {tag: [(event.step, event.value) for event in log.Scalars(tag)] for tag in log.Tags()["scalars"]}


def test_every_epoch_is_logged_and_a_resumed_one_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    metrics = build_metrics(4)
    callback = TensorBoardLogger()
    callback.on_run_begin(tmp_path, {})
    callback.on_train_begin(4, 5, 8, [])
    for line in metrics[:3]:  # the third is lost, as after a kill before its checkpoint
        callback.on_epoch_end(line)
    tell(TensorBoardLogger(), tmp_path, metrics, num_finished=2)
    found = scalars(tmp_path)
    for tag, key in TAGS.items():
        assert [step for step, _ in found[tag]] == [1, 2, 3, 4]
        assert [value for _, value in found[tag]] == pytest.approx([getattr(line, key) for line in metrics])
    for tag, accuracy in (("accuracy/test_accuracy", 0.7), ("accuracy/test_accuracy_augmented", 0.65)):
        ((step, value),) = found[tag]
        assert (step, round(value, 6)) == (2, accuracy)  # TensorBoard keeps float32


def test_the_command_logs_a_training(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    options = ["--epochs", "2", "--train-images", "8", "--log", "tensorboard", "--out", "run"]
    code, _, err = call(monkeypatch, capsys, *TRAIN, *options)
    assert (code, err) == (0, "")
    found, results = scalars(Path("run")), read_results(Path("run")).best
    for tag, key in TAGS.items():
        assert [step for step, _ in found[tag]] == [1, 2]
        expected = [getattr(line, key) for line in read_metrics(Path("run"))]
        assert [value for _, value in found[tag]] == pytest.approx(expected)
    for key in ("test_accuracy", "test_accuracy_augmented"):
        ((step, value),) = found[f"accuracy/{key}"]
        assert step == results.epoch + 1
        assert value == pytest.approx(getattr(results, key))


def test_a_logger_that_fails_is_left_out_and_stops_nothing(tmp_path: Path) -> None:
    view, broken, other = View(), Broken(), View()
    tell(Callbacks(view, broken, other), tmp_path, build_metrics(3))
    assert broken.told == 1
    assert view.lines == [r"Broken is no longer called: ConnectionError: the service\nis away"]
    assert view.epochs == other.epochs == build_metrics(3)
    assert view.begun == other.begun == (3, 5, 8, 0)
    assert view.steps == other.steps == [(0, 0), (1, 0), (2, 0)]


def test_a_view_that_fails_ends_the_run() -> None:
    with pytest.raises(ConnectionError):
        Callbacks(Broken(), View()).on_epoch_end(build_metrics(1)[0])


def test_without_the_package_nothing_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FastcifarError, match=r"^tensorboard not installed: pip install 'fastcifar\[tensorboard\]'$"):
        TensorBoardLogger()
    code, out, err = call(monkeypatch, capsys, "train", "--recipe", "adam89", "--device", "cpu", "--log", "tensorboard")
    message = "Error: tensorboard not installed: pip install 'fastcifar[tensorboard]'\n"
    assert (code, out, err) == (2, "", message)
    assert list(tmp_path.iterdir()) == []
