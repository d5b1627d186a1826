"""Keep what trained policies did on the table: nbs/results/policy.json.

One policy, from the folders of aclam-train-policy and aclam-rollout:

    python tools/keep_policy.py --run runs/policy --rollout runs/rollout

A policy to be held against it:

    python tools/keep_policy.py --run ... --rollout ... --other NAME

A comparison, from the folder of aclam.studies.policy_comparison, and another one, whose seeds were
trained in several folders:

    python tools/keep_policy.py --comparison runs/policies
    python tools/keep_policy.py --comparison runs/seeds runs/seeds_b --other seeds

Each keeps its own part of the file and leaves the others as they are.
"""

import argparse
from pathlib import Path

from aclam.core import UserError, read_json, write_json
from aclam.studies.processes import hardware
from aclam.train.log import read_metrics

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "nbs/results/policy.json"


def command_of(config: dict, splits: list[str], episodes: int) -> str:
    """The commands that make one policy and play it."""
    train = config["train"]
    encoder, begin = "", ""
    if config["model"]["vlm"]["weights"]:
        encoder = "python -m aclam.train.grounding --data data/stills --out runs/encoder; "
        begin = "--model.vlm.weights runs/encoder/model "
    return (
        f"{encoder}aclam-train-policy --preset {config['preset']} {begin}--data data/demos "
        f"--train.steps {train['steps']} --train.seed {train['seed']}; "
        f"aclam-rollout --policy runs/policy/model --data data/demos "
        f"--split {' '.join(splits)} --episodes {episodes}"
    )


def single(run: Path, rollout: Path, points: int = 40) -> dict:
    """One policy: how it was trained, its loss on the way, its rollout."""
    config = read_json(run / "config.json")
    result = read_json(run / "result.json")
    played = read_json(rollout / "result.json")
    splits = [name for name, rates in played.items() if isinstance(rates, dict) and "S" in rates]
    curve = []
    for row in read_metrics(run):
        if "loss" in row:
            curve.append({k: row[k] for k in ("step", "loss", "action", "aim") if k in row})
    return {
        "command": command_of(config, splits, played[splits[0]]["S"]["n"]),
        "demonstrations": config["data"]["demonstrations"],
        "training": {"train": config["train"], "data": config["data"], **result},
        "curve": curve[:: max(1, len(curve) // points)],
        "trial": played,
        "hardware": hardware(),
    }


def comparison(folders: list[Path]) -> dict:
    """The policies of a comparison; of several folders that differ in their seeds only."""
    first, *others = (read_json(folder / "results.json", dict) for folder in folders)
    if not others:
        return first
    apart = ("first_seed", "seeds", "out")  # of these, what is kept says all
    for other in others:
        for name, value in first["settings"].items():
            if name not in apart and other["settings"][name] != value:
                raise UserError(
                    f"{name} is {value} in {folders[0]}, {other['settings'][name]} later"
                )
    policies = [p for report in (first, *others) for p in report["policies"]]
    if len({(p["method"], p["demonstrations"], p["seed"]) for p in policies}) < len(policies):
        raise UserError("a policy is in two of these folders")
    commands = [report["command"] for report in (first, *others)]
    settings = {name: value for name, value in first["settings"].items() if name != "first_seed"}
    settings["seeds"] = sorted({p["seed"] for p in policies})
    settings["out"] = [report["settings"]["out"] for report in (first, *others)]
    return first | {"command": "; ".join(commands), "settings": settings, "policies": policies}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path)
    parser.add_argument("--rollout", type=Path)
    parser.add_argument("--comparison", type=Path, nargs="+")
    parser.add_argument("--other", metavar="NAME")
    c = parser.parse_args()
    if bool(c.run) != bool(c.rollout) or not (c.run or c.comparison):
        parser.error("--run and --rollout together, or --comparison")
    kept = read_json(KEPT) if KEPT.exists() else {}
    if c.run and c.other:
        other = {"trial": single(c.run, c.rollout)["trial"]}
        kept.setdefault("others", {})[c.other] = other
    elif c.run:
        kept["single"] = single(c.run, c.rollout)
    if c.comparison:
        kept[c.other or "comparison"] = comparison(c.comparison)
    write_json(KEPT, kept)


if __name__ == "__main__":
    main()
