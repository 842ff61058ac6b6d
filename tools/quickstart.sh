#!/usr/bin/env bash
# bash tools/quickstart.sh [OPTIONS OF fastcifar train]
# Sets everything up. Then, with a CUDA GPU, trains the whole adam89 recipe; without one, makes a short tour of it on the CPU.
# PYTHON=/path/to/python3 chooses the interpreter (3.11 or later).
set -euo pipefail

# The tour: small enough for a laptop's patience, large enough to learn something.
epochs=3            # of 55
train_images=4096   # of 50,000
eval_images=1000    # of the 5,000 for validation, and as many of the 5,000 for the test
accuracy="about 40%" # what the tour reaches, measured

if [ "${1-}" = --help ]; then
  sed -n '2,4s/^# //p' "${BASH_SOURCE[0]}"
  exit
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/bootstrap.sh

if .venv/bin/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
  exec .venv/bin/fastcifar train --recipe adam89 "$@"
fi

cat <<END

No CUDA GPU here, so this is a tour of the adam89 recipe on the CPU, cut to
  $epochs epochs of 55, $train_images training images of 50,000, $eval_images evaluation images of 5,000.
Expect an accuracy of $accuracy: that shows that everything works, not what the recipe can do.

END
.venv/bin/fastcifar prepare --out data/
exec .venv/bin/fastcifar train --recipe adam89 --data data/ \
  --epochs "$epochs" --train-images "$train_images" --eval-images "$eval_images" "$@"
