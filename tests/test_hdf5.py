"""Demonstrations in HDF5, as five projects write them. Fixtures: tests/fixtures/make_hdf5.py."""

import json
import multiprocessing
import os
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from aclam.commands import data as command
from aclam.core import UserError
from aclam.data import hdf5_reader
from aclam.data.arrays import ArrayEpisode, ArrayReader, Column, kind_of
from aclam.data.declared import Declared
from aclam.data.files import Broken
from aclam.data.identity import identity
from aclam.data.lerobot_writer import write_lerobot
from aclam.data.source import open_dataset, recognize
from aclam.data.video import VideoWriter

h5py = pytest.importorskip("h5py")

FIXTURES = Path(__file__).parent / "fixtures"
sys.path.insert(0, str(FIXTURES))
from pattern import CAMERAS, LENGTHS, action, numbers, picture, state, task  # noqa: E402

HDF5 = FIXTURES / "hdf5"
SHORT = (0, 2)
RATES = {"libero": 20, "robomimic": 20, "aloha": 50, "laom": 15, "robomind": 30}
EPISODES = {"libero": SHORT, "robomimic": (0, 1, 2, 3), "aloha": (0, 1, 2, 3)}
SECOND = {
    "libero": "eye_in_hand_rgb",
    "robomimic": "robot0_eye_in_hand_image",
    "aloha": "cam_right_wrist",
    "robomind": "camera_wrist",
}
STATED = ("libero", "robomimic")
TOLD = {
    name: Declared(fps=None if name in STATED else rate, bgr=name == "robomind")
    for name, rate in RATES.items()
}


def every_frame(store, name: str, camera: int) -> int:
    """Read every frame, last one first, and all numbers; returns how many frames were right."""
    right = 0
    for episode, t in zip(EPISODES.get(name, SHORT), store.trajectories, strict=True):
        assert len(t) == LENGTHS[episode]
        assert np.allclose(t.timestamp, np.arange(len(t)) / RATES[name])
        for n in reversed(range(len(t))):
            frame = t.frames[[n]][0]
            assert frame.shape[:2] == list(CAMERAS.values())[camera]
            assert numbers(frame) == (camera, episode, n)
            ground = picture(camera, episode, n)[0, 0].astype(int)
            assert np.abs(frame[0, 0] - ground).max() < 12, "the order of colors, or of rows"
            assert np.array_equal(t.proprio[n, :5], state(episode, n))
            assert np.array_equal(t.action[n], action(episode, n))
            right += 1
    return right


@pytest.mark.parametrize("name", RATES)
def test_every_frame_and_state_of_each_layout(name):
    store = open_dataset(HDF5 / name, TOLD[name], verify=True)
    assert store.meta["format"] == f"hdf5-{name}" and store.meta["fps"] == RATES[name]
    assert every_frame(store, name, 0) == sum(LENGTHS[n] for n in EPISODES.get(name, SHORT))
    assert len({t.name for t in store.trajectories}) == len(store)


@pytest.mark.parametrize("name", SECOND)
def test_the_other_camera(name):
    told = Declared(fps=TOLD[name].fps, bgr=TOLD[name].bgr, camera=SECOND[name])
    assert every_frame(open_dataset(HDF5 / name, told), name, 1)


def test_instructions_are_found_where_they_are():
    assert [t.task for t in open_dataset(HDF5 / "libero").trajectories] == [task(0)] * 2
    tasks = [t.task for t in open_dataset(HDF5 / "robomind", TOLD["robomind"]).trajectories]
    assert tasks == [task(n) for n in SHORT]


@pytest.mark.parametrize("name", ["aloha", "laom", "robomind"])
def test_a_rate_that_no_file_states_is_declared(name):
    with pytest.raises(UserError, match="steps there are a second: declare it"):
        open_dataset(HDF5 / name)


def test_a_declared_rate_goes_before_a_stated_one_and_that_is_said(capsys):
    store = open_dataset(HDF5 / "libero", Declared(fps=10))
    assert store.meta["fps"] == 10
    assert "10 steps a second as declared, not 20 as stated" in capsys.readouterr().err


def test_one_file_is_a_dataset_too(tmp_path):
    file = HDF5 / "libero" / "pick_up_the_cube_demo.hdf5"
    store = open_dataset(file)
    assert every_frame(store, "libero", 0)
    assert identity(store)["format"] == "hdf5-libero"
    assert recognize(file) == "hdf5"


