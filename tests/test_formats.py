"""Readers and writers of LeRobot, RLDS and videos.

Fixtures: tests/fixtures, written by the peers.
"""

import dataclasses
import gzip
import json
import multiprocessing
import os
import pickle
import shutil
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from aclam.commands import data as command
from aclam.core import UserError
from aclam.data import declared, video
from aclam.data.declared import FORMATS, Declared, as_store, reads
from aclam.data.files import Broken
from aclam.data.lerobot_reader import download, read_lerobot
from aclam.data.lerobot_writer import check_round_trip, write_lerobot
from aclam.data.recipe import RECIPES, load_recipe
from aclam.data.source import open_dataset, recognize
from aclam.data.store import write_store
from aclam.data.tfrecord import check_crc
from aclam.data.trajectory import ProprioLayout, synthetic_trajectory
from aclam.data.video import VideoFrames, VideoPool, VideoWriter, all_frames, check_exact
from aclam.data.video_folder import read_videos

FIXTURES = Path(__file__).parent / "fixtures"
sys.path.insert(0, str(FIXTURES))
from pattern import CAMERAS, FPS, LENGTHS, action, numbers, state, task  # noqa: E402

LEROBOT = {v: FIXTURES / f"lerobot_{v.replace('.', '')}" for v in ("v2.1", "v3.0")}


# --- conformance ----------------------------------------------------------------------------------


def every_frame(store, camera: int) -> int:
    """Read every frame, last one first, and all numbers; returns how many frames were right."""
    right = 0
    for episode, t in enumerate(store.trajectories):
        assert (len(t), t.task, t.embodiment) == (LENGTHS[episode], task(episode), "pattern")
        assert np.array_equal(t.timestamp, np.arange(len(t)) / FPS)
        for frame in reversed(range(len(t))):
            assert numbers(t.frames[[frame]][0]) == (camera, episode, frame)
            assert np.array_equal(t.proprio[frame], state(episode, frame))
            assert np.array_equal(t.action[frame], action(episode, frame))
            right += 1
    return right


@pytest.mark.parametrize("version", LEROBOT)
@pytest.mark.parametrize("camera", CAMERAS)
def test_every_frame_and_state_of_the_peers_dataset(version, camera):
    store = open_dataset(LEROBOT[version], Declared(camera=camera), verify=True)
    assert store.meta["format"] == f"lerobot-{version}" and store.meta["fps"] == FPS
    assert store.meta["cameras"] == [f"observation.images.{c}" for c in CAMERAS]
    assert tuple(store.meta["image_size"]) == CAMERAS[camera]
    assert every_frame(store, list(CAMERAS).index(camera)) == sum(LENGTHS)


def test_three_frames_at_once_across_the_episodes_of_one_video():
    store, rng = read_lerobot(LEROBOT["v3.0"]), np.random.default_rng(0)
    for _ in range(40):
        episode = int(rng.integers(len(LENGTHS)))
        wanted = rng.integers(0, LENGTHS[episode], 3).tolist()
        read = store.trajectories[episode].frames[wanted]
        assert [numbers(f) for f in read] == [(0, episode, n) for n in wanted]


def test_version_2_0_has_no_statistics_of_episodes(tmp_path):
    shutil.copytree(LEROBOT["v2.1"], tmp_path / "v20")
    (tmp_path / "v20" / "meta" / "episodes_stats.jsonl").unlink()
    edit_info(tmp_path / "v20", codebase_version="v2.0")
    store = open_dataset(tmp_path / "v20")
    assert store.meta["format"] == "lerobot-v2.0" and every_frame(store, 0) == sum(LENGTHS)


