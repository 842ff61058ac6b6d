"""Alternatives to compare with: the same recipe as a notebook, in tuned PyTorch, stock FFCV and resident eager code.

Each is written as a careful user of that approach would write it, and trains the same network with the same optimizer.
A contender has `batches()` and `step()`; the benchmark decides how many steps it takes.
"""

import functools
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from fastcifar.data.folder import Split, beton_path
from fastcifar.pipeline.loader import Batch, EpochPlanner, Loader, ResidentLoader, StreamedLoader
from fastcifar.recipes import Recipe
from fastcifar.training.allocator import freed_memory_kept
from fastcifar.training.convolution import TORCH, choose_convolution
from fastcifar.training.device import use_fast_kernels
from fastcifar.training.model import build_model
from fastcifar.training.trainer import Trainer


class Contender(ABC):
    """One way to train: where its batches come from, and what a step does with one."""

    @abstractmethod
    def batches(self) -> Generator[tuple[Any, ...]]:
        """One epoch's batches; closing the generator early frees what it holds."""

    @abstractmethod
    def step(self, *batch: Any) -> None:
        """Train on one batch, given as `batches` yielded it."""

    @abstractmethod
    def pop_loss(self) -> float:
        """The mean loss of the steps since the last call."""


class FastCifar(Contender):
    """This package, resident or streamed."""

    def __init__(
        self,
        recipe: Recipe,
        split: Split,
        data_dir: Path,
        device: torch.device,
        *,
        loader: str,
        precision: str,
        num_workers: int,
        convolution: str = "auto",
    ) -> None:
        use_fast_kernels(device)
        compiles = device.type == "cuda"
        chosen = choose_convolution(convolution, device, precision)
        self._trainer = Trainer(recipe, device, precision=precision, compile=compiles, convolution=chosen)
        self._recipe, self._device, self._epoch = recipe, device, 0
        indices = torch.from_numpy(split.indices)
        self._loader: Loader
        if loader == "streamed":
            path = beton_path(data_dir, "train")
            self._loader = StreamedLoader(path, EpochPlanner(indices, recipe), device, num_workers)
        else:
            images, labels = torch.from_numpy(split.images), torch.from_numpy(split.labels).long()
            planner = EpochPlanner(indices.to(device), recipe)
            self._loader = ResidentLoader(images.to(device), labels.to(device), planner)
        if compiles:
            self._trainer.warm_up(self._loader)
            if self._trainer.capture_failure is not None:
                print(f"  fastcifar {loader}: not captured ({self._trainer.capture_failure})", flush=True)
        self._num_steps = 0

    def batches(self) -> Generator[tuple[int]]:
        """The loader's next epoch, with the memory setting that training uses on a CPU."""
        self._trainer.begin_epoch()
        self._epoch += 1
        with freed_memory_kept(self._device.type):
            for step in self._loader.epoch(self._epoch - 1):
                yield (step,)

    def step(self, _: int) -> None:
        """The trainer's step, which reads the loader's batch itself."""
        self._trainer.step(self._loader)
        self._num_steps += 1

    def pop_loss(self) -> float:
        """From the trainer's totals on the device."""
        loss = self._trainer.totals[0].item() / (self._num_steps * self._recipe.global_batch_size)
        self._trainer.totals.zero_()
        self._num_steps = 0
        return loss


class _Notebook(Contender):
    """The common parts of the alternatives: the model, its optimizer in default form, a plain step."""

    def __init__(self, recipe: Recipe, device: torch.device, *, is_tuned: bool, precision: str) -> None:
        self.device, self.recipe, self._is_tuned = device, recipe, is_tuned
        torch.backends.cudnn.benchmark = is_tuned
        self.model: nn.Module = build_model(recipe.seed).to(device)
        if is_tuned:
            self.model = self.model.to(memory_format=torch.channels_last)
        fused: Any = {"fused": True} if is_tuned else {}
        lr, decay, parameters = recipe.learning_rate, recipe.weight_decay, self.model.parameters()
        self.optimizer: torch.optim.Optimizer
        if recipe.optimizer == "sgd":
            self.optimizer = torch.optim.SGD(parameters, lr=lr, momentum=recipe.momentum, weight_decay=decay, **fused)
        else:
            self.optimizer = torch.optim.Adam(parameters, lr=lr, weight_decay=decay, **fused)
        self._is_bf16 = is_tuned and precision == "bf16"
        self._total_loss = torch.zeros((), device=device)
        self._num_steps = 0
        self.model.train()

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Forward, loss, backward, update; the tuned form keeps the running loss on the device."""
        images = images.to(self.device, non_blocking=self._is_tuned)
        labels = labels.to(self.device, non_blocking=self._is_tuned)
        if self._is_tuned:
            images = images.contiguous(memory_format=torch.channels_last)
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._is_bf16):
            logits = self.model(images)
            loss = functional.cross_entropy(logits, labels)
        loss.backward()
        self.optimizer.step()
        self._total_loss += loss.detach()
        if not self._is_tuned:  # as notebooks print it: the host waits for every step
            loss.item()
            (logits.argmax(1) == labels).sum().item()
        self._num_steps += 1

    def pop_loss(self) -> float:
        """Mean of the steps' losses."""
        loss = float(self._total_loss) / self._num_steps
        self._total_loss.zero_()
        self._num_steps = 0
        return loss


