"""Sources of demonstrations besides Emoji Table-Top: Meta-World, robosuite, LIBERO, clips of hands."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from typing import get_args

import av
import numpy as np
import pytest

pytest.importorskip("mujoco")

from aclam.command_line import run_cli
from aclam.commands import data as command
from aclam.core import UserError
from aclam.data.rotation import check_rotation
from aclam.data.store import read_store
from aclam.sim import expert, hands, libero, metaworld, recording, sources
from aclam.sim.prepare import Job, Recorders, prepare, recipe, record_episode

PACKAGES = {"metaworld": "metaworld", "robosuite": "robosuite", "libero": "libero"}


def installed(name: str):
    return pytest.mark.skipif(
        importlib.util.find_spec(PACKAGES[name]) is None,
        reason=f'{PACKAGES[name]} is not installed: pip install "aclam[sources]"',
    )


# -- the common half
# -------------------------------------------------------------------------------------------------


def test_checks_of_the_notebooks():
    assert recording.check_follow_sign() < 0.02
    assert expert.check_nearest_yaw()
    assert libero.check_widths() < 3


def test_recording_has_a_steady_rate_and_ends_after_success():
    count = [0]

    def act():
        count[0] += 1
        return [float(count[0])], count[0] == 5

    shown = recording.record(
        lambda: np.zeros((2, 2, 3), np.uint8), lambda: [0.0], act, recording.Timing(20, 4, 100, 6)
    )
    assert shown.success and len(shown.commands) == 11 and shown.timestamp.tolist() == [0, 0.2, 0.4]
    assert shown.action[:, 0].tolist() == [2.5, 6.5, 10]
    never = recording.record(
        lambda: np.zeros((2, 2, 3), np.uint8),
        lambda: [0.0],
        lambda: ([0.0], False),
        recording.Timing(20, 4, 9),
    )
    assert not never.success and len(never.commands) == 9 and len(never.frames) == 3


def test_global_seed_leaves_no_trace():
    np.random.seed(1)
    expected = np.random.rand()
    np.random.seed(1)
    with recording.global_seed(7):
        np.random.rand(5)
    assert np.random.rand() == expected


def test_absent_simulators_are_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(recording, "load_mujoco", lambda: None)
    monkeypatch.setattr(recording.importlib.util, "find_spec", lambda name: None)
    for name in PACKAGES:
        with pytest.raises(UserError) as e:
            sources.prepare_source(name, tmp_path / name, 3, workers=1, progress=False)
        assert 'pip install "aclam[sources]"' in str(e.value) and "\n" not in str(e.value)
        assert not (tmp_path / name).exists()


def test_a_simulator_that_cannot_be_loaded_is_one_line(monkeypatch):
    def broken(name):
        raise ImportError("libGL.so.1: cannot open shared object file\nand more")

    monkeypatch.setattr(recording, "load_mujoco", lambda: None)
    monkeypatch.setattr(recording.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(recording.importlib, "import_module", broken)
    with pytest.raises(UserError, match="installed but cannot be loaded: libGL.so.1[^\n]*$"):
        recording.load_simulator("robosuite")


def test_mistakes_are_one_line(tmp_path):
    for attempt, words in (
        (lambda: sources.make_source("robosuit"), 'Did you mean "robosuite"'),
        (lambda: metaworld.make_task("door-opn-v3"), 'Did you mean "door-open-v3"'),
        (lambda: libero.find_task("libero_object/10"), "libero_object/0 to libero_spatial/9"),
        (lambda: sources.prepare_source("hands", tmp_path / "x", 8), "7 pieces, not 8"),
        (
            lambda: sources.prepare_source("hands", tmp_path / "x", clips=str(tmp_path)),
            "opencv-doc",
        ),
    ):
        with pytest.raises(UserError) as e:
            attempt()
        assert words in str(e.value) and "\n" not in str(e.value)
    assert not (tmp_path / "x").exists()


def test_names_of_the_command_are_those_of_the_list():
    assert get_args(get_args(command.Prepare.__annotations__["source"])[0]) == sources.NAMES


# -- the real ones, tiny
# ---------------------------------------------------------------------------------------------

TINY = {
    "metaworld": {"variants": ("reach-v3", "button-press-v3", "drawer-close-v3")},
    "robosuite": {"variants": ("Lift-UR5e", "Lift-Jaco", "Lift-Panda")},
    "libero": {"variants": ("libero_spatial/0",)},
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=installed(n)) for n in PACKAGES])
def test_three_episodes(name, tmp_path):
    meta = sources.prepare_source(
        name, tmp_path / "s", 3, size=32, workers=1, progress=False, **TINY[name]
    )
    store = read_store(tmp_path / "s", verify=True)
    assert meta["episodes"] == len(store) == 3 and meta["attempts"] >= 3
    assert meta["success_rate"] == 3 / meta["attempts"]
    for t in store.trajectories:
        assert t.success and t.task and t.scene and t.embodiment and t.kind == "robot"
        assert t.proprio.shape == (len(t), 8) and t.layout == recording.EEF_LAYOUT
        check_rotation(t, max_step_deg=60)
        assert (
            np.linalg.norm(np.diff(t.proprio[:, :3], axis=0), axis=1).max() < 0.3
        )  # m between two frames
        assert (t.proprio[:, 7] >= 0).all() and (t.proprio[:, 7] <= 1).all()
        pixels = t.frames[range(len(t))].astype(int)
        assert (
            pixels.std() > 15 and np.abs(pixels[-1] - pixels[0]).mean() > 0.5
        )  # a scene, and something moved
    assert len({t.embodiment for t in store.trajectories}) == (3 if name == "robosuite" else 1)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=installed(n)) for n in ("metaworld", "robosuite")]
)
def test_an_episode_is_a_function_of_its_seed(name):
    """Whatever was played before, in this stage or in another."""
    source = sources.make_source(name, size=32, **TINY[name])
    job = Job("", source, 6, seed=5)
    with Recorders(source) as recorders:
        record_episode(recorders, job, 0)
        after = record_episode(recorders, job, 1)
    with Recorders(source) as recorders:
        fresh = record_episode(recorders, job, 1)
    assert np.array_equal(after.frames.array, fresh.frames.array) and np.array_equal(
        after.proprio, fresh.proprio
    )
    assert np.array_equal(after.action, fresh.action)


@installed("metaworld")
def test_every_task_of_meta_world_has_words_and_an_expert():
    module = recording.load_simulator("metaworld")
    assert set(module.ALL_V3_ENVIRONMENTS) == set(metaworld.TASKS)
    assert set(recording.load_simulator("metaworld.policies").ENV_POLICY_MAP) >= set(
        metaworld.TASKS
    )


@installed("metaworld")
def test_demonstrations_of_meta_world_play_again_to_the_last_bit(tmp_path):
    """Commands, states, camera and rate of `--use policy` are those of the closed loop."""
    from aclam.sim.metaworld_benchmark import MetaWorldEnv, recorded_start

    chosen = {"variants": ("push-v3", "peg-insert-side-v3")}
    settings = metaworld.metaworld_settings(acts=True) | chosen
    quiet = {"workers": 1, "progress": False, "size": 32, "quality": 100}
    sources.prepare_source("metaworld", tmp_path / "acts", 4, **quiet, **settings)
    env = MetaWorldEnv(image_size=32)
    for t in read_store(tmp_path / "acts").trajectories:
        assert round(t.fps, 6) == env.config.hz
        info, states = env.replay(t)
        assert info == {"S": True, "task": t.info["variant"]}
        assert np.array_equal(states, t.proprio[: len(states)])
        seen = env.reset(options=recorded_start(t))[0]
        assert np.abs(seen["image"].astype(int) - t.frames[[0]][0]).mean() < 2
        assert seen["instruction"] == t.task and seen["proprio"].shape == (8,)
        env.reset(options=recorded_start(t))
        assert not env.play(t.action[:, [1, 0, 2, 3]])[0]["S"]  # the check can fail
    with pytest.raises(UserError, match='unknown option "taks"'):
        env.reset(options={"taks": "push-v3"})
    env.close()


@installed("metaworld")
def test_recordings_of_meta_world_fit_the_closed_loop_too(tmp_path):
    """Without `--use policy` commands are means of four: nearly, and only where it is recorded."""
    from aclam.data.trajectory import synthetic_trajectory
    from aclam.sim.metaworld_benchmark import MetaWorldEnv

    quiet = {"workers": 1, "progress": False, "size": 16}
    sources.prepare_source("metaworld", tmp_path / "m", 3, **quiet, **TINY["metaworld"])
    env = MetaWorldEnv(image_size=0)
    played = [env.replay(t)[0]["S"] for t in read_store(tmp_path / "m").trajectories]
    assert all(played)
    with pytest.raises(UserError, match="no episode of aclam-data prepare metaworld"):
        env.replay(synthetic_trajectory(seed=0, T=4, size=16))
    env.close()


@installed("metaworld")
def test_splits_of_meta_world(tmp_path):
    for name, count in (("mt10", 10), ("mt25", 25), ("mt50", 50), ("reach", 1)):
        tasks = metaworld.tasks_of(f"metaworld_{name}")
        assert len(set(tasks)) == count and set(tasks) <= set(metaworld.TASKS)
    for slip in ("metaworld_reech", "reach", "metaworld_", "metaworld"):
        with pytest.raises(UserError, match="metaworld_mt10, metaworld_mt25"):
            metaworld.tasks_of(slip)
    plain = replace(metaworld.MetaWorldSource(), size=16)
    assert "hold" not in recipe(Job("", plain, 3))  # as in stores that were made before
    assert recipe(Job("", replace(plain, hold=4), 3))["hold"] == 4


@installed("metaworld")
def test_the_command_records_a_split_of_meta_world(outcome, refused, tmp_path):
    words = ["prepare", "metaworld", "--out", tmp_path / "m", "--episodes", "1", "--workers", "1"]
    refused(command.main, [*words, "--split", "metaworld_reech"], '"metaworld_reach"')
    words += ["--size", "16", "--split", "metaworld_reach", "--json"]
    status, out, _ = outcome(command.main, *words, "--use", "policy")
    assert status == 0 and json.loads(out)["fps"] == 20
    (t,) = read_store(tmp_path / "m").trajectories
    assert t.info["variant"] == "reach-v3"
    refused(command.main, words, "hold was 4")


@installed("metaworld")
def test_the_command_answers_with_one_json_object(tmp_path):
    """Simulators print; standard output is the command's."""
    words = f"prepare metaworld --episodes 2 --out {tmp_path / 'm'} --workers 1 --json --size 32".split()
    code = "import sys; from aclam.commands.data import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["episodes"] == 2 and report["fps"] == 20 and report["seconds"] > 0


