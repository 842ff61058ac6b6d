"""Options and option types that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


class PathType(click.ParamType):  # type: ignore[type-arg] # generic in recent versions only
    """A path from a script: `--out=~/x` means the home folder, and an empty path (an unset variable) is refused."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Make a Path of it."""
        if not str(value).strip():
            self.fail("the path is empty (an unset variable?)", param, ctx)
        try:
            return Path(value).expanduser()
        except RuntimeError:
            self.fail(f"{value!r}: there is no such home folder", param, ctx)


PATH = PathType()

_Decorator = Callable[[Callable[..., None]], Callable[..., None]]


def _together(*options: _Decorator) -> _Decorator:
    """A decorator that adds several options to a command; `--help` shows them in this order."""

    def add(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def picture_option(name: str, help_text: str) -> _Decorator:
    """An option for a picture to write."""
    return click.option(name, type=PATH, metavar="OUT.png|OUT.svg", help=help_text)


def _precision(help_text: str) -> _Decorator:
    return click.option(
        "--precision",
        type=click.Choice(["auto", "bf16", "fp32"]),
        default="auto",
        help=help_text,
    )


_DEVICE = click.option("--device", default="auto", help="auto, cpu, cuda or cuda:<index>")

# The options of every command that trains.
training_options = _together(
    click.option(
        "--data",
        "data_dir",
        type=PATH,
        default="data",
        help="Prepared data; missing data is prepared first.",
    ),
    click.option("--epochs", type=int, help="Passes over the training set; the schedule is scaled to them."),
    click.option(
        "--train-images",
        "num_train_images",
        type=int,
        help="Train on a fixed subset of this many images.  [default: all 50,000]",
    ),
    click.option(
        "--eval-images",
        "num_eval_images",
        type=int,
        help="Evaluate on this many of val and of test.  [default: all 5,000]",
    ),
    click.option(
        "--batch-size",
        "global_batch_size",
        type=int,
        help="Images per step, on all devices together.  [default: the recipe's]",
    ),
    _DEVICE,
    click.option(
        "--loader",
        type=click.Choice(["resident", "streamed"]),
        default="resident",
        help="Keep the training set on the device, or stream it through FFCV.",
    ),
    _precision("auto is bf16 autocast if the hardware is fast at it."),
    click.option("--compile/--no-compile", default=None, help="torch.compile the step.  [default: on CUDA only]"),
    click.option("--deterministic", is_flag=True, help="The same bits each time on the same machine, also on CUDA."),
    click.option("--sync-bn", is_flag=True, help="Under torchrun: share batch norm's statistics over all GPUs."),
    click.option(
        "--log",
        "--logger",  # torchrun takes --log for an abbreviation of its own options
        "log",
        type=click.Choice(["tensorboard"]),
        help="Also log every epoch to the run directory; under torchrun use --logger.",
    ),
    click.option(
        "--convolution",
        type=click.Choice(["auto", "torch", "winograd"]),
        default="auto",
        help="Convolutions on a CPU; auto takes for each shape those measured to be faster.",
    ),
)

# The options of every command that runs a trained model.
inference_options = _together(
    _DEVICE,
    _precision("auto is the run's precision, unless that is bf16 and bf16 is slow here."),
    click.option("--json", "as_json", is_flag=True, help="Print JSON."),
)