class _PilImages(Dataset[tuple[Tensor, int]]):
    """Like `torchvision.datasets.CIFAR10`, but with our arrays."""

    def __init__(self, split: Split, transform: transforms.Compose) -> None:
        self._images, self._labels, self._transform = split.images, split.labels.tolist(), transform

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image: Tensor = self._transform(Image.fromarray(self._images[index]))
        return image, self._labels[index]


class DataLoaderContender(_Notebook):
    """torchvision on PIL images in a DataLoader: as published, or tuned."""

    def __init__(
        self, recipe: Recipe, split: Split, device: torch.device, *, is_tuned: bool, precision: str, num_workers: int
    ) -> None:
        super().__init__(recipe, device, is_tuned=is_tuned, precision=precision)
        if is_tuned and device.type == "cuda":
            self.model.compile(dynamic=False)
        transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=recipe.padding),
                transforms.RandomHorizontalFlip(),
                transforms.RandomRotation(recipe.max_angle_deg),
                transforms.ToTensor(),
                transforms.Normalize(recipe.mean, recipe.std),
            ]
        )
        tuned: Any = {"pin_memory": device.type == "cuda", "persistent_workers": num_workers > 0} if is_tuned else {}
        self._loader = DataLoader(
            _PilImages(split, transform),
            recipe.global_batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=num_workers,
            **tuned,
        )

    def batches(self) -> Generator[Batch]:
        """The DataLoader's batches."""
        yield from self._loader


