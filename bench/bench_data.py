"""Random-access triples: CPU time for three frames of one episode, by format and reader.

What lerobot does is emulated here: its PyAV loop seeks to the key frame before the first wanted time and converts every
frame up to the last wanted one to RGB (lerobot 0.4, `decode_video_frames_torchvision`). `lerobot-dataset` itself does
not install beside this environment. Three frames lie within 3 s at 30 fps, as in training.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np

from aclam.data.source import open_dataset
from aclam.data.store import read_store, write_store
from aclam.data.trajectory import FrameArray, Trajectory, synthetic_trajectory
from aclam.data.triples import TripleConfig, TripleDataset
from aclam.data.video import VideoFrames, VideoPool, VideoWriter

FRAMES, FPS = 300, 30
SIZES = {"224": (224, 224), "640x480": (480, 640)}


def film(height: int, width: int) -> Trajectory:
    "A square that moves over a grained ground, cut to the wanted size."
    t = synthetic_trajectory(0, T=FRAMES, size=max(height, width), fps=FPS)
    return Trajectory(FrameArray(t.frames.array[:, :height, :width]), t.timestamp, name="film")


def wanted(n: int) -> np.ndarray:  # (n, 3) frames within 3 s
    rng = np.random.default_rng(0)
    first = rng.integers(0, FRAMES - 90, n)
    return np.stack([first, *(first + np.sort(rng.integers(1, 90, (2, n)), 0))], 1)


def triples_per_second(read: Callable, triples: np.ndarray) -> float:
    "Of CPU time; the first one is not counted."
    read(triples[0].tolist())
    start = time.process_time()
    for t in triples:
        read(t.tolist())
    return len(triples) / (time.process_time() - start)


def lerobot_pyav(path: Path) -> Callable:
    "The loop of lerobot's pyav backend."

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
    "`datasets` with an Image column, decoded by Pillow."
    from datasets import load_dataset

    files = [str(p) for p in sorted((folder / "frames").glob("*.parquet"))]
    rows = load_dataset("parquet", data_files=files, split="train", cache_dir=str(folder / "hf"))
    rows = rows.select_columns(["image"])
    return lambda frames: np.stack([np.asarray(rows[n]["image"]) for n in frames])


def torchvision_jpeg(data: bytes) -> np.ndarray:
    import torch
    from torchvision.io import decode_jpeg

    return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8)).permute(1, 2, 0).numpy()


def sampler_share(read_seconds: float) -> float:
    "Drawing, filtering and states of a triple, in per cent of the time to decode it."
    known = synthetic_trajectory(0, T=FRAMES, size=16, fps=FPS)
    data = TripleDataset([known], TripleConfig(), 16)
    start = time.process_time()
    for n in range(2000):
        data.draw(n)
    return 100 * (time.process_time() - start) / 2000 / read_seconds


def rows() -> Iterator[tuple[str, float, str]]:
    "Triples per CPU second of each reader, and the ratios that the project promises."
    with tempfile.TemporaryDirectory() as scratch:
        for name, size in SIZES.items():
            yield from one_size(Path(scratch), name, film(*size))


def one_size(scratch: Path, name: str, source: Trajectory) -> Iterator[tuple[str, float, str]]:
    path, store, triples = scratch / f"{name}.mp4", scratch / name, wanted(60)
    with VideoWriter(path, FPS) as out:
        out.append(source.frames.array)
    write_store(store, [source], quality=90)
    raw = np.lib.format.open_memmap(scratch / f"{name}.npy", "w+", np.uint8, source.frames.array.shape)
    raw[:] = source.frames.array
    video = VideoFrames(VideoPool(), path, np.arange(FRAMES) / FPS, 0.008, "film")
    assert np.array_equal(video[triples[0].tolist()], lerobot_pyav(path)(triples[0].tolist()))  # the same pixels
    readers = {
        "raw memmap": (lambda f: np.stack([raw[n] for n in f]), 60),
        "h264 g=2, aclam": (lambda f: video[f], 60),
        "h264 g=2, lerobot's PyAV loop (emulated)": (lerobot_pyav(path), 8),
        "JPEG store, aclam (Pillow)": (lambda f, t=open_dataset(store).trajectories[0]: t.frames[f], 60),
        "JPEG store, aclam (torchvision)": (
            lambda f, t=read_store(store, torchvision_jpeg).trajectories[0]: t.frames[f], 60),
        "JPEG, datasets + Pillow": (hf_pil(store), 60),
    }  # fmt: skip
    speed = {}
    for what, (read, n) in readers.items():
        speed[what] = triples_per_second(read, triples[:n])
        yield f"{name}: {what}", speed[what], "triples/CPU s"
    names = list(readers)
    yield f"{name}: video, aclam / lerobot's loop", speed[names[1]] / speed[names[2]], "x (goal 8)"
    yield f"{name}: JPEG, aclam (Pillow) / datasets + Pillow", speed[names[3]] / speed[names[5]], "x (goal 1.5)"
    yield f"{name}: JPEG, aclam (torchvision) / datasets + Pillow", speed[names[4]] / speed[names[5]], "x (goal 1.5)"
    yield f"{name}: sampler, share of decoding h264", sampler_share(1 / speed[names[1]]), "% (goal < 5)"
