import fcntl
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import containers
from support.containers import NUM_TRAIN, TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS

from fastcifar.data import beton, cifar10
from fastcifar.data import prepare as prepare_module
from fastcifar.data.containers import Dataset
from fastcifar.data.folder import is_untouched, load_train, load_val_and_test, verify_data
from fastcifar.data.prepare import prepare_data
from fastcifar.errors import ArgumentError, FastcifarError

FILES = {"train.beton", "val.beton", "test.beton", "manifest.json"}


def source(tmp_path: Path) -> str:
    return str(containers.write_folder(containers.mosaic_files(), tmp_path / "package"))


def test_splits_are_the_source_in_its_order(tiny_data: Path) -> None:
    train = load_train(tiny_data)
    np.testing.assert_array_equal(train.images, TRAIN_IMAGES)
    np.testing.assert_array_equal(train.labels, TRAIN_LABELS)
    assert train.indices.tolist() == list(range(NUM_TRAIN))
    halves = dict(zip(("val", "test"), load_val_and_test(tiny_data), strict=True))
    for name, positions in cifar10.split_test_set(TEST_LABELS).items():
        np.testing.assert_array_equal(halves[name].images, TEST_IMAGES[positions])
        np.testing.assert_array_equal(halves[name].labels, TEST_LABELS[positions])
        np.testing.assert_array_equal(halves[name].indices, NUM_TRAIN + positions)
    together = np.concatenate([half.indices for half in halves.values()])
    assert sorted(together) == list(range(NUM_TRAIN, NUM_TRAIN + len(TEST_LABELS)))


def test_a_second_call_verifies_and_writes_nothing(tiny_data: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in tiny_data.iterdir()}
    lines: list[str] = []
    prepare_data(tiny_data, "/nowhere", report=lines.append)
    assert lines == [f"{tiny_data} is prepared and verified; the source was not used"]
    assert {path.name: path.stat().st_mtime_ns for path in tiny_data.iterdir()} == before


def test_an_empty_source_is_refused_before_anything_is_done(tiny_data: Path, tmp_path: Path) -> None:
    for data in (tiny_data, tmp_path / "new"):
        for source in ("", " "):
            with pytest.raises(ArgumentError, match=r"^source is empty: give auto, official, npm, or the path"):
                prepare_data(data, source)
    assert not (tmp_path / "new").exists()


def test_force_writes_the_same_bytes_again(tiny_data: Path, tmp_path: Path) -> None:
    before = {name: (tiny_data / name).read_bytes() for name in FILES - {"manifest.json"}}
    (tiny_data / "val.beton").write_bytes(b"damaged")
    prepare_data(tiny_data, source(tmp_path), force=True)
    assert {path.name for path in tiny_data.iterdir()} == FILES
    assert {name: (tiny_data / name).read_bytes() for name in before} == before
    manifest = json.loads((tiny_data / "manifest.json").read_text())
    assert manifest["source"]
    assert manifest["splits"]["train"]["content_sha256"] == cifar10.SPEC.digests["train"]


def test_a_failure_half_way_leaves_nothing_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_write = beton.write_beton

    def write(path: Path, *content: Any) -> None:
        if path.name == "test.beton":
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real_write(path, *content)

    data = tmp_path / "data"
    with containers.tiny_cifar10():
        with monkeypatch.context() as patch:
            patch.setattr(beton, "write_beton", write)
            with pytest.raises(FastcifarError, match=rf"cannot write {data}: No space left on device"):
                prepare_data(data, source(tmp_path))
        assert list(data.iterdir()) == []
        (data / ".preparing").mkdir()  # what SIGKILL would have left
        (data / ".preparing" / "train.beton").write_bytes(b"half")
        assert is_untouched(data)
        prepare_data(data, str(tmp_path / "package"))
        assert {path.name for path in data.iterdir()} == FILES
        assert not is_untouched(data)


def test_a_manifest_that_cannot_be_written_replaces_nothing(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, content: Any) -> None:
        raise FastcifarError(f"cannot write {path}: No space left on device")

    before = {path.name: path.stat().st_ino for path in tiny_data.iterdir()}
    monkeypatch.setattr(prepare_module, "write_json", fail)
    with pytest.raises(FastcifarError, match=r"manifest\.json: No space left on device"):
        prepare_data(tiny_data, source(tmp_path), force=True)
    assert {path.name: path.stat().st_ino for path in tiny_data.iterdir()} == before
    verify_data(tiny_data)


def test_a_file_that_reads_back_differently_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_write = beton.write_beton
    monkeypatch.setattr(beton, "write_beton", lambda path, images, *rest: real_write(path, 255 - images, *rest))
    with containers.tiny_cifar10(), pytest.raises(FastcifarError, match="does not read back as it was written"):
        prepare_data(tmp_path / "data", source(tmp_path))
    assert list((tmp_path / "data").iterdir()) == []


