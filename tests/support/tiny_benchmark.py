"""A shortened benchmarks/throughput.py, for tests of its behaviour, not of its figures."""

from collections import Counter

import budget
import convolutions
import pytest
import throughput
from convolutions import Layer


def cut_short(patch: pytest.MonkeyPatch) -> None:
    """Give the benchmark one second by default, and measure two small convolutions for the ceiling."""
    patch.setattr(throughput, "_CEILING_S", 0.0)
    patch.setattr(budget, "USUAL_S", 1.0)
    patch.setattr(convolutions, "find_layers", lambda: Counter({Layer(32, 32, 3, 1, 8): 2, Layer(3, 8, 3, 2, 8): 1}))
