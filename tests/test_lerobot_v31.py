"""LeRobot v3.1: columns of language and depth videos beside what v3.0 has; and Lance, which is
refused with a way out. The columns have the Arrow types of lerobot 0.6.2
(lerobot.datasets.language), where it writes them.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aclam.core import UserError
from aclam.data.declared import Declared
from aclam.data.lerobot_reader import read_lerobot
from aclam.data.source import open_dataset

FIXTURES = Path(__file__).parent / "fixtures"
sys.path.insert(0, str(FIXTURES))
from pattern import FPS, LENGTHS, action, numbers, state, task  # noqa: E402

CALLS = pa.field("tool_calls", pa.list_(pa.string()))  # JSON; lerobot says so where Arrow can
EVENT = [
    pa.field("role", pa.string(), nullable=False),
    pa.field("content", pa.string()),
    pa.field("style", pa.string()),
    pa.field("camera", pa.string()),
    CALLS,
]
PERSISTENT = [*EVENT[:3], pa.field("timestamp", pa.float32(), nullable=False), *EVENT[3:]]


def language(rows: int) -> dict[str, pa.Array]:
    said = {"role": "assistant", "content": "reach for the cube", "style": "subtask"}
    held = {**said, "timestamp": 0.0, "camera": None, "tool_calls": None}
    asked = {"role": "user", "content": "what is left?", "style": "vqa"}
    once = {**asked, "camera": "observation.images.top", "tool_calls": None}
    return {
        "language_persistent": pa.array([[held]] * rows, pa.list_(pa.struct(PERSISTENT))),
        "language_events": pa.array([[once], *[[]] * (rows - 1)], pa.list_(pa.struct(EVENT))),
    }


def info_of(root: Path) -> dict:
    return json.loads((root / "meta" / "info.json").read_text())


def write_info(root: Path, info: dict) -> None:
    (root / "meta" / "info.json").write_text(json.dumps(info))


@pytest.fixture(params=["v3.0", "v3.1"])
def root(tmp_path, request) -> Path:
    """The set of v3.0 with what v3.1 adds; lerobot itself still writes v3.0 into info.json."""
    root = tmp_path / "set"
    shutil.copytree(FIXTURES / "lerobot_v30", root)
    file = root / "data" / "chunk-000" / "file-000.parquet"
    table = pq.read_table(file)
    for name, column in language(len(table)).items():
        table = table.append_column(name, column)
    pq.write_table(table, file)

    info = info_of(root)
    about = {"is_depth_map": True, "video.depth_unit": "mm"}
    depth = {"dtype": "video", "shape": [48, 64, 1], "names": None, "info": about}
    words = {"dtype": "language", "shape": [1], "names": None}
    info["features"] |= dict.fromkeys(("language_persistent", "language_events"), words)
    info["features"]["observation.images.a_depth"] = depth
    write_info(root, info | {"codebase_version": request.param})
    return root


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
