"""Keep what a comparison found for its chapter: nbs/results/compare.json and nbs/images/compare_transfer.png.

    python tools/keep_compare.py [runs/compare]

Run it after `aclam-structure compare`, finished or cut off, then the notebook nbs/5_structure/comparison.ipynb.
"""

import sys
from pathlib import Path

from PIL import Image

from aclam.core import read_json, write_json

ROOT, WIDTH = Path(__file__).resolve().parent.parent, 1100


def main() -> None:
    run = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/compare")
    results = read_json(run / "results.json")
    write_json(ROOT / "nbs/results/compare.json", results)
    picture = Image.open(run / "figures" / f"motion_transfer_{results['data'][0]}.png").convert("RGB")
    size = (WIDTH, round(picture.height * WIDTH / picture.width))
    picture.resize(size, Image.Resampling.LANCZOS).save(ROOT / "nbs/images/compare_transfer.png", optimize=True)


if __name__ == "__main__":
    main()
