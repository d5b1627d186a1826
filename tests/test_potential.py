"""The potential latent action model: exact in every place where it says so, the objective's short
cut, commands, errors.
"""

from dataclasses import replace

import pytest
import torch

from aclam.core import UserError
from aclam.data.sampling import TripleConfig
from aclam.data.trajectory import synthetic_trajectory
from aclam.data.triples import TripleDataset
from aclam.lam import LatentActionModel
from aclam.lam.model import check_saved, parameter_counts, step_lowers_loss
from aclam.lam.objective import ObjectiveConfig, pair_frames
from aclam.lam.potential import (
    POTENTIAL_PRESETS,
    PotentialConfig,
    PotentialLam,
    all_pairs,
    check_clip,
    check_exact,
    encode_clip,
)
from aclam.lam.quantizer import BottleneckConfig

# name: (bottleneck, place); the continuous form in evaluation, and any bottleneck on frames
EXACT = {
    "continuous": (BottleneckConfig(kind="none", normalize="scale", noise=0.5), "difference"),
    "vae": (BottleneckConfig(kind="vae", normalize="none"), "difference"),
    "vq on frames": (BottleneckConfig(codes=8), "frame"),
    "rvq on frames": (BottleneckConfig(kind="rvq", codes=8), "frame"),
    "fsq on frames": (BottleneckConfig(kind="fsq"), "frame"),
}
ROUNDED = {
    "vq": BottleneckConfig(codes=8, normalize="scale"),
    "rvq": BottleneckConfig(kind="rvq", codes=8, normalize="scale"),
    "fsq": BottleneckConfig(kind="fsq", normalize="scale"),
}


def build(**changes) -> PotentialLam:
    torch.manual_seed(0)
    sizes = dict(
        image_size=16, idm_width=32, idm_depth=1, fdm_width=32, fdm_depth=1, tokens=8, code_dim=4
    )
    return LatentActionModel.from_preset("potential_lam_cpu", **sizes, **changes)


def stepped(lam: PotentialLam, triples: TripleDataset) -> PotentialLam:
    """After some training steps, so that codebooks and averages are not those of the start."""
    step_lowers_loss(lam, triples.batch(range(16)), lr=1e-3, steps=5)
    return lam.eval()


@pytest.fixture(scope="module")
def triples():
    films = [synthetic_trajectory(seed, T=16, size=16) for seed in range(4)]
    return TripleDataset(films, TripleConfig(), image_size=16)


@pytest.fixture(scope="module")
def clip():
    film = synthetic_trajectory(seed=9, T=9, size=16)
    return torch.from_numpy(film.frames[range(9)]).permute(0, 3, 1, 2) / 255


@pytest.mark.parametrize("name", EXACT)
def test_exact_where_it_says_so(name, triples, clip):
    bottleneck, place = EXACT[name]
    lam = stepped(build(bottleneck=bottleneck, place=place), triples)
    check_exact(lam, clip)
    check_clip(lam, clip)


@pytest.mark.parametrize("kind", ROUNDED)
def test_rounded_differences_are_not_additive(kind, triples, clip):
    lam = stepped(build(bottleneck=ROUNDED[kind]), triples)
    with pytest.raises(AssertionError):
        check_exact(lam, clip)
    check_clip(lam, clip)  # but a clip's pairs are still those of `encode`


def test_a_lattice_on_differences_keeps_identity_and_inverse(triples, clip):
    lam = stepped(build(bottleneck=ROUNDED["fsq"]), triples)
    with torch.no_grad():
        assert lam.encode(clip, clip).z.abs().max() == 0
        there, back = lam.encode(clip[:-1], clip[1:]).z, lam.encode(clip[1:], clip[:-1]).z
    assert (there + back).abs().max() < 1e-5 * there.norm(dim=1).mean()


@pytest.mark.parametrize("place", ["difference", "frame"])
def test_triples_are_read_once_and_give_the_same_latents(place, triples):
    bottleneck = BottleneckConfig(codes=8, normalize="scale")
    lam = stepped(build(bottleneck=bottleneck, place=place), triples)
    frames, seen = lam.normalize(triples.batch(range(6))["frames"]), []
    handle = lam.phi.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    with torch.no_grad():
        short, long = lam.triple_latents(frames), lam.latents(*pair_frames(frames))
    handle.remove()
    assert seen == [18, 36]  # frames read: 3 a triple, and 6
    assert torch.allclose(short.z, long.z, atol=1e-5) and torch.equal(short.indices, long.indices)


def test_indices_of_frames_name_the_latent(triples, clip):
    lam = stepped(build(bottleneck=BottleneckConfig(codes=8), place="frame"), triples)
    pairs = all_pairs(lam, encode_clip(lam, clip))
    assert pairs.indices.shape == (9, 9, 2 * lam.config.tokens)
    rows = lam.bottleneck.book.codes[0]
    i, j = pairs.indices[2, 5].view(2, -1)
    assert torch.allclose(pairs.z[2, 5].view(i.shape[0], -1), rows[j] - rows[i], atol=1e-6)


