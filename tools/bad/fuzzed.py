"""Random bad inputs: strategies of hypothesis over every reader, every command's options, and calls.

An input is a description of JSON types, so that one that was answered wrongly can be kept in a file
and tried again.
"""

import json
import math
import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from .base import FAMILIES
from .case import EITHER, Case
from .options import COMPARE, DEMO, HELP, LABEL, PLAN, STRUCTURE, TRAIN_LAM, needs_of

Description = dict[str, Any]
READ_LEROBOT = ("--n", "2")
ROLLOUT = ("aclam-rollout", "--episodes", "1", "--max-steps", "2", "--split", "id", "--policy")
STORE = ("aclam-data", "triples", "store", "--n", "2", "--png", "x.png")
RATE = ("--rate", "5", "--n", "2")
RECIPE = ("aclam-data", "triples", "rlds", "--recipe", "mixture/recipe.yaml", *RATE)
DOCUMENTS = {  # a file -> the command that reads it
    "store/meta.json": STORE,
    "lerobot_v21/meta/info.json": ("aclam-data", "triples", "lerobot_v21", *READ_LEROBOT),
    "lerobot_v30/meta/info.json": ("aclam-data", "triples", "lerobot_v30", *READ_LEROBOT),
    "rlds/features.json": ("aclam-data", "triples", "rlds", *RATE),
    "lam/config.json": STRUCTURE,
    "villa_x/model_config.json": (*STRUCTURE, "--model", "villa_x"),
    "policy/config.json": (*ROLLOUT, "policy"),
    "labeled/labels/mine/labels.json": (*LABEL, "--data", "labeled", "--name", "mine"),
    "mixture/mixture.yaml": (*PLAN, "--root", "mixture/data"),
    "mixture/recipe.yaml": RECIPE,
    "run/it/config.json": (*TRAIN_LAM, "--out", "run/it"),
    "run/it/data.json": (*TRAIN_LAM, "--out", "run/it"),
    "run/it/result.json": (*TRAIN_LAM, "--out", "run/it"),
}
LINES = {
    "lerobot_v21/meta/episodes.jsonl": ("aclam-data", "triples", "lerobot_v21", *READ_LEROBOT),
    "lerobot_v21/meta/tasks.jsonl": ("aclam-data", "triples", "lerobot_v21", *READ_LEROBOT),
    "run/it/metrics.jsonl": (*TRAIN_LAM, "--out", "run/it"),
    "rollout/it/episodes.jsonl": (*ROLLOUT, "expert", "--out", "rollout/it"),
}
DATA = "chunk-000/file-000.parquet"
BINARIES = {
    "store/frames/part-00000.parquet": STORE,
    "store/episodes/part-00000.parquet": STORE,
    f"lerobot_v30/data/{DATA}": DOCUMENTS["lerobot_v30/meta/info.json"],
    f"lerobot_v30/meta/episodes/{DATA}": DOCUMENTS["lerobot_v30/meta/info.json"],
    "lerobot_v30/meta/tasks.parquet": DOCUMENTS["lerobot_v30/meta/info.json"],
    "lerobot_v21/data/chunk-000/episode_000001.parquet": LINES["lerobot_v21/meta/tasks.jsonl"],
    "rlds/pattern-train.tfrecord-00000-of-00002": DOCUMENTS["rlds/features.json"],
    "videos/clip_0.mp4": ("aclam-data", "triples", "videos", "--n", "8"),
    "pictures/0.png": ("aclam-data", "triples", "pictures", *RATE, "--png", "x.png"),
    "latents/z.npz": ("aclam-structure", "--latents", "latents/z.npz"),
    "lam/model.safetensors": STRUCTURE,
    "lapa/laq.pt": (*STRUCTURE, "--model", "lapa/laq.pt"),
    "policy/model.safetensors": (*ROLLOUT, "policy"),
    "labeled/labels/mine/part-00000.parquet": DOCUMENTS["labeled/labels/mine/labels.json"],
    **{name: words for name, words in DOCUMENTS.items() if name.endswith(".yaml")},
}
TABLES = {name: words for name, words in BINARIES.items() if name.endswith(".parquet")}

# --- values ---------------------------------------------------------------------------------------

NUMBERS = st.one_of(
    st.sampled_from([0, -1, 1, 2, 2**31, 2**63, -(2**63) - 1, 10**30]),
    st.integers(-5, 300),
    st.floats(allow_nan=True, allow_infinity=True),
)
TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXT)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=6,
)
PLACES = st.lists(st.integers(0, 40), min_size=1, max_size=6)
BYTES = st.tuples(
    st.sampled_from(["flip", "cut", "insert", "remove", "repeat"]),
    st.floats(0, 1),
    st.integers(1, 255),
)
CELLS = st.lists(st.one_of(st.none(), NUMBERS, TEXT, st.lists(NUMBERS, max_size=3)), max_size=3)


