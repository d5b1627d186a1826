#!/bin/sh
# Make .venv with the exact packages of requirements.lock and aclam itself, editable. Called by the Makefile.
# Usage: tools/make_venv.sh VENV   (PYTHON chooses the interpreter, default python3)
set -eu
venv=$1
python=${PYTHON:-python3}
uv_version=0.13.9

fail() { echo "aclam: $1" >&2; exit 1; }

command -v "$python" >/dev/null 2>&1 || fail "no $python found: install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$("$python" --version) is too old: Python 3.11 or newer is needed, for example: make PYTHON=python3.11"

if [ ! -x "$venv/bin/python" ]; then
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "$python cannot make virtual environments: install its venv module (on Debian and Ubuntu: apt install python3-venv)"
    "$python" -m venv "$venv"
fi

echo "installing the packages of requirements.lock into $venv (once; one to two minutes, 7 GB)"
if "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "uv==$uv_version" &&
    "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --no-deps --no-cache -r requirements.lock; then :; else
    echo "uv could not do it; trying pip, which takes some minutes" >&2
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock ||
        fail "the packages could not be installed: is the package index reachable?"
fi
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
touch "$venv/.installed"
