"""The pages to play with: kept models and real frames as scripts that a page loads from a file.

    python site/play.py --render     render site/play/frames.png anew, of episodes no model has seen

A page that is opened from the file system may not fetch, but it may load a script. So each model is
a script of its own, which hands its numbers over as base64; `site/play/lam.js` computes with them.
All of this belongs to the book: who installs aclam needs none of it, so it is no chapter.
A new page is a Markdown file in site/play, its scripts beside it, and a line in `PAGES`.
"""

import argparse
import base64
import json
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from convert import ROOT
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from aclam.core import UserError
from aclam.data.cache import resize_frames
from aclam.data.source import open_dataset
from aclam.lam import LatentActionModel
from aclam.lam.blocks import PatchTokens
from aclam.sim.prepare import prepare_emoji

PLAY = ROOT / "site" / "play"
FRAMES = PLAY / "frames.png"
MODELS = {
    "ac_lam_cpu": "AC-LAM",
    "no_ac_cpu": "its twin, without the additive loss",
    "potential_lam_cpu": "the potential model",
}
PAGES = {
    "Playground": "playground.md",
    "Closed forms": "closed_forms.md",
    "Moving pictures": "moving_pictures.md",
}
MOST_BYTES = 2_000_000  # of each file

SEED = 7  # of the episodes; the kept models have seen those of seed 0
EPISODES = 4
SHOTS = 10  # frames of an episode
SIDE = 32  # pixels, as the models see them
RENDERED = 64  # pixels, as the episodes were rendered on which the models were trained


# --- frames ---------------------------------------------------------------------------------------


def render(path: Path = FRAMES) -> None:
    """Write the sheet of frames: an episode a row."""
    with tempfile.TemporaryDirectory() as folder:
        prepare_emoji(f"{folder}/emoji", EPISODES, SEED, RENDERED, workers=1, progress=False)
        rows = [shots(t.frames) for t in open_dataset(f"{folder}/emoji").trajectories]
    Image.fromarray(np.concatenate(rows)).save(path, optimize=True)


def shots(frames) -> np.ndarray:
    """Some frames of a film, evenly apart and side by side: (SIDE, SHOTS * SIDE, 3)."""
    at = np.linspace(0, len(frames) - 1, SHOTS).round().astype(int)
    small = resize_frames(frames[at.tolist()], SIDE)  # (SHOTS, 3, SIDE, SIDE)
    return small.permute(2, 0, 3, 1).flatten(1, 2).numpy()


def read_frames(path: Path = FRAMES) -> np.ndarray:
    """The frames of the sheet, uint8 (episodes, shots, 3, SIDE, SIDE)."""
    sheet = np.asarray(Image.open(path).convert("RGB"))  # (rows * SIDE, columns * SIDE, 3)
    rows, columns = sheet.shape[0] // SIDE, sheet.shape[1] // SIDE
    cut = sheet.reshape(rows, SIDE, columns, SIDE, 3)
    return np.ascontiguousarray(cut.transpose(0, 2, 4, 1, 3))


# --- models ---------------------------------------------------------------------------------------


def check_playable(lam: LatentActionModel) -> None:
    """Refuse a model that lam.js cannot compute."""
    c = lam.config
    known = lam.family in ("aclam", "potential") and c.bottleneck.kind in ("vq", "none")
    if not known or c.odd or getattr(c, "place", "difference") != "difference":
        can = "families aclam and potential (place difference), not odd, with kind vq or none"
        raise UserError(f"the playground cannot compute this model of family {lam.family}: {can}")


def encoder(lam: LatentActionModel) -> nn.Module:
    """What reads frames."""
    return lam.phi if lam.family == "potential" else lam.idm


@torch.no_grad()
def channel(lam: LatentActionModel) -> dict[str, Tensor]:
    """The bottleneck in evaluation: x -> offset + gain x, (N, c), then the nearest of `codes`."""
    shape = (1, lam.config.tokens, lam.config.code_dim)
    normalized = lam.bottleneck.normalised.eval()
    offset = normalized(torch.zeros(shape))
    parts = {"offset": offset[0], "gain": (normalized(torch.ones(shape)) - offset)[0]}
    book = lam.bottleneck.book
    if book is None:
        return parts
    rows = book.codes.expand(lam.config.tokens, -1, -1)  # one codebook a token, or the shared one
    return parts | {"codes": rows.flatten(0, 1)}


def tensors_of(lam: LatentActionModel) -> dict[str, Tensor]:
    """All numbers that encoding and decoding need, by the names that lam.js knows."""
    found = {f"channel.{name}": t for name, t in channel(lam).items()}
    for part, module in (("read", encoder(lam)), ("write", lam.fdm)):
        found |= {f"{part}.{name}": t.detach() for name, t in module.named_parameters()}
        for name, child in module.named_modules():
            if isinstance(child, PatchTokens):
                found[f"{part}.{name}.positions"] = child.positions
    return found


BITS = {"read": 24, "write": 16}  # of a weight; with 16 in the encoder some codes come out others