def test_images_in_the_table_instead_of_a_video(tmp_path):
    """The other way in which LeRobot datasets keep pictures; here with channels first, as some say
    in info.json.
    """
    root = tmp_path / "images"
    shutil.copytree(LEROBOT["v3.0"], root)
    file, films = root / "data" / "chunk-000" / "file-000.parquet", read_lerobot(root).trajectories
    table = pq.read_table(file)
    cells = []
    for t in films:
        for n in range(len(t)):
            Image.fromarray(t.frames[[n]][0]).save(tmp_path / "frame.png")
            cells.append({"bytes": (tmp_path / "frame.png").read_bytes(), "path": None})
    pq.write_table(
        table.append_column("observation.images.top", pa.array(cells)), file, row_group_size=10
    )
    info = json.loads((root / "meta" / "info.json").read_text())
    info["features"]["observation.images.top"] = {
        "dtype": "image",
        "shape": [3, 48, 64],
        "names": ["channels", "h", "w"],
    }
    edit_info(root, features=info["features"])
    store = open_dataset(root)
    assert store.meta["image_size"] == [48, 64] and every_frame(store, 0) == sum(LENGTHS)
    assert np.array_equal(
        pickle.loads(pickle.dumps(store.trajectories[1].frames))[[3]], films[1].frames[[3]]
    )


# --- declarations ---------------------------------------------------------------------------------


def test_nothing_is_guessed_and_what_is_declared_is_checked():
    plain = open_dataset(LEROBOT["v3.0"])
    assert plain.meta["layout"] is None and plain.trajectories[0].proprio.shape == (11, 5)
    quaternion = ProprioLayout(position=(0,), rotation=(1, 2, 3, 4), rotation_repr="quat_xyzw")
    with pytest.raises(UserError, match="episode 0: frame .* are no quat_xyzw rotation"):
        open_dataset(LEROBOT["v3.0"], Declared(layout=quaternion))
    told = open_dataset(
        LEROBOT["v3.0"],
        Declared(state=("action",), layout=lambda n: ProprioLayout(position=range(n))),
    )
    assert told.meta["layout"]["position"] == [0, 1, 2]
    with pytest.raises(
        UserError, match='no column of numbers "observation.stat".*Did you mean "observation.state"'
    ):
        open_dataset(LEROBOT["v3.0"], Declared(state=("observation.stat",)))
    with pytest.raises(UserError, match='no camera "topp"'):
        open_dataset(LEROBOT["v3.0"], Declared(camera="topp"))


def test_human_video_in_lerobot_form_has_no_proprio():
    store = open_dataset(LEROBOT["v3.0"], Declared(kind="human", embodiment="hand", skip_first=2))
    t = store.trajectories[1]
    assert (
        t.proprio is None
        and t.kind == "human"
        and t.embodiment == "hand"
        and len(t) == LENGTHS[1] - 2
    )
    assert numbers(t.frames[[0]][0]) == (0, 1, 2)


# --- bad input: one line that names file and episode ----------------------------------------------


def edit_info(root: Path, **values) -> None:
    file = root / "meta" / "info.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def edit_episodes(root: Path, episode: int, **values) -> None:
    file = root / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    rows = pq.read_table(file).to_pylist()
    rows[episode].update(values)
    pq.write_table(pa.Table.from_pylist(rows), file)


def cut(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])


TOP = "videos/observation.images.top/chunk-000/file-000.mp4"
SHIFT = {"videos/observation.images.top/from_timestamp": 1.14}  # 0.4 of a frame late
LATE = {
    "videos/observation.images.top/from_timestamp": 4.3
}  # the last two frames lie behind the end
SHAPES = {"action": {"dtype": "float32", "shape": [4], "names": None}}


def features(root: Path, **changed) -> dict:
    return {**json.loads((root / "meta" / "info.json").read_text())["features"], **changed}


