"""Parquet tables, JSON lines and TFRecords: columns that are missing or of another type, bombs."""

import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .base import both, cut, flip, remove, write
from .case import EITHER, READ, Case, many

EPISODES = "store/episodes/part-00000.parquet"
FRAMES = "store/frames/part-00000.parquet"
V30 = "lerobot_v30/meta/episodes/chunk-000/file-000.parquet"
TASKS = "lerobot_v30/meta/tasks.parquet"
V30_DATA = "lerobot_v30/data/chunk-000/file-000.parquet"
V21 = "lerobot_v21/meta"
RECORDS = "rlds/pattern-train.tfrecord-00000-of-00002"

Change = Callable[[pa.Table], pa.Table]


def edit_table(file: str, change: Change) -> Callable[[Path], None]:
    """Rewrite a Parquet file; a store's meta.json gets its new size."""

    def spoil(here: Path) -> None:
        path = here / file
        table = change(pq.read_table(path, partitioning=None))
        path.unlink()
        pq.write_table(table, path)
        if file.startswith("store/"):
            _resize(here / "store", path)

    return spoil


def _resize(store: Path, path: Path) -> None:
    meta = json.loads((store / "meta.json").read_text())
    for part in meta["parts"]:
        if store / part["file"] == path:
            part["bytes"] = path.stat().st_size
    (store / "meta.json").write_text(json.dumps(meta))


def without(name: str) -> Change:
    return lambda table: table.drop_columns([name])


def column(name: str, values: Callable[[int], list], kind: pa.DataType | None = None) -> Change:
    """Replace a column by other values."""

    def change(table: pa.Table) -> pa.Table:
        new = pa.array(values(len(table)), kind)
        return table.set_column(table.column_names.index(name), name, new)

    return change


def same(value: object, kind: pa.DataType | None = None) -> Callable[[str], Change]:
    """A column of which every row has this value."""
    return lambda name: column(name, lambda n: [value] * n, kind)


def empty(table: pa.Table) -> pa.Table:
    return table.slice(0, 0)


def repeated(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table, table])


WORDS = same("x")
EPISODE_TABLE = {
    **{f"episodes without {n}": without(n) for n in ("name", "length", "layout", "info", "part")},
    **{f"episodes without {n}": without(n) for n in ("row_group", "from", "height", "success")},
    "episodes: no rows": empty,
    "episodes: rows twice": repeated,
    **{f"episodes: {n} of words": WORDS(n) for n in ("length", "part", "from", "height", "width")},
    **{f"episodes: {n} is not JSON": same("{")(n) for n in ("layout", "info")},
    "episodes: layout is a list": same("[1]")("layout"),
    "episodes: layout is a number": same("7")("layout"),
    "episodes: layout of unknown columns": same('{"nose": [0]}')("layout"),
    "episodes: layout of words": same('{"position": ["a", "b", "c"]}')("layout"),
    "episodes: layout behind the end": same('{"position": [90, 91, 92]}')("layout"),
    "episodes: layout is deep": same("[" * 200_000)("layout"),
    "episodes: info is a number": same("5")("info"),
    "episodes: info is null": same(None, pa.string())("info"),
    "episodes: name is null": same(None, pa.string())("name"),
    "episodes: kind is unknown": same("animal")("kind"),
    "episodes: length is negative": same(-3)("length"),
    "episodes: length is null": same(None, pa.int64())("length"),
    "episodes: length is a fraction": same(2.5)("length"),
    "episodes: length is huge": same(10**15)("length"),
    "episodes: height is huge": same(10**9)("height"),
    "episodes: height is zero": same(0)("height"),
    "episodes: from is negative": same(-5)("from"),
    "episodes: row_group is negative": same(-1)("row_group"),
    "episodes: row_group is huge": same(10**9)("row_group"),
    "episodes: part is another": same(7)("part"),
    "episodes: success is a word": WORDS("success"),
    "episodes: episode_index of words": WORDS("episode_index"),
}
EPISODE_EITHER = (
    "episodes without success",
    "episodes: info is null",
    "episodes: info is a number",
    "episodes: name is null",
    "episodes: success is a word",
)
FRAME_TABLE = {
    "frames without image": without("image"),
    "frames without timestamp": without("timestamp"),
    "frames without proprio": without("proprio"),
    "frames without frame_index": without("frame_index"),
    "frames: no rows": empty,
    "frames: image of words": WORDS("image"),
    "frames: image of other bytes": same({"bytes": b"x" * 50, "path": None})("image"),
    "frames: image without bytes": same({"path": "a.jpg"})("image"),
    "frames: timestamp of words": WORDS("timestamp"),
    "frames: timestamp of NaN": same(float("nan"))("timestamp"),
    "frames: timestamp goes back": column("timestamp", lambda n: list(np.arange(n)[::-1] / 5)),
    "frames: timestamp is null": same(None, pa.float64())("timestamp"),
    "frames: proprio of words": same(["a", "b"])("proprio"),
    "frames: proprio of NaN": same([float("nan")] * 7)("proprio"),
    "frames: proprio of other lengths": column(
        "proprio", lambda n: [[0.0] * (1 + k % 3) for k in range(n)]
    ),
    "frames: proprio of numbers": same(1.0)("proprio"),
    "frames: action of words": same(["a"])("action"),
    "frames: episode_index of words": WORDS("episode_index"),
    "frames: frame_index of words": WORDS("frame_index"),
}