def packed_rows(t: Tensor, bits: int) -> bytes:
    """A matrix as integers of 16 or 24 bits with one unit a row: at most half of it is lost.

    Units (float32), then the upper 16 bits (signed), then, of 24, the lower 8 (unsigned).
    """
    rows = t.flatten(1).double().numpy()
    unit = (np.abs(rows).max(1) / (2 ** (bits - 1) - 1)).astype("<f4")
    whole = np.round(rows / np.maximum(unit, 1e-30)[:, None]).astype(np.int64)
    if bits == 16:
        return unit.tobytes() + whole.astype("<i2").tobytes()
    upper = (whole >> 8).astype("<i2")
    lower = (whole & 255).astype(np.uint8)
    return unit.tobytes() + upper.tobytes() + lower.tobytes()


def pack(lam: LatentActionModel, title: str) -> dict:
    """A model as JSON: sizes, a table of tensors, and their bytes in base64.

    Matrices of weights are integers with one unit a row (`BITS`); all else is float32.
    """
    check_playable(lam)
    c = lam.config
    table = []
    data = b""
    for name, t in tensors_of(lam).items():
        is_matrix = t.ndim == 2 and name.endswith(".weight")
        bits = BITS[name.split(".")[0]] if is_matrix else 32
        table.append({"name": name, "shape": list(t.shape), "at": len(data), "bits": bits})
        data += packed_rows(t, bits) if is_matrix else t.numpy().astype("<f4").tobytes()
        data += bytes(-len(data) % 4)
    return {
        "title": title,
        "family": lam.family,
        "imageSize": c.image_size,
        "patchSize": c.patch_size,
        "tokens": c.tokens,
        "codeDim": c.code_dim,
        "readHeads": c.idm_heads,
        "writeHeads": c.fdm_heads,
        "residual": c.residual,
        "eps": norm_eps(lam),
        "mean": list(IMAGENET_DEFAULT_MEAN),
        "std": list(IMAGENET_DEFAULT_STD),
        "tensors": table,
        "data": base64.b64encode(data).decode(),
    }


def norm_eps(lam: LatentActionModel) -> dict[str, float]:
    """What each layer norm adds to the variance."""
    found = {}
    for part, module in (("read", encoder(lam)), ("write", lam.fdm)):
        for name, child in module.named_modules():
            if isinstance(child, nn.LayerNorm):
                found[f"{part}.{name}"] = child.eps
    return found


# --- the pages ------------------------------------------------------------------------------------


def write_script(path: Path, name: str, value: dict) -> None:
    """A script that keeps a value under `PLAY[name]`, where the scripts of the page find it."""
    text = f"(globalThis.PLAY ??= {{}})[{json.dumps(name)}] = {json.dumps(value)};\n"
    if len(text) >= MOST_BYTES:
        raise SystemExit(f"{path.name} has {len(text)} bytes: less than {MOST_BYTES} expected")
    path.write_text(text, encoding="utf-8")


def frames_script() -> dict:
    """The frames for the page: bytes in base64, (episodes, shots, 3, SIDE, SIDE)."""
    frames = read_frames()
    data = base64.b64encode(frames.tobytes()).decode()
    return {"episodes": len(frames), "shots": frames.shape[1], "side": SIDE, "data": data}


FILMS = ROOT / "nbs" / "9_studies" / "animations.ipynb"


def with_films(page: str) -> str:
    """A page with the moving pictures of their chapter in place of its lines `FILM n`."""
    cells = json.loads(FILMS.read_text(encoding="utf-8"))["cells"]
    outputs = [output.get("data", {}) for c in cells for output in c.get("outputs", [])]
    pages = ["".join(data.get("text/html", "")) for data in outputs]
    films = [text for text in pages if text.startswith('<figure class="film">')]
    return re.sub(r"^FILM (\d)$", lambda line: films[int(line[1])], page, flags=re.M)


def write_pages(docs: Path) -> list[dict[str, str]]:
    """Write the pages and what they load into the folder of Markdown; their entries of the menu."""
    folder, vendor = docs / "play", docs / "vendor" / "play"
    folder.mkdir(parents=True)
    vendor.mkdir(parents=True)
    for script in [*PLAY.glob("*.js"), *PLAY.glob("*.css")]:
        shutil.copy(script, vendor)
    for name in PAGES.values():
        (folder / name).write_text(with_films((PLAY / name).read_text(encoding="utf-8")))
    write_script(vendor / "frames.js", "frames", frames_script())
    for name, title in MODELS.items():
        lam = LatentActionModel.from_pretrained(name)
        write_script(vendor / f"{name}.js", name, pack(lam, title))
    return [{title: f"play/{name}"} for title, name in PAGES.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--render", action="store_true", help="render site/play/frames.png anew")
    if not parser.parse_args().render:
        raise SystemExit("nothing to do: `make book` writes the pages; --render renders the frames")
    render()
    print(f"{FRAMES.relative_to(ROOT)}: {FRAMES.stat().st_size} bytes")


if __name__ == "__main__":
    main()
