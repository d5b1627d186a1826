"""villa-X, LAPA and UniVLA: parity with what the official code computed, one handle, one trainer,
bad checkpoints.
"""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from aclam.core import UserError
from aclam.data.sampling import TripleConfig
from aclam.data.trajectory import synthetic_trajectory
from aclam.data.triples import TripleDataset
from aclam.lam import PRESETS, LatentActionModel, instructions, univla
from aclam.lam.bottlenecks import NSVQ
from aclam.lam.instructions import SMALL_T5, TextConfig, check_t5, hashed_words, instruction_words
from aclam.lam.lapa import check_shared
from aclam.lam.model import step_lowers_loss
from aclam.lam.registry import LAMS, check_parity
from aclam.lam.univla import check_shortcuts, stage_two
from aclam.lam.villa_x import VillaX, check_pair_attention, check_three_ways
from aclam.official import read_torch
from aclam.structure.measure import measure_batch
from aclam.train import lam as train_lam

FIXTURES = Path(__file__).parent / "fixtures"
PEERS = ["villa_x", "lapa", "univla/stage_1", "univla/stage_2"]
SMALL = {
    "villa_x_cpu": dict(image_size=16, idm_width=16, idm_depth=1, fdm_width=16, fdm_depth=1),
    "lapa_cpu": dict(image_size=16, patch_size=2, width=16, depth=1, heads=2, head_dim=8),
    "univla_cpu": dict(
        image_size=16, vision_width=16, vision_depth=1, width=16, idm_depth=1, fdm_depth=1
    ),
    "univla_stage_2_cpu": dict(
        image_size=16, vision_width=16, vision_depth=1, width=16, idm_depth=2, fdm_depth=1
    ),
}


def small(name: str, seed: int = 0, **changes) -> LatentActionModel:
    """A model of a peer's CPU preset, made in milliseconds, quantising from the first step."""
    torch.manual_seed(seed)
    config = PRESETS[name]
    if hasattr(config, "bottleneck"):
        changes = {"bottleneck": replace(config.bottleneck, continuous_steps=0), **changes}
    return LatentActionModel(replace(config, **SMALL[name], **changes))


@pytest.fixture(scope="module")
def triples():
    films = [synthetic_trajectory(seed, T=16, size=16) for seed in range(4)]
    return TripleDataset(films, TripleConfig(), image_size=16)


@pytest.mark.parametrize("name", PEERS)
def test_the_official_code_computed_the_same(name):
    row = check_parity(FIXTURES / name, tol=1e-5)
    assert row["codes that differ"] == 0
    model = LatentActionModel.from_pretrained(FIXTURES / name)
    codes = load_file(FIXTURES / name / "io.safetensors")["indices"]
    assert codes.unique().numel() > 2, "a fixture in which all codes are equal would prove little"
    assert not model.training


def test_a_parity_check_can_fail(tmp_path):
    shutil.copytree(FIXTURES / "villa_x", tmp_path / "v")
    tensors = load_file(tmp_path / "v" / "model.safetensors")
    tensors["encoder.layers.1.attn_temp.proj.bias"][3] += 1e-2
    save_file(tensors, tmp_path / "v" / "model.safetensors")
    with pytest.raises(AssertionError):
        check_parity(tmp_path / "v")


def test_villa_x_sliding_window_is_the_official_one():
    io = load_file(FIXTURES / "villa_x" / "io.safetensors")
    lam = LatentActionModel.from_pretrained(FIXTURES / "villa_x")
    assert len(io["film"]) > lam.config.window  # longer than the window, so it slides
    with torch.no_grad():
        found = lam.encode_clip(io["film"]).pre_vq
    assert found.shape == io["film_pre_vq"].shape and (found - io["film_pre_vq"]).abs().max() < 1e-5


def test_villa_x_shortcuts_change_nothing(triples):
    check_pair_attention()
    lam = small("villa_x_cpu", residual=False)
    check_three_ways(lam, triples.batch(range(4))["frames"])
    assert type(lam) is VillaX


