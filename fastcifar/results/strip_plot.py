"""A strip plot of seeds: every seed's accuracy, the mean and its interval."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from fastcifar.errors import counted, one_line
from fastcifar.results.charts import shared_parts
from fastcifar.results.repeats import MEASURES, Comparison, Repeats, write_summary
from fastcifar.results.seed_tables import format_mean
from fastcifar.results.style import (
    BLUE,
    INK,
    MUTED,
    VERMILLION,
    WIDTH,
    add_axes,
    add_caption,
    build_figure,
    shorten,
    styled,
    write_figures,
)

_COLORS = BLUE, VERMILLION
_LEFT, _RIGHT = 1.35, 1.75  # inches left free for names and figures
_TOP, _FOOT, _ROW, _BETWEEN = 0.95, 0.62, 0.42, 0.42  # inches


def draw_seeds(groups: Sequence[Repeats], comparison: Comparison | None = None) -> Figure:
    """Draw the accuracies of all seeds, a panel for each of clean, augmented and official test images.

    Args:
        groups: one folder of seeds, or two.
        comparison: the comparison of the two; None if too few of their seeds are finished.

    Returns:
        A figure 8 inches wide.
    """
    panel_height = _ROW * len(groups) + 0.1
    height = _TOP + len(MEASURES) * panel_height + (len(MEASURES) - 1) * _BETWEEN + _FOOT
    with styled():
        figure = build_figure(height, _headline(groups, comparison), _title(groups))
        for panel, (measure, name) in enumerate(MEASURES.items()):
            top = _TOP + panel * (panel_height + _BETWEEN)
            axes = add_axes(figure, _LEFT, top, WIDTH - _LEFT - _RIGHT, panel_height)
            axes.set_title(name.capitalize(), pad=5)
            _plot(axes, groups, measure)
        add_caption(
            figure,
            "Dots: one seed each. Bar and ±: mean and its 95% interval by Student's t, of the seeds that finished. "
            "Cross: a seed whose loss was not finite.",
        )
    return figure


def write_seeds(out: Path, groups: Sequence[Repeats], comparison: Comparison | None = None) -> list[Path]:
    """Write the summary of one folder of seeds, or of two that are compared, and its strip plot.

    Args:
        out: the folder that gets `summary.json`, `charts/seeds.png` and `charts/seeds.svg`.
        groups: as for `draw_seeds`.
        comparison: as for `draw_seeds`.

    Returns:
        The paths of the files.

    Raises:
        FastcifarError: a file cannot be written.
    """
    figures = write_figures({"seeds": draw_seeds(groups, comparison)}, out / "charts")
    return [write_summary(out, groups, comparison), *figures]


def _headline(groups: Sequence[Repeats], comparison: Comparison | None) -> str:
    if comparison is not None:
        found = comparison.differences["test_accuracy"]
        low, high = found.interval_95
        p = "" if found.p is None else f", p = {found.p:.2g}"
        return f"Clean test accuracy {100 * found.difference:+.2f} points ({100 * low:+.2f} to {100 * high:+.2f}){p}"
    if len(groups) > 1:
        return "Too few finished seeds for a difference"
    means = groups[0].means()
    diverged = f", {groups[0].num_diverged} diverged" if groups[0].num_diverged else ""
    if not means:
        return f"No seed is finished{diverged}"
    mean = means["test_accuracy"]
    return f"Clean test accuracy {format_mean(mean)}, {counted(mean.n, 'seed')}{diverged}"


def _title(groups: Sequence[Repeats]) -> str:
    """What the groups have in common; for two, also their names."""
    shared = shared_parts([group.describe() for group in groups]).values()
    against = [" against ".join(group.name for group in reversed(groups))] if len(groups) > 1 else []
    return " · ".join([*against, *shared])


def _plot(axes: Axes, groups: Sequence[Repeats], measure: str) -> None:
    _set_range(axes, groups, measure)
    names = [shorten(one_line(group.name), 16) for group in groups]
    axes.set_yticks(range(len(groups)), names, fontsize=8.5, color=INK, va="center")
    axes.tick_params(axis="y", pad=8)
    beside = axes.get_yaxis_transform()  # from fractions of the width and row numbers
    for row, (group, color) in enumerate(zip(groups, _COLORS, strict=False)):
        values = group.values(measure)
        crosses = [0.012 + 0.025 * number for number in range(group.num_diverged)]
        gid = f"{measure}-{row + 1}"
        style: dict[str, Any] = {"color": color, "markersize": 6}
        axes.plot(values, [row + 0.16] * len(values), "o", alpha=0.55, mew=0, gid=gid, **style)
        axes.plot(crosses, [row + 0.16] * len(crosses), "x", transform=beside, gid=f"{gid}-diverged", **style)
        means = group.means()
        if not means:
            continue
        mean = means[measure]
        if mean.interval_95 is not None:
            axes.plot(mean.interval_95, (row - 0.2, row - 0.2), color=color, linewidth=2.2, gid=f"{gid}-interval")
        axes.plot(mean.mean, row - 0.2, "|", color=color, markersize=10, markeredgewidth=2.2, gid=f"{gid}-mean")
        label = format_mean(mean)
        axes.text(1.028, row, label, va="center", weight="bold", transform=beside, gid=f"{gid}-label")
        axes.text(1.255, row, f"n = {mean.n}", va="center", color=MUTED, transform=beside)


def _set_range(axes: Axes, groups: Sequence[Repeats], measure: str) -> None:
    """Show all dots and intervals, and at least half a point."""
    shown = [value for group in groups for value in group.values(measure)]
    for group in groups:
        mean = group.means().get(measure)
        shown += mean.interval_95 if mean is not None and mean.interval_95 is not None else ()
    low, high = (min(shown), max(shown)) if shown else (0.0, 1.0)
    margin = max(0.08 * (high - low), 0.0025 - (high - low) / 2)
    has_crosses = any(group.num_diverged for group in groups)
    left = low - margin - (0.08 * (high - low) if has_crosses else 0)
    axes.set(xlim=(left, high + margin), ylim=(len(groups) - 0.45, -0.55))
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if high - low > 0.05 else 1))
    axes.grid(axis="x")
