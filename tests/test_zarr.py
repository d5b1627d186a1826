"""Replay buffers of Diffusion Policy and UMI. Fixtures: tests/fixtures/make_zarr.py."""

import importlib.util
import json
import multiprocessing
import pickle
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from aclam.commands import data as command
from aclam.core import UserError
from aclam.data.declared import Declared
from aclam.data.files import Broken
from aclam.data.source import open_dataset, recognize

zarr = pytest.importorskip("zarr")

FIXTURES = Path(__file__).parent / "fixtures"
sys.path.insert(0, str(FIXTURES))
from pattern import LENGTHS, action, numbers, state  # noqa: E402

PUSHT = FIXTURES / "zarr" / "pusht.zarr"
UMI = FIXTURES / "zarr" / "umi.zarr.zip"
TOLD = Declared(fps=10)
needs_jpegxl = pytest.mark.skipif(
    importlib.util.find_spec("imagecodecs") is None, reason="UMI's pictures need imagecodecs"
)


def every_frame(store, camera: int, has_actions: bool = True) -> int:
    """Read every frame, last one first, and all numbers; returns how many frames were right."""
    right = 0
    for episode, t in enumerate(store.trajectories):
        assert len(t) == LENGTHS[episode] and t.fps == pytest.approx(10)
        for n in reversed(range(len(t))):
            assert numbers(t.frames[[n]][0]) == (camera, episode, n)
            assert np.array_equal(t.proprio[n], state(episode, n))
            assert not has_actions or np.array_equal(t.action[n], action(episode, n))
            right += 1
    return right


def test_every_frame_and_state_of_diffusion_policy():
    store = open_dataset(PUSHT, TOLD, verify=True)
    assert store.meta["format"] == "zarr" and store.meta["cameras"] == ["img"]
    assert every_frame(store, 0) == sum(LENGTHS)
    assert store.trajectories[1].name == "pusht/episode 1"


@needs_jpegxl
@pytest.mark.parametrize("camera", [0, 1])
def test_every_frame_and_state_of_umi(camera):
    store = open_dataset(UMI, Declared(fps=10, camera=f"camera{camera}_rgb"), verify=True)
    assert store.meta["cameras"] == ["camera0_rgb", "camera1_rgb"]
    assert every_frame(store, camera, has_actions=False) == sum(LENGTHS)
    assert store.trajectories[0].action is None


def test_the_third_version_of_the_format(tmp_path):
    old = zarr.open_group(str(PUSHT), mode="r")
    new = zarr.open_group(str(tmp_path / "new.zarr"), mode="w", zarr_format=3)
    for name in ("data/img", "data/state", "data/action", "meta/episode_ends"):
        values = old[name][:]
        array = new.create_array(name, shape=values.shape, dtype=values.dtype, chunks="auto")
        array[:] = values
    assert every_frame(open_dataset(tmp_path / "new.zarr", TOLD), 0) == sum(LENGTHS)


