"""HDF5 and Zarr: files that are cut, lie about their sizes, or point at others."""

import importlib.util
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .base import both, cut, edit_json, flip, remove, write
from .case import EITHER, Case, many

LIBERO = "hdf5/libero/pick_up_the_cube_demo.hdf5"
ALOHA = "hdf5/aloha/episode_1.hdf5"
DEMO = "data/demo_1"
FRONT = f"{DEMO}/obs/agentview_rgb"


def edit_hdf5(file: str, change: Callable) -> Callable[[Path], None]:
    """Change an HDF5 file in place."""

    def spoil(here: Path) -> None:
        import h5py

        with h5py.File(here / file, "a") as opened:
            change(opened)

    return spoil


def array(key: str, shape: tuple[int, ...], kind: type = np.float32, **options) -> Callable:
    """Put another array, of which nothing is stored, into a place."""

    def change(file) -> None:
        if key in file:
            del file[key]
        file.create_dataset(key, shape, kind, **options)

    return edit_hdf5(LIBERO, change)


def attribute(name: str, value: object) -> Callable:
    return edit_hdf5(LIBERO, lambda file: file["data"].attrs.__setitem__(name, value))


def _elsewhere(file) -> None:
    import h5py

    del file[DEMO]
    file[DEMO] = h5py.ExternalLink("/etc/passwd", "data")


def _many_circles(file) -> None:
    for n in range(20):
        file[f"{DEMO}/obs/again_{n}"] = file[f"{DEMO}/obs"]


ZEROS = zlib.compressobj(1)
START = ZEROS.compress(bytes(1)) + ZEROS.flush(zlib.Z_FULL_FLUSH)
BOMB = START + (ZEROS.compress(bytes(1 << 20)) + ZEROS.flush(zlib.Z_FULL_FLUSH)) * 4096  # 4 GiB


def _bomb(file) -> None:
    """A chunk that unpacks to 4 GiB."""
    shape = file[FRONT].shape
    del file[FRONT]
    chunks = (1, *shape[1:])
    pixels = file.create_dataset(FRONT, shape, np.uint8, chunks=chunks, compression="gzip")
    pixels.id.write_direct_chunk((0, 0, 0, 0), BOMB)


def _packed(file) -> None:
    images = file["observations/images"]
    del images["cam_high"]
    images["cam_high"] = np.full((23, 900), 255, np.uint8)


HDF5 = {
    "a file is cut": cut(LIBERO, 0.5),
    "a file is cut early": cut(LIBERO, 0.01),
    "a file is empty": write(LIBERO, b""),
    "a file is text": write(LIBERO, "hello"),
    "a file has no more than its signature": write(LIBERO, b"\x89HDF\r\n\x1a\n" + bytes(500)),
    "no files": remove(LIBERO),
    "an array in another file": array(FRONT, (7, 48, 64, 3), np.uint8, external="/etc/passwd"),
    "a link to another file": edit_hdf5(LIBERO, _elsewhere),
    "groups in many circles": edit_hdf5(LIBERO, _many_circles),
    "pictures of 3 terapixels": array(FRONT, (7, 1 << 20, 1 << 20, 3), np.uint8, chunks=True),
    "actions of 8 TiB": array(f"{DEMO}/actions", (7, 1 << 40), chunks=(1, 1024)),
    "a chunk that unpacks to 4 GiB": edit_hdf5(LIBERO, _bomb),
    "words of 2 GiB": array(f"{DEMO}/language", (1,), "S2147483000"),
    "no steps": array(FRONT, (0, 48, 64, 3), np.uint8),
    "actions of words": array(f"{DEMO}/actions", (7, 3), "S5"),
    "actions of five steps": array(f"{DEMO}/actions", (5, 3)),
    "actions of other widths": array(f"{DEMO}/actions", (7, 4)),
    "pictures of 64 bits": array(FRONT, (7, 48, 64, 3), np.int64),
    "env_args is cut": attribute("env_args", "{"),
    "env_args is deep": attribute("env_args", "[" * 60_000),
    "an unknown convention": attribute("macros_image_convention", "sideways"),
    "a convention that is a number": attribute("macros_image_convention", [1, 2]),
}
HDF5_EITHER = {
    **{f"a byte at {a:.0%}": flip(LIBERO, a) for a in (0.001, 0.01, 0.3, 0.6, 0.99)},
    "a rate of no number": attribute("env_args", json.dumps({"env_kwargs": {"control_freq": "x"}})),
    "problem_info is a number": attribute("problem_info", 5),
}


