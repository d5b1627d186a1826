"""One optimiser step of each latent action model against its authors' module of the same size, on
the same pairs.

    ACLAM_OFFICIAL=FOLDER python bench/run.py peers
    python bench/bench_peers.py FOLDER [--keep nbs/results/peers.json]

FOLDER holds copies of the official repositories, as `villa-x`, `LAPA`, `UniVLA` and `dinov2`; their
code is not here. Each step is forward, backward and AdamW, in CPU seconds of one thread, rounds
interleaved, for models of two sizes. The pairs are those of triples. Training on triples lets a
model share what pairs have in common; "apart" is our step with every pair by itself.
"""

import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from aclam.lam import PRESETS, LatentActionModel
from aclam.lam.blocks import normalize_pixels
from aclam.lam.objective import objective, pair_frames
from aclam.studies.processes import hardware

HERE = Path(__file__).resolve().parent
ROUNDS = 7
Step = Callable[[], Tensor]  # a forward pass that returns the loss


def load(path: Path) -> ModuleType:
    """A file of the repository that is no part of the package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Size(NamedTuple):
    """The same for all models; `triples` of frames a step, three pairs each."""

    pixels: int
    patch: int
    width: int
    layers: int  # of each encoder, and of each decoder
    heads: int
    triples: int


SIZES = Size(32, 4, 96, 2, 4, 8), Size(64, 8, 192, 3, 6, 4)


class Peer(NamedTuple):
    """Ours, the official module, and the official module's loss of pairs of frames (n, 3, S, S) in
    [0, 1].
    """

    ours: LatentActionModel
    official: nn.Module
    forward: Callable[[nn.Module, Tensor, Tensor], Tensor]


# --- the three, with the losses that their trainers use -------------------------------------------


def villa_x(parity: ModuleType, folder: Path, s: Size) -> Peer:
    sizes = dict(
        resolution=s.pixels,
        patch_size=s.patch,
        encoder_depth=s.layers,
        encoder_embed_dim=s.width,
        encoder_n_heads=s.heads,
        map_heads=s.heads,
        decoder_depth=s.layers,
        decoder_embed_dim=s.width,
        decoder_n_heads=s.heads,
    )
    ours = replace(
        PRESETS["villa_x"],
        image_size=s.pixels,
        patch_size=s.patch,
        idm_width=s.width,
        idm_depth=s.layers,
        idm_heads=s.heads,
        pool_heads=s.heads,
        fdm_width=s.width,
        fdm_depth=s.layers,
        fdm_heads=s.heads,
    )

    def forward(model: nn.Module, o_i: Tensor, o_j: Tensor) -> Tensor:
        clips = torch.stack([normalize_pixels(o_i), normalize_pixels(o_j)], dim=1)
        z, reg, _ = model.vq(model.encoder(clips))
        predicted, target = model.decoder(clips, z)
        return model.loss(target, predicted) + reg

    return Peer(
        LatentActionModel(ours), parity.villa_x_module(str(folder / "villa-x"), **sizes), forward
    )


def lapa(parity: ModuleType, folder: Path, s: Size) -> Peer:
    sizes = dict(
        dim=s.width,
        quant_dim=32,
        codebook_size=8,
        image_size=s.pixels,
        patch_size=s.patch,
        spatial_depth=s.layers,
        temporal_depth=s.layers,
        dim_head=s.width // s.heads,
        heads=s.heads,
        code_seq_len=4,
    )
    ours = replace(
        PRESETS["lapa"],
        image_size=s.pixels,
        patch_size=s.patch,
        width=s.width,
        depth=s.layers,
        heads=s.heads,
        head_dim=s.width // s.heads,
    )

    def forward(model: nn.Module, o_i: Tensor, o_j: Tensor) -> Tensor:
        return model(torch.stack([o_i, o_j], dim=2), step=1)[0]

    return Peer(LatentActionModel(ours), parity.lapa_module(str(folder / "LAPA"), **sizes), forward)


def univla(parity: ModuleType, folder: Path, s: Size) -> Peer:
    sizes = dict(
        in_dim=3,
        model_dim=s.width,
        latent_dim=128,
        num_latents=16,
        patch_size=s.patch,
        enc_blocks=s.layers,
        dec_blocks=s.layers,
        num_heads=s.heads,
    )
    eye = parity.EYE | dict(
        img_size=s.pixels, patch_size=s.patch, embed_dim=s.width, depth=s.layers, num_heads=s.heads
    )
    ours = replace(
        PRESETS["univla"],
        image_size=s.pixels,
        patch_size=s.patch,
        vision_width=s.width,
        vision_depth=s.layers,
        vision_heads=s.heads,
        width=s.width,
        idm_depth=s.layers,
        fdm_depth=s.layers,
        heads=s.heads,
    )

    def forward(model: nn.Module, o_i: Tensor, o_j: Tensor) -> Tensor:
        out = model({"videos": torch.stack([o_i, o_j], dim=1)})
        loss = F.mse_loss(out["recon"], out["target"])
        for name in ("", "_uncontrol"):
            x, e = out["emb" + name], out["z" + name]
            loss = loss + F.mse_loss(e, x.detach()) + 0.25 * F.mse_loss(x, e.detach())
        return loss

    return Peer(
        LatentActionModel(ours),
        parity.univla_module(str(folder / "UniVLA"), 2, eye, **sizes),
        forward,
    )


PEERS = {"villa-X": villa_x, "LAPA": lapa, "UniVLA": univla}


# --- the clock ------------------------------------------------------------------------------------


class Apart:
    """A model of ours that shares nothing between the pairs of a triple."""

    def __init__(self, lam: LatentActionModel):
        self.lam = lam

    def __getattr__(self, name: str):
        return getattr(self.lam, name)

    def triple_latents(self, frames: Tensor):
        return self.lam.latents(*pair_frames(frames))


def optimizer_step(model: nn.Module, forward: Step) -> Callable[[], float]:
    """A function that makes one AdamW step and returns its CPU seconds."""
    adam = torch.optim.AdamW([p for p in model.train().parameters() if p.requires_grad], lr=1e-4)

    def step() -> float:
        start = time.process_time()
        adam.zero_grad()
        forward().backward()
        adam.step()
        return time.process_time() - start

    return step


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def times(peer: Peer, s: Size) -> dict[str, float]:
    """Median CPU seconds of our step, ours with pairs apart, and the official one."""
    batch = {"frames": torch.rand(s.triples, 3, 3, s.pixels, s.pixels)}
    o_i, o_j = pair_frames(batch["frames"])
    steps = {
        "ours": optimizer_step(peer.ours, lambda: peer.ours.loss(batch)[0]),
        "apart": optimizer_step(peer.ours, lambda: objective(Apart(peer.ours), batch)[0]),
        "official": optimizer_step(peer.official, lambda: peer.forward(peer.official, o_i, o_j)),
    }
    spent = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            spent[name].append(step())
    return {name: median(v[2:]) for name, v in spent.items()}


def flops(lam: LatentActionModel, s: Size) -> float:
    """Multiplications and additions of one forward and backward pass; attention written out, so
    that it is counted.
    """
    batch = {"frames": torch.rand(s.triples, 3, 3, s.pixels, s.pixels)}
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        lam.loss(batch)[0].backward()
    return counter.get_total_flops()


def matmul_peak(n: int = 768) -> float:
    """FLOP/s of the best of several float32 matrix products, one thread."""
    a, b, best = torch.rand(n, n), torch.rand(n, n), float("inf")
    for _ in range(12):
        start = time.process_time()
        a @ b
        best = min(best, time.process_time() - start)
    return 2 * n**3 / best


# --- rows -----------------------------------------------------------------------------------------


def rows(folder: str = "") -> Iterator[tuple[str, float, str]]:
    """Steps of ours and of the official modules, their ratio, and the share of the matrix-product
    peak that ours reach.
    """
    root = Path(folder := folder or os.environ.get("ACLAM_OFFICIAL", ""))
    if not folder:
        print(
            "  not measured: ACLAM_OFFICIAL names no folder with copies of villa-x, LAPA, UniVLA and dinov2"
        )
        return
    if lost := [n for n in ("villa-x", "LAPA", "UniVLA", "dinov2") if not (root / n).is_dir()]:
        print(f"  not measured: there is no folder {lost[0]} in {root}")
        return
    torch.set_num_threads(1)
    parity, peak = load(HERE.parent / "tools" / "parity.py"), matmul_peak()
    yield "matrix product, 768 x 768", peak / 1e9, "GFLOP/s"
    for size in SIZES:
        for name, make in PEERS.items():
            torch.manual_seed(0)
            yield from compare(f"{name}, width {size.width}", make(parity, root, size), size, peak)
    yield from load(HERE / "bench_ac_step.py").rows()


def compare(name: str, peer: Peer, s: Size, peak: float) -> Iterator[tuple[str, float, str]]:
    """The rows of one model of one size."""
    t, pairs = times(peer, s), 3 * s.triples
    for what in ("official", "ours", "apart"):
        yield f"{name}: {what}", 1e3 * t[what] / pairs, "CPU ms a pair"
    yield f"{name}: official / ours", t["official"] / t["ours"], "x"
    yield f"{name}: official / ours apart", t["official"] / t["apart"], "x"
    yield f"{name}: ours, share of matrix-product peak", flops(peer.ours, s) / t["ours"] / peak, ""


def main() -> int:
    if len(sys.argv) not in (2, 4) or sys.argv[2:3] not in ([], ["--keep"]):
        print(__doc__, file=sys.stderr)
        return 2
    found = {}
    for what, value, unit in rows(sys.argv[1]):
        print(f"{what:60} {value:10.4g} {unit}", flush=True)
        found[f"{what} ({unit})" if unit else what] = round(value, 4)
    if not found:
        return 2
    if len(sys.argv) == 4:
        about = {
            "command": "python bench/bench_peers.py FOLDER --keep nbs/results/peers.json",
            "sizes": [size._asdict() for size in SIZES],
            "hardware": hardware(),
        }
        Path(sys.argv[3]).write_text(
            json.dumps(about | {"rows": found}, indent=1) + "\n", encoding="utf-8"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
