"""Random-access triples: CPU time for three frames of one episode, by format and reader.

Three frames lie within 3 s at 30 fps, as in training. lerobot's PyAV loop is emulated here: it
seeks to the key frame before the first wanted time and converts every frame up to the last wanted
one to RGB (lerobot 0.4, `decode_video_frames_torchvision`). `lerobot-dataset` itself does not
install beside this environment: where the Python of one that has it is given as
ACLAM_LEROBOT_PYTHON (tests/fixtures/make_lerobot.py says how to make it), it is run too.
"""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import av
import numpy as np
import torch
from datasets import load_dataset
from datasets.utils.logging import disable_progress_bar
from PIL import Image

import aclam.data.store as stored
from aclam.data.augment import AugmentConfig
from aclam.data.lerobot_reader import read_lerobot
from aclam.data.lerobot_writer import write_lerobot
from aclam.data.sampling import TripleConfig
from aclam.data.store import read_store, write_store
from aclam.data.trajectory import FrameArray, Trajectory, synthetic_trajectory
from aclam.data.triples import TripleDataset, collate
from aclam.data.video import VideoFrames, VideoPool, VideoWriter

FRAMES, FPS, ROUNDS, BATCH = 300, 30, 4, 32
PEER = Path(__file__).with_name("lerobot_peer.py")
SIZES = {"224": (224, 224), "640x480": (480, 640)}


def film(height: int, width: int) -> Trajectory:
    """A square that moves, drawn small (large drawings take gigabytes) and enlarged, under a fixed
    grain.
    """
    t, rng = synthetic_trajectory(0, T=FRAMES, size=96, fps=FPS), np.random.default_rng(0)
    grain = rng.integers(-6, 7, (height, width, 1), np.int16)
    side = max(height, width)
    frames = np.empty((FRAMES, height, width, 3), np.uint8)
    for n, small in enumerate(t.frames.array):
        large = np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC))[
            :height, :width
        ]
        frames[n] = np.clip(large + grain, 0, 255)
    return Trajectory(FrameArray(frames), t.timestamp, name="film")


def wanted(n: int) -> np.ndarray:  # (n, 3) frames within 3 s
    rng = np.random.default_rng(0)
    first = rng.integers(0, FRAMES - 90, n)
    return np.stack([first, *(first + np.sort(rng.integers(1, 90, (2, n)), 0))], 1)


def seconds(work: Callable, times: int = ROUNDS) -> float:
    """The least CPU time of a call: a busy machine only ever adds."""
    costs = []
    for _ in range(times):
        start = time.process_time()
        work()
        costs.append(time.process_time() - start)
    return min(costs)


def race(readers: dict[str, Callable], triples: np.ndarray, slow: str) -> dict[str, float]:
    """Triples per CPU second of each reader; they take turns.

    The reader `slow` gets fewer triples.
    """
    some = {name: triples[:6] if name == slow else triples for name in readers}
    for read in readers.values():
        read(triples[0].tolist())
    costs = {name: [] for name in readers}
    for _ in range(ROUNDS):
        for name, read in readers.items():
            costs[name].append(seconds(lambda r=read, n=name: [r(t.tolist()) for t in some[n]], 1))
    return {name: len(some[name]) / min(c) for name, c in costs.items()}


def lerobot_pyav(path: Path) -> Callable:
    """The loop of lerobot's pyav backend."""

    def read(frames: list[int]) -> np.ndarray:
        seconds, found, times = np.array(frames) / FPS, [], []
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            container.seek(int(seconds.min() / stream.time_base), stream=stream, backward=True)
            for frame in container.decode(stream):
                found.append(frame.to_ndarray(format="rgb24"))
                times.append(frame.time)
                if frame.time >= seconds.max():
                    break
        return np.stack([found[n] for n in np.abs(np.array(times)[:, None] - seconds).argmin(0)])

    return read


def hf_pil(folder: Path) -> Callable:
    """`datasets` with an Image column, decoded by Pillow."""
    disable_progress_bar()
    files = [str(p) for p in sorted((folder / "frames").glob("*.parquet"))]
    rows = load_dataset("parquet", data_files=files, split="train", cache_dir=str(folder / "hf"))
    rows = rows.select_columns(["image"])
    return lambda frames: np.stack([np.asarray(rows[n]["image"]) for n in frames])


def by_pillow(read: Callable, frames: list[int]) -> np.ndarray:
    """The same reader as if simplejpeg were not installed."""
    fast, stored.decode_jpeg = stored.decode_jpeg, None
    try:
        return read(frames)
    finally:
        stored.decode_jpeg = fast


class Still:
    """Frames that cost nothing, so that what remains is the sampler's."""

    def __init__(self, size: int):
        self.pixels = np.zeros((3, size, size, 3), np.uint8)

    def __len__(self) -> int:
        return FRAMES

    def __getitem__(self, indices: list[int]) -> np.ndarray:
        return self.pixels[: len(indices)]


def sampler_seconds(size: int) -> dict[str, float]:
    """What a triple costs beside decoding: draw, filter, states, channels first, and stacked into
    batches of 32.
    """
    known = replace(synthetic_trajectory(0, T=FRAMES, size=16, fps=FPS), frames=Still(size))
    data = TripleDataset([known], TripleConfig(), size)
    ways = {
        "draw and filter": lambda: [data.draw(n) for n in range(BATCH)],
        "whole, batch by batch": lambda: data.batch(range(BATCH)),
        "whole, item by item and collate": lambda: collate([data[n] for n in range(BATCH)]),
    }
    return {name: seconds(way, 8) / BATCH for name, way in ways.items()}


