"""LeRobot datasets of either layout that are broken, odd, or say something that must not be missed.

Each fault is made in both fixtures, v2.1 and v3.0; where they are whole, see test_formats.py.
"""

import json
import os
import shutil
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from aclam.core import UserError
from aclam.data.declared import Declared
from aclam.data.files import Broken
from aclam.data.lerobot_reader import read_lerobot
from aclam.data.lerobot_writer import write_lerobot
from aclam.data.source import open_dataset
from aclam.data.trajectory import synthetic_trajectory

FIXTURES = Path(__file__).parent / "fixtures"
sys.path.insert(0, str(FIXTURES))
from pattern import LENGTHS, numbers, task  # noqa: E402

VERSIONS = ("v2.1", "v3.0")
TOP = "observation.images.top"


@pytest.fixture(params=VERSIONS)
def root(request, tmp_path) -> Path:
    """A copy of a whole dataset, without the percentiles that were kept in it."""
    source = FIXTURES / f"lerobot_{request.param.replace('.', '')}"
    shutil.copytree(source, tmp_path / "set")
    (tmp_path / "set" / "aclam_percentiles.json").unlink(missing_ok=True)
    return tmp_path / "set"


def is_v3(root: Path) -> bool:
    return (root / "meta" / "episodes").is_dir()


def read_info(root: Path) -> dict:
    return json.loads((root / "meta" / "info.json").read_text())


def edit_info(root: Path, **values) -> None:
    (root / "meta" / "info.json").write_text(json.dumps({**read_info(root), **values}))


def edit_feature(root: Path, key: str, **values) -> None:
    features = read_info(root)["features"]
    features[key] = {**features.get(key, {}), **values}
    edit_info(root, features=features)


def episode_table(root: Path) -> Path:
    v3 = "episodes/chunk-000/file-000.parquet"
    return root / "meta" / (v3 if is_v3(root) else "episodes.jsonl")


def task_table(root: Path) -> Path:
    return root / "meta" / ("tasks.parquet" if is_v3(root) else "tasks.jsonl")


def read_rows(path: Path) -> list[dict]:
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        return table.rename_columns(
            [c.replace("__index_level_0__", "task") for c in table.column_names]
        ).to_pylist()
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_rows(path: Path, rows: list[dict]) -> None:
    if path.suffix == ".parquet":
        keys = [*dict.fromkeys(key for row in rows for key in row)]
        pq.write_table(pa.table({key: [row.get(key) for row in rows] for key in keys}), path)
    else:
        path.write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8"
        )


def edit_rows(path: Path, row: int, **values) -> None:
    """Change one row; None takes the entry away."""
    rows = read_rows(path)
    changed = {**rows[row], **values}
    rows[row] = {key: value for key, value in changed.items() if value is not None}
    write_rows(path, rows)


def data_file(root: Path, episode: int = 0) -> Path:
    name = "file-000" if is_v3(root) else f"episode_{episode:06d}"
    return root / "data" / "chunk-000" / f"{name}.parquet"


def video_file(root: Path, episode: int = 0, camera: str = TOP) -> Path:
    if is_v3(root):
        return root / "videos" / camera / "chunk-000" / "file-000.mp4"
    return root / "videos" / "chunk-000" / camera / f"episode_{episode:06d}.mp4"


def edit_data(root: Path, episode: int, change) -> None:
    """`change` is given the dict of columns (lists) of a file, and the rows of one episode."""
    path = data_file(root, episode)
    columns = pq.read_table(path).to_pydict()
    rows = [n for n, e in enumerate(columns["episode_index"]) if e == episode]
    change(columns, rows)
    pq.write_table(pa.table(columns), path)


def put(key: str, frame: int, value):
    """A change of one cell."""

    def change(columns: dict, rows: list[int]) -> None:
        columns[key][rows[frame]] = value

    return change


def whole_column(key: str, make):
    """A change of all cells of a column."""

    def change(columns: dict, rows: list[int]) -> None:
        columns[key] = [make(v) for v in columns[key]]

    return change


def cut(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])


def opened(root: Path, **options):
    """Open, and read two frames of each episode."""
    store = open_dataset(root, **options)
    for t in store.trajectories:
        t.frames[[0, len(t) - 1]]
    return store


def refusal(root: Path, **options) -> str:
    with pytest.raises(UserError) as caught:
        opened(root, **options)
    said = str(caught.value)
    assert "\n" not in said and len(said) < 700, said
    return said


# --- info.json ------------------------------------------------------------------------------------

