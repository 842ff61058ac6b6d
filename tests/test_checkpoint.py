import os
import pickle
import resource
from pathlib import Path

import pytest
import torch

from fastcifar.errors import FastcifarError
from fastcifar.training.checkpoint import load_checkpoint, save_checkpoint


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
    """torch's own list of harmless calls has this one."""
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