def _described(kind: str, table: dict[str, tuple], edit: st.SearchStrategy) -> st.SearchStrategy:
    """Descriptions of one to three edits of a file of the table."""

    def description(file: str, edits: list) -> Description:
        return {"kind": kind, "file": file, "edits": edits, "words": list(table[file])}

    return st.builds(
        description, st.sampled_from(sorted(table)), st.lists(edit, min_size=1, max_size=3)
    )


# --- options --------------------------------------------------------------------------------------

NEVER_LARGE = (  # what is asked for is then done, and takes its time
    *("steps", "episodes", "seeds", "n", "probe-n", "intervals", "max-steps", "minutes", "epoch"),
    *("workers", "envs", "num-workers", "prefetch", "last", "batch"),
)
INTEGERS = ("-3", "-1", "0", "1", "2", "3", "7")
LARGE = ("65536", "1000000", "1000000000000")
FLOATS = ("nan", "inf", "-inf", "-1", "0", "1e-300", "0.5", "1", "2", "1e9", "1e300")
WORDS = ("", "x", "store", "/dev/null", "..", "a b", "\u65e5\u672c", "nowhere", "-", "None")
CHEAP = {name: words for name, words in HELP.items() if words not in (DEMO, COMPARE)}


def options_of(name: str) -> list[tuple[str, str]]:
    """Every option in the help of a command with what it takes: [(option, INT)]."""
    text = (files("aclam") / "configs" / "help" / f"{name}.txt").read_text()
    lines = re.findall(r"^ +(--[a-z][a-z0-9.-]*)(, --no-\S+)?(?: (\S+(?: \S+)*))?", text, re.M)
    found = {option: "" if no else takes for option, no, takes in lines}
    return [(option, takes) for option, takes in found.items() if option not in ("--out", "--help")]


def _value(option: str, takes: str) -> st.SearchStrategy[list[str]]:
    """Words for one option."""
    tail = option.split(".")[-1].lstrip("-")
    numbers = INTEGERS if tail in NEVER_LARGE else (*INTEGERS, *LARGE)
    if not takes:
        return st.just([])
    if "FLOAT FLOAT" in takes:
        return st.lists(st.sampled_from(FLOATS), min_size=2, max_size=2)
    if takes.startswith("["):
        words = numbers if "INT" in takes else WORDS
        return st.lists(st.sampled_from(words), max_size=3)
    if "FLOAT" in takes:
        return st.sampled_from(FLOATS).map(_alone)
    if "INT" in takes:
        return st.sampled_from(numbers).map(_alone)
    if takes.startswith("{") and "|" not in takes:
        choices = takes.strip("{}").split(",")
        return st.sampled_from((*choices, "x")).map(_alone)
    return st.sampled_from(WORDS).map(_alone)


def _alone(word: str) -> list[str]:
    return [word]


@st.composite
def options(draw: Callable) -> Description:
    """A command with one to three options of random values."""
    name = draw(st.sampled_from(sorted(CHEAP)))
    words = list(CHEAP[name])
    for option, takes in draw(st.lists(st.sampled_from(options_of(name)), min_size=1, max_size=3)):
        words += [option, *draw(_value(option, takes))]
    return {"kind": "options", "words": words}


@st.composite
def command_lines(draw: Callable) -> Description:
    """A command with words that are no options of it."""
    name = draw(st.sampled_from(sorted(CHEAP)))
    extra = draw(st.lists(st.one_of(TEXT, st.sampled_from(WORDS)), min_size=1, max_size=3))
    extra = [word.replace("\x00", "") for word in extra]
    return {"kind": "options", "words": [*CHEAP[name], *extra]}


# --- calls ----------------------------------------------------------------------------------------

DTYPES = ("float32", "float64", "float16", "bfloat16", "uint8", "int64", "bool", "complex64")
SIDES = st.lists(st.sampled_from([0, 1, 2, 3, 4, 16, 32, 64]), max_size=5)
SHAPES = SIDES.filter(lambda sides: math.prod(sides) <= 2**22)  # what this machine can make


@st.composite
def calls(draw: Callable) -> Description:
    """`encode` and `decode` of a family with tensors of random shapes, dtypes and ranges."""
    first, second = (
        {
            "shape": draw(st.one_of(st.just("right"), SHAPES)),
            "dtype": draw(st.sampled_from(DTYPES)),
            "scale": draw(st.sampled_from([1.0, 1.0, 255.0, -1.0, 1e30, float("nan")])),
        }
        for _ in range(2)
    )
    what = draw(st.sampled_from(["encode", "decode"]))
    family = draw(st.sampled_from(FAMILIES))
    return {"kind": "calls", "family": family, "call": what, "given": [first, second]}


