import math

import numpy as np
import pytest
import torch
from draw_augmentation import through_torchvision
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import Normalize, ToTensor

from fastcifar.data.containers import Dataset
from fastcifar.kernels.gather import gather_augmented, normalise
from fastcifar.kernels.gather_numba import augment_into
from fastcifar.pipeline.augment import (
    NUM_LEVELS,
    AugmentParams,
    affine_coeffs,
    choose_subset,
    crop_flip_rotate,
    draw_order,
    sample_augmentation,
)

FIELDS = ("dy", "dx", "flip", "angle_level")


def random_images(num_images: int) -> NDArray[np.uint8]:
    # No pixel is black, so that a pixel from outside never looks like one from inside.
    return np.random.default_rng(num_images).integers(1, 256, (num_images, 32, 32, 3), np.uint8)


def count_different(images: NDArray[np.uint8], params: AugmentParams) -> int:
    """How many images differ from torchvision's; torch and numba must agree on all."""
    ours = crop_flip_rotate(torch.from_numpy(images), params).numpy()
    by_numba = np.empty_like(ours)
    augment_into(by_numba, images, affine_coeffs(params).numpy())
    np.testing.assert_array_equal(by_numba, ours)
    return int((ours != through_torchvision(images, params)).any((1, 2, 3)).sum())


def test_rotation_equals_pillow_at_all_levels() -> None:
    images = random_images(1024)
    num_different = 0
    for levels in torch.arange(NUM_LEVELS).split(len(images)):
        no_offset = torch.zeros_like(levels)
        num_different += count_different(images, AugmentParams(no_offset, no_offset, levels < 0, levels, 0, 15))
    assert num_different == 0


def test_random_draws_equal_torchvision() -> None:
    assert count_different(random_images(2000), sample_augmentation(42, 3, torch.arange(2000))) == 0


@pytest.mark.network
def test_random_draws_equal_torchvision_on_real_images(real_dataset: Dataset) -> None:
    indices = torch.arange(50_000, 60_000)
    assert count_different(real_dataset.test_images, sample_augmentation(7, 1, indices)) == 0


@pytest.mark.parametrize(("padding", "max_angle_deg"), [(0, 0), (0, 15), (2, 0), (8, 90), (3, 10)])
def test_other_paddings_and_angles_equal_torchvision(padding: int, max_angle_deg: float) -> None:
    params = sample_augmentation(1, 2, torch.arange(300), padding=padding, max_angle_deg=max_angle_deg)
    assert count_different(random_images(300), params) == 0


def test_no_angle_is_crop_and_flip_alone() -> None:
    images = random_images(500)
    params = sample_augmentation(5, 0, torch.arange(500), max_angle_deg=0)
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    draws = zip(params.dy.tolist(), params.dx.tolist(), params.flip.tolist(), strict=True)
    expected = [
        image[dy : dy + 32, dx : dx + 32][:, :: -1 if flip else 1]
        for image, (dy, dx, flip) in zip(padded, draws, strict=True)
    ]
    np.testing.assert_array_equal(crop_flip_rotate(torch.from_numpy(images), params).numpy(), np.stack(expected))
    # Crop and flip are those that the same seed draws with rotation.
    rotated = sample_augmentation(5, 0, torch.arange(500), max_angle_deg=15)
    assert all(torch.equal(getattr(params, field), getattr(rotated, field)) for field in FIELDS)


def test_angles_are_exact_and_cover_their_range() -> None:
    levels = torch.tensor([0, 1, 32_768, 65_535])
    params = AugmentParams(levels, levels, levels > 0, levels, 4, 15)
    assert params.angle_deg.dtype == torch.float32
    assert params.angle_deg.tolist() == [-15.0, 15 / 32_768 - 15, 0.0, 15 - 15 / 32_768]


def test_golden_draws() -> None:
    params = sample_augmentation(42, 0, torch.tensor([0, 1, 2, 49_999, 50_000, 59_999]))
    assert params.dy.tolist() == [8, 5, 2, 4, 8, 7]
    assert params.dx.tolist() == [5, 7, 2, 7, 4, 5]
    assert params.flip.tolist() == [True, False, False, False, True, True]
    assert params.angle_level.tolist() == [48531, 56014, 12955, 55163, 10025, 49886]
    assert draw_order(42, 0, torch.arange(50_000))[:4].tolist() == [43631, 25769, 34914, 22886]
    assert draw_order(42, 1, torch.arange(50_000))[:4].tolist() == [42966, 40798, 33058, 26492]
    assert choose_subset(torch.arange(50_000), 4).tolist() == [4562, 15889, 27764, 45003]


