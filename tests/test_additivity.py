"""The algebra of additive latents on any function of two observations, and rigid motions."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from aclam.additivity import algebra as al
from aclam.additivity import rigid_motion as rm
from aclam.additivity.innovation import channel_loss, innovation_numbers, pair_correlation
from aclam.core import UserError
from aclam.lam.idm import residuals
from aclam.structure import metrics

RNG = np.random.default_rng(0)
SCENE = RNG.standard_normal((6, 3))
W = RNG.standard_normal((4, 6))
FUNCTIONS = {
    "network": lambda a, b: np.tanh(W @ np.concatenate([a, b])),
    "goal": lambda a, b: b,
    "bias": lambda a, b: b - a + 1.0,
    "product": lambda a, b: a * b,
    "stretched": lambda a, b: np.linalg.norm(b - a) * (b - a),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_consequences_are_bounded_by_the_defect(name):
    Z = al.latent_table(FUNCTIONS[name], SCENE)
    assert all(v <= 1 + 1e-12 for v in al.check_consequences(Z).values())
    assert al.check_coboundary(Z) <= 1 + 1e-12


@pytest.mark.parametrize("phi", [lambda o: o, lambda o: np.sin(3 * o), lambda o: np.array([o @ o])])
def test_differences_of_any_potential_are_additive(phi):
    Z = al.latent_table(lambda a, b: phi(b) - phi(a), SCENE)
    assert al.largest(al.additivity_defect(Z)) < 1e-12
    assert (
        al.identity_error(Z) == 0
        and al.inverse_error(Z) < 1e-12
        and al.cycle_error(Z, [0, 3, 1, 5]) < 1e-12
    )
    assert np.isclose(al.additive_share(Z), 1)
    assert np.allclose(al.coboundary(al.potential(Z, 2)), Z)


def test_identity_and_inverse_do_not_imply_additivity():
    Z = al.latent_table(FUNCTIONS["stretched"], SCENE)
    assert (
        al.identity_error(Z) == 0
        and al.inverse_error(Z) < 1e-12
        and al.largest(al.additivity_defect(Z)) > 0.5
    )


def test_the_defect_of_a_leak_is_the_leak():
    Z = al.coboundary(RNG.standard_normal((5, 2)))
    assert (
        max(al.check_leaks(Z, RNG.standard_normal(2), RNG.standard_normal((5, 2))).values()) < 1e-12
    )


def test_two_sided_leak_passes():
    Z = al.coboundary(RNG.standard_normal((5, 2)))
    g = RNG.standard_normal((5, 2))
    assert al.largest(al.additivity_defect(Z + g[None] - g[:, None])) < 1e-12


def test_nearest_potential_is_nearest():
    Z = RNG.standard_normal((5, 5, 2))
    best = al.nearest_potential(Z)
    value = ((Z - al.coboundary(best)) ** 2).sum()
    for _ in range(50):
        other = best + 0.1 * RNG.standard_normal(best.shape)
        assert ((Z - al.coboundary(other)) ** 2).sum() > value


def test_an_empty_scene_is_an_error():
    with pytest.raises(UserError, match="no observations"):
        al.latent_table(FUNCTIONS["goal"], [])


def test_bch_table():
    known = {
        5: (0.22, 0.22, 0.031),
        10: (0.87, 0.87, 0.062),
        15: (1.96, 1.97, 0.093),
        20: (3.49, 3.50, 0.124),
        30: (7.85, 7.91, 0.187),
        45: (17.67, 17.97, 0.282),
        60: (31.42, 32.35, 0.381),
    }
    random = {
        5: (0.17, 0.22),
        10: (0.69, 0.87),
        15: (1.54, 1.96),
        20: (2.75, 3.50),
        30: (6.22, 7.90),
    }
    for row in rm.bch_table(random=4000):
        second, exact, share = known[row["leg"]]
        assert abs(row["second_order"] - second) < 0.006 and abs(row["orthogonal"] - exact) < 0.006
        assert abs(row["relative"] - share) < 0.0006
        assert row["worst"] >= row["orthogonal"] - 1e-12
        if row["leg"] in random:
            assert np.allclose((row["mean"], row["p95"]), random[row["leg"]], rtol=0.02, atol=0.005)


def test_rotations_about_one_axis_add():
    a, b = np.array([0.3, -0.2, 0.5]) * np.array([[0.7], [0.9]])
    assert rm.bch_error(a, b) < 1e-12


def test_filter_bound():
    got = [np.rad2deg(rm.filter_bound(np.deg2rad(d))) for d in (20, 30, 45, 60)]
    assert np.allclose(got, [0.87, 1.97, 4.4, 7.9], atol=0.05)
    assert rm.check_filter(np.deg2rad(30), 21) <= 1 + 1e-9
    with pytest.raises(UserError, match="total"):
        rm.filter_bound(4.0)


def test_filter_bound_holds_for_random_triples():
    rng = np.random.default_rng(1)
    axes = rng.standard_normal((2, 3000, 3))
    axes /= np.linalg.norm(axes, axis=-1, keepdims=True)
    split, total = rng.random((3000, 1)), np.deg2rad(30)
    assert rm.bch_error(
        split * total * axes[0], (1 - split) * total * axes[1]
    ).max() <= rm.filter_bound(total)


def test_translations():
    found = rm.check_translation()
    assert found["base"] < 1e-12 and found["body_over_bound"] <= 1 + 1e-9


def test_composition_of_rigid_motions_is_the_block_formula():
    a, b, s, t = np.random.default_rng(3).standard_normal((4, 3))
    T = rm.rigid(b, t) @ rm.rigid(a, s)
    R2, R1 = Rotation.from_rotvec(b).as_matrix(), Rotation.from_rotvec(a).as_matrix()
    assert np.allclose(T[:3, :3], R2 @ R1) and np.allclose(T[:3, 3], R2 @ s + t)


def test_euler_differences_are_not_rotations():
    assert abs(rm.euler_difference(0, 10) - 10) < 1 and rm.euler_difference(89, 10) > 80


def test_no_measure_has_two_meanings():
    """The additivity of Eq. 7 has one name, and a name that is used twice is one number.

    Pure noise: 3 as a ratio of squares, 1.73 as the IDM's ratio of lengths.
    """
    z = {pair: torch.randn(4000, 8) for pair in ("ij", "jk", "ik", "ii", "ji")}
    calls = iter(("ij", "jk", "ik", "ii", "ji"))
    o = torch.zeros(1)
    by_length = residuals(lambda a, b: z[next(calls)], o, o, o)
    by_square = metrics.additivity(*(z[pair].numpy() for pair in ("ij", "jk", "ik")))
    assert abs(by_square - 3) < 0.1 and abs(by_length["composition"] - 3**0.5) < 0.05
    assert "additivity" not in by_length
    ij, ii, ji = (z[pair].numpy() for pair in ("ij", "ii", "ji"))
    assert by_length["identity"] == pytest.approx(metrics.identity(ii, ij), rel=1e-4)
    assert by_length["inverse"] == pytest.approx(metrics.inverse(ij, ji), rel=1e-4)


def test_a_noisy_channel_carries_the_innovation_best():
    a = np.linspace(-1, 1, 401)
    for rho in (-0.5, 0.0, 0.4, 0.95):
        for noise in (0.05, 1.0, 3.0):
            assert abs(a[channel_loss(a, rho, noise).argmin()] - rho) < 0.01
    assert np.ptp(channel_loss(a, 0.4, 0.0)) == 0


def test_the_numbers_of_an_innovation_and_their_bounds():
    assert innovation_numbers(1.0) == {"additivity": 0, "identity": 0, "inverse": 0}
    leak = innovation_numbers(0.0)
    assert leak["additivity"] == leak["identity"] == 1 and abs(leak["inverse"] - 2**0.5) < 1e-12
    with pytest.raises(UserError, match="above -1 and at most 1"):
        innovation_numbers(1.1)


def test_the_correlation_of_pairs_is_about_what_stands_still():
    rng = np.random.default_rng(0)
    still = 50 + 20 * rng.standard_normal((2000, 3, 3))  # would make any two frames alike
    common, own, other = rng.standard_normal((3, 2000, 3, 3))
    o_i, o_j = (still + 0.7**0.5 * common + 0.3**0.5 * x for x in (own, other))
    assert abs(pair_correlation(o_i, o_j, still) - 0.7) < 0.02
    assert pair_correlation(still, still, still) == 1.0
    with pytest.raises(UserError, match="pairs of frames expected"):
        pair_correlation(o_i[:0], o_j[:0], still[:0])
