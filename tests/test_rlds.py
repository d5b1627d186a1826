"""RLDS that is broken, incomplete, or says something that must not be missed.

Where it is whole, see test_formats.py.
"""

import dataclasses
import gzip
import json
import os
import shutil
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aclam.core import UserError
from aclam.data.declared import Declared
from aclam.data.files import Broken
from aclam.data.source import open_dataset
from aclam.data.tfrecord import (
    BLOCK,
    RATIO,
    UNPACKED,
    Shard,
    parse_example,
    write_example,
    write_record,
)

FIXTURES = Path(__file__).parent / "fixtures"
sys.path.insert(0, str(FIXTURES))
from pattern import FPS, LENGTHS, numbers  # noqa: E402

TOLD = Declared(fps=FPS)
FIRST, SECOND = (f"pattern-train.tfrecord-0000{n}-of-00002" for n in range(2))


@pytest.fixture
def root(tmp_path) -> Path:
    shutil.copytree(FIXTURES / "rlds", tmp_path / "set")
    return tmp_path / "set"


def opened(root: Path, declared: Declared = TOLD, **options):
    store = open_dataset(root, declared, **options)
    for t in store.trajectories:
        t.frames[[0, len(t) - 1]]
    return store


def refusal(root: Path, declared: Declared = TOLD, **options) -> str:
    with pytest.raises(UserError) as caught:
        opened(root, declared, **options)
    said = str(caught.value)
    assert "\n" not in said and len(said) < 700, said
    return said


def encoded(frame: np.ndarray, form: str = "PNG") -> bytes:
    out = BytesIO()
    Image.fromarray(frame).save(out, form)
    return out.getvalue()


def grey(shade: int, size: tuple[int, int] = (24, 32)) -> bytes:
    return encoded(np.full((*size, 3), shade, np.uint8))


def toy(steps: int = 5, **columns) -> dict:
    """An episode of a few gray frames; None leaves a column out."""
    whole = {
        "steps/observation/image": [grey(10 * n) for n in range(steps)],
        "steps/observation/state": np.arange(3.0 * steps, dtype=np.float32),
        "steps/action": np.zeros(2 * steps, np.float32),
        "steps/language_instruction": [b"wave"] * steps,
        **columns,
    }
    return {key: value for key, value in whole.items() if value is not None}


def write_set(folder: Path, *episodes: dict, name: str = "toy-train.tfrecord") -> Path:
    folder.mkdir(exist_ok=True)
    records = [write_record(write_example(e)) for e in episodes]
    (folder / name).write_bytes(b"".join(records))
    return folder


# --- what is not all there ------------------------------------------------------------------------


@pytest.mark.parametrize("name", [FIRST, SECOND])
def test_a_missing_shard_is_named(root, name):
    (root / name).unlink()
    assert f"1 of 2 shards are missing, such as {name}" in refusal(root)
    store = opened(root, broken=Broken(1))
    assert 0 < len(store) < len(LENGTHS)


def test_many_missing_shards_are_counted_and_not_listed(root):
    (root / SECOND).unlink()
    (root / FIRST).rename(root / "pattern-train.tfrecord-00000-of-99999999")
    assert "99999998 of 99999999 shards are missing" in refusal(root)
    assert "skip-broken 3 is used up" in refusal(root, broken=Broken(3))


def test_a_shard_of_a_higher_number_does_not_stand_for_a_missing_one(root):
    (root / SECOND).rename(root / "pattern-train.tfrecord-00007-of-00002")
    assert f"1 of 2 shards are missing, such as {SECOND}" in refusal(root)


def promise(root: Path, *lengths: object, name: str = "train") -> None:
    split = {"name": name, "shardLengths": list(lengths)}
    (root / "dataset_info.json").write_text(json.dumps({"splits": [split]}))


def test_shards_have_as_many_records_as_dataset_info_says(root):
    lengths = [len(Shard(root / name)) for name in (FIRST, SECOND)]
    promise(root, *map(str, lengths))
    assert len(opened(root)) == len(LENGTHS)
    promise(root, lengths[0], lengths[1] + 1)
    said = refusal(root)
    assert f"{SECOND}: dataset_info.json says {lengths[1] + 1} records, it has {lengths[1]}" in said
    promise(root, 99, 99, name="val")  # another split
    assert len(opened(root)) == len(LENGTHS)


INFO = ["5", "null", '{"splits": 5}', '{"splits": [5]}', '{"splits": [{"shardLengths": ["x"]}]}']


@pytest.mark.parametrize("content", [*INFO, "[" * 100_000, "{", "\xff"])
def test_an_odd_dataset_info_is_one_line(root, content):
    (root / "dataset_info.json").write_bytes(content.encode("latin-1"))
    assert "dataset_info.json" in refusal(root)


# --- damage ---------------------------------------------------------------------------------------


