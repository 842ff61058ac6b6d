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
from fastcifar.pipeline.augment import AugmentParams, crop_flip_rotate, sample_augmentation  # noqa: E402
from fastcifar.results.style import (  # noqa: E402
    MARGIN,
    MUTED,
    add_caption,
    add_image,
    add_text,
    build_figure,
    styled,
    write_picture,
)

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
    left, top, pitch, side = 0.92, 1.05, 0.88, 0.82  # inches
    with styled():
        figure = build_figure(
            top + len(rows) * pitch + 0.36,
            f"{np.count_nonzero(difference):,} of {difference.size:,} values differ",
            "Random crop, flip and rotation by torchvision on PIL images and by fastcifar, with the same draws",
        )
        for number, (name, row) in enumerate(rows.items()):
            add_text(figure, MARGIN, top + number * pitch + side / 2, name, va="center")
            for column, image in enumerate(row):
                add_image(figure, image, left + column * pitch, top + number * pitch, side, gid=f"{name}-{column}")
        for column in range(len(images)):
            turned = f"{float(params.angle_deg[column]):+.1f}°" + (" mirrored" if params.flip[column] else "")
            middle = left + column * pitch + side / 2
            add_text(figure, middle, top - 0.06, turned, va="bottom", ha="center", fontsize=7.5, color=MUTED)
        add_caption(figure, "Above: angle and mirroring of each image; the crop's offset is drawn too.")
    return figure


@click.command(help=__doc__.splitlines()[0])
@click.option("--data", "data_dir", type=click.Path(path_type=Path), default="data", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default="charts/augmentation.png", show_default=True)
def main(data_dir: Path, out: Path) -> None:
    """Draw the first eight images of the test split."""
    _, test = load_val_and_test(data_dir)
    params = sample_augmentation(42, 0, torch.from_numpy(test.indices[:NUM_IMAGES]))
    write_picture(out, draw(np.ascontiguousarray(test.images[:NUM_IMAGES]), params))
    print(f"written: {out}")


if __name__ == "__main__":
    main()
