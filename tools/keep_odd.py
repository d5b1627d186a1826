"""Keep trainings on the demo's data beside AC-LAM and its twin: aclam/results/odd.json.

    python tools/keep_odd.py RUN DATA --commit COMMIT [--note TEXT]

RUN is the folder of a finished run of any preset on the data of a demo, DATA, which says with which
seed it was rendered. The run is measured as `aclam-demo` measures its models, and becomes a row; a
row of the same preset, seeds and steps is replaced, all others stay.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from keep_curves import ROOT, curve, rows_of

from aclam.core import read_json, write_json

TRIPLES = 4096  # as the demo
KEPT = ROOT / "aclam/results/odd.json"
KEY = ("preset", "demonstrations", "seed", "steps")  # what makes two rows the same training


def measured(run: Path, data: Path) -> dict:
    """What `aclam-structure` says of a finished run on held-out triples."""
    words = [sys.executable, "-m", "aclam.commands.structure", "--model", run, "--data", data]
    words += ["--n", TRIPLES, "--json"]
    return json.loads(subprocess.run(list(map(str, words)), check=True, capture_output=True).stdout)


def commands(kept: dict, preset: str, demonstrations: int) -> list[str]:
    """How anybody gets the row again."""
    demo = f"runs/demo_seed{demonstrations}"
    train = kept["command"].replace("DATA", f"{demo}/data")
    return [
        f"aclam-demo --seed {demonstrations} --out {demo}",
        f"{train} --out {demo}/{preset}",
        f"aclam-structure --model {demo}/{preset} --data {demo}/data --n {TRIPLES}",
    ]


def row_of(run: Path, data: Path, commit: str, note: str) -> dict:
    """One training: how it was made, its curve, and what it measures."""
    if not (run / "result.json").exists():
        raise SystemExit(f"{run} is not finished: the same command of its training goes on with it")
    config = read_json(run / "config.json")
    demonstrations = read_json(data / "recipe.json")["seed"]
    kept = curve(run)
    clock = max(row.get("seconds", 0) for row in rows_of(run))  # goes on where a run goes on
    return {
        "preset": config["preset"],
        "demonstrations": demonstrations,
        "seed": config["train"]["seed"],
        "steps": config["train"]["steps"],
        "minutes": round(clock / 60, 1),
        "commands": commands(kept, config["preset"], demonstrations),
        "commit": commit,
        "note": note,
        "measured": measured(run, data),
        "run": kept,
    }


def with_row(kept: dict, row: dict) -> dict:
    """The kept rows with this one, in order."""
    others = [r for r in kept["rows"] if any(r[name] != row[name] for name in KEY)]
    return {"rows": sorted([*others, row], key=lambda r: [r[name] for name in KEY])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--commit", required=True, help="of the code that trained")
    parser.add_argument("--note", default="", help="on which machine, and what was cut")
    options = parser.parse_args()
    row = row_of(options.run, options.data, options.commit, options.note)
    kept = read_json(KEPT) if KEPT.exists() else {"rows": []}
    write_json(KEPT, with_row(kept, row))


if __name__ == "__main__":
    main()
