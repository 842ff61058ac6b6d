"""Measures the epoch throughput of both recipes, side by side with the alternatives.

    python benchmarks/throughput.py

On a GPU whole epochs are timed; on a CPU as many steps as five minutes allow, or the fewest that are valid. Each
contender has a separate process; they take turns in rounds, so that a machine's noise affects all of them equally.
Medians over the rounds are quoted. The ceiling is the rate of the network's convolutions alone, as if all else took no
time. A contender above it has faster convolutions.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import click
import torch
from baselines import CONTENDERS, TORCH_CONVOLUTIONS
from budget import NUM_ROUNDS, Plan, make_plan, steps_of_round
from convolutions import measure_convolutions
from isolated import IsolatedContender, Task, Timing
from matplotlib.axes import Axes
from measure import (
    describe_machine,
    load_images,
    measure_ceiling,
    spread,
    write_results,
)
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from fastcifar.recipes import RECIPES
from fastcifar.results.style import (
    BLUE,
    FAINT,
    INK,
    VERMILLION,
    add_axes,
    add_caption,
    build_figure,
    styled,
    write_picture,
)
from fastcifar.terminal import print_table
from fastcifar.training.device import choose_precision, resolve_device

_CEILING_S = 0.3  # for each convolution and pass
# A step's time relative to torch's convolutions, as an estimate before anything is built.
_STEP_BY_CONVOLUTIONS = {"published": 3.0}
_USUAL_STEP = 1.5


def measure_recipe(
    contenders: dict[str, IsolatedContender],
    failures: dict[str, str],
    task: Task,
    *,
    rounds: int,
    ceiling_img_per_s: float,
    seconds: float = 0.0,
) -> dict[str, Any]:
    """Time every contender on a recipe, in rounds; those that fail move to `failures`, with the reason.

    On a CPU they share the seconds equally; each makes as many steps as fit in its share, and at least two.
    """
    end = time.monotonic() + seconds
    recipe, batch_size = task.recipe, task.recipe.global_batch_size
    print(f"{recipe.name}, batch size {batch_size}: building the contenders", flush=True)

    def tried(name: str, work: Callable[..., Any], *arguments: Any) -> Any:
        """The result of `work`; a contender that fails is removed, the others continue."""
        try:
            return work(*arguments)
        except RuntimeError as error:
            print(f"  {error}", flush=True)
            failures[name] = str(error)
            contenders.pop(name).close()
            return None

    is_cuda = task.device.type == "cuda"
    for name, contender in list(contenders.items()):
        tried(name, contender.begin, task)
        if is_cuda and name in contenders:  # compilers time kernels, so they must have the device for themselves
            tried(name, contender.wait)
    for name, contender in list(contenders.items()):
        if not is_cuda:
            tried(name, contender.wait)
    timings: dict[str, list[Timing]] = {name: [] for name in contenders}
    num_steps: dict[str, int | None] = dict.fromkeys(contenders, None if is_cuda else 1)
    with Progress(TextColumn("  {task.description}"), BarColumn(), TimeRemainingColumn(), transient=True) as progress:
        bar = progress.add_task("warming up", total=None)
        for number in range(-1, rounds):  # the first round warms caches, compilers and clocks, and does not count
            for name, contender in list(contenders.items()):
                timing = tried(name, contender.time_round, num_steps[name])
                progress.advance(bar)
                if timing is not None and number >= 0:
                    timings[name].append(timing)
                elif timing is not None and not is_cuda:
                    share_s = (end - time.monotonic()) / (rounds * len(contenders))
                    num_steps[name] = steps_of_round(batch_size / timing.img_per_s, share_s)
            if number < 0:
                progress.reset(bar, total=rounds * len(contenders))
            progress.update(bar, description=f"round {min(number + 2, rounds)} of {rounds}")
            if not progress.console.is_terminal:
                print(f"  round {number + 1} of {rounds} done", flush=True)
    if "fastcifar resident" in failures:
        raise click.ClickException(failures["fastcifar resident"])
    ours = [timing.img_per_s for timing in timings["fastcifar resident"]]
    rows = []
    for name in contenders:
        rates = [timing.img_per_s for timing in timings[name]]
        rate = spread(rates)
        rows.append(
            {
                "name": name,
                "note": CONTENDERS[name].note.format(precision=task.precision),
                "img_per_s": rate,
                "s_per_epoch": len(task.split.labels) // batch_size * batch_size / rate["median"],
                # Round by round, because both halves of a pair ran under the same conditions.
                "fastcifar_is_faster_by": spread([mine / rate for mine, rate in zip(ours, rates, strict=True)]),
                "share_of_ceiling": rate["median"] / ceiling_img_per_s,
                "waiting_for_data": spread([timing.waiting for timing in timings[name]]),
                "peak_memory_gib": max(timing.peak_memory_gib for timing in timings[name]),
            }
        )
    return {
        "recipe": recipe.name,
        "batch_size": batch_size,
        "precision": task.precision,
        "contenders": rows,
        "failures": dict(failures),
    }


def show(result: dict[str, Any]) -> None:
    """Print one recipe's table."""
    rows = []
    for row in result["contenders"]:
        rate = row["img_per_s"]
        rows.append(
            [
                row["name"],
                f"{rate['median']:,.1f}",
                f"{rate['min']:,.1f}–{rate['max']:,.1f}",
                f"{row['s_per_epoch']:,.1f}",
                f"{row['fastcifar_is_faster_by']['median']:.2f}×",
                f"{row['share_of_ceiling']:.0%}",
                f"{row['waiting_for_data']['median']:.1%}",
                f"{row['peak_memory_gib']:.1f}",
            ]
        )
    columns = ["", "img/s", "spread", "s/epoch", "fastcifar is", "of ceiling", "waiting", "GiB"]
    print(f"\n{result['recipe']}, batch size {result['batch_size']}")
    print_table(columns, rows, num_text_columns=1)


