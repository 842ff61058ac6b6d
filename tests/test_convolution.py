"""The choice of a run's convolutions, and training with them as with torch's."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fastcifar.distributed import ALONE, World
from fastcifar.errors import ArgumentError, FastcifarError
from fastcifar.kernels import winograd
from fastcifar.pipeline.loader import FixedBatch
from fastcifar.recipes import get_recipe
from fastcifar.training import convolution, run
from fastcifar.training.callbacks import Callback
from fastcifar.training.convolution import choose_convolution, parse_convolution, use_convolution
from fastcifar.training.model import build_model
from fastcifar.training.run import train_model
from fastcifar.training.settings import parse_settings, resolve_settings
from fastcifar.training.trainer import Trainer

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ZEN3, ZEN4, XEON = {"avx2", "fma"}, {"avx2", "avx512f", "avx512_bf16"}, {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}
needs_kernel = pytest.mark.skipif(winograd.why_unavailable() is not None, reason="the kernel cannot be compiled here")


class Lines(Callback):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def on_message(self, text: str) -> None:
        self.lines.append(text)


@pytest.mark.parametrize(
    ("flags", "precision", "expected"),
    [
        (ZEN3, "fp32", "64@32:fiw 128@16:fiw 256@8:fiw 512@4:fiw"),
        (ZEN3, "bf16", "torch"),
        (ZEN4, "fp32", "64@32:fiw 128@16:fiw 256@8:fiw 512@4:fiw"),
        (XEON, "bf16", "torch"),
        ({"asimd"}, "fp32", "torch"),
        (set(), "fp32", "torch"),
    ],
)
def test_the_choice_follows_the_measured_cpus(
    flags: set[str], precision: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolution, "cpu_flags", lambda: frozenset(flags))
    assert choose_convolution("auto", CPU, precision) == expected
    assert choose_convolution("torch", CPU, precision) == "torch"
    assert choose_convolution("winograd", CPU, precision) == "all:fiw"
    assert {choose_convolution(choice, CUDA, precision) for choice in ("auto", "torch", "winograd")} == {"torch"}
    with pytest.raises(ArgumentError, match="must be auto, torch or winograd, not 'fft'"):
        choose_convolution("fft", CPU, precision)


def test_tables_in_code_are_sound() -> None:
    for table in convolution._MEASURED.values():
        assert set(parse_convolution(table)) == {"64@32", "128@16", "256@8", "512@4"}


@pytest.mark.parametrize("text", ["", "winograd", "64@32", "64@32:", "64@32:x", "64@32:f,128@16:f", "64@32:f ", 7])
def test_damaged_tables(text: str) -> None:
    config = resolve_settings(get_recipe("adam89"), device="cpu").as_config()
    with pytest.raises(FastcifarError, match="damaged, or of another version"):
        parse_settings(config | {"convolution": text})


def test_a_run_older_than_the_setting_uses_torchs_convolution() -> None:
    config = resolve_settings(get_recipe("adam89"), device="cpu", convolution="winograd").as_config()
    assert parse_settings(config).convolution == "all:fiw"
    del config["convolution"]
    assert parse_settings(config).convolution == "torch"


def test_the_model_keeps_its_parameters() -> None:
    before, after = build_model(42), build_model(42)
    parameters = dict(after.named_parameters())
    state = torch.get_rng_state()
    use_convolution(after, "all:fiw")
    assert torch.equal(torch.get_rng_state(), state)
    assert [name for name, _ in after.named_parameters()] == [name for name, _ in before.named_parameters()]
    assert all(parameters[name] is value for name, value in after.named_parameters())
    after.load_state_dict(before.state_dict())
    changed = {name for name, module in after.named_modules() if isinstance(module, convolution._Conv3x3)}
    assert len(changed) == 14
    assert {"backbone.conv1", "backbone.layer1.0.conv1", "backbone.layer4.1.conv2"} <= changed
    assert "backbone.layer2.0.conv1" not in changed  # its stride is 2


def test_other_convolutions_are_not_replaced() -> None:
    layers = nn.Sequential(
        nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, bias=False, groups=2)
    )
    use_convolution(layers, "all:fiw")
    assert {type(layer) for layer in layers} == {nn.Conv2d}


@needs_kernel
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_each_layer_follows_its_row_of_the_table(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int, str, torch.dtype]] = []

    def noting(images: Tensor, weight: Tensor, passes: str) -> Tensor:
        seen.append((weight.shape[0], images.shape[2], passes, images.dtype))
        result: Tensor = winograd.conv3x3(images, weight, passes)
        return result

    monkeypatch.setattr(convolution, "conv3x3", noting)
    model = build_model(42)
    use_convolution(model, "64@32:fw 512@4:i")
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        model(torch.zeros(1, 3, 32, 32))
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    assert seen == [(64, 32, "fw", dtype)] * 4 + [(512, 4, "i", dtype)] * 3


def gradients(convolution: str, dtype: torch.dtype) -> Tensor:
    """All gradients of one step of the network, concatenated. GELU replaces ReLU: a ReLU near 0 that switches by one
    rounding changes a gradient by far more than that rounding."""
    trainer = Trainer(get_recipe("adam89"), CPU, precision="fp32", compile=False, convolution=convolution)
    trainer.model.to(dtype)
    for module in trainer.model.modules():
        if hasattr(module, "relu"):
            module.relu = nn.GELU()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((4, 3, 32, 32), generator=generator).to(dtype)
    labels = torch.randint(0, 10, (4,), generator=generator)
    nn.functional.cross_entropy(trainer.model(images), labels).backward()
    found = [parameter.grad for parameter in trainer.model.parameters() if parameter.grad is not None]
    assert len(found) == 62
    return torch.cat([gradient.flatten().double() for gradient in found])


@needs_kernel
def test_gradients_are_torchs() -> None:
    """Each pass has at most 4 times the rounding error of torch's (test_winograd), so a step has little more."""
    torch.set_num_threads(2)  # each more gives torch shorter sums, and so smaller errors
    exact = gradients("torch", torch.float64)
    ours, torchs = (float((gradients(name, torch.float32) - exact).norm()) for name in ("all:fiw", "torch"))
    assert 0 < torchs < 1e-4 * float(exact.norm())
    assert ours != torchs
    assert ours < 8 * torchs