@pytest.mark.parametrize("name", SMALL)
def test_one_handle(name, triples, tmp_path):
    """Encode, decode, loss, save, load, and the metrics' batch, as for every family."""
    lam, batch = small(name), triples.batch(range(8))
    before, after = step_lowers_loss(lam, batch, lr=1e-3, steps=6)
    assert after < before
    lam.eval().save_pretrained(tmp_path / "m")
    again = LatentActionModel.from_pretrained(tmp_path / "m")
    assert type(again) is type(lam) and again.config == lam.config
    o_i, o_j, _ = batch["frames"].unbind(1)
    with torch.no_grad():
        a, b = lam.encode(o_i, o_j), again.encode(o_i, o_j)
        row = measure_batch(lam, batch["frames"] / 255)
    assert torch.equal(a.z, b.z) and a.z.shape == (8, lam.config.latent_dim)
    assert a.pre_vq.shape == (8, lam.config.tokens, lam.config.latent_dim // lam.config.tokens)
    assert a.indices.max() < lam.config.codebook_size and row["rec"].shape == (8,)
    assert json.loads((tmp_path / "m" / "config.json").read_text())["model"] in LAMS.families


@pytest.mark.parametrize("name", SMALL)
def test_shared_work_gives_the_same_loss(name, triples):
    """What a family computes once for a triple equals what it computes for three pairs."""
    lam, batch = small(name), triples.batch(range(4))
    lam.loss(batch), lam.eval()  # a codebook starts on the first data that it sees
    x = lam.normalize(batch["frames"])
    with torch.no_grad():
        shared, apart = lam.triple_latents(x), LatentActionModel.triple_latents(lam, x)
    assert torch.allclose(shared.pre_vq, apart.pre_vq, atol=1e-5) and torch.equal(
        shared.indices, apart.indices
    )


@pytest.mark.parametrize("name", SMALL)
def test_the_command_line_has_the_familys_options(name):
    config = train_lam.settings_from(["--preset", name, "--model.objective.lambda-reg", "0.5"])
    assert type(config.model) is type(PRESETS[name]) and config.model.objective.lambda_reg == 0.5
    assert config.train == train_lam.settings_for("ac_lam_cpu").train
    with pytest.raises(UserError, match="--model.objective.lambda-reg"):
        train_lam.settings_from(["--preset", name, "--model.objective.lambda-rge", "1"])


def test_villa_x_trains_its_proprio_fdm(triples):
    lam, batch = small("villa_x_cpu", proprio_dim=7), triples.batch(range(8))
    loss, row = lam.loss(batch)
    loss.backward()
    assert row["proprio"] > 0 and lam.proprio_fdm.state.weight.grad.abs().sum() > 0


def test_official_sizes():
    with torch.device("meta"):
        c = LatentActionModel.from_preset("villa_x").config
    assert (c.idm_depth, c.idm_heads, c.fdm_depth, c.fdm_heads, c.window) == (12, 8, 8, 16, 8)
    assert (c.latent_dim, c.codebook_size) == (512, 32)
    with torch.device("meta"):
        lam = LatentActionModel.from_preset("univla")
    assert (lam.config.latent_dim, lam.config.codebook_size, lam.config.side) == (512, 16, 16)
    assert (
        sum(p.numel() for p in lam.eye.parameters()) == 85_727_232
    )  # timm's vit_base_patch14_reg4_dinov2


def test_a_preset_has_one_family():
    with pytest.raises(ValueError, match="villa_x"):
        LAMS.register("other", dict, {"villa_x_cpu": {}})(VillaX)
    assert "other" not in LAMS.families


def test_univla_shortcuts_change_nothing(triples):
    frames, words = (
        triples.batch(range(3))["frames"],
        hashed_words(["a", "put the cube on it", "put it there"], 8),
    )
    check_shortcuts(small("univla_stage_2_cpu"), frames)
    lam = small("univla_cpu", text_dim=8)
    check_shortcuts(lam, frames)
    check_shortcuts(lam, frames, words)


def test_lapa_reads_a_shared_first_frame_once(triples):
    frames = triples.batch(range(3))["frames"]
    assert check_shared(small("lapa_cpu"), frames) < 1e-5


def test_univla_stage_1_is_told_the_instruction(triples):
    lam, batch = small("univla_cpu", text_dim=8), triples.batch(range(4))
    words, mask = hashed_words(["put the cube on the card", "go", "stop it", "go"], 8)
    lam.loss(batch), lam.eval()
    told, silent = lam.loss(batch | {"words": words, "word_mask": mask})[1], lam.loss(batch)[1]
    padded = torch.where(mask[..., None], words, torch.full_like(words, 7.0))
    assert told["rec"] != silent["rec"]
    assert (
        abs(lam.loss(batch | {"words": padded, "word_mask": mask})[1]["rec"] - told["rec"]) < 1e-6
    )
    o_i, o_j, _ = (batch["frames"] / 255).unbind(1)
    a, b = lam.encode(o_i, o_j, words, mask), lam.encode(o_i, o_j)
    assert not torch.allclose(a.pre_vq, b.pre_vq) and lam.decode(o_i, a.z, words, mask).shape == (
        4,
        16,
        2,
        2,
    )
    with pytest.raises(UserError, match="text_dim"):
        small("univla_cpu").eval().encode(o_i, o_j, words, mask)


TEXTS = ["put the cube on the card", "go", "stop it", "go"]


def test_univla_stage_1_is_told_by_t5(triples):
    pytest.importorskip("transformers")
    assert check_t5() < 1e-5
    lam, batch = small("univla_cpu", text_dim=16, text=SMALL_T5), triples.batch(range(4))
    words, mask = instruction_words(TEXTS, 16, lam.config.text)
    ids, own = instructions.t5_numbers(TEXTS, lam.config.text)
    library = instructions.t5_encoder(16, lam.config.text)(
        input_ids=ids, attention_mask=own.long()
    ).last_hidden_state
    assert (
        torch.equal(words, library)
        and torch.equal(mask, own)
        and mask.sum(1).tolist() == [7, 2, 3, 2]
    )
    other = torch.where(mask, ids, 77)  # what stands in the padding
    again = instructions.t5_encoder(16, lam.config.text)(
        input_ids=other, attention_mask=own.long()
    ).last_hidden_state
    assert torch.allclose(words[mask], again[mask], atol=1e-6) and torch.equal(
        words[1][:2], words[3][:2]
    )
    told = batch | {"words": words, "word_mask": mask}
    lam.loss(told)
    before = lam.eval().language.weight.detach().clone(), lam.loss(told)[1]["rec"]
    assert (
        abs(
            lam.loss(told | {"words": torch.where(mask[..., None], words, 7.0)})[1]["rec"]
            - before[1]
        )
        < 1e-6
    )
    first, last = step_lowers_loss(lam, told, lr=1e-3, steps=6)
    assert last < first and not torch.equal(lam.language.weight, before[0])
    assert not any("text" in name for name in lam.state_dict())


def test_t5_of_the_papers_size():
    pytest.importorskip("transformers")
    config = PRESETS["univla_stage_1"]
    assert (config.text.kind, config.text_dim, PRESETS["univla_stage_1_cpu"].text.kind) == (
        "t5",
        768,
        "hashed",
    )
    with torch.device("meta"):
        t5, lam = instructions.t5_encoder(768, config.text), LatentActionModel(config)
    assert (
        sum(p.numel() for p in t5.parameters()) == 109_628_544
    )  # T5-base's encoder and its 32,128 word pieces
    assert not any(p.requires_grad for p in t5.parameters())
    attention, mlp = t5.encoder.block[0].layer
    assert (
        attention.SelfAttention.q.weight.shape == (768, 768)
        and mlp.DenseReluDense.wi.out_features == 3072
    )
    assert (
        attention.SelfAttention.relative_attention_bias.weight.shape == (32, 12)
        and len(t5.encoder.block) == 12
    )
    assert tuple(lam.language.weight.shape) == (768, 768)


def test_t5_from_a_folder_and_what_is_wrong_with_it(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"\u2581{word}", -1.0) for word in ("put", "the", "cube", "on")]
    torch.manual_seed(5)
    trained = transformers.T5EncoderModel(instructions.t5_config(16, SMALL_T5)).eval()
    (
        trained.save_pretrained(tmp_path),
        transformers.T5Tokenizer(vocab=pieces, extra_ids=0).save_pretrained(tmp_path),
    )
    text = TextConfig("t5", str(tmp_path))
    words, mask = instructions.t5_words(["put the cube on the thing", "cube"], 16, text)
    assert instructions.t5_numbers(["cube"], text)[0].tolist() == [[5, 1]] and mask.sum(
        1
    ).tolist() == [
        7,
        2,
    ]
    with torch.no_grad():
        assert torch.allclose(
            words[1, :2], trained(torch.tensor([[5, 1]])).last_hidden_state[0], atol=1e-5
        )
    with pytest.raises(UserError, match="a T5 with 8 numbers"):
        instructions.t5_words(["cube"], 8, text)
    half = load_file(tmp_path / "model.safetensors")
    half.pop("encoder.final_layer_norm.weight")
    save_file(half, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="not the whole"):
        instructions.t5_words(["cube"], 16, text)
    with pytest.raises(UserError, match="no T5 at"):
        instructions.t5_words(["cube"], 16, TextConfig("t5", str(tmp_path / "nowhere")))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'T5 needs .* pip install "aclam\[policy\]"'):
        instruction_words(["go"], 768, SMALL_T5)


