"""The environment is made, or one line says why not: an interpreter and a uv that only pretend."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Stands for python3, and for the python of the environment that it makes: notes its words, makes a
# tree for `-m venv`, puts the false uv there for `-m pip install uv`, and fails as $PIP_SAYS.
PYTHON = """#!/bin/sh
echo "python $*" >>"$NOTES"
case "$1 $2" in
"-m venv") mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
"-m pip")
    case "$*" in *uv==*) cp "$UV" "$(dirname "$0")/uv"; exit 0 ;; esac
    [ -z "$PIP_SAYS" ] || { echo "$PIP_SAYS" >&2; exit 1; } ;;
"- "*) exit "$INDEX_ANSWERS" ;;
esac
"""
UV = """#!/bin/sh
echo "uv $*" >>"$NOTES"
for word in "$@"; do case "$word" in *wanted.txt) cp "$word" "$WANTED" ;; esac; done
[ -z "$UV_SAYS" ] || { echo "$UV_SAYS" >&2; exit 1; }
"""
DF = """#!/bin/sh
echo "Filesystem 1024-blocks Used Available Capacity Mounted on"
echo "disk 99999999 1 ${FREE_MB}000 1% /"
"""


@pytest.fixture
def make(tmp_path):
    """Run the script in a folder of its own: `make(free_mb=..., uv_says=...)`."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("python", PYTHON), ("uv", UV), ("df", DF)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)

    def call(free_mb=50_000, uv_says="", pip_says="", index_answers=1, venv=".venv"):
        notes = tmp_path / "notes.txt"
        notes.unlink(missing_ok=True)
        env = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHON": str(programs / "python"),
            "UV": str(programs / "uv"),
            "NOTES": str(notes),
            "WANTED": str(tmp_path / "wanted.txt"),
            "FREE_MB": str(free_mb),
            "UV_SAYS": uv_says,
            "PIP_SAYS": pip_says,
            "INDEX_ANSWERS": str(index_answers),
            "TORCH_INDEX": "http://localhost:9/cpu",
        }
        command = ["sh", str(ROOT / "tools" / "make_venv.sh"), str(tmp_path / venv)]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        return done, notes.read_text() if notes.exists() else ""

    return call


def test_it_makes_the_environment(make, tmp_path):
    done, said = make()
    assert done.returncode == 0, done.stderr
    assert (tmp_path / ".venv" / ".installed").exists()
    assert sorted(p.name for p in (tmp_path / ".venv").iterdir()) == [".installed", "bin"]
    assert "--editable" in said.splitlines()[-1]


def test_a_disk_that_is_too_small_is_told_before_anything_is_made(make, tmp_path):
    done, said = make(free_mb=3000)
    assert done.returncode == 1 and "-m venv" not in said
    last = done.stderr.splitlines()[-1]
    assert last.startswith("aclam: the environment needs ") and str(tmp_path) in last
    assert "GB more, 2.9 GB are free at" in last
    assert not (tmp_path / ".venv").exists()


FULL = [
    "error: Failed to install: torch (os error 28)\n  Caused by: No space left on device",
    "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
]


@pytest.mark.parametrize("words", FULL)
def test_a_disk_that_becomes_full_is_called_that_and_pip_is_not_tried(make, tmp_path, words):
    done, said = make(uv_says=words)
    assert done.returncode == 1
    assert "aclam: the disk is full: the environment needs" in done.stderr.splitlines()[-1]
    assert "reachable" not in done.stderr and "reached" not in done.stderr
    assert "-r " not in "".join(x for x in said.splitlines() if x.startswith("python -m pip"))
    assert not (tmp_path / ".venv").exists()  # half made, it would keep the disk full

    done, _ = make()  # after room was made
    assert done.returncode == 0 and (tmp_path / ".venv" / ".installed").exists()


CAUSES = {
    "error sending request for url: dns error": "the package index could not be reached",
    "Max retries exceeded: NewConnectionError": "the package index could not be reached",
    "No matching distribution found for torch==2.14.1": "the package index does not have what",
    "error: something new": "the packages could not be installed: error: something new",
}


@pytest.mark.parametrize("words", CAUSES)
def test_other_causes_have_their_own_words(make, words):
    done, _ = make(uv_says=words, pip_says=words)
    assert done.returncode == 1 and done.stderr.count("aclam: ") == 1
    assert CAUSES[words] in done.stderr.splitlines()[-1]


def test_pip_does_it_where_uv_cannot(make, tmp_path):
    done, _ = make(uv_says="error: this platform is unknown")
    assert done.returncode == 0 and (tmp_path / ".venv" / ".installed").exists()
    done, _ = make(uv_says="error: this platform is unknown", free_mb=9_800, venv="b")
    assert done.returncode == 1 and "GB more" in done.stderr  # pip needs room for what it fetches


def test_what_was_left_half_made_is_made_anew(make, tmp_path):
    half = tmp_path / ".venv"
    half.mkdir()
    (half / ".installing").touch()
    (half / "half_a_package").touch()
    done, _ = make()
    assert done.returncode == 0 and "half made" in done.stdout
    assert not (half / "half_a_package").exists()


def test_an_environment_of_the_user_is_not_removed(make, tmp_path):
    make()
    (tmp_path / ".venv" / "mine.txt").touch()
    done, _ = make(uv_says=FULL[0])
    assert done.returncode == 1 and (tmp_path / ".venv" / "mine.txt").exists()


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="elsewhere every build is for CPUs")
def test_the_cpu_build_is_taken_where_there_is_no_gpu_and_an_index_has_it(make, tmp_path):
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a GPU")
    done, said = make(index_answers=0)
    assert done.returncode == 0, done.stderr
    first = next(x for x in said.splitlines() if x.startswith("uv "))
    assert "--default-index http://localhost:9/cpu" in first and "torch.txt" in first
    wanted = (tmp_path / "wanted.txt").read_text()
    assert "numpy==" in wanted and "accelerate==" in wanted
    assert not [
        x for x in ("torch==", "torchvision==", "triton==", "nvidia-") if f"\n{x}" in wanted
    ]

    done, said = make(index_answers=1, venv="b")  # the index does not answer
    assert done.returncode == 0 and "5 GB more" in done.stderr
    assert "\ntorch==" in (tmp_path / "wanted.txt").read_text()
