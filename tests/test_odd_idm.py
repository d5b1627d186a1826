"""The odd inverse model in every family: odd before the bottleneck, the same in every way of
training, costed, refused where it makes no sense.
"""

from dataclasses import replace

import pytest
import torch

from aclam.core import UserError
from aclam.data.sampling import TripleConfig
from aclam.data.trajectory import synthetic_trajectory
from aclam.data.triples import TripleDataset
from aclam.lam.bottlenecks import KINDS
from aclam.lam.objective import pair_frames
from aclam.lam.registry import PRESETS, LatentActionModel, preset
from aclam.train.lam import settings_from
from aclam.train.memory import check_kept
from aclam.train.step import ThreePasses, add_gradients_exactly, places_of
from aclam.train.step_cost import check_flops, row_cost

IDM = dict(image_size=16, idm_width=16, idm_depth=1, fdm_width=16, fdm_depth=1)
UNIVLA = dict(image_size=16, vision_width=16, vision_depth=1, width=16, idm_depth=1, fdm_depth=1)
SIZES = {
    "ac_lam_cpu": IDM,
    "villa_x_cpu": IDM,
    "lapa_cpu": {},
    "univla_cpu": UNIVLA,
    "univla_stage_1_cpu": UNIVLA,
    "univla_stage_2_cpu": UNIVLA,
    "no_ac_features_cpu": IDM,
}
OPEN = [name for name in SIZES if name != "lapa_cpu"]  # whose bottleneck is a setting


def small(name: str, **changes) -> LatentActionModel:
    torch.manual_seed(0)
    return LatentActionModel.from_preset(name, odd=True, **SIZES[name] | changes)


def batch_for(lam: LatentActionModel, rows: int = 6) -> dict:
    size = lam.config.image_size
    films = [synthetic_trajectory(seed, T=16, size=size) for seed in range(3)]
    return TripleDataset(films, TripleConfig(), image_size=size).batch(range(rows))


def words_for(lam: LatentActionModel, rows: int) -> tuple:
    """Instructions, where the family reads them."""
    if not getattr(lam.config, "text_dim", 0):
        return ()
    torch.manual_seed(1)
    return ((torch.randn(rows, 4, lam.config.text_dim), torch.ones(rows, 4, dtype=torch.bool)),)


@pytest.mark.parametrize("name", SIZES)
def test_tokens_are_odd_and_triples_are_pairs(name):
    lam = small(name).eval()
    x = lam.normalize(batch_for(lam)["frames"])
    i, j = pair_frames(x)
    words = words_for(lam, len(x))
    thrice = tuple((w.repeat(3, 1, 1), known.repeat(3, 1)) for w, known in words)
    with torch.no_grad():
        there = lam.pair_tokens(i, j, *thrice)
        back = lam.pair_tokens(j, i, *thrice)
        triples = lam.triple_tokens(x, *words)
        once = LatentActionModel(replace(lam.config, odd=False))
        once.load_state_dict(lam.state_dict())
        plain = [once.eval().pair_tokens(a, b, *thrice) for a, b in ((i, j), (j, i))]
    assert there.abs().max() > 0 and torch.allclose(there, -back, atol=1e-6)
    assert torch.allclose(triples, there, atol=1e-6)
    assert torch.allclose(there, (plain[0] - plain[1]) / 2, atol=1e-6)
    with torch.no_grad():
        assert lam.pair_tokens(i, i, *thrice).abs().max() < 1e-6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OPEN)
def test_every_bottleneck_trains(name, kind):
    bottleneck = replace(PRESETS[name].bottleneck, kind=kind, codes=8, continuous_steps=0)
    lam = small(name, bottleneck=bottleneck).train()
    batch = batch_for(lam)
    loss, _ = lam.loss(batch)
    loss.backward()
    assert torch.isfinite(loss) and any(p.grad is not None for p in lam.idm.parameters())


@torch.no_grad()
def give_spread(lam: LatentActionModel, o_i: torch.Tensor, o_j: torch.Tensor) -> None:
    """Scale the last map of an untrained encoder: the tokens of these pairs have a spread of 1."""
    spread = lam.pair_tokens(lam.normalize(o_i), lam.normalize(o_j)).std()
    last = lam.codes.narrow if lam.family == "univla" else lam.idm
    last = getattr(last, "pool", last)
    getattr(last, "read", last).weight /= spread


@pytest.mark.parametrize("kind", ["fsq", "none"])
@pytest.mark.parametrize("name", OPEN)
def test_a_bottleneck_that_keeps_signs_keeps_oddness_exactly(name, kind):
    bottleneck = PRESETS[name].bottleneck
    keeps = replace(bottleneck, kind=kind, normalize="scale", continuous_steps=0, noise=0.0)
    lam = small(name, bottleneck=keeps).eval()
    size = lam.config.image_size
    o_i, o_j = torch.rand(2, 5, 3, size, size)
    give_spread(lam, o_i, o_j)
    there, back = lam.encode(o_i, o_j), lam.encode(o_j, o_i)
    assert lam.is_odd and there.z.norm() > 1 and torch.equal(there.z, -back.z)
    assert not lam.encode(o_i, o_i).z.any()


