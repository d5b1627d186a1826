"""What a dataset is: a change of the data, or of what is declared about them, is never overlooked;
and what is declared and not there, or has no effect, is refused.
"""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from aclam.commands import data as command
from aclam.core import UserError
from aclam.data.cache import cache_frames, decoded_once
from aclam.data.declared import Declared
from aclam.data.identity import identity
from aclam.data.recipe import RECIPES, load_recipe
from aclam.data.rotation import relative_angle
from aclam.data.source import open_dataset
from aclam.data.store import read_store, write_store
from aclam.data.trajectory import FrameArray, synthetic_trajectory
from aclam.train.lam import main as train_lam


@pytest.fixture
def images(tmp_path, monkeypatch):
    """A folder of images, and a cache of its own."""
    monkeypatch.setenv("ACLAM_CACHE", str(tmp_path / "mine"))
    (tmp_path / "images").mkdir()
    for n, frame in enumerate(synthetic_trajectory(0, T=6, size=16).frames.array):
        Image.fromarray(frame).save(tmp_path / "images" / f"{n}.png")
    return tmp_path / "images"


@pytest.fixture
def films(tmp_path):
    """Raw videos of AgiBot as they are unpacked: three films an episode, and the state apart."""
    folder = tmp_path / "root" / "agibot" / "observations" / "327" / "648642" / "videos"
    folder.mkdir(parents=True)
    for name in ("head_color", "hand_left_color", "hand_right_color"):
        (folder / f"{name}.mp4").write_bytes(b"x" * 100)
    parts = "name: only\ndraws: 1000\nparts:\n- {recipe: agibot, weight: 100}\n"
    (tmp_path / "m.yaml").write_text(parts)
    return tmp_path


TOLD = Declared(kind="human", fps=5.0)
OTHERS = {
    "kind": "robot",
    "embodiment": "hand",
    "fps": 4.0,
    "skip_first": 1,
    "bgr": True,
    "tolerance": 0.5,
    "fit": "crop",
}


@pytest.mark.parametrize("name", OTHERS)
def test_each_declaration_is_part_of_the_identity(images, name):
    was = identity(open_dataset(images, TOLD))
    now = identity(open_dataset(images, replace(TOLD, **{name: OTHERS[name]})))
    assert was[f"declared.{name}"] != now[f"declared.{name}"]


def test_frames_of_other_colors_never_come_from_the_cache(images):
    """A recipe is corrected from bgr to rgb: what was decoded before is of no use."""
    one = cache_frames(open_dataset(images, TOLD), 16)[0].frames[[2]]
    other = cache_frames(open_dataset(images, replace(TOLD, bgr=True)), 16)[0].frames[[2]]
    assert np.array_equal(one, other[..., ::-1]) and not np.array_equal(one, other)
    assert sorted(p.name for p in images.iterdir()) == [f"{n}.png" for n in range(6)]


def test_frames_of_a_file_that_changed_never_come_from_the_cache(images):
    before = cache_frames(open_dataset(images, TOLD), 16)[0].frames[[2]]
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(images / "2.png")
    after = cache_frames(open_dataset(images, TOLD), 16)[0].frames[[2]]
    assert before.any() and not after.any()


def test_pixels_decide_the_identity_of_a_store(tmp_path):
    episodes = [synthetic_trajectory(s, T=8, size=16) for s in range(2)]
    write_store(tmp_path / "a", episodes)
    write_store(
        tmp_path / "b", [replace(t, frames=FrameArray(255 - t.frames.array)) for t in episodes]
    )
    a, b = (identity(read_store(tmp_path / name)) for name in "ab")
    assert {name for name in a if a[name] != b[name]} == {"bytes"}
    shutil.move(tmp_path / "a", tmp_path / "elsewhere")
    assert identity(read_store(tmp_path / "elsewhere")) == a


@pytest.mark.parametrize("spoil", [b"", b"torn", b"PK\x03\x04"])
def test_a_torn_cache_is_made_again(tmp_path, spoil):
    write_store(tmp_path / "s", [synthetic_trajectory(0, T=8, size=16)])
    store = read_store(tmp_path / "s")
    whole = cache_frames(store, 8)[0].frames[[3]]
    [file] = (tmp_path / "s" / "cache").glob("*.npy")
    file.write_bytes(spoil)
    assert np.array_equal(cache_frames(store, 8)[0].frames[[3]], whole)


def test_where_no_cache_can_be_the_frames_are_read_all_the_same(tmp_path, monkeypatch, capsys):
    write_store(tmp_path / "s", [synthetic_trajectory(0, T=8, size=16)])
    (tmp_path / "s" / "cache").write_text("a file: no folder can be made here")
    monkeypatch.setenv("ACLAM_CACHE", "/proc/nowhere")
    store = read_store(tmp_path / "s")
    assert decoded_once(store, 8, cache_gib=1) is store.trajectories
    assert "no place for a cache" in capsys.readouterr().err
    assert len(cache_frames(store, 8)[0].frames[[3]]) == 1


