"""Winograd's convolutions and torch's, both compared with float64."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from fastcifar.kernels import native, winograd
from fastcifar.kernels.winograd import ALL_PASSES, conv3x3

pytestmark = pytest.mark.skipif(winograd.why_unavailable() is not None, reason="the kernel cannot be compiled here")
EPSILON = 2.0**-23
FEW = [(2, 64, 64, 32), (6, 128, 64, 16), (40, 128, 64, 16), (40, 64, 128, 8), (70, 256, 256, 4), (7, 32, 32, 12)]
MANY = [
    (batch, channels, channels, size)
    for batch in (1, 3, 128)
    for channels in (16, 32, 48, 64, 128, 256, 512)
    for size in (4, 8, 16, 32)
    if batch * channels * size**2 <= 128 * 64 * 32**2
]


@pytest.fixture(scope="module", params=["this CPU", "AVX2"], autouse=True)
def instructions(request: pytest.FixtureRequest) -> Iterator[None]:
    """The kernel built for this CPU, and built for a CPU with only AVX2."""
    if request.param == "this CPU":
        yield
        return
    if (
        "AVX2" not in torch.backends.cpu.get_cpu_capability()
        and "AVX512" not in torch.backends.cpu.get_cpu_capability()
    ):
        pytest.skip("this CPU has no AVX2")
    flags = native._FLAGS
    native._FLAGS = tuple(f for flag in flags for f in (("-mavx2", "-mfma") if flag == "-march=native" else (flag,)))
    for cached in (native.load_library, winograd._load):
        cached.cache_clear()
    yield
    native._FLAGS = flags
    for cached in (native.load_library, winograd._load):
        cached.cache_clear()


class Results(NamedTuple):
    y: Tensor
    dx: Tensor
    dw: Tensor


def draw(
    batch: int, in_channels: int, out_channels: int, size: int, scale: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Images, weights and an output's gradient; the scale is divided so that products stay in float32's range."""
    generator = torch.Generator().manual_seed(batch * size + in_channels)
    x = torch.randn((batch, in_channels, size, size), generator=generator) * scale
    weight = torch.randn((out_channels, in_channels, 3, 3), generator=generator) * scale
    dy = torch.randn((batch, out_channels, size, size), generator=generator) * scale
    return tuple(tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, weight, dy))  # type: ignore[return-value]


def run(x: Tensor, weight: Tensor, dy: Tensor, passes: str | None) -> Results:
    """All three passes; None for torch's own convolution."""
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    y = torch.conv2d(x, weight.to(x.dtype), padding=1) if passes is None else conv3x3(x, weight, passes)
    return Results(y.detach(), *torch.autograd.grad(y, (x, weight), dy))


@contextlib.contextmanager
def num_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_float64(x: Tensor, weight: Tensor, dy: Tensor) -> Results:
    return run(x.double(), weight.double(), dy.double(), None)


def rms_error(found: Tensor, exact: Tensor) -> float:
    """Root mean square error, relative to that of the exact values."""
    return float((found.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt())


def check_errors(shape: tuple[int, int, int, int], scale: float = 1.0) -> None:
    inputs = draw(*shape, scale)
    exact = in_float64(*inputs)
    with num_threads(2):  # each more gives torch shorter sums, and so smaller errors
        torchs, ours = run(*inputs, None), run(*inputs, ALL_PASSES)
    for name, one, other, right in zip(Results._fields, ours, torchs, exact, strict=True):
        assert rms_error(one, right) <= 4 * rms_error(other, right), (shape, name)
        if not torch.equal(one, other):  # it is Winograd's
            maximum = float((one.double() - right).abs().max() / right.square().mean().sqrt())
            assert maximum <= 96 * EPSILON * max(1, shape[1] / 64) ** 0.5, (shape, name)


@pytest.mark.parametrize("shape", FEW, ids=str)
def test_errors_are_of_the_size_of_torchs(shape: tuple[int, int, int, int]) -> None:
    check_errors(shape)


@pytest.mark.slow
@pytest.mark.parametrize("shape", MANY, ids=str)
def test_errors_are_of_the_size_of_torchs_everywhere(shape: tuple[int, int, int, int]) -> None:
    check_errors(shape)


@pytest.mark.parametrize("scale", [1e-15, 1e-6, 1e6, 1e15])
def test_errors_do_not_depend_on_the_scale(scale: float) -> None:
    check_errors((6, 128, 64, 16), scale)


@pytest.mark.parametrize("shape", [(2, 64, 64, 32), (70, 256, 256, 4)], ids=str)
def test_zeros_are_exact(shape: tuple[int, int, int, int]) -> None:
    x, weight, dy = draw(*shape)
    for zeroed in ((x * 0, weight, dy * 0), (x, weight * 0, dy * 0)):
        y, dx, dw = run(*zeroed, ALL_PASSES)
        assert not y.any()
        assert not dx.any()
        assert not dw.any()
    half = x.clone()
    half[:1] = 0
    assert not run(half, weight, dy, ALL_PASSES).y[0].any()


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 3e38])
def test_values_that_are_not_finite_stay_so(value: float) -> None:
    for changed in range(3):
        inputs = draw(6, 128, 64, 16)
        for position in ((0, 0, 0, 0), (3, 7, 1, 2) if changed == 1 else (3, 7, 5, 10)):
            inputs[changed][position] = value
        torchs, ours = run(*inputs, None), run(*inputs, ALL_PASSES)
        for name, one, other in zip(Results._fields, ours, torchs, strict=True):
            assert not one[~other.isfinite()].isfinite().any(), name
        spread = ours.y.isfinite().flatten(1).all(1)
        assert spread[[1, 2, 4, 5]].all() or changed == 1  # other images are untouched


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_depend_on_neither_threads_nor_memory_format(dtype: torch.dtype) -> None:
    for shape in [(6, 128, 64, 16), (70, 256, 256, 4), (40, 128, 128, 16)]:
        x, weight, dy = draw(*shape)
        x, dy = x.to(dtype), dy.to(dtype)
        expected = run(x, weight, dy, ALL_PASSES)
        for count in (1, 2, 3, 8):
            with num_threads(count):
                for one, other in zip(run(x, weight, dy, ALL_PASSES), expected, strict=True):
                    assert torch.equal(one, other), (shape, count)
        wide = torch.empty((*x.shape[:3], 2 * x.shape[3]), dtype=dtype)
        wide[..., ::2] = x
        for images in (x.contiguous(), wide[..., ::2]):
            for one, other in zip(run(images, weight.contiguous(), dy.contiguous(), ALL_PASSES), expected, strict=True):
                assert torch.equal(one, other)
                assert one.is_contiguous(memory_format=torch.channels_last)


