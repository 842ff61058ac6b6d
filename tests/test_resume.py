import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.command_line import PROGRAMS, PYTHONPATH
from support.training_runs import Listener, assert_same_run, interrupt, run, tiny_settings

from fastcifar.errors import FastcifarError, Interrupted
from fastcifar.results.records import Results, read_results
from fastcifar.results.run_dir import interrupted_run_dir, write_diverged
from fastcifar.training.checkpoint import load_checkpoint, save_checkpoint
from fastcifar.training.run import resume_training


@pytest.mark.parametrize("choices", [{"precision": "bf16", "num_train_images": 16}, {"loader": "streamed"}])
def test_a_resumed_run_equals_the_one_never_stopped(tiny_data: Path, tmp_path: Path, choices: dict[str, Any]) -> None:
    run(tiny_data, tmp_path / "whole", **choices)
    out = tmp_path / "stopped"
    interrupt(tiny_data, out, (1, 1), **choices)
    torch.set_num_threads(1)  # the recorded count is restored
    listener = Listener()
    settings, results = resume_training(out, None, listener)
    assert settings == tiny_settings(**choices)
    assert listener.epochs[0].epoch == 1
    assert_same_run(out, tmp_path / "whole")
    assert read_results(out) == results
    config = json.loads((out / "config.json").read_text())
    assert [part["num_epochs"] for part in config["resumed"]] == [1]


def test_a_run_can_be_stopped_again_and_its_time_adds_up(
    finished_run: tuple[Path, Results], tiny_template: Path, tmp_path: Path
) -> None:
    out, listener = tmp_path / "again", Listener()
    interrupt(tiny_template, out, (0, 2), precision="bf16")
    listener.stop_at = (2, 4)
    with pytest.raises(Interrupted, match="holds 2 finished epochs;"):
        resume_training(out, tiny_template, listener)
    assert listener.steps[0] == (0, 0)
    before = load_checkpoint(out / "last.pt")["seconds"]
    _, results = resume_training(out, tiny_template, Listener())
    assert results.seconds > before > 0
    assert_same_run(out, finished_run[0])


def kill(data: Path, work_dir: Path, *arguments: str) -> list[str]:
    command = [sys.executable, str(PROGRAMS / "killed_runs.py"), str(data), str(work_dir), *arguments]
    environment = os.environ | {"PYTHONPATH": PYTHONPATH}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_killed_runs_go_on_as_if_never_stopped(tiny_data: Path, tmp_path: Path) -> None:
    lines = kill(tiny_data, tmp_path, "sync", "1", "11")
    assert [line.split(": ")[1] for line in lines] == ["started again, equal", "resumed after epoch 0, equal"]


@pytest.mark.slow
def test_killed_at_every_file(tiny_data: Path, tmp_path: Path) -> None:
    lines = kill(tiny_data, tmp_path, "sync", *map(str, range(1, 100)))
    assert len(lines) > 25
    assert lines[-1].endswith("(0): was finished, equal")


@pytest.mark.slow
def test_killed_at_random_moments(tiny_data: Path, tmp_path: Path) -> None:
    lines = kill(tiny_data, tmp_path, "time", "50")
    assert sum("(-9)" in line for line in lines) > 15  # other trainings may be faster than the timed one


def edit(run_dir: Path, **changes: Any) -> None:
    content = load_checkpoint(run_dir / "last.pt")
    settings = content["settings"] | changes.pop("settings", {})
    save_checkpoint(run_dir / "last.pt", content | {"settings": settings} | changes)


def drop_setting(run_dir: Path, name: str) -> None:
    content = load_checkpoint(run_dir / "last.pt")
    del content["settings"][name]
    save_checkpoint(run_dir / "last.pt", content)


def another_model(run_dir: Path) -> None:
    content = load_checkpoint(run_dir / "last.pt")
    for model in (content["model"], content["best"]["model"]):
        model["backbone.fc.weight"] = torch.zeros(100, 512)
    save_checkpoint(run_dir / "last.pt", content)


def first_parameter_of_another_shape(run_dir: Path) -> None:
    content = load_checkpoint(run_dir / "last.pt")
    content["optimizer"]["state"][0]["exp_avg"] = torch.zeros(3)
    save_checkpoint(run_dir / "last.pt", content)


REFUSALS: dict[str, tuple[Any, str]] = {
    "other data": (lambda run: edit(run, data={"train": "0"}), "belongs to a run on other data"),
    "another recipe": (lambda run: edit(run, settings={"learning_rate": 0.2}), "the recipe adam89 is different in"),
    "no weights": (lambda run: edit(run, model={}), "is damaged, or no checkpoint to resume from"),
    "another model": (another_model, "belongs to another model or optimizer"),
    "another optimizer": (
        lambda run: edit(run, optimizer={}),
        "belongs to another model or optimizer",
    ),
    "another shape": (first_parameter_of_another_shape, "belongs to another model or optimizer"),
    "a device that is not here": (lambda run: edit(run, settings={"device": "cuda:7"}), "'cuda:7' does not exist"),
    "a setting of another type": (
        lambda run: edit(run, settings={"epochs": "9"}),
        "damaged, or of another version: epochs is not a 64-bit integer",
    ),
    "a setting too many": (
        lambda run: edit(run, settings={"speed": 9}),
        "damaged, or of another version: speed is not known",
    ),
    "a setting too few": (lambda run: drop_setting(run, "momentum"), "or of another version: momentum is missing"),
    "a recipe that cannot be": (
        lambda run: edit(run, settings={"epochs": 0}),
        "another version: the recipe 'adam89' cannot",
    ),
    "no settings": (lambda run: edit(run, settings={}, num_epochs=7), "is damaged, or no checkpoint to resume from"),
    "the best weights only": (lambda run: shutil.copy(run / "best.pt", run / "last.pt"), "or no checkpoint to resume"),
    "no checkpoint": (lambda run: (run / "last.pt").unlink(), "holds no last.pt to resume from: start a new run"),
    "finished": (lambda run: (run / "results.json").write_text("{}"), "is finished: there is nothing left to do"),
    "diverged": (lambda run: write_diverged(run, "its loss"), "has diverged (its loss): start a new run"),
    "no reason": (lambda run: (run / "diverged.json").write_text("[]"), "json is damaged: it does not say why"),
    "no run": (lambda run: shutil.rmtree(run), "is not a run directory: there is no such folder"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_run_that_cannot_be_resumed_is_refused(stopped_run: Path, name: str) -> None:
    change, message = REFUSALS[name]
    change(stopped_run)
    with pytest.raises(FastcifarError) as caught:
        resume_training(stopped_run, None, Listener())
    assert str(stopped_run) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_that_is_still_going_is_refused(stopped_run: Path) -> None:
    with interrupted_run_dir(stopped_run), pytest.raises(FastcifarError, match="is still being trained by another"):
        resume_training(stopped_run, None, Listener())


def test_a_signal_in_a_resumed_run_names_the_way_on(stopped_run: Path) -> None:
    listener = Listener()
    listener.stop_at = (1, 0)
    with pytest.raises(
        Interrupted, match=rf"{stopped_run} holds 1 finished epoch; .* `fastcifar train --resume {stopped_run}`"
    ) as caught:
        resume_training(stopped_run, None, listener)
    assert caught.value.signal_number == signal.SIGINT
