"""The table of formats: what is read of each, by whom it was written, and whether a round trip
leaves it as it was. Every cell is found by running.

    python tools/formats_table.py [--out aclam/results/formats.json]

A row: the fixture is opened with `verify`; every frame says which one it is, and is held against its
place; then all is written as a store and as LeRobot, read, and compared. Writers and their versions
stand in the scripts that made the fixtures; where the writer is installed, the fixture is made again
and read again.
"""

import argparse
import importlib.util
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from aclam.core import write_json
from aclam.data.declared import Declared
from aclam.data.lerobot_columns import add_columns, is_whole_lerobot
from aclam.data.lerobot_writer import check_round_trip, write_lerobot
from aclam.data.source import declared_for, open_dataset
from aclam.data.store import Store, write_store
from aclam.data.trajectory import FrameArray, Trajectory

ROOT = Path(__file__).resolve().parents[1]
FIXTURES = ROOT / "tests" / "fixtures"
sys.path.insert(0, str(FIXTURES))
from pattern import LENGTHS, numbers, picture, state, task  # noqa: E402

KEPT = ROOT / "aclam" / "results" / "formats.json"


@dataclass(frozen=True)
class Source:
    """A format, and how its fixture is opened."""

    name: str
    fixture: str  # below tests/fixtures; "" where it is made each time
    script: str = ""  # what made it, likewise
    writer: str = ""  # the package that wrote it
    declared: Declared = Declared()
    needs: tuple[str, ...] = ()  # modules that read it
    make: tuple[str, ...] = ()  # functions of the script that make it again, into a folder
    recipe: str | None = None  # what is declared, if it is a recipe that says so
    extra: str = ""


HDF5 = {"script": "make_hdf5.py", "writer": "h5py", "needs": ("h5py",), "extra": "hdf5"}
ZARR = {"script": "make_zarr.py", "writer": "zarr", "extra": "zarr"}
MCAP = {"needs": ("mcap", "mcap_ros2", "mcap_protobuf"), "extra": "mcap"}
RAW = {"script": "make_raw.py", "writer": "h5py", "needs": ("h5py",), "extra": "hdf5"}
TEN = Declared(fps=10)
CLIPS = "lerobot_v21/videos/chunk-000/observation.images.top"
SOURCES = [
    Source("store", ""),
    Source("LeRobot v2.1", "lerobot_v21", "make_lerobot.py", "lerobot"),
    Source("LeRobot v3.0", "lerobot_v30", "make_lerobot.py", "lerobot-dataset"),
    Source("LeRobot v3.1", "", "make_v31.py", "lerobot", make=("v31",)),
    Source(
        "LeRobot v3.0 in Lance",
        "lerobot_lance",
        "make_lance.sh",
        "lerobot-lancedb",
        needs=("lance",),
        extra="lance",
    ),
    Source("RLDS", "rlds", "make_tfrecord.py", "tfrecord", TEN),
    Source("HDF5 of LIBERO", "hdf5/libero", make=("libero",), **HDF5),
    Source("HDF5 of robomimic", "hdf5/robomimic", make=("robomimic",), **HDF5),
    Source("HDF5 of ALOHA", "hdf5/aloha", declared=Declared(fps=50), make=("aloha",), **HDF5),
    Source("HDF5 of LAOM", "hdf5/laom", declared=TEN, make=("laom",), **HDF5),
    Source(
        "HDF5 of RoboMIND",
        "hdf5/robomind",
        declared=Declared(fps=10, bgr=True),
        make=("robomind",),
        **HDF5,
    ),
    Source("Zarr of Diffusion Policy", "zarr/pusht.zarr", declared=TEN, needs=("zarr",), **ZARR),
    Source("Zarr of UMI", "zarr/umi.zarr.zip", declared=TEN, needs=("zarr", "imagecodecs"), **ZARR),
    Source(
        "MCAP of ROS 2",
        "mcap/ros2",
        "make_mcap.py",
        "mcap-ros2-support",
        Declared(action=("/command",)),
        make=("ros2",),
        **MCAP,
    ),
    Source("MCAP in Protobuf", "mcap/protobuf", "make_foxglove.py", "foxglove-sdk", **MCAP),
    Source(
        "MCAP in JSON",
        "mcap/json",
        "make_mcap.py",
        "mcap",
        Declared(state=("/arm",)),
        make=("in_json",),
        **MCAP,
    ),
    Source(
        "WebDataset of films", "webdataset", "make_webdataset.py", "webdataset", Declared("human")
    ),
    Source("films", CLIPS, "make_lerobot.py", "lerobot", Declared("human")),
    Source("raw AgiBot World", "", make=("agibot",), recipe="agibot", **RAW),
    Source("raw DROID", "", make=("droid",), recipe="droid", **RAW),
]


@dataclass
class Row:
    """What was found about a format."""

    name: str
    writer: str  # and its version
    fixture: str
    needs: str  # an extra of the package
    read: str  # how many frames are the right ones
    numbers: str  # the widths of state and action
    written: str = "no"
    round_trip: dict[str, str] = field(default_factory=dict)  # by what it was written as


def is_installed(source: Source) -> bool:
    """Whether all that reads a format is there."""
    return all(importlib.util.find_spec(name) for name in source.needs)


def writer_of(source: Source) -> str:
    """The package that wrote a fixture, and its version, as its script says; or that of now."""
    if not source.script:
        return "aclam"
    text = (FIXTURES / source.script).read_text(encoding="utf-8")
    found = re.search(rf"(?<![\w-]){source.writer}(?:==| )(\d[\d.]*\d)", text)
    return f"{source.writer} {found.group(1) if found else version(source.writer)}"


