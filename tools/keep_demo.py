"""Keep what a finished demo found for the README: nbs/results/demo.json and
nbs/images/demo_report.png.

    python tools/keep_demo.py [runs/demo]

Run it after `make demo` on a quiet machine, look at the picture, then `make export`.
"""

import json
import sys
from pathlib import Path

from PIL import Image

from aclam.core import write_json

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = {  # the README's heading: key of a model's row in results.json
    "additivity": "additivity",
    "norm correlation": "norm_correlation",
    "identity": "identity",
    "inverse": "inverse",
    "reconstruction / copy": "reconstruction",
    "of the sum / copy": "sum_reconstruction",
    "codes used": "codes_used",
}
PICTURES, WIDTH = ("norm_trajectory", "motion_transfer"), 480


def note(results: dict) -> str:
    """Where, when and with which seeds the numbers came about, and which goals they miss."""
    hardware = results["hardware"]
    machine = f"{hardware['cores']} x {hardware['processor']}, PyTorch {hardware['torch']}"
    minutes = results["times"]["in all"] / 60
    seeds = ", ".join(f"{k} {v}" for k, v in results["seeds"].items())
    what = f"{results['data']['triples measured']:,} triples of held-out episodes"
    return f"One run of `make demo`: {minutes:.0f} minutes on {machine}; {what}; seeds: {seeds}."


def beside(files: list[Path], width: int) -> Image.Image:
    """Pictures side by side, all of one width, so that a page shows them without scrolling far."""
    images = [Image.open(f).convert("RGB") for f in files]
    images = [
        i.resize((width, round(i.height * width / i.width)), Image.Resampling.LANCZOS)
        for i in images
    ]
    sheet = Image.new("RGB", (width * len(images), max(i.height for i in images)), "white")
    for n, image in enumerate(images):
        sheet.paste(image, (n * width, 0))
    return sheet


def main() -> None:
    run = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "runs/demo")
    results = json.loads((run / "results.json").read_text())
    models = {
        name: {head: row[key] for head, key in COLUMNS.items()}
        for name, row in results["models"].items()
    }
    (ROOT / "nbs/images").mkdir(exist_ok=True)
    (ROOT / "nbs/results").mkdir(exist_ok=True)
    write_json(ROOT / "nbs/results/demo.json", {"models": models, "note": note(results)})
    sheet = beside([run / "figures" / f"{p}.png" for p in PICTURES], WIDTH)
    sheet.quantize(128).save(ROOT / "nbs/images/demo_report.png", optimize=True)


if __name__ == "__main__":
    main()
