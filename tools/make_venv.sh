#!/bin/sh
# Make .venv with the exact packages of requirements.lock and aclam itself, editable. Called by the Makefile.
# Usage: tools/make_venv.sh VENV
#   PYTHON       the interpreter, default python3
#   TORCH_INDEX  where the build of PyTorch for CPUs is looked for on a machine without an NVIDIA GPU; empty: nowhere.
set -eu
venv=$1
python=${PYTHON:-python3}
torch_index=${TORCH_INDEX-https://download.pytorch.org/whl/cpu}
uv_version=0.13.9

# Megabytes of the finished environment, measured: with the CUDA build of PyTorch, and with that for CPUs. pip keeps what it
# has fetched beside what it installs.
cuda_mb=9200
cpu_mb=4300
pip_more_mb=4000

fail() { echo "aclam: $1" >&2; exit 1; }

command -v "$python" >/dev/null 2>&1 || fail "no $python found: install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$("$python" --version) is too old: Python 3.11 or newer is needed, for example: make PYTHON=python3.11"

# --- room on the disk ---------------------------------------------------------------------------------------------------

parent=$(dirname "$venv")
mkdir -p "$parent"
free_mb() { df -Pk "$parent" | awk 'NR == 2 { print int($4 / 1024) }'; }
in_gb() { awk -v mb="$1" 'BEGIN { printf "%.1f", mb / 1000 }'; }
there_mb() { if [ -d "$venv" ]; then du -sm "$venv" | cut -f1; else echo 0; fi; }

# need MB: end with one line where so much is not free
need() {
    free=$(free_mb)
    [ "$free" -ge "$1" ] || fail "the environment needs $(in_gb "$1") GB more, $(in_gb "$free") GB are free at $parent"
}

# --- which PyTorch ------------------------------------------------------------------------------------------------------

has_gpu() { [ -e /dev/nvidiactl ] || { command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; }; }

# An index answers if it lists PyTorch; asked once, for at most ten seconds.
answers() {
    "$python" - "$1" <<'PY' 2>/dev/null
import sys
import urllib.request

page = urllib.request.urlopen(sys.argv[1].rstrip("/") + "/torch/", timeout=10).read()
sys.exit(b"torch-" not in page)
PY
}

build=cuda
total_mb=$cuda_mb
if ! has_gpu && [ "$(uname -sm)" = "Linux x86_64" ] && [ -n "$torch_index" ]; then
    if answers "$torch_index"; then
        build=cpu
        total_mb=$cpu_mb
    else
        echo "no GPU here, but no CPU build of PyTorch at $torch_index either: the CUDA build is installed, 5 GB more" >&2
    fi
fi

# --- an environment that was begun --------------------------------------------------------------------------------------

# `.installing` is there while packages are put in. What has it and was never finished is half made, and is made anew.
begun="$venv/.installing"
if [ -e "$begun" ] && [ ! -e "$venv/.installed" ]; then
    echo "$venv was left half made: it is made anew"
    rm -rf "$venv"
fi
there=$(there_mb)
more=$((total_mb - there))
[ "$more" -ge 500 ] || more=500
need "$more"

new=no
if [ ! -x "$venv/bin/python" ]; then
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "$python cannot make virtual environments: install its venv module (on Debian and Ubuntu: apt install python3-venv)"
    new=yes
    "$python" -m venv "$venv" || fail "$python could not make a virtual environment at $venv"
fi
: >"$begun"

# --- the packages -------------------------------------------------------------------------------------------------------

work="$venv/.work" # what is fetched is unpacked here, on the disk that was measured
mkdir -p "$work"
TMPDIR=$(cd "$work" && pwd)
export TMPDIR
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP
said="$work/said.txt"

# Why did the last command fail? space, network, absent or other
cause() {
    if [ "$(free_mb)" -lt 200 ] || grep -qiE 'no space left|os error 28|errno 28|disk quota|os error 122' "$said"; then
        echo space
    elif grep -qiE 'no matching distribution|no version of|no solution found|no wheels with a matching|not found in the package registry' "$said" &&
        ! grep -qiE 'max retries|newconnectionerror|error sending request|dns error' "$said"; then
        echo absent
    elif grep -qiE 'max retries|connection|error sending request|dns error|failed to fetch|timed out|timeout|unreachable|resolve' "$said"; then
        echo network
    else
        echo other
    fi
}

# The line of what was said that tells most: the last one with "error", or the last one
line() { { grep -iE 'error' "$said" || cat "$said"; } 2>/dev/null | grep -v '^ *$' | tail -n 1 | cut -c1-300; }

give_up() {
    case $(cause) in
    space)
        free=$(free_mb)
        [ "$new" = no ] || { rm -rf "$venv"; echo "$venv, half made, was removed" >&2; }
        fail "the disk is full: the environment needs $(in_gb "$total_mb") GB, $(in_gb "$free") GB were left at $parent; make room and try again" ;;
    network) fail "the package index could not be reached: $(line)" ;;
    absent) fail "the package index does not have what requirements.lock names: $(line)" ;;
    *) fail "the packages could not be installed: $(line)" ;;
    esac
}

pip() { "$venv/bin/python" -m pip "$@" --quiet --disable-pip-version-check >"$said" 2>&1; }
uv() { "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --no-deps --no-cache "$@" >"$said" 2>&1; }

wanted="$work/wanted.txt"
if [ "$build" = cpu ]; then
    grep -vE '^(torch|torchvision|triton|cuda-[a-z]+|nvidia-[a-z0-9-]+)==' requirements.lock >"$wanted"
    grep -E '^(torch|torchvision)==' requirements.lock >"$work/torch.txt"
else
    cp requirements.lock "$wanted"
fi

with_uv() {
    pip install "uv==$uv_version" || return 1
    if [ "$build" = cpu ]; then
        uv --default-index "$torch_index" -r "$work/torch.txt" || return 1
    fi
    uv -r "$wanted"
}

with_pip() {
    if [ "$build" = cpu ]; then
        pip install --no-deps --index-url "$torch_index" -r "$work/torch.txt" || return 1
    fi
    pip install --no-deps -r "$wanted"
}

echo "installing the packages of requirements.lock into $venv (once; one to two minutes, $(in_gb "$total_mb") GB, the $build build of PyTorch)"
if ! with_uv; then
    [ "$(cause)" != space ] || give_up
    echo "uv could not do it ($(line)); trying pip, which takes some minutes" >&2
    more=$((total_mb + pip_more_mb - $(there_mb)))
    [ "$more" -ge 500 ] || more=500
    need "$more"
    with_pip || give_up
fi
pip install --no-deps --no-build-isolation --editable . || give_up
rm -f "$begun"
touch "$venv/.installed"
