"""A process that tries descriptions of bad inputs, one a line, for tests whose own process must not
be forked: it has threads.

    python -m bad.server FOLDER < descriptions > answers
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

TOOLS = Path(__file__).resolve().parents[1]


class Server:
    """The other end: starts the process, asks, reads answers."""

    def __init__(self, folder: Path):
        words = [sys.executable, "-m", "bad.server", str(folder)]
        path = os.pathsep.join([str(TOOLS), *filter(None, sys.path)])
        env = {**os.environ, "PYTHONPATH": path}
        self.process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=env,
        )
        self.folder = folder

    def ask(self, description: dict) -> dict:
        """The answer: `verdict` is "well", or what was wrong with it."""
        print(json.dumps(description), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the process that tries bad inputs has ended")
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.process.stdout.close()


def main() -> None:
    import bad_inputs
    from forking import import_all

    from .base import make_base
    from .case import clear, run_case
    from .fuzzed import case_of

    folder = Path(sys.argv[1])
    out = os.fdopen(os.dup(1), "w")
    import_all(*bad_inputs.LATE)
    bad_inputs.in_child(make_base, folder / "base")
    for number, line in enumerate(sys.stdin):
        here = folder / f"case_{number:05d}"
        answer = run_case(case_of(json.loads(line)), folder / "base", here)
        if here.exists():
            clear(here)
        print(json.dumps(asdict(answer)), file=out, flush=True)


if __name__ == "__main__":
    main()