def _store_cases() -> list[Case]:
    look = ("aclam-data", "frame", "store", "--episode", "0", "--index", "0", "--out", "f.png")
    found = []
    for file, table in ((EPISODES, EPISODE_TABLE), (FRAMES, FRAME_TABLE)):
        spoils = {name: edit_table(file, change) for name, change in table.items()}
        sure = {name: s for name, s in spoils.items() if name not in EPISODE_EITHER}
        found += many("store", ["store"], look, sure)
        rest = {name: s for name, s in spoils.items() if name in EPISODE_EITHER}
        found += many("store", ["store"], look, rest, EITHER)
    files = {
        "episodes: cut": cut(EPISODES, 0.5),
        "episodes: empty file": write(EPISODES, b""),
        "episodes: missing": remove(EPISODES),
        "frames: cut": cut(FRAMES, 0.5),
        "frames: missing": remove(FRAMES),
        "frames: not Parquet": write(FRAMES, b"PAR1" + bytes(200) + b"PAR1"),
        "all parts missing": both(remove("store/frames"), remove("store/episodes")),
    }
    found += many("store", ["store"], look, files)
    changed = {f"frames: a byte at {a:.0%}": flip(FRAMES, a) for a in (0.0, 0.3, 0.6, 0.99, 1.0)}
    found += many("store", ["store"], ("aclam-data", "inspect", "store", "--verify"), changed)
    return found


V30_TABLE = {
    "episodes: no rows": empty,
    "episodes: rows twice": repeated,
    **{f"episodes without {n}": without(n) for n in ("episode_index", "length", "tasks")},
    "episodes without data/file_index": without("data/file_index"),
    "episodes: length of words": WORDS("length"),
    "episodes: length is negative": same(-4)("length"),
    "episodes: length is huge": same(10**14)("length"),
    "episodes: length is null": same(None, pa.int64())("length"),
    "episodes: tasks is a number": same(5)("tasks"),
    "episodes: file_index of words": WORDS("data/file_index"),
    "episodes: file_index is negative": same(-1)("data/file_index"),
    "episodes: file_index is a fraction": same(0.5)("data/file_index"),
    "episodes: from_timestamp of words": WORDS("videos/observation.images.top/from_timestamp"),
    "episodes: from_timestamp is NaN": same(float("nan"))(
        "videos/observation.images.top/from_timestamp"
    ),
    "episodes: from_timestamp is infinite": same(float("inf"))(
        "videos/observation.images.top/from_timestamp"
    ),
    "episodes: from_timestamp is negative": same(-1e12)(
        "videos/observation.images.top/from_timestamp"
    ),
}


def added(name: str, text: str) -> Change:
    return lambda table: table.append_column(name, pa.array([text] * len(table)))


