"""What things cost on this machine, as a table.

    python bench/run.py [NAME ...]      all of bench/bench_*.py, or those named (bench_import.py is
    `import`)

A benchmark is a file `bench/bench_<name>.py` with a function `rows()` that yields `(what, value,
unit)`. The first line of its docstring is its heading.
"""

import importlib.util
import os
import platform
import sys
import time
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
PREFIX = "bench_"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def machine() -> str:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1].strip()
            for line in cpuinfo.read_text().splitlines()
            if "model name" in line
        ]
        model = names[0] if names else model
    return f"{os.cpu_count()} x {model}, Python {platform.python_version()}"


def show(path: Path) -> None:
    """Print the rows of one benchmark as they come."""
    module, start = load(path), time.monotonic()
    print(f"\n{(module.__doc__ or path.stem).strip().splitlines()[0]}", flush=True)
    for what, value, unit in module.rows():
        print(f"  {what:56} {value:>12.4g} {unit}", flush=True)
    print(f"  ({time.monotonic() - start:.0f} s)")


def main() -> int:
    there = {p.stem.removeprefix(PREFIX): p for p in sorted(HERE.glob(f"{PREFIX}*.py"))}
    chosen = sys.argv[1:] or list(there)
    if unknown := [name for name in chosen if name not in there]:
        print(f"unknown benchmark {unknown[0]}; there are {', '.join(there)}", file=sys.stderr)
        return 2
    print(machine())
    for name in chosen:
        show(there[name])
    return 0


if __name__ == "__main__":
    sys.exit(main())
