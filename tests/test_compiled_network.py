from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fastcifar.training.compiled_network import CompiledNetwork, StepOptions, _Unit
from fastcifar.training.model import build_model

ALL_OFF = StepOptions(combo_kernels=False, bf16_weights=False, recompute_relu_mask=False)


def gradients_and_statistics(
    network: nn.Module, model: nn.Module, leaves: list[Tensor], inputs: Tensor, *, is_bf16: bool
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Logits, gradients and running statistics after one forward and backward pass."""
    with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
        logits = network(inputs)
        loss = functional.cross_entropy(logits, torch.arange(len(inputs)) % 10)
    gradients = [gradient.to(torch.float32) for gradient in torch.autograd.grad(loss, leaves)]
    return logits.detach(), gradients, [b.clone() for b in model.buffers() if b.is_floating_point()]


def images(num_images: int = 4) -> Tensor:
    torch.manual_seed(3)
    return torch.randn(num_images, 3, 32, 32).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("options", [ALL_OFF, StepOptions(), StepOptions(padded_input=True)])
def test_the_compiled_network_equals_the_model(precision: str, options: StepOptions) -> None:
    """Bit-equal if only the graph differs: autocast rounds weights like the copies, ReLU's mask is the same, and zero
    channels add zeros. These may be added in another order, so padding has float32's tolerance."""
    results = []
    for is_ours in (False, True):
        model = build_model(5).to(memory_format=torch.channels_last)
        model.train()
        network: nn.Module = model
        leaves, inputs = list[Tensor](model.parameters()), images()
        if is_ours:
            compiled = CompiledNetwork(model, options, precision)
            network, leaves, inputs = compiled, compiled.leaves, compiled.to_input(inputs)
            assert inputs.is_contiguous(memory_format=torch.channels_last)
        results.append(gradients_and_statistics(network, model, leaves, inputs, is_bf16=precision == "bf16"))
    (logits, gradients, statistics), (our_logits, our_gradients, our_statistics) = results
    assert len(our_gradients) == 62
    # One rounding of bf16 is 2**-9; the sums of a few thousand terms in another order stay within a few of them.
    tolerance: Any = {"rtol": 0.0, "atol": 0.0}
    if options.padded_input:
        tolerance = {"rtol": 0.05, "atol": 0.05} if precision == "bf16" else {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(our_logits, logits, **tolerance)
    torch.testing.assert_close(our_statistics, statistics, **tolerance)
    for ours, theirs in zip(our_gradients, gradients, strict=True):
        scale = theirs.abs().max()
        torch.testing.assert_close(ours / scale, theirs / scale, **tolerance)


def test_batch_norm_by_our_kernels_equals_the_models() -> None:
    """With their plain-torch equivalent; in float64, where no rounding crosses ReLU's kink."""
    pytest.importorskip("triton", reason="torch for the CPU has no Triton")
    results = []
    for is_ours in (False, True):
        model = build_model(5).double().to(memory_format=torch.channels_last)
        model.train()
        network: nn.Module = CompiledNetwork(model, StepOptions(triton_batch_norm=True), "fp32") if is_ours else model
        leaves = list[Tensor](model.parameters())
        results.append(gradients_and_statistics(network, model, leaves, images().double(), is_bf16=False))
    (logits, gradients, statistics), (our_logits, our_gradients, our_statistics) = results
    torch.testing.assert_close(our_logits, logits, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(our_statistics, statistics, rtol=1e-9, atol=1e-9)
    for ours, theirs in zip(our_gradients, gradients, strict=True):  # in float32: a rounding is 2**-24
        scale = theirs.abs().max()
        torch.testing.assert_close(ours / scale, theirs / scale, rtol=0, atol=1e-6)


def test_batch_norm_by_our_kernels_takes_bf16() -> None:
    """Features are rounded as often as in the model: logits differ by a few bf16 roundings, 2**-9 each, and gradients
    by the ReLUs that these switch. A wrong gradient would have another direction; one that is counted twice, or half,
    would have the same, and a norm that differs by 2: the norms may differ by half of that, in factors."""
    pytest.importorskip("triton", reason="torch for the CPU has no Triton")
    model = build_model(5).to(memory_format=torch.channels_last).train()
    networks = [
        CompiledNetwork(model, StepOptions(triton_batch_norm=has_triton), "bf16") for has_triton in (False, True)
    ]
    (logits, gradients, _), (our_logits, our_gradients, _) = (
        gradients_and_statistics(network, model, network.leaves, network.to_input(images()), is_bf16=True)
        for network in networks
    )
    torch.testing.assert_close(our_logits, logits, rtol=0.05, atol=0.05)
    for ours, theirs in zip(our_gradients, gradients, strict=True):
        assert functional.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.5
        assert 2**-0.5 < ours.norm() / theirs.norm() < 2**0.5


@pytest.mark.parametrize("is_recomputed", [False, True])
def test_relu_has_no_gradient_at_zero_and_passes_on_nan(is_recomputed: bool) -> None:
    """NaN is passed on, so that the first bad step is found."""
    conv = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.ones_(conv.weight)
    unit = _Unit(conv, nn.BatchNorm2d(1), StepOptions(recompute_relu_mask=is_recomputed), "fp32")
    features, _ = unit(torch.tensor([-1.0, 0.0, 1.0]).reshape(3, 1, 1, 1))
    assert features.flatten().tolist() == pytest.approx([0, 0, 1.5**0.5], rel=1e-5)  # divided by sqrt(2 / 3 + 1e-5)
    (gradient,) = torch.autograd.grad(features.sum(), unit.norm.bias)
    assert gradient.item() == 1  # only the third value's
    features, _ = unit(torch.tensor([-1.0, float("nan"), 1.0]).reshape(3, 1, 1, 1))
    assert features.isnan().all()


def test_the_compiled_network_counts_no_batches() -> None:
    model = build_model(5)
    CompiledNetwork(model, StepOptions(), "fp32")(images(2))
    assert model.backbone.bn1.num_batches_tracked == 0
