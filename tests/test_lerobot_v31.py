"""LeRobot v3.1: columns of language and depth videos beside what v3.0 has; and storages that are
refused with a way out. See tests/fixtures/make_v31.py.
"""

import sys
from pathlib import Path

import numpy as np
import pytest

from aclam.core import UserError
from aclam.data.declared import Declared
from aclam.data.lerobot_reader import read_lerobot
from aclam.data.source import open_dataset

FIXTURES = Path(__file__).parent / "fixtures"
sys.path.insert(0, str(FIXTURES))
from make_v31 import info_of, v31, write_info  # noqa: E402
from pattern import FPS, LENGTHS, action, numbers, state, task  # noqa: E402


@pytest.fixture(params=["v3.0", "v3.1"])
def root(tmp_path, request) -> Path:
    return v31(tmp_path / "set", request.param)


def test_what_v3_0_has_is_read_as_before(root):
    store = open_dataset(root, verify=True)
    version = info_of(root)["codebase_version"]
    assert store.meta["format"] == f"lerobot-{version}" and store.meta["fps"] == FPS
    for episode, t in enumerate(store.trajectories):
        assert (len(t), t.task) == (LENGTHS[episode], task(episode))
        for n in range(len(t)):
            assert numbers(t.frames[[n]][0]) == (0, episode, n)
            assert np.array_equal(t.proprio[n], state(episode, n))
            assert np.array_equal(t.action[n], action(episode, n))


def test_depth_is_no_camera_and_language_no_state(root):
    names = [f"observation.images.{name}" for name in ("top", "wrist")]
    assert open_dataset(root).meta["cameras"] == names
    with pytest.raises(UserError, match="a_depth is a depth map, a camera is needed"):
        open_dataset(root, Declared(camera="a_depth"))
    with pytest.raises(UserError, match='no column of numbers "language_events"'):
        open_dataset(root, Declared(state=("language_events",)))


def test_another_storage_is_refused_with_a_way_out(root):
    write_info(root, info_of(root) | {"storage_format": "lance"})
    with pytest.raises(UserError, match="no such table: .*frames.lance|needs the library lance"):
        open_dataset(root)
    with pytest.raises(UserError, match="stored in Lance: open it with open_dataset"):
        read_lerobot(root)
    write_info(root, info_of(root) | {"storage_format": ["lance"]})
    with pytest.raises(UserError, match="storage_format is .*convert the dataset"):
        open_dataset(root)