LONG = "x" * 5_000_000
DATA = "data/chunk-000/{}.parquet"
INFO = {
    "fps true": ({"fps": True}, "field fps"),
    "fps text": ({"fps": "10"}, "field fps"),
    "fps huge text": ({"fps": LONG}, "field fps"),
    "fps nan": ({"fps": float("nan")}, "field fps"),
    "fps inf": ({"fps": float("inf")}, "field fps"),
    "fps zero": ({"fps": 0}, "field fps"),
    "fps null": ({"fps": None}, "field fps"),
    "version list": ({"codebase_version": ["v2.1"]}, "codebase_version is"),
    "storage": ({"storage_format": "vortex"}, 'storage_format is "vortex"'),
    "storage list": ({"storage_format": [1]}, "storage_format is"),
    "features list": ({"features": []}, "field features"),
    "features number": ({"features": {"action": 5}}, "field features.action"),
    "no features": ({"features": {}}, "has no camera"),
    "robot": ({"robot_type": {"a": 1}}, "field robot_type"),
    "data_path": ({"data_path": ""}, "not a file name"),
    "data_path null": ({"data_path": None}, "field data_path"),
    "data_path number": ({"data_path": 5}, "field data_path"),
    "data_path class": ({"data_path": DATA.format("{episode_index.__class__}")}, "path template"),
    "data_path digits": ({"data_path": DATA.format("{file_index:02000000000d}")}, "path template"),
    "data_path brace": ({"data_path": "{"}, "path template"),
    "data_path zero byte": ({"data_path": "a\0b"}, "not a file name"),
    "data_path long": ({"data_path": "n" * 300}, "not a file name"),
    "data_path longer": ({"data_path": LONG}, "not a file name"),
    "video_path null": ({"video_path": None}, "not a file name"),
    "video_path class": ({"video_path": "{video_key.__class__}.mp4"}, "path template"),
    "episodes": ({"total_episodes": 9}, "says total_episodes 9, its tables have 4"),
    "frames": ({"total_frames": 1}, "says total_frames 1, its tables have 58"),
    "episodes text": ({"total_episodes": "4"}, "field total_episodes"),
}


@pytest.mark.parametrize("what", INFO)
def test_an_odd_info_json_is_one_line(root, what):
    values, said = INFO[what]
    edit_info(root, **values)
    assert said in refusal(root)


@pytest.mark.parametrize("content", ["5", "null", '"x"', "[]", "", "{", "[" * 100_000, "\xff"])
def test_an_info_json_that_is_no_object_is_one_line(root, content):
    (root / "meta" / "info.json").write_bytes(content.encode("latin-1"))
    assert "info.json" in refusal(root)


@pytest.mark.parametrize("size", [0, "x", None, True])
def test_a_wrong_number_of_episodes_in_a_folder(root, size):
    edit_info(root, chunks_size=size)
    if size is None:
        assert len(opened(root)) == len(LENGTHS)
    else:
        assert "field chunks_size" in refusal(root)


@pytest.mark.parametrize("shape", ["7", [0], [True], [-3], [3.5], None, [2**70]])
def test_an_odd_shape_is_one_line(root, shape):
    edit_feature(root, "action", shape=shape)
    assert "action" in refusal(root)


@pytest.mark.parametrize("shape", [[3], [48, 64], [48, 64, 3, 1]])
def test_the_camera_has_three_axes(root, shape):
    edit_feature(root, TOP, shape=shape)
    assert f"the shape of {TOP} is {shape}" in refusal(root)


# --- episodes and tasks ---------------------------------------------------------------------------

ROWS = {
    "no number": ({"episode_index": None}, "episode_index"),
    "number text": ({"episode_index": "1"}, "episode_index"),
    "number negative": ({"episode_index": -1}, "episode_index"),
    "number twice": ({"episode_index": 2}, "episode 2 is there twice"),
    "no length": ({"length": None}, "length"),
    "length half": ({"length": 7.5}, "length"),
    "notes broken": ({"aclam": "{"}, "episode 1: its notes (aclam) are not JSON"),
    "notes deep": ({"aclam": "[" * 100_000}, "episode 1: its notes (aclam) are not JSON"),
    "notes list": ({"aclam": "[]"}, "episode 1: field aclam"),
    "notes kind": ({"aclam": '{"kind": "alien"}'}, "episode 1: field aclam.kind"),
    "notes success": ({"aclam": '{"success": "yes"}'}, "episode 1: field aclam.success"),
    "notes layout": ({"aclam": '{"layout": 7}'}, "episode 1: field aclam.layout"),
    "notes columns": ({"aclam": '{"layout": {"position": "xyz"}}'}, "position"),
}
PLACES = {
    "start nan": ({f"videos/{TOP}/from_timestamp": float("nan")}, "from_timestamp"),
    "start negative": ({f"videos/{TOP}/from_timestamp": -1.0}, "from_timestamp"),
    "no start": ({f"videos/{TOP}/from_timestamp": None}, "from_timestamp"),
    "chunk negative": ({"data/chunk_index": -1}, "data.chunk_index"),
    "no file": ({"data/file_index": None}, "file_index"),
    "no video": ({f"videos/{TOP}/file_index": None}, "file_index"),
}