def test_an_edited_recipe_is_read_again(tmp_path):
    text = (RECIPES / "bridge" / "recipe.yaml").read_text()
    own = tmp_path / "own.yaml"
    own.write_text(text)
    assert load_recipe(own).camera.channels == "rgb"
    stat = os.stat(own)
    own.write_text(text.replace("channels: rgb", "channels: bgr"))
    os.utime(own, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert load_recipe(own).camera.channels == "bgr"


def test_declared_and_not_there_is_refused_by_all_commands(films, outcome, refused):
    """Case 25: a fifth of the paper's mixture would be read as films of people."""
    root, says = films / "root", ('camera "head"', "state state/end/position")
    mixture = ["--mixture", films / "m.yaml", "--root", root, "--out", films / "run"]
    refused(train_lam, mixture, *says)
    refused(command.main, ["inspect", root / "agibot", "--recipe", "agibot"], *says)
    status, out, _ = outcome(command.main, "plan", films / "m.yaml", "--root", root)
    assert status == 3 and "unfit: video" in out and 'camera "head"' in out
    report = json.loads(
        outcome(command.main, "plan", films / "m.yaml", "--root", root, "--json")[1]
    )
    assert report["missing"] == ["agibot"] and report["share_present"] == 0


def test_options_without_effect_are_refused(tmp_path, refused):
    write_store(tmp_path / "s", [synthetic_trajectory(0, T=8, size=16)])
    convert = ["convert", tmp_path / "s", "--out", tmp_path / "o"]
    refused(command.main, [*convert, "--fps", 2], "--fps is for --to lerobot")
    refused(command.main, [*convert, "--workers", 2], "--workers is for --to lerobot")
    refused(command.main, [*convert, "--camera", "wrist"], 'no camera "wrist"')
    refused(command.main, [*convert, "--rate", 9], "--rate is for RLDS")
    for rate in ("0", "nan", "1e12"):
        refused(command.main, [*convert, "--to", "lerobot", "--fps", rate], "--fps")
    refused(command.main, [*convert, "--to", "lerobot", "--workers", 0], "--workers")
    lerobot = [*convert, "--to", "lerobot", "--rotation", "euler_xyz"]
    refused(command.main, lerobot, "--rotation is for --to store")
    refused(command.main, [*convert, "--rotation", "eulr"], "unknown rotation representation")
    refused(command.main, ["triples", tmp_path / "s", "--n", 10**9], "--n")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("rotation", ["euler_xyz", "quat_wxyz", "rot6d_rows", "matrix"])
def test_a_store_with_its_rotations_in_other_numbers(tmp_path, refused, rotation):
    episodes = [synthetic_trajectory(n, T=12, size=16) for n in range(2)]
    write_store(tmp_path / "s", episodes)
    words = ["convert", str(tmp_path / "s"), "--out", str(tmp_path / "o"), "--rotation", rotation]
    command.main(words)
    pair = [open_dataset(tmp_path / name).trajectories for name in ("s", "o")]
    for before, after in zip(*pair, strict=True):
        layout = after.layout
        assert layout.rotation_repr == rotation and layout.width == after.proprio.shape[1]
        i, j = np.arange(11), np.arange(1, 12)
        turned = [relative_angle(t.proprio, t.layout, i, j) for t in (before, after)]
        assert np.allclose(*turned, atol=2e-3) and np.max(turned) > 0.01
        assert np.array_equal(before.timestamp, after.timestamp)
        far = before.frames[[0, 11]].astype(int) - after.frames[[0, 11]]
        assert np.abs(far).mean() < 3  # encoded once more

    bare = replace(episodes[0], layout=None)
    write_store(tmp_path / "bare", [bare])
    words = ["convert", tmp_path / "bare", "--out", tmp_path / "p", "--rotation", rotation]
    refused(command.main, words, "no rotation is declared")
    assert not (tmp_path / "p").exists()


def test_a_store_that_contradicts_itself_is_refused(tmp_path):
    write_store(tmp_path / "s", [synthetic_trajectory(0, T=8, size=16)])
    file = tmp_path / "s" / "meta.json"
    meta = json.loads(file.read_text())
    wrong = {
        "parts": [],
        "fps": "ten",
        "image_size": [10**9, 10**9],
        "embodiment": 3,
        "layout": {"positions": [0]},
        "frames": 9,
    }
    for name, value in wrong.items():
        file.write_text(json.dumps(meta | {name: value}))
        with pytest.raises(UserError) as error:
            read_store(tmp_path / "s")
        assert "\n" not in str(error.value) and len(str(error.value)) < 400
    away = [{**part, "file": f"../{part['file']}"} for part in meta["parts"]]
    file.write_text(json.dumps(meta | {"parts": away}))
    with pytest.raises(UserError, match="not the name of a part"):
        read_store(tmp_path / "s")