NINE = {"observation.images.top": {"dtype": "video", "shape": [9, 9, 3]}}
TABLE = "data/chunk-000/file-000.parquet"
BAD = {
    "mp4 without its end": (
        lambda r: cut(r / TOP, 0.5),
        r"episode \d: .*file-000.mp4 .*(cut off|has no frame)",
    ),
    "mp4 without anything": (
        lambda r: cut(r / TOP, 0.01),
        r"episode 0: .*file-000.mp4 (is not a whole|has no video)",
    ),
    "no mp4": (lambda r: (r / TOP).unlink(), r"episode 0: no such file: .*file-000.mp4"),
    "no parquet": (lambda r: (r / TABLE).unlink(), r"episode 0: no such file: .*parquet"),
    "half a parquet": (lambda r: cut(r / TABLE, 0.5), r"episode 0: .*not a whole Parquet"),
    "time stamps off": (
        lambda r: edit_episodes(r, 1, **SHIFT),
        r"episode 1: .*mp4 has no frame within 0.025 s",
    ),
    "mp4 too short": (
        lambda r: edit_episodes(r, 3, **LATE),
        r"episode 3: .*mp4 has no frame .*it is 5.800 s",
    ),
    "wrong shape": (
        lambda r: edit_info(r, features=features(r, **SHAPES)),
        r"episode 0: .*action has 3 numbers a row",
    ),
    "no shape": (
        lambda r: edit_info(r, features=features(r, action={"dtype": "float32"})),
        r"info.json: field features.action: .*shape",
    ),
    "wrong picture size": (
        lambda r: edit_info(r, features=features(r, **NINE)),
        r"episode 0: .*frames of 64 x 48 pixels, declared are 9 x 9",
    ),
    "a path that leaves": (
        lambda r: edit_info(r, video_path="../{video_key}.mp4"),
        r"leads out of",
    ),
    "an absolute path": (lambda r: edit_info(r, data_path="/{chunk_index}"), r"leads out of"),
    "wrong length": (
        lambda r: edit_episodes(r, 2, length=8),
        r"episode 2: .*has 7 rows of it, meta says 8",
    ),
    "not JSON": (lambda r: cut(r / "meta/info.json", 0.5), r"info.json is not JSON"),
    "another version": (lambda r: edit_info(r, codebase_version="v9"), r'codebase_version is "v9"'),
    "no rate": (lambda r: edit_info(r, fps=0), r"info.json: field fps: .*found 0"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_broken_lerobot_dataset_is_one_line(tmp_path, what):
    change, said = BAD[what]
    root = tmp_path / "set"
    shutil.copytree(LEROBOT["v3.0"], root)
    change(root)
    with pytest.raises(UserError, match=said) as caught:
        for t in open_dataset(root).trajectories:
            t.frames[[0, len(t) - 1]]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [SHIFT, LATE])
def test_verify_finds_wrong_times_without_decoding(tmp_path, values, monkeypatch):
    root = tmp_path / "set"
    shutil.copytree(LEROBOT["v3.0"], root)
    edit_episodes(root, 1 if values is SHIFT else 3, **values)
    monkeypatch.setattr(VideoPool, "at", lambda *_: pytest.fail("a frame was decoded"))
    with pytest.raises(
        UserError, match=r"episode \d: frame \d+: .*file-000.mp4 has no frame within"
    ):
        open_dataset(root, verify=True)


def test_the_hub_without_a_network_is_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match="aclam/does-not-exist cannot be had from the hub"
    ) as caught:
        download("aclam/does-not-exist")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="not a name on the hub"):
        open_dataset("hub:a/b/c")


# --- the writer -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def squares():
    return [synthetic_trajectory(s, T=9 + 2 * s, size=64) for s in range(5)]


def test_what_is_written_is_read_back(tmp_path, squares):
    write_lerobot(tmp_path / "out", squares, per_file=2)
    check_round_trip(squares, open_dataset(tmp_path / "out", verify=True).trajectories)


