"""LeRobot datasets in Lance. Fixture: tests/fixtures/make_lance.sh, by the format's makers."""

import json
import multiprocessing
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lance")

from aclam.core import UserError  # noqa: E402
from aclam.data.declared import Declared  # noqa: E402
from aclam.data.files import Broken  # noqa: E402
from aclam.data.source import open_dataset, recognize  # noqa: E402

FIXTURES = Path(__file__).parent / "fixtures"
sys.path.insert(0, str(FIXTURES))
from pattern import CAMERAS, FPS, LENGTHS, action, numbers, state, task  # noqa: E402

SET = FIXTURES / "lerobot_lance"


@pytest.mark.parametrize("camera", CAMERAS)
def test_every_frame_and_state_is_that_of_the_parquet_dataset(camera):
    assert recognize(SET) == "lance"
    store = open_dataset(SET, Declared(camera=camera), verify=True)
    assert (
        store.meta["format"] == "lance-v3.0" and tuple(store.meta["image_size"]) == CAMERAS[camera]
    )
    right = 0
    for episode, t in enumerate(store.trajectories):
        assert (len(t), t.task) == (LENGTHS[episode], task(episode))
        assert np.array_equal(t.timestamp, np.arange(len(t)) / FPS)
        for n in reversed(range(len(t))):
            assert numbers(t.frames[[n]][0]) == (list(CAMERAS).index(camera), episode, n)
            assert np.array_equal(t.proprio[n], state(episode, n))
            assert np.array_equal(t.action[n], action(episode, n))
            right += 1
    assert right == sum(LENGTHS)


def some(frames) -> bytes:
    return frames[[5, 1, 6]].tobytes()


def test_a_new_process_reads_and_a_forked_one_refuses():
    frames = open_dataset(SET).trajectories[1].frames
    ours = some(frames)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(some, [frames]) == [ours]
    child = os.fork()
    if not child:
        status = 1
        try:
            some(frames)
        except UserError as e:
            status = 7 if "forked" in str(e) else 8
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def edit_info(root: Path, **values) -> None:
    file = root / "meta" / "info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def cut(table: str):
    def spoil(root: Path) -> None:
        for file in (root / table / "data").iterdir():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    return spoil


def no_manifest(root: Path) -> None:
    shutil.rmtree(root / "frames.lance" / "_versions")


BAD = {
    "no frames": (lambda r: shutil.rmtree(r / "frames.lance"), "no such table: .*frames.lance"),
    "no films": (lambda r: shutil.rmtree(r / "videos.lance"), "no such table: .*videos.lance"),
    "no manifest": (no_manifest, "frames.lance is not a whole table"),
    "frames are cut": (cut("frames.lance"), "not a whole table of Lance|rows of it"),
    "films are cut": (cut("videos.lance"), "videos.lance"),
    "a column is missing": (
        lambda r: edit_info(
            r, features=json.loads((r / "meta/info.json").read_text())["features"] | MORE
        ),
        "has no column more",
    ),
    "totals": (lambda r: edit_info(r, total_frames=5), "total_frames 5"),
}
MORE = {"more": {"dtype": "float32", "shape": [2], "names": None}}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_dataset_is_one_line(tmp_path, what):
    shutil.copytree(SET, tmp_path / "set")
    spoil, said = BAD[what]
    spoil(tmp_path / "set")
    told = Declared(state=("more",)) if what == "a column is missing" else Declared()
    with pytest.raises(UserError, match=said) as caught:
        open_dataset(tmp_path / "set", told, verify=True)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


def test_a_bad_episode_is_left_out_where_that_is_allowed(tmp_path):
    shutil.copytree(SET, tmp_path / "set")
    cut("videos.lance")(tmp_path / "set")
    with pytest.raises(UserError, match="used up"):
        open_dataset(tmp_path / "set", broken=Broken(1))