def _own_store(folder: Path) -> Path:
    """The frames of the other fixtures, written as a store."""
    films = []
    for episode, length in enumerate(LENGTHS):
        frames = np.stack([picture(0, episode, n) for n in range(length)])
        states = np.stack([state(episode, n) for n in range(length)])
        seconds = np.arange(length) / 10
        name = f"pattern/{episode}"
        films.append(
            Trajectory(
                FrameArray(frames), seconds, states, scene=name, task=task(episode), name=name
            )
        )
    write_store(folder, films)
    return folder


def made_again(source: Source, folder: Path) -> Path | None:
    """The fixture, made here; None where its writer is not installed."""
    if not source.make and not source.script:
        return _own_store(folder / "store")
    module = source.script.removesuffix(".py")
    needed = source.writer.replace("-support", "").replace("-", "_")
    is_kept = bool(source.fixture)
    if not source.make or (is_kept and importlib.util.find_spec(needed) is None):
        return None
    made = __import__(module)
    place = folder / source.make[0]
    place.mkdir()
    getattr(made, source.make[0])(place)
    return place


def opened(source: Source, path: Path) -> Store:
    """The dataset, with all of its frames looked at."""
    declared = declared_for(path, source.recipe) if source.recipe else source.declared
    return open_dataset(path, declared, verify=True)


def right_frames(store: Store) -> tuple[int, int]:  # right ones, all
    """How many frames say that they are where they are: the same camera, one episode, in order."""
    right = 0
    total = 0
    for t in store.trajectories:
        first = numbers(t.frames[[0]][0])
        for n in range(len(t)):
            right += numbers(t.frames[[n]][0]) == (0, first[1], n)
            total += 1
    return right, total


def widths(store: Store) -> str:
    """How many numbers a step has in state and action."""
    t = store.trajectories[0]
    sizes = ["-" if x is None else str(x.shape[1]) for x in (t.proprio, t.action)]
    return " and ".join(sizes)


def round_trip(store: Store, write: Callable, folder: Path) -> tuple[str, str]:
    """ "equal", or what differs, and the format of the copy.

    Pictures may differ by what the codec of the copy loses.
    """
    before = [replace(t, timestamp=t.timestamp - t.timestamp[0]) for t in store.trajectories]
    write(folder, before)
    copy = open_dataset(folder, verify=True)
    try:
        check_round_trip(before, copy.trajectories)
    except AssertionError as e:
        return f"differs: {e}"[:80], copy.meta["format"]
    return "equal", copy.meta["format"]


def with_columns(store: Store, folder: Path) -> bool:
    """Whether a column can be added to a dataset, and all else is what it was."""
    if not is_whole_lerobot(store):
        return False
    column = [{"mark": np.zeros((len(t), 1), np.float32)} for t in store.trajectories]
    add_columns(folder, store.folder, column)
    copy = open_dataset(folder)
    same = copy.meta["format"] == store.meta["format"]
    return same and check_round_trip(store.trajectories, renamed(copy, store)) == 0


def renamed(copy: Store, store: Store) -> list[Trajectory]:
    """The episodes of a copy, under the names that they had: those have the folder's name."""
    pairs = zip(copy.trajectories, store.trajectories, strict=True)
    return [replace(t, name=old.name, scene=old.scene) for t, old in pairs]


def row_of(source: Source) -> Row:
    """Open, count, write, read and compare."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        again = made_again(source, folder)
        path = FIXTURES / source.fixture if source.fixture else again
        store = opened(source, path)
        right, total = right_frames(store)
        if again is not None and source.fixture:
            same = right_frames(opened(source, again)) == (right, total)
            assert same, f"{source.name}: {source.script} makes another fixture than was kept"
        row = Row(
            source.name,
            writer_of(source),
            source.fixture or "made in each test",
            source.extra,
            f"{right} of {total} frames",
            widths(store),
        )
        ways = []
        for name, write in (("store", write_store), ("lerobot", write_lerobot)):
            found, form = round_trip(store, write, folder / f"as_{name}")
            row.round_trip[name] = found
            ways += ["written"] if form == store.meta["format"] else []
        ways += ["columns added"] if with_columns(store, folder / "columns") else []
        row.written = ", ".join(ways) or "no"
    return row


def text_of(rows: list[dict]) -> str:
    """The rows as a table."""
    heads = ["format", "writer", "fixture", "read", "numbers", "written", "store", "LeRobot"]
    lines = [heads]
    for row in rows:
        cells = [row[key] for key in ("name", "writer", "fixture", "read", "numbers", "written")]
        lines.append([*cells, row["round_trip"]["store"], row["round_trip"]["lerobot"]])
    size = [max(len(line[n]) for line in lines) for n in range(len(heads))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, size, strict=True)).rstrip()
        for line in lines
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="write the rows here, as JSON")
    given = parser.parse_args()
    missing = [source.name for source in SOURCES if not is_installed(source)]
    if missing and given.out:
        parser.error(f"libraries are missing for {', '.join(missing)}: nothing is written")
    rows = [asdict(row_of(source)) for source in SOURCES if is_installed(source)]
    print(text_of(rows))
    if given.out:
        write_json(given.out, {"rows": rows})
    wrong = [r for r in rows if set(r["round_trip"].values()) != {"equal"}]
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
