import contextlib
import importlib
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numba.core.caching import CompileResultCacheImpl, FunctionCache
from support.batches import read_epoch
from support.command_line import ENVIRONMENT
from support.containers import NUM_TRAIN, TRAIN_IMAGES, TRAIN_LABELS

from fastcifar.data.beton import write_beton
from fastcifar.errors import FastcifarError
from fastcifar.kernels import gather_numba
from fastcifar.kernels.gather import gather_augmented
from fastcifar.pipeline.augment import affine_coeffs, choose_subset, crop_flip_rotate, draw_order, sample_augmentation
from fastcifar.pipeline.loader import EpochPlanner, ResidentLoader, StreamedLoader
from fastcifar.recipes import get_recipe

CPU = torch.device("cpu")
IMAGES, LABELS = torch.from_numpy(TRAIN_IMAGES), torch.from_numpy(TRAIN_LABELS).long()


def build_planner(num_images: int = NUM_TRAIN, batch_size: int = 8) -> EpochPlanner:
    chosen = choose_subset(torch.arange(NUM_TRAIN), num_images)
    return EpochPlanner(chosen, replace(get_recipe("sgd92"), global_batch_size=batch_size))


def build_resident(planner: EpochPlanner) -> ResidentLoader:
    return ResidentLoader(IMAGES[planner.indices], LABELS[planner.indices], planner)


def build_streamed(data: Path, planner: EpochPlanner, device: torch.device = CPU) -> StreamedLoader:
    return StreamedLoader(data / "train.beton", planner, device, num_workers=2)


def test_an_epoch_is_the_drawn_order_and_augmentation() -> None:
    loader = build_resident(build_planner())
    order = draw_order(42, 3, torch.arange(NUM_TRAIN))
    batches = read_epoch(loader, 3)
    assert len(batches) == loader.num_steps == 5
    assert torch.equal(torch.cat([labels for _, labels in batches]), LABELS[order])
    expected = crop_flip_rotate(IMAGES[order], sample_augmentation(42, 3, order))
    assert torch.equal(torch.cat([images for images, _ in batches]), expected)


def test_augmentation_does_not_depend_on_batch_size() -> None:
    by_8 = [images for images, _ in read_epoch(build_resident(build_planner(batch_size=8)), 1)]
    by_20 = [images for images, _ in read_epoch(build_resident(build_planner(batch_size=20)), 1)]
    assert torch.equal(torch.cat(by_8), torch.cat(by_20))


def test_the_tail_that_fills_no_batch_is_dropped() -> None:
    loader = build_resident(build_planner(num_images=30))
    assert loader.num_steps == 3
    assert [len(labels) for _, labels in read_epoch(loader, 0)] == [8, 8, 8]


@pytest.mark.parametrize("num_images", [NUM_TRAIN, 30])
def test_streamed_equals_resident(tiny_data: Path, num_images: int) -> None:
    planner = build_planner(num_images, batch_size=2)  # many more batches than FFCV has buffers
    resident, streamed = build_resident(planner), build_streamed(tiny_data, planner)
    for epoch in (0, 1, 5):
        kept = read_epoch(streamed, epoch)  # every batch of it stays valid
        for (images, labels), (other_images, other_labels) in zip(read_epoch(resident, epoch), kept, strict=True):
            assert torch.equal(images, other_images)
            assert torch.equal(labels, other_labels)


def test_leaving_a_streamed_epoch_ends_its_thread_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def augment_into(*arguments: Any) -> None:
        read.append(1)
        gather_numba.augment_into(*arguments)

    monkeypatch.setattr("fastcifar.pipeline.ffcv_reader.augment_into", augment_into)
    num_images = 2000
    images = np.zeros((num_images, 32, 32, 3), np.uint8)
    write_beton(tmp_path / "train.beton", images, np.zeros(num_images, np.uint8))
    planner = EpochPlanner(torch.arange(num_images), replace(get_recipe("sgd92"), global_batch_size=2))
    loader = build_streamed(tmp_path, planner)
    num_threads = threading.active_count()
    for epoch in range(5):
        batches = loader.epoch(epoch)
        next(batches)
        batches.close()
        assert threading.active_count() == num_threads
    assert len(read) < 500  # of 5 times 1,000 batches


