"""Keep what other learning rates make of the presets: aclam/results/tuning.json.

    python tools/keep_tuning.py runs/tuning

Each training is a folder PRESET/RATE in the one that is named, made on the stores of `compare.json` by

    aclam-train-lam --preset PRESET --data data/emoji data/metaworld data/robosuite \\
        --train.steps 3400 --train.batch-size 32 --train.lr RATE --probe-n N --out runs/tuning/PRESET/RATE

What is kept is the last look at held-out triples, which `result.json` of a training has. At the
usual rate the trainings may be those of `compare.json`; `seed` and `n` of each row are kept, too.
"""

import sys
import time
from pathlib import Path

from aclam.core import plain, read_json, write_json

KEPT = Path(__file__).resolve().parent.parent / "aclam/results/tuning.json"
KEYS = (
    *("additivity", "identity", "inverse", "norm_correlation", "probe_r2"),
    *("reconstruction", "sum_reconstruction", "codes_used", "n"),
)


def main() -> None:
    rows: dict = {}
    for file in sorted(Path(sys.argv[1]).glob("*/*/result.json")):
        found = read_json(file)
        train = read_json(file.with_name("config.json"))["train"]
        preset, rate = file.parent.parent.name, file.parent.name
        assert train["lr"] == float(rate), file
        row = {"seed": train["seed"]} | {key: found[f"probe/{key}"] for key in KEYS}
        rows.setdefault(preset, {})[rate] = row
    command = " ".join(["python tools/keep_tuning.py", *sys.argv[1:]])
    write_json(KEPT, plain({"command": command, "date": time.strftime("%Y-%m-%d"), "rows": rows}))


if __name__ == "__main__":
    main()