def test_one_bad_record_is_left_out_where_that_is_allowed(root, capsys):
    """Case 15, for records."""
    shard = Shard(root / FIRST)
    start, stop = shard.spans[1]
    shard.data.release()
    damaged = bytearray((root / FIRST).read_bytes())
    damaged[(start + stop) // 2] ^= 1
    (root / FIRST).write_bytes(damaged)
    assert "record 1: its checksum is wrong" in refusal(root)
    store = opened(root, broken=Broken(1))
    assert [numbers(t.frames[[1]][0])[1] for t in store.trajectories] == [0, 2, 3]
    assert "left out, as broken: 1 (--skip-broken 1)" in capsys.readouterr().err


def test_the_records_before_a_damage_are_kept(root):
    whole = (root / FIRST).read_bytes()
    (root / FIRST).write_bytes(whole[:-50])
    assert "is cut off" in refusal(root)
    store = opened(root, broken=Broken(1))
    assert len(store) == len(LENGTHS) - 1
    assert numbers(store.trajectories[0].frames[[1]][0]) == (0, 0, 1)


def test_a_first_record_that_is_bad_does_not_hide_the_cameras(root):
    damaged = bytearray((root / FIRST).read_bytes())
    damaged[100] ^= 1
    (root / FIRST).write_bytes(damaged)
    assert [numbers(t.frames[[0]][0])[1] for t in opened(root, broken=Broken(1)).trajectories][
        0
    ] == 1
    bad = dataclasses.replace(TOLD, camera="imag")
    assert 'no camera "imag"' in refusal(root, bad, broken=Broken(4))


def test_a_gzip_bomb_is_refused_before_it_fills_the_memory(root):
    (root / SECOND).write_bytes(gzip.compress(bytes(80 << 20)))
    assert "unpacks to more than 100 times its size" in refusal(root)
    (root / SECOND).write_bytes(gzip.compress(b"x" * 1000)[:-20])
    assert "not a whole gzip file" in refusal(root)


def test_a_large_gzip_bomb_takes_no_more_memory_than_a_small_one(root):
    """The ratio holds for the bytes read so far, not for the file's size."""
    with gzip.open(root / SECOND, "wb", compresslevel=1) as file:
        for _ in range(400):
            file.write(bytes(1 << 20))
    assert (root / SECOND).stat().st_size * RATIO > 2 * UNPACKED  # the whole file's limit
    taken = []
    read = gzip.GzipFile.read

    def counted(self: gzip.GzipFile, size: int = -1) -> bytes:
        block = read(self, size)
        taken.append(len(block))
        return block

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gzip.GzipFile, "read", counted)
        assert "unpacks to more than 100 times its size" in refusal(root)
    assert sum(taken) <= UNPACKED + BLOCK


def test_an_empty_shard_of_which_nothing_is_promised(root):
    (root / SECOND).write_bytes(b"")
    assert f"{SECOND} is empty" in refusal(root)
    assert len(opened(root, broken=Broken(1)).trajectories) > 0


def test_hidden_and_unfinished_files_and_pipes_are_no_shards(root):
    """Case 05."""
    (root / f"._{FIRST}").write_bytes(b"\x00\x05\x16\x07")
    (root / f"{SECOND}_.gstmp").write_bytes((root / FIRST).read_bytes()[:3000])
    os.mkfifo(root / "pipe.tfrecord")
    assert len(opened(root)) == len(LENGTHS)


# --- protobuf -------------------------------------------------------------------------------------

LONG = b"\xff" * 11 + b"\x01"  # a number of 78 bits


def field(which: int, data: bytes) -> bytes:
    return bytes([which << 3 | 2, len(data)]) + data


def record_of(name: bytes, feature: bytes) -> bytes:
    """A tf.train.Example of one entry, whose two fields are given as bytes."""
    return field(1, field(1, name + field(2, feature)))


RECORDS = {
    "a long number": LONG,
    "a long number in a list": record_of(field(1, b"i"), field(3, field(1, LONG))),
    "a long number alone": record_of(field(1, b"i"), field(3, bytes([8]) + LONG)),
    "a number that does not end": record_of(field(1, b"i"), field(3, field(1, b"\xff"))),
    "a number as a name": record_of(bytes([8, 100]), field(3, b"")),
    "a number as a feature": bytes([8, 5]),
    "a number among bytes": record_of(field(1, b"i"), field(1, bytes([8, 5]))),
    "half a float": record_of(field(1, b"f"), field(2, field(1, b"\0\0"))),
    "no name": record_of(b"", field(3, b"")),
    "half a name": record_of(field(1, b"\xff"), field(3, b"")),
    "text": b"this is not a protobuf message at all",
}


@pytest.mark.parametrize("what", RECORDS)
def test_a_record_that_is_no_example_is_one_line(root, what):
    with pytest.raises(ValueError):
        parse_example(RECORDS[what])
    (root / FIRST).write_bytes(write_record(RECORDS[what]))
    assert f"{FIRST}: record 0: " in refusal(root)


