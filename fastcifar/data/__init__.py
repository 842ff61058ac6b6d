"""CIFAR-10 on disk: downloaded, checked, written as .beton files, and read back. Needs no torch."""
