"""The command line with the tiny dataset instead of CIFAR-10, for tests that need a separate process."""

from support.tiny_world import tiny_world

from fastcifar.cli import main

if __name__ == "__main__":
    with tiny_world():
        main()
