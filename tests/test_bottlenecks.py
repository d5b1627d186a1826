"""Every bottleneck behind the one switch: shapes, rows, gradients, phases, saving, and what each
promises.
"""

from dataclasses import replace

import pytest
import torch

from aclam.core import UserError
from aclam.data.sampling import TripleConfig
from aclam.data.trajectory import synthetic_trajectory
from aclam.data.triples import TripleDataset
from aclam.lam import PRESETS, LatentActionModel
from aclam.lam.bottlenecks import (
    KINDS,
    FiniteScalar,
    channel_bits,
    check_odd,
    codebook_size,
    make_bottleneck,
    squash,
)
from aclam.lam.model import check_saved, step_lowers_loss
from aclam.lam.quantizer import BottleneckConfig


@pytest.fixture(scope="module")
def triples():
    films = [synthetic_trajectory(seed, T=16, size=16) for seed in range(4)]
    return TripleDataset(films, TripleConfig(), image_size=16)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_shapes_rows_and_gradient(kind, shared):
    torch.manual_seed(0)
    config = BottleneckConfig(kind=kind, shared=shared, codes=8)
    b, x = make_bottleneck(3, 4, config), torch.randn(64, 3, 4, requires_grad=True)
    out, rows = b(x), codebook_size(3, config)
    assert out.z.shape == out.pre_vq.shape == (64, 3, 4)
    (out.z.square().sum() + out.loss).backward()
    assert x.grad.abs().sum() > 0
    assert (out.indices is None) == (rows is None)
    if rows is not None:
        assert (
            out.indices.shape == (64, 3 * (config.stages if kind == "rvq" else 1))
            and out.indices.max() < rows
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_every_kind_steps_and_is_saved(kind, triples, tmp_path):
    torch.manual_seed(0)
    bottleneck = BottleneckConfig(kind=kind, codes=8, shared=False)
    sizes = dict(image_size=16, idm_width=32, idm_depth=1, fdm_width=32, fdm_depth=1)
    lam = LatentActionModel.from_preset("ac_lam_cpu", **sizes, bottleneck=bottleneck)
    before, after = step_lowers_loss(lam, triples.batch(range(16)), lr=1e-3, steps=8)
    assert after < before
    check_saved(lam, tmp_path / "m", *torch.rand(2, 3, 3, 16, 16))


@pytest.mark.parametrize("kind", ["vq", "nsvq", "rvq", "fsq"])
def test_continuous_phase_then_rounding(kind):
    b = make_bottleneck(2, 3, BottleneckConfig(kind=kind, codes=4, continuous_steps=2))
    assert [b(torch.randn(32, 2, 3)).indices is None for _ in range(4)] == [
        True,
        True,
        False,
        False,
    ]
    assert b.eval()(torch.randn(4, 2, 3)).indices is not None


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_repeats_itself(kind):
    torch.manual_seed(0)
    b, x = (
        make_bottleneck(2, 3, BottleneckConfig(kind=kind, codes=4, noise=0.5)),
        torch.randn(32, 2, 3),
    )
    b(x)
    b.eval()
    assert torch.equal(b(x).z, b(x).z)


@pytest.mark.parametrize("shared", [True, False])
def test_noise_bottleneck_gives_codes_and_moves_them(shared):
    torch.manual_seed(0)
    b = make_bottleneck(
        3, 4, BottleneckConfig(kind="nsvq", codes=8, shared=shared, normalize="none")
    )
    x = torch.randn(64, 3, 4)
    out = b(x)
    (out.z - out.pre_vq).square().mean().backward()
    assert all(
        book.codebooks.grad.abs().sum() > 0 for book in b.books
    )  # through the length of the noise
    codes, out = torch.cat([book.codebooks for book in b.books]), b.eval()(x)
    assert torch.equal(out.z, codes[out.indices])
    nearest = torch.cdist(x, codes[:8]).argmin(-1)
    assert torch.equal(
        out.indices if shared else out.indices[:, :1], nearest if shared else nearest[:, :1]
    )


def test_residual_stages_never_do_worse():
    torch.manual_seed(0)
    x, b = (
        torch.randn(512, 1, 4),
        make_bottleneck(1, 4, BottleneckConfig(kind="rvq", stages=3, codes=16, decay=0.5)),
    )
    for _ in range(10):
        b(x)
    out = b.eval()(x)
    rest = out.pre_vq
    sizes = []
    for book in [b.book, *b.more]:
        rest = rest - book.look_up(rest, learn=False)[0]
        sizes.append(rest.square().mean().item())
    assert sizes[0] > sizes[1] > sizes[2]
    assert torch.allclose(out.z, out.pre_vq - rest, atol=1e-5)


def test_lattice_is_odd_and_reaches_its_ends():
    assert squash(torch.tensor([[9.0, -9.0]]), torch.tensor([7.0, 5.0])).round().tolist() == [
        [3.0, -2.0]
    ]
    b = make_bottleneck(2, 4, BottleneckConfig(kind="fsq", normalize="scale"))
    assert isinstance(b, FiniteScalar)
    check_odd(b, torch.randn(16, 2, 4))


def test_variational_is_its_mean_in_evaluation():
    b, x = (
        make_bottleneck(2, 3, BottleneckConfig(kind="vae", normalize="none")),
        torch.randn(256, 2, 3),
    )
    assert (b(x).z - x).std() > 0.05
    assert torch.equal(b.eval()(x).z, x) and b(x).loss > 0


def test_bits():
    vq = BottleneckConfig(codes=32)
    assert channel_bits(vq, 8, 4) == 40
    assert channel_bits(replace(vq, kind="rvq", stages=2), 8, 4) == 80
    assert channel_bits(replace(vq, kind="none", noise=1.0), 8, 4) == 16
    assert channel_bits(replace(vq, kind="none"), 8, 4) == float("inf")


def test_settings_of_older_models_still_build():
    """A config.json from before the other kinds has none of their fields."""
    from aclam.core import from_dict

    row = {
        "kind": "vq",
        "codes": 32,
        "shared": False,
        "beta": 0.25,
        "update": "ema",
        "decay": 0.99,
        "init": "data",
    }
    assert codebook_size(8, from_dict(BottleneckConfig, row)) == 256
    assert PRESETS["ac_lam_cpu"].bottleneck.kind == "vq"


BAD = [dict(levels=(8, 5)), dict(levels=()), dict(levels=(1,)), dict(stages=0), dict(kl=-1.0)]


@pytest.mark.parametrize("changes", BAD)
def test_bad_settings_are_one_line(changes):
    with pytest.raises(UserError) as error:
        BottleneckConfig(**changes)
    assert "\n" not in str(error.value)
