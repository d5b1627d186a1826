"""Leakage with the motion held equal: the probe and the ratios where the answer is known."""

import numpy as np
import pytest
import torch

from aclam.core import UserError
from aclam.studies import equal_motion
from aclam.studies.equal_motion import EqualMotionConfig, Footage, draw_pairs, measure, scene_probe

SCENES = 4
EPISODES = 10
PAIRS = 40


@pytest.fixture
def footage() -> Footage:
    """Frames of one pixel: red is the scene, green the place of a thing that moves."""
    rng = np.random.default_rng(0)
    n = EPISODES * PAIRS
    places = rng.integers(0, 200, (2, n))
    frames = np.zeros((2, SCENES, n, 3, 1, 1), np.uint8)
    frames[:, :, :, 0, 0, 0] = 60 * np.arange(SCENES)[:, None]
    frames[:, :, :, 1, 0, 0] = places[:, None]
    moved = np.zeros((n, 3))
    moved[:, 0] = places[1] - places[0]
    first, second = torch.from_numpy(frames)
    return Footage(first, second, moved, np.repeat(np.arange(EPISODES), PAIRS))


def motion_only(first, second):
    """What moved, and nothing of the scene."""
    return (second.float() - first.float())[:, 1:2, 0, 0].numpy()


def goal_too(first, second):
    """What moved, and the color of the second frame."""
    colors = second.float()[:, :1, 0, 0].numpy()
    return np.concatenate([motion_only(first, second), colors], 1)


def test_a_latent_of_motion_alone_gives_away_nothing(footage):
    found = measure(motion_only, footage)
    assert found["accuracy"] == found["chance"] == 0.25
    assert (found["still"], found["same_motion"], found["goal"]) == (0, 0, 0)


def test_a_latent_that_holds_the_goal_gives_it_away(footage):
    found = measure(goal_too, footage)
    assert found["accuracy"] > 0.99
    assert found["still"] > 0.3 and found["same_motion"] > 0.2 and found["goal"] > 0.3


def test_an_odd_reading_of_a_color_is_free_of_it_where_the_look_stays(footage):
    def odd(first, second):
        return (goal_too(first, second) - goal_too(second, first)) / 2

    found = measure(odd, footage)
    assert found["accuracy"] == 0.25 and found["same_motion"] == 0
    assert found["still"] > 0.1  # the change of the look itself is seen


def test_episodes_are_held_out_in_all_scenes_at_once():
    """What is told of an episode in one scene cannot be recognized in another."""
    rng = np.random.default_rng(0)
    who = np.repeat(np.arange(20), 10)
    marks = rng.standard_normal((20, 6))[who]  # one of each episode, alike in all scenes
    assert scene_probe(np.stack([marks] * 4), who)["accuracy"] == 0.25


def test_pairs_are_different_frames_near_each_other():
    pairs = draw_pairs(27, 40, np.random.default_rng(0))
    apart = pairs[:, 1] - pairs[:, 0]
    assert pairs.shape == (40, 2) and pairs.min() >= 0 and pairs.max() < 27
    assert (apart != 0).all() and np.abs(apart).max() <= 15
    assert (apart > 0).any() and (apart < 0).any()


def test_a_world_gets_its_own_looks_back():
    pytest.importorskip("mujoco")
    from aclam.sim.emoji_tabletop import EmojiConfig, EmojiTableTop

    world = EmojiTableTop(EmojiConfig(size=32))
    scene = world.reset(0)
    before = world.render()
    for name in equal_motion.SCENES:
        with pytest.raises(ZeroDivisionError), equal_motion.looks(world, name, scene, 0):
            changed = world.render()
            raise ZeroDivisionError
        assert (changed != before).any(), name
        assert (world.render() == before).all(), name


@pytest.mark.parametrize("wrong", [{"episodes": 4}, {"pairs": 1}, {"size": 8}])
def test_too_little_is_refused(tmp_path, wrong):
    with pytest.raises(UserError, match="at least"):
        equal_motion.study(EqualMotionConfig(out=str(tmp_path / "x.json"), **wrong))


def test_a_file_of_another_kind_stays_as_it_is(tmp_path):
    other = tmp_path / "notes.txt"
    other.write_text("mine")
    with pytest.raises(UserError, match="notes.txt"):
        equal_motion.study(EqualMotionConfig(out=str(other)))
    assert other.read_text() == "mine"
