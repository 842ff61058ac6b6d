"""Measures the parts of a training step on the CPU, with torch's convolutions and with those that `auto` chooses.

python benchmarks/step_time.py --json benchmarks/results/cpu-2-cores-step-time.json --picture charts/step-time.png
"""

import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import click
import torch
from measure import describe_machine, write_results
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from fastcifar.errors import counted
from fastcifar.pipeline.loader import FixedBatch
from fastcifar.recipes import get_recipe
from fastcifar.results.style import BLUE, INK, add_axes, build_figure, styled, write_picture
from fastcifar.terminal import print_table
from fastcifar.training.allocator import freed_memory_kept
from fastcifar.training.convolution import choose_convolution
from fastcifar.training.device import choose_precision
from fastcifar.training.trainer import Trainer

PARTS = {
    "3x3 stride-1 convolutions": BLUE,
    "other convolutions": "#56B4E9",
    "batch norm": "#E69F00",
    "ReLU and additions": "#CC79A7",
    "optimizer": "#009E73",
    "the rest": "#B8C0C8",
}


def part_of(event: FunctionEvent) -> str | None:
    """The part of a step that an operator belongs to; None for "the rest" and for operators that contain others."""
    name: str = event.name
    shapes: Any = event.input_shapes
    if name.startswith("fastcifar::conv3x3"):
        return "3x3 stride-1 convolutions"
    if name in ("aten::convolution", "aten::convolution_backward"):
        weight = shapes[1 if name == "aten::convolution" else 2]
        is_plain = weight[0] == weight[1] and weight[2:] == [3, 3]
        return "3x3 stride-1 convolutions" if is_plain else "other convolutions"
    if "batch_norm" in name:
        return "batch norm"
    if name in ("aten::relu_", "aten::threshold_backward", "aten::add_", "aten::add"):
        return "ReLU and additions"
    return "optimizer" if name.startswith("aten::_fused_") else None


def time_parts(events: list[FunctionEvent], total_ms: float) -> dict[str, float]:
    """Milliseconds by part; an operator inside one that is already counted does not count."""
    found: dict[str, float] = defaultdict(float)
    for event in events:
        part, parent = part_of(event), event.cpu_parent
        while part is not None and parent is not None:
            if part_of(parent) is not None:
                part = None
            parent = parent.cpu_parent
        if part is not None:
            found[part] += event.cpu_time_total / 1e3
    found["the rest"] = total_ms - sum(found.values())
    return {part: found[part] for part in PARTS}


def measure_step(trainers: dict[str, Trainer], batch_size: int, rounds: int) -> dict[str, dict[str, float]]:
    """Median milliseconds of each part, over steps that take turns."""
    images = torch.randint(0, 256, (batch_size, 32, 32, 3), dtype=torch.uint8)
    loader = FixedBatch(images, torch.randint(0, 10, (batch_size,)))
    times: dict[str, list[dict[str, float]]] = {name: [] for name in trainers}
    with freed_memory_kept("cpu"):
        for number in range(-1, rounds):
            for name, trainer in trainers.items():
                trainer.begin_epoch()
                trainer.step(loader)  # removes the other trainer's data from the caches
                activities = [ProfilerActivity.CPU]
                with profile(activities=activities, record_shapes=True) as profiled, record_function("step"):
                    trainer.step(loader)
                events = profiled.events()
                total_ms = next(event.cpu_time_total for event in events if event.name == "step") / 1e3
                if number >= 0:
                    times[name].append(time_parts(list(events), total_ms))
    return {
        name: {part: statistics.median(row[part] for row in rows) for part in PARTS} for name, rows in times.items()
    }


def draw(measured: dict[str, dict[str, float]], title: str, path: Path) -> None:
    """Draw a bar for each kind of convolution, divided into parts."""
    totals = {name: sum(parts.values()) for name, parts in measured.items()}
    headline = "A training step: " + ", ".join(f"{total:,.0f} ms with {name}" for name, total in totals.items())
    with styled():
        figure = build_figure(2.75, headline, title)
        axes = add_axes(figure, 0.95, 0.85, 6.85, 1.25)
        axes.set(xlim=(0, max(totals.values())), ylim=(len(measured) - 0.5, -0.5), xticks=[])
        axes.set_yticks(range(len(measured)), list(measured), fontsize=8.5, color=INK)
        axes.spines[:].set_visible(False)
        for position, parts in enumerate(measured.values()):
            start = 0.0
            for part, color in PARTS.items():
                axes.barh(position, parts[part], left=start, height=0.7, color=color, label="" if position else part)
                if parts[part] > 0.04 * max(totals.values()):
                    ink = "white" if color == BLUE else INK
                    middle = start + parts[part] / 2
                    axes.text(middle, position, f"{parts[part]:,.0f}", ha="center", va="center", color=ink)
                start += parts[part]
        figure.legend(
            loc="lower left",
            ncols=6,
            bbox_to_anchor=(0.01, 0.02),
            fontsize=7.5,
            frameon=False,
            columnspacing=1.2,
            handlelength=1,
        )
    write_picture(path, figure)


@click.command(help=__doc__.splitlines()[0])
@click.option("--precision", type=click.Choice(["bf16", "fp32"]), help="[default: as training chooses]")
@click.option("--batch-size", type=click.IntRange(1), default=128, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write the times here.")
@click.option("--picture", type=click.Path(path_type=Path), help="Draw them here, as PNG.")
def main(precision: str | None, batch_size: int, rounds: int, out: Path | None, picture: Path | None) -> None:
    """Measure, print, write and draw."""
    device = torch.device("cpu")
    precision = precision or choose_precision(device)
    machine: dict[str, Any] = describe_machine(device)
    trainers = {
        label: Trainer(
            get_recipe("sgd92"),
            device,
            precision=precision,
            compile=False,
            convolution=choose_convolution(choice, device, precision),
        )
        for label, choice in {"torch": "torch", "Winograd": "auto"}.items()
    }
    measured = measure_step(trainers, batch_size, rounds)
    where = f"{machine['device']} ({machine['instruction_sets']}), {machine['num_threads']} threads"
    title = f"{batch_size} images in {precision} on {where}; milliseconds, {counted(rounds, 'round')}"
    rows = [[part, *(f"{measured[name][part]:,.0f}" for name in measured)] for part in PARTS]
    total = ["all", *(f"{sum(parts.values()):,.0f}" for parts in measured.values())]
    print(title)
    print_table(["", *measured], [*rows, total], num_text_columns=1)
    if out is not None:
        content = {"machine": machine, "precision": precision, "batch_size": batch_size, "rounds": rounds}
        write_results(out, content | {"ms": measured})
    if picture is not None:
        draw(measured, title, picture)


if __name__ == "__main__":
    main()
