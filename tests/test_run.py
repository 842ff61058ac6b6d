import contextlib
import datetime
import gc
import importlib.metadata
import json
import math
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.training_runs import Listener, run, tiny_settings
from torch import Tensor

import fastcifar
from fastcifar.data.folder import load_train, load_val_and_test
from fastcifar.distributed import ALONE
from fastcifar.errors import FastcifarError, Interrupted
from fastcifar.machine import package_versions
from fastcifar.pipeline import loader as loader_module
from fastcifar.pipeline.augment import choose_subset
from fastcifar.pipeline.loader import EpochPlanner, Loader
from fastcifar.results import charts
from fastcifar.results.charts import write_charts
from fastcifar.results.records import (
    EpochMetrics,
    Results,
    as_plain,
    read_config,
    read_metrics,
    read_predictions,
    read_results,
)
from fastcifar.results.run_dir import new_run_dir, run_state
from fastcifar.training import evaluate
from fastcifar.training import trainer as trainer_module
from fastcifar.training.callbacks import Callback
from fastcifar.training.checkpoint import load_checkpoint
from fastcifar.training.run import Run, resume_training
from fastcifar.training.trainer import Trainer


def test_a_run_leaves_all_it_should(tiny_data: Path, tmp_path: Path) -> None:
    out, listener = tmp_path / "run", Listener()
    results = run(tiny_data, out, listener)
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()) == [
        "best.pt",
        "config.json",
        "last.pt",
        "metrics.jsonl",
        "predictions.npz",
        "results.json",
    ]
    assert listener.begun == (3, 5, 8, 0)
    assert listener.steps == [(epoch, step) for epoch in range(3) for step in range(5)]

    metrics = read_metrics(out)
    assert metrics == listener.epochs
    assert [line.epoch for line in metrics] == [0, 1, 2]
    assert [line.lr for line in metrics] == [0.001, 0.001, 0.0005]
    assert all(line.img_per_s > 0 and line.seconds > 0 for line in metrics)

    config = json.loads((out / "config.json").read_text())
    expected = {
        "recipe": "adam89",
        "epochs": 3,
        "global_batch_size": 8,
        "seed": 42,
        "device": "cpu",
        "precision": "fp32",
        "num_train_images": 40,
        "num_eval_images": 10,
        "loader": "resident",
        "compile": False,
    }
    assert {key: config[key] for key in expected} == expected
    assert config["environment"]["versions"]["torch"] == importlib.metadata.version("torch")
    assert config["environment"]["captured"] is False

    assert json.loads((out / "results.json").read_text()) == as_plain(results)
    best_epoch = max(metrics, key=lambda line: line.val_accuracy).epoch  # the first of equals
    assert results.best.epoch == best_epoch
    assert results.best.val_accuracy == metrics[best_epoch].val_accuracy
    assert results.last.epoch == 2
    assert results.test10k_accuracy == (results.last.val_accuracy + results.last.test_accuracy) / 2

    _, test = load_val_and_test(tiny_data)
    predictions = read_predictions(out)
    np.testing.assert_array_equal(predictions.images, test.images)
    np.testing.assert_array_equal(predictions.labels, test.labels)
    assert (predictions.logits.argmax(1) == test.labels).mean() == results.best.test_accuracy


def test_charts_that_cannot_be_drawn_lose_nothing(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(run_dir: Path) -> None:
        assert (run_dir / "results.json").exists()
        assert (run_dir / "predictions.npz").exists()
        raise RuntimeError("latex\ncould not be found")

    warnings: list[str] = []
    listener = Listener()
    monkeypatch.setattr(listener, "on_warning", warnings.append)
    monkeypatch.setattr(charts, "write_charts", fail)
    out = tmp_path / "run"
    results = run(tiny_data, out, listener, epochs=1)
    again = f"`fastcifar charts {out}` draws them again"
    assert warnings == [f"the charts could not be drawn (latex could not be found): {again}"]
    assert read_results(out) == results
    assert not (out / "charts").exists()
    monkeypatch.undo()
    (out / "charts").mkdir()
    (out / "charts" / ".curves.png.99.tmp").touch()  # a process that was killed meanwhile
    assert len(write_charts(out)) == len(list((out / "charts").iterdir())) == 6


def test_runs_that_begin_in_one_second_get_names_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> "Clock":
            return cls(2026, 11, 25, 20, 47, 57)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datetime, "datetime", Clock)
    with contextlib.ExitStack() as stack:
        names = [stack.enter_context(new_run_dir(None, "adam89")).name for _ in range(3)]
    assert names == ["adam89-20261125-204757", "adam89-20261125-204757-2", "adam89-20261125-204757-3"]
    assert all((tmp_path / "runs" / name).is_dir() for name in names)
    monkeypatch.chdir(tmp_path / "runs" / names[0])
    Path("runs").write_text("in the way")
    with pytest.raises(FastcifarError, match="cannot write runs/adam89-20261125-204757: Not a directory"):
        new_run_dir(None, "adam89").__enter__()


