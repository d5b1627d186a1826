"""Recordings in MCAP. Fixtures: tests/fixtures/make_mcap.py, written by the format's writers."""

import base64
import json
import multiprocessing
import os
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mcap")
pytest.importorskip("mcap_ros2")
pytest.importorskip("mcap_protobuf")

from aclam.commands import data as command  # noqa: E402
from aclam.core import UserError  # noqa: E402
from aclam.data.declared import Declared  # noqa: E402
from aclam.data.files import Broken  # noqa: E402
from aclam.data.source import open_dataset, recognize  # noqa: E402

FIXTURES = Path(__file__).parent / "fixtures"
sys.path.insert(0, str(FIXTURES))
from pattern import CAMERAS, FPS, LENGTHS, action, numbers, state, task  # noqa: E402

ROOT = FIXTURES / "mcap"
SHORT = (0, 2)
TOLD = {
    "ros2": Declared(action=("/command",)),
    "protobuf": Declared(),
    "json": Declared(state=("/arm.pose", "/arm.rest")),
}


@pytest.mark.parametrize("name", TOLD)
def test_every_picture_and_the_state_of_its_time(name):
    store = open_dataset(ROOT / name, TOLD[name], verify=True)
    episodes = range(len(LENGTHS)) if name == "ros2" else SHORT
    assert store.meta["format"] == "mcap" and store.meta["image_size"] == [48, 64]
    right = 0
    for episode, t in zip(episodes, store.trajectories, strict=True):
        assert len(t) == LENGTHS[episode] and t.name == f"episode_{episode}"
        assert t.task == (task(episode) if name == "ros2" else "")
        assert np.allclose(t.timestamp, np.arange(len(t)) / FPS)
        for n in reversed(range(len(t))):
            assert numbers(t.frames[[n]][0]) == (0, episode, n)
            assert np.array_equal(t.proprio[n], state(episode, n))
            if name == "ros2":
                assert np.allclose(t.action[n], action(episode, n))
            right += 1
    assert right == sum(LENGTHS[episode] for episode in episodes)


def test_the_other_camera_is_raw_and_depth_is_none():
    store = open_dataset(ROOT / "ros2", Declared(camera="wrist/image_raw"))
    assert store.meta["cameras"] == ["/top/image_raw/compressed", "/wrist/image_raw"]
    assert tuple(store.meta["image_size"]) == CAMERAS["wrist"]
    assert numbers(store.trajectories[1].frames[[9]][0]) == (1, 1, 9)
    with pytest.raises(UserError, match="/top/depth is a depth map"):
        open_dataset(ROOT / "ros2", Declared(camera="/top/depth"))
    with pytest.raises(UserError, match='no camera "/left"'):
        open_dataset(ROOT / "ros2", Declared(camera="/left"))


@pytest.mark.parametrize("rate", [5, 20])
def test_a_declared_rate_takes_the_newest_of_each_topic(rate):
    t = open_dataset(ROOT / "ros2", Declared(fps=rate)).trajectories[1]
    assert t.fps == pytest.approx(rate)
    start = 0.0  # the first picture; the joints spoke before
    for n in range(len(t)):
        newest = int((start + n / rate) * FPS + 1e-9)
        assert numbers(t.frames[[n]][0]) == (0, 1, newest)
        late = int((start + n / rate) * FPS + 0.1 + 1e-9)  # a state comes 10 ms before its picture
        assert np.array_equal(t.proprio[n], state(1, late))
    assert len(t) == (LENGTHS[1] - 1) * rate // FPS + 1


