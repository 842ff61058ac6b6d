"""torchrun's world: which process this is, how many there are, and how they communicate.

A single process is a world of one, which needs no set-up and no communication.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from fastcifar.errors import FastcifarError

T = TypeVar("T")


class LostPeerError(FastcifarError):
    """Another process of the world has ended, or cannot be reached."""


@dataclass(frozen=True)
class World:
    """The processes that train together, one per device, seen from one of them.

    Attributes:
        rank: the rank of this process, 0..size-1. Rank 0 writes the files and prints the messages.
        size: the number of processes, on all machines.
        local_rank: the rank of this process on its machine; the index of its GPU.
        local_size: the number of processes on its machine.
        num_restarts: how often torchrun has restarted all of them because one failed.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    num_restarts: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def all_reduce_sum(self, tensor: Tensor) -> None:
        """Sum `tensor` over all ranks, in place; every rank gets the same bits."""
        if self.size > 1:
            dist.all_reduce(tensor)

    def broadcast_tensors(self, tensors: Iterable[Tensor]) -> None:
        """Put rank 0's values into every rank's tensors."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def all_reduce_max(self, value: float) -> float:
        """The greatest of the ranks' values."""
        if self.size == 1:
            return value
        greatest = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(greatest, dist.ReduceOp.MAX)
        return greatest.item()

    def broadcast(self, value: T | None) -> T:
        """Rank 0's value, on every rank; the other ranks' arguments are ignored. It is pickled."""
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]  # type: ignore[return-value]

    def barrier(self) -> None:
        """Wait until every rank has called this."""
        self.all_reduce_max(0.0)

    @contextlib.contextmanager
    def peers_needed(self) -> Iterator[None]:
        """Turn the errors that torch raises when another rank has died into one line.

        Raises:
            LostPeerError: another rank has died.
        """
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not (isinstance(error, dist.DistError) or "gloo" in str(error).lower()):
                raise
            lines = str(error).strip().splitlines()  # NCCL fails for many reasons, and the last line names it
            reason = f" ({lines[-1][:200]})" if isinstance(error, dist.DistBackendError) and lines else ""
            who = f"rank {self.rank} of {self.size}"
            raise LostPeerError(
                f"{who} lost its connection to another rank, which was stopped or failed{reason}"
            ) from error


ALONE = World()


def world_from_env() -> World:
    """This process's place in the world, from torchrun's environment variables; a world of one without them.

    Raises:
        FastcifarError: the environment is incomplete, or its values are not numbers.
    """
    is_alone = os.environ.get("WORLD_SIZE", "1") == "1"

    def number(name: str, default: str = "") -> int:
        try:
            return int(os.environ.get(name, default))
        except ValueError:
            raise FastcifarError(
                f"WORLD_SIZE is set, but {name} is {os.environ.get(name, 'not')}: start through torchrun"
            ) from None

    num_restarts = number("TORCHELASTIC_RESTART_COUNT", "0")
    if is_alone:
        return World(num_restarts=num_restarts)
    return World(
        rank=number("RANK"),
        size=number("WORLD_SIZE"),
        local_rank=number("LOCAL_RANK"),
        local_size=number("LOCAL_WORLD_SIZE"),
        num_restarts=num_restarts,
    )


@contextlib.contextmanager
def init_distributed() -> Iterator[World]:
    """Join torchrun's process group for the length of the context; a nested call does nothing.

    NCCL transfers tensors on CUDA devices, gloo those on the CPU. Ranks other than 0 have nothing to save, so SIGINT
    and SIGTERM end them at once, even within a collective.

    Raises:
        LostPeerError: the others cannot be reached, or one of them dies.
    """
    world = world_from_env()
    if world.size == 1 or dist.is_initialized():
        yield world
        return
    if not world.is_main and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    backend = "gloo"  # also where processes share a device, which NCCL refuses; all ranks must choose the same
    if torch.cuda.is_available() and world.local_size <= torch.cuda.device_count():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(world.local_rank)
    try:
        store, rank, size = next(rendezvous("env://"))
        # torchrun keeps its store over a restart, with the addresses of processes that have ended.
        store = dist.PrefixStore(f"restart {world.num_restarts}", store)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        reason = (str(error).strip().splitlines() or [repr(error)])[0][:200]
        raise LostPeerError(f"rank {world.rank} of {world.size} cannot join the others at {where}: {reason}") from error
    with world.peers_needed():
        yield world
    dist.destroy_process_group()  # after an error it could wait forever for a rank that is gone
