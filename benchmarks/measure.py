"""Common parts of the benchmarks: images, a device's ceiling, timing, the machine's description, results on disk."""

import datetime
import functools
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastcifar.data.folder import Split, is_untouched, load_train
from fastcifar.data.prepare import prepare_data
from fastcifar.files import write_json
from fastcifar.machine import cpu_flags, describe_environment


def load_images(data_dir: Path, num_images: int | None) -> Split:
    """The first images of the training set, all of them for None; missing data is prepared."""
    if is_untouched(data_dir):
        prepare_data(data_dir, report=print)
    train = load_train(data_dir)
    return Split(train.images[:num_images], train.labels[:num_images], train.indices[:num_images])


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object], device: torch.device, repeats: int = 3) -> float:
    """The shortest time of `work`, after one call to warm up."""
    times = []
    for _ in range(repeats + 1):
        synchronise(device)
        start = time.perf_counter()
        work()
        synchronise(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def measure_ceiling(device: torch.device, precision: str) -> dict[str, float]:
    """The most that the device can do: the best of several matrix products in the training dtype, and a copy.

    Returns:
        `matmul_tflop_per_s` and `copy_gb_per_s` (bytes read and written).
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    tflop_per_s = 0.0
    for size in (4096, 8192) if device.type == "cuda" else (512, 1024, 2048):
        left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        products: list[Callable[[], object]] = [functools.partial(torch.mm, left, right)]
        if device.type == "cpu" and precision == "fp32":  # numpy has a separate library
            products.append(functools.partial(np.matmul, left.numpy(), right.numpy()))
        shortest = min(seconds_of(product, device, repeats=8) for product in products)
        tflop_per_s = max(tflop_per_s, 2 * size**3 / shortest / 1e12)
    source = torch.zeros(2**30 if device.type == "cuda" else 2**27, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    gb_per_s = 2 * source.numel() / seconds_of(lambda: target.copy_(source), device, repeats=5) / 1e9
    return {
        "matmul_tflop_per_s": tflop_per_s,
        "copy_gb_per_s": gb_per_s,
    }


def describe_machine(device: torch.device) -> dict[str, Any]:
    """The time and the machine of a measurement."""
    environment = describe_environment()
    return {
        "measured": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else environment["cpu"],
        "instruction_sets": _instruction_sets(device),
        "num_threads": torch.get_num_threads(),
        "load_average_1_min": os.getloadavg()[0],
        **environment,
    }


def _instruction_sets(device: torch.device) -> str:
    """The instruction sets that decide how fast a CPU multiplies; empty for a GPU or if they are unknown."""
    known = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")
    return " ".join(name for name in known if name in cpu_flags()) if device.type == "cpu" else ""


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, minimum, maximum, and all values."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "rounds": list(values)}


def write_results(path: Path, content: dict[str, Any]) -> None:
    """Write measured JSON, and say where."""
    write_json(path, content)
    print(f"written: {path}")
