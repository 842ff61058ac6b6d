"""From batches to a run directory: model, step, checkpoints, evaluation."""
