#!/usr/bin/env bash
# Everything that is to be known of one GPU, in one call of at most 8 minutes, without a network.
#
#   bash bench/gpu.sh [--tiny] [--out DIR] [--only NAME ...] [--minutes M] [--keep]
#   bash bench/gpu.sh --pack      where there is a network: fetch the wheels that such a machine lacks into bench/wheels
#
# Python: $PYTHON, else the project's .venv, else python3. What it lacks is taken from the wheels in bench/wheels.
# --tiny runs every section on a CPU with tiny models: it shows that the script works, not how fast a GPU is.
set -euo pipefail
ACLAM_GPU_STARTED=$(date +%s)
export ACLAM_GPU_STARTED
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
wheels=$here/wheels
python=${PYTHON:-}
if [ -z "$python" ]; then
    python=python3
    [ ! -x "$root/.venv/bin/python" ] || python=$root/.venv/bin/python
fi

# The command line (tyro and what it needs), fastcore, msgspec, and a quick JPEG decoder; the versions that are tested here.
pack() {
    local wanted=(tyro docstring_parser typeguard fastcore msgspec simplejpeg) pins=() name
    for name in "${wanted[@]}"; do
        pins+=("$(grep -iE "^${name//_/[-_]}==" "$root/requirements.lock")")
    done
    mkdir -p "$wheels"
    "$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version "${PACK_PYTHON:-3.12}" \
        --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \
        --platform manylinux2014_x86_64 --dest "$wheels" "${pins[@]}" "$@"
    ls -l "$wheels"
}

if [ "${1:-}" = "--pack" ]; then
    shift
    pack "$@"
    exit 0
fi

# Wheels are zip files: unpacking those of packages that are missing is all it takes, with or without pip.
missing=$("$python" "$here/bench_gpu.py" --missing)
if [ -d "$wheels" ]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    for wheel in "$wheels"/*.whl; do
        package=$(basename "$wheel" | cut -d- -f1)
        if grep -qixF "$package" <<<"$missing" || ! "$python" -c "import importlib.util as u, sys; \
sys.exit(u.find_spec('$package') is None)"; then
            "$python" -m zipfile -e "$wheel" "$site"
        fi
    done
    export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
fi
export PYTORCH_NVML_BASED_CUDA_CHECK=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
"$python" "$here/bench_gpu.py" "$@"
