"""The environments as gymnasium's users expect them: by name, in vectors, checked, recorded."""

import subprocess
import sys
import warnings

import numpy as np
import pytest

gymnasium = pytest.importorskip("gymnasium")
pytest.importorskip("mujoco")

import aclam  # noqa: E402  (what is tested: it registers)
from aclam.environments import ENVIRONMENTS  # noqa: E402

TABLE = "aclam/EmojiTableTop-v0"
SMALL = {"image_size": 32, "split": "train", "few": True}


def said(source: str) -> str:
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_is_enough():
    source = (
        f"import aclam, gymnasium; e = gymnasium.make({TABLE!r}, image_size=0); print(e.spec.id)"
    )
    assert said(source) == TABLE


def test_importing_the_package_costs_nothing():
    source = (
        "import time; start = time.process_time(); import aclam, sys; "
        "print(time.process_time() - start, 'gymnasium' in sys.modules, 'numpy' in sys.modules)"
    )
    seconds, *imported = said(source).split()
    assert float(seconds) < 1 and imported == ["False", "False"]


def test_the_limits_are_those_of_the_settings():
    from aclam.sim.benchmark import EnvConfig
    from aclam.sim.libero import LiberoSource
    from aclam.sim.metaworld_benchmark import MetaWorldConfig

    assert aclam.__version__
    steps = {name: steps for name, (_, steps) in ENVIRONMENTS.items()}
    assert steps == {
        TABLE: EnvConfig.max_steps,
        "aclam/Libero-v0": LiberoSource.limit,
        "aclam/MetaWorld-v0": MetaWorldConfig.max_steps,
    }
    for name in ENVIRONMENTS:
        assert gymnasium.spec(name).max_episode_steps == steps[name]


def lasts(most: int = 12, **settings) -> int:
    """Commands until an episode of doing nothing is cut off; `most` at most."""
    env = gymnasium.make(TABLE, image_size=0, few=True, control="delta_pose", **settings)
    env.reset(seed=0)
    steps = 0
    while steps < most:
        steps += 1
        *_, terminated, truncated, _ = env.step(np.zeros(7, np.float32))
        assert not terminated
        if truncated:
            break
    env.close()
    return steps


def test_an_episode_is_as_long_as_gymnasium_is_told():
    assert lasts(max_episode_steps=5) == 5
    assert lasts(max_steps=4) == 4


def test_more_steps_than_usual():
    assert lasts(260, max_episode_steps=230) == 230


def test_check_env_passes():
    env = gymnasium.make(TABLE, **SMALL, render_mode="rgb_array", render_size=64)
    from gymnasium.utils.env_checker import check_env

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*not within the observation space.*")
        warnings.filterwarnings("ignore", message=".*A Box observation space.*")
        check_env(env.unwrapped)
    env.close()


def test_make_vec():
    envs = gymnasium.make_vec(TABLE, num_envs=2, vectorization_mode="sync", **SMALL)
    observation, _ = envs.reset(seed=[3, 4])
    assert observation["image"].shape == (2, 32, 32, 3)
    assert observation["proprio"].shape == (2, 7) and len(observation["instruction"]) == 2
    observation, reward, terminated, truncated, _ = envs.step(np.zeros((2, 7), np.float32))
    assert reward.shape == (2,) and not terminated.any() and not truncated.any()
    assert envs.spec.max_episode_steps == 200
    envs.close()


def test_make_vec_in_processes():
    """A fork of a process that has drawn inherits a renderer that does not work: spawn them."""
    source = f"""
import aclam, gymnasium, numpy
envs = gymnasium.make_vec({TABLE!r}, num_envs=2, vectorization_mode="async",
    vector_kwargs={{"context": "spawn"}}, **{SMALL})
envs.reset(seed=[3, 4])
observation, *_ = envs.step(numpy.zeros((2, 7), numpy.float32))
print(observation["image"].shape, observation["image"].any())
envs.close()
"""
    assert said(source) == "(2, 32, 32, 3) True"


def test_pictures_for_people_have_their_own_size():
    env = gymnasium.make(TABLE, **SMALL, render_mode="rgb_array", render_size=128)
    seen, _ = env.reset(seed=1)
    large = env.render()
    assert seen["image"].shape == (32, 32, 3) and large.shape == (128, 128, 3)
    small = large.reshape(32, 4, 32, 4, 3).mean((1, 3))
    assert np.abs(small - seen["image"]).mean() < 8  # the same scene, cards and cloth
    env.reset(seed=2)
    assert np.abs(env.render().astype(int) - large).mean() > 1
    env.close()
    blind = gymnasium.make(TABLE, image_size=0, few=True, render_mode="rgb_array")
    blind.reset(seed=1)
    assert blind.render().shape == (256, 256, 3)
    blind.close()


def test_record_video(tmp_path):
    pytest.importorskip("moviepy")
    av = pytest.importorskip("av")
    env = gymnasium.make(TABLE, **SMALL, render_mode="rgb_array", render_size=256)
    env = gymnasium.wrappers.RecordVideo(env, str(tmp_path), episode_trigger=lambda n: True)
    env.reset(seed=0)
    for _ in range(6):
        env.step(np.zeros(7, np.float32))
    env.close()
    (film,) = tmp_path.glob("*.mp4")
    with av.open(str(film)) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 7 and frames[0].shape == (256, 256, 3)