PROPERTIES: dict[str, st.SearchStrategy[Description]] = {
    "documents": _described("documents", DOCUMENTS, st.tuples(PLACES, VALUES, st.booleans())),
    "lines": _described("lines", LINES, st.tuples(PLACES, VALUES, st.booleans())),
    "bytes": _described("bytes", {**BINARIES, **DOCUMENTS, **LINES}, BYTES),
    "columns": _described("columns", TABLES, st.tuples(st.integers(0, 30), CELLS)),
    "options": options(),
    "command lines": command_lines(),
    "calls": calls(),
}


# --- what a description does ----------------------------------------------------------------------


def place(content: Any, path: list[int], value: Any, remove: bool) -> Any:
    """Replace, or remove, the value that lies at a path of numbers."""
    if not isinstance(content, (dict, list)) or not content or not path:
        return value
    keys = sorted(content) if isinstance(content, dict) else range(len(content))
    key = keys[path[0] % len(keys)]
    inner = content[key]
    deeper = isinstance(inner, (dict, list)) and inner and len(path) > 1
    if deeper:
        content[key] = place(inner, path[1:], value, remove)
    elif remove:
        del content[key]
    else:
        content[key] = value
    return content


def edit_document(path: Path, edits: list) -> None:
    is_yaml = path.suffix == ".yaml"
    content = yaml.safe_load(path.read_text()) if is_yaml else json.loads(path.read_text())
    for where, value, remove in edits:
        content = place(content, list(where), value, remove)
    path.write_text(yaml.safe_dump(content) if is_yaml else json.dumps(content))


def edit_lines(path: Path, edits: list) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for where, value, remove in edits:
        rows = place(rows, list(where), value, remove)
        rows = rows if isinstance(rows, list) else [rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def edit_bytes(path: Path, edits: list) -> None:
    data = bytearray(path.read_bytes())
    for what, share, number in edits:
        at = int(share * len(data))
        if what == "flip" and at < len(data):
            data[at] ^= number
        elif what == "cut":
            del data[at:]
        elif what == "insert":
            data[at:at] = bytes([number])
        elif what == "remove":
            del data[at : at + number]
        elif what == "repeat":
            data[at:at] = data[at : at + number]
    path.write_bytes(data)


def edit_columns(path: Path, edits: list) -> None:
    """Replace columns by repeated cells; cells that are no column leave it as it is."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from .tables import _resize

    table = pq.read_table(path, partitioning=None)
    for number, cells in edits:
        name = table.column_names[number % len(table.column_names)]
        values = [cells[n % len(cells)] for n in range(len(table))] if cells else None
        try:
            column = pa.array(values) if values else None
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            continue
        index = table.column_names.index(name)
        table = (
            table.drop_columns([name]) if column is None else table.set_column(index, name, column)
        )
        if not table.column_names:
            break
    path.unlink()
    pq.write_table(table, path)
    if path.parts[-3] == "store":
        _resize(path.parents[1], path)


EDITS = {
    "documents": edit_document,
    "lines": edit_lines,
    "bytes": edit_bytes,
    "columns": edit_columns,
}


def _tensor(given: dict, right: list[int]) -> Any:
    import torch

    shape = right if given["shape"] == "right" else given["shape"]
    values = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * given["scale"]
    if given["dtype"] in ("uint8", "int64", "bool"):
        values = values.nan_to_num(0, 0, 0)
    return values.to(getattr(torch, given["dtype"]))


def _call(description: Description) -> Callable[[Path], object]:
    import torch

    from aclam.lam import LatentActionModel

    def do(here: Path) -> object:
        torch.manual_seed(0)
        model = LatentActionModel.from_preset(description["family"]).eval()
        size = model.config.image_size
        first, second = description["given"]
        o_i = _tensor(first, [2, 3, size, size])
        with torch.no_grad():
            if description["call"] == "encode":
                return model.encode(o_i, _tensor(second, [2, 3, size, size]))
            return model.decode(o_i, _tensor(second, [2, model.config.latent_dim]))

    return do


def case_of(description: Description) -> Case:
    """The case that a description means; refused in one line, or carried out, is right."""
    kind = description["kind"]
    if kind == "calls":
        return Case(kind, "", (), lambda here: None, _call(description), EITHER)
    words = tuple(description["words"])
    if kind == "options":
        return Case(kind, "", needs_of(words), lambda here: None, words, EITHER)
    file = description["file"]
    top = file.split("/")[0]
    needs = tuple(dict.fromkeys((top, *needs_of(words))))
    needs = (*needs, "rlds") if "rlds" in words and "rlds" not in needs else needs

    def spoil(here: Path) -> None:
        EDITS[kind](here / file, description["edits"])

    return Case(kind, file, needs, spoil, words, EITHER)
