import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from fastcifar.kernels.gather import normalise
from fastcifar.pipeline.augment import affine_coeffs, crop_flip_rotate, sample_augmentation
from fastcifar.training import evaluate
from fastcifar.training.evaluate import CompiledPass, compute_logits, loss_and_accuracy
from fastcifar.training.model import build_model

HALF = torch.full((3,), 0.5)


class Recorder(nn.Module):
    """Returns the first ten pixels as logits, and records its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.batch_sizes: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        self.batch_sizes.append(len(images))
        return images[:, 0, 0, :10]


def logits_of(images: Tensor) -> Tensor:
    return normalise(images, HALF, HALF)[:, 0, 0, :10]


@pytest.mark.parametrize(("num_images", "batch_sizes"), [(1, [1]), (500, [500]), (1001, [500, 500, 500])])
def test_every_image_counts_once(num_images: int, batch_sizes: list[int]) -> None:
    images = torch.randint(0, 256, (num_images, 32, 32, 3), dtype=torch.uint8)
    model = Recorder().train()
    logits = compute_logits(model, images, mean=HALF, std=HALF, precision="fp32")
    assert model.batch_sizes == batch_sizes
    assert model.training
    assert torch.equal(logits, logits_of(images))


def test_geometry_augments() -> None:
    images = torch.randint(0, 256, (30, 32, 32, 3), dtype=torch.uint8)
    params = sample_augmentation(42, 0, torch.arange(50_000, 50_030))
    logits = compute_logits(Recorder(), images, mean=HALF, std=HALF, precision="fp32", coeffs=affine_coeffs(params))
    assert torch.equal(logits, logits_of(crop_flip_rotate(images, params)))


@pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)]
)
def test_compiled_logits_equal_eager_ones(device: str) -> None:
    """Within TF32's rounding of factors, at most 2**-11, in 20 layers; a captured pass uses changed weights."""
    images = torch.randint(0, 256, (30, 32, 32, 3), dtype=torch.uint8, device=device)
    coeffs, half = affine_coeffs(sample_augmentation(42, 0, torch.arange(30, device=device))), HALF.to(device)
    model = build_model(0).to(device)
    compiled_pass = CompiledPass(images.device)
    for seed in (0, 1):
        model.load_state_dict(build_model(seed).state_dict())
        eager, compiled = (
            compute_logits(model, images, mean=half, std=half, precision="fp32", coeffs=coeffs, compiled=compiled)
            for compiled in (None, compiled_pass)
        )
        torch.testing.assert_close(compiled, eager, rtol=1e-2, atol=1e-2)
        assert eager.std() > 0.01
    assert compiled_pass.capture_failure is None


class FakeGraph:
    """Runs its function like a CUDA graph: on the tensors of the capture."""

    num_captured = 0
    failure: RuntimeError | None = None

    def __init__(self, run: Callable[[], None]) -> None:
        if self.failure is not None:
            raise self.failure
        FakeGraph.num_captured += 1
        self._run = run

    def step(self, num_left: int) -> None:
        assert num_left == 1
        self._run()


@pytest.fixture
def captured_pass(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompiledPass]:
    """As on CUDA, with nothing compiled."""
    monkeypatch.setattr(evaluate, "CudaGraphStep", FakeGraph)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(FakeGraph, "num_captured", 0)
    evaluate._compiled.cache_clear()
    yield CompiledPass(torch.device("cuda"))
    evaluate._compiled.cache_clear()


def test_a_captured_pass_counts_every_image_once(captured_pass: CompiledPass) -> None:
    """One graph runs full and padded batches of several splits; another batch size does not use it."""
    linear = nn.Linear(3072, 10)
    model = nn.Sequential(nn.Flatten(), linear).eval()
    for num_images in (1001, 700, 30):
        images = torch.randint(0, 256, (num_images, 32, 32, 3), dtype=torch.uint8)
        nn.init.normal_(linear.weight)  # in place, as training does
        found = compute_logits(model, images, mean=HALF, std=HALF, precision="fp32", compiled=captured_pass)
        expected = compute_logits(model, images, mean=HALF, std=HALF, precision="fp32")
        assert torch.equal(found, expected)
    assert FakeGraph.num_captured == 1
    assert captured_pass.capture_failure is None


def test_a_pass_that_cannot_be_captured_is_compiled(
    captured_pass: CompiledPass, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeGraph, "failure", RuntimeError("operation not permitted\nwhen stream is capturing"))
    images = torch.randint(0, 256, (20, 32, 32, 3), dtype=torch.uint8)
    logits = compute_logits(Recorder(), images, mean=HALF, std=HALF, precision="fp32", compiled=captured_pass)
    assert torch.equal(logits, logits_of(images))
    assert str(captured_pass.capture_failure).startswith("operation not permitted when stream is capturing, in ")
    monkeypatch.setattr(FakeGraph, "failure", torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        compute_logits(
            Recorder(), images, mean=HALF, std=HALF, precision="fp32", compiled=CompiledPass(torch.device("cuda"))
        )


def test_loss_and_accuracy() -> None:
    logits = torch.zeros(4, 10)
    logits[0, 3] = logits[1, 3] = 100.0
    loss, accuracy = loss_and_accuracy(logits, torch.tensor([3, 4, 0, 9]))
    assert accuracy == 0.5  # ties go to class 0
    assert loss == pytest.approx((0 + 100 + 2 * math.log(10)) / 4)
