"""tools/gpu_report.py on the tiny dataset, with a shortened benchmark."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "benchmarks")]

import gpu_report  # noqa: E402
import throughput  # noqa: E402
from baselines import CONTENDERS  # noqa: E402
from support.containers import tiny_cifar10  # noqa: E402
from support.tiny_benchmark import cut_short  # noqa: E402

if __name__ == "__main__":
    few = {name: CONTENDERS[name] for name in ("published", "stock FFCV", "fastcifar resident")}
    with tiny_cifar10(), pytest.MonkeyPatch.context() as patch:
        cut_short(patch)
        patch.setattr(throughput, "CONTENDERS", few)  # test_benchmarks.py has all of them
        gpu_report.main()
