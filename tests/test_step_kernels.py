import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from support.command_line import ENVIRONMENT, PROGRAMS
from support.interpreter import needs_interpreter  # skips the module where there is no Triton

# The step's measured launches and traffic in MB, of forward, backward, optimizer and gather together: with the default
# switches, and with our batch norm.
MEASURED = {
    "2.11": {"": (135, 1856.7), "triton_batch_norm=1": (111, 1778.2)},
    "2.15": {"": (135, 1856.7), "triton_batch_norm=1": (99, 1778.2)},
}
ROOM = 1.03


def run(program: str, *arguments: str) -> dict[str, Any]:
    """What a program found on a torch whose code generation is known."""
    version = ".".join(torch.__version__.split(".")[:2])
    if version not in MEASURED:
        pytest.skip(f"the code generation is known for torch {', '.join(MEASURED)}, not {version}")
    command = [sys.executable, "-W", "ignore", str(PROGRAMS / program), *arguments]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("switch", ["", "triton_batch_norm=1"])
def test_the_step_stays_within_its_budget_of_kernels_and_bytes(switch: str) -> None:
    parts = run("step_kernels.py", "sgd92", switch)
    assert set(parts) == {"gather", "forward", "backward", "optimizer"}
    num_launches, num_mb = MEASURED[".".join(torch.__version__.split(".")[:2])][switch]
    assert sum(part["launches"] for part in parts.values()) <= ROOM * num_launches
    assert sum(part["bytes"] for part in parts.values()) / 1e6 <= ROOM * num_mb
    assert parts["gather"]["launches"] == parts["gather"]["compiled"] == 1
    assert all(part["compiled"] for part in parts.values())
    assert not [name for part in parts.values() for name in part["layout_copies"]]
    assert parts["forward"]["externs"]["convolution"] == parts["backward"]["externs"]["convolution_backward"] == 20


@pytest.mark.slow
@needs_interpreter
def test_the_h100s_gather_in_tritons_interpreter_picks_the_same_pixels_at_all_levels() -> None:
    assert run("interpreted_gather.py") == {"images": 65536, "wrong": 0}