def rewritten(root: Path, row: int, **values) -> None:
    """As `edit_rows`; Parquet has one type a column, so a text makes all of them texts."""
    path = episode_table(root)
    if is_v3(root):
        for key, value in values.items():
            if isinstance(value, str) and key != "aclam":
                rows = [{**r, key: str(r[key])} for r in read_rows(path)]
                write_rows(path, rows)
    edit_rows(path, row, **values)


@pytest.mark.parametrize("what", ROWS)
def test_an_odd_row_of_the_table_of_episodes_is_one_line(root, what):
    values, said = ROWS[what]
    rewritten(root, 1, **values)
    assert said in refusal(root)


@pytest.mark.parametrize("what", PLACES)
@pytest.mark.parametrize("root", ["v3.0"], indirect=True)
def test_an_odd_place_of_an_episode_is_one_line(root, what):
    values, said = PLACES[what]
    rewritten(root, 1, **values)
    message = refusal(root)
    assert said in message and "episode 1" in message


@pytest.mark.parametrize("table", [episode_table, task_table])
@pytest.mark.parametrize("share", [0, 0.5, 0.98])
def test_a_truncated_table_is_one_line(root, table, share):
    path = table(root)
    cut(path, share)
    said = refusal(root)
    # what is cut at the end of a line is still a table: rows and totals know better
    known = (path.name, "says total_", "is not in meta/tasks")
    assert any(words in said for words in known)


@pytest.mark.parametrize("table", [episode_table, task_table])
def test_a_table_that_is_no_file_is_one_line_and_does_not_hang(root, table):
    path = table(root)
    path.unlink()
    os.mkfifo(path)
    if is_v3(root) and table is episode_table:
        assert "has no episodes" in refusal(root)  # the walk takes regular files only
    else:
        assert "a regular file expected" in refusal(root)
    path.unlink()
    path.mkdir()
    refusal(root)


TASKS = {
    "no number": ({"task_index": None}, "task_index"),
    "no text": ({"task": None}, "task"),
    "twice": ({"task_index": 0}, "one task_index"),
    "gone": ({"task_index": 7}, "its task_index is 1, which is not in meta/tasks"),
}


@pytest.mark.parametrize("what", TASKS)
def test_an_odd_task_is_one_line(root, what):
    values, said = TASKS[what]
    edit_rows(task_table(root), 1, **values)
    assert said in refusal(root)


def test_tasks_of_a_wrong_type_or_without_columns_are_one_line(root):
    write_rows(task_table(root), [{"task_index": n, "task": n} for n in range(2)])
    assert "task" in refusal(root)
    write_rows(task_table(root), [{"task_index": n} for n in range(2)])
    assert "task" in refusal(root)
    write_rows(task_table(root), [{"task": "x"}])
    assert "task_index" in refusal(root)


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\u0085", "\x1c", "\u00a0"])
def test_a_task_with_any_character_inside_is_unchanged(root, mark):
    """Case 09: only a newline ends a line of JSON lines."""
    text = f"put the cup{mark}on the plate"
    edit_rows(task_table(root), 0, task=text)
    assert opened(root).trajectories[0].task == text


@pytest.mark.parametrize("root", ["v2.1"], indirect=True)
def test_a_byte_order_mark_carriage_returns_and_empty_lines_are_read(root):
    for path in (task_table(root), episode_table(root)):
        lines = path.read_bytes().replace(b"\n", b"\r\n\r\n")
        path.write_bytes(b"\xef\xbb\xbf" + lines)
    assert [t.task for t in opened(root).trajectories] == [task(n) for n in range(4)]
    path.write_bytes(path.read_bytes() + b"{\n")
    assert "episodes.jsonl: line 9 is not JSON" in refusal(root)


# --- rows -----------------------------------------------------------------------------------------

