"""A training step recorded once as a CUDA graph, then replayed: the host issues one launch instead of hundreds."""

from collections.abc import Callable

import torch
from torch import Tensor

_WARM_UPS = 3  # on a stream of their own, as torch's notes on CUDA graphs ask for


class CudaGraphStep:
    """Replays `run(images, labels)` on the batch it is given.

    Recording runs `run` three times and captures a fourth, so what those runs change is the caller's to restore, in
    place: the graph has the addresses of every tensor that `run` touched.

    Args:
        run: works on tensors of fixed addresses and shapes and never waits for the device.
        images: a batch of the shape and dtype of all that follow, on a CUDA device.
        labels: likewise.
    """

    def __init__(self, run: Callable[[Tensor, Tensor], None], images: Tensor, labels: Tensor) -> None:
        self._images, self._labels = images.clone(), labels.clone()
        main_stream, side_stream = torch.cuda.current_stream(), torch.cuda.Stream()
        side_stream.wait_stream(main_stream)
        with torch.cuda.stream(side_stream):
            for _ in range(_WARM_UPS):
                run(self._images, self._labels)
        main_stream.wait_stream(side_stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            run(self._images, self._labels)

    def __call__(self, images: Tensor, labels: Tensor) -> None:
        """The step on this batch; it is copied, so it may be changed at once afterwards."""
        self._images.copy_(images)
        self._labels.copy_(labels)
        self._graph.replay()
