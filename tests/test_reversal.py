"""ALAM's losses on every family: composition and reversal on latents before they are rounded, in every
way of training, costed, refused where the form holds them already.
"""

from dataclasses import replace

import pytest
import torch
from test_odd_idm import SIZES, batch_for

from aclam.core import UserError
from aclam.lam.objective import ac_idm_loss, pair_frames, reversal_loss
from aclam.lam.registry import PRESETS, LatentActionModel, preset
from aclam.train.lam import settings_from
from aclam.train.memory import check_kept
from aclam.train.step import ThreePasses, add_gradients_exactly, places_of
from aclam.train.step_cost import check_flops, row_cost

ALAM = PRESETS["alam_cpu"].objective


def with_alam(name: str, **changes):
    """The settings of a preset with ALAM's losses beside its own weights."""
    config = preset(name, **changes)
    own = config.objective
    losses = replace(ALAM, lambda_proprio=own.lambda_proprio, lambda_reg=own.lambda_reg)
    return replace(config, objective=losses)


def small(name: str) -> LatentActionModel:
    torch.manual_seed(0)
    return LatentActionModel(with_alam(name, **SIZES[name]))


@pytest.mark.parametrize("name", SIZES)
def test_both_losses_are_those_of_pairs(name):
    lam = small(name).eval()
    batch = batch_for(lam)
    _, row = lam.loss(batch)
    i, j = pair_frames(lam.normalize(batch["frames"]))
    with torch.no_grad():
        there = lam.latents(i, j).pre_vq.flatten(1)
        back = lam.latents(j, i).pre_vq.flatten(1)
    assert row["reverse"].item() == pytest.approx(reversal_loss(there, back).item(), rel=1e-4)
    assert row["ac"].item() == pytest.approx(ac_idm_loss(*there.chunk(3)).item(), rel=1e-4)
    assert row["reverse"] > 0 and row["ac"] > 0


@pytest.mark.parametrize("name", SIZES)
def test_reversal_trains_the_encoder_alone(name):
    lam = small(name).train()
    alone = replace(lam.config.objective, lambda_ac=0.0)
    batch = batch_for(lam)
    gradients = []
    for weight in (0.5, 1.0):
        lam.config = replace(lam.config, objective=replace(alone, lambda_reverse=weight))
        torch.manual_seed(0)
        lam.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss, row = lam.loss(batch)
        loss.backward()
        found = {key: p.grad.clone() for key, p in lam.named_parameters() if p.grad is not None}
        gradients.append(found)
        assert torch.isfinite(loss) and "ac" not in row
    moved = {key.split(".")[0] for key in found if not gradients[0][key].equal(gradients[1][key])}
    assert moved and not moved & {"fdm", "bottleneck"}


@pytest.mark.parametrize("name", ["ac_lam_cpu", "villa_x_cpu", "univla_stage_1_cpu"])
def test_parts_of_a_batch_have_the_gradient_of_the_whole(name):
    models = [small(name).train(), small(name).train()]
    batch = batch_for(models[0], 8)
    divided = [{k: v[n : n + 4] for k, v in batch.items()} for n in (0, 4)]
    for lam, batches in zip(models, ([batch], divided), strict=True):
        torch.manual_seed(0)
        rows = len(batches[0]["frames"])
        places = places_of(batches, lam, 0, 1, rows, torch.device("cpu"))
        add_gradients_exactly(ThreePasses(lam), batches, places, 0, 0)
    whole, parts = models
    for (key, p), (_, q) in zip(whole.named_parameters(), parts.named_parameters(), strict=True):
        if p.grad is not None:
            assert torch.allclose(p.grad, q.grad, atol=1e-5), key


@pytest.mark.parametrize("name", [n for n in SIZES if "stage" not in n])
def test_work_and_memory_by_formula(name):
    config = with_alam(name)
    check_flops(config, tol=0.02)
    check_kept(config, bf16=True, tol=0.15)
    plain = row_cost(PRESETS[name]).encoder.total.forward
    assert row_cost(config).encoder.total.forward == pytest.approx(2 * plain)


def test_a_family_that_says_no_tokens_is_read_both_ways(monkeypatch):
    lam = small("ac_lam_cpu").eval()
    batch = batch_for(lam)
    shared = lam.loss(batch)[1]
    monkeypatch.setattr(type(lam), "has_tokens", False)
    apart = lam.loss(batch)[1]
    for name in ("rec", "ac", "reverse"):
        assert apart[name].item() == pytest.approx(shared[name].item(), rel=1e-4)


def test_only_pairs_that_are_decoded_are_counted():
    batch = batch_for(small("ac_lam_cpu"))
    lams = [small("ac_lam_cpu")]
    plain = replace(lams[0].config.objective, lambda_reverse=0.0)
    torch.manual_seed(0)
    lams.append(LatentActionModel(replace(lams[0].config, objective=plain)))
    both, once = (lam.eval().loss(batch)[1] for lam in lams)
    assert "reverse" not in once
    for name in ("rec", "ac", "latent_norm"):
        assert both[name].item() == pytest.approx(once[name].item(), rel=1e-5)


def test_refused_where_the_form_holds_it():
    for name in ("odd_cpu", "potential_lam_cpu", "potential_vq_cpu"):
        with pytest.raises(UserError, match="lambda_reverse 1.0: .* by the form"):
            preset(name, objective=ALAM)
    words = ["--preset", "alam_cpu", "--data", "x"]
    with pytest.raises(UserError, match="lambda_reverse 1.0: .* by the form"):
        settings_from([*words, "--model.odd"])
    assert settings_from(words).model.objective == ALAM
    chosen = settings_from(["--preset", "ac_lam_cpu", "--model.objective.lambda-reverse", "0.5"])
    assert chosen.model.objective.lambda_reverse == 0.5


def test_the_preset_differs_in_the_losses_alone():
    plain = PRESETS["ac_lam_cpu"]
    assert replace(PRESETS["alam_cpu"], objective=plain.objective) == plain
    assert not ALAM.ac_by_fdm and ALAM.ac_stop == "none" and ALAM.ac_place == "pre_vq"