@pytest.mark.parametrize("kind", ["vq", "rvq"])
@pytest.mark.parametrize("name", OPEN)
def test_a_codebook_closed_under_sign_keeps_oddness_exactly(name, kind):
    usual = replace(PRESETS[name].bottleneck, kind=kind, codes=7, continuous_steps=0, noise=0.0)
    lam = small(name, bottleneck=replace(usual, normalize="scale", signed=True)).train()
    size = lam.config.image_size
    o_i, o_j = torch.rand(2, 5, 3, size, size)
    give_spread(lam, o_i, o_j)
    with torch.no_grad():
        for _ in range(3):
            lam.latents(lam.normalize(o_i), lam.normalize(o_j))
    there, back = lam.encode(o_i, o_j), lam.encode(o_j, o_i)
    assert lam.is_odd and there.indices is not None and there.z.norm() > 0
    assert torch.equal(there.z, -back.z) and not lam.encode(o_i, o_i).z.any()
    own = there.indices[:, : lam.config.tokens]
    assert torch.equal(own % 7, 6 - back.indices[:, : lam.config.tokens] % 7)


@pytest.mark.parametrize("name", SIZES)
def test_saved_models_are_odd_when_they_come_back(name, tmp_path):
    lam = small(name).eval()
    lam.save_pretrained(tmp_path / "model")
    again = LatentActionModel.from_pretrained(tmp_path / "model")
    size = lam.config.image_size
    o_i, o_j = torch.rand(2, 3, 3, size, size)
    assert again.config.odd and torch.equal(lam.encode(o_i, o_j).z, again.encode(o_i, o_j).z)


@pytest.mark.parametrize("name", SIZES)
def test_bfloat16_is_subtracted_in_float32(name):
    lam = small(name).train()
    batch = batch_for(lam)
    with torch.autocast("cpu", torch.bfloat16):
        tokens = lam.triple_tokens(lam.normalize(batch["frames"]))
        loss, _ = lam.loss(batch)
    loss.backward()
    assert tokens.dtype == torch.float32 and torch.isfinite(loss)


@pytest.mark.parametrize("name", SIZES)
def test_parts_of_a_batch_have_the_gradient_of_the_whole(name):
    whole = small(name).train()
    parts = small(name).train()
    for lam in (whole, parts):
        for part in lam.modules():
            part.training = part.training and not hasattr(part, "codebooks")  # no noise by row
    batch = batch_for(whole, 8)
    torch.manual_seed(0)
    divided = [{k: v[n : n + 4] for k, v in batch.items()} for n in (0, 4)]
    for lam, batches in ((whole, [batch]), (parts, divided)):
        rows = len(batches[0]["frames"])
        places = places_of(batches, lam, 0, 1, rows, torch.device("cpu"))
        add_gradients_exactly(ThreePasses(lam), batches, places, 0, 0)
    for (key, p), (_, q) in zip(whole.named_parameters(), parts.named_parameters(), strict=True):
        if p.grad is not None:
            assert torch.allclose(p.grad, q.grad, atol=1e-5), key


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_no_graph_breaks(name):
    lam = small(name).train()
    x = lam.normalize(batch_for(lam)["frames"])
    found = torch._dynamo.explain(lam.triple_tokens)(x)
    assert found.graph_break_count == 0, found.break_reasons
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if "stage" in n else n for n in SIZES],
)
def test_work_and_memory_by_formula(name):
    config = preset(name, odd=True)
    check_flops(config, tol=0.02)
    check_kept(config, bf16=True, tol=0.15)
    plain = row_cost(PRESETS[name])
    odd = row_cost(config)
    assert odd.encoder.total.forward == pytest.approx(2 * plain.encoder.total.forward)
    assert odd.decoder == plain.decoder


@pytest.mark.parametrize("name", ["odd_cpu", "villa_x_cpu"])
def test_checkpointed_work(name):
    check_flops(preset(name, odd=True), tol=0.02, checkpointed=True)


def test_presets_differ_in_one_setting():
    for odd, plain in (("odd_cpu", "no_ac_cpu"), ("odd_ac_cpu", "ac_lam_cpu")):
        assert replace(PRESETS[odd], odd=False) == PRESETS[plain]
    assert replace(PRESETS["odd_paper"], odd=False) == PRESETS["no_ac_paper"]
    assert not any(PRESETS[name].odd for name in PRESETS if not name.startswith("odd"))


def test_refused_where_it_makes_no_sense():
    for name in ("potential_lam_cpu", "potential_vq_cpu", "potential_frame_vq_cpu"):
        with pytest.raises(UserError, match="odd.*is odd already"):
            preset(name, odd=True)
        with pytest.raises(UserError, match="odd: .*is odd already"):
            replace(PRESETS[name], odd=True)
        with pytest.raises(UserError, match="odd: .*is odd already"):
            settings_from(["--preset", name, "--data", "x", "--model.odd"])
    assert settings_from(["--preset", "lapa_cpu", "--data", "x", "--model.odd"]).model.odd


def test_a_family_without_the_form_refuses_it():
    class Plain(LatentActionModel):
        family = "plain"

    with pytest.raises(UserError, match="odd: the family plain has no odd form"):
        Plain(PRESETS["odd_cpu"])


def test_villa_x_reads_a_film_both_ways():
    lam = small("villa_x_cpu").eval()
    film = torch.rand(5, 3, 16, 16)
    steps = lam.encode_clip(film[:2]).pre_vq
    with torch.no_grad():
        pair = lam.encode(film[:1], film[1:2]).pre_vq
    assert torch.allclose(steps, pair, atol=1e-5)
    none = replace(lam.config.bottleneck, kind="none", normalize="none")
    lam = small("villa_x_cpu", bottleneck=none).eval()
    there = lam.encode_clip(film).z
    back = lam.encode_clip(film.flip(0)).z.flip(0)
    assert len(there) == 4 and torch.allclose(there, -back, atol=1e-6)
