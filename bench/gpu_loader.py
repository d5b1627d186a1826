"""The loading processes of a training run, without the training (for the section `loop`)

    python bench/gpu_loader.py WAY STORE PIXELS ROWS SECONDS

Prints one line of JSON: seconds to the first batch, triples a second from then on. After SECONDS
without an end, every loading process writes into stderr where it is.
"""

import faulthandler
import json
import multiprocessing
import sys
import time
from functools import partial
from pathlib import Path

from torch.utils.data import DataLoader, default_collate

from aclam.data.loading import loader_settings, start_worker
from aclam.data.sampling import TripleConfig
from aclam.data.store import read_store
from aclam.data.triples import TripleDataset
from aclam.train.loop import Batches

BATCHES = 48


def start(seconds: float, worker: int) -> None:
    """Begin a worker that says where it is when time is up."""
    faulthandler.dump_traceback_later(seconds, exit=False)
    start_worker(worker)


def main(way: str, store: str, pixels: str, rows: str, seconds: str) -> None:
    begun = time.perf_counter()
    frames = read_store(Path(store)).trajectories
    data = TripleDataset(frames, TripleConfig(), int(pixels), length=10**6)
    settings = loader_settings(-1, "cuda")
    if way != "forkserver":
        settings["multiprocessing_context"] = multiprocessing.get_context(way)
    settings["worker_init_fn"] = partial(start, float(seconds))
    n = int(rows)
    draws = [list(range(n * batch, n * batch + n)) for batch in range(BATCHES)]
    loader = DataLoader(Batches(data, default_collate), sampler=draws, batch_size=None, **settings)
    batches = iter(loader)
    next(batches)
    first = time.perf_counter()
    count = sum(1 for _ in batches)
    rate = count * n / (time.perf_counter() - first)
    found = {
        "num_workers": settings["num_workers"],
        "first_batch_s": first - begun,
        "triples_per_second": rate,
    }
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
