"""What is read of each format, written as a store and as LeRobot, and read again: the same.

The table of formats in nbs/3_data/overview.ipynb says so; each fixture is by the official writer.
"""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

from aclam.data.declared import Declared
from aclam.data.lerobot_writer import check_round_trip, write_lerobot
from aclam.data.source import open_dataset
from aclam.data.store import write_store

FIXTURES = Path(__file__).parent / "fixtures"
SETS = {
    "lerobot_v21": Declared(),
    "lerobot_v30": Declared(),
    "rlds": Declared(fps=10),
    "hdf5/libero": Declared(),
    "hdf5/robomimic": Declared(),
    "hdf5/aloha": Declared(fps=50),
    "hdf5/laom": Declared(fps=10),
    "hdf5/robomind": Declared(fps=10, bgr=True),
    "zarr/pusht.zarr": Declared(fps=10),
    "zarr/umi.zarr.zip": Declared(fps=10),
    "webdataset": Declared(kind="human"),
}
LIBRARIES = {"hdf5": ["h5py"], "zarr": ["zarr", "imagecodecs"]}


@pytest.mark.parametrize("to", ["store", "lerobot"])
@pytest.mark.parametrize("name", SETS)
def test_what_was_read_is_read_again(tmp_path, name, to):
    for library in LIBRARIES.get(name.split("/")[0], []):
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    before = open_dataset(FIXTURES / name, SETS[name]).trajectories
    before = [replace(t, timestamp=t.timestamp - t.timestamp[0]) for t in before]
    write = write_store if to == "store" else write_lerobot
    write(tmp_path / "out", before)
    again = open_dataset(tmp_path / "out", verify=True)
    assert check_round_trip(before, again.trajectories) < 15
