"""Latent actions for 10,000 pairs: `aclam-label` against a plain loop, two shards against one
process.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from aclam.data.cache import resize_frames
from aclam.data.store import read_store, write_store
from aclam.data.trajectory import synthetic_trajectory
from aclam.lam import PRESETS, LatentActionModel
from aclam.train.label import label
from aclam.train.label_files import read_labels, same_files
from aclam.train.label_job import LabelConfig

EPISODES = 100
FRAMES = 101
SIZE = 64
LOOP = 600
TRIES = 3
MODELS = ("ac_lam_cpu", "potential_lam_cpu")  # reads pairs; reads single frames
WORKER = """
import json, sys, time
from pathlib import Path
from aclam.train.label import label
from aclam.train.label_job import LabelConfig, frames_of, open_job
model, data, out, shard, prefetch = sys.argv[1:]
config = LabelConfig(Path(model), Path(data), out=Path(out), shard=shard, prefetch=int(prefetch), piece_frames=300)
frames_of(open_job(config).store.trajectories[:1], 8)  # imports what is imported late
print("ready", flush=True)
sys.stdin.readline()
wall, cpu = time.monotonic(), time.process_time()
label(config)
print(json.dumps({"wall": time.monotonic() - wall, "cpu": time.process_time() - cpu}))
"""  # a process that does one shard when it is told to, and says how long that took


def plain_loop(lam: LatentActionModel, store, pairs: int) -> float:
    """Pairs a second when each pair is read, encoded and kept by itself."""
    start = time.perf_counter()
    kept = []
    with torch.inference_mode():
        for n in range(pairs):
            t = store.trajectories[n // (FRAMES - 1)]
            at = n % (FRAMES - 1)
            o = resize_frames(t.frames[[at, at + 1]], lam.config.image_size)
            kept.append(lam.encode(o[:1], o[1:]).z)
    return pairs / (time.perf_counter() - start)


def shards(config: LabelConfig, out: Path, count: int, prefetch: int) -> dict[str, float]:
    """Seconds until `count` shards that start together have all ended, and CPU seconds of the
    longest, one thread each.
    """
    command = [sys.executable, "-c", WORKER, *map(str, (config.model, config.data, out))]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [*command, f"{n}/{count}", str(prefetch)],
            env=env,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        for n in range(count)
    ]
    for worker in workers:
        worker.stdout.readline()
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    found = [json.loads(worker.communicate()[0]) for worker in workers]
    return {key: max(f[key] for f in found) for key in ("wall", "cpu")}


def divided(config: LabelConfig, folder: Path, prefetch: int) -> Iterator[tuple[str, float, str]]:
    """One process against two shards, in turn; medians over some tries."""
    found = {1: [], 2: []}
    for n in range(TRIES):
        for count in found:
            out = folder / f"shards_{prefetch}_{n}_{count}"
            found[count].append(shards(config, out, count, prefetch))
        same_files(folder / f"shards_{prefetch}_{n}_1", folder / f"shards_{prefetch}_{n}_2")
    for key in ("wall", "cpu"):
        one, two = (statistics.median(f[key] for f in found[count]) for count in (1, 2))
        yield f"prefetch {prefetch}: {key} of one process", one, "s"
        yield f"prefetch {prefetch}: {key} of the longer of two shards", two, "s"
        ratios = [a[key] / b[key] for a, b in zip(found[1], found[2], strict=True)]
        yield (
            f"prefetch {prefetch}: two shards / one process, by {key}",
            statistics.median(ratios),
            "x",
        )


def rows() -> Iterator[tuple[str, float, str]]:
    """Rates of both ways for each kind of model and their ratio; two shards against one process."""
    torch.set_num_threads(1)
    print(f"  load of the machine at the start: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        episodes = (synthetic_trajectory(seed, T=FRAMES, size=SIZE) for seed in range(EPISODES))
        write_store(folder / "data", episodes, shard_size=EPISODES)
        store = read_store(folder / "data")
        for preset in (p for p in MODELS if p in PRESETS):
            torch.manual_seed(0)
            lam = LatentActionModel.from_preset(preset).eval()
            lam.save_pretrained(folder / preset / "model")
            loop = plain_loop(lam, store, LOOP)
            config = LabelConfig(folder / preset / "model", folder / "data")
            start = time.perf_counter()
            done = label(config)
            rate = sum(done["pairs"].values()) / (time.perf_counter() - start)
            assert len(read_labels(done["folder"])) == EPISODES * FRAMES
            yield f"{preset}: plain loop over {LOOP} pairs", loop, "pairs/s"
            yield f"{preset}: aclam-label, {sum(done['pairs'].values())} pairs", rate, "pairs/s"
            yield f"{preset}: aclam-label / plain loop", rate / loop, "x"
        for prefetch in (0, 1):
            yield from divided(
                LabelConfig(folder / MODELS[0] / "model", folder / "data"), folder, prefetch
            )
