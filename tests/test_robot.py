"""What a policy's training takes from demonstrations of any robot: camera, squares, hand, gripper."""

import dataclasses
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from aclam.commands import data as data_command
from aclam.core import UserError, read_json
from aclam.data.cache import resize_frames
from aclam.data.lerobot_writer import write_lerobot
from aclam.data.pixels import fit_frames
from aclam.data.source import Declared, fit_of, open_dataset
from aclam.data.store import write_store
from aclam.data.trajectory import synthetic_trajectory
from aclam.lam import LatentActionModel
from aclam.policy.model import TINY, Pair, Policy
from aclam.train import lam as lam_training
from aclam.train import policy as training
from aclam.train.demonstrations import next_grips
from aclam.train.label import label
from aclam.train.label_job import LabelConfig
from aclam.train.robot import grip_ends

TWO = Path(__file__).parent / "fixtures" / "lerobot_v30"  # cameras top and wrist
NAMES = "observation.images.top", "observation.images.wrist"
WAYS = ("squeeze", "crop", "pad")


@pytest.fixture
def two(tmp_path):
    """A dataset of two cameras, and a film."""
    shutil.copytree(TWO, tmp_path / "two")
    write_lerobot(tmp_path / "other", [synthetic_trajectory(s, T=8, size=24) for s in range(2)])
    (tmp_path / "film").mkdir()
    shutil.copy(next((tmp_path / "other").rglob("*.mp4")), tmp_path / "film" / "one.mp4")
    return tmp_path


def settings(data: Path, *words: object) -> training.PolicyTrainConfig:
    fps = open_dataset(data).trajectories[0].fps
    usual = ["--preset", "policy_cpu_wo_lam", "--data", data, "--cache-gib", 0]
    usual += ["--model.control", "recorded", "--model.control-hz", fps]
    return training.settings_from([str(word) for word in (*usual, *words)])


def test_a_policy_says_which_camera_it_takes_and_takes_the_one_it_is_told(two, capsys):
    seen = {}
    for name in (None, "top", "wrist"):
        words = [] if name is None else ["--camera", name]
        made = training.open_data(settings(two / "two", *words))
        said = capsys.readouterr().err
        camera = NAMES[name == "wrist"]
        assert f"{two / 'two'}: frames are of camera {camera}, there are {', '.join(NAMES)}" in said
        seen[name] = made.train.row(0)["frames"], made.description["identity"]
    assert np.array_equal(seen[None][0], seen["top"][0])
    assert seen[None][1] == seen["top"][1] != seen["wrist"][1]  # the same data, and labels
    assert not np.array_equal(seen["top"][0], seen["wrist"][0])
    with pytest.raises(UserError, match='has no camera "wrst": there are top, wrist.*wrist'):
        training.open_data(settings(two / "two", "--camera", "wrst"))


def test_a_camera_is_for_the_folders_that_have_a_choice(two):
    lam = LatentActionModel.from_preset("ac_lam_cpu")
    lam.save_pretrained(two / "lam")
    words = ["--preset", "policy_cpu", "--lam", two / "lam", "--video", two / "film"]
    made = training.open_data(settings(two / "two", *words, "--camera", "wrist"))
    cameras = {kind: about["camera"] for kind, about in made.description["identity"].items()}
    assert cameras == {"folder 1": NAMES[1], "video 1": "video"}
    with pytest.raises(UserError, match='camera "wrist"'):  # where none has, it has no effect
        training.open_data(settings(two / "other", "--camera", "wrist"))


def test_training_and_labels_of_a_camera(two, capsys):
    words = ["--data", str(two / "two"), "--camera", "wrist", "--cache-gib", "0"]
    made = lam_training.open_data(lam_training.settings_from(words))
    assert made.description["identity"]["folder 1"]["camera"] == NAMES[1]
    LatentActionModel.from_preset("ac_lam_cpu").save_pretrained(two / "lam")
    done = label(LabelConfig(two / "lam", two / "two", camera="wrist", out=two / "labels"))
    assert done["data"]["camera"] == NAMES[1]
    with pytest.raises(UserError, match="--camera is for --data"):
        more = ["--mixture", "cpu", "--camera", "top"]
        lam_training.open_data(lam_training.settings_from(more))


def test_what_is_said_of_missing_labels_can_be_pasted(two, monkeypatch, capsys):
    data = two / "two of them"
    (two / "two").rename(data)
    LatentActionModel.from_preset("ac_lam_cpu").save_pretrained(two / "lam")
    words = ["--preset", "policy_cpu", "--lam", two / "lam", "--camera", "wrist", "--odd"]
    config = settings(data, *words)
    training.open_data(config)
    said = capsys.readouterr().err
    command = next(line for line in said.splitlines() if "will be computed" in line)
    command = shlex.split(command.split("To keep them: ")[1])
    assert command[0] == "aclam-label"
    monkeypatch.chdir(two)
    from aclam.train.label import main

    main(command[1:])
    capsys.readouterr()
    training.open_data(config)
    assert "will be computed" not in capsys.readouterr().err


# ---- squares


def wide(seed: int) -> object:
    """Four frames of 48 x 72 pixels in coarse blocks."""
    t = synthetic_trajectory(seed, T=4, size=24)
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 6, 9, 3), dtype=np.uint8)
    return dataclasses.replace(t, frames=blocks.repeat(8, 1).repeat(8, 2))


