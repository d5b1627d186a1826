"""Small files that claim gigabytes: one line, before memory is taken."""

import bz2
import gc
import gzip
import json
import lzma
import resource
import shutil
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from aclam.core import UserError
from aclam.data.declared import Declared
from aclam.data.source import open_dataset
from aclam.data.unpacking import (
    LZ4,
    UNPACKED,
    ZSTD,
    ZSTD_BLOCK,
    allowed,
    check_unpacked,
    unpacked_size,
)

h5py = pytest.importorskip("h5py")
zarr = pytest.importorskip("zarr")

FIXTURES = Path(__file__).parent / "fixtures"
PUSHT = Declared(fps=10, kind="robot")
LARGE = 4 << 30


def refusal(path: Path, told: Declared, verify: bool = True) -> str:
    """The line with which a dataset is refused, for less than 400 MiB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError) as caught:
        open_dataset(path, told, verify=verify)
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    if sys.platform == "linux":
        assert taken < 400 << 10, taken  # KiB
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _zeros(size: int) -> bytes:
    """A zlib stream of so many zeros."""
    stream = zlib.compressobj(1)
    head = stream.compress(bytes(1)) + stream.flush(zlib.Z_FULL_FLUSH)
    block = stream.compress(bytes(1 << 24)) + stream.flush(zlib.Z_FULL_FLUSH)
    return head + block * (size >> 24)  # after a full flush, a block stands for itself


def _zstd(size: int, stated: bool) -> bytes:
    """A frame of blocks that repeat one byte."""
    block = (ZSTD_BLOCK << 3 | 2).to_bytes(3, "little") + b"\0"
    head = b"\xe0" + size.to_bytes(8, "little") if stated else b"\0\x58"
    return ZSTD.to_bytes(4, "little") + head + block * (size // ZSTD_BLOCK)


def _lz4(size: int) -> bytes:
    """A frame of LZ4 with blocks of 4 MiB, whose content would not be right."""
    blocks = size // (4 << 20)
    data = bytes(20_000)
    block = len(data).to_bytes(4, "little") + data
    return LZ4.to_bytes(4, "little") + b"\x60\x70\0" + block * blocks + bytes(4)


@pytest.fixture(scope="module")
def zeros() -> bytes:
    return _zeros(LARGE)


# --- Zarr -----------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path) -> Path:
    shutil.copytree(FIXTURES / "zarr" / "pusht.zarr", tmp_path / "set.zarr")
    return tmp_path / "set.zarr"


def _chunk(store: Path, data: bytes, **about) -> None:
    file = store / "data" / "img" / ".zarray"
    file.write_text(json.dumps(json.loads(file.read_text()) | about))
    (store / "data" / "img" / "0.0.0.0").write_bytes(data)


V2 = {
    "zstd that states it": ({"id": "zstd", "level": 1}, _zstd(LARGE, True)),
    "zstd that does not": ({"id": "zstd", "level": 1}, _zstd(LARGE, False)),
    "lz4": ({"id": "lz4"}, (1 << 30).to_bytes(4, "little") + bytes(1000)),
    "blosc": (
        {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1},
        b"\2\1\1\4"
        + b"".join(n.to_bytes(4, "little") for n in (0x7FFFFFF0, 1 << 20, 1016))
        + bytes(1000),
    ),
    "bz2": ({"id": "bz2", "level": 1}, bz2.compress(bytes(80 << 20)) * 50),
    "xz": ({"id": "lzma", "format": 1}, lzma.compress(bytes(80 << 20), preset=0)),
}


@pytest.mark.parametrize("kind", V2)
def test_a_chunk_of_zarr_that_unpacks_to_gigabytes(store, kind):
    codec, data = V2[kind]
    _chunk(store, data, compressor=codec)
    assert "unpack to more than 64 MiB, and 737280 bytes are declared" in refusal(store, PUSHT)


@pytest.mark.parametrize("kind", ["zlib", "gzip"])
def test_a_chunk_of_deflate_that_unpacks_to_gigabytes(store, kind, zeros):
    raw = zeros[2:] + bytes(8)
    data = zeros if kind == "zlib" else b"\x1f\x8b\x08" + bytes(7) + raw
    _chunk(store, data, compressor={"id": kind, "level": 1})
    assert "unpack to more than 64 MiB" in refusal(store, PUSHT)
    _chunk(store, data, compressor=None, filters=[{"id": kind, "level": 1}])
    assert "unpack to more than 64 MiB" in refusal(store, PUSHT)


def test_what_is_compressed_twice_is_refused(store, zeros):
    twice = {"id": "zlib", "level": 1}
    _chunk(store, zlib.compress(zeros), compressor=twice, filters=[twice])
    assert "compressed 2 times (zlib, zlib)" in refusal(store, PUSHT)


@pytest.mark.parametrize("shards", [None, (8, 48, 64, 3)])
@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_version_3_reads_as_before_and_refuses_bombs(tmp_path, zeros, codec, shards):
    path = tmp_path / "three.zarr"
    group = zarr.open_group(str(path), mode="w", zarr_format=3)
    pixels = np.random.default_rng(0).integers(0, 255, (8, 48, 64, 3), np.uint8)
    packer = zarr.codecs.GzipCodec() if codec == "gzip" else zarr.codecs.ZstdCodec()
    array = group.create_array(
        "data/img", shape=pixels.shape, chunks=(4, 48, 64, 3), shards=shards, dtype="uint8",
        compressors=[packer],
    )  # fmt: skip
    array[:] = pixels
    group.create_array("data/action", data=np.zeros((8, 2), np.float32))
    group.create_array("meta/episode_ends", data=np.array([8]))
    frames = open_dataset(path, PUSHT).trajectories[0].frames
    assert np.array_equal(frames[range(8)], pixels)

    bomb = b"\x1f\x8b\x08" + bytes(7) + zeros[2:] + bytes(8) if codec == "gzip" else _zstd(LARGE, 1)
    chunk = next(file for file in sorted(path.glob("data/img/c/**/*")) if file.is_file())
    index = b""
    if shards:  # where each piece begins, its length, and a checksum of that
        places = np.array([0, len(bomb), 0, len(bomb)], "<u8").tobytes()
        index = places + google_crc(places)
    chunk.write_bytes(bomb + index)
    assert "unpack to more than 64 MiB" in refusal(path, PUSHT)


def google_crc(data: bytes) -> bytes:
    from aclam.data.tfrecord import crc32c

    return crc32c(data).to_bytes(4, "little")


def test_a_member_of_a_zip_file_that_unpacks_to_gigabytes(tmp_path, store, zeros):
    path = tmp_path / "bomb.zarr.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for file in sorted(store.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(store).as_posix())
        with archive.open("data/img/7.0.0.0", "w") as member:
            for _ in range(20):
                member.write(bytes(1 << 24))
    assert "unpack to 320 MiB, refused" in refusal(path, PUSHT)


def test_ends_that_nobody_wrote(store):
    file = store / "meta" / "episode_ends" / ".zarray"
    about = json.loads(file.read_text()) | {"shape": [1 << 26], "chunks": [1 << 26]}
    file.write_text(json.dumps(about))
    assert "claims 67108864 episodes" in refusal(store, PUSHT)


# --- HDF5 -----------------------------------------------------------------------------------------


@pytest.fixture
def demos(tmp_path) -> Path:
    shutil.copytree(FIXTURES / "hdf5" / "libero", tmp_path / "libero")
    return next((tmp_path / "libero").glob("*.hdf5"))


FRONT = "data/demo_1/obs/agentview_rgb"


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_chunk_of_hdf5_that_unpacks_to_gigabytes(demos, zeros, shuffle):
    with h5py.File(demos, "a") as file:
        shape = file[FRONT].shape
        pixels = file[FRONT][:]
        del file[FRONT]
        own = {"chunks": (1, *shape[1:]), "compression": "gzip", "shuffle": shuffle}
        array = file.create_dataset(FRONT, shape, np.uint8, **own)
        array[:] = pixels
    store = open_dataset(demos, Declared(fps=20))
    assert np.array_equal(store.trajectories[1].frames[[3]][0], pixels[3][::-1])
    del store
    gc.collect()  # closes the file
    with h5py.File(demos, "a") as file:
        file[FRONT].id.write_direct_chunk((3, 0, 0, 0), zeros)
    said = refusal(demos, Declared(fps=20))
    assert FRONT in said and "unpack to more than 64 MiB" in said


def test_words_of_two_gigabytes(demos):
    with h5py.File(demos, "a") as file:
        file.create_dataset("data/demo_1/language", (1,), "S2147483000")
    assert "rows of 2047 MiB" in refusal(demos, Declared(fps=20))


def test_more_steps_than_anybody_recorded(tmp_path):
    with h5py.File(tmp_path / "long.hdf5", "w") as file:
        shape = (1 << 40, 32, 32, 3)
        file.create_dataset("0/obs", shape, np.uint8, chunks=(1, *shape[1:]))
    told = Declared(fps=10, kind="human")
    assert "claims 1099511627776 steps, refused" in refusal(tmp_path, told, verify=False)


# --- MCAP -----------------------------------------------------------------------------------------


def _recording(path: Path, kind: str, data: bytes, declared: int) -> None:
    """A recording whose only chunk has these bytes."""
    from mcap.records import ChunkIndex
    from mcap.writer import CompressionType, Writer

    with open(path, "wb") as file:
        out = Writer(file, compression=CompressionType.NONE)
        out.start()
        schema = out.register_schema("foxglove.CompressedImage", "jsonschema", b"{}")
        channel = out.register_channel("/top", "json", schema)
        start = file.tell()
        name = kind.encode()
        body = bytes(16) + declared.to_bytes(8, "little") + bytes(4)
        body += len(name).to_bytes(4, "little") + name + len(data).to_bytes(8, "little") + data
        file.write(b"\x06" + len(body).to_bytes(8, "little") + body)
        entry = ChunkIndex(len(body) + 9, start, kind, len(data), 0, 0, {channel: 0}, 0, declared)
        out._Writer__chunk_indices.append(entry)
        out._Writer__statistics.channel_message_counts[channel] = 1
        out.finish()


CHUNKS = {
    "zstd that states it": ("zstd", _zstd(LARGE, True)),
    "zstd that does not": ("zstd", _zstd(LARGE, False)),
    "lz4": ("lz4", _lz4(LARGE)),
}


@pytest.mark.parametrize("kind", CHUNKS)
def test_a_chunk_of_mcap_that_unpacks_to_gigabytes(tmp_path, kind):
    pytest.importorskip("mcap")
    name, data = CHUNKS[kind]
    _recording(tmp_path / "a.mcap", name, data, 1000)
    said = refusal(tmp_path, Declared(kind="human"))
    assert "the chunk at byte" in said and "unpack to more than 64 MiB" in said
    _recording(tmp_path / "a.mcap", name, data, LARGE)
    assert "at most 1024 expected" in refusal(tmp_path, Declared(kind="human"))


# --- the count ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["zlib", "gzip", "bz2", "lzma"])
def test_what_is_broken_is_counted_up_to_there(kind):
    packed = {"zlib": zlib, "gzip": gzip, "bz2": bz2, "lzma": lzma}[kind].compress(bytes(1 << 20))
    for cut in (0, 1, 5, len(packed) // 2):
        assert unpacked_size(kind, packed[:cut], 1 << 10) <= 2 * UNPACKED
    assert unpacked_size(kind, packed, 1 << 30) >= 1 << 20


@pytest.mark.parametrize("kind", ["zstd", "lz4 frame", "lz4", "blosc", "zlib", "bz2", "lzma"])
def test_noise_is_no_error(kind):
    for seed in range(50):
        noise = np.random.default_rng(seed).bytes(200)
        start = {"zstd": ZSTD.to_bytes(4, "little"), "lz4 frame": LZ4.to_bytes(4, "little")}
        assert unpacked_size(kind, start.get(kind, b"") + noise, allowed(0)) >= 0


# ---- what headers of pictures and of filters claim


def test_a_picture_is_held_to_what_its_array_declares():
    imagecodecs = pytest.importorskip("imagecodecs")
    for height, width in ((24, 24), (33, 57), (480, 640), (1080, 1920)):
        picture = np.zeros((height, width, 3), np.uint8)
        for name in ("jpegxl", "png", "jpeg", "webp"):
            packed = getattr(imagecodecs, f"{name}_encode")(picture)
            kind = f"imagecodecs_{name}"
            assert unpacked_size(kind, packed, 0) == picture.nbytes
            check_unpacked(kind, packed, picture.nbytes, "a chunk")
            for cut in range(min(len(packed), 64)):
                assert unpacked_size(kind, packed[:cut], 0) <= 1 << 40  # no other error

    large = imagecodecs.jpegxl_encode(np.zeros((5000, 5000, 3), np.uint8))
    with pytest.raises(UserError, match="imagecodecs_jpegxl unpack to more than 64 MiB"):
        check_unpacked("imagecodecs_jpegxl", large, 480 * 640 * 3, "a chunk")


def test_the_size_that_lzf_takes_before_it_unpacks_is_held_to_the_chunk(tmp_path):
    from aclam.data.hdf5_chunks import read_rows

    file = tmp_path / "one.h5"
    with h5py.File(file, "w") as out:
        out.create_dataset("x", data=np.zeros(1234), chunks=(1234,), compression="lzf")
    with h5py.File(file) as opened:
        assert (read_rows(opened["x"], (), "x") == 0).all()

    own = (1234 * 8).to_bytes(4, "little")
    data = file.read_bytes()
    places = [
        n for n in range(len(data)) if data[n : n + 4] == own and data[n - 8 : n - 7] == b"\4"
    ]
    assert len(places) == 1  # behind the versions of filter and library
    n = places[0]
    file.write_bytes(data[:n] + (2**31).to_bytes(4, "little") + data[n + 4 :])
    with h5py.File(file) as opened, pytest.raises(UserError, match="claims 2147483648 bytes"):
        read_rows(opened["x"], (), "x")
