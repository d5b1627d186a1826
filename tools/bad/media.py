"""Videos, pictures, latents and weights: files that are no such thing, bombs, code."""

import io
import os
import pickle
import shutil
import subprocess
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from aclam.data.video_folder import Index

from .base import cut, remove, write
from .case import EITHER, READ, Case, many

CLIP = "videos/clip_0.mp4"
PICTURE = "pictures/0.png"
PLAYLIST = "#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"


def _index(make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Put something in the place of what is kept of a folder's videos."""

    def spoil(here: Path) -> None:
        path = Index(here / "videos").path
        path.parent.mkdir(parents=True, exist_ok=True)
        make(path)

    return spoil


def _table(table: pa.Table) -> Callable[[Path], object]:
    return lambda path: pq.write_table(table, path)


def picture(name: str, size: tuple[int, int] = (32, 24), mode: str = "RGB") -> Callable:
    """A picture of another kind in the folder of pictures."""

    def spoil(here: Path) -> None:
        Image.new(mode, size).save(here / "pictures" / name)

    return spoil


def _png_of(width: int, height: int) -> bytes:
    """A PNG that claims a size."""
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\x00\x00\x00"
    body = b"IHDR" + head
    chunk = len(head).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n" + chunk


def _text_bomb(here: Path) -> None:
    """A PNG whose text unpacks to hundreds of MiB."""
    data = b"a\x00\x00" + zlib.compress(bytes(400 * 2**20), 1)
    body = b"zTXt" + data
    chunk = len(data).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    whole = (here / PICTURE).read_bytes()
    (here / PICTURE).write_bytes(whole[:33] + chunk + whole[33:])


def _sound(here: Path) -> None:
    words = ["ffmpeg", "-v", "error", "-y", "-f", "lavfi", "-i", "sine=d=1", str(here / CLIP)]
    if shutil.which("ffmpeg"):
        subprocess.run(words, check=True)
    else:
        (here / CLIP).write_bytes(b"RIFF")


def _one_frame(here: Path) -> None:
    import av

    with av.open(str(here / CLIP), "w") as out:
        stream = out.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


VIDEOS = {
    "a clip is cut": cut(CLIP, 0.5),
    "a clip is empty": write(CLIP, b""),
    "a clip is text": write(CLIP, "hello"),
    "a clip is zeros": write(CLIP, bytes(10_000)),
    "a clip is a playlist": write(CLIP, PLAYLIST),
    "a clip is a list of files": write(CLIP, "ffconcat version 1.0\nfile /etc/passwd\n"),
    "a clip has sound only": _sound,
    "a clip has one frame": _one_frame,
    "a clip is a picture": write(CLIP, _png_of(4, 4)),
}
FILES_EITHER = {
    "a clip is a pipe": lambda here: (remove(CLIP)(here), os.mkfifo(here / CLIP)),
    "a clip is a folder": lambda here: (remove(CLIP)(here), (here / CLIP).mkdir()),
    "a link to nowhere": lambda here: (here / "videos" / "c.mp4").symlink_to("nowhere"),
    "a link to itself": lambda here: (here / "videos" / "c.mp4").symlink_to("c.mp4"),
    "a link to /dev/zero": lambda here: (here / "videos" / "c.mp4").symlink_to("/dev/zero"),
    "a link to the folder above": lambda here: (here / "videos" / "up").symlink_to(".."),
}
INDEXES = {
    "the index is empty": _index(lambda path: path.write_bytes(b"")),
    "the index is text": _index(lambda path: path.write_text("hello")),
    "the index is deep": _index(lambda path: path.write_text("[" * 200_000)),
    "the index has one column": _index(_table(pa.table({"file": ["clip_0.mp4"]}))),
    "the index of odd types": _index(
        _table(
            pa.table({n: ["x"] for n in ("file", "bytes", "changed", "seconds", "height", "width")})
        )
    ),
    "the index is a folder": _index(Path.mkdir),
    "the index is a pipe": _index(os.mkfifo),
    "a hidden file of another system": write("videos/._clip_0.mp4", b"\x00\x05\x16\x07"),
    "a file that is being copied": write("videos/clip_9.mp4.part", b"x"),
    "a note beside the clips": write("videos/notes.txt", "x"),
}
PICTURES = {
    "a picture is cut": cut(PICTURE, 0.5),
    "a picture is empty": write(PICTURE, b""),
    "a picture is text": write(PICTURE, "hello"),
    "a picture claims 3.6 gigapixels": write(PICTURE, _png_of(60_000, 60_000)),
    "a picture claims no pixels": write(PICTURE, _png_of(0, 0)),
    "a picture of another size": picture("2.png", (40, 24)),
    "a picture of 169 megapixels": picture("1.jpg", (13_000, 13_000)),
    "only one picture": lambda here: [remove(f"pictures/{n}.png")(here) for n in (1, 2, 3)],
    "no picture": lambda here: [remove(f"pictures/{n}.png")(here) for n in range(4)],
    "16 bits": picture("1.png", mode="I;16"),
}
PICTURES_EITHER = {
    "text that unpacks to 400 MiB": _text_bomb,
    "gray": picture("1.png", mode="L"),
    "with alpha": picture("1.png", mode="RGBA"),
    "a pipe among them": lambda here: os.mkfifo(here / "pictures" / "9.png"),
    "a folder among them": lambda here: (here / "pictures" / "9.png").mkdir(),
}


def _media_cases() -> list[Case]:
    video = ("aclam-data", "triples", "videos", "--n", "8")
    images = ("aclam-data", "triples", "pictures", "--rate", "5", "--n", "64", "--png", "x.png")
    found = many("video", ["videos"], video, VIDEOS)
    found += many("video", ["videos"], video, FILES_EITHER, EITHER)
    found += many("video", ["videos"], video, INDEXES, READ)
    found += many("pictures", ["pictures"], images, PICTURES)
    found += many("pictures", ["pictures"], images, PICTURES_EITHER, EITHER)
    hidden = {"a hidden file of another system": write("pictures/._0.png", b"\x00\x05\x16")}
    return found + many("pictures", ["pictures"], images, hidden, READ)


# --- latents --------------------------------------------------------------------------------------


def arrays(**changes: object) -> Callable[[Path], None]:
    """The file of latents with arrays replaced; `...` removes one."""

    def spoil(here: Path) -> None:
        path = here / "latents" / "z.npz"
        content = dict(np.load(path))
        for name, value in changes.items():
            if value is ...:
                content.pop(name)
            else:
                content[name] = value(content[name]) if callable(value) else value
        np.savez(path, **content)

    return spoil


class Evil:
    """What a pickle would run."""

    def __reduce__(self):
        return (Path("ran").touch, ())


def evil() -> bytes:
    return pickle.dumps({"z_ij": Evil()})


def _huge_member(here: Path) -> None:
    """An array that claims 4 TiB."""
    head = io.BytesIO()
    form = {"descr": "<f8", "fortran_order": False, "shape": (2**36, 8)}
    np.lib.format.write_array_header_1_0(head, form)
    with zipfile.ZipFile(here / "latents" / "z.npz", "w") as file:
        for name in ("z_ij", "z_jk", "z_ik", "z_ii", "z_ji", "ds"):
            file.writestr(f"{name}.npy", head.getvalue() + bytes(64))


def _zip_bomb(here: Path) -> None:
    """An array of 4 GiB of zeros in a file of 4 MiB."""
    with zipfile.ZipFile(here / "latents" / "z.npz", "w", zipfile.ZIP_DEFLATED) as file:
        head = io.BytesIO()
        form = {"descr": "<f8", "fortran_order": False, "shape": (2**26, 8)}
        np.lib.format.write_array_header_1_0(head, form)
        for name in ("z_ij", "z_jk", "z_ik", "z_ii", "z_ji", "ds"):
            with file.open(f"{name}.npy", "w", force_zip64=True) as out:
                out.write(head.getvalue())
                for _ in range(4096 if name == "z_ij" else 1):
                    out.write(bytes(2**20))


LATENTS = {
    "z.npz is empty": write("latents/z.npz", b""),
    "z.npz is text": write("latents/z.npz", "hello"),
    "z.npz is cut": cut("latents/z.npz", 0.6),
    "z.npz is a pickle": write("latents/z.npz", evil()),
    "one array": lambda here: np.save(open(here / "latents" / "z.npz", "wb"), np.zeros((3, 3))),
    "an array is missing": arrays(z_ik=...),
    "ds is missing": arrays(ds=...),
    "NaN": arrays(z_ij=lambda x: x * np.nan),
    "infinity": arrays(z_ij=lambda x: x + np.inf),
    "values near the largest": arrays(**{n: lambda x: x * 0 + 1e300 for n in ("z_ij", "z_jk")}),
    "objects": arrays(z_ij=np.array([Evil()] * 20, object)),
    "words": arrays(z_ij=np.array([["a"] * 3] * 20)),
    "complex numbers": arrays(z_ij=lambda x: x + 1j),
    "no rows": arrays(**{n: lambda x: x[:0] for n in ("z_ij", "z_jk", "z_ik", "z_ii", "z_ji")}),
    "one row": arrays(
        **{n: lambda x: x[:1] for n in ("z_ij", "z_jk", "z_ik", "z_ii", "z_ji", "ds")}
    ),
    "another number of rows": arrays(z_jk=lambda x: x[:7]),
    "another width": arrays(z_jk=lambda x: x[:, :2]),
    "three dimensions": arrays(z_ij=lambda x: x[None]),
    "ds of two columns": arrays(ds=lambda x: np.stack([x, x], 1)),
    "a claim of 4 TiB": _huge_member,
    "a bomb of 4 GiB": _zip_bomb,
}


def _zeros(here: Path) -> None:
    """Latents of which no quotient is defined: said, and no number is made up."""
    names = ("z_ij", "z_jk", "z_ik", "z_ii", "z_ji")
    arrays(**{name: lambda x: x * 0 for name in names})(here)


def _latent_cases() -> list[Case]:
    words = ("aclam-structure", "--latents", "latents/z.npz")
    found = many("latents", ["latents"], words, LATENTS)
    found += many("latents", ["latents"], words, {"all zero": _zeros}, READ)
    return found + many("latents", ["latents"], words, {"z.npz is a folder": _folder})


def _folder(here: Path) -> None:
    (here / "latents" / "z.npz").unlink()
    (here / "latents" / "z.npz").mkdir()


# --- weights --------------------------------------------------------------------------------------


def tensors(change: Callable[[dict], dict], file: str = "lam/model.safetensors") -> Callable:
    def spoil(here: Path) -> None:
        from safetensors.torch import load_file, save_file

        save_file(change(load_file(here / file)), here / file)

    return spoil


def _first(change: Callable) -> Callable[[dict], dict]:
    def apply(found: dict) -> dict:
        name = sorted(found)[0]
        return {**found, name: change(found[name])}

    return apply


def _safetensors_claim(here: Path) -> None:
    head = b'{"a": {"dtype": "F32", "shape": [1000000000000], "data_offsets": [0, 4000000000000]}}'
    (here / "lam" / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head)


WEIGHTS = {
    "model.safetensors is missing": remove("lam/model.safetensors"),
    "model.safetensors is empty": write("lam/model.safetensors", b""),
    "model.safetensors is cut": cut("lam/model.safetensors", 0.7),
    "model.safetensors is text": write("lam/model.safetensors", "hello"),
    "model.safetensors is a pickle": write("lam/model.safetensors", evil()),
    "model.safetensors: a huge header": write("lam/model.safetensors", b"\xff" * 8 + b"{}"),
    "model.safetensors: a claim of 4 TB": _safetensors_claim,
    "a tensor is missing": tensors(lambda t: {n: t[n] for n in sorted(t)[1:]}),
    "a tensor too many": tensors(lambda t: {**t, "extra": t[sorted(t)[0]].clone()}),
    "a tensor of another shape": tensors(_first(lambda t: t.flatten()[:1].clone())),
    "a tensor of NaN": tensors(_first(lambda t: t.float() * float("nan"))),
    "config.json is missing": remove("lam/config.json"),
}
OFFICIAL = {
    "laq.pt is empty": write("lapa/laq.pt", b""),
    "laq.pt is cut": cut("lapa/laq.pt", 0.7),
    "laq.pt is text": write("lapa/laq.pt", "hello"),
    "laq.pt is a pickle": write("lapa/laq.pt", evil()),
    "laq.pt is an old pickle": write("lapa/laq.pt", pickle.dumps({"a": 1}, 0)),
}
VILLA = {
    "model_config.json is a number": write("villa_x/model_config.json", "5"),
    "model_config.json is empty": write("villa_x/model_config.json", "{}"),
    "model_config.json is deep": write("villa_x/model_config.json", "[" * 200_000),
}


def _saved(value: object) -> Callable[[Path], None]:
    def spoil(here: Path) -> None:
        import torch

        torch.save(value, here / "lapa" / "laq.pt")

    return spoil


def _weight_cases() -> list[Case]:
    def words(model: str) -> tuple[str, ...]:
        return ("aclam-structure", "--data", "store", "--model", model, "--n", "4")

    found = many("model", ["lam", "store"], words("lam"), WEIGHTS)
    found += many("model", ["lapa", "store"], words("lapa/laq.pt"), OFFICIAL)
    odd = {"laq.pt of a list": _saved([1, 2]), "laq.pt of a number": _saved(5)}
    odd |= {"laq.pt of words": _saved({"model": {"a": "b"}}), "laq.pt of code": _saved(Evil())}
    found += many("model", ["lapa", "store"], words("lapa/laq.pt"), odd)
    found += many("model", ["villa_x", "store"], words("villa_x"), VILLA)
    return found


def cases() -> list[Case]:
    """All of this module."""
    return [*_media_cases(), *_latent_cases(), *_weight_cases()]