CELLS = {
    "nan state": (put("observation.state", 3, [0.0, float("nan"), 0, 0, 0]), "not finite"),
    "huge state": (put("observation.state", 3, [0.0, 1e300, 0, 0, 0]), "numbers a row|not finite"),
    "short state": (put("observation.state", 3, [0.0]), "numbers a row"),
    "null state": (put("observation.state", 3, None), "empty places"),
    "null in state": (put("observation.state", 3, [None, 0, 0, 0, 0]), "empty places"),
    "text state": (whole_column("observation.state", lambda v: list(map(str, v))), 'holds "string'),
    "struct state": (whole_column("observation.state", lambda v: {"x": v[0]}), 'holds "struct'),
    "nan time": (put("timestamp", 3, float("nan")), "not finite"),
    "null time": (put("timestamp", 3, None), "empty places"),
    "same time": (put("timestamp", 3, 0.2), "time stamps must increase"),
    "text time": (whole_column("timestamp", str), 'timestamp holds "string'),
    "list time": (whole_column("timestamp", lambda v: [v, v]), "one each is needed"),
    "text frame": (whole_column("frame_index", str), 'frame_index holds "string'),
    "null frame": (put("frame_index", 3, None), "empty places"),
    "text episode": (whole_column("episode_index", str), 'episode_index holds "string'),
    "text task": (whole_column("task_index", str), 'task_index holds "string'),
    "no frames": (lambda columns, rows: columns.pop("frame_index"), "has no column frame_index"),
    "swapped": (put("frame_index", 3, 4), "not in order"),
}


@pytest.mark.parametrize("what", CELLS)
def test_odd_rows_are_one_line_that_names_the_episode(root, what):
    change, said = CELLS[what]
    edit_data(root, 1, change)
    message = refusal(root)
    assert any(word in message for word in said.split("|")) and "episode" in message, message


def test_two_columns_of_one_name(root):
    path = data_file(root)
    table = pq.read_table(path)
    pq.write_table(table.append_column("action", table["action"]), path)
    assert "has more than one column action" in refusal(root)


@pytest.mark.parametrize("share", [0, 0.3, 0.99])
def test_truncated_rows_are_one_line(root, share):
    cut(data_file(root), share)
    assert "is not a whole Parquet file" in refusal(root)


@pytest.mark.parametrize("file", [data_file, video_file])
def test_a_folder_or_a_pipe_in_place_of_a_file(root, file):
    path = file(root)
    path.unlink()
    path.mkdir()
    assert "episode 0" in refusal(root)
    path.rmdir()
    os.mkfifo(path)
    assert "episode 0" in refusal(root)


class Grid(pa.ExtensionType):
    """As `datasets.Array2D`: a type of Arrow that is only known where it was registered."""

    def __init__(self):
        super().__init__(pa.list_(pa.list_(pa.float32())), "test.grid")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type, serialized):
        return cls()


@pytest.mark.parametrize("known", [True, False])
def test_a_type_of_another_library_opens_whether_it_is_known_or_not(root, known):
    """Case 10."""
    path = data_file(root)
    table = pq.read_table(path)
    column = table.column_names.index("action")
    cells = pa.array([[[x] for x in v] for v in table["action"].to_pylist()], Grid().storage_type)
    pa.register_extension_type(Grid())
    try:
        grid = pa.ExtensionArray.from_storage(Grid(), cells)
        pq.write_table(table.set_column(column, "action", grid), path)
        edit_feature(root, "action", shape=[3, 1])
        if not known:
            pa.unregister_extension_type("test.grid")
        shown = pq.read_schema(path).field("action").type
        assert isinstance(shown, pa.ExtensionType) == known
        whole = read_lerobot(FIXTURES / "lerobot_v30").trajectories[0]
        assert np.array_equal(read_lerobot(root).trajectories[0].action, whole.action)
    finally:
        if known:
            pa.unregister_extension_type("test.grid")


def test_hidden_and_unfinished_files_are_no_data(root):
    """Case 05: what a Mac leaves beside each file on some disks."""
    mac = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        "
    for path in [p for p in root.rglob("*") if p.is_file()]:
        path.with_name(f"._{path.name}").write_bytes(mac)
        path.with_name(f"{path.name}.tmp").write_bytes(mac)
    assert len(opened(root)) == len(LENGTHS)


