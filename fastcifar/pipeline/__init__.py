"""From a split in memory or on disk to augmented uint8 batches on a device."""