def test_univla_stage_2_keeps_the_codes_of_stage_1(triples):
    first, batch = small("univla_cpu", text_dim=8), triples.batch(range(8))
    with pytest.raises(UserError, match="stage 1"):
        stage_two(first)  # its codebook has seen nothing yet
    first.loss(batch)
    second = stage_two(first)
    kept = {n: t.clone() for n, t in second.aside.bottleneck.state_dict().items()}
    assert torch.equal(kept["book.codes"], first.codes.bottleneck.book.codes)
    assert torch.equal(second.aside.queries, first.codes.queries)
    before, after = step_lowers_loss(second, batch, lr=1e-3, steps=6)
    assert after < before and not torch.equal(second.aside.queries, first.codes.queries)
    assert all(torch.equal(t, kept[n]) for n, t in second.aside.bottleneck.state_dict().items())
    eye = dict(first.eye.named_parameters())
    assert all(torch.equal(p, eye[n]) and p.grad is None for n, p in second.eye.named_parameters())
    with pytest.raises(UserError, match="stage 1"):
        stage_two(second)


def test_univla_takes_dinov2_from_the_hub_or_says_why_not(monkeypatch):
    lam, other = small("univla_cpu"), small("univla_cpu", seed=1)
    monkeypatch.setattr(univla, "create_model", lambda name, **_: other.eye.vit)
    univla.with_dinov2(lam)
    assert all(torch.equal(t, other.eye.state_dict()[n]) for n, t in lam.eye.state_dict().items())
    with pytest.raises(UserError, match="dinov2"):
        univla.with_dinov2(small("univla_cpu", registers=2))

    def offline(name, **_):
        raise OSError("no network")

    monkeypatch.setattr(univla, "create_model", offline)
    with pytest.raises(UserError, match="no network"):
        univla.with_dinov2(lam)