def test_parts_written_by_other_processes_are_the_same(tmp_path, squares):
    write_lerobot(tmp_path / "one", squares, per_file=3)
    write_lerobot(tmp_path / "two", squares, per_file=3, workers=2)
    files = sorted(
        p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file()
    )
    assert all(
        (tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files
    )


def test_uneven_films_and_different_widths_are_refused_or_resampled(tmp_path, squares):
    uneven = dataclasses.replace(squares[0], timestamp=squares[0].timestamp ** 1.1)
    with pytest.raises(UserError, match="synthetic/000000: frame .* one rate a dataset"):
        write_lerobot(tmp_path / "out", [uneven])
    info = write_lerobot(tmp_path / "out", [uneven], fps=4)
    assert info["fps"] == 4
    human = synthetic_trajectory(9, kind="human", size=64)
    with pytest.raises(UserError, match="proprio has .* columns in different episodes"):
        write_lerobot(tmp_path / "mixed", [squares[0], human])
    write_lerobot(tmp_path / "human", [human])
    assert open_dataset(tmp_path / "human").trajectories[0].proprio is None


@pytest.mark.slow
def test_the_peer_opens_what_we_wrote(tmp_path, squares):
    """Needs lerobot-dataset 0.4.4 in an environment of its own: set ACLAM_LEROBOT_PYTHON to its
    python.
    """
    import subprocess

    python = os.environ.get("ACLAM_LEROBOT_PYTHON")
    if not python:
        pytest.skip("ACLAM_LEROBOT_PYTHON is not set")
    write_lerobot(tmp_path / "out", squares, per_file=2)
    np.savez(
        tmp_path / "truth.npz",
        **{f"state{n}": t.proprio for n, t in enumerate(squares)},
        **{f"frames{n}": t.frames[range(len(t))] for n, t in enumerate(squares)},
    )
    run = [python, FIXTURES / "open_with_lerobot.py", tmp_path / "out", tmp_path / "truth.npz"]
    done = subprocess.run(
        list(map(str, run)), capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    print(done.stdout)


# --- video ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [dict(g=2), dict(g=30, bf="3"), dict(g=7, fps=30000 / 1001), dict(g=12, fps=23.976)]
)
def test_random_access_is_exact(tmp_path, settings):
    film = synthetic_trajectory(1, T=60, size=48).frames[range(60)]
    with VideoWriter(tmp_path / "film.mp4", **{"fps": 30, **settings}) as out:
        out.append(film)
    assert check_exact(tmp_path / "film.mp4", 40) == 120


@pytest.mark.parametrize("start", [0, 500])  # a stream that does not begin at 0
def test_uneven_time_stamps(tmp_path, start):
    ticks = start + np.cumsum(np.random.default_rng(1).integers(9, 80, 40))
    with VideoWriter(tmp_path / "film.mp4", fps=1000, g=10) as out:
        out.append(synthetic_trajectory(1, T=40, size=48).frames[range(40)], ticks)
    check_exact(tmp_path / "film.mp4", 30)
    t = read_videos(tmp_path / "film.mp4").trajectories[0]
    assert np.allclose(t.timestamp, (ticks - ticks[0]) / 1000) and t.kind == "human"


def frames_of(frames) -> bytes:
    return frames[[5, 1, 8]].tobytes()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_see_the_same_frames(method):
    frames = read_lerobot(LEROBOT["v3.0"]).trajectories[2].frames
    frames = VideoFrames(frames.pool, frames.path, np.arange(40) / FPS, frames.tolerance, "film")
    ours = frames_of(frames)  # the file is open when the workers begin
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert set(pool.map(frames_of, [frames] * 4)) == {ours}
    assert frames_of(frames) == ours


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors in /proc")
def test_open_files_are_bounded(tmp_path):
    source, pool = (LEROBOT["v3.0"] / TOP).read_bytes(), VideoPool(limit=4)
    films = []
    for n in range(20):
        (tmp_path / f"{n}.mp4").write_bytes(source)
        films.append(
            VideoFrames(pool, tmp_path / f"{n}.mp4", np.arange(40) / FPS, 0.01, f"film {n}")
        )
    before = len(os.listdir("/proc/self/fd"))
    for film in films * 2:
        film[[30, 2]]
        assert len(os.listdir("/proc/self/fd")) <= before + 4


def test_a_video_that_is_no_video(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"not a film" * 100)
    with pytest.raises(UserError, match="a.mp4 is not a whole video file"):
        open_dataset(tmp_path)


class FakeDecoder:
    """What torchcodec.decoders.VideoDecoder does, by decoding the whole file with PyAV."""

    def __init__(self, path, **_):
        self.frames, self.seconds = all_frames(path)
        self.metadata = SimpleNamespace(begin_stream_seconds=0.0)
        FakeDecoder.opened.append(Path(path).name)

    def get_frames_played_at(self, seconds):
        n = np.searchsorted(self.seconds, seconds, side="right") - 1
        return SimpleNamespace(
            data=torch.from_numpy(self.frames[n]), pts_seconds=torch.from_numpy(self.seconds[n])
        )


@pytest.fixture
def torchcodec(monkeypatch):
    """A torchcodec that works, whatever torch and FFmpeg are there."""
    FakeDecoder.opened = []
    monkeypatch.setitem(
        sys.modules, "torchcodec.decoders", SimpleNamespace(VideoDecoder=FakeDecoder)
    )
    monkeypatch.setattr(video, "torchcodec_works", lambda: True)
    return FakeDecoder


def films(folder: Path) -> Path:
    folder.mkdir()
    with VideoWriter(folder / "a.mp4", 5) as out:
        out.append(synthetic_trajectory(0, T=20).frames[range(20)])
    return folder


def test_torchcodec_is_used_where_it_works_and_gives_the_same_frames(tmp_path, torchcodec):
    film = films(tmp_path / "set")
    (found,) = read_videos(film).trajectories
    (ours,) = read_videos(film, pool=VideoPool(decoder="av")).trajectories
    assert np.array_equal(
        found.frames[[3, 17, 0]], ours.frames[[3, 17, 0]]
    ) and torchcodec.opened == ["a.mp4"]


def test_what_torchcodec_cannot_read_falls_to_pyav(tmp_path, torchcodec, monkeypatch):
    film = films(tmp_path / "set")
    tried = []
    monkeypatch.setattr(FakeDecoder, "__init__", lambda self, path, **_: refuse_file(path, tried))
    pool = VideoPool()
    (found,) = read_videos(film, pool=pool).trajectories
    (ours,) = read_videos(film, pool=VideoPool(decoder="av")).trajectories
    assert np.array_equal(found.frames[[3]], ours.frames[[3]])
    found.frames[[4]]
    assert len(tried) == 1  # asked once, then left alone
    with pytest.raises(UserError, match="a.mp4 is not a whole video file"):
        VideoFrames(
            VideoPool(decoder="torchcodec"), film / "a.mp4", np.arange(3) / 5, 0.01, "film"
        )[[0]]


def refuse_file(path, tried):
    tried.append(path)
    raise RuntimeError("could not open the file")


def test_without_torchcodec_pyav_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "torchcodec_works", lambda: False)
    (found,) = read_videos(films(tmp_path / "set")).trajectories
    assert found.frames[[5]].shape == (1, 64, 64, 3)
    with pytest.raises(UserError, match="torchcodec is not installed, or does not fit"):
        VideoFrames(
            VideoPool(decoder="torchcodec"),
            tmp_path / "set" / "a.mp4",
            np.arange(3) / 5,
            0.01,
            "film",
        )[[0]]