def test_a_folder_of_stores_is_a_dataset(tmp_path, capsys):
    for name in ("a.zarr", "b.zarr"):
        shutil.copytree(PUSHT, tmp_path / name)
    assert recognize(tmp_path) == "zarr"
    command.main(["inspect", str(tmp_path), "--rate", "10", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["episodes"] == 2 * len(LENGTHS) and report["format"] == "zarr"
    names = [t.name for t in open_dataset(tmp_path, TOLD).trajectories]
    assert names[0] == "a/episode 0" and len(set(names)) == len(names)


CHOICES = {
    "no rate": (Declared(), "steps there are a second: declare it"),
    "camera": (Declared(fps=10, camera="image"), 'no camera "image": there are img'),
    "state": (Declared(fps=10, state=("stat",)), 'no numbers "stat".*Did you mean "state"'),
}


@pytest.mark.parametrize("what", CHOICES)
def test_what_is_declared_and_not_there_is_named(what):
    declared, said = CHOICES[what]
    with pytest.raises(UserError, match=said):
        open_dataset(PUSHT, declared)


def some(frames) -> bytes:
    return frames[[5, 1, 6]].tobytes()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_see_the_same_frames(method):
    frames = open_dataset(PUSHT, TOLD).trajectories[1].frames
    ours = some(frames)  # the store is open when the workers begin
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert set(pool.map(some, [frames] * 4)) == {ours}
    assert some(frames) == ours
    assert some(pickle.loads(pickle.dumps(frames))) == ours


# --- bad stores: one line -------------------------------------------------------------------------


def metadata(name: str, **values):
    def spoil(root: Path) -> None:
        file = root / name / ".zarray"
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    return spoil


def ends(*values: int):
    def spoil(root: Path) -> None:
        array = zarr.open_group(str(root), mode="a")["meta/episode_ends"]
        array[: len(values)] = values

    return spoil


def write(name: str, content: bytes):
    return lambda root: (root / name).write_bytes(content)


OBJECTS = {"dtype": "|O", "filters": [{"id": "pickle"}], "fill_value": None}
PICKLED = metadata("data/state", compressor={"id": "pickle"})
BAD = {
    "ends go back": (ends(11, 5), "episode_ends does not increase"),
    "ends behind the end": (ends(11, 34, 41, 900), "episode 3.* has 17 pictures"),
    "no ends": (lambda r: shutil.rmtree(r / "meta"), "has no meta/episode_ends"),
    "no data": (lambda r: shutil.rmtree(r / "data"), "is not a whole Zarr store"),
    "no pictures": (lambda r: shutil.rmtree(r / "data" / "img"), "has no pictures"),
    "a chunk is no chunk": (write("data/img/1.0.0.0", b"nothing"), "not a whole Zarr store"),
    "metadata is cut": (write("data/img/.zarray", b'{"shape":'), "not a whole Zarr store"),
    "a pickle": (PICKLED, "whole Zarr store.*pickle|packed as a pickle"),
    "pickled objects": (metadata("data/state", **OBJECTS), "whole Zarr store.*pickle"),
    "a huge chunk": (metadata("data/img", chunks=[1 << 20, 48, 64, 3]), "chunks of .* MiB"),
    "an unknown codec": (metadata("data/img", compressor={"id": "nosuch"}), "whole Zarr store"),
    "short state": (metadata("data/state", shape=[40, 5]), "state has 40 rows"),
}


def _faint(root: Path) -> None:
    array = zarr.open_group(str(root), mode="a")["data/img"]
    array[:] = array[:] / 255


BAD["colors of 0 to 1"] = (_faint, "whole numbers from 0 to 255 expected")


@pytest.fixture
def root(tmp_path) -> Path:
    shutil.copytree(PUSHT, tmp_path / "set.zarr")
    return tmp_path / "set.zarr"


@pytest.mark.parametrize("what", BAD)
def test_a_bad_store_is_one_line(root, what):
    spoil, said = BAD[what]
    spoil(root)
    with pytest.raises(UserError, match=said) as caught:
        open_dataset(root, TOLD, verify=True)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


def test_a_bad_episode_is_left_out_where_that_is_allowed(root):
    ends(11, 34, 41, 900)(root)
    store = open_dataset(root, TOLD, broken=Broken(1))
    assert len(store) == 3 and store.meta["left_out"] == ["set/episode 3"]


def test_a_bad_store_is_left_out_where_that_is_allowed(tmp_path):
    for name in ("a.zarr", "b.zarr"):
        shutil.copytree(PUSHT, tmp_path / name)
    shutil.rmtree(tmp_path / "a.zarr" / "meta")
    store = open_dataset(tmp_path, TOLD, broken=Broken(1))
    assert len(store) == 4 and store.meta["left_out"] == ["a.zarr"]


def test_a_zip_file_that_is_cut_or_no_store(tmp_path):
    (tmp_path / "cut.zarr.zip").write_bytes(UMI.read_bytes()[:2000])
    with pytest.raises(UserError, match="cut.zarr.zip is not a whole Zarr store"):
        open_dataset(tmp_path / "cut.zarr.zip", TOLD)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a.txt", "x")
    with pytest.raises(UserError, match="other.zip is a zip archive, and no dataset: unpack it"):
        open_dataset(tmp_path / "other.zip", TOLD)
