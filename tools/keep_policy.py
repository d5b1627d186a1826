"""Keep what a trained policy, or a comparison of policies, did on the table:
nbs/results/policy.json.

    python tools/keep_policy.py --run runs/policy --trial runs/trial     # aclam-train-policy,
    aclam-rollout python tools/keep_policy.py --run ... --trial ... --other NAME       # one to be
    held against it python tools/keep_policy.py --comparison runs/policies               #
    aclam.studies.policy_comparison python tools/keep_policy.py --comparison runs/looks --other
    looks    # another comparison

Each keeps its own part of the file and leaves the others as they are.
"""

import argparse
import json
from pathlib import Path

from aclam.core import write_json
from aclam.studies.report import hardware
from aclam.train.log import read_metrics

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "nbs/results/policy.json"


def single(run: Path, trial: Path, points: int = 40) -> dict:
    """One policy: how it was trained, its loss on the way, its trial."""
    config, result = (
        json.loads((run / name).read_text()) for name in ("config.json", "result.json")
    )
    rows = [
        {k: r[k] for k in ("step", "loss", "action", "aim") if k in r}
        for r in read_metrics(run)
        if "loss" in r
    ]
    t, d, played = config["train"], config["data"], json.loads((trial / "result.json").read_text())
    splits = [name for name, rates in played.items() if isinstance(rates, dict) and "S" in rates]
    trained_eyes = bool(config["model"]["vlm"]["weights"])
    eyes = (
        "python -m aclam.train.grounding --data data/stills --out runs/eyes; "
        if trained_eyes
        else ""
    )
    begin = "--model.vlm.weights runs/eyes/model " if trained_eyes else ""
    command = (
        f"{eyes}aclam-train-policy --preset {config['preset']} {begin}--data data/demos --train.steps {t['steps']} "
        f"--train.seed {t['seed']}; aclam-rollout --policy runs/policy/model --data data/demos "
        f"--split {' '.join(splits)} --episodes {played[splits[0]]['S']['n']}"
    )
    return {
        "command": command,
        "demonstrations": d["demonstrations"],
        "training": {"train": t, "data": d, **result},
        "curve": rows[:: max(1, len(rows) // points)],
        "trial": played,
        "hardware": hardware(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path), parser.add_argument("--trial", type=Path)
    parser.add_argument("--comparison", type=Path), parser.add_argument("--other", metavar="NAME")
    c = parser.parse_args()
    if bool(c.run) != bool(c.trial) or not (c.run or c.comparison):
        parser.error("--run and --trial together, or --comparison")
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    if c.run and c.other:
        kept.setdefault("others", {})[c.other] = {"trial": single(c.run, c.trial)["trial"]}
    elif c.run:
        kept["single"] = single(c.run, c.trial)
    if c.comparison:
        kept[c.other or "comparison"] = json.loads((c.comparison / "results.json").read_text())
    write_json(KEPT, kept)


if __name__ == "__main__":
    main()
