"""Keep the curves of trainings as a reference for others: nbs/results/curves.json.

    python tools/keep_curves.py --note TEXT RUN [RUN ...]

RUN is the folder of a run (config.json and metrics.jsonl), finished or cut off. Kept are the rows of
the probe, and between them a row of the loss each hundred steps.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

from aclam.core import write_json

ROOT = Path(__file__).resolve().parents[1]
EVERY = 100  # steps between two rows of the loss
DIGITS = 4  # significant ones


def rows_of(run: Path) -> list[dict]:
    """What the log of a run says, a row a line."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def rounded(row: dict) -> dict:
    """Numbers with few digits; what is no number stays."""
    short = {k: float(f"{v:.{DIGITS}g}") for k, v in row.items() if isinstance(v, float)}
    return {**row, **short}


def curve(run: Path) -> dict:
    """One training: its settings, and what is kept of its log."""
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    rows = rows_of(run)
    probes = [r for r in rows if any(key.startswith("probe/") for key in r)]
    losses = [r for r in rows if "loss" in r and r["step"] % EVERY == 0]
    last = max(r["step"] for r in rows)
    train = config["train"]
    return {
        "command": f"aclam-train-lam --preset {config['preset']} --data DATA "
        f"--train.steps {train['steps']} --train.seed {train['seed']}",
        "data": config["data"],
        "steps": train["steps"],
        "continuous_steps": config["model"]["bottleneck"]["continuous_steps"],
        "logged": last,
        "probe": [rounded(r) for r in probes],
        "training": [rounded(r) for r in losses],
    }


def named(folders: list[Path]) -> dict[str, dict]:
    """The curves by their presets; where several runs have one preset, by their seeds, too."""
    configs = [json.loads((run / "config.json").read_text(encoding="utf-8")) for run in folders]
    often = Counter(config["preset"] for config in configs)
    runs: dict[str, dict] = {}
    for run, config in zip(folders, configs, strict=True):
        preset = config["preset"]
        name = preset if often[preset] == 1 else f"{preset}, seed {config['train']['seed']}"
        if name in runs:
            raise SystemExit(f"{run}: there is a run of {name} already, name one of them")
        runs[name] = curve(run)
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--note", required=True, help="where the data are from, and what was cut")
    parser.add_argument("runs", nargs="+", type=Path)
    options = parser.parse_args()
    runs = named(options.runs)
    write_json(ROOT / "nbs/results/curves.json", {"note": options.note, "runs": runs})


if __name__ == "__main__":
    main()
