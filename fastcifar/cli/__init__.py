"""The command line: parse, call, print, exit. Heavy imports wait until a command needs them."""

import itertools
import logging
import os
import sys
import traceback

import click

from fastcifar import __version__
from fastcifar.cli import models, runs, setup, training
from fastcifar.cli.torchrun import process_rank
from fastcifar.errors import ArgumentError, FastcifarError, Interrupted, one_line, reason
from fastcifar.streams import open_standard_streams


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True},
    commands=[
        setup.prepare,
        setup.verify,
        setup.doctor,
        training.train,
        training.repeat,
        models.evaluate,
        models.predict,
        models.export,
        runs.runs,
        runs.charts,
        runs.report,
    ],
)
@click.version_option(__version__)
def cli() -> None:
    """Train the classic CIFAR-10 ResNet-18, fast and exactly."""


def main() -> None:
    """Run the command line; an error that a user can correct ends in one line and exit code 2."""
    open_standard_streams()
    os.environ.pop("MPLBACKEND", None)  # a notebook's backend may not be installed here; no window is opened
    os.environ["MATPLOTLIBRC"] = os.devnull  # the style is ours, and a damaged matplotlibrc fails the import
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # not about a cache or a matplotlibrc that is not needed
    try:
        sys.exit(cli.main(standalone_mode=False))
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message())
    except ArgumentError as error:
        _fail(f"{_option_of(error.argument)} {error.problem}")
    except FastcifarError as error:
        _fail(str(error))
    except Interrupted as error:
        click.echo(f"stopped: {one_line(str(error))}", err=True)
        sys.exit(128 + error.signal_number)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        sys.exit(130)
    except Exception as error:
        problem = _problem_of_this_machine(error)
        if problem is None:
            raise
        _fail(problem)


def _problem_of_this_machine(error: Exception) -> str | None:
    """An unexpected error as one line, if its cause is outside this package: a file, a stream or another package.

    A package may raise any type while it is imported, for example OSError if a shared library is missing.
    """
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    imported = itertools.dropwhile(lambda frame: frame.f_code.co_name != "<module>", frames)
    names = [str(frame.f_globals.get("__name__")) for frame in imported]
    if isinstance(error, ImportError):
        names.append(error.name or "")
    packages = [name.partition(".")[0] for name in names]
    foreign = next((name for name in packages if name not in ("", "fastcifar", "importlib")), None)
    if foreign is not None:
        return f"{foreign} cannot be imported ({reason(error)}): `fastcifar doctor` checks everything that is needed"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError):
        return f"{error.strerror or reason(error)}: `fastcifar doctor` may know why"
    return None


def _option_of(argument: str) -> str:
    """The option that sets a library function's argument; the argument's name if there is no option."""
    options = {param.name: param.opts[0] for command in cli.commands.values() for param in command.params}
    return options.get(argument, argument)


def _fail(message: str) -> None:
    rank = process_rank()
    who = "" if rank == "0" else f"rank {rank}: "
    click.echo(f"Error: {who}{one_line(' '.join(message.split()))}", err=True)
    sys.exit(2)
