"""Small files of metadata: not JSON, not YAML, of other types, without a key, too large, no files."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from .base import cut, edit_json, write
from .case import EITHER, READ, REFUSED, Case, many

DEEP = 200_000
MIB = 2**20


def _replace_by(make: Callable[[Path], object], file: str) -> Callable[[Path], None]:
    def spoil(here: Path) -> None:
        (here / file).unlink()
        make(here / file)

    return spoil


def _large(file: str) -> Callable[[Path], None]:
    """A document of 200 MiB, nearly all of it spaces."""

    def spoil(here: Path) -> None:
        start = (here / file).read_bytes()
        with open(here / file, "wb") as out:
            out.write(b" " * (200 * MIB))
            out.write(start)

    return spoil


def _marked(file: str) -> Callable[[Path], None]:
    """A byte order mark in front, as some editors write it."""

    def spoil(here: Path) -> None:
        (here / file).write_bytes(b"\xef\xbb\xbf" + (here / file).read_bytes())

    return spoil


def odd_documents(file: str) -> dict[str, Callable[[Path], None]]:
    """What every JSON file may be instead of itself."""
    return {
        f"{file} is empty": write(file, b""),
        f"{file} is a number": write(file, "5"),
        f"{file} is null": write(file, "null"),
        f"{file} is a word": write(file, '"x"'),
        f"{file} is a list": write(file, "[1, 2]"),
        f"{file} is an empty object": write(file, "{}"),
        f"{file} is cut": cut(file, 0.6),
        f"{file} is not UTF-8": write(file, b'{"a": "\xff\xfe"}'),
        f"{file} is zeros": write(file, bytes(4096)),
        f"{file} is deep": write(file, "[" * DEEP),
        f"{file} has deep objects": write(file, '{"a":' * DEEP),
        f"{file} has a long number": write(file, '{"fps": 1' + "0" * 10_000 + "}"),
        f"{file} is a folder": _replace_by(os.mkdir, file),
        f"{file} is a pipe": _replace_by(os.mkfifo, file),
        f"{file} is /dev/zero": _replace_by(lambda p: p.symlink_to("/dev/zero"), file),
        f"{file} is a link to itself": _replace_by(lambda p: p.symlink_to(p), file),
        f"{file} is too large": _large(file),
    }


READERS = {  # group -> (valid data, its file, a command that reads it)
    "store": ("store", "store/meta.json", ("aclam-data", "inspect", "store")),
    "LeRobot v2.1": ("lerobot_v21", "lerobot_v21/meta/info.json", ("aclam-data", "inspect")),
    "LeRobot v3.0": ("lerobot_v30", "lerobot_v30/meta/info.json", ("aclam-data", "inspect")),
    "RLDS": ("rlds", "rlds/features.json", ("aclam-data", "inspect")),
    "model": ("lam", "lam/config.json", ("aclam-structure", "--data", "store", "--model", "lam")),
    "policy": (
        "policy",
        "policy/config.json",
        ("aclam-rollout", "--episodes", "1", "--max-steps", "2", "--policy", "policy"),
    ),
    "labels": (
        "labeled",
        "labeled/labels/mine/labels.json",
        ("aclam-label", "--data", "labeled", "--model", "lam", "--offsets", "1", "--name", "mine"),
    ),
}


def _reader_cases() -> list[Case]:
    cases = []
    for kind, (data, file, command) in READERS.items():
        words = command if len(command) > 2 else (*command, data)
        words = (*words, "--rate", "5") if kind == "RLDS" else words
        needs = {data, "store", "lam"} if kind in ("model", "labels") else {data}
        odd = odd_documents(file)
        # features.json that says nothing, and labels of which nothing is known, may be made anew
        right = EITHER if kind == "labels" else REFUSED
        cases += many(kind, sorted(needs), words, odd, right)
        mark = {f"{file} has a byte order mark": _marked(file)}
        cases += many(kind, sorted(needs), words, mark, EITHER if kind == "labels" else READ)
    return cases


def _edits(file: str, table: dict[str, dict], keep: str = "") -> dict[str, Callable]:
    return {f"{name}{keep}": edit_json(file, **values) for name, values in table.items()}


STORE = {
    "meta.json without parts": {"parts": ...},
    "meta.json without fps": {"fps": ...},
    "parts is a number": {"parts": 5},
    "parts is empty": {"parts": []},
    "parts are numbers": {"parts": [1, 2]},
    "parts have no bytes": {"parts": [{"file": "frames/part-00000.parquet"}]},
    "parts of strings as bytes": {"parts": [{"file": "frames/part-00000.parquet", "bytes": "x"}]},
    "a part outside": {"parts": [{"file": "../../../../etc/passwd", "bytes": 5, "sha256": ""}]},
    "layout is a number": {"layout": 7},
    "layout is a list": {"layout": ["position"]},
    "layout has unknown columns": {"layout": {"positions": [0]}},
    "embodiment is a number": {"embodiment": 3},
    "embodiment of numbers": {"embodiment": [3]},
    "fps is a word": {"fps": "ten"},
    "fps is negative": {"fps": -3},
    "fps is zero": {"fps": 0},
    "fps is null": {"fps": None},
    "fps is a list": {"fps": [5]},
    "image_size is huge": {"image_size": [1e9, 1e9]},
    "image_size is a number": {"image_size": 16},
    "image_size is negative": {"image_size": [-16, 16]},
    "image_size is missing": {"image_size": ...},
    "quantiles is a number": {"quantiles": 5},
    "quantiles of words": {"quantiles": {"square": {"proprio": {"q01": ["a"], "q99": ["b"]}}}},
    "camera is a list": {"camera": ["a"]},
    "camera is missing": {"camera": ...},
    "episodes is wrong": {"episodes": 99},
    "frames is a word": {"frames": "many"},
    "format_version is a word": {"format_version": "one"},
    "format is a list": {"format": ["aclam-store"]},
}
MISSING_OK = ("meta.json without fps", "camera is missing", "image_size is missing")
INFO = {
    "chunks_size is a word": {"chunks_size": "many"},
    "robot_type is an object": {"robot_type": {"a": 1}},
    "data_path is empty": {"data_path": ""},
    "data_path is a number": {"data_path": 5},
    "data_path is missing": {"data_path": ...},
    "data_path asks for gigabytes": {"data_path": "{episode_chunk:02000000000d}{chunk_index}"},
    "data_path of a chunk with gigabytes": {"data_path": "{chunk_index:02000000000d}"},
    "data_path of attributes": {"data_path": "{episode_index.__class__}"},
    "video_path of attributes": {"video_path": "{video_key.__class__}"},
    "video_path is null": {"video_path": None},
    "video_path leads out": {"video_path": "../../{video_key}.mp4"},
    "video_path is absolute": {"video_path": "/etc/{video_key}"},
    "fps is true": {"fps": True},
    "fps is a word": {"fps": "10"},
    "fps is zero": {"fps": 0},
    "fps is negative": {"fps": -1},
    "fps is null": {"fps": None},
    "features is a list": {"features": []},
    "features is empty": {"features": {}},
    "features is missing": {"features": ...},
    "features of numbers": {"features": {"action": 5}},
    "codebase_version is a number": {"codebase_version": 2},
    "total_episodes is another": {"total_episodes": 99},
    "total_frames is another": {"total_frames": 99_999},
    "total_episodes is a word": {"total_episodes": "four"},
}


def _feature(root: str, name: str, **values: object) -> Callable[[Path], None]:
    """Change what info.json says about a column."""

    def spoil(here: Path) -> None:
        import json

        path = here / root / "meta" / "info.json"
        info = json.loads(path.read_text())
        info["features"][name] = {**info["features"][name], **values}
        path.write_text(json.dumps(info))

    return spoil


TOP = "observation.images.top"
FEATURES = {
    "camera's shape has one number": (TOP, {"shape": [3]}),
    "camera's shape has five numbers": (TOP, {"shape": [1, 1, 1, 48, 64]}),
    "camera's shape is true": (TOP, {"shape": [True, True, 3]}),
    "camera's shape is huge": (TOP, {"shape": [10**9, 10**9, 3]}),
    "camera's shape of words": (TOP, {"shape": ["48", "64", "3"]}),
    "camera's names is a number": (TOP, {"names": 5}),
    "camera's info is a word": (TOP, {"info": "x"}),
    "camera's dtype is a number": (TOP, {"dtype": 5}),
    "state's dtype is a list": ("observation.state", {"dtype": ["float32"]}),
    "state's shape is empty": ("observation.state", {"shape": []}),
    "state's shape is another": ("observation.state", {"shape": [7]}),
    "action's shape is negative": ("action", {"shape": [-3]}),
    "action's shape is huge": ("action", {"shape": [10**15]}),
}
FEATURE_EITHER = ("camera's names is a number", "camera's info is a word")
INFO_EITHER = ("video_path is null",)


def _lerobot_cases() -> list[Case]:
    cases = []
    for name, kind in (("lerobot_v21", "LeRobot v2.1"), ("lerobot_v30", "LeRobot v3.0")):
        command = ("aclam-data", "inspect", name)
        table = _edits(f"{name}/meta/info.json", INFO)
        if name == "lerobot_v21":
            table.pop("data_path of a chunk with gigabytes")
        else:
            table.pop("chunks_size is a word")
            table.pop("data_path asks for gigabytes")
        cases += many(kind, [name], command, table)
        changed = {what: _feature(name, f, **v) for what, (f, v) in FEATURES.items()}
        sure = {what: f for what, f in changed.items() if what not in FEATURE_EITHER}
        cases += many(kind, [name], command, sure)
        open_ = {what: f for what, f in changed.items() if what in FEATURE_EITHER}
        cases += many(kind, [name], command, open_, EITHER)
    return cases


LAM = {
    "config.json: model is a list": {"model": []},
    "config.json: model is a number": {"model": 3},
    "config.json: model is unknown": {"model": "no_such_model"},
    "config.json: model is missing": {"model": ...},
    "config.json: patch_size is zero": {"patch_size": 0},
    "config.json: patch_size is negative": {"patch_size": -8},
    "config.json: patch_size is a word": {"patch_size": "8"},
    "config.json: idm_heads is zero": {"idm_heads": 0},
    "config.json: idm_heads is negative": {"idm_heads": -4},
    "config.json: fdm_heads is zero": {"fdm_heads": 0},
    "config.json: image_size is zero": {"image_size": 0},
    "config.json: image_size is negative": {"image_size": -16},
    "config.json: image_size is huge": {"image_size": 16 * 10**6},
    "config.json: image_size is a fraction": {"image_size": 32.5},
    "config.json: idm_width is huge": {"idm_width": 4 * 10**8},
    "config.json: fdm_width is huge": {"fdm_width": 4 * 10**12},
    "config.json: idm_depth is huge": {"idm_depth": 10**6},
    "config.json: idm_depth is negative": {"idm_depth": -1},
    "config.json: tokens is zero": {"tokens": 0},
    "config.json: tokens is negative": {"tokens": -4},
    "config.json: tokens is huge": {"tokens": 10**12},
    "config.json: code_dim is zero": {"code_dim": 0},
    "config.json: code_dim is huge": {"code_dim": 10**12},
    "config.json: proprio_dim is huge": {"proprio_dim": 10**12},
    "config.json: embodiments is zero": {"embodiments": 0},
    "config.json: residual is a word": {"residual": "yes"},
    "config.json: bottleneck is a list": {"bottleneck": []},
    "config.json: bottleneck of numbers": {"bottleneck": {"kind": 5}},
    "config.json: codes is zero": {"bottleneck": {"kind": "vq", "codes": 0}},
    "config.json: codes is huge": {"bottleneck": {"kind": "vq", "codes": 10**12}},
    "config.json: objective is a number": {"objective": 5},
    "config.json: an unknown field": {"no_such_field": 1},
    "config.json: another width": {"idm_width": 64},
}
POLICY = {
    "config.json: vlm is a list": {"vlm": []},
    "config.json: vlm of numbers": {"vlm": {"image_size": "x"}},
    "config.json: vlm.image_size is zero": {"vlm": {"kind": "small", "image_size": 0}},
    "config.json: vlm.patch_size is zero": {"vlm": {"kind": "small", "patch_size": 0}},
    "config.json: vlm.depth is huge": {"vlm": {"kind": "small", "depth": 10**6}},
    "config.json: expert is a word": {"expert": "x"},
    "config.json: expert.heads is zero": {"expert": {"heads": 0}},
    "config.json: latents is negative": {"latents": -1},
    "config.json: actions is zero": {"actions": 0},
    "config.json: actions is huge": {"actions": 10**12},
    "config.json: action_dim is a word": {"action_dim": "7"},
    "config.json: control is a number": {"control": 5},
    "config.json: units is unknown": {"units": "feet"},
    "config.json: draws is zero": {"draws": 0},
    "config.json: flow is a number": {"flow": 1},
    "config.json: flow.steps is zero": {"flow": {"steps": 0}},
    "config.json: an unknown field": {"no_such_field": 1},
    "config.json: model is a list": {"model": []},
}
PLAN = {
    "meta.json": ("store/meta.json", {"episodes": "x"}),
    "meta.json frames": ("store/meta.json", {"frames": [1]}),
    "meta.json fps": ("store/meta.json", {"fps": "ten"}),
    "meta.json fps of zero": ("store/meta.json", {"fps": 0}),
    "info.json": ("lerobot_v30/meta/info.json", {"total_episodes": "x"}),
    "info.json frames": ("lerobot_v30/meta/info.json", {"total_frames": {"a": 1}}),
    "info.json fps": ("lerobot_v30/meta/info.json", {"fps": [10]}),
    "info.json version": ("lerobot_v30/meta/info.json", {"codebase_version": [1]}),
}
DATASET_INFO = {
    "dataset_info.json is a number": "5",
    "dataset_info.json is a list": "[]",
    "dataset_info.json: splits is a number": '{"splits": 5}',
    "dataset_info.json: splits of words": '{"splits": ["train"]}',
    "dataset_info.json: lengths of words": '{"splits": [{"shardLengths": ["many"]}]}',
    "dataset_info.json: lengths is a number": '{"splits": [{"shardLengths": 5}]}',
    "dataset_info.json: version is a list": '{"version": [1], "splits": {"a": 1}}',
    "dataset_info.json is deep": "[" * DEEP,
}


def _in_place(source: str, spoil: Callable[[Path], object]) -> Callable[[Path], None]:
    """Spoil a dataset and put it where a mixture looks for it."""

    def do(here: Path) -> None:
        spoil(here)
        shutil.rmtree(here / "mixture" / "data" / "jaco_play")
        shutil.move(here / source, here / "mixture" / "data" / "jaco_play")

    return do


def _plan_cases() -> list[Case]:
    command = ("aclam-data", "plan", "mixture/mixture.yaml", "--root", "mixture/data")
    cases = []
    for name, (file, values) in PLAN.items():
        source = file.split("/")[0]
        spoil = _in_place(source, edit_json(file, **values))
        cases.append(Case("plan", f"{name}: {values}", ("mixture", source), spoil, command))
    for name, text in DATASET_INFO.items():
        spoil = _in_place("rlds", write("rlds/dataset_info.json", text))
        cases.append(Case("plan", name, ("mixture", "rlds"), spoil, command))
    return cases


def cases() -> list[Case]:
    """All of this module."""
    found = _reader_cases()
    store = _edits("store/meta.json", STORE)
    sure = {name: spoil for name, spoil in store.items() if name not in MISSING_OK}
    found += many("store", ["store"], ("aclam-data", "inspect", "store"), sure)
    rest = {name: spoil for name, spoil in store.items() if name in MISSING_OK}
    found += many("store", ["store"], ("aclam-data", "inspect", "store"), rest)
    found += _lerobot_cases()
    model = READERS["model"][2]
    found += many("model", ["lam", "store"], model, _edits("lam/config.json", LAM))
    found += many("policy", ["policy"], READERS["policy"][2], _edits("policy/config.json", POLICY))
    found += _plan_cases()
    return found