NOTE = {
    "episodes: our note is not JSON": added("aclam", "{"),
    "episodes: our note is a number": added("aclam", "5"),
    "episodes: our note is deep": added("aclam", "[" * 200_000),
    "episodes: our note of odd types": added("aclam", '{"layout": 7, "info": 3, "name": []}'),
}
V30_FRAMES = {
    "data without timestamp": without("timestamp"),
    "data without observation.state": without("observation.state"),
    "data: no rows": empty,
    "data: timestamp of words": WORDS("timestamp"),
    "data: timestamp of NaN": same(float("nan"))("timestamp"),
    "data: state of words": same(["a"] * 5)("observation.state"),
    "data: state of other lengths": column(
        "observation.state", lambda n: [[0.0] * (1 + k % 3) for k in range(n)]
    ),
    "data: action of numbers": same(1.0)("action"),
    "data: episode_index of words": WORDS("episode_index"),
    "data: task_index of words": WORDS("task_index"),
    "data: task_index is another": same(99)("task_index"),
}
TASK_TABLE = {
    "tasks: no rows": empty,
    "tasks without task_index": without("task_index"),
    "tasks: task_index of words": WORDS("task_index"),
    "tasks: only task_index": lambda table: table.select(["task_index"]),
}
V30_EITHER = (
    *("episodes without tasks", "episodes: tasks is a number", "data: task_index of words"),
    *("data: task_index is another", "tasks: no rows", "data without observation.state"),
    *("tasks: task_index of words", "data: timestamp of NaN", "data: timestamp of words"),
    *("data without timestamp", "episodes: rows twice"),
)
LINES = {
    "episodes.jsonl is empty": write(f"{V21}/episodes.jsonl", b""),
    "episodes.jsonl is cut": cut(f"{V21}/episodes.jsonl", 0.7),
    "episodes.jsonl of numbers": write(f"{V21}/episodes.jsonl", "1\n2\n"),
    "episodes.jsonl is deep": write(f"{V21}/episodes.jsonl", "[" * 200_000),
    "episodes.jsonl of words": write(
        f"{V21}/episodes.jsonl", '{"episode_index": "0", "length": "5"}\n'
    ),
    "episodes.jsonl: a huge length": write(
        f"{V21}/episodes.jsonl", '{"episode_index": 0, "length": 100000000000000}\n'
    ),
    "episodes.jsonl: a negative episode": write(
        f"{V21}/episodes.jsonl", '{"episode_index": -1, "length": 11}\n'
    ),
    "episodes.jsonl: true for a number": write(
        f"{V21}/episodes.jsonl", '{"episode_index": true, "length": 11}\n'
    ),
    "tasks.jsonl is missing": remove(f"{V21}/tasks.jsonl"),
    "tasks.jsonl without keys": write(f"{V21}/tasks.jsonl", "{}\n{}\n"),
    "tasks.jsonl of numbers": write(f"{V21}/tasks.jsonl", "1\n"),
    "tasks.jsonl of odd types": write(f"{V21}/tasks.jsonl", '{"task_index": [], "task": 5}\n'),
    "tasks.jsonl is not UTF-8": write(f"{V21}/tasks.jsonl", b'{"task": "\xff"}\n'),
    "data is cut": cut("lerobot_v21/data/chunk-000/episode_000000.parquet", 0.5),
    "data is empty": write("lerobot_v21/data/chunk-000/episode_000000.parquet", b""),
    "data is missing": remove("lerobot_v21/data/chunk-000/episode_000000.parquet"),
}


def _marked_lines(here: Path) -> None:
    file = here / V21 / "tasks.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())


def _odd_ends(here: Path) -> None:
    file = here / V21 / "tasks.jsonl"
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))


def _separators(here: Path) -> None:
    file = here / V21 / "tasks.jsonl"
    file.write_text(file.read_text().replace("pick up", "pick\u2028up\u0085"))


def _lerobot_cases() -> list[Case]:
    v30 = ("aclam-data", "triples", "lerobot_v30", "--n", "2")
    v21 = ("aclam-data", "triples", "lerobot_v21", "--n", "2")
    tables = ((V30, V30_TABLE), (V30_DATA, V30_FRAMES), (TASKS, TASK_TABLE))
    found = []
    for file, table in tables:
        spoils = {name: edit_table(file, change) for name, change in table.items()}
        sure = {name: s for name, s in spoils.items() if name not in V30_EITHER}
        found += many("LeRobot v3.0", ["lerobot_v30"], v30, sure)
        rest = {name: s for name, s in spoils.items() if name in V30_EITHER}
        found += many("LeRobot v3.0", ["lerobot_v30"], v30, rest, EITHER)
    notes = {name: edit_table(V30, change) for name, change in NOTE.items()}
    found += many("LeRobot v3.0", ["lerobot_v30"], v30, notes)
    files = {}
    for name, file in (("episodes", V30), ("tasks", TASKS), ("data", V30_DATA)):
        files[f"{name}: cut"] = cut(file, 0.5)
        files[f"{name}: empty file"] = write(file, b"")
        files[f"{name}: missing"] = remove(file)
        files[f"{name}: other bytes"] = write(file, b"PAR1" + bytes(64) + b"PAR1")
    found += many("LeRobot v3.0", ["lerobot_v30"], v30, files)
    found += many("LeRobot v2.1", ["lerobot_v21"], v21, LINES)
    text = {
        "tasks.jsonl has a byte order mark": _marked_lines,
        "tasks.jsonl ends lines as Windows does": _odd_ends,
        "tasks.jsonl has other separators inside": _separators,
    }
    found += many("LeRobot v2.1", ["lerobot_v21"], v21, text, READ)
    return found