def test_the_command_inspects_at_a_rate(capsys):
    command.main(["inspect", str(ROOT / "ros2" / "episode_1.mcap"), "--rate", "5", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["format"] == "mcap" and report["lengths"] == [12]
    assert recognize(ROOT / "json") == "mcap"


def test_a_field_of_a_message_and_what_is_not_there():
    store = open_dataset(ROOT / "ros2", Declared(state=("joint_states.velocity", "/command")))
    assert store.trajectories[0].proprio.shape == (LENGTHS[0], 8)
    with pytest.raises(UserError, match="no topic .*/legs"):
        open_dataset(ROOT / "ros2", Declared(state=("/legs",)))
    with pytest.raises(UserError, match="no numbers in effort"):
        open_dataset(ROOT / "ros2", Declared(state=("/joint_states.effort",)))
    human = open_dataset(ROOT / "ros2", Declared(kind="human")).trajectories[0]
    assert human.proprio is None


def recording(path: Path, states: list[tuple[list[str], list[float]]], start: int = 10**9) -> Path:
    """Pictures and joint states at 10 Hz, in JSON."""
    from make_mcap import channel, jpeg, put
    from mcap.writer import Writer

    data = base64.b64encode(jpeg(np.zeros((32, 32, 3), np.uint8))).decode()
    path.parent.mkdir(exist_ok=True)
    with open(path, "wb") as file:
        out = Writer(file)
        out.start()
        top = channel(out, "/top", "foxglove.CompressedImage")
        joints = channel(out, "/joints", "sensor_msgs/msg/JointState")
        arm = channel(out, "/arm", "arm.State")
        for n, (names, values) in enumerate(states):
            time = start + n * 10**8 if n else 10**9
            put(out, joints, time, {"name": names, "position": values})
            put(out, arm, time, dict(zip(names, values, strict=True)))
            put(out, top, time, {"data": data, "format": "jpeg"})
        out.finish()
    return path


@pytest.mark.parametrize("told", [Declared(), Declared(state=("/arm",))])
def test_numbers_stay_in_their_columns_whatever_their_order_in_a_message(tmp_path, told):
    """Drivers order joints anew at each start; JSON has no order."""
    recording(tmp_path / "set" / "0.mcap", [(["b", "a"], [2, 1]), (["a", "b"], [1, 2])])
    recording(tmp_path / "set" / "1.mcap", [(["a", "b"], [3, 4]), (["b", "a"], [4, 3])])
    one, two = open_dataset(tmp_path / "set", told).trajectories
    assert one.proprio.tolist() == [[2, 1]] * 2 and two.proprio.tolist() == [[4, 3]] * 2


@pytest.mark.parametrize("told", [Declared(), Declared(state=("/arm",))])
@pytest.mark.parametrize("files", [["0"], ["0", "1"]])
def test_two_arms_on_one_topic_are_refused(tmp_path, told, files):
    arms = [(["left"], [1.0]), (["right"], [2.0])]
    for n, name in enumerate(files):
        states = arms if len(files) == 1 else [arms[n]] * 3
        recording(tmp_path / "set" / f"{name}.mcap", states)
    with pytest.raises(UserError, match="speaks of .*right.*before of .*left"):
        open_dataset(tmp_path / "set", told)


def test_a_clock_that_was_set_is_one_line(tmp_path):
    """At 0 for the first message, then at the true time: 54 years at 30 Hz fill the memory."""
    path = recording(tmp_path / "a.mcap", [(["a"], [1])] * 3, 1_700_000_000 * 10**9)
    with pytest.raises(UserError, match="a: [0-9]+ steps at the declared rate, refused"):
        open_dataset(path, Declared(fps=30))


def test_a_state_that_is_not_chosen_is_said(capsys):
    store = open_dataset(ROOT / "json")
    assert store.trajectories[0].proprio is None
    assert capsys.readouterr().err.count("no state is read") == 1
    open_dataset(ROOT / "ros2")
    assert "no state" not in capsys.readouterr().err


def some(frames) -> bytes:
    return frames[[5, 1, 6]].tobytes()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_see_the_same_frames(method):
    frames = open_dataset(ROOT / "ros2").trajectories[1].frames
    ours = some(frames)  # the recording is open when the workers begin
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert set(pool.map(some, [frames] * 4)) == {ours}
    assert some(pickle.loads(pickle.dumps(frames))) == some(frames) == ours


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors in /proc")
def test_open_files_are_bounded(tmp_path):
    for n in range(12):
        shutil.copy(ROOT / "ros2" / "episode_0.mcap", tmp_path / f"{n}.mcap")
    before = len(os.listdir("/proc/self/fd"))
    for t in open_dataset(tmp_path).trajectories * 2:
        t.frames[[3]]
        assert len(os.listdir("/proc/self/fd")) <= before + 5


# --- bad recordings: one line ---------------------------------------------------------------------


def cut(share: float):
    def spoil(file: Path) -> None:
        data = file.read_bytes()
        file.write_bytes(data[: int(share * len(data))])

    return spoil


def flip(at: float):
    def spoil(file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[int(at * len(data))] ^= 0x55
        file.write_bytes(data)

    return spoil


def other(topic: str, schema: str, encoding: str, data: bytes):
    """A recording of one topic."""

    def spoil(file: Path) -> None:
        from mcap.writer import Writer

        with open(file, "wb") as opened:
            out = Writer(opened)
            out.start()
            number = out.register_schema(schema, "jsonschema", b"{}")
            channel = out.register_channel(topic, encoding, number)
            for n in range(3):
                out.add_message(channel, n * 10**8, data, n * 10**8)
            out.finish()

    return spoil


IMAGE = "foxglove.CompressedImage"
RAW = b'{"width": %d, "height": 2, "encoding": "%s", "step": 6, "data": "AAAA"}'
BAD = {
    "cut": (cut(0.5), "episode_1.mcap is not a whole MCAP file.*mcap recover"),
    "empty": (lambda f: f.write_bytes(b""), "is not a whole MCAP file"),
    "text": (lambda f: f.write_text("hello" * 99), "is not a whole MCAP file"),
    "no pictures": (other("/arm", "arm.State", "json", b"{}"), "no messages of|no topic with"),
    "ROS 1": (other("/top/image_raw/compressed", IMAGE, "ros1", b""), "encoded as .*ros1"),
    "not JSON": (other("/top/image_raw/compressed", IMAGE, "json", b"{"), "episode_1"),
    "no picture": (
        other("/top/image_raw/compressed", IMAGE, "json", b'{"data": "AAAA"}'),
        "frame 0",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_recording_is_one_line_or_left_out(tmp_path, what):
    shutil.copytree(ROOT / "ros2", tmp_path / "set")
    spoil, said = BAD[what]
    spoil(tmp_path / "set" / "episode_1.mcap")
    told = Declared(kind="human")
    with pytest.raises(UserError, match=said) as caught:
        open_dataset(tmp_path / "set", told, verify=True)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
    store = open_dataset(tmp_path / "set", told, broken=Broken(1))
    assert len(store) == 3 and store.meta["left_out"] == ["episode_1.mcap"]


@pytest.mark.parametrize("at", np.linspace(0, 0.999, 12).tolist())
def test_a_byte_that_is_wrong_is_one_line_or_nothing(tmp_path, at):
    shutil.copy(ROOT / "ros2" / "episode_0.mcap", tmp_path / "a.mcap")
    flip(at)(tmp_path / "a.mcap")
    try:
        open_dataset(tmp_path, verify=True)
    except UserError as e:
        assert "\n" not in str(e) and len(str(e)) < 700


RAWS = {
    "bytes that are missing": (RAW % (2, b"rgb8"), "3 bytes for 2 x 2"),
    "an unknown encoding": (RAW % (2, b"yuv422"), "encoding .*yuv422"),
    "a width below zero": (RAW % (-2, b"rgb8"), "its width is -2"),
    "gigapixels": (RAW % (1 << 30, b"rgb8"), "claims"),
}


@pytest.mark.parametrize("what", RAWS)
def test_a_raw_picture_that_cannot_be_one(tmp_path, what):
    data, said = RAWS[what]
    other("/top", "foxglove.RawImage", "json", data)(tmp_path / "a.mcap")
    with pytest.raises(UserError, match=said):
        open_dataset(tmp_path / "a.mcap", Declared(kind="human"))
