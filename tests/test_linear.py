"""The linear part: every proposition's check, the independent expected values, the trainer, the command."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from aclam.commands import linear as command
from aclam.core import UserError
from aclam.linear import (
    additivity,
    augmentation,
    batched,
    figures,
    labels,
    llo,
    model,
    objective,
    pca,
    policy,
    streams,
    trainer,
)
from aclam.linear.evaluate import evaluate, label_lambda, theory
from aclam.linear.setting import Setting
from aclam.linear.world import WorldConfig, factors, make_world, sample, second_moment

RESULTS = Path(__file__).parents[1] / "nbs" / "results"
SMALL = Setting(d_o=24, d_a=3, d_b=3, d_z=3, steps=2500)


# --- the world and the model


def test_sampler_and_moments_agree():
    world = make_world(d_o=8, d_a=2, d_b=2, gain=2.0, sigma_iid=0.3, sigma_agents=0.7, chi=0.4)
    F, n = factors(world, steps=2), 40_000
    S = sample(world, n, np.random.default_rng(0), steps=2)
    for x, y in [("o", "delta"), ("a", "o"), ("eps", "delta"), ("delta", "delta2"), ("o_k", "a2")]:
        assert np.abs(S[x].T @ S[y] / n - second_moment(F, x, y)).max() < 0.1
    assert np.allclose(S["o_k"], S["o"] + S["delta"] + S["delta2"])


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("d_a", 200, "d_a"),
        ("sigma_iid", -0.1, "sigma"),
        ("chi", 1.01, "chi"),
        ("gain", 0, "gain"),
        ("d_o", 0, "d_o"),
    ],
)
def test_a_world_that_makes_no_sense_is_one_line(field, value, says):
    with pytest.raises(UserError, match=says) as error:
        WorldConfig(**{field: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("seed", range(3))
def test_expansion_gradients_and_symmetries(seed):
    assert model.check_expansion(seed) < 1e-12
    assert model.check_gradients(seed) < 1e-10
    found = model.check_family(seed)
    assert found["shift"] < 1e-10 and found["gauge"] < 1e-7 and found["latent_moved"] > 1
    counted, claimed = model.check_family_dimension(6, 2, seed)
    assert counted == claimed
    counted, claimed = model.check_family_dimension(6, 2, seed, d_a=2)
    assert counted == claimed + 2 * (6 - 2)  # a quiet world: D is free where nothing moves


def test_the_surrogate_is_delta_at_the_optimum_and_the_latent_where_a_is_the_identity():
    F = factors(make_world(d_o=16, d_a=4, d_b=4, gain=4.0, sigma_agents=1.0, chi=0.4))
    best = objective.optimum([objective.reconstruction(F)], 3).lam
    shifted = model.shift_family(best, np.ones((3, 16)))
    read = {name: llo.readout_factor(shifted, F, name) for name in llo.READOUTS}
    assert np.allclose(read["surrogate"], read["delta"])
    assert not np.allclose(read["raw"], read["delta"])
    held = shifted._replace(A=np.eye(16))
    assert np.allclose(llo.readout_factor(held, F, "surrogate"), llo.readout_factor(held, F, "raw"))


def test_the_papers_scale_has_unit_variance_in_each_element():
    s = figures.as_published(Setting(), sigma_exo=1.0, d_a=4)
    F = factors(make_world(s.world))
    assert s.gain == 32 and s.d_a == 4
    for name in ("o", "q", "eps"):
        assert np.isclose((F[name] ** 2).sum() / 128, 1)


def test_llo_of_known_latents():
    F = factors(make_world(d_o=16, d_a=4, d_b=0, sigma_iid=0.5))
    assert np.isclose(llo.llo(F["a"], F).llo, 2)
    assert np.isclose(llo.llo(F["k1"], F).llo, 1)
    assert np.isclose(llo.llo(F["o"], F).llo, 0)
    assert np.isclose(llo.llo(F["o"][:4], F).llo, 1 - 4 / 16)
    llo.check_llo(seed=1)


def test_information_is_at_least_what_least_squares_says():
    assert llo.check_information()["least"] > 1e-4


# --- propositions


@pytest.mark.parametrize("seed", range(3))
def test_prop_41_and_without_its_hypothesis(seed):
    assert max(abs(v) for v in pca.check_prop_41(seed).values()) < 1e-12
    assert pca.check_prop_41(seed, chi=0.6)["slope"] > 0.05


@pytest.mark.parametrize("seed", range(3))
def test_prop_42(seed):
    found = pca.check_prop_42(seed, tries=50)
    assert abs(found["attained"]) < 1e-12 and found["slope"] < 1e-12 and found["best_random"] > 0


def test_cases_1_to_3_against_an_eigendecomposition():
    assert pca.check_cases() < 1e-9


def test_eq8_with_the_right_and_the_wrong_sign():
    found = policy.check_eq8(1)
    assert found["slope"] < 1e-12 < 0.1 < found["slope_wrong_sign"] and found["best_other"] > 0
    assert found["slope_printed"] > 0.1


@pytest.mark.parametrize("chi", [0.0, 0.5])
@pytest.mark.parametrize("loss", ["plain", "augmented", "composed"])
def test_the_theorem_against_a_minimizer(loss, chi):
    found = objective.check_optimum(loss, 1, chi)
    assert abs(found["attained"]) < 1e-10 and -1e-10 < found["gap"] < 1e-5 and found["span"] < 1e-2


def test_the_theorem_refuses_terms_that_break_its_hypothesis():
    F = factors(make_world(d_o=6, d_a=2, d_b=0), steps=2)
    broken = replace(objective.reconstruction(F), y=F["delta2"])
    with pytest.raises(UserError, match="closed form"):
        objective.optimum([broken], 2)


def test_prop_43_and_either_shift_alone():
    assert abs(augmentation.check_augmented_loss(2)) < 1e-12
    for shifts in [(0.1, 0.0), (0.0, 0.1)]:
        found = augmentation.check_prop_43(*shifts)
        assert max(found["A_minus_I"], found["B_C_plus_D"], found["C_plus_D"]) < 2e-3
    assert augmentation.check_prop_43(0.0, 0.0)["B_C_plus_D"] > 0.3


def test_prop_44_threshold_and_minimizer():
    for lam, gain in [(0.5, 1.0), (10.0, 4.0)]:
        below, above = labels.check_prop_44(lam, gain)
        assert np.isclose(below, 2) and abs(above) < 1e-9
    found = labels.check_labeled_optimum(0, orthogonal=False)
    assert -1e-9 < found["gap"] < 1e-4 and abs(found["attained"]) < 1e-9


def test_labels_averaged_over_labeled_or_over_all_samples():
    one = Setting(label_ratio=0.01)
    by_labeled, by_all = label_lambda(one), label_lambda(replace(one, label_mean="all"))
    assert np.isclose(by_labeled, 11.58, atol=0.01) and np.isclose(by_all, 0.16)
    # thresholds 3.55 and 1.08; first with random X and Y, then orthogonal
    assert labels.llo_labeled(2.0, by_labeled, orthogonal=False) > 1.98
    assert labels.llo_labeled(4.0, by_labeled, orthogonal=False) < 0.2
    assert labels.llo_labeled(2.0, by_all, orthogonal=False) < 0.1
    assert labels.llo_labeled(3.5, by_labeled) > 1.99 and labels.llo_labeled(3.6, by_labeled) < 0.01
    assert labels.llo_labeled(1.07, by_all) > 1.99 and labels.llo_labeled(1.09, by_all) < 0.01


def test_fact_0_and_bridge():
    assert abs(additivity.check_fact_0(3)) < 1e-12
    found = additivity.check_bridge(3)
    assert max(abs(found[k]) for k in ("fdm", "aug", "idm", "fdm_gauge")) < 1e-9
    assert np.isclose(found["idm_shrunk"], 1e-6)


def test_ac_1_composition_replaces_augmentation():
    noisy, quiet = (additivity.check_ac(additivity.rec_ac, sigma_iid=s) for s in (0.3, 0.0))
    assert max(noisy["C_plus_D"], noisy["A_minus_I"], quiet["C_plus_D"], quiet["A_minus_I"]) < 2e-3
    gaps = additivity.check_ac(additivity.rec_gaps, sigma_iid=0.3)
    assert (
        gaps["C_plus_D"] > 0.3 and gaps["A_minus_I"] > 0.1
    )  # more pairs without composition do not help


def test_ac_2_composition_alone():
    noisy, quiet = (additivity.check_ac(additivity.ac_only, sigma_iid=s) for s in (0.3, 0.0))
    assert noisy["C_plus_D"] < 2e-3
    assert quiet["C_plus_D"] > 0.3 and quiet["C_plus_D_on_X"] < 1e-3


def test_ac_3_with_a_policy():
    found = additivity.check_ac(additivity.rec_ac, d_z=2, sigma_iid=0.3, chi=0.6)
    assert found["C_plus_D"] < 2e-3 and found["inside_B"] < 2e-3 and found["A_minus_I"] > 0.1


def test_limits_of_composition():
    found = additivity.check_limits()
    assert (
        abs(found["llo"]) < 1e-9 and abs(found["gauge"]) < 1e-9 and found["others_violate"] < 1e-20
    )


# --- independent expected values (closed forms)


def test_expected_values_iid():
    sigmas = (0, 0.1, 0.25, 0.5, 0.7071, 1, 1.5)
    for gain, values in [
        (1.0, (2, 1.9895, 1.9375, 1.7875, 1.6458, 1.4688, 1.2644)),
        (16.0, (2, 1.9993, 1.9959, 1.9837, 1.9678, 1.9375, 1.8690)),
    ]:
        assert np.allclose([pca.llo_iid(128, 8, 8, s, gain) for s in sigmas], values, atol=1e-4)
    assert np.allclose([pca.llo_iid(128, 8, k, 0.7071) for k in (4, 12)], [1.323, 1.615], atol=1e-3)
    effective = [pca.llo_iid_effective(128, 8, s) for s in sigmas[1:]]
    assert np.allclose(effective, (1.9994, 1.9963, 1.9875, 1.9792, 1.9688, 1.9567), atol=1e-4)


@pytest.mark.slow
def test_expected_values_agents_40_draws():
    known = {
        0.5: (1.222, 1.459, 1.705, 1.954, 1.705, 1.459, 1.222, 1),
        2.0: (0.778, 0.541, 0.295, 0.046, 0.295, 0.541, 0.778, 1),
    }
    for sigma, values in known.items():
        mean = [pca.llo_agents_random(k, sigma, 40) for k in range(2, 17, 2)]
        assert np.allclose(mean, values, atol=0.01)


def test_expected_values_agents_few_draws():
    mean = [pca.llo_agents_random(k, 0.5, 4) for k in (4, 8, 12)]
    assert np.allclose(mean, (1.459, 1.954, 1.459), atol=0.01)
    assert np.isclose(pca.llo_agents_random(8, 1.0, 1), 1)


def test_expected_values_policy():
    got = [policy.llo_policy_quiet(128, 8, c) for c in (0.2, 0.4, 0.6, 0.8, 0.9)]
    assert np.allclose(got, [1.9963, 1.9808, 1.9567, 1.9412, 1.9383], atol=1e-4)
    assert np.allclose([policy.llo_policy(c, 0.5) for c in (0.45, 0.55)], [1.975, 0.0], atol=1e-3)


def test_policy_and_composition_overlap():
    # an exploratory table, found by numerical minimization on another world; here the closed form
    assert np.allclose(
        [additivity.policy_overlap(c, 0.0) for c in (0.2, 0.4, 0.55, 0.9)], [1, 1, 0, 0], atol=1e-6
    )
    assert (
        0.9 < additivity.policy_overlap(0.4, 1.0) < 1
        and 0.1 < additivity.policy_overlap(0.9, 1.0) < 0.6
    )


# --- the trainer


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sigma_iid": 0.5, "chi": 0.4, "gain": 2.0},
        {"augment_var": 0.1, "label_ratio": 0.1, "sigma_agents": 0.7},
        {
            "augment_var": 0.1,
            "label_ratio": 0.1,
            "label_mean": "all",
            "sigma_iid": 0.5,
            "chi": 0.4,
            "lambda_ac": 0.6,
        },
    ],
)
def test_batched_gradients_are_those_of_autograd(changes):
    first = replace(SMALL, **changes)
    other = replace(first, d_z=2, gain=3.0, sigma_agents=1.3, lambda_ac=2 * first.lambda_ac)
    assert batched.check_batch_gradient([first, other]) < 1e-4


def test_tables_on_streams_are_the_plain_samples():
    first = replace(SMALL, sigma_iid=0.5, sigma_agents=0.7, chi=0.4, lambda_ac=1.0)
    assert streams.check_streams([first, replace(first, gain=3.0, chi=0.7)]) < 1e-5


@pytest.mark.parametrize("train", [trainer.train, batched.train])
def test_training_together_is_naive_training(train):
    quick = replace(SMALL, steps=40, sigma_iid=0.4, sigma_agents=0.5, lambda_ac=0.5)
    labeled = replace(quick, augment_var=0.1, label_ratio=0.1)
    settings = [quick, replace(quick, d_z=5, sigma_iid=0.0), replace(quick, chi=0.5)]
    settings += [labeled, replace(labeled, d_z=2, label_mean="all")]
    together = train(settings)
    assert [m.setting for m in together] == settings
    for fast in together:
        slow = trainer.train_naive(fast.setting)
        assert max(np.abs(a - b).max() for a, b in zip(fast.lam, slow.lam, strict=True)) < 1e-3
        assert np.abs(fast.H - slow.H).max() < 1e-3


@pytest.mark.parametrize("train", [trainer.train, batched.train])
def test_training_is_reproducible_and_independent_of_company(train):
    quick = replace(SMALL, steps=30, sigma_agents=0.5)
    alone, again = train([quick])[0], train([quick])[0]
    company = train([replace(quick, sigma_iid=0.3), quick, replace(quick, chi=0.7)])[1]
    assert all(np.array_equal(a, b) for a, b in zip(alone.lam, again.lam, strict=True))
    assert all(np.allclose(a, b, atol=1e-4) for a, b in zip(alone.lam, company.lam, strict=True))


def test_trained_models_agree_with_their_closed_form():
    settings = [
        replace(SMALL, sigma_iid=0.2, gain=2.0, lambda_ac=1.0),
        replace(SMALL, sigma_agents=0.4, gain=1.5, lambda_ac=1.0),
        replace(SMALL, sigma_agents=2.0, lambda_ac=1.0),
    ]
    for m in trainer.train(settings):
        r = evaluate(m, "raw")
        assert abs(r["llo"] - r["llo_theory"]) < 0.03
        assert 0.999 < r["loss"] / r["min_loss"] < 1.05


def test_labels_on_both_sides():
    strong = replace(SMALL, sigma_agents=2.0, augment_var=0.1, label_ratio=0.05)
    rescued, lost = (
        evaluate(m, "raw") for m in trainer.train([strong, replace(strong, label_mean="all")])
    )
    assert rescued["llo"] > 1.2 and lost["llo"] < 0.4
    assert rescued["theory_method"] == "closed form"


# --- the command


@pytest.fixture
def answer(outcome):
    """Run aclam-linear on a line of words; its JSON, and what it says on standard error."""

    def run(line: str) -> tuple[dict, str]:
        status, out, err = outcome(command.main, *line.split())
        assert status == 0 and out.count("\n") == 1
        return json.loads(out), err

    return run


def test_json_has_the_contract(answer):
    found, err = answer("--json --d-o 12 --d-a 2 --d-z 3 --d-b 2 --steps 20")
    for name in ("loss", "min_loss", "llo", "llo_theory", "nmse_a", "nmse_eps", "nmse_o"):
        assert isinstance(found[name], float)
    assert {"norm_B_C_plus_D", "subspace_error"} <= set(found)
    # after 20 steps
    assert err.count("\n") == 1 and "not at its minimum" in err and "80 for example" in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--d-o 8 --d-a 2 --d-z 9", "d_z is 9"),
        ("--chi 1.2", "chi is 1.2"),
        ("--chi -0.1", "chi is -0.1"),
        ("--augment-var -0.1", "augment_var is -0.1"),
        ("--sigma-iid -1", "sigma_iid is -1"),
        ("--label-ratio 0", "zero labels"),
        ("--lambda-acc 1", "--lambda-ac"),
        ("--readout latent", "readout"),
        ("--steps 0", "steps is 0"),
        ("--seed -1", "seed is -1"),
        ("--d-o 1000000000", "at most 2048"),
        ("--steps 1000000000000", "steps is 1e+12"),
        ("--batch 100000000000", "batch is 1e+11"),
        ("--batch 1000000", "together at most"),
        ("--gain nan", "gain is nan"),
        ("--gain 1e300", "gain is 1e+300"),
        ("--sigma-iid 1e300", "sigma_iid is 1e+300"),
        ("--sigma-agents inf", "sigma_agents is inf"),
        ("--chi nan", "chi is nan"),
        ("--augment-var 1e300", "augment_var is 1e+300"),
        ("--label-ratio nan", "label_ratio is nan"),
        ("--label-weight inf", "label_weight is inf"),
        ("--lambda-ac nan", "lambda_ac is nan"),
        ("--lr 1e300", "lr is 1e+300"),
        ("--lr nan", "lr is nan"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(refused, words, says):
    refused(command.main, ["--json", *words.split()], says)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("figure 5", "not one of 3, 4"),
        ("figure", "not one of 3, 4"),
        ("figure 3 --seeds 0", "seeds"),
        ("figure 3 --workers 0", "workers"),
        ("figure 3 --workers 1000000", "from 1 to 256"),
        ("figure 3 --seeds 1000000000", "from 1 to 1000"),
        ("figure 3 --d-o 100000", "at most 2048"),
        ("figure 3 --out figure.pdf", ".png"),
    ],
)
def test_bad_figures(refused, words, says):
    refused(command.main, words.split(), says)


def test_a_figure_writes_png_and_csv(answer, tmp_path):
    png = tmp_path / "f.png"
    found, _ = answer(f"figure 4 --seeds 1 --steps 3 --d-o 26 --workers 1 --json --out {png}")
    assert png.read_bytes().startswith(b"\x89PNG")
    rows = figures.read_csv(found["csv"])
    assert len(rows) == found["models"]
    assert {row["panel"] for row in rows} == {"4 left", "4 middle", "4 right"}


OUTSIDE_THE_BOOK = [
    "--d-o 40 --d-a 5 --d-z 5 --d-b 3 --gain 3 --sigma-iid 0.4 --lambda-ac 1 --readout raw",
    "--d-o 20 --d-a 2 --d-z 3 --d-b 4 --gain 0.5 --sigma-agents 1.5 --lambda-ac 0.5 --readout raw "
    "--seed 3",
    "--d-o 32 --d-a 6 --d-z 4 --d-b 2 --gain 2 --sigma-iid 0.3 --sigma-agents 0.3 "
    "--augment-var 0.2 --readout raw",
    "--d-o 24 --d-a 3 --d-z 3 --d-b 2 --gain 4 --chi 0.3 --sigma-iid 0.2 --augment-var 0.1 --seed 5",
]


@pytest.mark.parametrize("line", OUTSIDE_THE_BOOK)
def test_json_agrees_with_its_own_closed_form(answer, line):
    """LLO within 0.03, the loss within 5 % above its minimum (never below)."""
    found, _ = answer(f"--json {line}")
    assert abs(found["llo"] - found["llo_theory"]) < 0.03
    assert 1 - 1e-9 < found["loss"] / found["min_loss"] < 1.05


@pytest.mark.parametrize("extra", ["--chi 0.4", "--lambda-ac 0.5"])
def test_labels_beside_a_policy_or_composition(answer, extra):
    """No closed form there: L-BFGS finds a minimum below what a short training reaches."""
    world = "--d-o 10 --d-a 2 --d-z 2 --d-b 2 --sigma-iid 0.3"
    found, _ = answer(f"--json {world} --label-ratio 0.2 --steps 300 {extra}")
    assert found["theory_method"] == "L-BFGS" and found["loss"] > found["min_loss"] > 0


def direct_minimum(s: Setting) -> float:
    """The minimum of the loss from a covariance written out by hand.

    It uses none of the package's factors or objectives.
    """
    w = make_world(s.world)
    noise = s.sigma_iid**2 * np.eye(s.d_o) + s.sigma_agents**2 * w.Y @ w.Y.T
    unpredicted = (1 - s.chi) ** 2 * w.X @ w.X.T + noise  # what the frame does not predict
    with_frame = s.chi * w.X @ w.Pi  # E[delta o^T], as E[o o^T] = 1
    # ridge: what a shifted frame does not predict
    ridge = with_frame @ with_frame.T * s.augment_var / (1 + s.augment_var)
    rest = np.linalg.eigvalsh(unpredicted + ridge)[: s.d_o - s.d_z].sum()
    return float(rest * (1 + 2 * s.lambda_ac))


@pytest.mark.parametrize("line", OUTSIDE_THE_BOOK)
def test_closed_form_agrees_with_a_direct_eigendecomposition(line):
    words = line.replace("--readout raw", "").replace("--", "").replace("-", "_").split()
    integers = ("d_o", "d_a", "d_z", "d_b", "seed")
    fields = {}
    for name, value in zip(words[::2], words[1::2], strict=True):
        fields[name] = int(value) if name in integers else float(value)
    s = Setting(**fields)
    F = factors(make_world(s.world), steps=2 if s.lambda_ac else 1)
    assert np.isclose(theory(s, F)[1], direct_minimum(s), rtol=1e-9)


# --- the figures at full size (made by `aclam-linear figure NAME --seeds 3`, see the notebooks)


def saved(name):
    rows = figures.read_csv(RESULTS / f"linear_figure_{name}.csv")
    return {p: figures.summary(rows, p) for p in dict.fromkeys(r["panel"] for r in rows)}


def test_saved_tables_are_whole():
    for name in figures.FIGURES:
        points = figures.figure_points(name, Setting(), 3)
        wanted = {(p.panel, p.series, p.x, p.setting.seed) for p in points}
        rows = figures.read_csv(RESULTS / f"linear_figure_{name}.csv")
        assert {(r["panel"], r["series"], r["x"], r["seed"]) for r in rows} == wanted and len(
            rows
        ) == len(points)


def test_figure_3_left_within_0005():
    for name, s in saved("3")["3 left"].items():
        spare = np.maximum(s["x"] - int(name.removeprefix("d_a = ")), 0)  # hold a little frame
        assert np.abs(s["mean"] - (s["theory"] - spare / 128)).max() < 0.005


def test_figure_3_middle_the_claim_at_half_the_signal():
    paper = saved("3")["3 middle"]["gain 16"]
    assert np.abs(paper["mean"] - paper["theory"]).max() < 0.005
    assert paper["mean"][list(paper["x"]).index(0.5)] > 1.98


def test_figure_3_right_within_002():
    panel = saved("3")["3 right"]
    for name in ("agents 0.5", "agents 2"):
        assert np.abs(panel[name]["mean"] - panel[name]["theory"]).max() < 0.02


def test_figure_4_middle_within_002():
    panel = saved("4")["4 middle"]
    for name in ("variance 0.1", "composition"):
        assert np.abs(panel[name]["mean"] - panel[name]["theory"]).max() < 0.02


def test_the_bridge_at_full_size_within_002():
    for name, s in saved("bridge")["bridge"].items():
        if name != "reconstruction only":
            assert np.abs(s["mean"] - s["theory"]).max() < 0.02


def fresh(settings, readout):
    """LLO and its closed form of models trained now, at the paper's size: two arrays."""
    torch.set_num_threads(1)
    rows = [evaluate(m, readout) for m in batched.train(settings)]
    return np.array([r["llo"] for r in rows]), np.array([r["llo_theory"] for r in rows])


