"""WebDataset shards, MCAP, raw AgiBot World and DROID, Lance: archives, recordings and tables that
are cut, lie about their sizes, or point elsewhere.
"""

import importlib.util
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

from .base import both, cut, flip, remove, write
from .case import EITHER, READ, Case, many

SHARD = "webdataset/00001.tar"


def shard(*members: tuple[str, bytes]) -> Callable[[Path], None]:
    """Another shard, of these members."""

    def spoil(here: Path) -> None:
        with tarfile.open(here / SHARD, "w") as out:
            for name, data in members:
                part = tarfile.TarInfo(name)
                part.size = len(data)
                out.addfile(part, io.BytesIO(data))

    return spoil


def link(kind: bytes, target: str) -> Callable[[Path], None]:
    """A shard whose film is a link, a device or a pipe."""

    def spoil(here: Path) -> None:
        with tarfile.open(here / SHARD, "w") as out:
            part = tarfile.TarInfo("0.mp4")
            part.type = kind
            part.linkname = target
            out.addfile(part)

    return spoil


def claimed(size: int) -> Callable[[Path], None]:
    """A shard whose only member claims a size that it does not have."""

    def spoil(here: Path) -> None:
        part = tarfile.TarInfo("0.mp4")
        part.size = size
        (here / SHARD).write_bytes(part.tobuf() + bytes(1024))

    return spoil


def _captions(text: bytes) -> Callable[[Path], None]:
    """The films of the shard, with another caption."""

    def spoil(here: Path) -> None:
        with tarfile.open(here / SHARD) as old:
            film = next(part for part in old if part.name.endswith(".mp4"))
            data = old.extractfile(film).read()
        shard(("0.mp4", data), ("0.json", text))(here)

    return spoil


def _gzipped(here: Path) -> None:
    import gzip

    (here / SHARD).write_bytes(gzip.compress((here / SHARD).read_bytes()))