def draw(results: list[dict[str, Any]], machine: dict[str, Any], path: Path) -> None:
    """Draw a bar for each contender, in a panel for each recipe and batch size."""
    left, width, top, row_height, between, foot = 1.95, 5.4, 1.0, 0.27, 0.42, 0.42  # inches
    heights = [row_height * len(result["contenders"]) for result in results]
    sets = f" ({machine['instruction_sets']})" if machine["instruction_sets"] else ""
    device = f"{machine['device']}{sets}, {machine['num_threads']} threads, torch {machine['versions']['torch']}"
    with styled():
        height = top + sum(heights) + between * (len(results) - 1) + foot
        figure = build_figure(height, _headline(results[0]), f"{device}, {machine['measured'][:10]}")
        for result, panel_height in zip(results, heights, strict=True):
            axes = add_axes(figure, left, top, width, panel_height)
            axes.set_title(f"{result['recipe']}, batch size {result['batch_size']}, {result['precision']}", pad=4)
            _plot_rates(axes, result["contenders"])
            top += panel_height + between
        rounds = len(results[0]["contenders"][0]["img_per_s"]["rounds"])
        add_caption(figure, f"Bars: images per second, median of {rounds} rounds. Lines: slowest and fastest round.")
    write_picture(path, figure)


def _headline(result: dict[str, Any]) -> str:
    gains = {row["name"]: row["fastcifar_is_faster_by"]["median"] for row in result["contenders"]}
    if "tuned PyTorch" not in gains or "published" not in gains:
        return "Training throughput"
    tuned, published = gains["tuned PyTorch"], gains["published"]
    return f"fastcifar is {tuned:.2f}× as fast as tuned PyTorch, {published:.2f}× as the published form"


def _plot_rates(axes: Axes, rows: list[dict[str, Any]]) -> None:
    rates = [row["img_per_s"] for row in rows]
    axes.set(xlim=(0, max(rate["max"] for rate in rates)), ylim=(len(rows) - 0.5, -0.5), xticks=[])
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=8.5, color=INK)
    axes.tick_params(axis="y", pad=6)
    axes.spines[:].set_visible(False)
    for position, (row, rate) in enumerate(zip(rows, rates, strict=True)):
        color = BLUE if row["name"].startswith("fastcifar") else FAINT
        axes.barh(position, rate["median"], height=0.66, color=color)
        axes.plot((rate["min"], rate["max"]), (position, position), color=VERMILLION, linewidth=1.5, clip_on=False)
        axes.annotate(
            f"{rate['median']:,.0f}", (max(rate["median"], rate["max"]), position), (6, 0),
            textcoords="offset points", va="center", annotation_clip=False,
        )  # fmt: skip


