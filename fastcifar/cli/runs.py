"""Commands on runs."""

from pathlib import Path

import click

from fastcifar.cli.options import PATH

_RUNS = click.argument("run_dirs", metavar="RUN...", nargs=-1, required=True, type=PATH)


@click.command(short_help="List runs.")
@click.argument("folder", type=PATH, default="runs")
def runs(folder: Path) -> None:
    """List the runs in FOLDER (default: runs), the newest first."""
    from fastcifar.results.run_dir import list_runs
    from fastcifar.terminal import show_runs

    show_runs(folder, list_runs(folder))


@click.command(short_help="Draw charts of runs.")
@_RUNS
@click.option(
    "--out",
    type=PATH,
    help="Output folder.  [default: RUN/charts; for several runs charts-compared]",
)
def charts(run_dirs: tuple[Path, ...], out: Path | None) -> None:
    """Draw a run's charts again, or up to 8 runs in one chart that compares them, as PNG and SVG."""
    from fastcifar.results.charts import left_out, write_charts, write_comparison

    if len(run_dirs) == 1:
        lines = [*write_charts(run_dirs[0], out), left_out(run_dirs[0])]
    else:
        lines = [*write_comparison(run_dirs, out or Path("charts-compared"))]
    for line in filter(None, lines):
        click.echo(line)


@click.command(short_help="Write an HTML page about runs.")
@_RUNS
@click.option(
    "--out",
    type=PATH,
    help="Output file.  [default: RUN/report.html; for several runs report.html]",
)
def report(run_dirs: tuple[Path, ...], out: Path | None) -> None:
    """Write one HTML page about a run or a folder of seeds, or comparing several; it needs no network.

    It compares up to 8 runs, or two folders of seeds: give both, or the folder that holds them.
    """
    from fastcifar.results.report import write_report

    out = out or (run_dirs[0] if len(run_dirs) == 1 else Path()) / "report.html"
    write_report(run_dirs, out)
    click.echo(out)
