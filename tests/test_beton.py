import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.containers import TEST_IMAGES, TEST_LABELS

from fastcifar.data.beton import parse, write_beton
from fastcifar.errors import FastcifarError

Content = NDArray[np.uint8]
SAMPLES = 24 + 2 * 1041  # where the samples' metadata begins
PAGE = 1 << 21  # where the pixels begin
TABLE = 2 * PAGE  # where the allocation table begins


@pytest.fixture(scope="module")
def beton(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("beton") / "x.beton"
    write_beton(path, TEST_IMAGES, TEST_LABELS)
    return path


def test_round_trip_over_several_pages(tmp_path: Path) -> None:
    num_images = PAGE // 3072 + 5
    images = np.random.default_rng(0).integers(0, 256, (num_images, 32, 32, 3), np.uint8)
    labels = (np.arange(num_images) % 10).astype(np.uint8)
    write_beton(tmp_path / "x.beton", images, labels)
    content = np.fromfile(tmp_path / "x.beton", np.uint8)
    read_images, read_labels = parse(content, tmp_path / "x.beton", num_images)
    np.testing.assert_array_equal(read_images, images)
    np.testing.assert_array_equal(read_labels, labels)


def test_the_same_content_gives_the_same_bytes(beton: Path, tmp_path: Path) -> None:
    write_beton(tmp_path / "y.beton", TEST_IMAGES, TEST_LABELS)
    assert (tmp_path / "y.beton").read_bytes() == beton.read_bytes()


def test_the_bytes_are_those_of_ffcvs_own_writer(tmp_path: Path) -> None:
    from fastcifar.pipeline.ffcv_reader import ffcv_side_effects_undone  # a GPU host may have no FFCV

    with ffcv_side_effects_undone():
        from ffcv.fields import IntField, RGBImageField
        from ffcv.writer import DatasetWriter

    images = np.random.default_rng(0).integers(0, 256, (PAGE // 3072 + 5, 32, 32, 3), np.uint8)
    labels = (np.arange(len(images)) % 10).astype(np.uint8)
    fields = {"image": RGBImageField(write_mode="raw"), "label": IntField()}
    samples = [(image, int(label)) for image, label in zip(images, labels, strict=True)]
    # Several workers would fill the pages in the order of chance.
    DatasetWriter(str(tmp_path / "theirs.beton"), fields, PAGE, num_workers=1).from_indexed_dataset(samples)
    write_beton(tmp_path / "ours.beton", images, labels, PAGE)
    assert (tmp_path / "ours.beton").read_bytes() == (tmp_path / "theirs.beton").read_bytes()


@pytest.mark.parametrize("page_size", [1 << 21, 1 << 24])
def test_page_sizes(page_size: int, tmp_path: Path) -> None:
    write_beton(tmp_path / "y.beton", TEST_IMAGES, TEST_LABELS, page_size)
    content = np.fromfile(tmp_path / "y.beton", np.uint8)
    assert len(content) == 2 * page_size + 20 * 24
    images, labels = parse(content, tmp_path / "y.beton", 20)
    np.testing.assert_array_equal(images, TEST_IMAGES)
    np.testing.assert_array_equal(labels, TEST_LABELS)


IN_A_SMALL_DEV_SHM = "mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "
WRITE_3000_IMAGES = """
import sys, pathlib, numpy
from fastcifar.data.beton import write_beton
write_beton(pathlib.Path(sys.argv[1]), numpy.zeros((3000, 32, 32, 3), numpy.uint8), numpy.zeros(3000, numpy.uint8))
"""


def test_a_small_dev_shm_is_enough(tmp_path: Path) -> None:
    unshare = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*unshare, IN_A_SMALL_DEV_SHM + "true"], check=False).returncode
    ):
        pytest.skip("mount namespaces are not permitted")
    command = shlex.join([sys.executable, "-c", WRITE_3000_IMAGES, str(tmp_path / "y.beton")])
    subprocess.run([*unshare, IN_A_SMALL_DEV_SHM + command], check=True, timeout=120)  # 72 kB of metadata
    images, _ = parse(np.fromfile(tmp_path / "y.beton", np.uint8), tmp_path / "y.beton", 3000)
    assert not images.any()


def test_stock_ffcv_reads_the_file(beton: Path) -> None:
    num_threads = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ffcv.fields.basics import IntDecoder
        from ffcv.fields.rgb_image import SimpleRGBImageDecoder
        from ffcv.loader import Loader, OrderOption

        pipelines = {"image": [SimpleRGBImageDecoder()], "label": [IntDecoder()]}
        loader = Loader(
            str(beton), batch_size=20, num_workers=1, os_cache=True, order=OrderOption.SEQUENTIAL, pipelines=pipelines
        )
        ((images, labels),) = loader
    torch.set_num_threads(num_threads)
    np.testing.assert_array_equal(images, TEST_IMAGES)
    np.testing.assert_array_equal(labels[:, 0], TEST_LABELS)


def test_a_full_disk_is_one_line() -> None:
    with pytest.raises(FastcifarError, match=r"cannot write /dev/full: .+"):
        write_beton(Path("/dev/full"), TEST_IMAGES, TEST_LABELS)


def put(offset: int, value: int) -> Callable[[Content], Content]:
    def damage(content: Content) -> Content:
        assert content[offset] != value
        content[offset] = value
        return content

    return damage


DAMAGES: dict[str, tuple[Callable[[Content], Content], str]] = {
    "empty": (lambda content: content[:0], "it ends too early"),
    "cut in the header": (lambda content: content[:10], "it ends too early"),
    "cut in the metadata": (lambda content: content[: SAMPLES + 100], "it ends too early"),
    "cut in the pixels": (lambda content: content[: PAGE + 1000], "size of the file"),
    "cut by a byte": (lambda content: content[:-1], "size of the file"),
    "a byte too long": (lambda content: np.append(content, content[:1]), "size of the file"),
    "version": (put(0, 3), "not an FFCV file of version 2"),
    "number of fields": (put(2, 3), "header: num_fields"),
    "page size": (put(6, 1), "page size"),
    "number of samples": (put(8, 19), "it does not hold 20 images"),
    "table position": (put(19, 9), "header: table_start"),
    "field type": (put(24, 1), "fields: type_id"),
    "field name": (put(24 + 1041 + 1, 0), "fields: name"),
    "field arguments": (put(24 + 500, 1), "fields: arguments"),
    "mode": (put(SAMPLES, 0), "samples: mode"),
    "width": (put(SAMPLES + 1, 31), "samples: width"),
    "height": (put(SAMPLES + 3 + 24, 31), "samples: height"),
    "pointer": (put(SAMPLES + 5, 1), "samples: pointer"),
    "pointer beyond": (put(SAMPLES + 12, 255), "samples: pointer"),
    "label": (put(SAMPLES + 16, 10), "label"),
    "negative label": (put(SAMPLES + 23, 255), "label"),
    "table sample": (put(TABLE, 1), "allocation table: sample"),
    "table pointer": (put(TABLE + 8, 1), "allocation table: pointer"),
    "table size": (put(TABLE + 16, 1), "allocation table: size"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named(beton: Path, name: str) -> None:
    damage, what = DAMAGES[name]
    with pytest.raises(FastcifarError) as caught:
        parse(damage(np.fromfile(beton, np.uint8)), beton, 20)
    remedy = f"write it again with `fastcifar prepare --force --out {beton.parent}`"
    assert str(caught.value) == f"{beton} is damaged ({what}): {remedy}"
