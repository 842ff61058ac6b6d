"""FFCV's Loader, wrapped so that its pitfalls do not reach a user.

FFCV reuses a ring of buffers, hangs when its thread fails, leaks that thread when an epoch ends early,
and resets torch's thread count. Here a failure is raised, the thread always ends, and the count is restored; a
batch is valid until the next is taken, and `loader.StreamedLoader` copies it in that time.
"""

import contextlib
import queue
import warnings
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from fastcifar.errors import FastcifarError
from fastcifar.kernels.gather_numba import augment_into


@contextlib.contextmanager
def ffcv_side_effects_undone() -> Iterator[None]:
    """Keep torch's thread count, which FFCV resets on import and whenever it creates or starts a loader.

    Warnings from its imports are silenced too.
    """
    num_threads = torch.get_num_threads()
    with warnings.catch_warnings(action="ignore"):
        try:
            yield
        finally:
            torch.set_num_threads(num_threads)


with ffcv_side_effects_undone():
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.loader.epoch_iterator import EpochIterator
    from ffcv.pipeline.allocation_query import AllocationQuery
    from ffcv.pipeline.operation import Operation
    from ffcv.pipeline.state import State


# numba refuses to use more threads; it reads NUMBA_NUM_THREADS on import.
_MAX_WORKERS: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]


class _Augment(Operation):  # type: ignore[misc]
    """Crop, mirror and rotate; row `row_of[i]` of the epoch's coeffs belongs to image i of the file."""

    coeffs: NDArray[np.int32]
    row_of: NDArray[np.int64]

    def generate_code(self) -> Callable[..., Any]:
        def augment(images: Any, buffer: Any, indices: Any) -> Any:
            out = buffer[: len(images)]
            augment_into(out, images, self.coeffs[self.row_of[indices]])
            return out

        augment.with_indices = True  # type: ignore[attr-defined]
        return augment

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        return replace(previous_state, jit_mode=False), AllocationQuery(previous_state.shape, previous_state.dtype)


class _Epoch(EpochIterator):  # type: ignore[misc]
    """FFCV's reading thread, which reports its failure and can be stopped."""

    error: BaseException | None = None

    def run(self) -> None:
        try:
            super().run()
        except BaseException as error:
            self.error = error
            self.output_queue.put(None)  # the end, as after the last batch

    def stop(self) -> None:
        self.iter_ixes = iter(())  # FFCV checks its stop flag only when the queue is full
        self.close()
        while self.is_alive():  # it may be waiting to hand over a batch: make room until it ends
            with contextlib.suppress(queue.Empty):
                self.output_queue.get_nowait()
            self.join(timeout=0.01)


class FfcvStream:
    """Augmented batches of a .beton file, as numpy views of FFCV's buffers.

    Args:
        path: a validated file: FFCV can crash on a damaged one.
        batch_size: images per batch.
        num_workers: threads that read and augment, limited to numba's number of threads.
    """

    def __init__(self, path: Path, batch_size: int, num_workers: int) -> None:
        self._augment = _Augment()
        with ffcv_side_effects_undone():
            self._loader = Loader(
                str(path),
                batch_size=batch_size,
                num_workers=min(num_workers, _MAX_WORKERS),
                os_cache=True,
                order=OrderOption.SEQUENTIAL,  # not used: `epoch` gives FFCV the order
                pipelines={"image": [SimpleRGBImageDecoder(), self._augment], "label": [IntDecoder()]},
                drop_last=True,
            )

    def epoch(
        self, positions: NDArray[np.int64], coeffs: NDArray[np.int32]
    ) -> Generator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        """Read and augment images in a given order.

        Args:
            positions: `(n,)` int64, which images of the file, in order; n is a multiple of the batch size.
            coeffs: `(n, 9)` int32 from `augment.affine_coeffs`, for those images.

        Yields:
            `(B, 32, 32, 3)` uint8 and `(B,)` int64, both valid only until the next batch is taken.

        Raises:
            FastcifarError: the reading thread failed.
        """
        assert len(positions) == len(coeffs)
        assert len(positions) % self._loader.batch_size == 0
        row_of = np.full(self._loader.reader.num_samples, -1, np.int64)
        row_of[positions] = np.arange(len(positions))
        self._augment.row_of, self._augment.coeffs = row_of, coeffs
        with ffcv_side_effects_undone():
            batches = _Epoch(self._loader, positions.astype(np.uint64))
        try:
            with ffcv_side_effects_undone():  # the thread sets torch's count as it starts, before its first batch
                batch = next(batches, None)
            while batch is not None:
                images, labels = batch
                yield images, labels[:, 0]
                batch = next(batches, None)
            if batches.error is not None:
                message = f"reading {self._loader.fname} failed: {batches.error!r}"
                raise FastcifarError(message) from batches.error
        finally:
            batches.stop()