def test_two_python_threads_at_once() -> None:
    inputs = [draw(6, 128, 64, 16), draw(70, 256, 256, 4)] * 8
    expected = [run(x, weight, dy, ALL_PASSES) for x, weight, dy in inputs[:2]] * 8
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda each: run(each[0], each[1], each[2], ALL_PASSES), inputs)
        for ours, right in zip(found, expected, strict=True):
            assert all(torch.equal(one, other) for one, other in zip(ours, right, strict=True))


def test_bf16_images_are_computed_in_float32() -> None:
    x, weight, dy = draw(6, 128, 64, 16)
    x, dy = x.bfloat16(), dy.bfloat16()
    ours = run(x, weight, dy, ALL_PASSES)
    exact = in_float64(x, weight, dy)
    assert [tensor.dtype for tensor in ours] == [torch.bfloat16, torch.bfloat16, torch.float32]
    for one, right in zip(ours[:2], exact[:2], strict=True):
        assert torch.equal(one, right.bfloat16()) or rms_error(one, right) < 2.0**-9  # a rounding to 8 bits
    assert rms_error(ours.dw, exact.dw) < 16 * EPSILON
    x[0, 0, 0, 0] = float("nan")
    assert run(x, weight, dy, ALL_PASSES).y[0, :, :2, :2].isnan().all()


@pytest.mark.parametrize("passes", ["", "f", "i", "w", "fi"])
def test_each_pass_is_chosen_by_itself(passes: str) -> None:
    inputs = draw(6, 128, 64, 16)
    torchs, all_ours, ours = run(*inputs, None), run(*inputs, ALL_PASSES), run(*inputs, passes)
    for name, mixed, with_torch, with_winograd in zip("fiw", ours, torchs, all_ours, strict=True):
        assert torch.equal(mixed, with_winograd if name in passes else with_torch), name


@pytest.mark.parametrize(
    "shape",
    [
        (2, 64, 64, 30),
        (2, 64, 24, 32),
        (2, 16, 64, 32),
        (2, 3, 64, 32),
        (1, 64, 64, 28),
        (0, 64, 64, 32),
        (1, 8192, 32, 32),
    ],
    ids=str,
)
def test_other_shapes_are_left_to_torch(shape: tuple[int, int, int, int]) -> None:
    x, weight, dy = draw(*shape)
    for one, other in zip(run(x, weight, dy, ALL_PASSES), run(x, weight, dy, None), strict=True):
        assert torch.equal(one, other)


def test_float64_is_left_to_torch() -> None:
    x, weight, dy = (tensor.double() for tensor in draw(2, 64, 64, 32))
    for one, other in zip(run(x, weight, dy, ALL_PASSES), run(x, weight, dy, None), strict=True):
        assert torch.equal(one, other)


def test_shapes_that_do_not_fit() -> None:
    x, weight, dy = draw(2, 64, 64, 32)
    with pytest.raises(ValueError, match=r"^x must be \(N, 64, H, W\), not \(2, 32, 32, 32\)$"):
        conv3x3(x[:, :32], weight, ALL_PASSES)
    with pytest.raises(ValueError, match=r"^weight must be \(O, I, 3, 3\) on the CPU, not \(64, 64, 1, 1\) on cpu$"):
        conv3x3(x, weight[..., :1, :1], ALL_PASSES)
    with pytest.raises(ValueError, match=r"does not fit x"):
        winograd.conv3x3_weight_gradient(dy[:1], x, weight, ALL_PASSES)
    with pytest.raises(ValueError, match=r"^dy must be \(N, 64, H, W\)"):
        winograd.conv3x3_input_gradient(dy[:, :32], x, weight, ALL_PASSES)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # opcheck's own
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_accepts_the_operator(dtype: torch.dtype) -> None:
    x, weight, _ = draw(1, 64, 32, 32)
    inputs = (x.to(dtype).requires_grad_(), weight.requires_grad_(), ALL_PASSES)
    torch.library.opcheck(conv3x3, inputs)
