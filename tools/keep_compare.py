"""Keep what a comparison found for its chapter: nbs/results/compare.json,
nbs/images/compare_transfer.png, and the trained models of seed 0 in nbs/results/models/PRESET/.

    python tools/keep_compare.py [runs/compare]

Run it after `aclam-structure compare`, finished or cut off, then the notebook
nbs/9_studies/comparison.ipynb. Where only the rules of judgment have changed, what is kept is judged
again, from its own tables:

    python tools/keep_compare.py --again

A comparison of further models on the same stores, nbs/results/compare_beyond.json and their models:

    python tools/keep_compare.py --beyond runs/compare
"""

import shutil
import sys
from itertools import takewhile
from pathlib import Path

from PIL import Image

from aclam.core import atomic_folder, plain, read_json, write_json
from aclam.studies.tables import markdown, order_differs, verdicts

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "nbs/results"
WIDTH = 640  # pixels of the picture


def keep_model(run: Path, folder: Path) -> None:
    """Keep what measuring a model needs: weights and sizes, episodes held out, units of states."""
    with atomic_folder(folder) as temporary:
        (temporary / "model").mkdir()
        for name in ("model/config.json", "model/model.safetensors", "data.json"):
            shutil.copyfile(run / name, temporary / name)


def judge_again() -> None:
    """Verdicts and words of the kept comparison by the present rules; no number changes."""
    kept = read_json(RESULTS / "compare.json")
    found = in_order(kept)
    kept["verdicts"] = verdicts(found)
    kept["order"] = order_differs(kept["table_1"], kept["ood"])
    kept["tables"] = markdown(found)
    write_json(RESULTS / "compare.json", plain(kept))


def in_order(kept: dict) -> dict:
    """The kept results with stores and models in the order of the command; the file sorts names."""
    words = kept["command"].split()
    after = words[words.index("--models") + 1 :]
    models = list(takewhile(lambda word: not word.startswith("--"), after))
    stores = [*kept["data"], *kept["ood"]]
    table_1 = {s: {m: kept["table_1"][s][m] for m in models} for s in stores}
    rows = [name for name in (*models, *kept["table_2"]) if name in kept["table_2"]]
    table_2 = {name: kept["table_2"][name] for name in rows}
    ordered = {"models": {m: kept["models"][m] for m in models}}
    return kept | {"table_1": table_1, "table_2": table_2} | ordered


def keep(run: Path, name: str) -> dict:
    """Keep the results of a comparison under such a name, and its models of seed 0."""
    results = read_json(run / "results.json")
    write_json(RESULTS / name, results)
    for preset, seeds in results["models"].items():
        if "0" in seeds:
            keep_model(run / "runs" / preset / "seed0", RESULTS / "models" / preset)
    return results


def main() -> None:
    if sys.argv[1:] == ["--again"]:
        judge_again()
        return
    if sys.argv[1:2] == ["--beyond"]:
        keep(Path(sys.argv[2]), "compare_beyond.json")
        return
    run = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/compare")
    results = keep(run, "compare.json")

    drawn = run / "figures" / f"motion_transfer_{results['data'][0]}.png"
    picture = Image.open(drawn).convert("RGB")
    size = (WIDTH, round(picture.height * WIDTH / picture.width))
    small = picture.resize(size, Image.Resampling.LANCZOS)
    small.save(ROOT / "nbs/images/compare_transfer.png", optimize=True)


if __name__ == "__main__":
    main()
