"""A model under training: one step, one epoch, and the state that goes on from there."""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, StepLR

from fastcifar.distributed import ALONE, World
from fastcifar.kernels.gather import normalise
from fastcifar.pipeline.loader import Loader
from fastcifar.recipes import Recipe
from fastcifar.training.convolution import TORCH, use_convolution
from fastcifar.training.cuda_graph import CudaGraphStep
from fastcifar.training.model import build_model


class Trainer:
    """A model, its optimizer and schedule, and what one step does to them.

    Args:
        recipe: what to train by.
        device: where.
        precision: "bf16" or "fp32".
        compile: whether torch.compile builds the forward and backward pass; on CUDA the whole step, the optimizer
            included, is then captured as a CUDA graph by `warm_up`, unless other ranks take part in it.
        world: whose ranks each train on their share of every batch, and average their gradients.
        sync_bn: whether batch norm takes its statistics over all ranks; otherwise each rank has its own in training,
            and their mean at an epoch's end.
        convolution: whose convolutions are used, see `training.convolution`.

    Attributes:
        model: on the device, channels-last, float32.
        optimizer: its learning rate is the schedule's, a Python float on every device.
        totals: `(2,)` float64 on the device: of this rank's steps so far in this epoch, the losses of all images and
            the number of them classified rightly.
    """

    def __init__(
        self,
        recipe: Recipe,
        device: torch.device,
        *,
        precision: str,
        compile: bool,  # noqa: A002
        world: World = ALONE,
        sync_bn: bool = False,
        convolution: str = TORCH,
    ) -> None:
        self.model = build_model(recipe.seed).to(memory_format=torch.channels_last).to(device)
        use_convolution(self.model, convolution)
        if sync_bn and world.size > 1:
            nn.SyncBatchNorm.convert_sync_batchnorm(self.model)  # in place, but for a model that is one itself
        self.mean = torch.tensor(recipe.mean, device=device)
        self.std = torch.tensor(recipe.std, device=device)
        self.precision = precision
        self._device = device
        self.optimizer = self._build_optimizer(recipe)
        self.scheduler = self._build_scheduler(recipe)
        self._world = world
        self._global_batch_size = recipe.global_batch_size
        self._captures = compile and device.type == "cuda" and world.size == 1
        self._captured: CudaGraphStep | None = None
        self._lr = torch.zeros((), device=device)  # what a captured optimizer reads; set at each epoch's start
        self.totals = torch.zeros(2, dtype=torch.float64, device=device)
        # Steps so far in this epoch, and how many of them came before the first whose loss was no finite number.
        self._num_steps = torch.zeros(2, dtype=torch.int64, device=device)
        self._network = self.model if world.size == 1 else _average_gradients_of(self.model)
        self.forward = torch.compile(self.compute_loss, dynamic=False) if compile else self.compute_loss

    def _build_optimizer(self, recipe: Recipe) -> torch.optim.Optimizer:
        parameters, lr, decay = self.model.parameters(), recipe.learning_rate, recipe.weight_decay
        if recipe.optimizer == "sgd":
            return torch.optim.SGD(parameters, lr=lr, momentum=recipe.momentum, weight_decay=decay, fused=True)
        is_cuda = self._device.type == "cuda"
        return torch.optim.Adam(parameters, lr=lr, weight_decay=decay, fused=True, capturable=is_cuda)

    def _build_scheduler(self, recipe: Recipe) -> LRScheduler:
        if recipe.schedule == "cosine":
            return CosineAnnealingLR(self.optimizer, T_max=recipe.epochs)
        return StepLR(self.optimizer, step_size=recipe.step_epochs, gamma=recipe.step_factor)

    def compute_loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy of a batch, and the number of images classified rightly; what `forward` may compile."""
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            logits = self._network(normalise(images, self.mean, self.std))
            loss = functional.cross_entropy(logits, labels)
        return loss, (logits.argmax(1) == labels).sum()

    def warm_up(self) -> None:
        """Let torch.compile build the step, and capture it on CUDA, before it is timed.

        It steps on a batch of black images, then puts model and optimizer back to where they were. A state to go on
        from must be loaded before: the graph has the addresses of its tensors.
        """
        state = self.state()
        rank_batch_size = self._global_batch_size // self._world.size
        images = torch.zeros((rank_batch_size, 32, 32, 3), dtype=torch.uint8, device=self._device)
        labels = torch.zeros(rank_batch_size, dtype=torch.int64, device=self._device)
        self.model.train()
        if self._captures:
            with self._device_learning_rate():
                self._captured = CudaGraphStep(self._step, images, labels)
        else:
            self._step(images, labels)
        self._restore(state)

    @contextlib.contextmanager
    def _device_learning_rate(self) -> Iterator[None]:
        """Let the optimizer read its learning rate from the device, so that a captured step follows the schedule."""
        groups = self.optimizer.param_groups
        rates = [group["lr"] for group in groups]
        for group in groups:
            group["lr"] = self._lr
        try:
            yield
        finally:
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate

    def _restore(self, state: dict[str, Any]) -> None:
        """Put back, in place, what `state()` gave."""
        self.model.load_state_dict(state["model"])
        self.totals.zero_()
        before = state["optimizer"]["state"]
        for position, parameter in enumerate(self.model.parameters()):
            for name, value in self.optimizer.state[parameter].items():
                # Where no step was made yet it is zero: momentum, Adam's moments and its count of steps.
                value.copy_(before[position][name] if position in before else torch.zeros_like(value))

    def step(self, images: Tensor, labels: Tensor) -> None:
        """One optimizer step; nothing crosses to the host.

        Args:
            images: `(B, 32, 32, 3)` uint8, augmented.
            labels: `(B,)` int64.
        """
        if self._captured is None:
            self._step(images, labels)
        else:
            self._captured(images, labels)

    def _step(self, images: Tensor, labels: Tensor) -> None:
        loss, num_correct = self.forward(images, labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.totals += torch.stack((loss.detach().double() * len(labels), num_correct.double()))
        is_finite = loss.detach().isfinite() & (self._num_steps[0] == self._num_steps[1])
        self._num_steps += torch.stack((torch.ones_like(is_finite), is_finite))

    def first_bad_step(self) -> int | None:
        """The first step of this epoch, from 0, whose loss was no finite number on any rank; waits for the device."""
        num_steps, num_finite = self._num_steps.tolist()
        num_finite = -int(self._world.all_reduce_max(-num_finite))
        return num_finite if num_finite < num_steps else None

    def begin_epoch(self) -> None:
        """Before an epoch's first step: training mode, no totals, the schedule's learning rate on the device."""
        self.model.train()
        self.totals.zero_()
        self._num_steps.zero_()
        self._lr.fill_(self.optimizer.param_groups[0]["lr"])

    def train_epoch(self, loader: Loader, epoch: int, on_step: Callable[[int], None]) -> tuple[float, float]:
        """Train on every full batch of an epoch, then advance the schedule; model and totals are then the world's.

        Args:
            loader: of the augmented batches, this rank's share of each.
            epoch: from 0.
            on_step: called with each step's number, once it was issued.

        Returns:
            Mean loss and accuracy over the epoch's augmented images, as the model stood at each step.
        """
        self.begin_epoch()
        with contextlib.closing(loader.epoch(epoch)) as batches:
            for step, (images, labels) in enumerate(batches):
                self.step(images, labels)
                on_step(step)
        self.scheduler.step()
        self._average_statistics()
        self._world.all_reduce_sum(self.totals)
        loss, accuracy = (self.totals / (loader.num_steps * self._global_batch_size)).tolist()  # waits for the device
        return loss, accuracy

    def _average_statistics(self) -> None:
        """Give every rank the mean of the ranks' batch-norm statistics."""
        if self._world.size == 1:
            return
        statistics = [buffer for buffer in self.model.buffers() if buffer.is_floating_point()]
        mean = torch.cat([buffer.flatten() for buffer in statistics])
        self._world.all_reduce_sum(mean)
        mean /= self._world.size
        for buffer, values in zip(statistics, mean.split([buffer.numel() for buffer in statistics]), strict=True):
            buffer.copy_(values)

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state()` gave; to be called before `warm_up`.

        Raises:
            RuntimeError, ValueError, KeyError: it is of another model, optimizer or schedule.
        """
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for parameter, values in self.optimizer.state.items():  # torch itself does not look
            if any(value.dim() > 0 and value.shape != parameter.shape for value in values.values()):
                raise ValueError("the optimizer's state does not fit the model")
        self.scheduler.load_state_dict(state["scheduler"])

    def state(self) -> dict[str, Any]:
        """All that training on needs, detached from what training changes."""
        return {
            "model": {name: value.clone() for name, value in self.model.state_dict().items()},
            "optimizer": _cloned(self.optimizer.state_dict()),
            "scheduler": self.scheduler.state_dict(),
        }


def _average_gradients_of(model: nn.Module) -> nn.Module:
    """Let the backward pass average gradients over all ranks, bucket by bucket, while it goes on.

    Batch norm's statistics stay each rank's own here. torch 2.15 has a new name for that option.
    """
    options = inspect.signature(DistributedDataParallel).parameters
    unsynced: Any = {"forward_sync_buffers" if "forward_sync_buffers" in options else "broadcast_buffers": False}
    return DistributedDataParallel(model, gradient_as_bucket_view=True, **unsynced)


def _cloned(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _cloned(item) for key, item in value.items()}
    return [_cloned(item) for item in value] if isinstance(value, list) else value
