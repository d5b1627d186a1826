"""The latent action model as a package: every exported check, every option of the bottleneck and
objective, bad input.
"""

import json
from dataclasses import replace

import pytest
import torch

from aclam.core import UserError
from aclam.data.sampling import TripleConfig
from aclam.data.trajectory import synthetic_trajectory
from aclam.data.triples import TripleDataset
from aclam.lam import PRESETS, LamConfig, LatentActionModel
from aclam.lam import objective as objective_module
from aclam.lam.blocks import check_blind_to_order, patchify, unpatchify
from aclam.lam.fdm import check_sum_of_tokens, masked_mse
from aclam.lam.idm import residuals
from aclam.lam.model import check_saved, losses_on, parameter_counts, preset, step_lowers_loss
from aclam.lam.objective import (
    ObjectiveConfig,
    ac_idm_loss,
    check_objective,
    check_stop_gradient,
    pair_frames,
)
from aclam.lam.quantizer import (
    Bottleneck,
    BottleneckConfig,
    Normalize,
    check_codes,
    rounding_floor,
    usage,
)


def small(**changes) -> LamConfig:
    """A model of the CPU preset's kind that is made in milliseconds."""
    now = replace(PRESETS["ac_lam_cpu"].bottleneck, continuous_steps=0)
    sizes = dict(image_size=16, patch_size=8, idm_width=32, idm_depth=1, fdm_width=32, fdm_depth=1)
    sizes |= dict(tokens=8, code_dim=4, bottleneck=now)
    return replace(PRESETS["ac_lam_cpu"], **{**sizes, **changes})


def build(config: LamConfig, seed: int = 0) -> LatentActionModel:
    torch.manual_seed(seed)
    return LatentActionModel(config)


@pytest.fixture(scope="module")
def triples():
    films = [synthetic_trajectory(seed, T=16, size=16) for seed in range(4)]
    return TripleDataset(films, TripleConfig(), image_size=16)


def test_exported_checks(tmp_path):
    check_blind_to_order()
    check_sum_of_tokens()
    check_stop_gradient()
    check_saved(build(small()), tmp_path / "m", *torch.rand(2, 3, 3, 16, 16))


def test_patches_are_rows_of_squares():
    o = torch.arange(16.0).view(1, 1, 4, 4)
    assert patchify(o, 2)[0].tolist() == [
        [0, 1, 4, 5],
        [2, 3, 6, 7],
        [8, 9, 12, 13],
        [10, 11, 14, 15],
    ]
    assert torch.equal(unpatchify(patchify(o, 2), 2, 4), o)


def test_pairs_of_a_triple():
    start, end = pair_frames(torch.tensor([[1, 2, 3], [4, 5, 6]]))
    assert start.tolist() == [1, 4, 2, 5, 1, 4] and end.tolist() == [2, 5, 3, 6, 3, 6]


def test_additive_latents_have_no_residual():
    o = torch.rand(3, 8, 3, 4, 4)
    additive = residuals(lambda a, b: (b - a).flatten(1), *o)
    constant = residuals(lambda a, b: torch.ones(len(a), 5), *o)
    assert max(additive.values()) < 1e-6
    assert constant == pytest.approx({"identity": 1, "inverse": 2, "composition": 1})


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("update", ["ema", "gradient"])
@pytest.mark.parametrize("init", ["data", "uniform"])
@pytest.mark.parametrize("normalize", ["none", "center", "global", "each"])
def test_every_bottleneck_setting_steps(triples, shared, update, init, normalize):
    config = BottleneckConfig(codes=8, shared=shared, update=update, init=init, normalize=normalize)
    lam = build(small(bottleneck=config))
    before, after = step_lowers_loss(lam, triples.batch(range(16)), lr=1e-3, steps=8)
    assert after < before
    check_codes(lam.bottleneck, torch.randn(6, 8, 4))


def test_data_start_and_restarts_keep_codes_alive():
    config = BottleneckConfig(codes=16, normalize="none", decay=0.5)
    vq, far = Bottleneck(1, 2, config), torch.tensor([100.0, 0.0])
    vq(torch.randn(256, 1, 2))
    for _ in range(30):  # the data move away: codes that stay behind are restarted
        out = vq(torch.randn(256, 1, 2) + far)
    assert usage(out.indices)[0] == 16
    assert (vq.book.codes[0, :, 0] > 90).all()


def test_a_code_is_the_mean_of_its_samples():
    vq = Bottleneck(1, 1, BottleneckConfig(codes=2, normalize="none", decay=0.0, restart_below=0))
    x = torch.tensor([-3.0, -1.0, 1.0, 5.0]).view(4, 1, 1)
    vq.book.codes.copy_(torch.tensor([[[-1.0], [1.0]]]))
    vq.book.ready.fill_(True)
    vq.book.started = True
    vq(x)
    assert vq.book.codes.flatten().tolist() == [-2.0, 3.0]


