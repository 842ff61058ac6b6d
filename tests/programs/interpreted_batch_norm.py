"""Print, as JSON, the largest errors of the Triton batch norm, run by Triton's interpreter, beside torch in float64.

A separate process, because Triton reads TRITON_INTERPRET when a kernel is defined.
"""

import itertools
import json
import os
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch
from support.batch_norm_errors import errors

from fastcifar.kernels import batch_norm_triton

vars(batch_norm_triton)["wrap_triton"] = lambda kernel: kernel  # torch 2.11's only accepts compiled kernels
# So that few rows give several tiles per program.
batch_norm_triton._MAX_PARTIALS, batch_norm_triton._MAX_PROGRAMS = 4, 8
SMALL = (2, 3, 3, 5)  # one block that is not full
LARGE = (5, 40, 13, 17)  # three partials of three tiles each, two channel blocks that are not full
ALL = list(itertools.product((False, True), repeat=3))  # residual, ReLU, more gradients
NETWORK = [case for case in ALL if case[1]] + [(False, False, False)]  # those of ResNet-18


def main() -> None:
    found = {}
    cases: list[tuple[Any, ...]] = [(SMALL, torch.float32, *case) for case in ALL]
    cases += [(LARGE, torch.float32, *case) for case in ((False, True, False), (True, True, True))]
    cases += [(LARGE, torch.bfloat16, *case) for case in NETWORK]
    for shape, dtype, *case in cases:
        name = f"{str(dtype).removeprefix('torch.')} {shape} residual={case[0]} relu={case[1]} more={case[2]}"
        found[name] = errors(shape, dtype, *case)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
