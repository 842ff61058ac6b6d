"""Print how many images the H100's gather gets wrong in Triton's interpreter, with one image for each angle level.

The kernels are those that Inductor generates for a compiled step. A separate process, because generating them changes
torch, and Triton reads TRITON_INTERPRET when a kernel is defined. Two minutes on one core.
"""

import json
import math
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
from support.all_levels import AllLevels
from support.codegen import generated_code, import_kernel, kernel_sources
from torch import Tensor

from fastcifar.pipeline.loader import ResidentLoader
from fastcifar.recipes import get_recipe
from fastcifar.training.trainer import Trainer

BATCH_SIZE, NUM_IMAGES, BLOCK = 2048, 1000, 1 << 20  # the largest block that Triton allows


def define(source: str, folder: Path) -> dict[str, Any]:
    """The kernels of a generated module by name, for the interpreter."""
    kernels = {}
    for name, body in kernel_sources(source).items():
        code = re.sub(r"@triton_heuristics\.\w+\(.*?\n\)\n(?=@triton\.jit)", "", body, flags=re.S)
        code = code.replace("triton_helpers.set_driver_to_gpu()", "")
        kernels[name] = getattr(import_kernel(name, code, folder), name)
    return kernels


class Launcher:
    """A kernel, with the calls that generated code makes."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel

    def run(self, *values: Any, stream: Any) -> None:
        pairs = zip(self._kernel.arg_names, values, strict=False)
        grid = sum(math.ceil(value.numel() / BLOCK) for name, value in pairs if name.startswith("out_ptr"))
        self._kernel[(grid,)](*values, XBLOCK=BLOCK)


def build_call(source: str, kernels: dict[str, Any]) -> Callable[[None, list[Tensor]], list[Tensor]]:
    """The generated module's `call`, whose launches are interpreted."""
    body = source[source.index("def call(self, args)") :].split("\nrunner =")[0]
    body = re.sub(r"^ +(assert_size|torch\.cuda\.set_device|raw_stream).*\n", "", body, flags=re.M)
    body = re.sub(r"^( +)with torch\.cuda\._DeviceGuard\(0\):", r"\1if True:", body, flags=re.M)

    namespace: dict[str, Any] = {
        "torch": torch,
        "empty_strided_cuda": lambda size, stride, dtype: torch.empty_strided(size, stride, dtype=dtype),
        "reinterpret_tensor": torch.as_strided,
        "copy_if_misaligned": lambda tensor: tensor,
        "raw_stream0": 0,
        "get_raw_stream": int,  # torch 2.11
    } | {name: Launcher(kernel) for name, kernel in kernels.items()}
    exec(body, namespace)
    call: Callable[[None, list[Tensor]], list[Tensor]] = namespace["call"]
    return call


def main() -> None:
    images = torch.from_numpy(np.random.default_rng(1).integers(1, 256, (NUM_IMAGES, 32, 32, 3), np.uint8))
    planner = AllLevels(NUM_IMAGES, BATCH_SIZE, torch.device("cpu"))
    loader = ResidentLoader(images, torch.arange(NUM_IMAGES) % 10, planner)
    with generated_code() as graphs, tempfile.TemporaryDirectory() as folder:
        recipe = replace(get_recipe("sgd92"), global_batch_size=BATCH_SIZE)
        trainer = Trainer(recipe, torch.device("cpu"), precision="fp32", compile=True)
        trainer._read(loader, torch.zeros(1, dtype=torch.int64))
        (graph,) = graphs
        call = build_call(graph.source, define(graph.source, Path(folder)))
        num_images = num_wrong = 0
        for step in loader.epoch(0):
            index = torch.tensor([step])
            rows = loader._order, loader._coeffs, loader._epoch_labels
            inputs, labels = call(None, [index, *rows, images, trainer.mean, trainer.std])
            expected, expected_labels = loader.read(index)
            pixels = ((inputs.permute(0, 2, 3, 1) * trainer.std + trainer.mean) * 255).round().to(torch.uint8)
            num_wrong += int((pixels != expected).flatten(1).any(1).sum()) + int((labels != expected_labels).sum())
            num_images += len(inputs)
    print(json.dumps({"images": num_images, "wrong": num_wrong}))


if __name__ == "__main__":
    main()