def test_continuous_phase_then_codes():
    vq = Bottleneck(2, 3, BottleneckConfig(codes=4, continuous_steps=3, noise=0.1))
    x = torch.randn(32, 2, 3)
    kinds = [vq(x).indices is None for _ in range(5)]
    assert kinds == [True, True, True, False, False]
    assert Bottleneck(2, 3, BottleneckConfig(codes=4, continuous_steps=3)).eval()(x).indices is None


def test_noise_is_for_training_only():
    vq, x = Bottleneck(2, 3, BottleneckConfig(kind="none", noise=1.0)), torch.randn(64, 2, 3)
    out = vq(x)
    assert 0.5 < (out.z - out.pre_vq).std() < 1.5
    out = vq.eval()(x)
    assert torch.equal(out.z, out.pre_vq) and out.loss == 0


def test_normalize_has_unit_power_and_keeps_directions():
    x = 3 + torch.randn(4096, 2, 3) * torch.tensor([1.0, 2.0, 0.0])
    y = Normalize(2, 3, "global", 0.1)(x)
    assert y.mean(0).abs().max() < 1e-4 and abs(y.square().mean().item() - 1) < 1e-3
    assert y[..., 2].abs().max() < 1e-3  # what carries nothing stays nothing


def test_rounding_floor_of_one_dimension():
    # 32 codes on a line: the error of each of three latents is about 1 / 32^2 of its range, so the
    # floor is small
    assert rounding_floor(1, 32) < 0.02 < rounding_floor(4, 32)


@pytest.mark.parametrize("form", ["fdm", "idm"])
@pytest.mark.parametrize("place", ["post_vq", "pre_vq"])
@pytest.mark.parametrize("stop", ["none", "ik", "sum"])
def test_every_objective_steps(triples, form, place, stop):
    if form == "fdm" and stop != "none":
        with pytest.raises(UserError, match="ac_stop"):
            ObjectiveConfig(ac_form=form, ac_stop=stop)
        return
    lam = build(small(objective=ObjectiveConfig(ac_form=form, ac_place=place, ac_stop=stop)))
    before, after = step_lowers_loss(lam, triples.batch(range(16)), lr=1e-3, steps=8)
    assert after < before
    assert "ac" in lam.loss(triples.batch(range(4)))[1]


def test_the_objective_is_eq_6(triples):
    """The loss that is reported equals one computed from single pairs, without stacking."""
    lam = build(small(objective=ObjectiveConfig(lambda_ac=0.7, lambda_reg=0.5)))
    batch = triples.batch(range(12))
    lam.train().loss(batch)  # puts the codebook on data
    terms = check_objective(lam.eval(), batch)
    assert min(terms.values()) > 0 and terms["rec"] != terms["ac"]


def test_pairs_that_are_mixed_up_are_noticed(monkeypatch):
    lam = LatentActionModel.from_pretrained("ac_lam_cpu").eval()  # trained: it reads its latents
    batch = {"frames": torch.rand(4, 3, 3, 32, 32), "has_proprio": torch.zeros(4, dtype=torch.bool)}
    batch |= {"proprio": torch.zeros(4, 3, 8), "embodiment": torch.zeros(4, dtype=torch.long)}
    check_objective(lam, batch)

    def mixed(frames):
        i, j, k = frames.unbind(1)
        return torch.cat([i, i, j]), torch.cat([j, k, k])  # the order of ik and jk exchanged

    monkeypatch.setattr(objective_module, "pair_frames", mixed)
    with pytest.raises(AssertionError):
        check_objective(lam, batch)


def test_without_ac_nothing_but_lambda_differs(triples):
    twin, ac = (build(small(objective=ObjectiveConfig(lambda_ac=w))) for w in (0.0, 1.0))
    assert all(
        torch.equal(a, b)
        for a, b in zip(twin.state_dict().values(), ac.state_dict().values(), strict=True)
    )
    batch = triples.batch(range(8))
    rows = []
    for model in (twin, ac):
        torch.manual_seed(0)  # the same samples start the codebook
        rows.append({name: float(value) for name, value in model.loss(batch)[1].items()})
    without, with_ac = rows
    assert "ac" not in without
    assert with_ac["loss"] == pytest.approx(without["loss"] + with_ac["ac"], rel=1e-5)