# --- cameras --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mark",
    [
        {"info": {"video.is_depth_map": True}},
        {"video_info": {"video.is_depth_map": True}},
        {"info": {"is_depth_map": True}},
        {"is_depth_map": True},
    ],
)
def test_a_depth_map_is_no_camera(root, mark):
    """Case 16: it came first, and became the frames without a word."""
    edit_feature(root, TOP, **{"info": None, **mark})
    store = opened(root)
    assert store.meta["camera"] == "observation.images.wrist"
    assert store.meta["cameras"] == ["observation.images.wrist"]
    assert numbers(store.trajectories[0].frames[[2]][0]) == (1, 0, 2)
    for name in ("top", TOP):
        assert "is a depth map" in refusal(root, declared=Declared(camera=name))


def test_a_dataset_of_depth_maps_alone_is_refused(root):
    for camera in ("top", "wrist"):
        edit_feature(root, f"observation.images.{camera}", is_depth_map=True)
    assert "has no camera that is in color" in refusal(root)


def test_a_camera_called_depth_is_not_chosen_but_may_be_declared(root):
    features = read_info(root)["features"]
    renamed = {"observation.images.depth": features.pop(TOP), **features}
    edit_info(root, features=renamed)
    assert open_dataset(root).meta["camera"] == "observation.images.wrist"
    said = refusal(root, declared=Declared(camera="depth"))  # chosen: it is not on this disk
    assert "observation.images.depth" in said


def test_state_and_actions_under_other_names_are_named_in_a_hint(root, capsys):
    features = read_info(root)["features"]
    features["actions"] = features.pop("action")
    edit_info(root, features=features)
    for n in range(1 if is_v3(root) else len(LENGTHS)):
        path = data_file(root, n)
        table = pq.read_table(path)
        names = ["actions" if c == "action" else c for c in table.column_names]
        pq.write_table(table.rename_columns(names), path)
    store = open_dataset(root)
    assert store.trajectories[0].action is None
    assert "has no action, but actions: declare it" in capsys.readouterr().err
    told = open_dataset(root, Declared(action=("actions",)))
    assert told.trajectories[0].action.shape == (11, 3)
    assert "action" not in capsys.readouterr().err.partition(": ")[2]


# --- images in the table --------------------------------------------------------------------------


def encoded(frame: np.ndarray, form: str = "PNG", orientation: int = 1) -> bytes:
    out = BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(frame).save(out, form, exif=exif, **({"quality": 95} if form == "JPEG" else {}))
    return out.getvalue()


def images_in_table(root: Path, cell) -> list[np.ndarray]:
    """Put images in place of a video; `cell` makes an entry of a frame and its number in the file."""
    frames = [t.frames[range(len(t))] for t in read_lerobot(root).trajectories]
    files = [frames] if is_v3(root) else [[f] for f in frames]
    for n, own in enumerate(files):
        path = data_file(root, n)
        cells = [cell(frame, k) for k, frame in enumerate(np.concatenate(own))]
        table = pq.read_table(path).append_column(TOP, pa.array(cells))
        pq.write_table(table, path, row_group_size=5)
    edit_feature(root, TOP, dtype="image")
    return frames


def test_images_in_the_table_are_turned_as_their_exif_says(root):
    frames = images_in_table(root, lambda f, k: {"bytes": encoded(f, "JPEG", 3), "path": None})
    read = open_dataset(root).trajectories[1].frames[[4]][0]
    turned = frames[1][4][::-1, ::-1]
    assert np.abs(read.astype(int) - turned).mean() < 8
    assert np.abs(read.astype(int) - frames[1][4]).mean() > 20


def test_images_as_plain_bytes_are_read(root):
    frames = images_in_table(root, lambda f, k: encoded(f))
    assert np.array_equal(open_dataset(root).trajectories[2].frames[[3]][0], frames[2][3])


GOOD = {"bytes": encoded(np.zeros((48, 64, 3), np.uint8)), "path": "x.png"}
PICTURES = {
    "name alone": ({"bytes": None, "path": "x.png"}, "holds no JPEG or PNG"),
    "nothing": (None, "holds no JPEG or PNG"),
    "no picture": ({"bytes": b"GIF89a", "path": "x.png"}, "not a whole JPEG or PNG"),
    "another size": (
        {"bytes": encoded(np.zeros((9, 64, 3), np.uint8)), "path": "x.png"},
        "64 x 9 pixels, declared are 64 x 48",
    ),
    "16 bits": (
        {"bytes": encoded(np.zeros((48, 64), np.uint16)), "path": "x.png"},
        "16 or more bits",
    ),
}


