"""Draws eight images augmented by torchvision on PIL and by fastcifar, and their difference, which is black."""

import sys
from pathlib import Path

import click
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as reference

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from fastcifar.data.cifar10 import Images  # noqa: E402
from fastcifar.data.folder import load_val_and_test  # noqa: E402
from fastcifar.files import replacing  # noqa: E402
from fastcifar.pipeline.augment import AugmentParams, crop_flip_rotate, sample_augmentation  # noqa: E402

NUM_IMAGES = 8


def through_torchvision(images: Images, params: AugmentParams) -> Images:
    """Crop, mirror and rotate with torchvision on PIL images, with the same draws."""
    out = []
    for i, image in enumerate(images):
        picture = reference.crop(
            reference.pad(Image.fromarray(image), params.padding), int(params.dy[i]), int(params.dx[i]), 32, 32
        )
        if params.flip[i]:
            picture = reference.hflip(picture)
        angle_deg = float(params.angle_deg[i])
        out.append(np.asarray(reference.rotate(picture, angle_deg, InterpolationMode.NEAREST)))
    return np.stack(out)


def draw(images: Images, params: AugmentParams) -> Figure:
    """Draw four rows: the images, both results, and their difference."""
    theirs = through_torchvision(images, params)
    ours = crop_flip_rotate(torch.from_numpy(images), params).numpy()
    difference = np.abs(ours.astype(np.int16) - theirs).astype(np.uint8)
    rows = {"image": images, "torchvision": theirs, "fastcifar": ours, "difference": difference}
    figure = Figure(figsize=(8, 4.15), dpi=200)
    axes = figure.subplots(len(rows), len(images), gridspec_kw={"wspace": 0.06, "hspace": 0.06})
    figure.subplots_adjust(left=0.11, right=0.99, top=0.92, bottom=0.02)
    for (name, row), line in zip(rows.items(), axes, strict=True):
        for image, place in zip(row, line, strict=True):
            place.imshow(image, interpolation="nearest")
            place.set(xticks=[], yticks=[])
            place.spines[:].set_visible(False)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9, labelpad=8)
    for i, place in enumerate(axes[0]):
        turned = f"{float(params.angle_deg[i]):+.1f}°" + (" mirrored" if params.flip[i] else "")
        place.set_title(turned, fontsize=7.5)
    return figure


@click.command(help=__doc__.splitlines()[0])
@click.option("--data", "data_dir", type=click.Path(path_type=Path), default="data", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default="charts/augmentation.png", show_default=True)
def main(data_dir: Path, out: Path) -> None:
    """Draw the first eight images of the test split."""
    _, test = load_val_and_test(data_dir)
    params = sample_augmentation(42, 0, torch.from_numpy(test.indices[:NUM_IMAGES]))
    figure = draw(np.ascontiguousarray(test.images[:NUM_IMAGES]), params)
    with replacing(out) as temporary:
        figure.savefig(temporary, format="png")
    print(f"written: {out}")


if __name__ == "__main__":
    main()
