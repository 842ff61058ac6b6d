"""The command line on the tiny dataset; rank 1 is killed in its second epoch, unless torchrun has restarted it.

It writes the time of the kill, in seconds since the Unix epoch, to the file `died` in the working directory.
"""

import os
import signal
import time
from pathlib import Path

from support.tiny_world import tiny_world

from fastcifar.cli import main
from fastcifar.distributed import world_from_env
from fastcifar.pipeline.loader import Loader
from fastcifar.training.trainer import Trainer

_train_on = Trainer.step
_num_steps = 0


def step(self: Trainer, loader: Loader) -> None:
    """The trainer's step, or a kill."""
    global _num_steps
    _num_steps += 1
    world = world_from_env()
    if world.rank == 1 and world.num_restarts == 0 and _num_steps == 9:
        Path("died").write_text(str(time.time()))
        os.kill(os.getpid(), signal.SIGKILL)
    _train_on(self, loader)


if __name__ == "__main__":
    Trainer.step = step  # type: ignore[method-assign]
    with tiny_world():
        main()
