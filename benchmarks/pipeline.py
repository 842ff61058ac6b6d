"""Measures how fast images are decoded and augmented, without training, beside the alternatives.

python benchmarks/pipeline.py
"""

import dataclasses
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from baselines import DataLoaderContender, StockFfcv
from measure import (
    describe_machine,
    load_images,
    measure_ceiling,
    spread,
    synchronise,
    write_results,
)
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from fastcifar.data.folder import Split, beton_path
from fastcifar.kernels.gather import gather_augmented, normalise
from fastcifar.kernels.gather_numba import augment_into
from fastcifar.pipeline.augment import affine_coeffs, sample_augmentation
from fastcifar.recipes import RECIPES
from fastcifar.terminal import print_table
from fastcifar.training.device import resolve_device

_BYTES_PER_IMAGE = 3072 + 2 * 3072  # uint8 read, bf16 written
_SLOW = 8  # the DataLoaders get one image in this many: they are about a hundred times slower

Epoch = Callable[[], Iterable[Any]]


class _TensorImages(Dataset[tuple[torch.Tensor, int]]):
    """Images as tensors with torchvision's v2 transforms, one by one: on a batch they draw one parameter for all."""

    def __init__(self, split: Split) -> None:
        recipe = RECIPES["sgd92"]
        self._images = torch.from_numpy(split.images).permute(0, 3, 1, 2)
        self._labels = split.labels.tolist()
        self._transform = v2.Compose(
            [
                v2.RandomCrop(32, padding=recipe.padding),
                v2.RandomHorizontalFlip(),
                v2.RandomRotation(recipe.max_angle_deg),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(list(recipe.mean), list(recipe.std)),
            ]
        )

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image: torch.Tensor = self._transform(self._images[index])
        return image, self._labels[index]


