"""Policies of other origin in closed loop: by name, as an object, with predict; and their films."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mujoco")
pytest.importorskip("gymnasium")
av = pytest.importorskip("av")

from aclam.core import UserError  # noqa: E402
from aclam.policy import rollout  # noqa: E402
from aclam.policy.rollout import RolloutConfig, evaluate  # noqa: E402

MODULE = '''
import numpy as np


class Random:
    """Random commands; sees no pictures."""

    image_size = 0
    identity = {"scale": 0.01}

    def act(self, observations, moments):
        assert all("image" not in seen or seen["image"].shape[0] >= 256 for seen in observations)
        return [0.01 * np.random.default_rng(m).standard_normal((4, 7)) for m in moments]


class Space:
    def __init__(self, **boxes):
        self.spaces = boxes


class Box:
    def __init__(self, *shape):
        self.shape = shape


class Learned:
    """As stable-baselines3's policies: predict(observation, deterministic)."""

    observation_space = Space(image=Box(48, 48, 3), proprio=Box(7))

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        assert set(observation) == {"image", "proprio"} and deterministic
        assert observation["image"].shape == (48, 48, 3)
        return np.zeros(7, np.float32), None


def broken():
    return 1 / 0


def wide():
    policy = Random()
    policy.act = lambda observations, moments: [np.zeros((1, 3)) for _ in moments]
    return policy


nothing = 3
'''


@pytest.fixture
def module(tmp_path, monkeypatch) -> str:
    """A module of policies in the present folder, with a name of its own."""
    name = f"policies_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


SHORT = ["--split", "val", "--few", "--episodes", "2", "--envs", "1", "--max-steps", "6", "--json"]


def rules(folder: str) -> dict:
    return json.loads((Path(folder) / "config.json").read_text())


def pictures(film: Path) -> list[np.ndarray]:
    with av.open(str(film)) as video:
        assert float(video.streams.video[0].average_rate) == 20
        return [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]


def test_a_random_policy_by_its_name(module, outcome):
    words = ["--policy", f"{module}:Random", "--out", "out", "--videos", "1", *SHORT]
    status, out, err = outcome(rollout.main, *words)
    assert status == 0, err
    assert json.loads(out)["val"]["S"]["n"] == 2
    found = rules("out")
    assert found["policy"] == f"{module}:Random"
    assert found["player"]["class"] == f"{module}.Random" and len(found["player"]["source"]) > 8
    assert found["player"]["identity"] == {"scale": 0.01}
    frames = pictures(Path("out/videos/val_10.mp4"))
    assert len(frames) == 7 and frames[0].shape == (256, 256, 3)


def test_a_policy_with_predict_by_its_name(module, outcome):
    words = ["--policy", f"{module}:Learned", "--out", "out", "--videos", "1", *SHORT]
    status, out, err = outcome(rollout.main, *words, "--video-size", "320")
    assert status == 0, err
    assert rules("out")["player"]["deterministic"] is True
    assert pictures(Path("out/videos/val_10.mp4"))[0].shape == (320, 320, 3)


def test_another_source_is_another_policy(module, refused, outcome):
    words = ["--policy", f"{module}:Learned", "--out", "out", *SHORT]
    assert outcome(rollout.main, *words)[0] == 0
    other = ["--policy", f"{module}:Random", "--out", "out", *SHORT]
    refused(rollout.main, other, "another rollout")
    expert = ["--policy", "expert", "--out", "out", *SHORT]
    refused(rollout.main, expert, "another rollout")


@pytest.mark.parametrize(
    "factory, says",
    [
        ("broken", "ZeroDivisionError"),
        ("nothing", "int is not a policy"),
        ("nobody", 'there is no "nobody"'),
        ("wide", "(n, 7)"),
    ],
)
def test_what_is_no_policy_is_one_line(module, refused, factory, says):
    words = ["--policy", f"{module}:{factory}", "--out", "out", *SHORT]
    refused(rollout.main, words, says)


def test_a_module_that_is_not_there_is_one_line(module, refused):
    refused(rollout.main, ["--policy", "nowhere_at_all:make", *SHORT], "cannot be imported")


class Still:
    """A policy that does nothing."""

    control = "delta_pose"

    def act(self, observations, moments):
        assert all(seen["image"].shape == (224, 224, 3) for seen in observations)
        return [np.zeros((4, 7)) for _ in moments]


def config(out: Path, **changes) -> RolloutConfig:
    settings = {"split": ("val",), "few": True, "episodes": 1, "envs": 1, "max_steps": 6}
    return RolloutConfig(out=str(out), **(settings | changes))


def test_an_object_and_its_name(tmp_path):
    assert evaluate(config(tmp_path / "a"), Still())["val"]["S"]["n"] == 1
    assert rules(tmp_path / "a")["policy"].endswith(":Still")
    evaluate(config(tmp_path / "b", policy="lazy"), Still())
    assert rules(tmp_path / "b")["policy"] == "lazy"
    with pytest.raises(UserError, match="give this policy a name"):
        evaluate(config(tmp_path / "c", policy="expert"), Still())
    assert not (tmp_path / "c").exists()
    with pytest.raises(UserError, match='the policy commands "delta_pose"'):
        evaluate(config(tmp_path / "d", control="joints"), Still())


def test_the_experts_film_changes_nothing(tmp_path):
    silent = config(tmp_path / "silent", policy="expert", max_steps=0)
    evaluate(silent)
    shown = config(tmp_path / "shown", policy="expert", max_steps=0, videos=1)
    evaluate(shown)
    rows = [Path(c.out, "episodes.jsonl").read_text() for c in (silent, shown)]
    assert rows[0] == rows[1]
    frames = pictures(tmp_path / "shown" / "videos" / "val_10.mp4")
    assert frames[0].shape == (256, 256, 3) and len(frames) == json.loads(rows[0])["steps"] + 1
    assert max(frame.std() for frame in frames) > 10  # not black


@pytest.mark.parametrize(
    "package, split",
    [
        pytest.param("libero", "libero_object", marks=pytest.mark.slow),
        ("metaworld", "metaworld_drawer-open"),
    ],
)
def test_the_experts_film_of_many_tasks(package, split, tmp_path):
    pytest.importorskip(package)
    settings = config(tmp_path, policy="expert", split=(split,), few=False, max_steps=9)
    evaluate(RolloutConfig(**(vars(settings) | {"videos": 1})))
    (film,) = (tmp_path / "videos").glob("*.mp4")
    assert pictures(film)[0].shape == (256, 256, 3)
