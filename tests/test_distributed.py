"""Several processes train as one. Checks that run on every rank are in ranks.py; torchrun starts them here."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.batches import read_epoch
from support.command_line import PROGRAMS, PYTHONPATH
from support.containers import NUM_TRAIN, TRAIN_IMAGES, TRAIN_LABELS
from support.training_runs import assert_same_run

from fastcifar.cli.torchrun import launcher_hint
from fastcifar.distributed import ALONE, World, init_distributed, world_from_env
from fastcifar.errors import FastcifarError
from fastcifar.kernels.gather import gather_augmented
from fastcifar.pipeline.augment import affine_coeffs, draw_order, sample_augmentation
from fastcifar.pipeline.loader import EpochPlanner, Loader, ResidentLoader, StreamedLoader
from fastcifar.recipes import get_recipe
from fastcifar.results.records import read_config, read_metrics
from fastcifar.training.device import resolve_device
from fastcifar.training.run import resume_training
from fastcifar.training.settings import resolve_settings, restore_settings

TRAIN = [
    "train",
    "--recipe",
    "sgd92",
    "--data",
    "data",
    "--epochs",
    "3",
    "--batch-size",
    "6",
    "--device",
    "cpu",
    "--precision",
    "fp32",
    "--eval-images",
    "7",
]


def be_rank(monkeypatch: pytest.MonkeyPatch, rank: int, size: int, **more: Any) -> None:
    """Give this process the environment that torchrun would."""
    place = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size} | more
    for name, value in place.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize("variable", ["SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_processes_that_do_not_know_of_each_other_get_a_hint(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert launcher_hint() == ""
    for value, is_several in (("1", False), ("4", True), ("4(x2)", False), ("", False)):
        monkeypatch.setenv(variable, value)
        assert launcher_hint().startswith(f"{variable} is 4, but without torchrun each process trains") is is_several
    monkeypatch.setenv(variable, "4")
    be_rank(monkeypatch, 0, 4)
    assert launcher_hint() == ""


# With an address, because the machine's own name may not be known to it.
STANDALONE = ("--standalone", "--local-addr", "127.0.0.1")


def torchrun(num_ranks: int, *arguments: str, cwd: Path, options: tuple[str, ...] = STANDALONE) -> Any:
    """Start torchrun; returns the process, whose output is read by `communicate`."""
    command = [sys.executable, "-m", "torch.distributed.run", *options, "--nproc-per-node", str(num_ranks)]
    environment = os.environ | {"PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *arguments], cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(process: Any, limit_s: float = 1500) -> str:
    """Wait until it ends with exit code 0; returns its output."""
    try:
        output, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun ends its processes
        output, _ = process.communicate()
    assert process.returncode == 0, output
    return str(output)


def script(name: str) -> str:
    return str(PROGRAMS / f"{name}.py")


def test_ranks_train_as_one_process_does_in_turn(tiny_data: Path, tmp_path: Path) -> None:
    finish(torchrun(3, script("ranks"), "cpu", str(tiny_data), cwd=tmp_path))
    assert read_config(tmp_path / "run").settings["world_size"] == 3
    assert [line.epoch for line in read_metrics(tmp_path / "run")] == [0, 1, 2]


@pytest.mark.gpu
def test_sync_bn_makes_ranks_equal_one_process(tmp_path: Path) -> None:
    finish(torchrun(2, script("ranks"), "sync-bn", cwd=tmp_path), limit_s=90)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 12])
def test_every_world_visits_the_same_images_with_the_same_draws(size: int) -> None:
    indices = torch.arange(NUM_TRAIN)

    def plan(world: World) -> tuple[torch.Tensor, torch.Tensor]:
        return EpochPlanner(indices, replace(get_recipe("sgd92"), global_batch_size=12), world).plan(5)

    order = draw_order(42, 5, indices)[:36]
    coeffs = affine_coeffs(sample_augmentation(42, 5, order, padding=4, max_angle_deg=15))
    plans = [plan(World(rank=rank, size=size)) for rank in range(size)]
    share = 12 // size
    for step in range(3):
        mine, batch = slice(step * share, (step + 1) * share), slice(step * 12, (step + 1) * 12)
        assert torch.equal(torch.cat([positions[mine] for positions, _ in plans]), order[batch])
        assert torch.equal(torch.cat([rows[mine] for _, rows in plans]), coeffs[batch])


@pytest.mark.parametrize("kind", ["resident", "streamed"])
def test_loaders_give_a_ranks_share(kind: str, tiny_data: Path) -> None:
    indices, images, labels = torch.arange(NUM_TRAIN), torch.from_numpy(TRAIN_IMAGES), torch.from_numpy(TRAIN_LABELS)
    planner = EpochPlanner(indices, replace(get_recipe("sgd92"), global_batch_size=12), World(rank=2, size=3))
    loader: Loader = ResidentLoader(images, labels.long(), planner)
    if kind == "streamed":
        loader = StreamedLoader(tiny_data / "train.beton", planner, torch.device("cpu"), num_workers=1)
    order = draw_order(42, 1, indices)
    coeffs = affine_coeffs(sample_augmentation(42, 1, order, padding=4, max_angle_deg=15))
    found = read_epoch(loader, 1)
    assert loader.num_steps == len(found) == 3
    for step, (share, share_labels) in enumerate(found):
        mine = slice(step * 12 + 8, step * 12 + 12)
        assert torch.equal(share, gather_augmented(images, order[mine], coeffs[mine]))
        assert torch.equal(share_labels, labels.long()[order[mine]])


@pytest.mark.slow
def test_two_nodes_train_a_run(tiny_data: Path, tmp_path: Path) -> None:
    """Two launchers over the loopback; in a job that may restart, killing a rank does not change the results."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    options = ("--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", "tiny")
    command = [script("tiny_fastcifar"), *TRAIN, "--out", "two-nodes"]
    nodes = [torchrun(1, *command, cwd=tmp_path, options=options) for _ in range(2)]
    outputs = [finish(node) for node in nodes]
    assert sorted(output.count("epoch 3/3") for output in outputs) == [0, 1]  # one rank speaks
    config = read_config(tmp_path / "two-nodes").settings
    assert (config["world_size"], config["global_batch_size"], config["device"]) == (2, 6, "cpu")

    command = [script("dying_rank"), *TRAIN, "--out", "restarted"]
    output = finish(torchrun(2, *command, cwd=tmp_path, options=("--standalone", "--max-restarts", "1")))
    assert "failed (exitcode: -9) local_rank: 1" in output
    assert len(read_config(tmp_path / "restarted").resumed) == 1
    assert_same_run(tmp_path / "restarted", tmp_path / "two-nodes")