def plan_contenders(
    device: torch.device,
    recipe_names: Sequence[str],
    batch_size: int,
    convolutions: dict[str, Any],
    rounds: int,
    minutes: float | None,
    begun: float,
) -> Plan:
    """Decide what to measure, and say how long it will take."""
    names = [name for name in CONTENDERS if device.type == "cpu" or name != TORCH_CONVOLUTIONS]
    if device.type != "cpu":
        return Plan(tuple(recipe_names), tuple(names), (), 0.0, 0.0)
    convolutions_s = batch_size / convolutions["torch_img_per_s"]
    step_s = {name: _STEP_BY_CONVOLUTIONS.get(name, _USUAL_STEP) * convolutions_s for name in names}
    given_s = None if minutes is None else 60 * minutes - (time.monotonic() - begun)
    plan = make_plan(step_s, recipe_names, rounds=rounds, given_s=given_s)
    why = ", the least for a valid measurement" if plan.seconds == plan.least_s else ""
    print(f"this will take about {plan.seconds / 60:.0f} minutes{why}", flush=True)
    if plan.left_out:
        print(f"left out for lack of time: {', '.join(plan.left_out)}", flush=True)
    return plan


@click.command(help=__doc__.splitlines()[0])
@click.option("--recipe", "recipe_names", type=click.Choice(list(RECIPES)), multiple=True, help="[default: both]")
@click.option("--device", "device_name", default="auto", show_default=True)
@click.option("--batch-sizes", help="For example 128,256.  [default: the recipe's]")
@click.option("--rounds", type=click.IntRange(1), default=NUM_ROUNDS, show_default=True)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0.1),
    help="On a CPU: leave out contenders or a recipe to keep to this.  [default: 5, or the least that is valid]",
)
@click.option("--images", "num_images", type=click.IntRange(1), help="Training images.  [default: all 50,000]")
@click.option("--workers", "num_workers", type=click.IntRange(0), help="Workers of the loaders.  [default: the CPUs]")
@click.option("--data", "data_dir", type=click.Path(path_type=Path), default="data", show_default=True)
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write every round here, and a chart beside it.")
def main(
    recipe_names: tuple[str, ...],
    device_name: str,
    batch_sizes: str | None,
    rounds: int,
    minutes: float | None,
    num_images: int | None,
    num_workers: int | None,
    data_dir: Path,
    out: Path | None,
) -> None:
    """Measure, print a table for each recipe, and write them."""
    device = resolve_device(device_name)
    split = load_images(data_dir, num_images)
    machine = describe_machine(device)
    precision = choose_precision(device)
    begun = time.monotonic()
    sizes = [int(size) for size in batch_sizes.split(",")] if batch_sizes else [None]
    torch.backends.cudnn.benchmark = True
    ceiling: dict[str, Any] = dict(measure_ceiling(device, precision))
    usual_size = sizes[0] or RECIPES[(*recipe_names, *RECIPES)[0]].global_batch_size
    print("measuring the network's convolutions", flush=True)
    convolutions = measure_convolutions(
        device, precision, usual_size, seconds=0.0 if minutes is not None and minutes < 1 else _CEILING_S
    )
    ceiling["convolutions"] = convolutions
    print(
        f"{machine['device']} ({machine['instruction_sets'] or 'instruction sets unknown'}): "
        f"{ceiling['matmul_tflop_per_s']:.3g} TFLOP/s in {precision} matrix products, "
        f"{ceiling['copy_gb_per_s']:,.0f} GB/s copied; the network's convolutions alone run at "
        f"{convolutions['img_per_s']:,.0f} img/s (torch's at {convolutions['torch_img_per_s']:,.0f}): the ceiling",
        flush=True,
    )
    plan = plan_contenders(device, recipe_names or tuple(RECIPES), usual_size, convolutions, rounds, minutes, begun)
    results = []
    failures: dict[str, str] = {}
    with ExitStack() as stack:
        contenders = {name: stack.enter_context(closing(IsolatedContender(name))) for name in plan.contenders}
        for name in plan.recipes:
            for batch_size in sizes:
                recipe = RECIPES[name]
                task = Task(
                    recipe if batch_size is None else dataclasses.replace(recipe, global_batch_size=batch_size),
                    split,
                    data_dir,
                    device,
                    precision,
                    machine["num_cpus"] if num_workers is None else num_workers,
                )
                result = measure_recipe(
                    contenders,
                    failures,
                    task,
                    rounds=rounds,
                    ceiling_img_per_s=convolutions["img_per_s"],
                    seconds=plan.seconds / len(plan.recipes) / len(sizes),
                )
                show(result)
                results.append(result)
                if out is not None:  # keep what is measured even if the next part fails
                    measured = {"machine": machine, "ceiling": ceiling, "num_images": len(split.labels)}
                    write_results(out, measured | {"results": results})
                    draw(results, machine, out.with_suffix(".png"))


if __name__ == "__main__":
    main()
