"""Keep what a comparison found for its chapter: nbs/results/compare.json,
nbs/images/compare_transfer.png, and the trained models of seed 0 in nbs/results/models/PRESET/.

    python tools/keep_compare.py [runs/compare]

Run it after `aclam-structure compare`, finished or cut off, then the notebook
nbs/9_studies/comparison.ipynb.
"""

import shutil
import sys
from pathlib import Path

from PIL import Image

from aclam.core import atomic_folder, read_json, write_json

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "nbs/results"
WIDTH = 1100  # pixels of the picture


def keep_model(run: Path, folder: Path) -> None:
    """Keep what measuring a model needs: weights and sizes, episodes held out, units of states."""
    with atomic_folder(folder) as temporary:
        (temporary / "model").mkdir()
        for name in ("model/config.json", "model/model.safetensors", "data.json"):
            shutil.copyfile(run / name, temporary / name)


def main() -> None:
    run = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/compare")
    results = read_json(run / "results.json")
    write_json(RESULTS / "compare.json", results)

    drawn = run / "figures" / f"motion_transfer_{results['data'][0]}.png"
    picture = Image.open(drawn).convert("RGB")
    size = (WIDTH, round(picture.height * WIDTH / picture.width))
    small = picture.resize(size, Image.Resampling.LANCZOS)
    small.save(ROOT / "nbs/images/compare_transfer.png", optimize=True)

    for preset, seeds in results["models"].items():
        if "0" in seeds:
            keep_model(run / "runs" / preset / "seed0", RESULTS / "models" / preset)


if __name__ == "__main__":
    main()