# --- folders of images ----------------------------------------------------------------------------


def frame_folder(folder: Path, squares, n: int = 6) -> Path:
    (folder / "clip").mkdir(parents=True)
    for k, f in enumerate(squares[0].frames[range(n)]):
        Image.fromarray(f).save(folder / "clip" / f"{k}.png")
    return folder


def test_the_rate_of_a_frame_folder_is_declared_on_the_command_line(tmp_path, squares, capsys):
    folder = frame_folder(tmp_path / "set", squares)
    with pytest.raises(SystemExit) as stopped:
        aclam_data(capsys, "inspect", folder)
    assert stopped.value.code == 2 and "how many there are a second" in capsys.readouterr().err
    report = json.loads(aclam_data(capsys, "inspect", folder, "--rate", 12, "--json"))
    assert (report["fps"], report["frames"], report["kinds"]) == (12, 6, ["human"])
    aclam_data(
        capsys,
        "frame",
        folder,
        "--rate",
        12,
        "--episode",
        0,
        "--index",
        4,
        "--out",
        tmp_path / "f.png",
    )
    assert np.array_equal(np.asarray(Image.open(tmp_path / "f.png")), squares[0].frames[[4]][0])
    told = (RECIPES / "ssv2" / "recipe.yaml").read_text()
    (folder / "recipe.yaml").write_text(told)  # a recipe has a rate, too
    assert (
        json.loads(aclam_data(capsys, "inspect", folder, "--json"))["fps"]
        == load_recipe("ssv2").control_hz
    )
    assert (
        json.loads(aclam_data(capsys, "triples", folder, "--rate", 8, "--n", 3, "--json"))[
            "counts"
        ]["items"]
        == 3
    )


