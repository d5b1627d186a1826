"""Keep how far apart the frames of a pair may be, and what that does to a twin's latents:
aclam/results/pair_distance.json.

    for span in 0.4 0.8 3.0; do
      aclam-train-lam --preset no_ac_cpu --model.bottleneck.kind none --data data/emoji \\
        --train.steps 600 --triples.span-s $span --triples.offset-s 0.1 $span --probe-n 64 \\
        --out runs/pairs_$span
    done
    python tools/keep_pair_distance.py --data data/emoji data/metaworld data/robosuite \\
        --runs runs/pairs_*

The correlation of frames is that of episodes that the trainings held out, the last tenth, at 32
pixels; the four numbers are measured at the end of each training, on triples drawn as in it.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from aclam.additivity.innovation import pair_correlation
from aclam.core import plain, read_json, write_json
from aclam.data.cache import resize_frames
from aclam.data.source import open_dataset
from aclam.data.trajectory import Trajectory
from aclam.kept import code_commit

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "aclam/results/pair_distance.json"
SECONDS = (0.2, 0.4, 0.8, 1.5, 3.0)
SIZE = 32


def correlation(films: list[Trajectory], seconds: float) -> float | None:
    """The mean over films of the correlation of frames so far apart; None where all are shorter."""
    found = []
    for film in films:
        offset = max(1, round(seconds * film.fps))
        if offset < len(film):
            frames = resize_frames(film.frames[np.arange(len(film))], SIZE).numpy()
            found.append(pair_correlation(frames[:-offset], frames[offset:], frames.mean(0)))
    return float(np.mean(found)) if found else None


def row_of(run: Path) -> dict:
    """How far apart a run's triples were, and the numbers at its end."""
    config = read_json(run / "config.json")
    result = read_json(run / "result.json")
    names = ("additivity", "identity", "inverse", "reconstruction")
    return {
        "span_s": config["triples"]["span_s"],
        "bottleneck": config["model"]["bottleneck"]["kind"],
        "steps": config["train"]["steps"],
        "seed": config["train"]["seed"],
        **{name: result[f"probe/{name}"] for name in names},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--runs", type=Path, nargs="+", required=True)
    options = parser.parse_args()
    rows = {}
    for folder in options.data:
        films = open_dataset(folder).trajectories
        held_out = films[-(len(films) // 10) :]
        rows[folder.name] = {str(s): correlation(held_out, s) for s in SECONDS}
    words = ["python tools/keep_pair_distance.py --data", *options.data]
    words += ["--runs", *(f"runs/{run.name}" for run in options.runs)]
    made = {
        "command": " ".join(map(str, words)),
        "commit": code_commit(),
        "date": time.strftime("%Y-%m-%d"),
    }
    runs = sorted(map(row_of, options.runs), key=lambda row: (row["bottleneck"], row["span_s"]))
    write_json(KEPT, plain({"made": made, "correlation": rows, "runs": runs}))


if __name__ == "__main__":
    main()