WEBDATASET = {
    "a shard is cut": cut(SHARD, 0.5),
    "a shard is cut in a header": cut(SHARD, 0.02),
    "a shard is empty": write(SHARD, b""),
    "a shard is text": write(SHARD, "hello" * 500),
    "a shard is zeros": write(SHARD, bytes(10_240)),
    "a shard is gzipped": _gzipped,
    "a shard of nothing": shard(),
    "a shard of notes": shard(("a.txt", b"hello")),
    "a film is text": shard(("0.mp4", b"hello" * 500)),
    "a film is empty": shard(("0.mp4", b"")),
    "a film is a playlist": shard(("0.mp4", b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n")),
    "a film claims 8 EiB": claimed((1 << 63) - 1),
    "a film claims 1 GiB": claimed(1 << 30),
    "a film is a link": link(tarfile.SYMTYPE, "/etc/passwd"),
    "a film is a hard link": link(tarfile.LNKTYPE, "/etc/passwd"),
    "a film is a device": link(tarfile.CHRTYPE, ""),
    "a film is a pipe": link(tarfile.FIFOTYPE, ""),
    "a film of a name that leaves": shard(("../../0.mp4", b"x" * 99)),
}
CAPTIONS = {
    "a caption is no JSON": _captions(b"{"),
    "a caption is deep": _captions(b"[" * 200_000),
    "a caption is a number": _captions(b'{"caption": 5}'),
    "a caption is no text": _captions(b"\xff\xfe\x00"),
    "a caption of 2 MiB": _captions(b'{"caption": "' + b"x" * (2 << 20) + b'"}'),
}
BYTES = {f"a byte at {a:.0%}": flip(SHARD, a) for a in (0.0, 0.003, 0.1, 0.5, 0.9, 0.999)}


def _webdataset_cases() -> list[Case]:
    words = ("aclam-data", "inspect", "webdataset", "--verify")
    found = many("WebDataset", ["webdataset"], words, WEBDATASET)
    found += many("WebDataset", ["webdataset"], words, CAPTIONS, READ)
    return found + many("WebDataset", ["webdataset"], words, BYTES, EITHER)


# --- MCAP -----------------------------------------------------------------------------------------

RECORDING = "mcap/ros2/episode_1.mcap"
TOP = "/top/image_raw/compressed"
COMPRESSED = "foxglove.CompressedImage"
RAW = "foxglove.RawImage"


def recording(
    data: bytes | Callable[[int], bytes],
    schema: str = COMPRESSED,
    encoding: str = "json",
    schema_encoding: str = "jsonschema",
    definition: bytes = b"{}",
    times: tuple[int, ...] = (0, 1, 2),
) -> Callable[[Path], None]:
    """A recording of one topic; times in tenths of a second."""

    def spoil(here: Path) -> None:
        from mcap.writer import Writer

        with open(here / RECORDING, "wb") as file:
            out = Writer(file)
            out.start()
            number = out.register_schema(schema, schema_encoding, definition)
            channel = out.register_channel(TOP, encoding, number)
            for n, time in enumerate(times):
                own = data(n) if callable(data) else data
                out.add_message(channel, time * 10**8, own, time * 10**8)
            out.finish()

    return spoil


def raw(**values: object) -> Callable[[Path], None]:
    about = {"width": 4, "height": 2, "encoding": "rgb8", "step": 12, "data": "AAAA" * 8}
    return recording(json.dumps(about | values).encode(), RAW)


def _bomb(here: Path) -> None:
    """A chunk that unpacks to 3 GiB."""
    import zstandard
    from mcap.writer import CompressionType, Writer

    with open(here / RECORDING, "wb") as file:
        out = Writer(file, chunk_size=1 << 32, compression=CompressionType.NONE)
        out.start()
        number = out.register_schema(COMPRESSED, "jsonschema", b"{}")
        channel = out.register_channel(TOP, "json", number)
        out.add_message(channel, 0, b"{}", 0)
        out.finish()
    packed = zstandard.compress(bytes(3 << 20)) * 1024
    data = bytearray((here / RECORDING).read_bytes())
    place = data.find(b"\x06")  # the chunk: its sizes say what it is not
    data[place + 9 + 16 : place + 9 + 24] = (3 << 30).to_bytes(8, "little")
    (here / RECORDING).write_bytes(bytes(data) + packed[:64])


MCAP = {
    "a recording is cut": cut(RECORDING, 0.5),
    "a recording is cut early": cut(RECORDING, 0.01),
    "a recording is empty": write(RECORDING, b""),
    "a recording is text": write(RECORDING, "hello" * 99),
    "a recording is its magic": write(RECORDING, b"\x89MCAP0\r\n" * 2),
    "no messages": recording(b"", times=()),
    "messages are no JSON": recording(b"{"),
    "messages are deep": recording(b"[" * 100_000),
    "messages are a number": recording(b"5"),
    "messages of ROS 1": recording(b"x", encoding="ros1"),
    "an unknown encoding": recording(b"x", encoding="\u2026"),
    "CDR without a definition": recording(b"x", encoding="cdr", schema_encoding="ros2msg"),
    "CDR of a broken definition": recording(
        b"x" * 99, encoding="cdr", schema_encoding="ros2msg", definition=b"uint8[ data"
    ),
    "Protobuf of a broken definition": recording(
        b"x" * 99, encoding="protobuf", schema_encoding="protobuf", definition=b"\xff" * 40
    ),
    "a picture is no picture": recording(b'{"data": "AAAA"}'),
    "a picture is no base64": recording(b'{"data": "\\u0000"}'),
    "a picture is a list": recording(b'{"data": [1, 2]}'),
    "no data": recording(b"{}"),
    "one picture": recording(b'{"data": "AAAA"}', times=(0,)),
    "pictures of one time": recording(b'{"data": "AAAA"}', times=(1, 1, 1)),
    "a raw picture too short": raw(data="AAAA"),
    "a raw picture of 2 gigapixels": raw(width=1 << 30, step=3 << 30),
    "a width below zero": raw(width=-4),
    "a width of words": raw(width="a"),
    "a width of a half": raw(width=0.5),
    "a step below zero": raw(step=-1),
    "a step of words": raw(step="x"),
    "an unknown color": raw(encoding="yuv422"),
    "a color of a list": raw(encoding=["rgb8"]),
    "a chunk of 3 GiB": _bomb,
}
LATER = {
    f"a byte at {a:.0%}": flip(RECORDING, a) for a in (0.0, 0.001, 0.01, 0.3, 0.6, 0.98, 0.999)
}


def _mcap_cases() -> list[Case]:
    if any(importlib.util.find_spec(name) is None for name in ("mcap", "mcap_ros2")):
        return []
    words = ("aclam-data", "inspect", RECORDING, "--verify")
    found = many("MCAP", ["mcap"], words, MCAP)
    found += many("MCAP", ["mcap"], words, LATER, EITHER)
    many_steps = ("aclam-data", "inspect", "mcap/ros2", "--rate", "999999")
    return [*found, Case("MCAP", "a rate of a million", ("mcap",), _nothing, many_steps, EITHER)]


def _nothing(here: Path) -> None:
    """Spoil nothing."""


# --- raw folders ----------------------------------------------------------------------------------

PLACE = "327/648642"
NUMBERS = f"agibot/proprio_stats/{PLACE}/proprio_stats.h5"
HEAD = f"agibot/observations/{PLACE}/videos/head_color.mp4"
WORDS = "agibot/task_info/task_327.json"


def _packed(here: Path) -> None:
    shutil.rmtree(here / "agibot" / "observations")
    write("agibot/observations/327/648642.tar", bytes(1024))(here)


def droid(name: str) -> str:
    """A file of an episode of DROID."""
    return f"droid/AUTOLab/success/2023-07-07/Fri_Jul__7_09_42_21_2023/{name}"


AGIBOT = {
    "no numbers": remove(NUMBERS),
    "numbers are empty": write(NUMBERS, b""),
    "numbers are text": write(NUMBERS, "hello"),
    "numbers are cut": cut(NUMBERS, 0.5),
    "no film": remove(HEAD),
    "a film is empty": write(HEAD, b""),
    "a film is cut": cut(HEAD, 0.5),
    "a film of another episode": lambda here: shutil.copy(
        here / "agibot/observations/327/648644/videos/head_color.mp4", here / HEAD
    ),
    "films are packed": _packed,
    "no films at all": both(remove("agibot/observations"), write("agibot/observations/x", b"")),
    "words are deep": write(WORDS, "[" * 200_000),
    "words are a number": write(WORDS, "5"),
    "an episode of words": write(WORDS, '[{"episode_id": "x"}]'),
}
DROID = {
    "metadata are cut": cut(droid("metadata_AUTOLab+1.json"), 0.5),
    "metadata are a list": write(droid("metadata_AUTOLab+1.json"), "[]"),
    "a serial of a list": write(droid("metadata_AUTOLab+1.json"), '{"ext1_cam_serial": [1]}'),
    "a serial that leaves": write(
        droid("metadata_AUTOLab+1.json"), '{"ext1_cam_serial": "../../../secret"}'
    ),
    "no films": remove(droid("recordings")),
    "no numbers in a file": write(droid("trajectory.h5"), b"\x89HDF\r\n\x1a\n" + bytes(500)),
    "a film is text": write(droid("recordings/MP4/23404442.mp4"), "hello"),
}


def _raw_cases() -> list[Case]:
    if importlib.util.find_spec("h5py") is None:
        return []
    words = ("aclam-data", "inspect", "agibot", "--recipe", "agibot", "--verify")
    found = many("raw AgiBot World", ["agibot"], words, AGIBOT)
    words = ("aclam-data", "inspect", "droid", "--recipe", "droid", "--verify")
    found += many("raw DROID", ["droid"], words, DROID)
    without_rate = ("aclam-data", "inspect", "droid")
    return [*found, Case("raw DROID", "no rate", ("droid",), _nothing, without_rate)]


# --- Lance ----------------------------------------------------------------------------------------

TABLES = ("frames.lance", "videos.lance")


def of_table(table: str, folder: str, spoil: Callable[[str], Callable]) -> Callable[[Path], None]:
    """Spoil every file of a folder of a table."""

    def change(here: Path) -> None:
        for file in sorted((here / "lerobot_lance" / table / folder).iterdir()):
            spoil(str(file.relative_to(here)))(here)

    return change


def _lance_cases() -> list[Case]:
    if importlib.util.find_spec("lance") is None:
        return []
    table = {}
    either = {}
    for name in TABLES:
        table[f"no {name}"] = remove(f"lerobot_lance/{name}")
        table[f"no data in {name}"] = remove(f"lerobot_lance/{name}/data")
        table[f"no versions of {name}"] = remove(f"lerobot_lance/{name}/_versions")
        for folder in ("data", "_versions"):
            empty = of_table(name, folder, lambda file: write(file, b""))
            table[f"{name}: {folder} are empty"] = empty
            table[f"{name}: {folder} are cut"] = of_table(name, folder, lambda f: cut(f, 0.5))
            for at in (0.1, 0.5, 0.95):
                wrong = of_table(name, folder, lambda f, at=at: flip(f, at))
                either[f"{name}: a byte of {folder} at {at:.0%}"] = wrong
    words = ("aclam-data", "inspect", "lerobot_lance", "--verify")
    found = [
        Case("Lance", n, ("lerobot_lance",), s, words, memory_mib=8192) for n, s in table.items()
    ]
    return found + [
        Case("Lance", n, ("lerobot_lance",), s, words, EITHER, 8192) for n, s in either.items()
    ]


def cases() -> list[Case]:
    """All of this module; formats whose library is not installed have none."""
    return [*_webdataset_cases(), *_mcap_cases(), *_raw_cases(), *_lance_cases()]