@pytest.mark.parametrize("version", [importlib.metadata.PackageNotFoundError("pillow"), None])
def test_an_unknown_version_is_recorded_as_unknown(version: Exception | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(package: str) -> str | None:
        if isinstance(version, Exception):
            raise version
        return version

    monkeypatch.setattr(importlib.metadata, "version", find)
    versions = package_versions()
    assert versions.pop("fastcifar") == fastcifar.__version__
    assert set(versions.values()) == {"unknown"}


def test_runs_with_either_loader_are_equal(tiny_data: Path, tmp_path: Path) -> None:
    weights = []
    for loader in ("resident", "streamed"):
        run(tiny_data, tmp_path / loader, loader=loader, epochs=1, num_train_images=32)
        weights.append(load_checkpoint(tmp_path / loader / "last.pt")["model"])
    for name, value in weights[0].items():
        assert torch.equal(weights[1][name], value), name


def test_an_interrupt_keeps_the_last_finished_epoch(tiny_data: Path, tmp_path: Path) -> None:
    out, listener = tmp_path / "run", Listener()
    listener.stop_at = (2, 1)
    handler = signal.getsignal(signal.SIGINT)
    saved = rf"{out} holds 2 finished epochs; continue with `fastcifar train --resume {out}`"
    with pytest.raises(Interrupted, match=saved) as caught:
        run(tiny_data, out, listener)
    assert caught.value.signal_number == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is handler
    assert listener.steps[-1] == (2, 1)
    assert [line.epoch for line in read_metrics(out)] == [0, 1]
    last = load_checkpoint(out / "last.pt")
    assert last["num_epochs"] == 2
    assert last["metrics"] == [*map(as_plain, read_metrics(out))]
    assert not (out / "results.json").exists()
    # It is the state after two epochs, not in the middle of the third.
    a_run = Run(tiny_settings(), tiny_data, ALONE, Callback())
    for epoch in range(2):
        a_run.trainer.train_epoch(a_run.loader, epoch, lambda step: None)
    for name, value in a_run.trainer.model.state_dict().items():
        assert torch.equal(last["model"][name], value), name


def test_an_interrupt_between_epochs_is_not_lost(tiny_data: Path, tmp_path: Path) -> None:
    class Impatient(Listener):
        def on_epoch_end(self, metrics: EpochMetrics) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="holds 1 finished epoch;") as caught:
        run(tiny_data, tmp_path / "run", Impatient())
    assert caught.value.signal_number == signal.SIGTERM