def test_a_failing_reader_is_an_error_not_a_hang(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("lost the disk")

    loader = build_streamed(tiny_data, build_planner())
    monkeypatch.setattr("fastcifar.pipeline.ffcv_reader.augment_into", fail)
    with pytest.raises(FastcifarError, match=r"reading .*train\.beton failed: RuntimeError\('lost the disk'\)"):
        read_epoch(loader, 0)


def test_numba_may_be_allowed_fewer_threads(tiny_data: Path) -> None:
    script = f"""
import numpy as np
from pathlib import Path
from typing import Any
from fastcifar.pipeline.ffcv_reader import FfcvStream
stream = FfcvStream(Path({str(tiny_data / "train.beton")!r}), 8, 2)
batches = stream.epoch(np.arange(40), np.zeros((40, 9), np.int32))
print(len([0 for _ in batches]), stream._loader.num_workers)
"""
    environment = ENVIRONMENT | {"NUMBA_NUM_THREADS": "1"}
    found = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert (found.stdout, found.stderr, found.returncode) == ("5 1\n", "", 0)


@pytest.mark.parametrize("fault", ["no folder", "full disk", "damaged"])
def test_the_numba_kernel_needs_no_cache(
    fault: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise {"full disk": OSError(28, "No space left on device"), "damaged": EOFError("Ran out of input")}[fault]

    if fault == "no folder":
        monkeypatch.setattr(CompileResultCacheImpl, "_locator_classes", [])
    else:
        monkeypatch.setattr(FunctionCache, "load_overload", lambda *_: None)
        monkeypatch.setattr(FunctionCache, "save_overload" if fault == "full disk" else "load_overload", fail)
    module = importlib.reload(gather_numba)
    try:
        assert not module.IS_CACHED
        coeffs = affine_coeffs(sample_augmentation(42, 0, torch.arange(NUM_TRAIN), padding=4, max_angle_deg=15))
        out = np.empty_like(TRAIN_IMAGES)
        module.augment_into(out, TRAIN_IMAGES, coeffs.numpy())
        expected = gather_augmented(torch.from_numpy(TRAIN_IMAGES), torch.arange(NUM_TRAIN), coeffs)
        np.testing.assert_array_equal(out, expected.numpy())
    finally:
        monkeypatch.undo()
        importlib.reload(gather_numba)


def test_streaming_keeps_torchs_thread_count(tiny_data: Path) -> None:
    torch.set_num_threads(2)
    loader = build_streamed(tiny_data, build_planner())
    for _ in loader.epoch(0):
        assert torch.get_num_threads() == 2


def test_copies_to_cuda_have_a_stream_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of waits, with torch.cuda replaced by a recorder; needs no GPU."""
    log: list[str] = []

    class Event:
        num_made = 0

        def __init__(self) -> None:
            kind, slot = divmod(Event.num_made, 2)
            self.name = f"{('copied', 'trained')[kind]} {slot}"
            Event.num_made += 1

        def synchronize(self) -> None:
            log.append(f"host waits for {self.name}")

        def record(self, stream: "Stream") -> None:
            log.append(f"{self.name} on {stream.name}")

    class Stream:
        def __init__(self, name: Any) -> None:
            self.name = name if name == "training" else "copies"

        def wait_stream(self, other: "Stream") -> None:
            log.append(f"{self.name} waits for {other.name}")

        def wait_event(self, event: Event) -> None:
            log.append(f"{self.name} waits for {event.name}")

    empty_like = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda tensor, **_: empty_like(tensor))  # pinned memory needs a GPU
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Stream("training"))
    loader = StreamedLoader.__new__(StreamedLoader)
    loader._device = CPU
    loader._images = torch.zeros(2, 4, 32, 32, 3, dtype=torch.uint8)
    loader._labels = torch.zeros(2, 4, dtype=torch.int64)
    batches = [(TRAIN_IMAGES[start : start + 4], np.arange(start, start + 4)) for start in (0, 4, 8)]
    for step in loader._copy_to_cuda(batch for batch in batches):
        log.append(f"step {step}")
        images, labels = loader.read(torch.tensor([step]))
        assert torch.equal(images, torch.from_numpy(batches[step][0]))
        assert torch.equal(labels, torch.from_numpy(batches[step][1]))
    expected = ["copies waits for training"]
    for step in range(3):
        slot = step % 2
        expected += [
            f"host waits for copied {slot}",  # its pinned memory is free
            f"copies waits for trained {slot}",  # its place on the device is free
            f"copied {slot} on copies",
            f"training waits for copied {slot}",
            f"step {step}",
            f"trained {slot} on training",
        ]
    assert log == expected


@pytest.mark.gpu
def test_resident_on_cuda_gives_the_cpus_batches() -> None:
    cuda = torch.device("cuda")
    planner = EpochPlanner(torch.arange(NUM_TRAIN, device=cuda), replace(get_recipe("sgd92"), global_batch_size=8))
    loader = ResidentLoader(IMAGES.to(cuda), LABELS.to(cuda), planner)
    for epoch in range(3):
        for (images, labels), (other_images, other_labels) in zip(
            read_epoch(build_resident(build_planner()), epoch), read_epoch(loader, epoch, cuda), strict=True
        ):
            assert torch.equal(images, other_images.cpu())
            assert torch.equal(labels, other_labels.cpu())


@pytest.mark.gpu
def test_streamed_to_cuda_equals_resident(tiny_data: Path) -> None:
    """The device is kept busy before each copy, so the host would run far ahead if it did not wait."""
    pytest.importorskip("ffcv")
    planner = build_planner(batch_size=2)
    streamed = build_streamed(tiny_data, planner, torch.device("cuda"))
    resident = build_resident(planner)
    for epoch in range(20):
        kept = []
        torch.cuda._sleep(10_000_000)
        for step in streamed.epoch(epoch):
            kept.append(streamed.read(torch.tensor([step], device="cuda")))
            torch.cuda._sleep(2_000_000)
        for (images, labels), (other_images, other_labels) in zip(read_epoch(resident, epoch), kept, strict=True):
            assert torch.equal(images, other_images.cpu())
            assert torch.equal(labels, other_labels.cpu())
