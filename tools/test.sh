#!/usr/bin/env bash
# bash tools/test.sh [OPTIONS OF pytest]: sets everything up, then runs lint, types and tests up to the first failure.
# Two tests run at a time, each on half of the CPUs, with threads that do not spin while they wait; -n 0 runs one.
# Without options it runs the quick tests, which need no GPU and no network.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/bootstrap.sh
.venv/bin/ruff check
.venv/bin/ruff format --check
.venv/bin/mypy
OMP_WAIT_POLICY=PASSIVE exec .venv/bin/pytest -n 2 "$@"