@pytest.mark.slow
def test_ranks_train_several_seeds(tiny_data: Path, tmp_path: Path) -> None:
    """A second call trains more seeds, and does not change finished ones."""
    from fastcifar.results.repeats import read_repeats  # a GPU host may have no scipy

    command = [script("tiny_fastcifar"), "repeat", *TRAIN[1:], "--epochs", "1", "--out", "seeds"]
    for num_seeds, states in ((2, ["new"] * 2), (3, ["finished"] * 2 + ["new"])):
        output = finish(torchrun(2, *command, "--seeds", str(num_seeds), cwd=tmp_path))
        said = [line.split(": ")[1] for line in output.splitlines() if line.startswith("seed 4")]
        assert said == states  # one rank speaks
        repeats = read_repeats(tmp_path / "seeds")
        assert [(each.seed, each.state) for each in repeats.runs] == [(42 + n, "finished") for n in range(num_seeds)]
        assert repeats.config.settings["world_size"] == 2


@pytest.mark.slow
def test_a_dead_rank_ends_the_job_which_goes_on_with_any_number(tiny_data: Path, tmp_path: Path) -> None:
    process = torchrun(2, script("dying_rank"), *TRAIN, "--out", "run", cwd=tmp_path)
    output, _ = process.communicate(timeout=1500)
    seconds = time.time() - float((tmp_path / "died").read_text())
    assert process.returncode == 1
    assert seconds < 240, output  # gloo's limit is half an hour
    assert "rank      : 1 (local_rank: 1)" in output
    assert "run holds 1 finished epoch; continue with `fastcifar train --resume run`" in output
    before = read_metrics(tmp_path / "run")
    assert len(before) == 1

    shutil.copytree(tmp_path / "run", tmp_path / "on-3")
    command = [script("tiny_fastcifar"), "train", "--resume", "on-3"]
    finish(torchrun(3, *command, cwd=tmp_path))
    settings, _ = resume_training(tmp_path / "run")
    assert (settings.world_size, settings.num_threads) == (1, torch.get_num_threads())
    for run_dir in (tmp_path / "run", tmp_path / "on-3"):
        metrics = read_metrics(run_dir)
        assert metrics[:1] == before
        assert [line.epoch for line in metrics] == [0, 1, 2]
        assert json.loads((run_dir / "results.json").read_text())["last"]["epoch"] == 2
    assert read_config(tmp_path / "on-3").settings["world_size"] == 3


