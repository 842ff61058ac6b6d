"""Evaluates a model on images: logits, loss, accuracy."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastcifar.data.cifar10 import NUM_CLASSES
from fastcifar.data.folder import Split
from fastcifar.distributed import ALONE, World
from fastcifar.kernels.gather import gather_augmented, normalise
from fastcifar.pipeline.augment import affine_coeffs, choose_subset, sample_augmentation
from fastcifar.recipes import Recipe
from fastcifar.training.cuda_graph import CudaGraphStep, try_capture

# Both divide 5,000; a batch that is not full is padded, so all have one shape.
_MAX_BATCH_SIZE = 500
_MAX_CUDA_BATCH_SIZE = 1000


class EvalSet:
    """The chosen images of a split, on a device.

    Args:
        split: from `data.folder.load_val_and_test`.
        num_images: the number of images, the first of a fixed permutation.
        device: the device of the images.
        recipe: its seed, padding and angle are used to augment the images.

    Attributes:
        indices: `(N,)` int64 on the CPU, the images' global sample indices.
        images: `(N, 32, 32, 3)` uint8.
        labels: `(N,)` int64.
        coeffs: `(N, 9)` int32 of the augmented images, always those of epoch 0, so they depend on the seed only.
    """

    def __init__(self, split: Split, num_images: int, device: torch.device, recipe: Recipe) -> None:
        indices = torch.from_numpy(split.indices)
        chosen = choose_subset(indices, num_images)
        self.indices = indices[chosen]
        self.images = torch.from_numpy(split.images)[chosen].to(device)
        self.labels = torch.from_numpy(split.labels)[chosen].long().to(device)
        params = sample_augmentation(
            recipe.seed, 0, self.indices, padding=recipe.padding, max_angle_deg=recipe.max_angle_deg
        )
        self.coeffs = affine_coeffs(params).to(device)


def _classify(model: nn.Module, images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Logits of one batch."""
    logits: Tensor = model(normalise(images, mean, std))
    return logits.float()


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    """`_classify`, compiled once for all models on its first call."""
    return torch.compile(_classify, dynamic=False)


class CompiledPass:
    """A model's compiled pass over a batch; on CUDA captured as a CUDA graph, for batches of the first one's size.

    Args:
        device: the model's device.

    Attributes:
        capture_failure: why it could not be captured, or None.
    """

    def __init__(self, device: torch.device) -> None:
        self._captures = device.type == "cuda"
        self._graph: CudaGraphStep | None = None
        self.capture_failure: str | None = None

    def __call__(self, model: nn.Module, images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Logits of one batch, overwritten by the next call. All calls need the same model; its weights may change."""
        if self._captures:
            self._captures = False
            self._capture(model, images.clone(), mean, std)
        if self._graph is None or images.shape != self._images.shape:
            return _compiled()(model, images, mean, std)
        self._images.copy_(images)
        self._graph.step(1)
        return self._logits

    def _capture(self, model: nn.Module, images: Tensor, mean: Tensor, std: Tensor) -> None:
        def run() -> None:
            self._logits = _compiled()(model, images, mean, std)

        self._images = images
        self._graph, self.capture_failure = try_capture(lambda: CudaGraphStep(run))


@torch.inference_mode()
def compute_logits(
    model: nn.Module,
    images: Tensor,
    *,
    mean: Tensor,
    std: Tensor,
    precision: str,
    coeffs: Tensor | None = None,
    compiled: CompiledPass | None = None,
    world: World = ALONE,
) -> Tensor:
    """Classify every image exactly once.

    The ranks of a world take turns with whole batches, so the result is the same for any number of them.

    Args:
        model: from `(B, 3, 32, 32)` to `(B, 10)`; its training mode is restored.
        images: `(N, 32, 32, 3)` uint8 on the model's device, N at least 1.
        mean: `(3,)` float32, see `gather.normalise`.
        std: `(3,)` float32.
        precision: "bf16" for autocast, or "fp32".
        coeffs: `(N, 9)` int32 from `augment.affine_coeffs` to augment the images; None for clean ones.
        compiled: this model's compiled pass, which pays off for many passes; None for plain torch.
        world: all its ranks must call this with the same arguments.

    Returns:
        `(N, 10)` float32 logits on the model's device, on every rank.
    """
    classify = _classify if compiled is None else compiled
    was_training = model.training
    model.eval()
    size = min(_MAX_CUDA_BATCH_SIZE if images.is_cuda else _MAX_BATCH_SIZE, len(images))
    starts = range(0, len(images), size)
    logits = torch.zeros((len(starts) * size, NUM_CLASSES), device=images.device)
    for start in starts[world.rank :: world.size]:
        # Positions beyond the end repeat the last image; their logits are dropped below.
        positions = torch.arange(start, start + size, device=images.device).clamp_(max=len(images) - 1)
        batch = images[positions] if coeffs is None else gather_augmented(images, positions, coeffs[positions])
        # Without its cache, because a captured pass must cast the weights again when they have changed.
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False):
            logits[start : start + size] = classify(model, batch, mean, std)
    model.train(was_training)
    world.all_reduce_sum(logits)  # only one rank's are not zero
    return logits[: len(images)]


def loss_and_accuracy(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean cross-entropy, and the share of images whose largest logit is their label's.

    Args:
        logits: `(N, 10)` float32.
        labels: `(N,)` int64.
    """
    loss = functional.cross_entropy(logits, labels)
    accuracy = (logits.argmax(1) == labels).double().mean()
    return float(loss), float(accuracy)