def test_images_with_another_digest_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Dataset(255 - TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS, source="elsewhere")
    monkeypatch.setattr(prepare_module, "load_source", lambda *_, **__: other)
    with containers.tiny_cifar10(), pytest.raises(FastcifarError, match="the train images are not CIFAR-10's: content"):
        prepare_data(tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_files_of_others_are_not_replaced(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "val.beton").write_text("precious")
    with containers.tiny_cifar10():
        with pytest.raises(FastcifarError, match=r"^force must be set to replace .*val\.beton"):
            prepare_data(data, source(tmp_path))
        assert (data / "val.beton").read_text() == "precious"
        prepare_data(data, str(tmp_path / "package"), force=True)
        verify_data(data)


def test_a_folder_in_the_way_is_noticed_before_anything_is_replaced(tiny_data: Path, tmp_path: Path) -> None:
    (tiny_data / "val.beton").unlink()
    (tiny_data / "val.beton").mkdir()
    before = (tiny_data / "manifest.json").read_bytes()
    with pytest.raises(FastcifarError, match=r"cannot write .*val\.beton: a folder with this name exists"):
        prepare_data(tiny_data, source(tmp_path), force=True)
    assert (tiny_data / "manifest.json").read_bytes() == before


def test_a_second_preparation_of_a_folder_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    other = os.open(data, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with containers.tiny_cifar10(), pytest.raises(FastcifarError, match=f"another process is preparing {data}"):
        prepare_data(data, source(tmp_path))
    os.close(other)


@pytest.mark.parametrize("name", sorted(FILES - {"manifest.json"}))
@pytest.mark.parametrize("offset", [4_000, (1 << 23) + 100, (1 << 23) + 20 * 3072 - 1, -30])
def test_a_flipped_bit_anywhere_is_refused(tiny_data: Path, name: str, offset: int) -> None:
    content = bytearray((tiny_data / name).read_bytes())
    content[offset] ^= 1
    (tiny_data / name).write_bytes(content)
    with pytest.raises(FastcifarError, match=rf"{tiny_data / name} is damaged \(.+\): write it again"):
        verify_data(tiny_data)


def test_a_swapped_file_is_refused(tiny_data: Path) -> None:
    (tiny_data / "val.beton").rename(tiny_data / "x")
    (tiny_data / "test.beton").rename(tiny_data / "val.beton")
    (tiny_data / "x").rename(tiny_data / "test.beton")
    with pytest.raises(FastcifarError, match=r"val\.beton is damaged \(its content_sha256 is not the manifest's\)"):
        verify_data(tiny_data)


def test_a_missing_file_is_named(tiny_data: Path) -> None:
    (tiny_data / "test.beton").unlink()
    with pytest.raises(FastcifarError, match=r"cannot read .*test\.beton: No such file"):
        verify_data(tiny_data)


def test_an_unprepared_folder_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(FastcifarError, match=rf"no manifest.json.*run `fastcifar prepare --out {tmp_path}`"):
        load_train(tmp_path)


def edit(manifest: dict[str, Any], name: str) -> Any:
    if name == "not a mapping":
        return [1]
    if name == "digest":
        manifest["splits"]["val"]["content_sha256"] = "0" * 64
    elif name == "no file hash":
        del manifest["splits"]["val"]["file_sha256"]
    elif name == "count":
        manifest["splits"]["val"]["num_images"] = 11
    elif name == "split":
        del manifest["splits"]["test"]
    elif name == "format":
        manifest["format"] = 99
    elif name == "mask is no text":
        manifest["val_mask"] = 5
    elif name == "mask is no hexadecimal":
        manifest["val_mask"] = "zz" * 3
    elif name == "mask is short":
        manifest["val_mask"] = manifest["val_mask"][:2]
    elif name == "mask is empty":
        manifest["val_mask"] = "00" * 3
    return manifest


@pytest.mark.parametrize(
    "name",
    [
        "not a mapping",
        "digest",
        "no file hash",
        "count",
        "split",
        "format",
        "mask is no text",
        "mask is no hexadecimal",
        "mask is short",
        "mask is empty",
    ],
)
def test_an_edited_manifest_is_refused(tiny_data: Path, name: str) -> None:
    path = tiny_data / "manifest.json"
    path.write_text(json.dumps(edit(json.loads(path.read_text()), name)))
    with pytest.raises(FastcifarError, match=r"manifest\.json is damaged or stale"):
        verify_data(tiny_data)


def test_a_mask_that_names_other_images_is_refused(tiny_data: Path) -> None:
    path = tiny_data / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["val_mask"] = np.packbits(np.arange(20) < 10).tobytes().hex()
    path.write_text(json.dumps(manifest))
    with pytest.raises(FastcifarError, match=r"manifest\.json is damaged \(val_mask\)"):
        verify_data(tiny_data)


def test_a_manifest_that_is_not_json_is_refused(tiny_data: Path) -> None:
    (tiny_data / "manifest.json").write_text("{")
    with pytest.raises(FastcifarError, match=r"manifest\.json is damaged: it is not valid JSON: write it again"):
        verify_data(tiny_data)


@pytest.mark.network
def test_real_data_decodes_with_stock_ffcv_to_the_published_digests(real_dataset: Dataset, tmp_path: Path) -> None:
    import warnings

    data = tmp_path / "data"
    prepare_data(data)
    decoded = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ffcv.fields.basics import IntDecoder
        from ffcv.fields.rgb_image import SimpleRGBImageDecoder
        from ffcv.loader import Loader, OrderOption

        for split in ("train", "val", "test"):
            loader = Loader(
                str(data / f"{split}.beton"),
                batch_size=1000,
                num_workers=1,
                os_cache=True,
                order=OrderOption.SEQUENTIAL,
                pipelines={"image": [SimpleRGBImageDecoder()], "label": [IntDecoder()]},
            )
            batches = [(images.copy(), labels[:, 0].astype(np.uint8)) for images, labels in loader]
            decoded[split] = tuple(np.concatenate(part) for part in zip(*batches, strict=True))
    assert cifar10.content_digest(*decoded["train"]) == cifar10.SPEC.digests["train"]

    def records(images: Any, labels: Any) -> list[bytes]:
        return sorted(bytes([label]) + image.tobytes() for image, label in zip(images, labels, strict=True))

    halves = [np.concatenate(part) for part in zip(decoded["val"], decoded["test"], strict=True)]
    assert records(*halves) == records(real_dataset.test_images, real_dataset.test_labels)
    verify_data(data)