@pytest.mark.parametrize("number", [0, 3])
def test_a_huge_png_in_a_frame_folder_is_refused_by_its_header(tmp_path, squares, capsys, number):
    folder = frame_folder(tmp_path / "set", squares)
    head = b"IHDR" + (100_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    body = (
        b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + head + zlib.crc32(head).to_bytes(4, "big")
    )
    (folder / "clip" / f"{number}.png").write_bytes(
        body + (200).to_bytes(4, "big") + b"IDAT" + bytes(200)
    )
    with pytest.raises(SystemExit) as stopped:
        aclam_data(
            capsys,
            "frame",
            folder,
            "--rate",
            5,
            "--episode",
            0,
            "--index",
            number,
            "--out",
            tmp_path / "f.png",
        )
    said = capsys.readouterr().err.strip()
    assert stopped.value.code == 2 and "\n" not in said and not (tmp_path / "f.png").exists()
    assert f"clip: {folder}/clip/{number}.png" in said and "pixels" in said


# --- percentiles ----------------------------------------------------------------------------------


def test_percentiles_are_kept_in_the_users_cache(tmp_path, monkeypatch):
    root, cache = tmp_path / "set", tmp_path / "cache"
    shutil.copytree(LEROBOT["v3.0"], root)
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    monkeypatch.setenv("ACLAM_CACHE", str(cache))
    count, compute = [], declared.measured_quantiles
    monkeypatch.setattr(declared, "measured_quantiles", lambda *a: count.append(1) or compute(*a))
    first = open_dataset(root).meta["quantiles"]
    assert open_dataset(root).meta["quantiles"] == first and len(count) == 1
    told = Declared(layout=ProprioLayout(position=(2, 3)))
    assert open_dataset(root, told).meta["quantiles"] == first
    assert len(count) == 2  # another layout: computed anew
    other = open_dataset(root, Declared(state=("action",))).meta["quantiles"]
    assert len(other["pattern"]["proprio"]["q01"]) == 3 and len(count) == 3

    # nothing is written into a dataset of others
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before
    kept = list(cache.rglob("percentiles_*.json"))
    assert len(kept) == 3
    for file in kept:
        file.write_text(file.read_text()[:30])  # torn
    assert open_dataset(root).meta["quantiles"] == first and len(count) == 4

    # nobody can write there
    monkeypatch.setenv("ACLAM_CACHE", "/proc/nowhere")
    assert open_dataset(root).meta["quantiles"] == first and len(count) == 5


# --- RLDS -----------------------------------------------------------------------------------------

RLDS = FIXTURES / "rlds"
TOLD = Declared(fps=FPS, embodiment="pattern")


@pytest.mark.parametrize("camera", CAMERAS)
def test_every_step_of_a_tfrecord_that_tfrecord_wrote(camera):
    key = {"top": "image", "wrist": "wrist_image"}[camera]
    store = open_dataset(RLDS, dataclasses.replace(TOLD, camera=key))
    assert store.meta["format"] == "rlds" and len(store.meta["cameras"]) == 2
    assert every_frame(store, list(CAMERAS).index(camera)) == sum(LENGTHS)
    again = pickle.loads(pickle.dumps(store.trajectories[3].frames))
    assert np.array_equal(again[[2]], store.trajectories[3].frames[[2]])


def test_compressed_shards_read_the_same(tmp_path):
    shutil.copytree(RLDS, tmp_path / "set")
    for file in (tmp_path / "set").glob("*.tfrecord*"):
        file.write_bytes(gzip.compress(file.read_bytes()))
    assert every_frame(open_dataset(tmp_path / "set", TOLD), 0) == sum(LENGTHS)


def test_a_flipped_byte_is_reported_with_file_and_record(tmp_path):
    shutil.copytree(RLDS, tmp_path / "set")
    file = tmp_path / "set" / "pattern-train.tfrecord-00001-of-00002"
    whole, rng = file.read_bytes(), np.random.default_rng(0)
    first = 16 + int.from_bytes(whole[:8], "little")  # bytes of record 0
    for at in [
        0,
        9,
        12,
        first - 1,
        first,
        len(whole) - 1,
        *rng.integers(0, len(whole), 15).tolist(),
    ]:
        bad = bytearray(whole)
        bad[at] ^= 1 << int(rng.integers(8))
        file.write_bytes(bad)
        with pytest.raises(
            UserError, match=rf"00001-of-00002: record {int(at >= first)}"
        ) as caught:
            open_dataset(tmp_path / "set", TOLD)
        assert "\n" not in str(caught.value)


def test_rlds_without_a_rate_or_with_a_wrong_name_is_refused():
    with pytest.raises(UserError, match=r"declare how many steps there are a second \(fps\)"):
        open_dataset(RLDS)
    with pytest.raises(UserError, match='no numbers "stat".*Did you mean'):
        open_dataset(RLDS, dataclasses.replace(TOLD, state=("stat",)))
    with pytest.raises(UserError, match='no camera "imag"'):
        open_dataset(RLDS, dataclasses.replace(TOLD, camera="imag"))


def test_the_checksum():
    check_crc()


# --- the commands on any format -------------------------------------------------------------------


def aclam_data(capsys, *words) -> str:
    command.main([str(w) for w in words])
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "path", [*LEROBOT.values(), LEROBOT["v3.0"] / "videos"], ids=["v2.1", "v3.0", "videos"]
)
def test_inspect_frame_and_triples_on_foreign_formats(path, tmp_path, capsys):
    shutil.copytree(path, tmp_path / "set")
    report = json.loads(aclam_data(capsys, "inspect", tmp_path / "set", "--json"))
    assert report["frames"] in (sum(LENGTHS), 2 * sum(LENGTHS))
    aclam_data(
        capsys,
        "frame",
        tmp_path / "set",
        "--episode",
        0,
        "--index",
        5,
        "--out",
        tmp_path / "frame.png",
    )
    assert numbers(np.asarray(Image.open(tmp_path / "frame.png"))) == (0, 0, 5)
    drawn = json.loads(aclam_data(capsys, "triples", tmp_path / "set", "--n", 5, "--json"))
    assert len(drawn["triples"]) == 5 and drawn["counts"]["no_rotation"] == 5
    *rows, counts, why = aclam_data(capsys, "triples", tmp_path / "set", "--n", 5).splitlines()
    assert all(row.endswith("no rotation  taken") for row in rows) and len(rows) == 5
    assert "no rotation 5" in counts and "all taken" in why  # and not: kept, kept 0