def seen_by(policy: Policy, frame: np.ndarray) -> torch.Tensor:
    """The picture that the encoder of a policy gets from `act`, in [0, 1]."""
    seen = []

    def sample(images, *others):
        seen.append(images)
        return Pair(None, None)

    policy.sample = sample
    policy.act([frame], ["go"], [np.zeros(policy.config.proprio_dim)], [0])
    return seen[0][0]


@pytest.mark.parametrize("how", ["recipe", "store", "lerobot"])
@pytest.mark.parametrize("fit", WAYS)
def test_act_makes_squares_as_the_demonstrations_did(fit, how, tmp_path):
    raw = [wide(s) for s in range(3)]
    write_store(tmp_path / "raw", raw, quality=100)
    folder = tmp_path / "raw"
    if how != "recipe":
        folder = tmp_path / "copy"
        words = ["convert", tmp_path / "raw", "--out", folder, "--to", how, "--fit", fit]
        words += ["--size", 96]
        data_command.main([str(word) for word in words])
        opened = open_dataset(folder)
    else:
        opened = open_dataset(folder, Declared(fit=fit, size=96))
    assert fit_of(opened) == fit

    config, _ = training.fit_to_data(
        dataclasses.replace(TINY, control="recorded", control_hz=raw[0].fps),
        opened.trajectories,
        None,
        [fit_of(opened)],
    )
    Policy(config).save_pretrained(tmp_path / "policy")
    policy = Policy.from_pretrained(tmp_path / "policy")
    size = policy.config.vlm.image_size
    trained_on = resize_frames(opened.trajectories[0].frames[[0]], size)[0] / 255
    picture = seen_by(policy, raw[0].frames[0])
    error = (picture - trained_on).abs().mean()
    others = [fit_frames(raw[0].frames[:1], other) for other in WAYS if other != fit]
    worse = [(resize_frames(o, size)[0] / 255 - trained_on).abs().mean() for o in others]
    assert error < 0.03 and min(worse) > 3 * error


def test_wide_frames_as_they_are_are_squeezed_and_squares_keep_the_setting(tmp_path):
    write_store(tmp_path / "raw", [wide(0), wide(1)])
    write_store(tmp_path / "square", [synthetic_trajectory(0, T=4, size=24)])
    assert fit_of(open_dataset(tmp_path / "raw")) == "squeeze"
    assert fit_of(open_dataset(tmp_path / "square")) is None
    made = settings(tmp_path / "raw", "--model.fit", "crop")
    assert training.open_data(made).model.fit == "squeeze"


def test_a_latent_action_model_of_a_cropped_copy_says_so(tmp_path):
    write_store(tmp_path / "raw", [wide(s) for s in range(3)])
    data_command.main(
        ["convert", str(tmp_path / "raw"), "--out", str(tmp_path / "copy"), "--fit", "crop"]
    )
    made = lam_training.open_data(lam_training.settings_from(["--data", str(tmp_path / "copy")]))
    assert made.origin["folders"][0]["fit"] == "crop"


# ---- hand and gripper


def test_the_loss_on_the_aim_is_off_where_no_state_has_a_hand(two, tmp_path, capsys):
    made = training.open_data(settings(two / "two"))
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "aim is off" in line)
    assert made.model.lambda_aim == 0 and "recipe.yaml" in line
    policy = training.build(settings(two / "two"), made)
    assert policy.aim is None

    known = [synthetic_trajectory(s, T=8, size=24) for s in range(3)]
    write_store(tmp_path / "known", known)
    made = training.open_data(settings(tmp_path / "known"))
    assert made.model.lambda_aim == 1 and "aim is off" not in capsys.readouterr().err


@pytest.mark.parametrize("low, high", [(0, 1), (-1, 1), (0, 0.04), (100, 0), (0.2, 0.9)])
def test_a_gripper_of_any_units_changes_when_it_does(low, high, tmp_path, capsys):
    opening = np.repeat([1.0, 0.0], 20)  # closes at frame 20
    films = []
    for seed in range(3):
        t = synthetic_trajectory(seed, T=40, size=24, fps=20)
        action = t.action.copy()
        action[:, -1] = low + opening * (high - low)
        films.append(dataclasses.replace(t, action=action))
    write_store(tmp_path / "data", films)
    made = training.open_data(settings(tmp_path / "data"))
    assert made.train.groups[0][0].grips[0] == 25  # a quarter of a second later
    said = "commands of the gripper" in capsys.readouterr().err
    assert said == ((low, high) not in ((0, 1), (0.2, 0.9)))
    ends = grip_ends(films)
    assert ends == ((0, 1) if not said else (min(low, high), pytest.approx(max(low, high))))


def test_a_slow_gripper_changes_in_the_middle_and_a_still_one_never():
    slow = np.concatenate([np.zeros(10), np.linspace(0, 1, 11), np.ones(10)])
    assert next_grips(slow, fps=20)[0] == 16 + 5
    still = dataclasses.replace(synthetic_trajectory(0, T=8), action=np.zeros((8, 7), np.float32))
    assert grip_ends([still]) == (0, 1) and next_grips(still.action[:, -1], fps=20)[0] == 7


def test_a_run_of_before_goes_on(tmp_path):
    """A policy whose settings did not name `fit` squeezed."""
    from aclam.train.checkpoint import DEFAULTS

    assert DEFAULTS["model.fit"] == TINY.fit == "squeeze"
    Policy(TINY).save_pretrained(tmp_path)
    settings = read_json(tmp_path / "config.json", dict)
    assert "squeeze" in str(settings)
