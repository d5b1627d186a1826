"""Every bottleneck on every family of latent action models: it is of the kind that was asked for,
or it is refused in one line.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from aclam import lam as room
from aclam.core import UserError
from aclam.data.sampling import TripleConfig
from aclam.data.trajectory import synthetic_trajectory
from aclam.data.triples import TripleDataset
from aclam.lam import PRESETS, LatentActionModel
from aclam.lam.bottlenecks import KINDS, gaussian_kl
from aclam.lam.registry import LAMS, preset
from aclam.train.lam import settings_from

QUANTIZED = ("vq", "nsvq", "rvq", "fsq")
IDM = dict(image_size=16, idm_width=16, idm_depth=1, fdm_width=16, fdm_depth=1)
UNIVLA = dict(image_size=16, vision_width=16, vision_depth=1, width=16, idm_depth=1, fdm_depth=1)
SIZES = {
    "ac_lam_cpu": IDM,
    "potential_lam_cpu": IDM,
    "potential_frame_vq_cpu": IDM,
    "villa_x_cpu": IDM,
    "univla_cpu": UNIVLA,
    "univla_stage_2_cpu": UNIVLA,
    "no_ac_features_cpu": IDM,
    "potential_features_cpu": IDM,
}


@pytest.fixture(scope="module")
def batch():
    films = [synthetic_trajectory(seed, T=16, size=16) for seed in range(4)]
    return TripleDataset(films, TripleConfig(), image_size=16).batch(range(16))


def bottleneck_of(lam: LatentActionModel) -> torch.nn.Module:
    return lam.codes.bottleneck if lam.family == "univla" else lam.bottleneck


def trained(name: str, kind: str, batch: dict) -> tuple[LatentActionModel, dict]:
    """A small model with this bottleneck after two steps, and the terms of the second."""
    config = replace(PRESETS[name].bottleneck, kind=kind, codes=8, continuous_steps=0)
    torch.manual_seed(0)
    lam = LatentActionModel.from_preset(name, bottleneck=config, **SIZES[name]).train()
    adam = torch.optim.AdamW([p for p in lam.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(2):
        loss, row = lam.loss(batch)
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert torch.isfinite(loss) and bottleneck_of(lam).steps == 2
    return lam, row


def test_a_family_is_found_by_its_module():
    """No list names the modules: a new family is one new notebook."""
    files = {path.stem for path in Path(room.__file__).parent.glob("*.py")} - {"__init__"}
    assert {module.__name__.split(".")[-1] for module in room._modules} == files


def test_all_families_are_in_the_table():
    families = {LAMS.family_of(PRESETS[name]).family for name in [*SIZES, "lapa_cpu"]}
    assert families == set(LAMS.families)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SIZES)
def test_a_bottleneck_is_of_the_kind_that_was_asked_for(name, kind, batch):
    lam, row = trained(name, kind, batch)
    bottleneck = bottleneck_of(lam)
    assert type(bottleneck) is KINDS[kind] and lam.config.bottleneck.kind == kind
    torch.manual_seed(1)
    tokens = torch.randn(256, lam.config.tokens, lam.config.code_dim)
    with torch.no_grad():
        in_training = bottleneck.train()(tokens)
        out = bottleneck.eval()(tokens)
    if kind in QUANTIZED:
        assert row["codes_used"] > 1 and lam.config.codebook_size
        z_is_a_function_of_the_codes(out, stages=2 if kind == "rvq" else 1)
        return
    assert out.indices is None and lam.config.codebook_size is None and "codes_used" not in row
    assert torch.equal(out.z, out.pre_vq)
    if kind == "vae":
        kl = gaussian_kl(out.pre_vq, bottleneck.log_var(out.pre_vq)).mean().item()
        assert out.loss.item() == pytest.approx(bottleneck.config.kl * kl, rel=1e-5)
        assert row["reg"] > 0 and not torch.equal(in_training.z, in_training.pre_vq)
    else:
        assert out.loss == 0 and (row["reg"] == 0 or name == "univla_stage_2_cpu")


def z_is_a_function_of_the_codes(out, stages: int) -> None:
    """Tokens with the same codes have the same z, and are rounded: several share one."""
    B, N, c = out.z.shape
    codes = out.indices.view(B, stages, N).transpose(1, 2).flatten(0, 1)  # (B * N, stages)
    z = out.z.flatten(0, 1)
    names, which = codes.unique(dim=0, return_inverse=True)
    assert 1 < len(names) < len(codes)
    first = torch.stack([z[which == n][0] for n in range(len(names))])
    assert torch.allclose(first[which], z, atol=1e-5)
    assert not torch.allclose(out.z, out.pre_vq, atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["ac_lam_cpu", "villa_x_cpu", "univla_cpu", "potential_lam_cpu"])
def test_the_command_line_sets_the_kind(name, kind):
    config = settings_from(["--preset", name, "--data", "x", "--model.bottleneck.kind", kind])
    assert config.model.bottleneck.kind == kind


@pytest.mark.parametrize("kind", KINDS)
def test_lapas_own_bottleneck_is_not_open(kind):
    config = replace(PRESETS["ac_lam_cpu"].bottleneck, kind=kind)
    with pytest.raises(UserError, match='"lapa_cpu" has no setting "bottleneck".*NSVQ'):
        preset("lapa_cpu", bottleneck=config)
    with pytest.raises(UserError, match="--model.bottleneck.kind"):
        settings_from(["--preset", "lapa_cpu", "--data", "x", "--model.bottleneck.kind", kind])


def test_an_old_spelling_gets_a_hint():
    with pytest.raises(UserError, match='Did you mean "--model.bottleneck.normalize"'):
        settings_from(["--preset", "ac_lam_cpu", "--model.bottleneck.normalise", "none"])
    with pytest.raises(UserError, match='Did you mean "--model.vision-width"'):
        settings_from(["--preset", "univla_cpu", "--model.eye-width", "96"])
