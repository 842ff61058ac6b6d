import torch
from support.published import MyResnet

from fastcifar.training.model import build_model


def test_weights_load_into_the_published_class_and_torchvisions() -> None:
    model = build_model(1)
    published = MyResnet()
    published.load_state_dict(model.state_dict(), strict=True)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(published.eval()(images), model.eval()(images))
    bare = MyResnet().backbone
    bare.load_state_dict(
        {name.removeprefix("backbone."): value for name, value in model.state_dict().items()}, strict=True
    )
    assert torch.equal(bare.eval()(images), model(images))


def test_logits_are_float32_under_autocast() -> None:
    """In bf16 logits tie, and a tie goes to the lower class."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = build_model(0)(torch.randn(8, 3, 32, 32))
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())


def test_parameter_count() -> None:
    assert sum(parameter.numel() for parameter in build_model(0).parameters()) == 11_173_962


def test_initial_weights_follow_the_seed_as_in_the_published_class() -> None:
    torch.manual_seed(42)
    published = MyResnet()
    one, same, other = build_model(42), build_model(42), build_model(43)
    for name, value in published.state_dict().items():
        assert torch.equal(one.state_dict()[name], value)
        assert torch.equal(same.state_dict()[name], value)
    assert not torch.equal(one.backbone.fc.weight, other.backbone.fc.weight)