def test_an_interrupt_in_the_evaluation_lets_it_finish(
    tiny_data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Impatient(Listener):
        def on_message(self, line: str) -> None:
            if line.startswith("evaluating"):
                os.kill(os.getpid(), signal.SIGINT)

    results = run(tiny_data, tmp_path / "run", Impatient(), epochs=1)
    assert results.last.epoch == 0
    assert "finishing the evaluation; a second signal stops at once\n" in capfd.readouterr().err


def test_an_interrupt_before_the_first_epoch_says_so(tiny_data: Path, tmp_path: Path) -> None:
    out, listener = tmp_path / "run", Listener()
    listener.stop_at = (0, 0)
    with pytest.raises(Interrupted, match=rf"no epoch was finished, {out} holds the untrained model"):
        run(tiny_data, out, listener)
    assert load_checkpoint(out / "last.pt")["num_epochs"] == 0
    assert not (out / "best.pt").exists()


def test_a_start_that_fails_leaves_no_run(tiny_data: Path, tmp_path: Path) -> None:
    (tiny_data / "test.beton").unlink()
    with pytest.raises(FastcifarError, match=r"cannot read .*test\.beton"):
        run(tiny_data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("bad_step", "where"), [(3, "step 4"), (4, "the validation")])
def test_a_loss_that_is_not_finite_stops_the_run(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad_step: int, where: str
) -> None:
    out = tmp_path / "run"
    calls: list[int] = []
    real_step = Trainer.step

    def step(self: Trainer, loader: Loader) -> None:
        calls.append(len(calls))
        if calls[-1] == 5 + bad_step and where != "the validation":
            self.model.backbone.fc.bias.data.fill_(math.nan)
        real_step(self, loader)
        if calls[-1] == 5 + bad_step:  # as the last step of the epoch may leave them
            self.model.backbone.fc.bias.data.fill_(math.nan)

    monkeypatch.setattr(Trainer, "step", step)
    reason = rf"the loss is not finite in {where} of epoch 2: {out} holds 1 finished epoch$"
    with pytest.raises(FastcifarError, match=reason):
        run(tiny_data, out)
    last = load_checkpoint(out / "last.pt")
    assert last["num_epochs"] == len(read_metrics(out)) == 1
    assert all(value.isfinite().all() for value in last["model"].values())
    assert run_state(out) == "diverged"
    again = rf"^{out} has diverged \(the loss is not finite in {where} of epoch 2\): start a new run$"
    with pytest.raises(FastcifarError, match=again):
        resume_training(out)


def test_an_existing_run_is_never_overwritten(finished_run: tuple[Path, Results], tiny_data: Path) -> None:
    out, _ = finished_run
    with pytest.raises(FastcifarError, match=rf"{out} is not empty: give a new directory$"):
        run(tiny_data, out)
    (out / "results.json").unlink()
    with pytest.raises(
        FastcifarError, match=rf"{out} is not empty: .*, or continue with `fastcifar train --resume {out}`$"
    ):
        run(tiny_data, out)


def test_two_runs_at_one_directory_are_refused(tiny_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with new_run_dir(out, "adam89"), pytest.raises(FastcifarError, match=rf"{out} belongs to another run"):
        run(tiny_data, out)


def test_temporary_files_of_a_killed_run_are_removed(tiny_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / ".last.pt.12345.tmp").write_bytes(b"half a checkpoint")
    (out / ".hub.12345.tmp").mkdir()  # half an export
    run(tiny_data, out, epochs=1)
    assert not list(out.glob(".*.tmp"))


def test_the_default_run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with new_run_dir(None, "sgd92") as path:
        assert path.parent == Path("runs")
        assert path.name.startswith("sgd92-2")
        assert path.is_dir()


def test_a_subset_is_the_fixed_choice(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planners = []

    class Planner(EpochPlanner):
        def __init__(self, indices: Tensor, *arguments: Any) -> None:
            super().__init__(indices, *arguments)
            planners.append(self)

    monkeypatch.setattr(loader_module, "EpochPlanner", Planner)
    out = tmp_path / "run"
    results = run(tiny_data, out, epochs=1, num_train_images=16, num_eval_images=4)
    train_split, (_, test) = load_train(tiny_data), load_val_and_test(tiny_data)
    assert torch.equal(planners[0].indices, choose_subset(torch.from_numpy(train_split.indices), 16))
    chosen = choose_subset(torch.from_numpy(test.indices), 4).numpy()
    predictions = read_predictions(out)
    np.testing.assert_array_equal(predictions.images, test.images[chosen])
    np.testing.assert_array_equal(predictions.labels, test.labels[chosen])
    assert results.num_test_images == 4


@pytest.mark.parametrize("deterministic", [False, True])
def test_two_runs_are_equal_to_the_last_bit(tiny_data: Path, tmp_path: Path, deterministic: bool) -> None:
    """On a CPU with or without --deterministic; torch's own switch is on while it trains, and off again after."""
    seen = []

    class Curious(Listener):
        def on_step_end(self, epoch: int, step: int) -> None:
            seen.append(torch.are_deterministic_algorithms_enabled())

    weights = []
    for name in ("first", "second"):
        run(tiny_data, tmp_path / name, Curious(), precision="bf16", epochs=2, deterministic=deterministic)
        weights.append(load_checkpoint(tmp_path / name / "last.pt")["model"])
    assert set(seen) == {deterministic}
    assert not torch.are_deterministic_algorithms_enabled()
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key]), key


def test_many_trainings_in_one_process_leak_nothing(tiny_data: Path, tmp_path: Path) -> None:
    seen = []
    for number in range(6):
        loader = ("resident", "streamed")[number % 2]
        run(tiny_data, tmp_path / str(number), epochs=1, num_train_images=8, loader=loader)
        gc.collect()
        num_tensors = sum(issubclass(type(each), Tensor) for each in gc.get_objects())
        seen.append((threading.active_count(), num_tensors, len(list(Path("/proc/self/fd").iterdir()))))
    assert seen[-1] == seen[1]


def test_a_full_disk_is_one_line_and_the_run_goes_on_elsewhere(tiny_data: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", small], check=False)
    if mounted.returncode != 0:
        pytest.skip("only root can mount a small disk")
    try:
        out = small / "run"
        with pytest.raises(FastcifarError, match=rf"cannot write {out}/(best|last)\.pt: No space left on device"):
            run(tiny_data, out)
        assert load_checkpoint(out / "last.pt")["num_epochs"] == 0  # the previous one is intact
        assert not [path for path in out.iterdir() if path.name.endswith(".tmp")]
        shutil.copytree(out, tmp_path / "run")
        with pytest.raises(FastcifarError, match="No space left on device"):
            resume_training(out, None, Listener())
        subprocess.run(["mount", "-o", "remount,ro", small], check=True)
        with pytest.raises(FastcifarError, match=r"cannot write .*: Read-only file system"):
            resume_training(out, None, Listener())
        with pytest.raises(FastcifarError, match=rf"cannot write {small}/new: Read-only file system"):
            run(tiny_data, small / "new")
    finally:
        subprocess.run(["umount", small], check=True)
    assert resume_training(tmp_path / "run", None, Listener())[1].last.epoch == 2


@pytest.mark.parametrize("failure", [None, "operation not permitted when stream is capturing"])
def test_a_run_says_whether_its_step_was_captured(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str | None
) -> None:
    class Graph:
        def __init__(self, run: Callable[[], None], steps_per_graph: int) -> None:
            if failure is not None:
                raise RuntimeError(failure)
            self.run = run

        def begin_epoch(self) -> None: ...

        def step(self, num_left: int) -> None:
            self.run()

    def warm_up(trainer: Trainer, loader: Loader) -> None:
        trainer._captures = True
        warm_up_on_a_cpu(trainer, loader)

    warm_up_on_a_cpu = Trainer.warm_up
    monkeypatch.setattr(Trainer, "warm_up", warm_up)
    monkeypatch.setattr(trainer_module, "CudaGraphStep", Graph)
    monkeypatch.setattr(evaluate, "_compiled", lambda: evaluate._classify)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    out, listener = tmp_path / "run", Listener()
    run(tiny_data, out, listener, compile=True, epochs=1)
    environment = read_config(out).environment
    assert environment["captured"] is (failure is None)
    found = environment.get("capture_failure")
    assert (found is None) if failure is None else str(found).startswith(f"{failure}, in test_run.py:")
    said = [f"the step is compiled, but not captured as a CUDA graph ({found})"] if failure else []
    assert [message for message in listener.messages if "captured" in message] == said


def test_a_failing_compiler_is_one_line(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no C compiler\nmore about it")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fail)
    with pytest.raises(FastcifarError, match=r"^torch\.compile failed \(no C compiler\): use compile=False \(--no-"):
        run(tiny_data, tmp_path / "run", compile=True)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_too_little_memory_is_one_line(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Trainer, "step", fail)
    with pytest.raises(FastcifarError, match=r"has too little memory free: try a smaller batch size"):
        run(tiny_data, tmp_path / "run")


@pytest.mark.gpu
@pytest.mark.parametrize("choices", [{}, {"loader": "streamed"}, {"compile": False}, {"deterministic": True}])
def test_a_run_on_cuda_is_stopped_and_resumed(tiny_data: Path, tmp_path: Path, choices: dict[str, Any]) -> None:
    """Stopped after an epoch: the host issues all steps of so short an epoch before it sees that one is finished."""
    if "loader" in choices:
        pytest.importorskip("ffcv")
    listener = Listener()
    listener.stop_after = 1
    with pytest.raises(Interrupted):
        run(tiny_data, tmp_path / "run", listener, device="auto", precision="bf16", **choices)
    settings, results = resume_training(tmp_path / "run", None, Listener())
    assert settings.device == "cuda:0"
    assert results.last.epoch == 2
    if choices.get("deterministic"):
        run(tiny_data, tmp_path / "whole", device="auto", precision="bf16", **choices)
        weights = [load_checkpoint(tmp_path / name / "last.pt")["model"] for name in ("run", "whole")]
        for key, value in weights[0].items():
            assert torch.equal(value, weights[1][key]), key