# -- hands
# -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Two clips of our own, of 15 and 6 seconds, one of them packed like Debian's."""
    folder = tmp_path_factory.mktemp("clips")
    for name, frames in (("box", 450), ("cup", 180)):
        with av.open(str(folder / f"{name}.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=30)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for n in range(frames):
                picture = np.full((48, 64, 3), (n * 255) // frames, np.uint8)
                for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                    container.mux(packet)
            for packet in stream.encode():
                container.mux(packet)
    packed = folder / "deep" / "cup.mp4.gz"
    packed.parent.mkdir()
    packed.write_bytes(hands.gzip.compress((folder / "cup.mp4").read_bytes()))
    (folder / "cup.mp4").unlink()
    return folder


def test_pieces_of_clips_are_human_and_do_not_overlap(clips, tmp_path):
    meta = sources.prepare_source(
        "hands", tmp_path / "h", size=16, workers=1, progress=False, clips=str(clips)
    )
    store = read_store(tmp_path / "h")
    assert len(store) == 7 and meta["fps"] == 10 and meta["layout"] is None
    assert {(t.kind, t.proprio, t.action, len(t)) for t in store.trajectories} == {
        ("human", None, None, 30)
    }
    light = [t.frames[range(30)].mean((1, 2, 3)) for t in store.trajectories[:5]]
    # the video gets lighter from frame to frame: pieces follow one another
    assert all(a.max() < b.min() for a, b in zip(light[:-1], light[1:], strict=True))
    assert (
        str(clips) not in (tmp_path / "h" / "recipe.json").read_text()
    )  # where a clip lay decides nothing


def test_time_stamps_that_contradict_the_order_do_not_shuffle_a_clip(tmp_path):
    """As in OpenCV's box.mp4: frames that are in order, stamps that are reordered once more."""
    with av.open(str(tmp_path / "box.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        packets = []
        for n in range(60):
            picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 4 * n, np.uint8), "rgb24")
            packets += stream.encode(picture)
        packets += stream.encode()
        tick = packets[1].pts - packets[0].pts
        for n, packet in enumerate(packets):
            packet.dts = n * tick
            packet.pts = ((n ^ 1) + 1) * tick
            container.mux(packet)
    with av.open(str(tmp_path / "box.mp4")) as container:
        stamps = [frame.time for frame in container.decode(video=0)]
    assert (np.diff(stamps) < 0).sum() >= 29

    frames, times = hands.decode_clip(tmp_path / "box.mp4", 16)
    light = frames.mean((1, 2, 3))
    assert len(light) == len(stamps) and (np.diff(light) >= 0).all()
    assert light[-1] - light[0] > 200
    assert times.tolist() == sorted(stamps)


def test_a_short_or_broken_clip_is_one_line(clips, tmp_path):
    source = hands.HandsSource(size=16, clips=str(clips))
    with pytest.raises(UserError, match="box.mp4 ends before 18 s"):
        source.open("box/5").attempt((0, 0, 0))
    (tmp_path / "box.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match="cannot be decoded"):
        replace(source, clips=str(tmp_path)).open("box/0")


def test_clips_are_for_hands_only(capsys):
    with pytest.raises(SystemExit) as e:
        run_cli(lambda: command.prepare(command.Prepare("emoji", "x", clips="y")), "aclam-data")
    assert e.value.code == 2 and "--clips is for hands" in capsys.readouterr().err


def test_successes_only_does_not_drop_what_nobody_judged(clips, tmp_path):
    source = hands.HandsSource(size=16, clips=str(clips), variants=("cup/0",))
    assert prepare(Job(str(tmp_path / "h"), source, 1), 1, progress=False)["attempts"] == 1
