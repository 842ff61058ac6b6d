"""Statistics of seeds and differences between two folders of them, as text tables for a terminal or a page."""

from collections.abc import Sequence
from dataclasses import dataclass

from fastcifar.errors import one_line
from fastcifar.results.comparable import describe_differing
from fastcifar.results.repeats import MEASURES, Comparison, Repeats, seeds_to_detect
from fastcifar.results.seed_statistics import Mean


@dataclass(frozen=True)
class SeedTable:
    """A table of text.

    Attributes:
        title: its title.
        columns: the headings; the first column names the row.
        rows: the rows, each with one cell per column.
        remarks: lines below it.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    remarks: list[str]


def build_tables(groups: Sequence[Repeats], comparison: Comparison | None = None) -> list[SeedTable]:
    """A table for each folder of seeds, and one for the difference between two."""
    tables = [_seeds(group) for group in groups]
    return tables if comparison is None else [*tables, _difference(groups, comparison)]


def _seeds(group: Repeats) -> SeedTable:
    target, means = group.target_accuracy, group.means()
    headings = MEASURES | {"seconds": "seconds"}
    if target:
        headings["epochs_to_target"] = f"epochs to {target:.1%}"
    rows = []
    for run in group.runs:
        cells = [run.state]
        if run.seconds is not None:
            cells = [*(f"{accuracy:.2%}" for accuracy in run.accuracies.values()), f"{run.seconds:,.0f}"]
            if target:
                cells.append(str(run.epochs_to_target or "never"))
        rows.append([str(run.seed), *cells, *[""] * (len(headings) - len(cells))])

    def add_row(name: str, values: dict[str, float | None], unit: str = "%") -> None:
        if any(value is not None for value in values.values()):
            rows.append([name, *(_cell(key, values.get(key), unit) for key in headings)])

    add_row("mean", {name: mean.mean for name, mean in means.items()})
    add_row("standard deviation", {name: mean.sd for name, mean in means.items()}, "")
    add_row("standard error", {name: mean.standard_error for name, mean in means.items()}, "")
    for end, name in enumerate(("95% interval from", "to")):
        add_row(name, {key: mean.interval_95 and mean.interval_95[end] for key, mean in means.items()})
    remarks = [f"seed {run.seed} diverged: {run.reason}" for run in group.runs if run.state == "diverged"]
    if len(group.finished) < len(group.runs):
        remarks.append(f"the statistics cover the finished seeds only: {len(group.finished)} of {len(group.runs)}")
    if means:
        remarks.append(_seeds_to_detect(means["test_accuracy"].sd))
    title = f"{one_line(group.name)}: {one_line(' · '.join(group.describe().values()))}"
    return SeedTable(title, ["seed", *headings.values()], rows, [one_line(remark) for remark in remarks])


def _cell(name: str, value: float | None, unit: str) -> str:
    """Accuracies in percent or points, other values unchanged."""
    if value is None:
        return ""
    return f"{100 * value:.2f}{unit}" if name in MEASURES else f"{value:,.1f}"


def _difference(groups: Sequence[Repeats], comparison: Comparison) -> SeedTable:
    rows = []
    for measure, name in MEASURES.items():
        found = comparison.differences[measure]
        low, high = found.interval_95
        interval = f"{100 * low:+.2f} to {100 * high:+.2f}"
        rows.append([name, f"{100 * found.difference:+.2f}", interval, "" if found.p is None else f"{found.p:.2g}"])
    clean = comparison.differences["test_accuracy"]
    differing = describe_differing(comparison.differing)
    first, second = (one_line(group.name) for group in groups)
    test = "paired t test" if comparison.paired else "Welch's t test"
    return SeedTable(
        f"{second} minus {first}, points of accuracy ({test}, {clean.n[1]} and {clean.n[0]} seeds)",
        ["test images", "difference", "95% interval", "p"],
        rows,
        [
            _seeds_to_detect(clean.sd, pairs=comparison.paired),
            f"settings that differ: {one_line(differing)}" if differing else "no setting differs",
        ],
    )


def format_mean(mean: Mean) -> str:
    """An accuracy with half the width of its interval, in points."""
    if mean.interval_95 is None:
        return f"{mean.mean:.2%}"
    low, high = mean.interval_95
    return f"{mean.mean:.2%} ± {50 * (high - low):.2f}"


def _seeds_to_detect(sd: float | None, *, pairs: bool = False) -> str:
    """How many seeds it takes to detect a difference of clean accuracy."""
    if sd is None:
        return "with one seed there is no standard deviation and no interval"
    numbers = seeds_to_detect(sd, pairs=pairs)
    points = ", ".join(f"{100 * each:g}" for each in numbers)
    seeds = ", ".join(f"{number:,}" if number else "over a million" for number in numbers.values())
    kind = "pairs of seeds" if pairs else "seeds of each"
    return f"{kind} needed to detect {points} points of clean accuracy: {seeds} (power 0.8 at the 0.05 level)"
