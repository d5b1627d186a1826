"""Latent actions for 10,000 pairs: `aclam-label` against a plain loop over pairs, and the same bytes after a kill."""

import hashlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from aclam.data.store import read_store, resize_frames, write_store
from aclam.data.trajectory import synthetic_trajectory
from aclam.lam import PRESETS, LatentActionModel
from aclam.train.label import LabelConfig, label, read_labels

EPISODES, FRAMES, SIZE, LOOP = 100, 101, 64, 600
MODELS = ("ac_lam_cpu", "potential_lam_cpu")  # reads pairs; reads single frames


def plain_loop(lam: LatentActionModel, store, pairs: int) -> float:
    "Pairs a second when each pair is read, encoded and kept by itself."
    start, kept = time.perf_counter(), []
    with torch.inference_mode():
        for n in range(pairs):
            t, at = store.trajectories[n // (FRAMES - 1)], n % (FRAMES - 1)
            o = resize_frames(t.frames[[at, at + 1]], lam.config.image_size)
            kept.append(lam.encode(o[:1], o[1:]).z)
    return pairs / (time.perf_counter() - start)


def digest(folder: Path) -> str:
    return hashlib.sha256(b"".join(p.read_bytes() for p in sorted(folder.glob("part-*.parquet")))).hexdigest()


def killed_and_resumed(config: LabelConfig, out: Path) -> tuple[int, str]:
    "Pieces that a process had written when it was killed, and the hash of the labels after it was started again."
    words = ["--model", config.model, "--data", config.data, "--out", out]
    words = [sys.executable, "-c", "from aclam.train.label import main; main()", *map(str, words)]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and len(list(out.glob("pieces/part*"))) < 3:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    kept = len([*out.glob("pieces/part*"), *out.glob("part*")])
    subprocess.run(words, check=True, capture_output=True)
    return kept, digest(out)


def rows() -> Iterator[tuple[str, float, str]]:
    "Rates of both ways for each kind of model, their ratio, and whether a killed job ends at the same bytes."
    torch.set_num_threads(1)
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
            config, start = LabelConfig(folder / preset / "model", folder / "data"), time.perf_counter()
            done = label(config)
            rate = sum(done["pairs"].values()) / (time.perf_counter() - start)
            yield f"{preset}: plain loop over {LOOP} pairs", loop, "pairs/s"
            yield f"{preset}: aclam-label, {sum(done['pairs'].values())} pairs", rate, "pairs/s"
            yield f"{preset}: aclam-label / plain loop", rate / loop, "x"
        kept, found = killed_and_resumed(config, folder / "killed")
        assert len(read_labels(folder / "killed")) == EPISODES * FRAMES
        yield "files of a job when it was killed", kept, "of 10"
        yield "the same bytes after it was started again", float(found == digest(Path(done["folder"]))), "1: yes"
