"""Throughput and efficiency of 1, 2, ... processes on this machine; and a model of how far many GPUs would go.

    python benchmarks/scaling.py

Each world size is a job of its own under torchrun, one process a GPU, or one a CPU core with one thread; the sizes take
turns in rounds, and medians are quoted. Efficiency is the rate against that of one process times the number of them.
The model is arithmetic on assumptions, which it prints; it measures nothing.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from measure import describe_machine, load_images, print_table, spread, synchronise, write_results

from fastcifar.distributed import World, init_distributed
from fastcifar.pipeline.loader import EpochPlanner, ResidentLoader
from fastcifar.recipes import RECIPES, get_recipe
from fastcifar.training.allocator import freed_memory_kept
from fastcifar.training.device import is_bf16_fast, resolve_device
from fastcifar.training.trainer import Trainer

_WARM_STEPS = 2


@dataclass(frozen=True)
class Model:
    """Step time of a world of H100 nodes. Rates and latencies are assumptions; none was measured here.

    Attributes:
        img_per_s: one GPU's rate without what a step costs whatever its batch: the serial roofline.
        fixed_s: the optimizer's and autocast's passes over the weights, at 3 TB/s.
        backward_share: of the time for a batch; gradients travel meanwhile.
        gradient_bytes: float32.
        node_size: GPUs a node.
        node_bytes_per_s: of an all-reduce within a node, each GPU, each way.
        network_bytes_per_s: of a node's eight network cards together, each way: as many rings cross, each by its own.
        node_latency_s: of an all-reduce within a node.
        network_latency_s: of one between nodes.
    """

    img_per_s: float = 114_000
    fixed_s: float = 120e-6
    backward_share: float = 2 / 3
    gradient_bytes: float = 11_173_962 * 4
    node_size: int = 8
    node_bytes_per_s: float = 350e9
    network_bytes_per_s: float = 8 * 45e9
    node_latency_s: float = 30e-6
    network_latency_s: float = 60e-6

    def step_s(self, batch_size: int, world_size: int) -> tuple[float, float]:
        """Seconds of a step, and of its all-reduce (a ring: each rank sends 2 (W - 1) / W of the gradients)."""
        batch_s = batch_size / world_size / self.img_per_s
        if world_size == 1:
            return batch_s + self.fixed_s, 0.0
        is_one_node = world_size <= self.node_size
        bytes_per_s = self.node_bytes_per_s if is_one_node else min(self.node_bytes_per_s, self.network_bytes_per_s)
        latency_s = self.node_latency_s if is_one_node else self.network_latency_s
        reduce_s = latency_s + 2 * (world_size - 1) / world_size * self.gradient_bytes / bytes_per_s
        return batch_s + self.fixed_s + max(0.0, reduce_s - self.backward_share * batch_s), reduce_s


def show_model(model: Model, batch_sizes: tuple[int, ...] = (128, 1024)) -> None:
    """Print the model's assumptions, its table, and where another doubling gains less than a fifth."""
    print("\nA model of H100 nodes. Nothing of it was measured on a GPU; its assumptions:")
    print(
        f"  one GPU {model.img_per_s:,.0f} img/s (serial roofline) + {model.fixed_s * 1e6:.0f} us a step whatever "
        f"its batch; backward {model.backward_share:.0%}"
    )
    print(
        f"  {model.gradient_bytes / 1e6:.1f} MB of gradients, reduced while backward goes on; ring of "
        f"{model.node_bytes_per_s / 1e9:.0f} GB/s and {model.node_latency_s * 1e6:.0f} us in a node of "
        f"{model.node_size}, {model.network_bytes_per_s / 1e9:.0f} GB/s and {model.network_latency_s * 1e6:.0f} us "
        "between nodes"
    )
    for batch_size in batch_sizes:
        rows, rates, last_worth = [], {}, 1
        for world_size in (1, 2, 4, 8, 16, 32, 64):
            step_s, reduce_s = model.step_s(batch_size, world_size)
            rates[world_size] = batch_size / step_s
            if world_size == 2 * last_worth and rates[world_size] > 1.2 * rates[last_worth]:
                last_worth = world_size
            rows.append(
                [
                    str(world_size),
                    str(batch_size // world_size),
                    f"{step_s * 1e6:,.0f}",
                    f"{reduce_s * 1e6:,.0f}",
                    f"{rates[world_size]:,.0f}",
                    f"{rates[world_size] / rates[1]:.2f}×",
                ]
            )
        columns = ["GPUs", "batch a rank", "step, us", "all-reduce, us", "img/s", "against one"]
        print_table(f"\nglobal batch size {batch_size} (model)", columns, rows)
        print(f"another doubling gains less than a fifth beyond {last_worth} GPUs")


def serve(name: str, num_steps: int, data_dir: Path, out: Path) -> None:
    """One rank of a measured job: train, and let rank 0 write the rate of all."""
    with init_distributed() as world:
        device = resolve_device("auto", world)
        torch.backends.cudnn.benchmark = device.type == "cuda"  # as `train.train_model` sets it
        rate = measure_rate(name, num_steps, data_dir, world, device)
        if world.is_main:
            out.write_text(json.dumps(rate), encoding="utf-8")


def measure_rate(name: str, num_steps: int, data_dir: Path, world: World, device: torch.device) -> float:
    """Images a second of all ranks together."""
    recipe, split = get_recipe(name), load_images(data_dir, None)
    precision = "bf16" if is_bf16_fast(device) else "fp32"
    trainer = Trainer(recipe, device, precision=precision, compile=device.type == "cuda", world=world)
    planner = EpochPlanner(
        torch.from_numpy(split.indices).to(device),
        recipe.global_batch_size,
        seed=recipe.seed,
        padding=recipe.padding,
        max_angle_deg=recipe.max_angle_deg,
        world=world,
    )
    images, labels = torch.from_numpy(split.images).to(device), torch.from_numpy(split.labels).long().to(device)
    if device.type == "cuda":
        trainer.warm_up()
    trainer.begin_epoch()
    with freed_memory_kept(device.type), closing(ResidentLoader(images, labels, planner).epoch(0)) as batches:
        for _ in range(_WARM_STEPS):
            trainer.step(*next(batches))
        synchronise(device)
        world.barrier()
        start = time.perf_counter()
        for _ in range(num_steps):
            trainer.step(*next(batches))
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
@click.option("--steps", "num_steps", type=click.IntRange(1), help="A round.  [default: 300 on GPUs, 4 on a CPU]")
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
    """Measure, print a table, and then the model."""
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
    print_table(title, ["processes", "img/s", "spread", "gain", "efficiency"], rows)
    show_model(Model())
    if out is not None:
        write_results(
            out,
            {"machine": machine, "recipe": name, "batch_size": batch_size, "num_steps": num_steps, "results": results},
        )


if __name__ == "__main__":
    main()