# --- TFRecords ------------------------------------------------------------------------------------


def checksum(data: bytes) -> bytes:
    """CRC-32C, bit by bit, masked as TFRecord stores it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    rotated = (crc >> 15 | crc << 17) & 0xFFFFFFFF
    return struct.pack("<I", (rotated + 0xA282EAD8) & 0xFFFFFFFF)


def framed(data: bytes) -> bytes:
    """A record with right checksums."""
    head = struct.pack("<Q", len(data))
    return head + checksum(head) + data + checksum(data)


def _bomb(here: Path) -> None:
    """A record of 4 GiB of zeros in a file of 4 MiB."""
    with gzip.open(here / RECORDS, "wb", compresslevel=1) as file:
        for _ in range(4096):
            file.write(bytes(2**20))


def _packed(here: Path) -> None:
    data = (here / RECORDS).read_bytes()
    (here / RECORDS).write_bytes(gzip.compress(data))


def record(data: bytes) -> Callable[[Path], None]:
    return write(RECORDS, framed(data))


def features(text: str) -> Callable[[Path], None]:
    return write("rlds/features.json", text)


def _rename(here: Path) -> None:
    (here / RECORDS).rename(here / "rlds" / "pattern-train.tfrecord-00000-of-00003")


RLDS = {
    "a shard is cut": cut(RECORDS, 0.5),
    "a shard is empty": write(RECORDS, b""),
    "a shard is missing": remove(RECORDS),
    "a shard of three is missing": _rename,
    "a shard of other bytes": write(RECORDS, bytes(range(256)) * 8),
    "a shard of zeros": write(RECORDS, bytes(4096)),
    "a length is changed": flip(RECORDS, 0.0),
    "gzip that ends early": both(_packed, cut(RECORDS, 0.5)),
    "gzip of other bytes": write(RECORDS, b"\x1f\x8b" + bytes(100)),
    "a bomb of 4 GiB": _bomb,
    "an empty record": record(b""),
    "a number of more than 64 bits": record(b"\x0a" + b"\xff" * 30 + b"\x01"),
    "a number without an end": record(b"\x0a\xff\xff\xff"),
    "a key of kind 7": record(b"\x0f\x00"),
    "a length behind the end": record(b"\x0a\xff\xff\x7f" + b"a"),
    "a nested length behind the end": record(b"\x0a\x04\x0a\xff\xff\x7f"),
    "random bytes as a record": record(np.random.default_rng(0).bytes(500)),
    "features.json: features is a word": features('{"featuresDict": "x"}'),
    "features.json: features of words": features('{"featuresDict": {"features": {"steps": "x"}}}'),
    "features.json: features is a list": features('{"featuresDict": {"features": []}}'),
    "features.json: sequence is a word": features(
        '{"featuresDict": {"features": {"steps": {"sequence": "x"}}}}'
    ),
    "features.json: feature is a number": features(
        '{"featuresDict": {"features": {"steps": {"sequence": {"feature": 5}}}}}'
    ),
}


def _shape(here: Path, old: str, new: str) -> None:
    path = here / "rlds" / "features.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def _dimensions(here: Path) -> None:
    _shape(here, '"48"', '"many"')


def _dimensions_negative(here: Path) -> None:
    _shape(here, '"48"', '"-48"')


def _class_is_number(here: Path) -> None:
    _shape(here, '"tensorflow_datasets.core.features.image_feature.Image"', "5")


def _rlds_cases() -> list[Case]:
    words = ("aclam-data", "triples", "rlds", "--rate", "5", "--n", "2")
    found = many("RLDS", ["rlds"], words, RLDS)
    odd = {
        "features.json: a dimension of words": _dimensions,
        "features.json: a negative dimension": _dimensions_negative,
        "features.json: a class is a number": _class_is_number,
        "features.json is missing": remove("rlds/features.json"),
    }
    found += many("RLDS", ["rlds"], words, odd, EITHER)
    changed = {f"a byte at {a:.0%}": flip(RECORDS, a) for a in (0.2, 0.5, 0.8)}
    verify = ("aclam-data", "inspect", "rlds", "--rate", "5", "--verify")
    found += many("RLDS", ["rlds"], verify, changed)
    found += many("RLDS", ["rlds"], words, {"a shard in gzip": _packed}, READ)
    return found


def cases() -> list[Case]:
    """All of this module."""
    return [*_store_cases(), *_lerobot_cases(), *_rlds_cases()]
