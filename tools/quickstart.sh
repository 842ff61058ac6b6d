#!/usr/bin/env bash
# bash tools/quickstart.sh [OPTIONS OF fastcifar train]
# Sets everything up. Then trains the adam89 recipe: the whole recipe with a CUDA GPU, otherwise a tour of about two minutes.
# PYTHON=/path/to/python3 chooses the interpreter (3.11 or later).
set -euo pipefail

if [ "${1-}" = --help ]; then
  sed -n '2,4s/^# //p' "${BASH_SOURCE[0]}"
  exit
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/bootstrap.sh
.venv/bin/fastcifar prepare --out data

tour=
if ! .venv/bin/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
  printf '\nNo CUDA GPU here. '
  tour=$(.venv/bin/python tools/tour.py)
  echo
fi
# shellcheck disable=SC2086 # the tour is several options
.venv/bin/fastcifar train --recipe adam89 --data data $tour "$@"
command -v fastcifar >/dev/null || echo "first     source .venv/bin/activate   (fastcifar is installed there)"
