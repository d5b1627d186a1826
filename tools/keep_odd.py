"""Keep a training of the odd inverse model beside its twins: aclam/results/odd.json.

    python tools/keep_odd.py RUN DATA --commit COMMIT [--note TEXT]

RUN is the folder of a run of `odd_cpu` on the demo's data, finished or cut off; what is finished is
measured as `aclam-demo` measures its models.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from keep_curves import ROOT, curve

from aclam.core import write_json

TRIPLES = 4096  # as the demo


def measured(run: Path, data: Path) -> dict:
    """What `aclam-structure` says of a finished run on held-out triples."""
    words = [sys.executable, "-m", "aclam.commands.structure", "--model", run, "--data", data]
    words += ["--n", TRIPLES, "--json"]
    return json.loads(subprocess.run(list(map(str, words)), check=True, capture_output=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--commit", required=True, help="of the code that trained")
    parser.add_argument("--note", default="", help="on which machine, and what was cut")
    options = parser.parse_args()
    done = (options.run / "result.json").exists()
    kept = curve(options.run)
    kept["command"] = kept["command"].replace("DATA", "runs/demo/data")
    out = {
        "note": options.note,
        "commands": [
            "aclam-demo --out runs/demo",
            f"{kept['command']} --out runs/demo/odd_cpu",
            f"aclam-structure --model runs/demo/odd_cpu --data runs/demo/data --n {TRIPLES}",
        ],
        "commit": options.commit,
        "run": kept,
        "measured": measured(options.run, options.data) if done else None,
    }
    write_json(ROOT / "aclam/results/odd.json", out)


if __name__ == "__main__":
    main()
