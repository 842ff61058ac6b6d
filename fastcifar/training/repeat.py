"""The same training with several seeds, one after the other, in one folder."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from fastcifar.distributed import init_distributed
from fastcifar.errors import DivergedError
from fastcifar.results.repeats import check_same_settings
from fastcifar.results.run_dir import run_state
from fastcifar.training.callbacks import Callback
from fastcifar.training.run import resume_training, train_model, with_usable_convolution
from fastcifar.training.settings import Settings


def train_seeds(
    settings: Settings, seeds: Sequence[int], data_dir: Path, folder: Path, callback: Callback | None = None
) -> None:
    """Train with the same settings and several seeds; each run's directory is `folder / "seed-<number>"`.

    A second call with the same arguments continues: finished seeds and those whose loss was not finite are kept, a
    stopped one is resumed. Under torchrun every process calls it.

    Args:
        settings: from `settings.resolve_settings`; their seed is not used.
        seeds: the seeds, all different.
        data_dir: as for `train_model`.
        folder: the folder to fill; created if missing.
        callback: its methods are called as the runs proceed; None for none.

    Raises:
        FastcifarError: the folder holds seeds with other settings, or as `train_model`, except for a loss that is not
            finite.
        Interrupted: as `train_model`.
    """
    with init_distributed() as world:
        callback = callback if callback and world.is_main else Callback()
        settings = with_usable_convolution(settings, world, callback)
        if world.is_main:
            check_same_settings(folder, settings.as_config())
        for number, seed in enumerate(seeds, start=1):
            run_dir = folder / f"seed-{seed}"
            state = world.broadcast(run_state(run_dir) if world.is_main else None)
            callback.on_message(f"seed {seed} ({number} of {len(seeds)}): {state}")
            if state not in ("finished", "diverged"):
                of_seed = replace(settings, recipe=replace(settings.recipe, seed=seed))
                try:
                    if state == "new":
                        train_model(of_seed, data_dir, run_dir, callback)
                    else:
                        resume_training(run_dir, data_dir, callback)  # an error if another process trains it
                except DivergedError as error:
                    callback.on_message(str(error))
                torch.compiler.reset()  # it compiles a function for at most 8 models