def test_univla_decodes_an_action_alone(triples):
    """In stage 2 the half that is not given is that of a frame and itself."""
    lam, o = small("univla_stage_2_cpu"), triples.batch(range(4))["frames"] / 255
    lam.loss({"frames": o}), lam.eval()
    o_i, o_j, _ = o.unbind(1)
    with torch.no_grad():
        x = lam.normalize(o_i)
        z, stay, both = (
            lam.encode(o_i, o_j).z,
            lam.latents(x, x).z,
            lam.latents(x, lam.normalize(o_j)).z,
        )
        alone = lam.decode(o_i, z)
        assert torch.equal(alone, lam.decode(o_i, torch.cat([z, stay[:, z.shape[1] :]], dim=1)))
    assert (
        torch.equal(both[:, : z.shape[1]], z) and both.shape[1] == stay.shape[1] == 2 * z.shape[1]
    )


@pytest.mark.parametrize("damage", ["missing", "unknown", "shape", "other", "cut"])
@pytest.mark.parametrize("stage", [1, 2])
def test_damaged_univla_checkpoint_is_one_line(tmp_path, stage, damage):
    file = tmp_path / "lam.ckpt"
    shutil.copy(FIXTURES / "univla" / f"stage_{stage}" / "lam.ckpt", file)
    row = torch.load(file, weights_only=True)
    name = "lam.dino_encoder.pos_embed" if stage == 1 else "lam.action_latent"
    value = row["state_dict"][name]
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:1000])
    else:
        extra = {"unknown": {"lam.extra": value}, "shape": {name: value[..., :3]}}.get(damage, {})
        kept = {
            n: t
            for n, t in row["state_dict"].items()
            if damage in ("unknown", "shape") or n != name
        }
        torch.save(value if damage == "other" else row | {"state_dict": kept | extra}, file)
    with pytest.raises(UserError) as error:
        LatentActionModel.from_pretrained(file)
    assert "\n" not in str(error.value) and str(file) in str(error.value)