def test_a_name_that_is_a_huge_number_takes_no_memory():
    huge = bytes([8]) + b"\xff" * 6 + b"\x3f"  # 2**48 as the name
    with pytest.raises(ValueError, match="a number where bytes are expected"):
        parse_example(record_of(huge, field(3, b"")))


# --- features.json --------------------------------------------------------------------------------

FEATURES = {
    "number": "5",
    "null": "null",
    "list": "[]",
    "texts": '{"featuresDict": "x"}',
    "inner text": '{"featuresDict": {"features": "x"}}',
    "inner number": '{"featuresDict": {"features": {"steps": 5}}}',
    "sequence": '{"sequence": [1]}',
    "sequence of text": '{"sequence": {"feature": "x"}}',
    "image": '{"featuresDict": {"features": {"image": {"image": "jpeg"}}}}',
    "deep": "[" * 100_000,
    "deeper": '{"sequence": {"feature": ' * 80 + "{}" + "}}" * 80,
    "half": '{"featuresDict": ',
    "nothing": "{}",
}


@pytest.mark.parametrize("what", FEATURES)
def test_an_odd_features_json_is_one_line(root, what):
    (root / "features.json").write_text(FEATURES[what])
    assert "features.json" in refusal(root)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_a_features_json_that_is_no_file(root, make):
    (root / "features.json").unlink()
    make(root / "features.json")
    assert "features.json is a " in refusal(root)


# --- cameras --------------------------------------------------------------------------------------

DEPTH = [encoded(np.full((24, 32), 300 * n, np.uint16)) for n in range(5)]


def test_a_depth_map_is_no_camera(tmp_path):
    """Case 16, for records: `depth` comes before `image`."""
    root = write_set(tmp_path / "set", toy(**{"steps/observation/depth": DEPTH}))
    store = opened(root)
    assert store.meta["camera"] == "steps/observation/image"
    assert store.meta["cameras"] == ["steps/observation/image"]
    assert "is a depth map" in refusal(root, dataclasses.replace(TOLD, camera="depth"))


def test_features_json_marks_depth_maps_too(tmp_path):
    gray = [encoded(np.full((24, 32), n, np.uint8)) for n in range(5)]
    root = write_set(tmp_path / "set", toy(**{"steps/observation/far": gray}))
    assert opened(root).meta["camera"] == "steps/observation/far"
    inner = {
        "far": {"image": {"dtype": "uint16"}},
        "image": {"image": {"dtype": "uint8"}},
    }
    steps = {"featuresDict": {"features": {"observation": {"featuresDict": {"features": inner}}}}}
    told = {"featuresDict": {"features": {"steps": {"sequence": {"feature": steps}}}}}
    (root / "features.json").write_text(json.dumps(told))
    assert opened(root).meta["camera"] == "steps/observation/image"


def test_depth_maps_alone_are_refused(tmp_path):
    root = write_set(tmp_path / "set", toy(**{"steps/observation/image": DEPTH}))
    assert "has no camera that is in color" in refusal(root)


# --- columns --------------------------------------------------------------------------------------

COLUMNS = {
    "no number a step": ({"steps/observation/state": np.zeros(7, np.float32)}, "7 numbers for 5"),
    "another width": ({"steps/observation/state": np.zeros(10, np.float32)}, "state has 2 numbers"),
    "no state": ({"steps/observation/state": None}, "state has no numbers"),
    "no action": ({"steps/action": None}, "action has no numbers"),
    "nan": ({"steps/action": np.full(10, np.nan, np.float32)}, "not finite"),
    "one image": ({"steps/observation/image": [grey(0)]}, "fewer than two images"),
    "sizes": (
        {"steps/observation/image": [grey(0)] * 4 + [grey(0, (9, 9))]},
        "images of different sizes",
    ),
    "no picture": ({"steps/observation/image": [b"x"] * 5}, "not a whole JPEG or PNG"),
    "16 bits": ({"steps/observation/image": DEPTH}, "16 or more bits"),
}


@pytest.mark.parametrize("what", COLUMNS)
def test_an_odd_second_record_is_one_line_that_names_it(tmp_path, what):
    columns, said = COLUMNS[what]
    root = write_set(tmp_path / "set", toy(), toy(**columns))
    message = refusal(root)
    assert said in message and "episode 1" in message


def test_an_instruction_of_numbers_is_no_instruction(tmp_path):
    root = write_set(tmp_path / "set", toy(**{"steps/language_instruction": np.arange(5)}))
    assert opened(root).trajectories[0].task == ""


def test_images_are_turned_as_their_exif_says(tmp_path):
    frame = np.zeros((24, 32, 3), np.uint8)
    frame[:12] = 200
    out = BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(frame).save(out, "JPEG", exif=exif, quality=95)
    root = write_set(tmp_path / "set", toy(**{"steps/observation/image": [out.getvalue()] * 5}))
    read = opened(root).trajectories[0].frames[[0]][0]
    assert read[:10].mean() < 20 and read[14:].mean() > 180