class StockFfcv(_Notebook):
    """FFCV's CPU pipeline from its CIFAR example, with the tuned network. It has no rotation."""

    def __init__(
        self,
        recipe: Recipe,
        data_dir: Path,
        num_images: int,
        device: torch.device,
        *,
        precision: str,
        num_workers: int,
    ) -> None:
        super().__init__(recipe, device, is_tuned=True, precision=precision)
        if device.type == "cuda":
            self.model.compile(dynamic=False)
        from fastcifar.pipeline.ffcv_reader import ffcv_side_effects_undone  # FFCV may be missing

        with ffcv_side_effects_undone():
            from ffcv.fields.basics import IntDecoder
            from ffcv.fields.rgb_image import SimpleRGBImageDecoder
            from ffcv.loader import Loader as FfcvLoader
            from ffcv.loader import OrderOption
            from ffcv.transforms import RandomHorizontalFlip, RandomTranslate, Squeeze, ToDevice, ToTensor, ToTorchImage

            to_device = [ToDevice(device, non_blocking=True)] if device.type == "cuda" else []
            # On the CPU the images are already channels-last; FFCV's example converts and normalises last.
            image = [SimpleRGBImageDecoder(), RandomHorizontalFlip(), RandomTranslate(padding=recipe.padding)]
            self._loader = FfcvLoader(
                str(beton_path(data_dir, "train")),
                batch_size=recipe.global_batch_size,
                num_workers=num_workers,
                order=OrderOption.RANDOM,
                os_cache=True,
                drop_last=True,
                seed=recipe.seed,
                indices=np.arange(num_images),
                pipelines={
                    "image": [*image, ToTensor(), *to_device, ToTorchImage(channels_last=True)],
                    "label": [IntDecoder(), ToTensor(), *to_device, Squeeze(1)],
                },
            )
        self._mean = torch.tensor(recipe.mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(recipe.std, device=device).view(1, 3, 1, 1)

    def batches(self) -> Generator[Batch]:
        """FFCV's batches; if the epoch is left early, its thread is ended here, because FFCV does not end it."""
        num_threads = torch.get_num_threads()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            epoch = iter(self._loader)
        try:
            for images, labels in epoch:
                torch.set_num_threads(num_threads)  # FFCV sets it to its number of workers
                yield (images.float() / 255 - self._mean) / self._std, labels
        finally:
            epoch.close()
            while epoch.is_alive():
                while not epoch.output_queue.empty():
                    epoch.output_queue.get_nowait()
                epoch.join(timeout=0.01)


class ResidentEager(_Notebook):
    """Data on the device and batched augmentation with `grid_sample`, eager, in the style of airbench."""

    def __init__(self, recipe: Recipe, split: Split, device: torch.device, *, precision: str) -> None:
        super().__init__(recipe, device, is_tuned=True, precision=precision)
        images = torch.from_numpy(split.images).to(device).permute(0, 3, 1, 2).float() / 255
        mean = torch.tensor(recipe.mean, device=device).view(1, 3, 1, 1)
        std = torch.tensor(recipe.std, device=device).view(1, 3, 1, 1)
        self._images = ((images - mean) / std).contiguous(memory_format=torch.channels_last)
        self._black = (0 - mean) / std
        self._labels = torch.from_numpy(split.labels).long().to(device)

    def batches(self) -> Generator[Batch]:
        """A shuffled epoch, each batch augmented when it is taken."""
        size = self.recipe.global_batch_size
        order = torch.randperm(len(self._images), device=self.device)
        for start in range(0, len(order) - size + 1, size):
            chosen = order[start : start + size]
            yield self._augment(self._images[chosen]), self._labels[chosen]

    def _augment(self, images: Tensor) -> Tensor:
        num_images, device = len(images), self.device

        def draw() -> Tensor:
            return torch.rand(num_images, device=device)

        angle = (draw() * 2 - 1) * math.radians(self.recipe.max_angle_deg)
        flip = (draw() < 0.5) * 2.0 - 1
        offsets = 2 * self.recipe.padding + 1
        shift_x, shift_y = ((draw() * offsets).floor() - self.recipe.padding for _ in range(2))
        cos, sin = angle.cos(), angle.sin()
        theta = torch.stack([flip * cos, flip * -sin, shift_x / 16, sin, cos, shift_y / 16], dim=1).view(-1, 2, 3)
        grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
        # Pixels outside are sampled as 0: shift by black, so that they become black.
        moved = functional.grid_sample(images - self._black, grid, mode="nearest", align_corners=False)
        return moved + self._black


Build = Callable[..., Contender]  # (recipe, split, data_dir, device, *, precision, num_workers)


def _dataloader(*, is_tuned: bool) -> Build:
    def build(recipe: Recipe, split: Split, _: Path, device: torch.device, **shared: Any) -> Contender:
        return DataLoaderContender(recipe, split, device, is_tuned=is_tuned, **shared)

    return build


def _stock_ffcv(recipe: Recipe, split: Split, data_dir: Path, device: torch.device, **shared: Any) -> Contender:
    return StockFfcv(recipe, data_dir, len(split.labels), device, **shared)


def _resident_eager(
    recipe: Recipe, split: Split, _: Path, device: torch.device, *, precision: str, num_workers: int
) -> Contender:
    return ResidentEager(recipe, split, device, precision=precision)


class Approach(NamedTuple):
    """A contender's kind.

    Attributes:
        note: a description in one line that names the precision.
        build: builds it from a recipe with the batch size to measure; the split to train on, the first images of the
            training set; the data folder of the split; the device; the precision of all but the published one; and
            the number of the loaders' workers.
    """

    note: str
    build: Build


TORCH_CONVOLUTIONS = "fastcifar, torch convolutions"  # on a GPU all contenders use these
CONTENDERS = {
    "published": Approach("DataLoader, PIL; eager, fp32, NCHW", _dataloader(is_tuned=False)),
    "tuned PyTorch": Approach(
        "DataLoader, PIL; {precision}, channels-last, fused optimizer", _dataloader(is_tuned=True)
    ),
    "stock FFCV": Approach("flip + translate, no rotation; {precision}, channels-last", _stock_ffcv),
    "resident eager": Approach("crop + flip + rotation by grid_sample; {precision}, channels-last", _resident_eager),
    TORCH_CONVOLUTIONS: Approach(
        "as resident, with torch's own convolutions; {precision}, channels-last",
        functools.partial(FastCifar, loader="resident", convolution=TORCH),
    ),
    "fastcifar streamed": Approach(
        "FFCV and numba; {precision}, channels-last", functools.partial(FastCifar, loader="streamed")
    ),
    "fastcifar resident": Approach(
        "one integer gather; {precision}, channels-last", functools.partial(FastCifar, loader="resident")
    ),
}
