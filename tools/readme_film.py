"""Make the moving picture at the top of README.md from two kept models.

    python tools/readme_film.py [--out nbs/images/latents.gif]

An episode of Emoji Table-Top is rendered that no model was trained on (another seed than theirs).
Four panels play at once: the film; what AC-LAM makes of its first frame and the sum of all latents
so far; the same by the model that was trained without the additive loss; and AC-LAM's latents
played in the first frame of another episode.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from aclam.data import open_dataset, resize_frames
from aclam.lam import LatentActionModel
from aclam.sim.emoji_tabletop import EmojiConfig
from aclam.sim.prepare import EmojiSource, Job, prepare

ROOT = Path(__file__).resolve().parents[1]
SEED = 7  # of the episodes; the kept models have seen seed 0
STEP = 3  # frames between two latents: 0.6 s
SIDE = 240  # of a panel, in pixels
GAP = 8
CAPTION = 24
MOST_BYTES = 1_500_000
SECONDS_A_FRAME = 0.16
PAPER = (255, 255, 255)
INK = (15, 23, 42)

CAPTIONS = (
    "the film",
    "AC-LAM: frame 0 + sum of latents",
    "the same, no additive loss",
    "AC-LAM: played in another scene",
)


def pixels(frames: np.ndarray, side: int) -> torch.Tensor:
    """Frames as a model takes them: float (T, 3, side, side) in [0, 1]."""
    return torch.as_tensor(resize_frames(frames, side))


def knots(k: int) -> list[int]:
    """The frames between which latents are taken on the way to frame `k`."""
    return [*range(0, k, STEP), k]


def sum_to(lam: LatentActionModel, o: torch.Tensor, k: int) -> torch.Tensor:
    """The sum of the latents from frame to frame on the way to frame `k`: (1, d_z)."""
    ends = knots(k)
    z = lam.encode(o[ends[:-1]], o[ends[1:]]).z
    return z.sum(0, keepdim=True)


def panel(image: np.ndarray) -> Image.Image:
    """A picture (H, W, 3) of bytes, at the size of a panel."""
    return Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def decoded(lam: LatentActionModel, first: torch.Tensor, z: torch.Tensor) -> Image.Image:
    """What `z` does to a frame (1, 3, H, W)."""
    image = lam.decode(first, z)[0].clamp(0, 1).permute(1, 2, 0)
    return panel((255 * image).round().byte().numpy())


def sheet(panels: list[Image.Image]) -> Image.Image:
    """Two by two panels, each with its caption."""
    width, height = 2 * SIDE + GAP, 2 * (SIDE + CAPTION)
    out = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(out)
    font = ImageFont.load_default(15)
    for n, (image, caption) in enumerate(zip(panels, CAPTIONS, strict=True)):
        x = (n % 2) * (SIDE + GAP)
        y = (n // 2) * (SIDE + CAPTION)
        out.paste(image, (x, y))
        draw.text((x + 2, y + SIDE + 2), caption, INK, font)
    return out


def episodes(folder: str) -> list[np.ndarray]:
    """The frames of two episodes, each (T, SIDE, SIDE, 3)."""
    source = EmojiSource(EmojiConfig(size=SIDE))
    prepare(Job(folder, source, episodes=2, seed=SEED), workers=1)
    return [t.frames[list(range(len(t.frames)))] for t in open_dataset(folder).trajectories]


def film(lams: list[LatentActionModel], shot: np.ndarray, other: np.ndarray) -> list[Image.Image]:
    """A sheet for each frame of `shot`."""
    ac_lam, without = lams
    side = ac_lam.config.image_size
    o, elsewhere = pixels(shot, side), pixels(other[:1], side)
    sheets = []
    for k in range(len(shot)):
        z = sum_to(ac_lam, o, k)
        panels = [panel(shot[k]), decoded(ac_lam, o[:1], z)]
        panels += [decoded(without, o[:1], sum_to(without, o, k)), decoded(ac_lam, elsewhere, z)]
        sheets.append(sheet(panels))
    return sheets


def save(sheets: list[Image.Image], path: Path) -> int:
    """Write a GIF that repeats, with one palette for all; how many bytes it has."""
    palette = sheets[len(sheets) // 2].quantize(255, dither=Image.Dither.NONE)
    frames = [s.quantize(palette=palette, dither=Image.Dither.NONE) for s in sheets]
    last = 6  # the last frame stays so many times as long
    times = [round(1000 * SECONDS_A_FRAME)] * (len(frames) - 1)
    times.append(round(last * 1000 * SECONDS_A_FRAME))
    frames[0].save(
        path, save_all=True, append_images=frames[1:], duration=times, loop=0, optimize=True
    )
    return path.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "nbs/images/latents.gif")
    out = parser.parse_args().out
    lams = [LatentActionModel.from_pretrained(name) for name in ("ac_lam_cpu", "no_ac_cpu")]
    with tempfile.TemporaryDirectory() as folder:
        shot, other = episodes(f"{folder}/emoji")
        size = save(film(lams, shot, other), out)
    print(f"{out.name}: {len(shot)} frames, {size / 1e6:.2f} MB")
    assert size < MOST_BYTES, size


if __name__ == "__main__":
    main()
