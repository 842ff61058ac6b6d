"""A tiny dataset and network, for training within a second: 60 images and a narrow network."""

import contextlib
from collections.abc import Iterator

import pytest

from fastcifar.results import charts
from support import containers
from support.narrow import use_narrow_network


@contextlib.contextmanager
def tiny_world(*, has_charts: bool = False) -> Iterator[None]:
    """Train a narrow network on the tiny CIFAR-10.

    Args:
        has_charts: whether runs draw their charts, which takes longer than everything else.
    """
    with containers.tiny_cifar10(), pytest.MonkeyPatch.context() as patch:
        use_narrow_network(patch)
        if not has_charts:
            patch.setattr(charts, "write_charts", lambda run_dir: [])
        yield