@pytest.mark.slow
def test_figure_3_left_trained_anew():
    got, _ = fresh([Setting(d_z=k) for k in (4, 8, 12, 16)] + [Setting(d_a=4, d_z=4)], "delta")
    assert np.allclose(got, [1.5, 2, 2, 2, 2], atol=0.005)


@pytest.mark.slow
def test_figure_4_middle_trained_anew():
    got, theory = fresh([Setting(sigma_iid=s, augment_var=0.1) for s in (0.0, 0.5, 1.0)], "raw")
    assert np.allclose(got, theory, atol=0.02) and np.allclose(
        got, [2.000, 1.787, 1.468], atol=0.02
    )


@pytest.mark.slow
def test_composition_at_full_size():
    """Raw latent, no augmentation, lambda 1, 4,000 steps: 2.000, 1.787, 1.936, 0.064."""
    worlds = [{}, {"sigma_iid": 0.5}, {"sigma_agents": 0.5}, {"sigma_agents": 2.0}]
    got, _ = fresh([Setting(lambda_ac=1.0, **w) for w in worlds], "raw")
    assert np.allclose(got, [2.000, 1.787, 1.936, 0.064], atol=0.02)


@pytest.mark.slow
def test_labels_at_full_size_on_both_sides_of_both_thresholds():
    one = Setting(augment_var=0.1, label_ratio=0.01)
    by_labeled, _ = fresh([replace(one, sigma_agents=s) for s in (0.5, 2.0, 4.5)], "raw")
    by_all, _ = fresh([replace(one, label_mean="all", sigma_agents=s) for s in (0.5, 2.0)], "raw")
    assert by_labeled[0] > 1.9 and by_labeled[1] > 1.4 and by_labeled[2] < 0.6  # threshold 3.55
    assert by_all[0] > 1.9 and by_all[1] < 0.2  # threshold 1.08
