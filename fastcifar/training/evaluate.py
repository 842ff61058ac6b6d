"""What a model makes of images: logits, loss, accuracy."""

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

# Both divide 5,000; a batch that is not full is filled up, so one shape serves all.
_MAX_BATCH_SIZE = 500
_MAX_CUDA_BATCH_SIZE = 1000


class EvalSet:
    """The chosen images of a split, on a device.

    Args:
        split: from `prepare.load_val_and_test`.
        num_images: how many of a fixed choice.
        device: where to.
        recipe: whose seed, padding and angle the augmented images are drawn with.

    Attributes:
        indices: `(N,)` int64, on the CPU: the images' global sample indices.
        images: `(N, 32, 32, 3)` uint8.
        labels: `(N,)` int64.
        coeffs: `(N, 9)` int32 of the augmented images, the same for every model of a seed: those of epoch 0.
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


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    """`_classify` as torch.compile builds it: once for all models, on its first call."""
    return torch.compile(_classify, dynamic=False)


def _classify(model: nn.Module, images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Logits of one batch."""
    logits: Tensor = model(normalise(images, mean, std))
    return logits.float()


@torch.inference_mode()
def compute_logits(
    model: nn.Module,
    images: Tensor,
    *,
    mean: Tensor,
    std: Tensor,
    precision: str,
    coeffs: Tensor | None = None,
    compile: bool = False,  # noqa: A002
    world: World = ALONE,
) -> Tensor:
    """Classify every image exactly once.

    The ranks of a world take turns at whole batches, so the result is the same for any number of them.

    Args:
        model: takes `(B, 3, 32, 32)`, returns `(B, 10)`; its training mode is restored.
        images: `(N, 32, 32, 3)` uint8 on the model's device, N at least 1.
        mean: `(3,)` float32, see `augment.normalise`.
        std: `(3,)` float32.
        precision: "bf16" for autocast, or "fp32".
        coeffs: `(N, 9)` int32 from `augment.affine_coeffs` to augment the images; None for clean ones.
        compile: whether torch.compile builds the pass, which is worth it where many are made.
        world: whose ranks all call this, with the same arguments.

    Returns:
        `(N, 10)` float32 logits on the model's device, on every rank.
    """
    classify = _compiled() if compile else _classify
    was_training = model.training
    model.eval()
    size = min(_MAX_CUDA_BATCH_SIZE if images.is_cuda else _MAX_BATCH_SIZE, len(images))
    starts = range(0, len(images), size)
    logits = torch.zeros((len(starts) * size, NUM_CLASSES), device=images.device)
    for start in starts[world.rank :: world.size]:
        # Positions beyond the end repeat the last image; their logits are cut off below.
        positions = torch.arange(start, start + size, device=images.device).clamp_(max=len(images) - 1)
        batch = images[positions] if coeffs is None else gather_augmented(images, positions, coeffs[positions])
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits[start : start + size] = classify(model, batch, mean, std)
    model.train(was_training)
    world.all_reduce_sum(logits)  # of zeros and one rank's
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
