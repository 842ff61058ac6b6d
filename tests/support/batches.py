"""The batches of an epoch as a list, which training never makes."""

import torch

from fastcifar.pipeline.loader import Batch, Loader


def read_epoch(loader: Loader, epoch: int, device: torch.device | None = None) -> list[Batch]:
    """Every batch of an epoch, read as a step reads it."""
    return [loader.read(torch.tensor([step], device=device)) for step in loader.epoch(epoch)]
