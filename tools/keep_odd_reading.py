"""Keep what reading both ways makes of the models that come with the package, on held-out episodes:
aclam/results/odd_reading.json.

    python tools/keep_odd_reading.py data/emoji data/metaworld data/robosuite data/libero \\
        --runs runs/compare/runs

The stores are those of `compare.json`: `aclam-data prepare SOURCE --seed 0 --size 64`, emoji with
200 episodes, the others with 100. Each model is measured as trained and read both ways, on the
episodes that its training held out; of LIBERO, which no training saw, on all. `--runs` names a
folder of further trainings of the same presets, PRESET/seedN. What is in the file already is not
measured again.
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
        if name[0] in list_models() and (folder / "result.json").exists():
            found.setdefault(name, folder / "model")
    return found


def measured(model: Path, folder: Path, n: int) -> dict:
    """{as trained, read both ways}: the numbers of a model on n held-out triples of a store."""
    lam = LatentActionModel.from_pretrained(model)
    data = held_out_triples(open_dataset(folder), lam.config.image_size, n, origin=origin(model))
    out = {}
    for reading, model in {"as trained": lam, "read both ways": lam.odd()}.items():
        found = structure_metrics(collect_latents(model, data, n), lam.config.codebook_size)
        out[reading] = {key: found[key] for key in KEYS if key in found}
        probes = leakage_metrics({"": probe_rows(model, data, n)})["probes"]
        out[reading] |= probes[""]  # R^2 of motion, place and goal; one-sidedness
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--runs", type=Path, help="of further trainings, PRESET/seedN")
    parser.add_argument("--n", type=int, default=2048, help="triples of each store")
    options = parser.parse_args()
    kept = read_json(KEPT) if KEPT.exists() else {"rows": {}}
    words = ["tools/keep_odd_reading.py", *options.data, "--n", options.n]
    words += ["--runs", options.runs] if options.runs else []
    kept["made"] = {
        "command": " ".join(["python", *map(str, words)]),
        "commit": code_commit(),
        "date": time.strftime("%Y-%m-%d"),
        "n": options.n,
    }
    write_json(KEPT, kept)
    for folder in options.data:
        rows = kept["rows"].setdefault(folder.name, {})
        for (name, seed), model in trainings(options.runs).items():
            of_model = rows.setdefault(name, {})
            if seed in of_model:
                continue
            of_model[seed] = plain(measured(model, folder, options.n))
            write_json(KEPT, kept)
            found = of_model[seed]["read both ways"]["additivity"]
            say(f"{folder.name}, {name}, seed {seed}: {found:.3f}")


if __name__ == "__main__":
    sys.exit(main())