def test_what_is_read_is_written_and_read_again(tmp_path):
    store = open_dataset(HDF5 / "libero")
    write_lerobot(tmp_path / "out", store.trajectories)
    again = open_dataset(tmp_path / "out", verify=True)
    for t, u in zip(store.trajectories, again.trajectories, strict=True):
        assert np.array_equal(t.proprio, u.proprio) and t.task == u.task
        rows = range(len(t))
        assert [numbers(f) for f in u.frames[rows]] == [numbers(f) for f in t.frames[rows]]


def test_inspect_says_the_layout(capsys):
    command.main(["inspect", str(HDF5 / "aloha"), "--rate", "50", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["format"] == "hdf5-aloha" and report["episodes"] == len(LENGTHS)
    command.main(["inspect", str(HDF5 / "libero" / "pick_up_the_cube_demo.hdf5"), "--json"])
    assert json.loads(capsys.readouterr().out)["frames"] == sum(LENGTHS[n] for n in SHORT)


# --- choices --------------------------------------------------------------------------------------

CHOICES = {
    "camera": (Declared(camera="agentview"), 'no camera "agentview".*Did you mean "agentview_rgb"'),
    "state": (Declared(state=("ee_state",)), 'no numbers "ee_state".*Did you mean "ee_states"'),
    "action": (Declared(action=("action",)), 'no numbers "action".*Did you mean "actions"'),
    "a camera as state": (Declared(state=("agentview_rgb",)), 'no numbers "agentview_rgb"'),
}


@pytest.mark.parametrize("what", CHOICES)
def test_what_is_declared_and_not_there_is_named(what):
    declared, said = CHOICES[what]
    with pytest.raises(UserError, match=said):
        open_dataset(HDF5 / "libero", declared)


def test_columns_are_declared_by_their_names():
    store = open_dataset(HDF5 / "libero", Declared(state=("gripper_states", "obs/ee_states")))
    t = store.trajectories[0]
    assert t.proprio.shape == (11, 7) and np.array_equal(t.proprio[3, 2:], state(0, 3))
    human = open_dataset(HDF5 / "libero", Declared(kind="human", skip_first=2)).trajectories[1]
    assert human.proprio is None and numbers(human.frames[[0]][0]) == (0, 2, 2)


# --- processes and files --------------------------------------------------------------------------


def some(frames) -> bytes:
    return frames[[5, 1, 6]].tobytes()


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("name", ["libero", "robomimic", "aloha"])
def test_workers_see_the_same_frames(method, name):
    frames = open_dataset(HDF5 / name, TOLD[name]).trajectories[0].frames
    ours = some(frames)  # the file is open when the workers begin
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert set(pool.map(some, [frames] * 4)) == {ours}
    assert some(frames) == ours
    assert some(pickle.loads(pickle.dumps(frames))) == ours


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors in /proc")
def test_open_files_are_bounded(tmp_path):
    for n in range(20):
        shutil.copy(HDF5 / "aloha" / "episode_0.hdf5", tmp_path / f"episode_{n}.hdf5")
    before = len(os.listdir("/proc/self/fd"))
    store = open_dataset(tmp_path, TOLD["aloha"])
    for t in store.trajectories * 2:
        t.frames[[3]]
        assert len(os.listdir("/proc/self/fd")) <= before + 4


def test_a_frame_is_read_without_the_others(tmp_path):
    """An episode of 3 GiB, of which nothing is stored but two frames."""
    with h5py.File(tmp_path / "long.hdf5", "w") as file:
        shape = (1 << 20, 32, 32, 3)
        images = file.create_dataset("0/obs", shape, np.uint8, chunks=(1, *shape[1:]))
        images[7] = 7
        file["0/actions"] = np.zeros((shape[0], 2), np.float32)
    t = open_dataset(tmp_path, Declared(fps=10)).trajectories[0]
    assert t.frames[[7, 8]].max() == 7 and len(t) == 1 << 20


def test_films_beside_the_files_are_not_taken_for_the_data(tmp_path):
    """ALOHA's visualize_episodes.py puts them there; others keep numbers beside their films."""
    film = np.zeros((8, 32, 32, 3), np.uint8)
    for name in ("aloha", "others"):
        (tmp_path / name).mkdir()
        with VideoWriter(tmp_path / name / "episode_0_video.mp4", 10) as out:
            out.append(film)
    shutil.copy(HDF5 / "aloha" / "episode_0.hdf5", tmp_path / "aloha")
    with h5py.File(tmp_path / "others" / "numbers.h5", "w") as file:
        file["observation/robot_state/joint_positions"] = np.zeros((8, 7))
    assert recognize(tmp_path / "aloha") == "hdf5"
    assert recognize(tmp_path / "others") == "video"


def test_without_the_library_the_cure_is_named(monkeypatch):
    find = hdf5_reader.library.__globals__["importlib"].util.find_spec
    missing = lambda name: None if name == "h5py" else find(name)  # noqa: E731
    monkeypatch.setattr(hdf5_reader.library.__globals__["importlib"].util, "find_spec", missing)
    with pytest.raises(UserError, match=r'needs the library h5py.*pip install "aclam\[hdf5\]"'):
        open_dataset(HDF5 / "libero")


# --- bad files: one line that names file and episode ----------------------------------------------

DEMO = "data/demo_1"


def edited(change):
    """Change the LIBERO file in place."""

    def spoil(root: Path) -> None:
        with h5py.File(root / "pick_up_the_cube_demo.hdf5", "a") as file:
            change(file)

    return spoil


def replaced(key: str, values) -> object:
    def change(file) -> None:
        del file[key]
        file[key] = values

    return edited(change)


def cut(root: Path) -> None:
    path = root / "pick_up_the_cube_demo.hdf5"
    path.write_bytes(path.read_bytes()[:100_000])


def _external(file) -> None:
    del file[f"{DEMO}/obs/agentview_rgb"]
    bytes_of = [("/etc/passwd", 0, 7 * 32 * 32 * 3)]
    file.create_dataset(f"{DEMO}/obs/agentview_rgb", (7, 32, 32, 3), np.uint8, external=bytes_of)


def _linked(file) -> None:
    del file[f"{DEMO}/actions"]
    file[f"{DEMO}/actions"] = h5py.ExternalLink("/other.hdf5", "actions")


def _linked_group(key: str):
    """Another file's group, as large as the episode that was there."""

    def change(file) -> None:
        with h5py.File(Path(file.filename).with_name("other.h5x"), "w") as other:
            file.copy(file["data"], other, "data")
        del file[key]
        file[key] = h5py.ExternalLink("other.h5x", key)

    return change


def _linked_by_links(file) -> None:
    _linked_group("data/demo_0")(file)
    file["elsewhere"] = h5py.ExternalLink("other.h5x", "/")
    del file["data/demo_0"]
    file["data/demo_0"] = h5py.SoftLink("/./elsewhere/data/demo_0")


def _in_a_ring(file) -> None:
    file[f"{DEMO}/obs/one"] = h5py.SoftLink(f"/{DEMO}/obs/two")
    file[f"{DEMO}/obs/two"] = h5py.SoftLink(f"/{DEMO}/obs/one")


def _virtual(file) -> None:
    layout = h5py.VirtualLayout((7, 3), np.float64)
    layout[:] = h5py.VirtualSource("/other.hdf5", "a", (7, 3))
    del file[f"{DEMO}/actions"]
    file.create_virtual_dataset(f"{DEMO}/actions", layout)


def _circle(file) -> None:
    file[f"{DEMO}/obs/again"] = file[DEMO]


BAD = {
    "cut off": (cut, "pick_up_the_cube_demo.hdf5 is not a whole HDF5 file"),
    "too few actions": (replaced(f"{DEMO}/actions", np.zeros((5, 3))), "actions has 5 rows for 7"),
    "wider actions": (replaced(f"{DEMO}/actions", np.zeros((7, 4))), "action has 4 numbers a step"),
    "not finite": (
        replaced(f"{DEMO}/actions", np.full((7, 3), np.nan)),
        "demo_1: action of frame 0, column 0, is not finite",
    ),
    "one picture": (
        replaced(f"{DEMO}/obs/agentview_rgb", np.zeros((1, 32, 32, 3), np.uint8)),
        "has 1 picture ",
    ),
    "no such camera": (edited(lambda f: f.pop(f"{DEMO}/obs/agentview_rgb")), "has no pictures"),
    "another file's bytes": (edited(_external), "bytes in another file, refused"),
    "a link to another file": (edited(_linked), "link to another file, refused"),
    "all in another file": (edited(_linked_group("data")), "link to another file, refused"),
    "an episode of another file": (
        edited(_linked_group("data/demo_0")),
        "link to another file, refused",
    ),
    "links to a link": (edited(_linked_by_links), "link to another file, refused"),
    "links in a ring": (edited(_in_a_ring), "a link to links"),
    "a view of another file": (edited(_virtual), "bytes in another file, refused"),
    "groups in a circle": (edited(_circle), "groups inside groups"),
    "another convention": (
        edited(lambda f: f["data"].attrs.modify("macros_image_convention", "sideways")),
        "image convention .*sideways.*opengl or opencv expected",
    ),
    "env_args": (edited(lambda f: f["data"].attrs.modify("env_args", "{")), "env_args is not JSON"),
    "no demonstrations": (edited(lambda f: f.pop("data")), "unknown layout, it holds nothing"),
}


@pytest.fixture
def root(tmp_path) -> Path:
    shutil.copytree(HDF5 / "libero", tmp_path / "set")
    return tmp_path / "set"


@pytest.mark.parametrize("what", BAD)
def test_a_bad_file_is_one_line(root, what):
    spoil, said = BAD[what]
    spoil(root)
    with pytest.raises(UserError, match=said) as caught:
        open_dataset(root, verify=True)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


@pytest.mark.parametrize("what", ["too few actions", "another file's bytes", "one picture"])
def test_a_bad_episode_is_left_out_where_that_is_allowed(root, what):
    BAD[what][0](root)
    store = open_dataset(root, broken=Broken(1))
    assert len(store) == 1 and store.meta["left_out"] == ["pick_up_the_cube_demo/demo_1"]


def test_a_bad_file_is_left_out_where_that_is_allowed(root, capsys):
    shutil.copy(root / "pick_up_the_cube_demo.hdf5", root / "second_demo.hdf5")
    cut(root)
    command.main(["inspect", str(root), "--skip-broken", "1", "--json"])
    done = capsys.readouterr()
    assert json.loads(done.out)["episodes"] == 2
    assert "left out, as broken: 1" in done.err


def test_a_link_within_a_file_is_followed(root):
    with h5py.File(root / "pick_up_the_cube_demo.hdf5", "a") as file:
        file.move(f"{DEMO}/actions", "kept/actions")
        file[f"{DEMO}/actions"] = h5py.SoftLink("/kept/actions")
    every_frame(open_dataset(root), "libero", 0)


def test_a_damaged_picture_is_found_by_verify(tmp_path):
    shutil.copytree(HDF5 / "robomimic", tmp_path / "set")
    file = tmp_path / "set" / "image.hdf5"
    with h5py.File(file, "r") as opened:
        images = opened["data/demo_10/obs/agentview_image"]
        chunk = images.id.get_chunk_info(images.id.get_num_chunks() - 1)
    with open(file, "r+b") as raw:
        raw.seek(chunk.byte_offset + 10)
        raw.write(bytes(40))
    with pytest.raises(UserError, match="image/demo_10|image.hdf5 is not a whole HDF5 file"):
        open_dataset(tmp_path / "set", verify=True)
    assert len(open_dataset(tmp_path / "set", broken=Broken(1))) == len(LENGTHS) - 1


def test_two_layouts_in_one_folder_are_refused(root):
    shutil.copy(HDF5 / "laom" / "walker.hdf5", root)
    with pytest.raises(UserError, match="has the layout of laom, others libero"):
        open_dataset(root)


def test_states_alone_are_no_pictures(tmp_path):
    with h5py.File(tmp_path / "low_dim_v15.hdf5", "w") as file:
        file["data/demo_0/obs/robot0_eef_pos"] = np.zeros((5, 3))
        file["data/demo_0/actions"] = np.zeros((5, 7))
    with pytest.raises(UserError, match="has no pictures.*Render them, or get the copy with"):
        open_dataset(tmp_path, Declared(fps=20))


def test_gray_pictures_of_8_bits_are_called_gray():
    columns = {"images": Column((20, 48, 64), "uint8"), "depth": Column((20, 48, 64), "uint16")}
    assert [kind_of(column) for column in columns.values()] == ["gray", "depth"]
    assert kind_of(Column((20, 48, 64, 1), "uint8")) == "gray"
    assert kind_of(Column((20, 1, 48, 64), "float32")) == "depth"
    reader = ArrayReader(Path("set"), Declared(), None)
    with pytest.raises(UserError, match=r"only gray ones of 8 bits \(images\)"):
        reader.choose_camera(ArrayEpisode(Path("set/1.h5"), "1", "", columns))
