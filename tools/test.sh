#!/usr/bin/env bash
# bash tools/test.sh [OPTIONS OF pytest]: sets everything up, then lint, types and tests, up to the first that fails.
# Without options it runs what needs neither a GPU, nor the network, nor minutes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/bootstrap.sh
.venv/bin/ruff check
.venv/bin/mypy
exec .venv/bin/pytest "$@"