def test_ac_on_top_repeats_the_reconstruction_of_ik_where_latents_are_exact(triples):
    quiet = BottleneckConfig(kind="none", normalize="scale")
    lam = build(bottleneck=quiet, objective=ObjectiveConfig(lambda_ac=1.0)).eval()
    frames = lam.normalize(triples.batch(range(8))["frames"])
    with torch.no_grad():
        row = lam.loss({"frames": triples.batch(range(8))["frames"]})[1]
        z = lam.latents(frames[:, 0], frames[:, 2]).z
        again = (lam.predict(frames[:, 0], z) - frames[:, 2]).square().mean().item()
    assert row["ac"] == pytest.approx(again, rel=1e-4)


def test_saved_and_loaded(tmp_path, clip):
    check_saved(
        build(place="frame", bottleneck=BottleneckConfig(kind="rvq")),
        tmp_path / "m",
        clip[:3],
        clip[3:6],
    )
    assert isinstance(LatentActionModel.from_pretrained(tmp_path / "m"), PotentialLam)


def test_paper_size_has_half_of_the_weights_in_phi():
    with torch.device("meta"):
        counts = parameter_counts(LatentActionModel.from_preset("potential_lam"))
    assert 85e6 < counts["phi"] < 87e6 and 85e6 < counts["fdm"] < 87e6


@pytest.mark.parametrize("name", POTENTIAL_PRESETS)
def test_presets_have_their_twin_s_sizes(name):
    twin = LatentActionModel.from_preset("ac_lam_cpu").config if name.endswith("_cpu") else None
    config = POTENTIAL_PRESETS[name]
    assert config.objective.lambda_ac == 0
    if twin:
        assert (config.latent_dim, config.fdm_width) == (twin.latent_dim, twin.fdm_width)


@pytest.mark.parametrize("how", ["centre", "global", "each"])
def test_a_mean_may_not_be_taken_off_differences(how):
    with pytest.raises(UserError, match="mean") as error:
        PotentialConfig(bottleneck=BottleneckConfig(normalize=how))
    assert "\n" not in str(error.value)
    replace(PotentialConfig(), place="frame", bottleneck=BottleneckConfig(normalize=how))


def test_commands_and_motion_transfer_take_it(tmp_path, capsys):
    """Train by the command, measure by the command and by the study, carry a motion elsewhere."""
    import json

    from aclam.commands import structure as command
    from aclam.data.store import write_store
    from aclam.structure.motion_transfer import motion_transfer
    from aclam.studies import potential_study
    from aclam.train import lam as train_lam

    write_store(
        tmp_path / "data", [synthetic_trajectory(seed, T=16, size=16) for seed in range(12)]
    )
    words = [
        "--preset",
        "potential_lam_cpu",
        "--data",
        str(tmp_path / "data"),
        "--out",
        str(tmp_path / "run"),
    ]
    words += "--model.image-size 16 --model.idm-width 32 --model.fdm-width 32 --probe-n 32 --val-fraction 0.25".split()
    train_lam.main(
        [*words, *"--train.steps 6 --train.batch-size 4 --train.probe-every 3 --json".split()]
    )
    row = json.loads(capsys.readouterr().out)
    assert (
        row["probe/additivity"] < 1e-9 and row["probe/identity"] == 0 and row["probe/exploded"] == 0
    )
    model = tmp_path / "run" / "model"
    command.main(["--model", str(model), "--data", str(tmp_path / "data"), "--n", "64", "--json"])
    assert json.loads(capsys.readouterr().out)["additivity"] < 1e-9
    words = ["--models", f"mine={model}", "--data", str(tmp_path / "data"), "--n", "256", "--json"]
    potential_study.main([*words, "--out", str(tmp_path / "rows.json")])
    rows = json.loads(capsys.readouterr().out)
    assert (
        rows["mine"]["preset"] == "potential_lam_cpu" and rows["displacement"]["motion_r2"] > 0.999
    )
    lam = LatentActionModel.from_pretrained(model)
    frames = TripleDataset([synthetic_trajectory(1, T=16, size=16)], TripleConfig(), 16).batch(
        range(3)
    )["frames"]
    seen = motion_transfer(lam, frames, frames[:, 0])
    assert abs(seen["direct"] - seen["summed"]).max() < 1e-5  # a sum of two latents is the latent


@pytest.mark.parametrize("words", [[], ["nothing"]])
def test_study_without_a_named_model_is_one_line(words, tmp_path, capsys):
    from aclam.studies import potential_study

    with pytest.raises(SystemExit) as stop:
        potential_study.main(
            ["--models", *words, "--data", str(tmp_path)] if words else ["--data", str(tmp_path)]
        )
    assert stop.value.code == 2 and "NAME=FOLDER" in capsys.readouterr().err