def test_coefficients_of_an_upright_image_and_of_a_quarter_turn() -> None:
    """In 16.16 fixed point; pixel centres lie at a half. A turn by -90 degrees reads row 31 - x, column y."""
    one, half = 1 << 16, 1 << 15
    level, offset = torch.tensor([NUM_LEVELS // 2, 0]), torch.tensor([0, 7])
    params = AugmentParams(offset, offset + 1, offset > 0, level, padding=4, max_angle_deg=90)
    assert affine_coeffs(params).tolist() == [
        [one, 0, half, 0, one, half, -4, -3, 0],
        [0, one, half, -one, 0, 31 * one + half, 3, 4, 31],
    ]


def test_draws_do_not_depend_on_how_indices_are_split() -> None:
    indices = torch.randperm(60_000)[:5000]
    whole = sample_augmentation(9, 4, indices)
    for num_parts in (2, 7, 64):
        parts = [sample_augmentation(9, 4, part) for part in indices.chunk(num_parts)]
        for field in FIELDS:
            assert torch.equal(torch.cat([getattr(part, field) for part in parts]), getattr(whole, field))


@pytest.mark.parametrize(("seed", "epoch"), [(42, 1), (43, 0), (0, 42)])
def test_another_seed_or_epoch_draws_again(seed: int, epoch: int) -> None:
    indices = torch.arange(10_000)
    one, other = sample_augmentation(42, 0, indices), sample_augmentation(seed, epoch, indices)
    for field, chance in (("dy", 1 / 9), ("dx", 1 / 9), ("flip", 1 / 2), ("angle_level", 1 / NUM_LEVELS)):
        equal = (getattr(one, field) == getattr(other, field)).double().mean().item()
        assert abs(equal - chance) < 6 * math.sqrt(chance / 10_000)


def test_draws_are_uniform_and_independent() -> None:
    params = sample_augmentation(42, 5, torch.arange(50_000))
    joint = torch.stack([params.dy, params.dx, params.flip.long(), params.angle_level >> 13])
    counts = torch.bincount(((joint[0] * 9 + joint[1]) * 2 + joint[2]) * 8 + joint[3], minlength=1296)
    expected = 50_000 / 1296
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert abs(chi_square - 1295) < 6 * math.sqrt(2 * 1295)  # mean and standard deviation of chi-square


def test_order_is_a_permutation_and_consistent_in_subsets() -> None:
    indices = torch.arange(1000)
    order = draw_order(3, 0, indices)
    assert order.sort().values.tolist() == list(range(1000))
    subset = choose_subset(indices, 300)
    kept = order[torch.isin(order, subset)]
    assert torch.equal(subset[draw_order(3, 0, subset)], kept)
    assert not torch.equal(order, draw_order(3, 1, indices))


def test_a_smaller_choice_is_part_of_a_larger_one() -> None:
    indices = torch.arange(1000)
    small, large = choose_subset(indices, 100), choose_subset(indices, 500)
    assert len(small) == 100
    assert torch.isin(small, large).all()
    assert torch.equal(choose_subset(indices, 1000), indices)


def test_gather_picks_positions() -> None:
    images = torch.from_numpy(random_images(50))
    positions = torch.tensor([7, 7, 49, 0])
    params = sample_augmentation(1, 1, torch.arange(4))
    expected = crop_flip_rotate(images[positions], params)
    assert torch.equal(gather_augmented(images, positions, affine_coeffs(params)), expected)


def as_torchvision(image: NDArray[np.uint8], mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    normalised: Tensor = Normalize(mean, std)(ToTensor()(image))
    return normalised


@pytest.mark.parametrize(
    ("mean", "std"), [((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616))]
)
def test_normalise_equals_torchvision_for_all_values(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    images = np.arange(256, dtype=np.uint8).repeat(12).reshape(1, 32, 32, 3).copy()
    ours = normalise(torch.from_numpy(images), torch.tensor(mean), torch.tensor(std))
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(ours[0], as_torchvision(images[0], mean, std))


@pytest.mark.gpu
def test_cuda_draws_and_pixels_equal_the_cpu() -> None:
    indices = torch.arange(NUM_LEVELS)
    images = torch.from_numpy(random_images(NUM_LEVELS))
    on_cpu, on_cuda = sample_augmentation(42, 1, indices), sample_augmentation(42, 1, indices.cuda())
    for field in FIELDS:
        assert torch.equal(getattr(on_cpu, field), getattr(on_cuda, field).cpu())
    assert torch.equal(draw_order(42, 1, indices), draw_order(42, 1, indices.cuda()).cpu())
    assert torch.equal(crop_flip_rotate(images, on_cpu), crop_flip_rotate(images.cuda(), on_cuda).cpu())
    levels = AugmentParams(on_cuda.dy, on_cuda.dx, on_cuda.flip, indices.cuda(), 4, 15)
    levels_cpu = AugmentParams(on_cpu.dy, on_cpu.dx, on_cpu.flip, indices, 4, 15)
    assert torch.equal(crop_flip_rotate(images, levels_cpu), crop_flip_rotate(images.cuda(), levels).cpu())
