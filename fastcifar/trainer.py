"""A model under training: one step, one epoch, and the state that goes on from there."""

import contextlib
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, StepLR

from fastcifar.augment import normalise
from fastcifar.loader import Loader
from fastcifar.model import build_model
from fastcifar.recipes import Recipe


class Trainer:
    """A model, its optimizer and schedule, and what one step does to them.

    Args:
        recipe: what to train by.
        device: where.
        precision: "bf16" or "fp32".
        compile: whether torch.compile builds the forward and backward pass.

    Attributes:
        model: on the device, channels-last, float32.
        totals: `(2,)` float64 on the device: of the steps so far in this epoch, the losses of all images and the
            number of them classified rightly.
    """

    def __init__(self, recipe: Recipe, device: torch.device, *, precision: str, compile: bool) -> None:  # noqa: A002
        self.model = build_model(recipe.seed).to(memory_format=torch.channels_last).to(device)
        self.mean = torch.tensor(recipe.mean, device=device)
        self.std = torch.tensor(recipe.std, device=device)
        self.precision = precision
        self.optimizer = self._build_optimizer(recipe)
        self.scheduler = self._build_scheduler(recipe)
        self._device = device
        self._batch_size = recipe.batch_size
        self.totals = torch.zeros(2, dtype=torch.float64, device=device)
        self.forward = torch.compile(self._compute_loss) if compile else self._compute_loss

    def _build_optimizer(self, recipe: Recipe) -> torch.optim.Optimizer:
        parameters, lr, decay = self.model.parameters(), recipe.learning_rate, recipe.weight_decay
        if recipe.optimizer == "sgd":
            return torch.optim.SGD(parameters, lr=lr, momentum=recipe.momentum, weight_decay=decay, fused=True)
        return torch.optim.Adam(parameters, lr=lr, weight_decay=decay, fused=True)

    def _build_scheduler(self, recipe: Recipe) -> LRScheduler:
        if recipe.schedule == "cosine":
            return CosineAnnealingLR(self.optimizer, T_max=recipe.epochs)
        return StepLR(self.optimizer, step_size=recipe.step_epochs, gamma=recipe.step_factor)

    def _compute_loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            logits = self.model(normalise(images, self.mean, self.std))
            loss = functional.cross_entropy(logits, labels)
        return loss, (logits.argmax(1) == labels).sum()

    def warm_up(self) -> float:
        """Let torch.compile build the step before it is timed; the model is left as it was.

        Returns:
            Seconds it took.
        """
        start = time.perf_counter()
        buffers = [buffer.clone() for buffer in self.model.buffers()]  # batch-norm statistics, which a pass advances
        images = torch.zeros((self._batch_size, 32, 32, 3), dtype=torch.uint8, device=self._device)
        labels = torch.zeros(self._batch_size, dtype=torch.int64, device=self._device)
        self.model.train()
        self.forward(images, labels)[0].backward()
        self.optimizer.zero_grad(set_to_none=True)
        for buffer, saved in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(saved)
        return time.perf_counter() - start

    def step(self, images: Tensor, labels: Tensor) -> None:
        """One optimizer step; nothing crosses to the host.

        Args:
            images: `(B, 32, 32, 3)` uint8, augmented.
            labels: `(B,)` int64.
        """
        loss, num_correct = self.forward(images, labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.totals += torch.stack((loss.detach().double() * len(labels), num_correct.double()))

    def train_epoch(self, loader: Loader, epoch: int, on_step: Callable[[int], None]) -> tuple[float, float]:
        """Train on every full batch of an epoch, then advance the schedule.

        Args:
            loader: of the augmented batches.
            epoch: from 0.
            on_step: called with each step's number, once it was issued.

        Returns:
            Mean loss and accuracy over the epoch's augmented images, as the model stood at each step.
        """
        self.model.train()
        self.totals.zero_()
        with contextlib.closing(loader.epoch(epoch)) as batches:
            for step, (images, labels) in enumerate(batches):
                self.step(images, labels)
                on_step(step)
        self.scheduler.step()
        loss, accuracy = (self.totals / (loader.num_steps * self._batch_size)).tolist()  # waits for the device
        return loss, accuracy

    def state(self) -> dict[str, Any]:
        """All that training on needs, detached from what training changes."""
        return {
            "model": {name: value.clone() for name, value in self.model.state_dict().items()},
            "optimizer": _cloned(self.optimizer.state_dict()),
            "scheduler": self.scheduler.state_dict(),
        }


def _cloned(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _cloned(item) for key, item in value.items()}
    return [_cloned(item) for item in value] if isinstance(value, list) else value
