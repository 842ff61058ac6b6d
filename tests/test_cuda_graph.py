"""The operations issued on each stream, with torch.cuda replaced by a recorder; needs no GPU."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcifar.distributed import ALONE, LostPeerError, World
from fastcifar.training import evaluate, in_flight
from fastcifar.training.cuda_graph import CudaGraphStep, try_capture
from fastcifar.training.evaluate import CompiledPass
from fastcifar.training.in_flight import StepsInFlight


class FakeCuda:
    """Streams are strings; `log` has every step that ran, was captured or replayed, and where."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[tuple[str, str]] = []
        self.stream, self.capturing, self.num_streams = "main", False, 0
        cuda = self

        class Stream(str):
            def __new__(cls) -> "Stream":
                cuda.num_streams += 1
                return super().__new__(cls, f"side {cuda.num_streams}")

            def wait_stream(self, other: str) -> None: ...

        class Graph:
            num_steps = 0

            def replay(self) -> None:
                cuda.log.append((f"replay {self.num_steps}", cuda.stream))

        main = Stream()
        self.stream = main

        @contextlib.contextmanager
        def stream(of: str) -> Iterator[None]:
            before, self.stream = self.stream, of
            yield
            self.stream = before

        @contextlib.contextmanager
        def graph(of: Graph, *, stream: str, capture_error_mode: str) -> Iterator[None]:
            assert capture_error_mode == "thread_local"
            before, self.stream = self.stream, stream
            self.capturing, num_before = True, len(self.log)
            try:
                yield
            except RuntimeError:
                raise RuntimeError("previous error during capture")  # noqa: B904 (as torch does it)
            finally:
                self.capturing = False
            of.num_steps = len(self.log) - num_before
            self.stream = before  # not after an error, as in torch 2.11

        for name, value in {
            "Stream": Stream, "CUDAGraph": Graph, "stream": stream, "graph": graph,
            "current_stream": lambda *_: self.stream, "set_stream": self.set_stream,
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, value)

    def set_stream(self, stream: str) -> None:
        self.stream = stream

    def run(self) -> None:
        self.log.append(("capture" if self.capturing else "run", self.stream))


def test_warm_up_and_capture_share_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch)
    main = cuda.stream
    step = CudaGraphStep(cuda.run)
    assert [what for what, _ in cuda.log] == ["run", "run", "run", "capture"]
    (side,) = {where for _, where in cuda.log}
    assert side != main
    step.step(1)
    assert cuda.log[-1] == ("replay 1", main)


def test_a_failed_capture_restores_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch)
    main = cuda.stream

    def run() -> None:
        cuda.run()
        if cuda.capturing:
            raise RuntimeError("operation not permitted when stream is capturing")

    graph, failure = try_capture(lambda: CudaGraphStep(run))
    assert graph is None
    assert str(failure).startswith("operation not permitted when stream is capturing, in test_cuda_graph.py:")
    assert cuda.stream == main


@pytest.mark.parametrize(("num_steps", "expected"), [(7, [3, 3, 1]), (6, [3, 3]), (2, [1, 1])])
def test_several_steps_a_graph_with_a_remainder(
    monkeypatch: pytest.MonkeyPatch, num_steps: int, expected: list[int]
) -> None:
    cuda = FakeCuda(monkeypatch)
    step = CudaGraphStep(cuda.run, steps_per_graph=3)
    assert [what for what, _ in cuda.log].count("capture") == 1 + 3
    for _ in range(2):  # the second epoch begins in step, the first one having been left early
        cuda.log.clear()
        step.begin_epoch()
        for position in range(num_steps):
            step.step(num_steps - position)
        assert [what for what, _ in cuda.log] == [f"replay {size}" for size in expected]
        step.step(3)


def test_evaluation_is_captured_where_it_warmed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch)
    main = cuda.stream

    def classify(model: nn.Module, images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        cuda.run()
        return torch.zeros(len(images), 10)

    monkeypatch.setattr(evaluate, "_compiled", lambda: classify)
    compiled, half = CompiledPass(torch.device("cuda")), torch.full((3,), 0.5)
    for num_images in (2, 2, 1):
        images = torch.zeros(num_images, 32, 32, 3, dtype=torch.uint8)
        assert compiled(nn.Identity(), images, half, half).shape == (num_images, 10)
    (side,) = {where for _, where in cuda.log[:4]}
    assert side != main
    what = [("run", side)] * 3 + [("capture", side), ("replay 1", main), ("replay 1", main), ("run", main)]
    assert cuda.log == what


class FakeEvent:
    """Finished when the device has finished this many steps."""

    num_done = 0
    num_recorded = 0

    def record(self) -> None:
        FakeEvent.num_recorded += 1
        self.number = FakeEvent.num_recorded

    def query(self) -> bool:
        return self.number <= FakeEvent.num_done


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> type[FakeEvent]:
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    FakeEvent.num_done = FakeEvent.num_recorded = 0
    return FakeEvent


def test_finished_steps_are_counted_without_a_wait(events: Any) -> None:
    steps = StepsInFlight(torch.device("cuda"))
    for _ in range(5):
        steps.add()
    assert (steps.num_issued, steps.num_finished) == (5, 0)
    events.num_done = 3
    assert steps.num_finished == 3
    steps.begin_epoch()
    assert (steps.num_issued, steps.num_finished) == (0, 0)


def test_the_host_runs_ahead_by_a_limit(events: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        events.num_done += 1

    monkeypatch.setattr(time, "sleep", sleep)
    steps = StepsInFlight(torch.device("cuda"))
    for _ in range(in_flight._MAX_IN_FLIGHT + 2):
        steps.add()
    assert (len(waits), steps.num_finished) == (2, 2)
    steps.finish()
    assert steps.num_finished == steps.num_issued == in_flight._MAX_IN_FLIGHT + 2


def test_a_device_that_waits_for_a_lost_rank_is_an_error(events: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 10_000, 100))
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    steps = StepsInFlight(torch.device("cuda"), World(rank=1, size=2))
    steps.add()
    with pytest.raises(LostPeerError, match="rank 1 of 2 waited 300 s for a step: another rank was stopped or failed"):
        steps.finish()


def test_on_a_cpu_an_issued_step_is_finished() -> None:
    steps = StepsInFlight(torch.device("cpu"), ALONE)
    steps.add()
    assert (steps.num_issued, steps.num_finished) == (1, 1)
    steps.finish()
