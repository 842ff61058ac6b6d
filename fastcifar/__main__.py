"""`python -m fastcifar` is `fastcifar`."""

from fastcifar.cli import main

main()
