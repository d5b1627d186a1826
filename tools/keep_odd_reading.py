"""Keep what reading both ways makes of the models that come with the package, on held-out episodes:
aclam/results/odd_reading.json.

    python tools/keep_odd_reading.py data/emoji data/metaworld data/robosuite \\
        --unseen data/libero --runs runs/compare/runs

The stores are those of `compare.json`: `aclam-data prepare SOURCE --seed 0 --size 64`, emoji with
200 episodes, the others with 100. Each model is measured as trained and read both ways, on the
episodes that its training held out, or on a store that none has seen. `--runs` names a folder of
further trainings, PRESET/seedN; models that are odd by their form are measured once. What is in the
file already is not measured again.
"""

import argparse
import sys
import time
from pathlib import Path

from aclam.core import plain, read_json, say, write_json
from aclam.data.source import open_dataset
from aclam.kept import code_commit, find_model
from aclam.lam import LatentActionModel, list_models
from aclam.structure.held_out import held_out_triples, origin
from aclam.structure.leakage import leakage_metrics, probe_rows
from aclam.structure.measure import collect_latents, structure_metrics
from aclam.structure.table import TABLE_1

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "aclam/results/odd_reading.json"
KEYS = (*TABLE_1, "norm_correlation", "reconstruction", "sum_reconstruction")


def trainings(runs: Path | None) -> dict[tuple[str, str], Path]:
    """(preset, seed) -> folder of the model: those that come with the package have seed 0."""
    found = {(name, "0"): find_model(name) for name in list_models()}
    for folder in sorted(runs.glob("*/seed*") if runs else []):
        name = (folder.parent.name, folder.name.removeprefix("seed"))
        if (folder / "result.json").exists():
            found.setdefault(name, folder / "model")
    return found


def measured(model: Path, folder: Path, n: int) -> dict:
    """{as trained, read both ways}: the numbers of a model on n held-out triples of a store."""
    lam = LatentActionModel.from_pretrained(model)
    data = held_out_triples(open_dataset(folder), lam.config.image_size, n, origin=origin(model))
    readings = {"as trained": lam}
    if not lam.is_odd:
        readings["read both ways"] = lam.odd()
    out = {}
    for reading, read in readings.items():
        found = structure_metrics(collect_latents(read, data, n), lam.config.codebook_size)
        out[reading] = {key: found[key] for key in KEYS if key in found}
        probes = leakage_metrics({"": probe_rows(read, data, n)})["probes"]
        out[reading] |= probes[""]  # R^2 of motion, place and goal; one-sidedness
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, nargs="+", help="stores of the training")
    parser.add_argument("--unseen", type=Path, nargs="*", default=[], help="stores of no training")
    parser.add_argument("--runs", type=Path, help="of further trainings, PRESET/seedN")
    parser.add_argument("--n", type=int, default=1024, help="triples of each store")
    options = parser.parse_args()
    kept = read_json(KEPT) if KEPT.exists() else {"rows": {}, "unseen": {}, "further": {}}
    if kept.get("made", {}).get("n", options.n) != options.n:
        parser.error(f"the rows in {KEPT.name} are of {kept['made']['n']} triples: --n")
    kept["made"] = {
        "command": " ".join(["python", "tools/keep_odd_reading.py", *sys.argv[1:]]),
        "commit": code_commit(),
        "date": time.strftime("%Y-%m-%d"),
        "n": options.n,
    }
    write_json(KEPT, kept)
    for (name, seed), model in trainings(options.runs).items():
        for folder in (*options.data, *options.unseen):
            part = kept["unseen" if folder in options.unseen else "rows"]
            rows, key = part.setdefault(folder.name, {}), name
            if model != find_kept(name):
                further = kept["further"].setdefault(folder.name, {})
                rows, key = further.setdefault(name, {}), seed
            if key in rows:
                continue
            rows[key] = plain(measured(model, folder, options.n))
            write_json(KEPT, kept)
            found = rows[key]["as trained"]["additivity"]
            say(f"{folder.name}, {name}, seed {seed}: {found:.3f} as trained")


def find_kept(name: str) -> Path | None:
    """The model of that name in the package."""
    return find_model(name) if name in list_models() else None


if __name__ == "__main__":
    sys.exit(main())
