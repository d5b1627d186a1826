"""Keep what runs of aclam.train.grounding reached on held-out pictures: nbs/results/grounding.json.

    python tools/keep_grounding.py "all three, whole run=runs/encoder" "place alone=runs/place" ...

The names are those under which the chapter on grounding shows the runs.
"""

import argparse
from pathlib import Path

from aclam.core import read_json, write_json
from aclam.studies.processes import hardware

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "nbs/results/grounding.json"
SHOWN = ("right_card", "card_mm", "cube_mm")


def kept_run(folder: Path) -> dict:
    """One run: its numbers, and the command that makes it."""
    config = read_json(folder / "config.json")
    result = read_json(folder / "result.json")
    terms = config["grounding"]
    steps = config["train"]["steps"]
    command = (
        f"python -m aclam.train.grounding --data data/stills --train.steps {steps} "
        f"--train.seed {config['train']['seed']} "
        f"--grounding.lambda-name {terms['lambda_name']} "
        f"--grounding.lambda-look {terms['lambda_look']}"
    )
    kept = {"command": command, "steps": steps, "seconds": result["seconds"]}
    kept |= {key: result[f"probe/{key}"] for key in SHOWN}
    return kept | {"name_loss": result["name"]}  # of the last batch


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER")
    runs = {}
    for pair in parser.parse_args().runs:
        name, _, folder = pair.partition("=")
        runs[name] = kept_run(Path(folder))
    write_json(KEPT, {"runs": runs, "hardware": hardware()})


if __name__ == "__main__":
    main()
