"""Write parity fixtures: small official checkpoints of random weights, and what the official code
makes of frames.

    python tools/parity.py villa_x|lapa|univla REPOSITORY OUT

REPOSITORY is a copy of microsoft/villa-x, LatentActionPretraining/LAPA or OpenDriveLab/UniVLA; the
last one's features come from facebookresearch/dinov2, whose copy is expected beside it as `dinov2`,
and OUT gets a folder for each stage. Their modules are imported and run on a CPU; nothing of them
is copied. `aclam.lam.registry.check_parity` reads OUT. What the official code needs beyond aclam's
own requirements: einops, pydantic (villa-x), beartype (LAPA).
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
    save_file(
        {"o_i": o_i, "o_j": o_j, **{k: v.detach().contiguous() for k, v in made.items()}},
        out / "io.safetensors",
    )


# --- villa-X --------------------------------------------------------------------------------------

VILLA_X = dict(
    resolution=16,
    patch_size=8,
    d_t=4,
    encoder_depth=2,
    encoder_embed_dim=16,
    encoder_n_heads=2,
    action_latent_dim=6,
    num_learned_tokens=3,
    map_heads=4,
    decoder_depth=2,
    decoder_embed_dim=16,
    decoder_n_heads=2,
    n_codes=8,
)


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
    std, mean = (
        torch.tensor(v).view(3, 1, 1) for v in ((0.229, 0.224, 0.225), (0.485, 0.456, 0.406))
    )
    decoded = model.unpatching(patches) * std + mean  # patch2image also rounds to bytes
    film = (
        torch.rand(6, 3, o_i.shape[-1], o_i.shape[-1], generator=torch.Generator().manual_seed(2))
        * 255
    )
    steps = model.encoder.idm(film.round())[0]  # (T - 1, 1, N * c): longer than the window
    model.save_pretrained(str(out))
    shape = (len(o_i), VILLA_X["num_learned_tokens"], -1)
    film_made = {"film": film.round() / 255, "film_pre_vq": steps.reshape(len(steps), *shape[1:])}
    latent, indices = z.flatten(1), indices.view(shape[:2])
    write(
        out,
        o_i,
        o_j,
        pre_vq=tokens.view(shape),
        latent=latent,
        indices=indices,
        decoded=decoded,
        **film_made,
    )


# --- LAPA -----------------------------------------------------------------------------------------

LAPA = dict(
    dim=12,
    quant_dim=4,
    codebook_size=6,
    image_size=16,
    patch_size=2,
    spatial_depth=2,
    temporal_depth=2,
    dim_head=4,
    heads=2,
    code_seq_len=4,
)


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
    write(
        out,
        o_i,
        o_j,
        pre_vq=pre,
        latent=model.vq.codebooks[indices].flatten(1),
        indices=indices,
        decoded=decoded,
    )


# --- UniVLA ---------------------------------------------------------------------------------------

UNIVLA = dict(
    in_dim=3,
    model_dim=24,
    latent_dim=6,
    num_latents=16,
    patch_size=2,
    enc_blocks=2,
    dec_blocks=2,
    num_heads=3,
)
EYE = dict(
    img_size=36,
    patch_size=2,
    embed_dim=16,
    depth=1,
    num_heads=1,
    mlp_ratio=4,
    init_values=1.0,
    block_chunks=0,
    num_register_tokens=4,
    interpolate_antialias=True,
    interpolate_offset=0.0,
)
WORDS = (3, 5, 2)  # words of each row's instruction


class Words:
    """Stands for T5 and its tokenizer. T5's weights are in a checkpoint, so there is one here."""

    @staticmethod
    def from_pretrained(_: str) -> nn.Module:
        return nn.Linear(2, 2)


def dinov2(repository: str, **settings) -> nn.Module:
    """DINOv2's own module with random weights."""
    sys.path.insert(0, repository)
    from dinov2.models.vision_transformer import DinoVisionTransformer

    return DinoVisionTransformer(**settings)


