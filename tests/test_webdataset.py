"""Films in tar shards. Fixture: tests/fixtures/make_webdataset.py, written by webdataset."""

import gzip
import io
import json
import multiprocessing
import os
import pickle
import shutil
import sys
import tarfile
from pathlib import Path

import pytest

from aclam.commands import data as command
from aclam.core import UserError
from aclam.data.declared import Declared
from aclam.data.files import Broken
from aclam.data.source import open_dataset, recognize

FIXTURES = Path(__file__).parent / "fixtures"
sys.path.insert(0, str(FIXTURES))
from pattern import FPS, LENGTHS, numbers, task  # noqa: E402

SHARDS = FIXTURES / "webdataset"


def every_frame(store) -> int:
    right = 0
    for episode, t in enumerate(store.trajectories):
        assert (len(t), t.task, t.kind) == (LENGTHS[episode], task(episode), "human")
        assert t.fps == pytest.approx(FPS) and t.proprio is None
        for n in reversed(range(len(t))):
            assert numbers(t.frames[[n]][0]) == (0, episode, n)
            right += 1
    return right


def test_every_frame_and_caption():
    store = open_dataset(SHARDS, verify=True)
    assert store.meta["format"] == "webdataset" and store.meta["image_size"] == [48, 64]
    assert every_frame(store) == sum(LENGTHS)
    assert store.trajectories[3].name == "00001/000010003"
    assert every_frame(open_dataset(SHARDS)) == sum(LENGTHS)  # by the index that is there now


def test_one_shard_is_a_dataset(capsys):
    assert recognize(SHARDS / "00001.tar") == "webdataset"
    command.main(["inspect", str(SHARDS / "00001.tar"), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["lengths"] == list(LENGTHS[2:]) and report["kinds"] == ["human"]


def test_a_rate_is_refused_and_what_is_not_there_named():
    with pytest.raises(SystemExit):
        command.main(["inspect", str(SHARDS), "--rate", "10"])
    with pytest.raises(UserError, match='camera "top"'):
        open_dataset(SHARDS, Declared(camera="top", kind="human"))


def some(frames) -> bytes:
    return frames[[5, 1, 6]].tobytes()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_see_the_same_frames(method):
    frames = open_dataset(SHARDS).trajectories[1].frames
    ours = some(frames)  # the shard is open when the workers begin
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert set(pool.map(some, [frames] * 4)) == {ours}
    assert some(pickle.loads(pickle.dumps(frames))) == some(frames) == ours


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors in /proc")
def test_open_files_are_bounded(tmp_path):
    for n in range(12):
        shutil.copy(SHARDS / "00000.tar", tmp_path / f"{n:05d}.tar")
    before = len(os.listdir("/proc/self/fd"))
    for t in open_dataset(tmp_path).trajectories * 2:
        t.frames[[3]]
        assert len(os.listdir("/proc/self/fd")) <= before + 16


def test_no_film_is_lost_for_the_dots_in_its_name(tmp_path):
    """A key ends at the first dot: two films of one key are two episodes."""
    with tarfile.open(SHARDS / "00000.tar") as shard:
        film = next(part for part in shard if part.name.endswith(".mp4"))
        data = shard.extractfile(film).read()
    contents = {"a.mp4": data, "clip.1.mp4": data, "clip.2.mp4": data, "take_1.5x.MP4": data}
    contents["clip.txt"] = b"a clip"
    with tarfile.open(tmp_path / "0.tar", "w") as shard:
        for name, content in contents.items():
            part = tarfile.TarInfo(name)
            part.size = len(content)
            shard.addfile(part, io.BytesIO(content))
    found = {t.name: t.task for t in open_dataset(tmp_path).trajectories}
    assert found == {"0/a": "", "0/clip.1": "a clip", "0/clip.2": "a clip", "0/take_1.5x": ""}


# --- bad shards: one line -------------------------------------------------------------------------


def cut(root: Path) -> None:
    data = (root / "00001.tar").read_bytes()
    (root / "00001.tar").write_bytes(data[: len(data) // 3])


def packed(root: Path) -> None:
    data = (root / "00001.tar").read_bytes()
    (root / "00001.tar").write_bytes(gzip.compress(data))


def other(root: Path) -> None:
    with tarfile.open(root / "00001.tar", "w") as shard:
        part = tarfile.TarInfo("a/notes.txt")
        part.size = 5
        shard.addfile(part, io.BytesIO(b"hello"))


def no_film(root: Path) -> None:
    with tarfile.open(root / "00001.tar", "w") as shard:
        part = tarfile.TarInfo("0.mp4")
        part.size = 5000
        shard.addfile(part, io.BytesIO(bytes(5000)))


def linked(root: Path) -> None:
    with tarfile.open(root / "00001.tar", "w") as shard:
        part = tarfile.TarInfo("0.mp4")
        part.type = tarfile.SYMTYPE
        part.linkname = "/etc/passwd"
        shard.addfile(part)


BAD = {
    "cut": (cut, "00001.tar"),
    "packed": (packed, "is not a whole tar file.*unpack it, where it is gzipped"),
    "another archive": (other, "is not a shard of films: it holds .?a/notes"),
    "no film": (no_film, "00001.tar: 0.mp4 is not a whole video file"),
    "a link": (linked, "is not a shard of films: it holds nothing"),
    "nothing": (lambda r: (r / "00001.tar").write_bytes(b""), "is not a whole tar file"),
    "text": (lambda r: (r / "00001.tar").write_text("hello" * 500), "is not a whole tar file"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_shard_is_one_line_or_left_out(tmp_path, what):
    shutil.copytree(SHARDS, tmp_path / "set")
    spoil, said = BAD[what]
    spoil(tmp_path / "set")
    with pytest.raises(UserError, match=said) as caught:
        open_dataset(tmp_path / "set", verify=True)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
    assert len(open_dataset(tmp_path / "set", broken=Broken(2))) >= 2
