"""Keep what runs of aclam.train.grounding reached on held-out pictures: nbs/results/grounding.json.

    python tools/keep_grounding.py "all three, whole run=runs/eyes" "place alone=runs/eyes_place"
    ...

The names are those under which the chapter on grounding shows the runs.
"""

import argparse
import json
from pathlib import Path

from aclam.core import write_json
from aclam.studies.report import hardware

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "nbs/results/grounding.json"
SHOWN = ("right_card", "card_mm", "cube_mm")


def kept_run(folder: Path) -> dict:
    """One run: its numbers, and the command that makes it."""
    config, result = (
        json.loads((folder / name).read_text()) for name in ("config.json", "result.json")
    )
    terms, steps = config["grounding"], config["train"]["steps"]
    command = (
        f"python -m aclam.train.grounding --data data/stills --train.steps {steps} --train.seed "
        f"{config['train']['seed']} --grounding.lambda-name {terms['lambda_name']} "
        f"--grounding.lambda-look {terms['lambda_look']}"
    )
    numbers = {key: result[f"probe/{key}"] for key in SHOWN} | {
        "name_loss": result["name"]
    }  # of the last batch
    return {"command": command, "steps": steps, "seconds": result["seconds"], **numbers}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER")
    pairs = [pair.partition("=") for pair in parser.parse_args().runs]
    write_json(
        KEPT,
        {
            "runs": {name: kept_run(Path(folder)) for name, _, folder in pairs},
            "hardware": hardware(),
        },
    )


if __name__ == "__main__":
    main()