@pytest.mark.parametrize("to", ["store", "lerobot"])
def test_convert(tmp_path, capsys, to):
    report = json.loads(
        aclam_data(
            capsys, "convert", LEROBOT["v3.0"], "--to", to, "--out", tmp_path / "out", "--json"
        )
    )
    assert report["frames"] == sum(LENGTHS)
    assert every_frame(open_dataset(tmp_path / "out"), 0) == sum(LENGTHS)


# --- which format ---------------------------------------------------------------------------------


def test_formats_are_recognized(tmp_path, squares):
    write_store(tmp_path / "store", squares[:2])
    assert recognize(tmp_path / "store") == "store"
    assert {recognize(p) for p in LEROBOT.values()} == {"lerobot"}
    assert recognize(LEROBOT["v3.0"] / "videos") == recognize(LEROBOT["v3.0"] / TOP) == "video"
    with pytest.raises(UserError, match="is not a dataset"):
        recognize(FIXTURES / "lerobot_v30" / "data")


def test_a_reader_announces_its_format(tmp_path, squares, monkeypatch):
    monkeypatch.setitem(FORMATS, "toy", None)  # so that it is gone after this test

    @reads("toy", lambda folder: (folder / "toy.txt").exists())
    def read_toy(folder: Path, given: Declared, verify: bool, *, broken: Broken):
        size = squares[0].frames[[0]].shape[1:3]
        return as_store(folder, "toy", squares[:2], "image", ["image"], size, [], given)

    (tmp_path / "toy.txt").touch()
    (tmp_path / "0.png").touch()  # names of files alone say less than the mark
    assert recognize(tmp_path) == "toy"
    opened = open_dataset(tmp_path)
    assert (opened.meta["format"], len(opened)) == ("toy", 2) and FORMATS["toy"].has_times
