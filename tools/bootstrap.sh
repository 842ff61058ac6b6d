#!/usr/bin/env bash
# Sets up this checkout: system packages, .venv, the requirements pinned by hash, fastcifar itself.
# Returns at once if all is set up; repairs a set-up that was interrupted, moved or is out of date.
# PYTHON chooses the interpreter (3.11 or later).
#
# After a change of the dependencies in pyproject.toml, write requirements.txt again (--upgrade takes newer versions) with
#   echo uv | PKG_CONFIG_PATH="$PWD/.venv/opencv" .venv/bin/uv pip compile pyproject.toml - --all-extras --group dev \
#     --universal --python-version 3.11 --generate-hashes --no-emit-package opencv-python \
#     --custom-compile-command "the command in tools/bootstrap.sh" --quiet --output-file requirements.txt
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$(pwd -P)

die() {
  echo "bootstrap: $1" >&2
  exit "${2:-2}"
}

step() { # step TITLE COMMAND...: prints one line with the seconds; if the command fails, also the end of its output
  local title=$1 begin=$SECONDS log
  shift
  log=$(mktemp)
  printf 'bootstrap: %s ... ' "$title"
  if ! "$@" >"$log" 2>&1 </dev/null; then
    echo "failed after $((SECONDS - begin)) s"
    tail -n 40 "$log" >&2
    die "failed at '$title'; the whole log is $log" 1
  fi
  echo "$((SECONDS - begin)) s"
  rm -f "$log"
}

# --- Is there anything to do? .venv/stamp is written last: line 1 identifies checkout and Python, line 2 the requirements.
describe() { "$1" -c 'import os, sys; print(sys.argv[1], os.path.realpath(sys.base_prefix), *sys.version_info[:3])' "$root" 2>/dev/null; }

look() { # sets python if .venv can be kept; returns 0 if it is also complete
  local stamp=() here
  python=
  [ ! -r .venv/stamp ] || mapfile -t stamp <.venv/stamp
  here=$(describe .venv/bin/python) && [ "$here" = "${stamp[0]-}" ] || return 1
  [ -z "${PYTHON-}" ] || [ "$(describe "$PYTHON")" = "$here" ] || return 1
  python=.venv/bin/python
  [ "${stamp[1]-}" = "$inputs" ]
}

[ "$(uname -s)" = Linux ] || die "needs Linux (on Windows: WSL), this is $(uname -s): FFCV has to be compiled against Linux's OpenCV"
inputs=$(cat requirements.txt pyproject.toml | sha256sum)
if look; then exit 0; fi
if command -v flock >/dev/null; then # one at a time; the lock ends with this process and its children
  exec 9<tools/bootstrap.sh
  flock --nonblock 9 || { echo "bootstrap: waiting for another bootstrap in this checkout" && flock 9; }
  if look; then exit 0; fi
fi

# --- The interpreter
recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

if [ -z "$python" ]; then
  candidates=(python3 python3.13 python3.12 python3.11)
  [ -z "${PYTHON-}" ] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    if recent "$candidate"; then python=$candidate && break; fi
  done
  [ -n "$python" ] || die "needs Python 3.11 or later, which ${PYTHON:-python3} is not: install it, or set PYTHON to it"
fi

# --- System packages: FFCV is compiled here; it needs a compiler, Python's headers, libturbojpeg and two parts of OpenCV
missing=()
want() { # want PACKAGE COMMAND...: the package is missing if the command fails, or if apt was interrupted while installing it
  local package=$1
  shift
  if ! "$@" >/dev/null 2>&1 || dpkg-query --show --showformat '${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^i[^i]'; then
    missing+=("$package")
  fi
}
opencv() { pkg-config --exists opencv4 || [ -e /usr/include/opencv4/opencv2/imgproc.hpp ]; }

series=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
want "$series-venv" "$python" -c 'import ensurepip; ensurepip.version()'
want "$series-dev" "$python" -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")'
want g++ command -v g++
want pkg-config command -v pkg-config
want libturbojpeg0-dev pkg-config --exists libturbojpeg
want libopencv-imgproc-dev opencv

apt_install() {
  "${as_root[@]}" apt-get update || true # another package source may be down
  "${as_root[@]}" dpkg --configure -a &&
    "${as_root[@]}" apt-get install --yes --fix-broken --no-install-recommends -o DPkg::Lock::Timeout=300 "${missing[@]}"
}
if [ ${#missing[@]} -gt 0 ]; then
  as_root=(env DEBIAN_FRONTEND=noninteractive)
  if ! command -v apt-get >/dev/null; then
    die "cannot compile FFCV: missing what Debian calls ${missing[*]}; install them (OpenCV 4 with its opencv4.pc) and try again"
  elif [ "$(id -u)" -ne 0 ]; then
    sudo -n true 2>/dev/null ||
      die "missing system packages; run as root: apt-get update && apt-get install --no-install-recommends ${missing[*]}"
    as_root=(sudo -n "${as_root[@]}")
  fi
  step "system packages (${missing[*]})" apt_install
fi

# --- .venv: without a stamp it is built again; with one, only the differences are installed
new_venv() {
  rm -rf .venv
  "$python" -m venv .venv &&
    awk '/^[^ #]/ { ours = /^uv==/ } ours' requirements.txt >.venv/uv.txt &&
    .venv/bin/python -m pip install --require-hashes --no-deps -r .venv/uv.txt
}
install_requirements() {
  # opencv4.pc comes only with all of OpenCV, 1 GB; FFCV uses two parts of it, which this describes
  mkdir -p .venv/opencv/opencv2
  echo '#include <opencv2/imgproc.hpp>' >.venv/opencv/opencv2/opencv.hpp
  printf '%s\n' 'Name: OpenCV' 'Description: core and imgproc' 'Version: 4' 'Libs: -lopencv_core -lopencv_imgproc' \
    "Cflags: -I\${pcfiledir} -I/usr/include/opencv4" >.venv/opencv/opencv4.pc
  pkg-config --exists opencv4 || export PKG_CONFIG_PATH="$root/.venv/opencv:${PKG_CONFIG_PATH-}"
  export CC=${CC:-gcc} CXX=${CXX:-g++} VIRTUAL_ENV="$root/.venv"
  .venv/bin/uv pip sync --require-hashes --build-constraints requirements.txt requirements.txt
}
install_fastcifar() { VIRTUAL_ENV="$root/.venv" .venv/bin/uv pip install --no-deps --no-build-isolation --editable .; }

if [ "$python" = .venv/bin/python ]; then
  rm .venv/stamp
else
  step "new .venv with $("$python" --version)" new_venv
fi
step "requirements (6 GB when new)" install_requirements
step "fastcifar" install_fastcifar
printf '%s\n' "$(describe .venv/bin/python)" "$inputs" >.venv/stamp
