"""Keep what a study of the noise between trainings has measured: nbs/results/policy_noise.json.

    python tools/keep_noise.py runs/policy_noise --note NOTE [--commit COMMIT]

FOLDER is the `--out` of one or several runs of `python -m aclam.studies.policy_noise`. --commit names
the code of rows that were made from a copy without git.
"""

import argparse
from pathlib import Path

from aclam.core import UserError, read_json, write_json

KEPT = Path(__file__).resolve().parent.parent / "nbs/results/policy_noise.json"


def study_of(folder: Path, commit: str) -> dict:
    """What a study says, every row with a commit."""
    found = read_json(folder / "results.json", dict)
    for row in found["rows"]:
        for part in (row, row["trained"]):
            part["commit"] = part["commit"] or commit
            if not part["commit"]:
                raise UserError(f"{folder}: a row has no commit: name it with --commit")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--note", required=True, help="how it was run, and what is missing")
    parser.add_argument("--commit", default="")
    c = parser.parse_args()
    studies = {folder.name: study_of(folder, c.commit) for folder in c.folders}
    write_json(KEPT, {"note": c.note, "studies": studies})
    rows = sum(len(study["rows"]) for study in studies.values())
    print(f"{KEPT.name}: {len(studies)} studies, {rows} rows")


if __name__ == "__main__":
    main()