@pytest.mark.parametrize("what", PICTURES)
def test_an_odd_picture_in_the_table_is_one_line(root, what):
    bad, said = PICTURES[what]
    images_in_table(root, lambda f, k: bad if k == 3 else GOOD)
    with pytest.raises(UserError, match=said) as caught:
        open_dataset(root).trajectories[0].frames[[3]]
    assert "episode 0: frame 3" in str(caught.value)


def test_a_table_without_the_column_of_images(root):
    edit_feature(root, TOP, dtype="image")
    assert f"has no column {TOP}" in refusal(root)


# --- one bad episode ------------------------------------------------------------------------------


def shift_video(root: Path) -> None:
    if is_v3(root):
        edit_rows(episode_table(root), 1, **{f"videos/{TOP}/from_timestamp": 1.14})
    else:
        cut(video_file(root, 1), 0.4)


def one_frame(root: Path) -> None:
    """The second episode is cut to one frame, in all tables."""
    path = data_file(root, 1)
    table = pq.read_table(path)
    episodes = table["episode_index"].to_numpy()
    first = int(np.flatnonzero(episodes == 1)[0])
    keep = (episodes != 1) | (np.arange(len(episodes)) == first)
    pq.write_table(table.filter(pa.array(keep)), path)
    edit_rows(episode_table(root), 1, length=1)
    edit_info(root, total_frames=sum(LENGTHS) - LENGTHS[1] + 1)


BROKEN = {
    "one frame": one_frame,
    "a NaN": lambda root: edit_data(root, 1, CELLS["nan state"][0]),
    "a time twice": lambda root: edit_data(root, 1, CELLS["same time"][0]),
    "another length": lambda root: edit_rows(episode_table(root), 1, length=22),
    "its video": shift_video,
}


@pytest.mark.parametrize("what", BROKEN)
def test_one_bad_episode_is_left_out_where_that_is_allowed(root, what, capsys):
    """Case 15."""
    BROKEN[what](root)
    expected = 2 if what == "another length" else 1  # then the totals are wrong, too
    refusal(root)
    broken = Broken(2)
    store = opened(root, broken=broken)
    assert broken.names[0] == "episode 1" and len(broken.names) == expected
    assert [len(t) for t in store.trajectories] == [LENGTHS[n] for n in (0, 2, 3)]
    assert [numbers(t.frames[[1]][0]) for t in store.trajectories] == [(0, n, 1) for n in (0, 2, 3)]
    assert f"left out, as broken: {expected} (--skip-broken 2)" in capsys.readouterr().err


def test_no_more_episodes_are_left_out_than_allowed(root):
    for episode in (1, 2):
        edit_data(root, episode, CELLS["nan state"][0])
    assert "skip-broken 1 is used up: episode 1" in refusal(root, broken=Broken(1))
    assert len(opened(root, broken=Broken(2))) == 2


@pytest.mark.parametrize("root", ["v2.1"], indirect=True)
@pytest.mark.parametrize("file", [data_file, video_file])
def test_an_episode_whose_file_is_missing_is_left_out(root, file):
    file(root, 1).unlink()
    assert "episode 1: no such file" in refusal(root)
    assert len(opened(root, broken=Broken(1))) == 3


# --- the writer -----------------------------------------------------------------------------------


@pytest.mark.parametrize("fps", [0, -1.0, float("nan"), float("inf"), 1e12, True])
def test_a_rate_that_is_none_is_refused_before_anything_is_written(tmp_path, fps):
    films = [synthetic_trajectory(0, T=6, size=32)]
    with pytest.raises(UserError, match="fps"):
        write_lerobot(tmp_path / "out", films, fps=fps)
    assert not (tmp_path / "out").exists()


def test_a_half_written_dataset_goes_on_only_with_the_same_source(tmp_path):
    films = [synthetic_trajectory(s, T=6, size=32) for s in range(3)]
    (tmp_path / "in").mkdir()
    write_lerobot(tmp_path / "out", films, per_file=1)  # as older versions: it says no source
    (tmp_path / "out" / "meta" / "info.json").unlink()
    first = {"source": {"data": "a"}, "inputs": [tmp_path / "in"]}
    write_lerobot(tmp_path / "out", films, per_file=1, workers=2, **first)
    with pytest.raises(UserError, match="holds another dataset .*source.data"):
        write_lerobot(tmp_path / "out", films, per_file=1, source={"data": "b"})
    with pytest.raises(UserError):
        write_lerobot(tmp_path / "in" / "below", films, **first)
    assert not any((tmp_path / "in").iterdir())
