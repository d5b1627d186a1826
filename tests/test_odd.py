"""A latent read both ways, over every family."""

import pytest
import torch

from aclam.lam.odd import OddReading, three_parts
from aclam.lam.registry import PRESETS, LatentActionModel

SMALL = [name for name in PRESETS if name.endswith("_cpu")]


@pytest.mark.parametrize("name", SMALL)
def test_every_family_is_read_both_ways(name):
    torch.manual_seed(0)
    lam = LatentActionModel.from_preset(name)
    size = lam.config.image_size
    o_i, o_j = torch.rand(2, 3, 3, size, size)
    before = {key: value.clone() for key, value in lam.state_dict().items()}
    odd = lam.odd()
    assert isinstance(odd, OddReading)
    there, back, same = odd.encode(o_i, o_j), odd.encode(o_j, o_i), odd.encode(o_i, o_i)
    assert there.z.shape == (3, lam.config.latent_dim) and there.indices is None
    assert torch.equal(there.z, -back.z) and not same.z.any()
    assert odd.decode(o_i, there.z).shape == lam.decode(o_i, there.z).shape
    assert torch.equal(odd.target(o_j), lam.target(o_j))
    assert all(torch.equal(value, before[key]) for key, value in lam.state_dict().items())


def test_the_three_parts_of_a_table():
    table = torch.randn(6, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert sum(three_parts(table).values()) == pytest.approx(1)
    assert three_parts(table + table.swapaxes(0, 1))["even"] == pytest.approx(1)
    phi = table[0]
    assert three_parts(phi[None] - phi[:, None])["additive"] == pytest.approx(1)