def losses(convolution: str, num_steps: int, scale: float = 1.0) -> list[float]:
    recipe = replace(get_recipe("sgd92"), global_batch_size=16)
    trainer = Trainer(recipe, CPU, precision="fp32", compile=False, convolution=convolution)
    with torch.no_grad():
        trainer.model.backbone.conv1.weight.mul_(scale)
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(num_steps):
        images = torch.randint(0, 256, (16, 32, 32, 3), dtype=torch.uint8, generator=generator)
        trainer.begin_epoch()
        trainer.step(FixedBatch(images, torch.randint(0, 10, (16,), generator=generator)))
        found.append(float(trainer.totals[0]) / 16)
    return found


@pytest.mark.slow
@needs_kernel
def test_losses_differ_from_torchs_as_after_a_rounding_of_the_weights() -> None:
    torchs = torch.tensor(losses("torch", 30))
    ours, moved = (
        (torch.tensor(found) - torchs).abs() / torchs
        for found in (losses("all:fiw", 30), losses("torch", 30, 1 + 2**-23))
    )
    assert ours[0] < 1e-5
    for begin in (0, 10, 20):
        assert ours[begin : begin + 10].max() < 30 * moved[begin : begin + 10].max().clamp(min=1e-6)


@needs_kernel
def test_two_runs_are_equal_and_evaluate_as_they_were_trained(tiny_data: Path, tmp_path: Path) -> None:
    from fastcifar.inference.classifier import load_classifier

    settings = resolve_settings(
        get_recipe("adam89"), epochs=1, num_train_images=16, global_batch_size=16, num_eval_images=8, device="cpu",
        precision="fp32", convolution="winograd",
    )  # fmt: skip
    weights = []
    for name in ("one", "other"):
        run_dir, _ = train_model(settings, tiny_data, tmp_path / name)
        weights.append(torch.load(run_dir / "best.pt", weights_only=True)["model"])
        assert json.loads((run_dir / "config.json").read_text())["convolution"] == "all:fiw"
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    classifier = load_classifier(run_dir, "cpu")
    assert sum(isinstance(module, convolution._Conv3x3) for module in classifier.model.modules()) == 14
    assert classifier.notes == ()


def test_without_the_kernel_a_run_has_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = resolve_settings(get_recipe("adam89"), device="cpu", convolution="winograd")
    callback = Lines()
    monkeypatch.setattr(run, "why_unavailable", lambda: "there is no C++ compiler")
    assert run.with_usable_convolution(settings, ALONE, callback).convolution == "torch"
    assert callback.lines == ["using torch's convolutions, which are slower than Winograd's: there is no C++ compiler"]
    monkeypatch.setattr(run, "why_unavailable", lambda: None)
    assert run.with_usable_convolution(settings, ALONE, callback) == settings
    assert len(callback.lines) == 1


def test_every_rank_uses_the_convolution_of_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = resolve_settings(get_recipe("adam89"), device="cpu", convolution="winograd")
    monkeypatch.setattr(World, "broadcast", lambda self, value: "64@32:f")
    for reason in (None, "there is no C++ compiler"):
        monkeypatch.setattr(run, "why_unavailable", lambda reason=reason: reason)
        assert run.with_usable_convolution(settings, World(rank=1, size=2), Callback()).convolution == "64@32:f"
