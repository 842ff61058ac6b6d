"""Throughput and efficiency of 1, 2, ... processes on this machine.

    python benchmarks/scaling.py

Each world size is a separate job under torchrun, with one process per GPU, or one per CPU core with one thread. The
sizes take turns in rounds, and medians are quoted. Efficiency is the rate divided by (rate of one process x processes).
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import torch
from measure import describe_machine, load_images, spread, synchronise, write_results

from fastcifar.distributed import World, init_distributed
from fastcifar.pipeline.loader import EpochPlanner, ResidentLoader
from fastcifar.recipes import RECIPES, get_recipe
from fastcifar.terminal import print_table
from fastcifar.training.allocator import freed_memory_kept
from fastcifar.training.convolution import choose_convolution
from fastcifar.training.device import choose_precision, resolve_device, use_fast_kernels
from fastcifar.training.trainer import Trainer

_WARM_STEPS = 2


def serve(name: str, num_steps: int, data_dir: Path, out: Path) -> None:
    """One rank of a measured job: train, and let rank 0 write the rate of all."""
    with init_distributed() as world:
        device = resolve_device("auto", world)
        use_fast_kernels(device)
        rate = measure_rate(name, num_steps, data_dir, world, device)
        if world.is_main:
            out.write_text(json.dumps(rate), encoding="utf-8")


def measure_rate(name: str, num_steps: int, data_dir: Path, world: World, device: torch.device) -> float:
    """Images per second of all ranks together."""
    recipe, split = get_recipe(name), load_images(data_dir, None)
    precision = choose_precision(device)
    convolution = choose_convolution("auto", device, precision)
    trainer = Trainer(
        recipe, device, precision=precision, compile=device.type == "cuda", world=world, convolution=convolution
    )
    planner = EpochPlanner(torch.from_numpy(split.indices).to(device), recipe, world)
    images, labels = torch.from_numpy(split.images).to(device), torch.from_numpy(split.labels).long().to(device)
    loader = ResidentLoader(images, labels, planner)
    if device.type == "cuda":
        trainer.warm_up(loader)
    trainer.begin_epoch()
    with freed_memory_kept(device.type), closing(loader.epoch(0)) as steps:
        for _ in range(_WARM_STEPS):
            next(steps)
            trainer.step(loader)
        synchronise(device)
        world.barrier()
        start = time.perf_counter()
        for _ in range(num_steps):
            next(steps)
            trainer.step(loader)
        synchronise(device)
        return num_steps * recipe.global_batch_size / world.all_reduce_max(time.perf_counter() - start)


def run_job(name: str, world_size: int, num_steps: int, data_dir: Path, out: Path) -> float:
    """Start a world of that size; returns its rate."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world_size)]
    worker = [__file__, "--recipe", name, "--steps", str(num_steps), "--data", str(data_dir), "--worker", str(out)]
    done = subprocess.run(
        [*command, *worker], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise click.ClickException(f"{world_size} processes failed:\n{done.stderr[-2000:]}")
    return float(out.read_text(encoding="utf-8"))


@click.command(help=__doc__.splitlines()[0])
@click.option("--recipe", "name", type=click.Choice(list(RECIPES)), default="sgd92", show_default=True)
@click.option("--world-sizes", help="For example 1,2,4.  [default: 1, 2, 4, ... GPUs, or CPU cores]")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option(
    "--steps", "num_steps", type=click.IntRange(1), help="Steps per round.  [default: 300 on GPUs, 4 on a CPU]"
)
@click.option("--data", "data_dir", type=click.Path(path_type=Path), default="data", show_default=True)
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write every round here.")
@click.option("--worker", type=click.Path(path_type=Path), hidden=True)
def main(
    name: str,
    world_sizes: str | None,
    rounds: int,
    num_steps: int | None,
    data_dir: Path,
    out: Path | None,
    worker: Path | None,
) -> None:
    """Measure, and print a table."""
    is_cuda = torch.cuda.is_available()
    num_steps = num_steps or (300 if is_cuda else 4)
    if worker is not None:
        serve(name, num_steps, data_dir, worker)
        return
    num_places = torch.cuda.device_count() if is_cuda else len(os.sched_getaffinity(0))
    sizes = [2**power for power in range(8) if 2**power <= num_places]
    if world_sizes is not None:
        sizes = [int(size) for size in world_sizes.split(",")]
    load_images(data_dir, None)
    machine = describe_machine(resolve_device("auto"))
    rates: dict[int, list[float]] = {size: [] for size in sizes}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for size in sizes:
                rates[size].append(run_job(name, size, num_steps, data_dir, Path(folder) / "rate"))
            print(f"  round {number + 1} of {rounds} done", flush=True)
    results: list[dict[str, Any]] = []
    for size in sizes:
        gains = [rate / one for rate, one in zip(rates[size], rates[sizes[0]], strict=True)]  # within a round
        efficiency = statistics.median(gains) * sizes[0] / size
        results.append(
            {"world_size": size, "img_per_s": spread(rates[size]), "gain": spread(gains), "efficiency": efficiency}
        )
    rows = [
        [
            str(row["world_size"]),
            f"{row['img_per_s']['median']:,.1f}",
            f"{row['img_per_s']['min']:,.1f}–{row['img_per_s']['max']:,.1f}",
            f"{row['gain']['median']:.2f}×",
            f"{row['efficiency']:.0%}",
        ]
        for row in results
    ]
    batch_size = get_recipe(name).global_batch_size
    title = f"\n{name}, global batch size {batch_size}, {machine['device']}" + ("" if is_cuda else ", a thread each")
    print(title)
    print_table(["processes", "img/s", "spread", "gain", "efficiency"], rows, num_text_columns=1)
    if out is not None:
        write_results(
            out,
            {"machine": machine, "recipe": name, "batch_size": batch_size, "num_steps": num_steps, "results": results},
        )


if __name__ == "__main__":
    main()
