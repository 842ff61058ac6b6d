"""Epoch throughput of both recipes, side by side with what people use instead.

    python benchmarks/throughput.py

On a GPU whole epochs are timed; on a CPU some steps of an epoch, after its first ones. All contenders take turns in
rounds within one process, so that a machine's noise falls on all of them alike; medians over the rounds are quoted.
"""

import dataclasses
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import torch
from baselines import Contender, build_contenders
from matplotlib.figure import Figure
from measure import (
    choose_device,
    choose_precision,
    describe_machine,
    load_images,
    measure_ceiling,
    print_table,
    spread,
    synchronise,
    write_results,
)

from fastcifar.files import replacing
from fastcifar.prepare import Split
from fastcifar.recipes import RECIPES

_WARM_STEPS, _TIMED_STEPS = 1, 3  # on a CPU; on a GPU a whole epoch is timed


@dataclasses.dataclass
class Timing:
    """One round of one contender."""

    img_per_s: float
    waiting: float  # share of the time in which the device had no batch to train on


def time_epoch(contender: Contender, batch_size: int, device: torch.device, num_steps: int | None) -> Timing:
    """Train for an epoch, or for a few steps of one.

    On a GPU the wait for data is what passes on the device's own clock between the end of a step and the moment its
    next batch is there; on a CPU it is what the training thread spends on getting it.
    """
    is_cuda = device.type == "cuda"
    marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
    waiting = 0.0
    steps = 0
    with closing(contender.batches()) as batches:
        if num_steps is not None:
            for _ in range(_WARM_STEPS):
                contender.step(*next(batches))
        synchronise(device)
        start = time.perf_counter()
        while steps != num_steps:
            if is_cuda:
                before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                before.record()
            began = time.perf_counter()
            batch = next(batches, None)
            waiting += time.perf_counter() - began
            if batch is None:
                break
            if is_cuda:
                after.record()
                marks.append((before, after))
            contender.step(*batch)
            steps += 1
        synchronise(device)
        seconds = time.perf_counter() - start
    if is_cuda:
        waiting = sum(before.elapsed_time(after) for before, after in marks) / 1e3
    return Timing(img_per_s=steps * batch_size / seconds, waiting=waiting / seconds)


def measure_recipe(
    name: str, batch_size: int | None, split: Split, data_dir: Path, device: torch.device, *, rounds: int,
    num_workers: int, ceiling_img_per_s: float,
) -> dict[str, Any]:  # fmt: skip
    """Time every contender on a recipe, in rounds."""
    recipe = RECIPES[name]
    if batch_size is not None:
        recipe = dataclasses.replace(recipe, batch_size=batch_size)
    precision = choose_precision(device)
    print(f"{name}, batch size {recipe.batch_size}: building the contenders", flush=True)
    contenders = build_contenders(recipe, split, data_dir, device, precision=precision, num_workers=num_workers)
    num_steps = None if device.type == "cuda" else _TIMED_STEPS
    timings: dict[str, list[Timing]] = {contender.name: [] for contender in contenders}
    memory = dict.fromkeys(timings, 0)
    for number in range(-1, rounds):  # the first round warms caches, compilers and clocks, and does not count
        for contender in contenders:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            timing = time_epoch(contender, recipe.batch_size, device, 1 if num_steps and number < 0 else num_steps)
            contender.pop_loss()
            if number >= 0:
                timings[contender.name].append(timing)
                if device.type == "cuda":
                    memory[contender.name] = torch.cuda.max_memory_allocated(device)
        print(f"  round {number + 1} of {rounds} done", flush=True)
    ours = [timing.img_per_s for timing in timings["fastcifar resident"]]
    rows = []
    for contender in contenders:
        rates = [timing.img_per_s for timing in timings[contender.name]]
        rate = spread(rates)
        rows.append({
            "name": contender.name,
            "note": contender.note,
            "img_per_s": rate,
            "s_per_epoch": len(split.labels) // recipe.batch_size * recipe.batch_size / rate["median"],
            # Round by round, because both halves of a pair met the same machine.
            "fastcifar_is_faster_by": spread([mine / rate for mine, rate in zip(ours, rates, strict=True)]),
            "share_of_ceiling": rate["median"] / ceiling_img_per_s,
            "waiting_for_data": spread([timing.waiting for timing in timings[contender.name]]),
            "peak_memory_gib": memory[contender.name] / 2**30 if device.type == "cuda" else None,
        })  # fmt: skip
    return {"recipe": name, "batch_size": recipe.batch_size, "precision": precision, "contenders": rows}


