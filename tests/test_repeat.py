import json
import math
from pathlib import Path

import pytest
from support.command_line import TRAIN, call
from support.training_runs import Listener, tiny_settings

from fastcifar.errors import FastcifarError, Interrupted
from fastcifar.pipeline.loader import Loader
from fastcifar.results.records import read_config, read_results
from fastcifar.results.repeats import read_repeats
from fastcifar.training.repeat import train_seeds
from fastcifar.training.trainer import Trainer


def test_seeds_go_on_where_they_were_stopped(tiny_data: Path, tmp_path: Path) -> None:
    settings, folder = tiny_settings(epochs=2, num_train_images=8), tmp_path / "seeds"

    class Impatient(Listener):
        def on_message(self, line: str) -> None:
            self.stop_at = (1, 0) if line.startswith("seed 43") else self.stop_at

    with pytest.raises(Interrupted):
        train_seeds(settings, (42, 43, 44), tiny_data, folder, Impatient())
    assert [run.state for run in read_repeats(folder).runs] == ["finished", "stopped"]
    finished = (folder / "seed-42" / "results.json").stat()

    listener = Listener()
    train_seeds(settings, (42, 43, 44), tiny_data, folder, listener)
    assert [line.epoch for line in listener.epochs] == [1, 0, 1]  # the second of seed 43, both of seed 44
    assert (folder / "seed-42" / "results.json").stat() == finished
    assert [(run.seed, run.state) for run in read_repeats(folder).runs] == [
        (42, "finished"),
        (43, "finished"),
        (44, "finished"),
    ]
    assert [read_config(folder / f"seed-{seed}").seed for seed in (42, 43, 44)] == [42, 43, 44]
    with pytest.raises(FastcifarError, match=r"seed-42 has other settings: epochs 2 and 3, step_epochs 1 and 2$"):
        train_seeds(tiny_settings(num_train_images=8), (42,), tiny_data, folder)


def test_a_seed_that_diverges_is_kept_and_not_tried_again(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real_step = Trainer.step
    steps: list[int] = []

    def step(self: Trainer, loader: Loader) -> None:
        steps.append(len(steps))
        if len(steps) == 1:
            self.model.backbone.fc.bias.data.fill_(math.nan)
        real_step(self, loader)

    monkeypatch.setattr(Trainer, "step", step)
    monkeypatch.chdir(tmp_path)
    command = ["repeat", *TRAIN[1:], "--epochs", "1", "--train-images", "8", "--seeds", "2"]
    for _ in range(2):
        code, out, err = call(monkeypatch, capsys, *command)
        assert (code, err) == (0, "")
        assert "seed 42 diverged: the loss is not finite in step 1 of epoch 1" in out
        assert "the statistics cover the finished seeds only: 1 of 2" in out
    assert len(steps) == 2  # one step of either seed
    assert [run.state for run in read_repeats(Path("runs/adam89-seeds")).runs] == ["diverged", "finished"]
    monkeypatch.setenv("SLURM_NTASKS", "4")
    code, _, err = call(monkeypatch, capsys, *command, "--quiet")
    assert (code, err.count("\n")) == (0, 1)
    assert err.startswith("note: SLURM_NTASKS is 4, but without torchrun ")


def test_two_recipes_are_trained_and_compared(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--epochs", "1", "--train-images", "8", "--batch-size", "8", "--device", "cpu", "--seeds", "2"]
    code, out, err = call(monkeypatch, capsys, "repeat", "--recipe", "adam89", "--recipe", "sgd92", *options)
    assert (code, err) == (0, "")
    assert "sgd92 minus adam89, points of accuracy (Welch's t test, 2 and 2 seeds)" in out
    folder = Path("seeds-compared")
    summary, png, svg = (folder / name for name in ("summary.json", "charts/seeds.png", "charts/seeds.svg"))
    assert out.splitlines()[-3:] == [str(path) for path in (summary, png, svg)]
    assert png.stat().st_size > 10_000
    written = json.loads(summary.read_text())
    assert [group["name"] for group in written["groups"]] == ["adam89", "sgd92"]
    means = []
    for name in ("adam89", "sgd92"):
        runs = [folder / name / f"seed-{seed}" for seed in (42, 43)]
        assert [(read_config(run).settings["recipe"], read_config(run).seed) for run in runs] == [
            (name, 42),
            (name, 43),
        ]
        means.append(sum(read_results(run).test10k_accuracy for run in runs) / 2)
    found = written["comparison"]["differences"]["test10k_accuracy"]
    assert (found["n"], round(found["difference"], 9)) == ([2, 2], round(means[1] - means[0], 9))
