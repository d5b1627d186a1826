"""Keep what was played in Meta-World: nbs/results/metaworld.json.

Each call keeps one rollout under its name and leaves the others as they are:

    python tools/keep_metaworld.py expert runs/expert --commit COMMIT --command "aclam-rollout ..."
"""

import argparse
from pathlib import Path

from aclam.core import read_json, write_json
from aclam.studies.processes import hardware

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "nbs/results/metaworld.json"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name")
    parser.add_argument("rollout", type=Path)
    parser.add_argument("--commit", required=True)
    parser.add_argument("--command", nargs="+", required=True)
    parser.add_argument("--seconds", type=float, default=0, help="of the training, on the wall")
    c = parser.parse_args()
    row = {
        "commands": c.command,
        "commit": c.commit,
        "result": read_json(c.rollout / "result.json"),
        "hardware": hardware(),
    }
    if c.seconds:
        row["training_seconds"] = c.seconds
    kept = read_json(KEPT) if KEPT.exists() else {}
    write_json(KEPT, kept | {c.name: row})


if __name__ == "__main__":
    main()