def augmentation_rates(scratch: Path, source: Trajectory) -> dict[str, float]:
    """Triples per CPU second of whole batches from a JPEG store, by who augments them. The ways
    take turns.

    What a process that loads has to do, "left to the device", is to draw the parameters of the
    augmentation.
    """
    write_store(scratch / "store", [source], quality=90)
    episodes = read_store(scratch / "store").trajectories
    ways = {
        "as recorded": {},
        "augmented by the loader": {"augment": AugmentConfig()},
        "augmentation left to the device": {"augment": AugmentConfig(), "defer_augmentation": True},
    }
    sets = {
        name: TripleDataset(episodes, TripleConfig(), 224, **options)
        for name, options in ways.items()
    }
    costs = {name: [] for name in ways}
    for turn in range(ROUNDS):
        for name, data in sets.items():
            costs[name].append(
                seconds(lambda d=data, t=turn: d.batch(range(BATCH * t, BATCH * t + BATCH)), 1)
            )
    return {name: BATCH / min(c) for name, c in costs.items()}


def peer_rates(scratch: Path, source: Trajectory, triples: np.ndarray) -> dict[str, float]:
    """What lerobot-dataset reaches on a LeRobot v3.0 dataset, and we on the same one; empty where
    it is not there.
    """
    python = os.environ.get("ACLAM_LEROBOT_PYTHON")
    if not python:
        return {}
    write_lerobot(scratch / "lerobot", [source], "image", FPS)
    np.save(scratch / "triples.npy", triples)
    words = [python, PEER, scratch / "lerobot", scratch / "triples.npy"]
    here = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}  # its packages are its own
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, env=here)
    ours = read_lerobot(scratch / "lerobot").trajectories[0].frames.__getitem__
    return {
        "aclam": race({"": ours}, triples, slow="")[""],
        **json.loads(done.stdout.splitlines()[-1]),
    }


def rows() -> Iterator[tuple[str, float, str]]:
    """Triples per CPU second of each reader, and the ratios that the project promises."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        rates = augmentation_rates(Path(scratch), film(*SIZES["224"]))
    for what, rate in rates.items():
        yield f"224: triples from the JPEG store, {what}", rate, "triples/CPU s"
    raw, here, later = rates.values()
    yield "224: left to the device / augmented by the loader", later / here, "x (goal: as recorded)"
    yield "224: left to the device / as recorded", later / raw, "x"
    for name, size in SIZES.items():
        with tempfile.TemporaryDirectory() as scratch:
            yield from one_size(Path(scratch), name, film(*size))


def open_all(scratch: Path, source: Trajectory) -> dict[str, Callable]:
    """The readers of one film, each in its own format: a list of three frames -> uint8 (3, H, W,
    3).
    """
    path, store = scratch / "film.mp4", scratch / "store"
    with VideoWriter(path, FPS) as out:
        out.append(source.frames.array)
    write_store(store, [source], quality=90)
    raw = np.lib.format.open_memmap(scratch / "film.npy", "w+", np.uint8, source.frames.array.shape)
    raw[:] = source.frames.array
    video = VideoFrames(VideoPool(), path, np.arange(FRAMES) / FPS, 0.008, "film")
    jpeg = read_store(store).trajectories[0].frames.__getitem__
    quick = {} if stored.decode_jpeg is None else {"JPEG store, aclam (simplejpeg)": jpeg}
    return {
        "raw memmap": lambda f: np.stack([raw[n] for n in f]),
        "h264 g=2, aclam": video.__getitem__,
        "h264 g=2, lerobot's PyAV loop (emulated)": lerobot_pyav(path),
        **quick,
        "JPEG store, aclam (Pillow)": partial(by_pillow, jpeg),
        "JPEG, datasets + Pillow": hf_pil(store),
    }


def one_size(scratch: Path, name: str, source: Trajectory) -> Iterator[tuple[str, float, str]]:
    readers, triples = open_all(scratch, source), wanted(40)
    video, loop, *jpegs, theirs = list(readers)[1:]
    first = {what: read(triples[0].tolist()) for what, read in readers.items()}
    assert np.array_equal(first[video], first[loop])  # the same pixels
    assert all(np.array_equal(first[j], first[theirs]) for j in jpegs)
    speed = race(readers, triples, slow=loop)
    peers = peer_rates(scratch, source, triples[:6])
    for what, value in [*speed.items(), *((f"LeRobot v3.0, {k}", v) for k, v in peers.items())]:
        yield f"{name}: {what}", value, "triples/CPU s"
    yield f"{name}: video, aclam / lerobot's loop", speed[video] / speed[loop], "x (goal 8)"
    for what in list(peers)[1:]:
        yield f"{name}: LeRobot v3.0, aclam / {what}", peers["aclam"] / peers[what], "x"
    if not peers:
        yield f"{name}: lerobot-dataset is not here (ACLAM_LEROBOT_PYTHON)", float("nan"), ""
    for j in jpegs:
        yield (
            f"{name}: {j} / {theirs.removeprefix('JPEG, ')}",
            speed[j] / speed[theirs],
            "x (goal 1.5)",
        )
    for what, value in sampler_seconds(224).items():
        yield (
            f"{name}: sampler, {what}, share of h264 decoding",
            100 * value * speed[video],
            "% (goal < 5)",
        )