def show(result: dict[str, Any]) -> None:
    """Print one recipe's table."""
    rows = []
    for row in result["contenders"]:
        rate, memory = row["img_per_s"], row["peak_memory_gib"]
        rows.append([
            row["name"], f"{rate['median']:,.1f}", f"{rate['min']:,.1f}–{rate['max']:,.1f}",
            f"{row['s_per_epoch']:,.1f}", f"{row['fastcifar_is_faster_by']['median']:.2f}×",
            f"{row['share_of_ceiling']:.0%}", f"{row['waiting_for_data']['median']:.1%}",
            "" if memory is None else f"{memory:.1f}",
        ])  # fmt: skip
    columns = ["", "img/s", "spread", "s/epoch", "fastcifar is", "of ceiling", "waiting", "GiB"]
    print_table(f"\n{result['recipe']}, batch size {result['batch_size']}", columns, rows)


def draw(results: list[dict[str, Any]], machine: dict[str, Any], path: Path) -> None:
    """A bar for each contender, a panel for each recipe and batch size."""
    figure = Figure(figsize=(8, 0.7 + 2.3 * len(results)), dpi=200, layout="constrained")
    device = f"{machine['device']}, {machine['num_threads']} threads, torch {machine['versions']['torch']}"
    figure.suptitle(f"Training throughput, images per second\n{device}, {machine['measured'][:10]}", fontsize=10)
    for axes, result in zip(figure.subplots(len(results), squeeze=False)[:, 0], results, strict=True):
        rows = result["contenders"][::-1]
        medians = [row["img_per_s"]["median"] for row in rows]
        errors = [
            [median - row["img_per_s"]["min"] for median, row in zip(medians, rows, strict=True)],
            [row["img_per_s"]["max"] - median for median, row in zip(medians, rows, strict=True)],
        ]
        colors = ["#0072B2" if row["name"].startswith("fastcifar") else "#B8C0C8" for row in rows]
        axes.barh([row["name"] for row in rows], medians, xerr=errors, color=colors, height=0.7,
                  error_kw={"ecolor": "#D55E00", "linewidth": 1.5})  # fmt: skip
        for position, (median, row) in enumerate(zip(medians, rows, strict=True)):
            axes.text(row["img_per_s"]["max"], position, f"  {median:,.0f}", va="center", fontsize=8)
        axes.set_title(f"{result['recipe']}, batch size {result['batch_size']}", loc="left", fontsize=9)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        axes.set_xlim(0, 1.12 * max(row["img_per_s"]["max"] for row in rows))
        axes.tick_params(left=False, labelsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


@click.command(help=__doc__.splitlines()[0])
@click.option("--recipe", "recipe_names", type=click.Choice(list(RECIPES)), multiple=True, help="[default: both]")
@click.option("--device", "device_name", default="auto", show_default=True)
@click.option("--batch-sizes", help="For example 128,256.  [default: the recipe's]")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--images", "num_images", type=click.IntRange(1), help="Of the training set.  [default: all 50,000]")
@click.option("--workers", "num_workers", type=click.IntRange(0), help="Of the loaders.  [default: the CPUs]")
@click.option("--data", "data_dir", type=click.Path(path_type=Path), default="data", show_default=True)
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write every round here, and a chart beside it.")
def main(
    recipe_names: tuple[str, ...], device_name: str, batch_sizes: str | None, rounds: int, num_images: int | None,
    num_workers: int | None, data_dir: Path, out: Path | None,
) -> None:  # fmt: skip
    """Measure, print a table for each recipe, and write them."""
    device = choose_device(device_name)
    split = load_images(data_dir, num_images)
    machine = describe_machine(device)
    precision = choose_precision(device)
    ceiling = measure_ceiling(device, precision)
    print(
        f"{machine['device']}: {ceiling['matmul_tflop_per_s']:.3g} TFLOP/s in {precision} matrix products, "
        f"{ceiling['copy_gb_per_s']:,.0f} GB/s copied: at most {ceiling['img_per_s']:,.0f} img/s by arithmetic alone",
        flush=True,
    )
    results = []
    for name in recipe_names or RECIPES:
        for batch_size in [int(size) for size in batch_sizes.split(",")] if batch_sizes else [None]:
            result = measure_recipe(
                name, batch_size, split, data_dir, device, rounds=rounds,
                num_workers=machine["num_cpus"] if num_workers is None else num_workers,
                ceiling_img_per_s=ceiling["img_per_s"],
            )  # fmt: skip
            show(result)
            results.append(result)
    if out is not None:
        measured = {"machine": machine, "ceiling": ceiling, "num_images": len(split.labels), "results": results}
        write_results(out, measured)
        draw(results, machine, out.with_suffix(".png"))


if __name__ == "__main__":
    main()