def test_action_head_learns_forward_pairs_only(triples):
    config = small(
        objective=ObjectiveConfig(lambda_proprio=1, lambda_action=1), proprio_dim=7, action_dim=3
    )
    lam, batch = build(config), triples.batch(range(8))
    batch |= {"proprio": torch.zeros(8, 3, 7), "has_proprio": torch.ones(8, dtype=torch.bool)}
    batch |= {"action": torch.ones(8, 3, 3), "has_action": torch.ones(8, dtype=torch.bool)}
    backward = batch | {"times": torch.tensor([[3.0, 2.0, 1.0]]).expand(8, 3)}
    assert lam.loss(backward)[1]["action"] == 0
    assert (
        lam.loss(backward | {"times": torch.tensor([[1.0, 2.0, 3.0]]).expand(8, 3)})[1]["action"]
        > 0
    )


def test_human_video_costs_no_proprio():
    predicted, target = torch.randn(2, 4, 5)
    assert masked_mse(predicted, target, torch.zeros(4, dtype=torch.bool)) == 0
    only = torch.tensor([False, True, False, False])
    assert torch.allclose(
        masked_mse(predicted, target, only), (predicted - target)[1].square().mean()
    )


def test_stop_gradient_variants_differ_in_gradient_not_value():
    ij, jk, ik = torch.randn(3, 4, 5)
    values = {stop: ac_idm_loss(ij, jk, ik, stop).item() for stop in ("none", "ik", "sum")}
    assert len(set(values.values())) == 1


def test_bytes_and_floats_are_the_same_frames(triples):
    lam, frames = build(small()).eval(), triples.batch(range(4))["frames"]
    assert frames.dtype == torch.uint8
    a, b = (
        lam.encode(frames[:, 0], frames[:, 1]),
        lam.encode(frames[:, 0] / 255, frames[:, 1] / 255),
    )
    assert torch.allclose(a.z, b.z, atol=1e-5)


def test_paper_preset_has_the_papers_sizes():
    c = preset("ac_lam_paper")
    assert (c.image_size, c.patch_size, c.idm_depth, c.idm_width, c.idm_heads) == (
        224,
        14,
        12,
        768,
        32,
    )
    assert (c.fdm_depth, c.fdm_width, c.fdm_heads) == (12, 768, 12)
    with torch.device("meta"):
        counts = parameter_counts(LatentActionModel(replace(c, proprio_dim=7)))
    assert (
        85e6 < counts["idm"] < 87e6
        and 85e6 < counts["fdm"] < 87e6
        and counts["bottleneck"] == 32 * 128
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)  # 160 s on two quiet cores
def test_paper_preset_takes_a_step():
    batch = TripleDataset(
        [synthetic_trajectory(0, T=12, size=224)], TripleConfig(), image_size=224
    ).batch([0, 1])
    paper = replace(preset("ac_lam_paper"), proprio_dim=7)
    before, after = step_lowers_loss(build(paper), batch)
    assert after < before
    at_once = replace(paper, bottleneck=replace(paper.bottleneck, continuous_steps=0))
    first, second = losses_on(
        build(at_once), batch
    )  # codes drawn from this batch: commitment can only rise
    assert (
        all(second[part] < first[part] for part in ("rec", "ac", "proprio"))
        and first["reg"] < second["reg"]
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: preset("ac_lam_paer"), 'Did you mean "ac_lam_paper"'),
        (lambda: preset("ac_lam_cpu", idm_dept=3), 'Did you mean "idm_depth"'),
        (lambda: LamConfig(patch_size=15), "not a multiple"),
        (lambda: LamConfig(idm_heads=7), "idm_heads"),
        (lambda: BottleneckConfig(codes=1), "at least 2"),
        (lambda: BottleneckConfig(decay=1.0), "decay"),
        (lambda: ObjectiveConfig(lambda_ac=-1.0), "lambda_ac"),
        (lambda: build(small()).encode(*torch.rand(2, 1, 3, 20, 20)), "expected by this model"),
        (lambda: LatentActionModel.from_pretrained("no/such/folder"), "no latent action model at"),
    ],
)
def test_bad_settings_are_one_line(make, words):
    with pytest.raises(UserError, match=words) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["config", "field", "tensors", "cut", "shape"])
def test_damaged_model_folder_is_one_line(tmp_path, damage):
    lam, folder = build(small()), tmp_path / "m"
    lam.save_pretrained(folder)
    config, file = json.loads((folder / "config.json").read_text()), folder / "model.safetensors"
    if damage == "config":
        (folder / "config.json").write_text("{")
    elif damage == "field":
        (folder / "config.json").write_text(json.dumps(config | {"idm_dept": 2}))
    elif damage == "tensors":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:100])
    else:
        (folder / "config.json").write_text(json.dumps(config | {"code_dim": 5}))
    with pytest.raises(UserError) as error:
        LatentActionModel.from_pretrained(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)
