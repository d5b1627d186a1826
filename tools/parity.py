"""Write parity fixtures: small official checkpoints of random weights, and what the official code makes of frames.

    python tools/parity.py villa_x|lapa REPOSITORY OUT

REPOSITORY is a copy of microsoft/villa-x or LatentActionPretraining/LAPA. Its modules are imported and run on a CPU;
nothing of it is copied. `aclam.lam.registry.check_parity` reads OUT. What the official code needs beyond aclam's own
requirements: einops, pydantic (villa-x), beartype (LAPA).
"""

import sys
import types
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn


def stand_in(name: str, **content) -> None:
    """A module that the official code imports and that this run does not need."""
    module = types.ModuleType(name)
    module.__dict__.update(content)
    sys.modules[name] = module
    if "." in name:
        setattr(sys.modules[name.rpartition(".")[0]], name.rpartition(".")[2], module)


def shake(model: nn.Module, seed: int = 0, fixed: tuple[str, ...] = ()) -> nn.Module:
    """Give every learned number a random value, so that none can be wrong unnoticed."""
    g = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if not any(word in name for word in fixed):
            p.data += 0.2 * torch.randn(p.shape, generator=g)
    return model.eval()


def two_frames(size: int, rows: int = 3) -> tuple[Tensor, Tensor]:
    """Frames of whole bytes, as floats in [0, 1]."""
    g = torch.Generator().manual_seed(1)
    return tuple((torch.randint(0, 256, (2, rows, 3, size, size), generator=g) / 255).unbind(0))


def write(out: Path, o_i: Tensor, o_j: Tensor, **made: Tensor) -> None:
    """io.safetensors, as `check_parity` wants it."""
    save_file({"o_i": o_i, "o_j": o_j, **{k: v.detach().contiguous() for k, v in made.items()}}, out / "io.safetensors")


# --- villa-X --------------------------------------------------------------------------------------------------------

VILLA_X = dict(resolution=16, patch_size=8, d_t=4, encoder_depth=2, encoder_embed_dim=16, encoder_n_heads=2,
               action_latent_dim=6, num_learned_tokens=3, map_heads=4, decoder_depth=2, decoder_embed_dim=16,
               decoder_n_heads=2, n_codes=8)  # fmt: skip


def villa_x_module(repository: str, **settings) -> nn.Module:
    """The official model. xformers is imported there, and used on GPUs only."""
    sys.path.insert(0, repository)
    stand_in("xformers")
    stand_in("xformers.ops")
    from lam.model import IgorConfig, IgorModel

    return IgorModel(IgorConfig(**settings))


@torch.no_grad()
def villa_x(repository: str, out: Path) -> None:
    model = shake(villa_x_module(repository, **VILLA_X), fixed=("decoder.pe", "encoder.pe"))
    o_i, o_j = two_frames(model.config.resolution)
    clip = torch.stack([o_i, o_j], dim=1)  # (B, 2, 3, S, S)
    pixels = model.encoder.preprocess(clip * 255, augment_type="no")
    tokens = model.encoder(pixels)  # (B, 1, N * c)
    z, _, (_, _, indices) = model.vq(tokens)
    patches = model.decoder.fdm(z, images=pixels[:, 0])
    std, mean = (torch.tensor(v).view(3, 1, 1) for v in ((0.229, 0.224, 0.225), (0.485, 0.456, 0.406)))
    decoded = model.unpatching(patches) * std + mean  # patch2image also rounds to bytes
    film = torch.rand(6, 3, o_i.shape[-1], o_i.shape[-1], generator=torch.Generator().manual_seed(2)) * 255
    steps = model.encoder.idm(film.round())[0]  # (T - 1, 1, N * c): longer than the window
    model.save_pretrained(str(out))
    shape = (len(o_i), VILLA_X["num_learned_tokens"], -1)
    film_made = {"film": film.round() / 255, "film_pre_vq": steps.reshape(len(steps), *shape[1:])}
    latent, indices = z.flatten(1), indices.view(shape[:2])
    write(out, o_i, o_j, pre_vq=tokens.view(shape), latent=latent, indices=indices, decoded=decoded, **film_made)


# --- LAPA -----------------------------------------------------------------------------------------------------------

LAPA = dict(dim=12, quant_dim=4, codebook_size=6, image_size=16, patch_size=2, spatial_depth=2, temporal_depth=2,
            dim_head=4, heads=2, code_seq_len=4)  # fmt: skip


def lapa_module(repository: str, **settings) -> nn.Module:
    """The official model; its quantiser's device is hard-coded as cuda, and is the CPU here."""
    sys.path.insert(0, str(Path(repository) / "laq"))
    package = types.ModuleType("laq_model")  # its __init__ imports the trainer
    package.__path__ = [str(Path(repository) / "laq" / "laq_model")]
    sys.modules["laq_model"] = package
    import laq_model.latent_action_quantization as official

    quantiser = official.NSVQ
    official.NSVQ = lambda **given: quantiser(**{**given, "device": "cpu"})
    return official.LatentActionQuantization(**settings)


@torch.no_grad()
def lapa(repository: str, out: Path) -> None:
    model = shake(lapa_module(repository, **LAPA))
    o_i, o_j = two_frames(LAPA["image_size"])
    video = torch.stack([o_i, o_j], dim=2)  # (B, 3, 2, S, S)
    seen = {}
    model.vq.encode, encode = lambda x, n: seen.setdefault(len(seen), encode(x, n)), model.vq.encode
    decoded = model.inference(video)
    indices = model.inference(video, return_only_codebook_ids=True)
    pre = (seen[1] - seen[0]).view(len(o_i), LAPA["code_seq_len"], -1)
    torch.save(model.state_dict(), out / "laq.pt")
    write(out, o_i, o_j, pre_vq=pre, latent=model.vq.codebooks[indices].flatten(1), indices=indices, decoded=decoded)


MAKERS = {"villa_x": villa_x, "lapa": lapa}


def main() -> int:
    if len(sys.argv) != 4 or sys.argv[1] not in MAKERS:
        print(__doc__)
        return 2
    name, repository, out = sys.argv[1], str(Path(sys.argv[2]).resolve()), Path(sys.argv[3])
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    MAKERS[name](repository, out)
    print(f"{out}: {sum(p.stat().st_size for p in out.iterdir()) / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