def test_a_process_without_torchrun_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert world_from_env() == ALONE
    be_rank(monkeypatch, 0, 1)
    with init_distributed() as world:
        assert world == ALONE
        assert world.broadcast("mine") == "mine"
        assert not torch.distributed.is_initialized()


def test_a_rank_knows_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    be_rank(monkeypatch, 5, 8, LOCAL_RANK=1, LOCAL_WORLD_SIZE=4, TORCHELASTIC_RESTART_COUNT=2)
    assert world_from_env() == World(rank=5, size=8, local_rank=1, local_size=4, num_restarts=2)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert world_from_env() == World(num_restarts=2)
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.delenv("LOCAL_RANK")
    with pytest.raises(FastcifarError, match="WORLD_SIZE is set, but LOCAL_RANK is not: start through torchrun"):
        world_from_env()
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(FastcifarError, match="WORLD_SIZE is set, but RANK is first: start through torchrun"):
        world_from_env()


def test_the_batch_size_is_that_of_all_ranks_together(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = get_recipe("sgd92")
    be_rank(monkeypatch, 0, 8)
    settings = resolve_settings(recipe, device="cpu")
    assert (settings.world_size, settings.recipe.global_batch_size) == (8, 128)
    be_rank(monkeypatch, 0, 3)
    advice = "global_batch_size 128 cannot be shared equally by 3 processes: give 126 or 129"
    with pytest.raises(FastcifarError, match=advice):
        resolve_settings(recipe, device="cpu")
    with pytest.raises(FastcifarError, match=r"shared equally by 3 processes: give 3$"):
        resolve_settings(recipe, device="cpu", global_batch_size=2)
    config = resolve_settings(recipe, device="cpu", global_batch_size=129).as_config()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(FastcifarError, match="shared equally by 2 processes: give 128 or 130"):
        restore_settings(config)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert restore_settings(config | {"num_threads": 77}).num_threads == torch.get_num_threads()


def test_every_rank_has_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    world = World(rank=7, size=8, local_rank=3, local_size=4)
    assert resolve_device("auto", world) == resolve_device("cuda", world) == torch.device("cuda:3")
    assert resolve_device("cpu", world) == torch.device("cpu")
    with pytest.raises(FastcifarError, match="device cuda:1 is one device for 8 processes: give cuda"):
        resolve_device("cuda:1", world)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(FastcifarError, match="device for local rank 3 does not exist: torch sees 2 CUDA devices"):
        resolve_device("auto", world)


def test_sync_bn_needs_cuda() -> None:
    with pytest.raises(FastcifarError, match="sync_bn needs CUDA: torch synchronises batch norm on CUDA"):
        resolve_settings(get_recipe("sgd92"), device="cpu", sync_bn=True)


def test_a_rank_that_cannot_join_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    be_rank(monkeypatch, 1, 2, MASTER_ADDR="127.0.0.1", MASTER_PORT="no-port")
    with (
        pytest.raises(FastcifarError, match=r"^rank 1 of 2 cannot join the others at 127\.0\.0\.1:no-port: .*$"),
        init_distributed(),
    ):
        pass
