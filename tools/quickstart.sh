#!/usr/bin/env bash
# bash tools/quickstart.sh [OPTIONS OF fastcifar train]
# Sets everything up. Then, with a CUDA GPU, trains the whole adam89 recipe; without one, makes a short tour of it on the CPU.
# PYTHON=/path/to/python3 chooses the interpreter (3.11 or later).
set -euo pipefail

# The tour: small enough for a laptop's patience, large enough to learn something.
epochs=3            # of 55
train_images=4096   # of 50,000
eval_images=1000    # of the 5,000 for validation, and as many of the 5,000 for the test
accuracy="about 45%" # what the tour reaches, measured: 46.0, 46.0 and 46.2% in three runs

if [ "${1-}" = --help ]; then
  sed -n '2,4s/^# //p' "${BASH_SOURCE[0]}"
  exit
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/bootstrap.sh

cut=()
if ! .venv/bin/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
  cut=(--epochs "$epochs" --train-images "$train_images" --eval-images "$eval_images")
  cat <<END

No CUDA GPU here, so this is a tour of the adam89 recipe on the CPU, cut to
  $epochs of 55 epochs, $train_images of 50000 training images, $eval_images of 5000 images for validation and for the test.
Expect an accuracy of $accuracy, where guessing gives 10%: everything works, but the recipe has not had its time.

END
fi
.venv/bin/fastcifar prepare --out data
.venv/bin/fastcifar train --recipe adam89 --data data "${cut[@]}" "$@"
command -v fastcifar >/dev/null || echo "first     source .venv/bin/activate   (fastcifar is installed there)"