def zarray(name: str, **values: object) -> Callable[[Path], None]:
    """Change the metadata of an array."""
    return edit_json(f"{PUSHT}/{name}/.zarray", **values)


PUSHT = "zarr/pusht.zarr"
ENDS = f"{PUSHT}/meta/episode_ends"
ZARR = {
    "no ends": remove(ENDS),
    "ends of other bytes": write(f"{ENDS}/0", np.array([5, 3, 9, 58]).tobytes()),
    "ends behind the end": write(f"{ENDS}/0", np.array([11, 34, 41, 1 << 50]).tobytes()),
    "ends of words": zarray("meta/episode_ends", dtype="<U3"),
    "ends of two axes": zarray("meta/episode_ends", shape=[2, 2], chunks=[2, 2]),
    "no data": remove(f"{PUSHT}/data"),
    "a group is missing": remove(f"{PUSHT}/.zgroup"),
    "metadata is cut": cut(f"{PUSHT}/data/img/.zarray", 0.5),
    "metadata is deep": write(f"{PUSHT}/data/img/.zarray", "[" * 200_000),
    "a codec that is not there": zarray("data/img", compressor={"id": "nosuch"}),
    "a pickle as codec": zarray("data/state", compressor={"id": "pickle"}),
    "chunks of 10 GiB": zarray("data/img", chunks=[1 << 20, 48, 64, 3]),
    "a chunk that unpacks to 4 GiB": both(
        zarray("data/img", compressor={"id": "zlib", "level": 1}),
        write(f"{PUSHT}/data/img/0.0.0.0", BOMB),
    ),
    "4 billion episodes": zarray("meta/episode_ends", shape=[1 << 32], chunks=[1 << 20]),
    "chunks of nothing": zarray("data/img", chunks=[0, 0, 0, 0]),
    "pictures of 3 terapixels": zarray("data/img", shape=[58, 1 << 20, 1 << 20, 3]),
    "a shape of words": zarray("data/img", shape=["a"]),
    "a chunk is cut": cut(f"{PUSHT}/data/img/1.0.0.0", 0.5),
    "a chunk of other bytes": write(f"{PUSHT}/data/img/1.0.0.0", bytes(100)),
    "a chunk is a folder": both(
        remove(f"{PUSHT}/data/img/1.0.0.0"), write(f"{PUSHT}/data/img/1.0.0.0/x", b"x")
    ),
}
ZARR_EITHER = {
    "a chunk is missing": remove(f"{PUSHT}/data/img/1.0.0.0"),
    "another fill value": zarray("data/img", fill_value="NaN"),
}


def cases() -> list[Case]:
    """Bad HDF5 and Zarr; none where the library is not installed."""
    return [*_hdf5_cases(), *_zarr_cases()]


def _zarr_cases() -> list[Case]:
    if importlib.util.find_spec("zarr") is None:
        return []
    words = ("aclam-data", "inspect", "zarr", "--rate", "10", "--verify")
    found = many("Zarr", ["zarr"], words, ZARR)
    return found + many("Zarr", ["zarr"], words, ZARR_EITHER, EITHER)


def _hdf5_cases() -> list[Case]:
    if importlib.util.find_spec("h5py") is None:
        return []
    words = ("aclam-data", "inspect", "hdf5/libero", "--rate", "20", "--verify")
    found = many("HDF5", ["hdf5"], words, HDF5)
    found += many("HDF5", ["hdf5"], words, HDF5_EITHER, EITHER)
    words = ("aclam-data", "inspect", "hdf5/aloha", "--rate", "50", "--verify")
    padded = {
        "a JPEG of nothing but padding": edit_hdf5(ALOHA, _packed),
        "JPEGs that are cut": both(cut(ALOHA, 0.9)),
    }
    return found + many("HDF5", ["hdf5"], words, padded)
