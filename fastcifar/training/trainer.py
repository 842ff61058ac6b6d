"""Trains a model: one step, one epoch, and the state for a checkpoint."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, StepLR

from fastcifar.distributed import ALONE, World
from fastcifar.kernels.gather import normalise
from fastcifar.pipeline.loader import Batch, Loader
from fastcifar.recipes import Recipe
from fastcifar.training.compiled_network import CompiledNetwork, StepOptions
from fastcifar.training.convolution import TORCH, use_convolution
from fastcifar.training.cuda_graph import CudaGraphStep, try_capture
from fastcifar.training.gradients import GradientAverage
from fastcifar.training.in_flight import StepsInFlight
from fastcifar.training.master_weights import MasterWeights
from fastcifar.training.model import ResNet18, build_model

# Above these numbers of reads or operations Inductor stores a value, instead of computing it again at each use. With
# its defaults, another kernel stores each pixel's source before the gather, and masked gradients are stored in float32.
_GATHER_SETTINGS: Any = {
    "realize_reads_threshold": 1000,
    "realize_acc_reads_threshold": 1000,
    "realize_opcount_threshold": 10000,
}
_STEP_SETTINGS: Any = {"realize_reads_threshold": 8, "realize_opcount_threshold": 60}


class Trainer:
    """A model with its optimizer, schedule and training step.

    Args:
        recipe: the recipe to train with.
        device: the device to train on.
        precision: "bf16" or "fp32".
        compile: whether torch.compile builds the step's parts; on CUDA the whole step, from the gather to the weights,
            is then captured as a CUDA graph by `warm_up`.
        world: its ranks each train on their share of every batch, and average their gradients.
        sync_bn: whether batch norm computes its statistics over all ranks, without compilation; otherwise each rank
            has separate statistics in training, which are averaged at an epoch's end.
        convolution: which convolutions are used, see `training.convolution`.
        options: how the step is built if it is compiled; None for the defaults.

    Attributes:
        model: the model, on the device, channels-last, float32.
        optimizer: its learning rate is the schedule's, a Python float on every device.
        totals: `(2,)` float64 on the device: the summed losses and the number of correctly classified images, over
            this rank's steps so far in this epoch.
        capture_failure: why the step could not be captured, or None.
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
        options: StepOptions | None = None,
    ) -> None:
        self.model = build_model(recipe.seed).to(memory_format=torch.channels_last).to(device)
        use_convolution(self.model, convolution)
        if sync_bn and world.size > 1:
            # In place, because the model is not itself a batch norm.
            nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        world.broadcast_tensors(self.model.state_dict().values())
        self.mean = torch.tensor(recipe.mean, device=device)
        self.std = torch.tensor(recipe.std, device=device)
        self.precision = precision
        self._device, self._world = device, world
        self._rank_batch_size = recipe.global_batch_size // world.size
        self.optimizer = self._build_optimizer(recipe)
        self.scheduler = self._build_scheduler(recipe)
        # All of this is on the device, where a captured step reads and updates it.
        self._lr = torch.zeros((), device=device)
        self.totals = torch.zeros(2, dtype=torch.float64, device=device)
        self._step_index = torch.zeros(1, dtype=torch.int64, device=device)  # steps so far in this epoch
        self._num_finite = torch.zeros(1, dtype=torch.int64, device=device)  # those before the first bad loss
        self._in_flight = StepsInFlight(device, world)
        self._graph: CudaGraphStep | None = None
        self.capture_failure: str | None = None
        self._build_step(recipe, (options or StepOptions()) if compile and not sync_bn else None)

    def _build_step(self, recipe: Recipe, options: StepOptions | None) -> None:
        """Build the parts of a step; without options nothing is compiled."""
        self._options = options
        self._captures = options is not None and self._device.type == "cuda"
        masters: list[Tensor] = list(self.model.parameters())
        self._average = None if self._world.size == 1 else GradientAverage(masters, self._world)
        self._network: CompiledNetwork | ResNet18 = self.model
        self._leaves = masters
        self._master_weights: MasterWeights | None = None
        self._read, self.forward, self._update = self._read_batch, self.compute_loss, self._update_by_torch
        if options is None:
            return
        self._network = CompiledNetwork(self.model, options, self.precision)
        self._leaves = self._network.leaves
        settings: Any = {"combo_kernels": options.combo_kernels}
        self._read = torch.compile(self._read_batch, dynamic=False, options=settings | _GATHER_SETTINGS)
        self.forward = torch.compile(self.compute_loss, dynamic=False, options=settings | _STEP_SETTINGS)
        if options.bf16_weights and self.precision == "bf16":
            self._master_weights = MasterWeights(self.optimizer, recipe, self._leaves)
            self.optimizer.step()  # without gradients nothing changes; the schedule would warn if no step was made
            self._update = torch.compile(self._update_masters, dynamic=False, options=settings)

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

    def _read_batch(self, loader: Loader, step: Tensor) -> Batch:
        """A batch's normalised images and its labels; in a warm-up, steps beyond the epoch's end wrap around."""
        images, labels = loader.read(step % loader.num_steps)
        inputs = normalise(images, self.mean, self.std)
        return self._network.to_input(inputs) if isinstance(self._network, CompiledNetwork) else inputs, labels

    def compute_loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of a batch; also updates the epoch's totals and counters."""
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            logits = self._network(inputs)
            loss = functional.cross_entropy(logits, labels)
        with torch.no_grad():
            num_correct = (logits.argmax(1) == labels).sum()
            self.totals.add_(torch.stack((loss.double() * len(labels), num_correct.double())))
            self._num_finite.add_(loss.isfinite() & (self._num_finite == self._step_index))
            self._step_index.add_(1)
        return loss

    def warm_up(self, loader: Loader) -> None:
        """Let torch.compile build the step, and capture it on CUDA, before it is timed.

        Model and optimizer are then restored. A checkpoint's state must be loaded before, because the graph holds the
        addresses of its tensors. If the step cannot be captured, `capture_failure` says why, and steps are issued
        kernel by kernel.

        Args:
            loader: the loader to train with; a captured step reads from no other.
        """
        state = self.state()
        self.model.train()
        self._step(loader)
        if self._captures:
            assert self._options is not None
            num_steps = self._options.steps_per_graph if loader.reads_ahead else 1
            with self._device_learning_rate():
                self._graph, self.capture_failure = try_capture(
                    lambda: CudaGraphStep(lambda: self._step(loader), num_steps)
                )
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
        """Restore, in place, the output of `state()`; a failed capture may have left gradients."""
        for leaf in self._leaves:
            leaf.grad = None
        self.model.load_state_dict(state["model"])
        before = state["optimizer"]["state"]
        for position, parameter in enumerate(self.model.parameters()):
            for name, value in self.optimizer.state[parameter].items():
                # Before the first step these are zero: momentum, Adam's moments and its count of steps.
                value.copy_(before[position][name] if position in before else torch.zeros_like(value))
        if self._master_weights is not None:
            self._master_weights.sync()

    @property
    def is_captured(self) -> bool:
        """Whether the step is replayed as a CUDA graph."""
        return self._graph is not None

    def release_graph(self) -> None:
        """Free the captured step; NCCL's group cannot be destroyed before, because the graph contains its calls."""
        self._graph = None

    def step(self, loader: Loader) -> None:
        """One optimizer step on the batch that the loader made available last; copies nothing to the host."""
        if self._graph is None:
            self._step(loader)
        else:
            self._graph.step(loader.num_steps - self._in_flight.num_issued)
        self._in_flight.add()

    def _step(self, loader: Loader) -> None:
        inputs, labels = self._read(loader, self._step_index)
        self.forward(inputs, labels).backward()
        gradients = [leaf.grad for leaf in self._leaves if leaf.grad is not None]
        self._update(gradients if self._average is None else self._average(gradients))
        for leaf in self._leaves:
            leaf.grad = None

    def _update_by_torch(self, gradients: list[Tensor]) -> None:
        for parameter, gradient in zip(self.model.parameters(), gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()

    def _update_masters(self, gradients: list[Tensor]) -> None:
        assert self._master_weights is not None
        self._master_weights.update(gradients, self._lr)

    def first_bad_step(self) -> int | None:
        """The first step of this epoch, from 0, with a loss that is not finite on some rank; waits for the device."""
        num_finite = -int(self._world.all_reduce_max(-self._num_finite.item()))
        return num_finite if num_finite < self._step_index.item() else None

    def begin_epoch(self) -> None:
        """Prepare an epoch: training mode, totals of zero, the schedule's learning rate on the device."""
        self.model.train()
        for counter in (self.totals, self._num_finite, self._step_index):
            counter.zero_()
        self._in_flight.begin_epoch()
        if self._graph is not None:
            self._graph.begin_epoch()
        self._lr.fill_(self.optimizer.param_groups[0]["lr"])

    def train_epoch(self, loader: Loader, epoch: int, on_step: Callable[[int], None]) -> tuple[float, float]:
        """Train on every full batch of an epoch, then advance the schedule, and combine totals and statistics of ranks.

        Args:
            loader: loads the augmented batches, this rank's share of each.
            epoch: the epoch, from 0.
            on_step: called after each step is issued, with the number of finished steps in this epoch.

        Returns:
            Mean loss and accuracy over the epoch's augmented images, each with the weights of its step.
        """
        self.begin_epoch()
        with contextlib.closing(loader.epoch(epoch)) as steps:
            for _ in steps:
                self.step(loader)
                on_step(self._in_flight.num_finished)
        self._in_flight.finish()
        self.scheduler.step()
        self._finish_statistics(loader.num_steps)
        self._world.all_reduce_sum(self.totals)
        loss, accuracy = (self.totals / (loader.num_steps * self._rank_batch_size * self._world.size)).tolist()
        return loss, accuracy

    def _finish_statistics(self, num_steps: int) -> None:
        """Count an epoch's batches if the step did not, and give every rank the mean of the ranks' statistics."""
        if self._options is not None:
            for name, buffer in self.model.named_buffers():
                if name.endswith("num_batches_tracked"):
                    buffer += num_steps
        if self._world.size == 1:
            return
        statistics = [buffer for buffer in self.model.buffers() if buffer.is_floating_point()]
        mean = torch.cat([buffer.flatten() for buffer in statistics])
        self._world.all_reduce_sum(mean)
        mean /= self._world.size
        for buffer, values in zip(statistics, mean.split([buffer.numel() for buffer in statistics]), strict=True):
            buffer.copy_(values)

    def load_state(self, state: dict[str, Any]) -> None:
        """Load the output of `state()`; must be called before `warm_up`.

        Raises:
            RuntimeError, ValueError, KeyError: it belongs to another model, optimizer or schedule.
        """
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for parameter, values in self.optimizer.state.items():  # torch does not check this
            if any(value.dim() > 0 and value.shape != parameter.shape for value in values.values()):
                raise ValueError("the optimizer's state does not fit the model")
        self.scheduler.load_state_dict(state["scheduler"])
        if self._master_weights is not None:
            self._master_weights.sync()

    def state(self) -> dict[str, Any]:
        """A copy of everything that further training needs."""
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
