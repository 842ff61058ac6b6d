"""A run's figures for TensorBoard, by torch's own writer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastcifar.machine import check_installed
from fastcifar.results.records import EpochMetrics, Results
from fastcifar.training.callbacks import Callback

_SCALARS = {
    "train_loss": "loss/train",
    "val_loss": "loss/val",
    "train_accuracy": "accuracy/train",
    "val_accuracy": "accuracy/val",
    "lr": "learning_rate",
    "img_per_s": "throughput_img_per_s",
}


class TensorBoardLogger(Callback):
    """Writes scalars at every epoch's end to the folder `tensorboard` in the run directory; steps are epochs from 1.

    Raises:
        FastcifarError: the package tensorboard is not installed.
    """

    def __init__(self) -> None:
        check_installed("tensorboard", "tensorboard")
        self._folder = Path()
        self._writer: Any = None

    def on_run_begin(self, run_dir: Path, config: dict[str, Any]) -> None:
        """Note where to write."""
        self._folder = run_dir / "tensorboard"

    def on_train_begin(
        self, num_epochs: int, num_steps: int, batch_size: int, finished: Sequence[EpochMetrics]
    ) -> None:
        """Open the log; for a resumed run, replace the epochs of the earlier log."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._folder), purge_step=1 if finished else None)
        for metrics in finished:
            self.on_epoch_end(metrics)

    def on_epoch_end(self, metrics: EpochMetrics) -> None:
        """Write an epoch's scalars to the disk."""
        for key, name in _SCALARS.items():
            self._writer.add_scalar(name, getattr(metrics, key), metrics.epoch + 1)
        self._writer.flush()

    def on_train_end(self, results: Results) -> None:
        """Write the test accuracies of the best weights, and close the log."""
        best = results.best
        for key in ("test_accuracy", "test_accuracy_augmented"):
            self._writer.add_scalar(f"accuracy/{key}", getattr(best, key), best.epoch + 1)
        self._writer.close()
