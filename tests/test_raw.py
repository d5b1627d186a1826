"""Raw AgiBot World and DROID, laid out by tests/fixtures/make_raw.py."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

h5py = pytest.importorskip("h5py")

from aclam.commands import data as command  # noqa: E402
from aclam.core import UserError  # noqa: E402
from aclam.data.declared import Declared  # noqa: E402
from aclam.data.files import Broken  # noqa: E402
from aclam.data.recipe import load_recipe  # noqa: E402
from aclam.data.source import declared_for, open_dataset, recognize  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent / "fixtures"))
import make_raw  # noqa: E402
from pattern import LENGTHS, action, numbers, state, task  # noqa: E402

EPISODES = {"agibot": (0, 2, 1, 3), "droid": (3, 1)}


@pytest.fixture(params=EPISODES)
def root(tmp_path, request):
    return getattr(make_raw, request.param)(tmp_path / "root" / request.param)


def expected_state(name: str, episode: int, n: int) -> np.ndarray:
    values = state(episode, n)
    if name == "droid":
        return np.array([*values[:3], 0, 0, 0, values[4]], np.float32)
    return np.array([*values[:3], *values[:3], 0, 0, 0, 1, 0, 0, 0, 1, *values[3:]], np.float32)


def test_every_frame_with_its_row_as_the_recipe_says(root):
    name = root.name
    assert recognize(root) == name
    declared = declared_for(root, name)
    store = open_dataset(root, declared, verify=True)
    assert store.meta["format"] == f"{name}-raw" and store.meta["camera"] == declared.camera
    right = 0
    for episode, t in zip(EPISODES[name], store.trajectories, strict=True):
        assert (len(t), t.task, t.kind) == (LENGTHS[episode], task(episode), "robot")
        assert t.fps == pytest.approx(declared.fps) and t.layout is not None
        assert t.success is (None if name == "agibot" else episode == 1)
        for n in range(len(t)):
            assert numbers(t.frames[[n]][0]) == (0, episode, n)
            assert np.array_equal(t.proprio[n], expected_state(name, episode, n))
            right += 1
        assert np.allclose(t.action[:, -1 if name == "agibot" else 0], column(name, episode))
    assert right == sum(LENGTHS[episode] for episode in EPISODES[name])


def test_the_gripper_of_droid_has_one_sign(tmp_path):
    """The device's 1 is closed; the reader hands on what was recorded, and the recipe says so."""
    root = make_raw.droid(tmp_path / "droid")
    recipe = load_recipe("droid")
    assert tuple(recipe.proprio.gripper_range) == (1, 0)  # closed, open
    assert "1 - gripper_position" not in recipe.action and "1 closed" in recipe.action
    numbers = next(root.rglob("trajectory.h5"))
    with h5py.File(numbers, "r+") as file:
        closing = np.linspace(0, 1, len(file["action/gripper_position"]))
        file["action/gripper_position"][:] = closing
        file["observation/robot_state/gripper_position"][:] = closing
    store = open_dataset(root, declared_for(root, "droid"))
    t = next(t for t in store.trajectories if numbers.parent.name in t.name)
    assert np.allclose(t.action[:, -1], closing) and np.allclose(t.proprio[:, -1], closing)


def column(name: str, episode: int) -> list[float]:
    which = 2 if name == "agibot" else 0
    return [action(episode, n)[which] for n in range(LENGTHS[episode])]


def test_plan_and_inspect_know_them(root, capsys):
    name = root.name
    mixture = root.parent / "m.yaml"
    mixture.write_text(f"name: only\ndraws: 99\nparts:\n- {{recipe: {name}, weight: 1}}\n")
    status = command.main(["plan", str(mixture), "--root", str(root.parent), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert not status and report["rows"][0]["format"] == name and report["present"] == 1
    command.main(["inspect", str(root), "--recipe", name, "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["lengths"] == [LENGTHS[e] for e in EPISODES[name]]


def test_what_a_recipe_declares_and_is_not_there_is_named(tmp_path, outcome, refused):
    """Case 25: an empty file where the state should be, and another camera."""
    root = make_raw.agibot(tmp_path / "root" / "agibot")
    for file in root.glob("proprio_stats/*/*/*.h5"):
        file.write_bytes(b"")
    mixture = tmp_path / "m.yaml"
    mixture.write_text("name: only\ndraws: 99\nparts:\n- {recipe: agibot, weight: 1}\n")
    says = ("proprio_stats.h5", "state/end/position")
    refused(command.main, ["inspect", root, "--recipe", "agibot"], *says)
    for film in root.glob("observations/*/*/videos/head_color.mp4"):
        film.unlink()
    refused(command.main, ["inspect", root, "--recipe", "agibot"], 'no camera "head"')
    status, out, _ = outcome(command.main, "plan", mixture, "--root", root.parent)
    assert status == 3 and "unfit: agibot" in out
    assert 'no camera "head"' in out and "no state state/end/position" in out


def test_a_rate_is_needed_where_films_play_at_another(tmp_path):
    root = make_raw.droid(tmp_path / "droid")
    with pytest.raises(UserError, match="--recipe droid, or --rate"):
        open_dataset(root)
    told = Declared(fps=15, camera="wrist_image_left")
    assert numbers(open_dataset(root, told).trajectories[1].frames[[4]][0]) == (1, 1, 4)


# --- bad folders: one line ------------------------------------------------------------------------

FIRST = "327/648642"


def longer(root: Path) -> None:
    make_raw.copy_film("top", 1, root / f"observations/{FIRST}/videos/head_color.mp4")


def packed(root: Path) -> None:
    shutil.rmtree(root / "observations")
    (root / "observations" / "327").mkdir(parents=True)
    (root / "observations" / "327" / "648642-685032.tar").write_bytes(bytes(1024))


def write(name: str, content: bytes):
    return lambda root: (root / name).write_bytes(content)


BAD = {
    "a longer film": (longer, "23 frames for 11 rows"),
    "no film": (
        lambda r: (r / f"observations/{FIRST}/videos/head_color.mp4").unlink(),
        f'{FIRST} has no film of head|no camera "head"',
    ),
    "a film is text": (write(f"observations/{FIRST}/videos/head_color.mp4", b"x" * 99), "mp4"),
    "no numbers": (
        lambda r: (r / f"proprio_stats/{FIRST}/proprio_stats.h5").unlink(),
        "proprio_stats.h5.*it should hold state/end/position",
    ),
    "numbers are cut": (
        write(f"proprio_stats/{FIRST}/proprio_stats.h5", b"\x89HDF\r\n\x1a\n" + bytes(99)),
        "is not a whole HDF5 file.*it should hold",
    ),
    "packed": (packed, "unpack .*648642-685032.tar"),
    "words are no list": (write("task_info/task_327.json", b"{}"), "task_327.json"),
    "words are broken": (write("task_info/task_327.json", b"["), "task_327.json"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_folder_is_one_line(tmp_path, what):
    root = make_raw.agibot(tmp_path / "agibot")
    spoil, said = BAD[what]
    spoil(root)
    with pytest.raises(UserError, match=said) as caught:
        open_dataset(root, declared_for(root, "agibot"), verify=True)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


def test_a_bad_episode_is_left_out_where_that_is_allowed(tmp_path):
    root = make_raw.agibot(tmp_path / "agibot")
    longer(root)
    store = open_dataset(root, declared_for(root, "agibot"), broken=Broken(1))
    assert len(store) == 3 and store.meta["left_out"] == [FIRST]