def build_pipelines(
    split: Split, data_dir: Path, device: torch.device, *, batch_size: int, num_workers: int
) -> list[tuple[str, str, int, Epoch]]:
    """The pipelines to measure: name, note, images per epoch, and the epoch itself."""
    recipe = dataclasses.replace(RECIPES["sgd92"], global_batch_size=batch_size)
    num_images = len(split.labels) // batch_size * batch_size
    num_few = max(num_images // _SLOW // batch_size, 1) * batch_size
    few = Split(split.images[:num_few], split.labels[:num_few], split.indices[:num_few])
    images = torch.from_numpy(split.images).to(device)
    coeffs = affine_coeffs(sample_augmentation(42, 0, torch.from_numpy(split.indices).to(device)))
    order = torch.randperm(len(images), device=device)
    mean, std = torch.tensor(recipe.mean, device=device), torch.tensor(recipe.std, device=device)
    from fastcifar.pipeline.ffcv_reader import FfcvStream  # FFCV may be missing

    numpy_images, numpy_geometry = split.images, coeffs.cpu().numpy()
    buffer = np.empty((batch_size, 32, 32, 3), np.uint8)
    stream = FfcvStream(beton_path(data_dir, "train"), batch_size, num_workers)
    stock = StockFfcv(recipe, data_dir, num_images, torch.device("cpu"), precision="fp32", num_workers=num_workers)
    pil = DataLoaderContender(
        recipe, few, torch.device("cpu"), is_tuned=True, precision="fp32", num_workers=num_workers
    )
    tensors = DataLoader(
        _TensorImages(few),
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
    )

    def augment(positions: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return normalise(gather_augmented(images, positions, rows), mean, std)

    def by_torch(function: Callable[..., torch.Tensor]) -> Epoch:
        def epoch() -> Iterable[torch.Tensor]:
            for start in range(0, num_images, batch_size):
                batch = slice(start, start + batch_size)
                yield function(order[batch], coeffs[batch])

        return epoch

    def by_numba() -> Iterable[None]:
        for start in range(0, num_images, batch_size):
            batch = slice(start, start + batch_size)
            augment_into(buffer, numpy_images[batch], numpy_geometry[batch])
            yield

    def streamed() -> Iterable[Any]:
        return stream.epoch(order[:num_images].cpu().numpy(), numpy_geometry[:num_images])

    exact = "exact crop + flip + rotation"
    pipelines: list[tuple[str, str, int, Epoch]] = [
        ("torchvision v1 on PIL", "DataLoader; crop + flip + rotation + normalise", num_few, pil.batches),
        ("torchvision v2 on tensors", "DataLoader; the same, image by image", num_few, lambda: tensors),
        ("FFCV's own transforms", "decode + flip + translate, no rotation, + normalise", num_images, stock.batches),
        ("fastcifar, streamed", f"FFCV decode + {exact} by numba, as an FFCV Operation", num_images, streamed),
        ("fastcifar, numba kernel", f"{exact} in memory", num_images, by_numba),
        (f"fastcifar, torch eager, {device.type}", f"{exact} + normalise, in memory", num_images, by_torch(augment)),
    ]
    if device.type == "cuda":
        compiled = torch.compile(augment)
        pipelines.append(
            ("fastcifar, torch compiled, cuda", f"{exact} + normalise, in memory", num_images, by_torch(compiled))
        )
    return pipelines


def time_epoch(epoch: Epoch, num_images: int, device: torch.device) -> float:
    """Images per second over one epoch."""
    synchronise(device)
    start = time.perf_counter()
    for _ in epoch():
        pass
    synchronise(device)
    return num_images / (time.perf_counter() - start)


@click.command(help=__doc__.splitlines()[0])
@click.option("--device", "device_name", default="auto", show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--images", "num_images", type=click.IntRange(1), help="Training images.  [default: all]")
@click.option("--batch-size", type=click.IntRange(1), default=128, show_default=True)
@click.option("--workers", "num_workers", type=click.IntRange(0), help="Workers of the loaders.  [default: the CPUs]")
@click.option("--data", "data_dir", type=click.Path(path_type=Path), default="data", show_default=True)
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write every round here.")
def main(
    device_name: str,
    rounds: int,
    num_images: int | None,
    batch_size: int,
    num_workers: int | None,
    data_dir: Path,
    out: Path | None,
) -> None:
    """Measure in rounds, print a table, and write it."""
    device = resolve_device(device_name)
    split = load_images(data_dir, num_images)
    machine = describe_machine(device)
    ceiling = measure_ceiling(device, "fp32")
    workers = machine["num_cpus"] if num_workers is None else num_workers
    pipelines = build_pipelines(split, data_dir, device, batch_size=batch_size, num_workers=workers)
    rates: dict[str, list[float]] = {name: [] for name, *_ in pipelines}
    for number in range(-1, rounds):  # the first round warms caches, compilers and workers, and does not count
        for name, _, count, epoch in pipelines:
            rate = time_epoch(epoch, count, device)
            if number >= 0:
                rates[name].append(rate)
        print(f"round {number + 1} of {rounds} done", flush=True)
    reference = rates[pipelines[0][0]]
    rows, shown = [], []
    for name, note, count, _ in pipelines:
        measured = spread(rates[name])
        faster = spread([one / other for one, other in zip(rates[name], reference, strict=True)])
        bandwidth = measured["median"] * _BYTES_PER_IMAGE / 1e9 / ceiling["copy_gb_per_s"]
        rows.append(
            {
                "name": name,
                "note": note,
                "num_images": count,
                "img_per_s": measured,
                "faster_than_torchvision_v1_by": faster,
                "share_of_copy_bandwidth": bandwidth,
            }
        )
        shown.append(
            [
                name,
                f"{measured['median']:,.0f}",
                f"{measured['min']:,.0f}–{measured['max']:,.0f}",
                f"{1e9 / measured['median']:,.0f}",
                f"{faster['median']:.1f}×",
                f"{bandwidth:.1%}" if device.type == "cuda" else "",
            ]
        )
    columns = ["", "img/s", "spread", "ns/image", "torchvision v1 ×", "of copy bandwidth"]
    print(f"\n{machine['device']}, {workers} workers")
    print_table(columns, shown, num_text_columns=1)
    if out is not None:
        write_results(out, {"machine": machine, "ceiling": ceiling, "num_workers": workers, "pipelines": rows})


if __name__ == "__main__":
    main()
