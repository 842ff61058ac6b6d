"""Triton's interpreter, which runs kernels without a GPU."""

import numpy as np
import pytest

triton = pytest.importorskip("triton", reason="torch for the CPU has no Triton")

_VERSION = tuple(map(int, triton.__version__.split(".")[:2]))
needs_interpreter = pytest.mark.skipif(
    _VERSION < (3, 9) and np.lib.NumpyVersion(np.__version__) >= "2.4.0",
    reason="Triton's interpreter before 3.9 needs numpy before 2.4",
)
