"""What PyPI lerobot-dataset 0.4.4 does with the dataset and the triples of bench_data.py, in an
environment of its own.

    python bench/lerobot_peer.py DATASET TRIPLES.npy

Prints a JSON object: triples per CPU second by one query for three times (what `delta_timestamps`
leads to), and by three items. Its video backend is "pyav". torchvision 0.26 and later no longer
have the class that this backend asks
for: then the stand-in of tests/fixtures/open_with_lerobot.py takes its place, the same loop over
the same decoder.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "fixtures"))
from open_with_lerobot import LeRobotDataset  # noqa: E402

KEY = "observation.images.image"


def rate(read: Callable, triples: np.ndarray) -> float:
    """Triples per CPU second, the best of two rounds."""
    read(triples[0].tolist())
    costs = []
    for _ in range(2):
        start = time.process_time()
        for t in triples:
            read(t.tolist())
        costs.append(time.process_time() - start)
    return len(triples) / min(costs)


def main(folder: str, file: str) -> None:
    torch.set_num_threads(1)
    triples = np.load(file, allow_pickle=False)
    data = LeRobotDataset("aclam/film", root=folder, video_backend="pyav")
    fps = data.fps
    found = {
        "lerobot-dataset, one query": rate(
            lambda t: data._query_videos({KEY: [n / fps for n in t]}, 0), triples
        ),
        "lerobot-dataset, three items": rate(lambda t: [data[n] for n in t], triples),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
