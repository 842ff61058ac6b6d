"""tools/gpu_report.py on the tiny dataset, in a process that cannot import FFCV."""

import sys
from pathlib import Path

sys.modules["ffcv"] = None  # type: ignore[assignment] # which makes an import of it fail
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "tools"))

import gpu_report  # noqa: E402
from support import containers  # noqa: E402

with containers.tiny_cifar10():
    gpu_report.main()
