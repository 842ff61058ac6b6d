import os
import pickle
import resource
import threading
from pathlib import Path

import pytest
import torch
from support.training_runs import tiny_settings

from fastcifar.errors import FastcifarError
from fastcifar.results.records import EpochMetrics
from fastcifar.training import checkpoint
from fastcifar.training.callbacks import Callback
from fastcifar.training.checkpoint import load_checkpoint, save_checkpoint
from fastcifar.training.run import train_model


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    save_checkpoint(path, {"model": {"w": torch.arange(3.0)}, "epoch": 4, "settings": {"device": "cpu"}})
    content = load_checkpoint(path)
    assert torch.equal(content.pop("model")["w"], torch.arange(3.0))
    assert content == {"format": 2, "epoch": 4, "settings": {"device": "cpu"}}
    assert [file.name for file in tmp_path.iterdir()] == ["x.pt"]


def test_a_failed_save_keeps_the_former_one(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    save_checkpoint(path, {"model": {}, "epoch": 1})
    with pytest.raises((AttributeError, pickle.PicklingError)):
        save_checkpoint(path, {"model": {}, "epoch": lambda: 2})
    assert load_checkpoint(path)["epoch"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["x.pt"]


def test_a_disk_that_fills_up_is_one_line_and_keeps_the_former_one(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    save_checkpoint(path, {"model": {}, "epoch": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # writing fails half-way, as on a full disk
    try:
        with pytest.raises(FastcifarError, match=rf"cannot write {path}: File too large"):
            save_checkpoint(path, {"model": {"w": torch.zeros(10_000)}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert load_checkpoint(path)["epoch"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["x.pt"]


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch evil",)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_checkpoint(tmp_path / "x.pt", {"model": Evil()})
    with pytest.raises(FastcifarError, match=r"x\.pt is damaged, or not a fastcifar checkpoint of format 2"):
        load_checkpoint(tmp_path / "x.pt")
    assert not (tmp_path / "evil").exists()


class Hungry:
    def __reduce__(self) -> tuple[object, tuple[int]]:
        return bytearray, (1 << 40,)


def test_a_checkpoint_that_asks_for_memory_is_refused(tmp_path: Path) -> None:
    """torch's list of harmless calls contains this one."""
    save_checkpoint(tmp_path / "x.pt", {"model": {}, "x": Hungry()})
    with pytest.raises(FastcifarError, match="is damaged, or not a fastcifar checkpoint"):
        load_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize("size", [0, 1, 100, 500, -1])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "x.pt"
    save_checkpoint(path, {"model": {"w": torch.arange(3000.0)}})
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(FastcifarError, match=r"x\.pt is damaged, or not a fastcifar checkpoint of format 2"):
        load_checkpoint(path)


def test_another_format_or_no_file_is_refused(tmp_path: Path) -> None:
    torch.save({"weights": {}}, tmp_path / "x.pt")
    with pytest.raises(FastcifarError, match=r"x\.pt is damaged, or not a fastcifar checkpoint of format 2"):
        load_checkpoint(tmp_path / "x.pt")
    with pytest.raises(FastcifarError, match=r"cannot read .*y\.pt: No such file"):
        load_checkpoint(tmp_path / "y.pt")


def test_a_write_that_fails_surfaces_at_the_next_epoch_and_leaves_no_thread(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The epoch that starts a write does not wait for it; the next epoch reports the writer's error."""
    failed = threading.Event()

    def save(path: Path, content: dict[str, object]) -> None:
        if content.get("num_epochs", 0) == 1:
            assert threading.current_thread() is not threading.main_thread()
            failed.set()
            raise FastcifarError(f"cannot write {path}: No space left on device")

    class WaitsForTheWriter(Callback):
        epochs = 0

        def on_step_end(self, epoch: int, step: int) -> None:
            if epoch == 1:
                assert failed.wait(timeout=60)

        def on_epoch_end(self, metrics: EpochMetrics) -> None:
            self.epochs += 1

    monkeypatch.setattr(checkpoint, "save_checkpoint", save)
    monkeypatch.setattr(checkpoint, "CHECKPOINT_INTERVAL_S", 0.0)
    callback = WaitsForTheWriter()
    with pytest.raises(FastcifarError, match=r"cannot write .*last\.pt: No space left on device"):
        train_model(tiny_settings(), tiny_data, tmp_path / "run", callback)
    assert callback.epochs == 1
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("checkpoint")]