def univla_module(repository: str, stage: int, eye: dict, **settings) -> nn.Module:
    """The official model of a stage.

    The width of DINOv2 and T5 is a number in its constructor, 768, replaced here.
    """
    sys.path.insert(0, repository)
    stand_in("rotary_embedding_torch", RotaryEmbedding=None)
    import latent_action_model.genie.modules.lam as official

    official.T5EncoderModel, official.T5Tokenizer = (
        Words,
        types.SimpleNamespace(from_pretrained=str),
    )
    names = {1: "UncontrolledDINOLatentActionModel", 2: "ControllableDINOLatentActionModel"}
    cls, Tensor.cuda = (
        getattr(official, names[stage]),
        lambda tensor: tensor,
    )  # positions go to the GPU
    torch.hub.load = lambda *_: dinov2(str(Path(repository).with_name("dinov2")), **eye)
    code = cls.__init__.__code__
    constants = tuple(eye["embed_dim"] if c == 768 else c for c in code.co_consts)
    cls.__init__.__code__ = code.replace(co_consts=constants)
    try:
        return cls(**settings)
    finally:
        cls.__init__.__code__ = code


def by_row(
    model: nn.Module, o_i: Tensor, o_j: Tensor, words: Tensor, mask: Tensor
) -> dict[str, Tensor]:
    """What the official model returns; a pair at a time, for in a batch it mixes up the masks of
    the instructions.
    """
    made = []
    for row in range(len(o_i)):
        model.encode_text = lambda _, row=row: (words[row : row + 1], mask[row : row + 1].float())
        made.append(
            model(
                {"videos": torch.stack([o_i, o_j], dim=1)[row : row + 1], "task_instruction": [""]}
            )
        )
    return {name: torch.cat([m[name] for m in made]) for name in made[0]}


def univla(repository: str, out: Path) -> None:
    for stage in (1, 2):
        (out / f"stage_{stage}").mkdir(exist_ok=True)
        univla_stage(repository, stage, out / f"stage_{stage}")


@torch.no_grad()
def univla_stage(repository: str, stage: int, out: Path) -> None:
    model = shake(univla_module(repository, stage, EYE, **UNIVLA))
    fade = torch.tensor([1.0, 0.4, 0.1]).view(
        3, 1, 1, 1
    )  # rows that differ, so that their codes do
    o_i, o_j = ((o * fade * 255).round() / 255 for o in two_frames(16 * UNIVLA["patch_size"]))
    words = torch.randn(len(WORDS), max(WORDS), EYE["embed_dim"])
    mask = torch.arange(max(WORDS)) < torch.tensor(WORDS)[:, None]
    cat = by_row(model, o_i, o_j, words, mask)
    for book, found in {1: {"vq": "emb"}, 2: {"vq_action": "emb", "vq": "emb_uncontrol"}}[
        stage
    ].items():
        near = cat[found].flatten(0, 1)  # codes near to what is rounded, so that many are in use
        getattr(model, book).codebook.weight[: len(near)] = near + 0.1 * torch.randn_like(near)
    cat = by_row(model, o_i, o_j, words, mask)
    features = cat["recon"][:, 0].mT.unflatten(-1, (16, 16))  # (B, F, 16, 16)
    state = {f"lam.{name}": tensor for name, tensor in model.state_dict().items()}
    heads = {"lam_num_heads": UNIVLA["num_heads"]}
    torch.save({"state_dict": state, "hyper_parameters": heads, "epoch": 0}, out / "lam.ckpt")
    said = {"words": words, "word_mask": mask}
    more = {
        f"{call}.{name}": t.clone()
        for call in ("encode", "decode")
        for name, t in said.items()
        if stage == 1
    }
    if stage == 2:
        more = {"decode.z": torch.cat([cat["z"], cat["z_uncontrol"]], dim=1).flatten(1)}
    latent, indices = cat["z"].flatten(1), cat["indices"]
    write(
        out, o_i, o_j, pre_vq=cat["emb"], latent=latent, indices=indices, decoded=features, **more
    )


MAKERS = {"villa_x": villa_x, "lapa": lapa, "univla": univla}


def main() -> int:
    if len(sys.argv) != 4 or sys.argv[1] not in MAKERS:
        print(__doc__)
        return 2
    name, repository, out = sys.argv[1], str(Path(sys.argv[2]).resolve()), Path(sys.argv[3])
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    MAKERS[name](repository, out)
    print(f"{out}: {sum(p.stat().st_size for p in out.rglob('*') if p.is_file()) / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
