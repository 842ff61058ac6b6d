"""Print, as JSON, the launches and the memory traffic of a training step's H100 code, whose kernels are also compiled.

    python tests/programs/step_kernels.py [sgd92|adam89] [combo_kernels=0 ...] [--source DIR]

Without options it is sgd92 with default options.
A separate process, because generating the code changes torch for the whole process. A minute and a half on two cores.
"""

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from support.codegen import Graph, compile_kernels, generated_code

from fastcifar.pipeline.loader import EpochPlanner, ResidentLoader
from fastcifar.recipes import get_recipe
from fastcifar.training.compiled_network import StepOptions
from fastcifar.training.trainer import Trainer

BATCH_SIZE, NUM_IMAGES = 128, 50_000
PARTS = {"_read_batch": "gather", "_update_masters": "optimizer"}  # by the compiled function; else forward, backward


def kind(name: str) -> str:
    """The purpose of a kernel, by the operations in its name from Inductor, or by our name."""
    if name.startswith(("_forward", "_backward")):
        return "batch norm, ReLU, residual" if "_apply" in name else "batch-norm statistics"
    if "nll_loss" in name or "softmax" in name or "mean" in name or "div_expand" in name:
        return "loss and pooling"
    is_pointwise = "_poi_" in name
    if "native_batch_norm" in name or "threshold_backward" in name or not is_pointwise:
        return "batch norm, ReLU, residual" if is_pointwise else "batch-norm statistics"
    return "casts" if "fused__to_copy" in name else "other"


def generate(recipe: str, options: StepOptions) -> list[Graph]:
    """The graphs of one step."""
    with generated_code() as graphs:
        trainer = Trainer(
            replace(get_recipe(recipe), global_batch_size=BATCH_SIZE),
            torch.device("cpu"),
            precision="bf16",
            compile=True,
            options=options,
        )
        planner = EpochPlanner(torch.arange(NUM_IMAGES), replace(get_recipe("sgd92"), global_batch_size=BATCH_SIZE))
        images = torch.zeros(NUM_IMAGES, 32, 32, 3, dtype=torch.uint8)
        loader = ResidentLoader(images, torch.zeros(NUM_IMAGES, dtype=torch.int64), planner)
        trainer.model.train()
        trainer._step(loader)
    return graphs


def main(arguments: list[str]) -> None:
    recipe = "adam89" if "adam89" in arguments else "sgd92"
    choices = dict(argument.split("=") for argument in arguments if "=" in argument)
    switches: dict[str, Any] = {name: int(value) for name, value in choices.items()}
    options = replace(StepOptions(), **switches)
    found = {}
    for graph in generate(recipe, options):
        part = PARTS.get(graph.function, graph.part)
        by_kind: dict[str, Counter[str]] = {}
        for launch in graph.launches:
            counts = by_kind.setdefault(kind(launch.name) if part in ("forward", "backward") else part, Counter())
            counts += Counter(launches=1, bytes=launch.num_read + launch.num_written)
        found[part] = {
            "launches": len(graph.launches),
            "bytes": sum(launch.num_read + launch.num_written for launch in graph.launches),
            "kinds": by_kind,
            "externs": graph.externs,
            "compiled": compile_kernels(graph.source),
            "layout_copies": [launch.name for launch in graph.launches if "fused_convolution" in launch.name],
        }
        if "--source" in arguments:
            folder = Path(arguments[arguments.index("--source") + 1])
            (folder / f"{part}.py").write_text(graph.source, encoding="utf-8")
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
