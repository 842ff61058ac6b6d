"""What a run works with, built from its settings: the loader, the splits to evaluate on, the trainer."""

import contextlib
import time
from pathlib import Path

import torch
from torch import Tensor

from fastcifar.data.prepare import beton_path, load_train, load_val_and_test
from fastcifar.distributed import World
from fastcifar.errors import FastcifarError
from fastcifar.pipeline.augment import choose_subset
from fastcifar.pipeline.loader import EpochPlanner, Loader, ResidentLoader, StreamedLoader
from fastcifar.training.callbacks import Observer
from fastcifar.training.evaluate import EvalSet, compute_logits
from fastcifar.training.settings import Settings
from fastcifar.training.trainer import Trainer


class Parts:
    """What a run works with.

    Args:
        settings: of the run.
        data_dir: a folder that `prepare` filled.
        world: that the settings were resolved for.
        observer: is told how it goes.

    Attributes:
        loader: of the training batches, this rank's share of each.
        val: to validate on.
        test: to test on.
        trainer: of the model.
    """

    def __init__(self, settings: Settings, data_dir: Path, world: World, observer: Observer) -> None:
        assert settings.world_size == world.size
        device = torch.device(settings.device)
        observer.note(f"reading and checking {data_dir}")
        self.settings, self.world = settings, world
        self.loader = _build_loader(settings, data_dir, device, world)
        self.val, self.test = (
            EvalSet(split, settings.eval_images, device, settings.recipe) for split in load_val_and_test(data_dir)
        )
        self.trainer = Trainer(
            settings.recipe, device, precision=settings.precision, compile=settings.compile, world=world,
            sync_bn=settings.sync_bn,
        )  # fmt: skip

    def logits(self, images: EvalSet, *, augmented: bool = False) -> Tensor:
        """The model's logits, `(N, 10)` float32."""
        trainer = self.trainer
        return compute_logits(
            trainer.model,
            images.images,
            mean=trainer.mean,
            std=trainer.std,
            precision=trainer.precision,
            geometry=images.geometry if augmented else None,
            compile=self.settings.compile,
            world=self.world,
        )

    def warm_up(self) -> float:
        """Compile everything; returns the seconds it took.

        Raises:
            FastcifarError: torch.compile failed.
        """
        start = time.perf_counter()
        try:
            with self.world.peers_needed():
                with contextlib.closing(self.loader.epoch(0)) as batches:
                    next(batches)
                self.trainer.warm_up()
                self.logits(self.val)
        except FastcifarError:
            raise
        except Exception as error:  # whatever a compiler, its absence, or torch's own code raises
            if is_out_of_memory(error):
                raise
            reason = (str(error).strip().splitlines() or [repr(error)])[0][:200]
            raise FastcifarError(f"torch.compile failed ({reason}): give --no-compile to train without it") from error
        return time.perf_counter() - start


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it says that memory is short; torch's allocator on the CPU has no exception type of its own."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _build_loader(settings: Settings, data_dir: Path, device: torch.device, world: World) -> Loader:
    split = load_train(data_dir)
    indices = torch.from_numpy(split.indices)
    chosen = choose_subset(indices, settings.train_images)
    recipe = settings.recipe

    def planner_on(where: torch.device) -> EpochPlanner:
        return EpochPlanner(
            indices[chosen].to(where),
            recipe.global_batch_size,
            seed=recipe.seed,
            padding=recipe.padding,
            max_angle_deg=recipe.max_angle_deg,
            world=world,
        )

    if settings.loader == "streamed":
        path = beton_path(data_dir, "train")
        return StreamedLoader(path, chosen, planner_on(torch.device("cpu")), device, settings.num_workers)
    images = torch.from_numpy(split.images)[chosen].to(device)
    labels = torch.from_numpy(split.labels)[chosen].long().to(device)
    return ResidentLoader(images, labels, planner_on(device), compile=settings.compile)
