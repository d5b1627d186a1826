"""How long a command makes its user wait before it does anything: imports in a fresh process (best
of three)
"""

import subprocess
import sys
import time
from collections.abc import Iterator

MODULES = [
    "aclam",
    "aclam.core",
    "aclam.data",
    "aclam.structure.metrics",
    "aclam.lam",
    "aclam.train.loop",
]


def seconds(code: str) -> float:
    """The shortest of three runs of a fresh interpreter."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return min(times)


def rows() -> Iterator[tuple[str, float, str]]:
    nothing = seconds("")
    yield "an empty program", nothing, "s"
    for module in MODULES:
        yield f"import {module}, beyond that", max(seconds(f"import {module}") - nothing, 0.0), "s"