@pytest.mark.parametrize("damage", ["architecture", "missing", "unknown", "shape", "cut"])
def test_damaged_villa_x_checkpoint_is_one_line(tmp_path, damage):
    folder = tmp_path / "v"
    shutil.copytree(FIXTURES / "villa_x", folder)
    config, file = (
        json.loads((folder / "model_config.json").read_text()),
        folder / "model.safetensors",
    )
    tensors = load_file(file)
    if damage == "architecture":
        (folder / "model_config.json").write_text(json.dumps(config | {"architecture": "Other"}))
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:1000])
    else:
        name = "decoder.layers.0.mlp.2.bias"
        value = tensors.pop(name)
        extra = {name: value, "decoder.extra": value + 1}
        tensors |= {"missing": {}, "unknown": extra, "shape": {name: value[:3]}}[damage]
        save_file(tensors, file)
    with pytest.raises(UserError) as error:
        LatentActionModel.from_pretrained(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


class Harm:
    """A pickle that would run a program."""

    def __reduce__(self):
        return os.system, ("touch harmed",)


def test_code_in_a_checkpoint_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"w": torch.ones(2), "harm": Harm()}, "bad.pt")
    with pytest.raises(UserError, match="bad.pt"):
        read_torch(Path("bad.pt"))
    Path("cut.pt").write_bytes(b"PK\x03\x04 not a file")
    with pytest.raises(UserError, match="cut.pt"):
        read_torch(Path("cut.pt"))
    assert not Path("harmed").exists()


def test_lapa_noise_is_as_long_as_the_rounding_error():
    vq, x = NSVQ(4, 3), torch.randn(64, 3)
    noisy, indices = vq(x)
    assert torch.allclose(
        (noisy - x).norm(dim=1), (vq.codebooks[indices] - x).norm(dim=1), atol=1e-5
    )


def test_lapa_replaces_dead_codes_on_schedule():
    vq = NSVQ(4, 2, dead_below=0.1)
    vq.load_state_dict(
        vq.state_dict() | {"steps": torch.tensor(10), "used": torch.tensor([8.0, 0.0, 0.0, 8.0])}
    )
    vq.pending.append(
        (torch.tensor([0, 3]), 8)
    )  # a step of 8 pairs: codes used less than 0.8 times are dead
    alive = vq.codebooks[[0, 3]].clone()
    vq.commit_step()
    assert torch.allclose(vq.codebooks[[1, 2]], alive) and vq.used.sum() == 0
    vq.pending.append((torch.tensor([0, 0, 3]), 8))
    vq.commit_step()  # step 11: nothing is due
    assert vq.used.tolist() == [2, 0, 0, 1] and vq.steps == 12
