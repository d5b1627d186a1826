"""Structure metrics, their command, norm trajectories, motion transfer and the report."""

import dataclasses
import json
import math
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from aclam.commands.structure import main
from aclam.core import UserError, write_json
from aclam.data.identity import episode_digest
from aclam.data.sampling import TripleConfig
from aclam.data.source import open_dataset
from aclam.data.store import read_store, write_store
from aclam.data.trajectory import fingerprint, synthetic_trajectory
from aclam.data.triples import TripleDataset
from aclam.data.video import VideoWriter
from aclam.kept import kept_result
from aclam.structure import leakage as leak
from aclam.structure import measure, table
from aclam.structure import metrics as m
from aclam.structure.bootstrap import bootstrap_intervals
from aclam.structure.held_out import (
    held_out,
    held_out_triples,
    origin,
    quantiles_for,
    seen_before,
    unseen,
)
from aclam.structure.latent_file import check_by_hand, save_latents
from aclam.structure.motion_transfer import (
    check_transfer_error,
    draw_motion_transfer,
    draw_one_transfer,
    motion_transfer,
    transfer_gap,
    transfer_pairs,
)
from aclam.structure.norm_trajectory import (
    COLORS,
    check_offset_flattens,
    draw_norm_trajectories,
    episode_arrays,
    norm_trajectory,
)
from aclam.structure.toy import DotConfig, DotLam, DotTriples, check_reconstruction_is_blind
from aclam.studies import figures
from aclam.studies import findings as said
from aclam.studies import report as r
from aclam.train.lam import folder_origin

FOUR = ("additivity", "norm_correlation", "identity", "inverse")


def random_latents(seed=0, n=200, d=5) -> dict:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal((n, d)) for name in m.LATENTS} | {"ds": rng.random(n)}


@pytest.fixture(scope="module")
def dots() -> DotTriples:
    return DotTriples(DotConfig(span_s=1.4, episodes=8), length=128)


# The metrics


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
def test_four_numbers_agree_with_five_lines_by_hand(tmp_path, seed, dtype):
    z = {k: (v * 100).astype(dtype) for k, v in random_latents(seed).items()}
    np.savez(tmp_path / "z.npz", **z)
    hand = check_by_hand(tmp_path / "z.npz", tol=1e-9)
    x = {k: v.astype(float) for k, v in z.items()}
    rows = [
        np.sum((a - b - c) ** 2) for a, b, c in zip(x["z_ik"], x["z_ij"], x["z_jk"], strict=True)
    ]
    assert m.four_numbers(z)["additivity"] == pytest.approx(
        np.mean(rows) / np.mean(np.sum(x["z_ij"] ** 2, 1))
    )
    assert hand["identity"] == pytest.approx(m.four_numbers(z)["identity"])


def test_derivations():
    m.check_motion()
    m.check_offset()
    m.check_noise()
    m.check_goal_leak()
    for seed in range(3):
        m.check_mixture(seed=seed)
    assert max(check_reconstruction_is_blind().values()) < 1e-3


def test_a_difference_of_any_function_is_additive():
    rng = np.random.default_rng(0)
    phi = {x: np.tanh(rng.standard_normal((50, 4))) for x in "ijk"}
    z = {"z_" + a + b: phi[b] - phi[a] for a, b in ("ij", "jk", "ik", "ii", "ji")} | {
        "ds": rng.random(50)
    }
    four = m.four_numbers(z)
    assert max(four["additivity"], four["identity"], four["inverse"]) < 1e-12


def test_undefined_is_nan():
    z = random_latents()
    zero = {k: 0 * v for k, v in z.items()}
    assert all(math.isnan(v) for v in m.four_numbers(zero).values())
    assert math.isnan(m.norm_correlation(z["z_ij"], np.full(200, 0.1)))
    unit = (z["z_ij"] / np.linalg.norm(z["z_ij"], axis=1, keepdims=True)).astype(np.float32)
    assert math.isnan(m.norm_correlation(unit, z["ds"]))  # constant up to rounding
    assert not math.isnan(m.norm_correlation(1e-9 * z["z_ij"], z["ds"]))  # small is not constant


@pytest.mark.parametrize(
    "change, words",
    [
        ({"z_ik": np.ones((3, 5))}, "z_ik has shape (3, 5) but z_ij has (200, 5)"),
        ({"z_ij": np.ones(200)}, "z_ij has shape (200,), (n, d) expected"),
        ({"z_jk": np.full((200, 5), np.nan)}, "z_jk has NaN or infinite entries (1000 of 1000)"),
        ({"ds": np.ones((200, 1))}, "ds has shape (200, 1)"),
        ({"ds": np.full(200, np.inf)}, "ds has NaN or infinite entries"),
        ({"z_ii": np.full((200, 5), 1j)}, "z_ii has dtype complex128"),
        ({"z_ji": np.full((200, 5), True)}, "z_ji has dtype bool"),
    ],
)
def test_arrays_that_do_not_fit(change, words):
    with pytest.raises(UserError, match=re.escape(words)):
        m.four_numbers(random_latents() | change)


def test_quantile_displacement():
    low, high = np.array([0.0, -1.0, 2.0]), np.array([1.0, 1.0, 2.0])
    s_i, s_j = (
        np.array([[0.0, 0.0, 0.0], [0.5, -9.0, 5.0]]),
        np.array([[1.0, 0.0, 9.0], [99.0, 1.0, 7.0]]),
    )
    assert m.quantile_displacement(s_i, s_j, low, high) == pytest.approx(
        [2.0, math.hypot(1.0, 2.0)]
    )
    with pytest.raises(UserError, match="swapped"):
        m.quantile_displacement(s_i, s_j, high, low)


def test_uniform_by_magnitude():
    ds = np.random.default_rng(0).exponential(size=20_000)
    drawn = m.uniform_by_magnitude(ds, 10_000, np.random.default_rng(1), bins=5)
    share = np.histogram(ds[drawn], 5)[0] / 10_000
    filled = np.histogram(ds, 5)[0] > 0
    assert np.allclose(share[filled], 1 / filled.sum(), atol=0.02)
    assert set(m.uniform_by_magnitude(np.ones(4), 100, np.random.default_rng(0))) == {0, 1, 2, 3}
    with pytest.raises(UserError):
        m.uniform_by_magnitude(np.ones((2, 2)), 3, np.random.default_rng(0))


def test_pairs_of_every_magnitude_are_even_and_different():
    found = measure.check_magnitude_draws(n=4000)
    assert found["all"] < 0.02 < 0.3 < found["chosen"]


def test_pairs_are_chosen_by_their_states_alone():
    trajectories = [synthetic_trajectory(seed, T=40, size=32) for seed in range(4)]
    dataset = TripleDataset(trajectories, TripleConfig(), 32, length=40)
    whole = dataset.batch(range(50))
    states = dataset.states(range(50))
    assert all(torch.equal(states[k], whole[k]) for k in ("proprio", "has_proprio", "index"))
    chosen = measure.magnitude_draws(dataset, 400, pool=8, bins=5)
    moved = [
        measure.motion_of(dataset.states(part))["ds"] for part in (range(3200), chosen.tolist())
    ]
    edges = np.linspace(moved[0].min(), moved[0].max(), 6)
    before, after = (np.histogram(x, edges)[0] / len(x) for x in moved)
    assert np.allclose(after, 0.2, atol=0.07) and np.abs(before - 0.2).max() > 0.1
    blind = [synthetic_trajectory(seed, T=10, size=32, kind="human") for seed in range(2)]
    with pytest.raises(UserError, match="no robot state"):
        measure.magnitude_draws(TripleDataset(blind, TripleConfig(), 32, quantiles={}), 10)


def test_even_pairs_give_a_correlation_and_an_interval_of_their_own(dots):
    lam = DotLam(leak=0.5)
    even = measure.collect_even(lam, dots, 200, batch_size=64)
    assert even["even_z"].shape == (200, 8) and {"even_ds", "even_trajectory"} <= set(even)
    row = measure.structure_metrics(measure.collect_latents(lam, dots, n=64) | even, intervals=100)
    assert row["norm_correlation_uniform"] == pytest.approx(
        m.norm_correlation(even["even_z"], even["even_ds"])
    )
    for name in ("norm_correlation_uniform", "reconstruction", "sum_reconstruction"):
        low, high = row["intervals"][name]
        assert low <= row[name] <= high and low < high


def test_bootstrap_is_deterministic_and_knows_groups():
    z = m.latent_family(1.0, 0.5, 0.5, 0.5, n=100)
    copies = {k: np.repeat(v, 10, axis=0) for k, v in z.items()}
    one, two = bootstrap_intervals(copies, seed=3), bootstrap_intervals(copies, seed=3)
    wide = bootstrap_intervals(copies, groups=np.repeat(np.arange(100), 10))
    assert one == two
    for name, value in m.four_numbers(copies).items():
        assert one[name][0] < value < one[name][1]
        assert np.diff(wide[name]) > 2 * np.diff(one[name])
    still = bootstrap_intervals(z | {"ds": np.ones(100)}, resamples=50)
    assert math.isnan(still["norm_correlation"][0]) and not math.isnan(still["inverse"][0])


def test_probe_uses_held_out_groups():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 10)
    place = rng.standard_normal((20, 8))[groups]  # which episode, and nothing else
    target = rng.standard_normal((20, 2))[groups]
    assert m.linear_probe(place, target, groups) < 0.2  # a split by rows would find 1 - 0
    assert m.linear_probe(place, target) > m.linear_probe(place, target, groups)
    assert m.linear_probe(place, place @ rng.standard_normal((8, 2)), groups) > 0.99
    nearly = np.full((200, 1), 0.1) + 1e-17 * rng.standard_normal(
        (200, 1)
    )  # equal numbers, but for rounding
    nearly[groups == 3] = 0.2
    assert abs(m.linear_probe(nearly, target, groups)) < 10
    with pytest.raises(UserError, match="two episodes"):
        m.linear_probe(place, target, np.zeros(200))


def test_code_usage():
    row = m.code_usage(np.array([[0, 5], [1, 5], [2, 5], [3, 5]]), codebook_size=10)
    assert row["codes_used"] == 5 and row["codes_share"] == 0.5
    assert row["codes_used_per_token"] == [4, 1] and row["perplexity_per_token"] == pytest.approx(
        [4, 1]
    )
    with pytest.raises(UserError):
        m.code_usage(np.zeros((0, 2), int))


# From a model


def test_collect_latents_pairs_the_right_frames(dots):
    lam = DotLam(leak=0.4, offset=0.3).train()  # not symmetric: an exchanged pair would show
    got = measure.collect_latents(lam, dots, n=20, batch_size=7)
    assert lam.training
    o_i, o_j, o_k = (dots.batch(range(20))["frames"].float() / 255).unbind(1)
    pairs = {
        "z_ij": (o_i, o_j),
        "z_jk": (o_j, o_k),
        "z_ik": (o_i, o_k),
        "z_ii": (o_i, o_i),
        "z_ji": (o_j, o_i),
    }
    for name, (a, b) in pairs.items():
        assert np.allclose(got[name], lam.encode(a, b).z.numpy(), atol=1e-6), name
    z_sum = lam.encode(o_i, o_j).z + lam.encode(o_j, o_k).z
    assert np.allclose(
        got["rec_sum"], ((lam.decode(o_i, z_sum) - o_k) ** 2).mean((1, 2, 3)), atol=1e-6
    )
    assert np.allclose(got["copy_ik"], ((o_i - o_k) ** 2).mean((1, 2, 3)), atol=1e-6)
    assert (got["trajectory"] == dots.batch(range(20))["index"][:, 0].numpy()).all()


def test_rows_without_a_state_count_for_no_motion(dots):
    class Half(DotTriples):
        def batch(self, indices):
            batch = super().batch(indices)
            return batch | {"has_proprio": torch.tensor([i % 2 == 0 for i in indices])}

    half = Half(dots.config, length=128)
    got = measure.collect_latents(DotLam(), half, n=64)
    assert np.isnan(got["ds"][1::2]).all() and np.isfinite(got["ds"][::2]).all()
    row = measure.structure_metrics(got, intervals=50)
    even = m.norm_correlation(got["z_ij"][::2], got["ds"][::2])
    assert row["norm_correlation"] == pytest.approx(even) and row["n"] == 64
    none = measure.structure_metrics(got | {"ds": np.full(64, np.nan)}, intervals=20)
    assert (
        math.isnan(none["norm_correlation"])
        and not math.isnan(none["additivity"])
        and "probe_r2" not in none
    )


def test_probe_function_gives_floats(dots):
    row = measure.structure_probe(dots, n=16)(DotLam(codes=9), 0)
    assert all(type(v) is float for v in row.values()) and {
        *FOUR,
        "sum_reconstruction",
        "codes_used",
    } <= set(row)


def test_displacement_is_that_of_the_real_dataset():
    trajectories = [synthetic_trajectory(seed, T=30, size=32) for seed in range(3)]
    dataset = TripleDataset(trajectories, TripleConfig(), 32, length=40)
    got = measure.collect_latents(DotLam(), dataset, n=40)
    q = dataset.quantiles["square"]["proprio"]
    for row in range(40):
        e, i, j, _ = dataset.draw(row)[:4]
        s = trajectories[e].proprio
        want = m.quantile_displacement(s[[i]], s[[j]], q["q01"], q["q99"])
        assert got["ds"][row] == pytest.approx(want[0], abs=1e-5)


# The command


def test_json_is_one_object_and_nothing_else(tmp_path):
    np.savez(tmp_path / "z.npz", **random_latents())
    code = "import sys; from aclam.commands.structure import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, "--latents", tmp_path / "z.npz", "--json"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stderr == ""
    row = json.loads(done.stdout)
    assert list(row) == [*FOUR, "n"] and row["n"] == 200
    assert row == pytest.approx(m.four_numbers(random_latents()) | {"n": 200})


@pytest.mark.parametrize("name", [*m.LATENTS, "ds"])
def test_a_missing_array_is_named(tmp_path, outcome, name):
    np.savez(tmp_path / "z.npz", **{k: v for k, v in random_latents().items() if k != name})
    status, out, err = outcome(main, "--latents", tmp_path / "z.npz", "--json")
    assert status == 2 and out == "" and err.count("\n") == 1 and f"no array {name} " in err


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "is empty"),
        (b"hello", "no .npz file"),
        (b"PK\x03\x04 torn", "no .npz file"),
        (b"\x93NUMPY\x01\x00", "a single array"),
    ],
)
def test_files_that_are_none(tmp_path, outcome, content, words):
    (tmp_path / "z.npz").write_bytes(content)
    status, out, err = outcome(main, "--latents", tmp_path / "z.npz")
    assert status == 2 and out == "" and err.count("\n") == 1 and words in err


def test_a_damaged_member(tmp_path, outcome):
    np.savez_compressed(tmp_path / "z.npz", **random_latents())
    data = bytearray((tmp_path / "z.npz").read_bytes())
    data[300:1500] = bytes(1200)
    (tmp_path / "z.npz").write_bytes(data)
    status, out, err = outcome(main, "--latents", tmp_path / "z.npz")
    assert status == 2 and out == "" and err.count("\n") == 1 and "cannot read" in err


def test_no_pickle_is_loaded(tmp_path, outcome):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "trapped"), "w"))

    np.savez(tmp_path / "z.npz", **random_latents() | {"z_ij": np.array([Trap()], dtype=object)})
    (tmp_path / "trapped").unlink(missing_ok=True)
    status, _, err = outcome(main, "--latents", tmp_path / "z.npz")
    assert status == 2 and "z_ij" in err and not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_rows(tmp_path, outcome, n):
    np.savez(tmp_path / "z.npz", **{k: v[:n] for k, v in random_latents().items()})
    status, out, err = outcome(main, "--latents", tmp_path / "z.npz", "--json")
    assert status == 2 and out == "" and err.count("\n") == 1


def test_a_constant_displacement_is_null(tmp_path, outcome):
    np.savez(tmp_path / "z.npz", **random_latents() | {"ds": np.ones(200)})
    status, out, err = outcome(main, "--latents", tmp_path / "z.npz", "--json")
    assert (
        status == 0
        and json.loads(out)["norm_correlation"] is None
        and "norm_correlation is undefined" in err
    )


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--model m",
        "--data d",
        "--latents a --model m",
        "--latents a --save b",
        "--latents a --n 1",
        "--latents a --batch-size 0",
        "--latentz a",
    ],
)
def test_command_lines_that_make_no_sense(outcome, words):
    status, out, err = outcome(main, *words.split())
    assert (
        status == 2 and out == "" and err.count("\n") == 1 and err.startswith("aclam-structure: ")
    )


def test_held_out_episodes():
    assert held_out(400, None, None) == range(360, 400) and held_out(1, None, None) == range(0, 1)
    for wrong in ((5, 3, 3), (5, -1, 2), (5, 0, 6), (0, None, None)):
        with pytest.raises(UserError):
            held_out(*wrong)


def test_what_the_training_left_beside_the_model_decides(tmp_path):
    write_store(
        tmp_path / "store", (synthetic_trajectory(seed, T=12, size=32) for seed in range(5))
    )
    store = read_store(tmp_path / "store")
    folder = {
        "folder": "any",
        "episodes": 5,
        "content": fingerprint(store.trajectories),
        "held_out": [2, 5],
    }
    assert unseen(store, {"folders": [folder]}) == [2, 3, 4]
    assert unseen(store, {"folders": [folder]}, first=1) == [1, 2, 3, 4]
    assert unseen(store, {"folders": [folder | {"content": "x"}]}) == [0, 1, 2, 3, 4]
    assert unseen(store, {}) == [4]
    with pytest.raises(UserError, match="trained on all 5 episodes"):
        unseen(store, {"folders": [folder | {"held_out": [5, 5]}]})
    limits = {"q01": [-5.0] * 7, "q99": [5.0] * 7}
    assert (
        quantiles_for(store, {"quantiles": {"square": {"proprio": limits}}})["square"]["proprio"]
        == limits
    )
    narrow = {"q01": [-5.0] * 3, "q99": [5.0] * 3}  # a robot of the same name with another state
    assert (
        quantiles_for(store, {"quantiles": {"square": {"proprio": narrow}}})
        == store.meta["quantiles"]
    )


def test_saved_latents_are_read_back(tmp_path, capsys, outcome):
    write_store(
        tmp_path / "store", (synthetic_trajectory(seed, T=30, size=32) for seed in range(3))
    )
    dataset = held_out_triples(read_store(tmp_path / "store"), 32, n=32, first=1)
    assert len(dataset.trajectories) == 2 and len(dataset) == 32
    got = measure.collect_latents(DotLam(), dataset, n=32)
    save_latents(tmp_path / "z.npz", got)
    capsys.readouterr()
    status, out, _ = outcome(main, "--latents", tmp_path / "z.npz", "--json", "--intervals", 50)
    row, want = json.loads(out), measure.structure_metrics(got, intervals=50)
    assert status == 0 and all(row[k] == pytest.approx(want[k], rel=1e-6) for k in FOUR)
    assert row["intervals"]["additivity"] == pytest.approx(
        want["intervals"]["additivity"], rel=1e-6
    )


def test_a_saved_model_on_a_store(tmp_path, outcome):
    from aclam.lam import LatentActionModel

    write_store(
        tmp_path / "store", (synthetic_trajectory(seed, T=30, size=32) for seed in range(3))
    )
    torch.manual_seed(0)
    LatentActionModel.from_preset("ac_lam_cpu").save_pretrained(tmp_path / "model")
    words = [
        "--model",
        tmp_path / "model",
        "--data",
        tmp_path / "store",
        "--first",
        "0",
        "--n",
        "24",
        "--save",
    ]
    status, out, _ = outcome(main, *words, tmp_path / "z.npz", "--json")
    row = json.loads(out)
    assert (
        status == 0
        and row["n"] == 24
        and math.isfinite(row["additivity"])
        and 0 < row["reconstruction"]
    )
    status, out, _ = outcome(main, "--latents", tmp_path / "z.npz", "--json")
    assert json.loads(out)["inverse"] == pytest.approx(row["inverse"], rel=1e-6)
    status, out, err = outcome(main, "--model", tmp_path / "nowhere", "--data", tmp_path / "store")
    assert status == 2 and out == "" and err.count("\n") == 1


# Pictures


def test_norm_trajectory(dots):
    frames, states = dots.episodes[0]
    curve = norm_trajectory(DotLam(), frames, states, batch_size=7)
    assert curve.correlation > 0.999 and curve.gap < 0.01
    assert math.isnan(norm_trajectory(DotLam(), frames).correlation)
    gaps = check_offset_flattens(lambda size: DotLam(offset=size), frames, states)
    assert gaps[2.0] > 0.1
    with pytest.raises(UserError, match="episode"):
        norm_trajectory(DotLam(), frames, states[:-1])
    with pytest.raises(UserError, match="same number"):
        draw_norm_trajectories({"a": [curve], "b": []})


def test_episode_arrays_use_the_percentiles_they_are_given():
    episode = synthetic_trajectory(3, T=20, size=48)
    wide = {"square": {"proprio": {"q01": [-1.0] * 7, "q99": [1.0] * 7}}}
    arrays = episode_arrays(episode, 32, wide, seconds=2.0)
    assert arrays["frames"].shape == (11, 3, 32, 32)
    assert np.allclose(arrays["states"], np.clip(episode.proprio[:11], -1, 1), atol=1e-6)
    assert "states" not in episode_arrays(synthetic_trajectory(3, T=5, size=32, kind="human"), 32)


def test_motion_transfer(dots):
    source, target = transfer_pairs(dots.batch(range(128)), rows=5)
    assert len({s.tobytes() for s in source}) == 5
    honest = motion_transfer(DotLam(), source, target)
    assert (
        transfer_gap(honest)
        < 1e-3
        < transfer_gap(motion_transfer(DotLam(leak=0.5), source, target))
    )
    assert check_transfer_error(DotLam(leak=0.5), source, target) > 5 * check_transfer_error(
        DotLam(), source, target
    )
    still = {"direct": honest["target"], "summed": honest["target"], "target": honest["target"]}
    assert math.isnan(transfer_gap(still))
    assert len(draw_motion_transfer({"a": honest, "b": honest}).axes) > 5 * 10
    narrow = draw_one_transfer({"a": honest, "a_leaky_twin": honest}, 4)
    assert len(narrow.axes) == 3 * 4 and narrow.get_figwidth() < 5
    shown = narrow.axes[3].images[0].get_array()
    assert np.allclose(shown, honest["target"][4].transpose(1, 2, 0))
    with pytest.raises(UserError, match="expected"):
        motion_transfer(DotLam(), source, target[:2])


# The report


def toy_results() -> dict:
    good = {
        "additivity": 0.2,
        "norm_correlation": 0.8,
        "identity": 0.1,
        "inverse": 0.2,
        "reconstruction": 0.1,
        "codes_used": 16,
        "codebook_size": 32,
        "codes_share": 0.5,
    }
    bad = good | {
        "additivity": 1.0,
        "norm_correlation": 0.1,
        "inverse": 1.7,
        "reconstruction": 0.12,
    }
    return {"title": "A & <B>", "models": {"AC-LAM": good, "twin": bad}, "commands": ["make demo"]}


def test_goals_and_words_follow_the_numbers():
    results = toy_results()
    assert [g["met"] for g in said.goals(results)] == [True] * 5
    swapped = {"models": dict(reversed(results["models"].items()))}
    assert [g["met"] for g in said.goals(swapped)] == [False, False, False, False, True]
    assert (
        "5.0 times less" in said.findings(results)[0]
        and "5.0 times more" in said.findings(swapped)[0]
    )
    results["models"]["twin"]["codes_share"] = 0.1
    assert said.goals(results)[-1]["met"] is False


def test_table_shows_every_number():
    text = said.format_table(toy_results())
    line = next(x for x in text.splitlines() if x.startswith("Inverse"))
    assert line.split()[-3:] == ["0.200", "1.700", "0.118"]
    assert text.splitlines()[0] == "A & <B>" and len({len(x) for x in text.splitlines()[3:]}) == 1


def test_report_is_one_page_that_fetches_nothing(tmp_path):
    png = figures.png_bytes(figures.draw_film_strip([np.zeros((2, 3, 8, 8), np.uint8)], [0.0, 0.2]))
    (tmp_path / "a.png").write_bytes(png)
    results = toy_results() | {"notes": ["see https://example.org <script>alert(1)</script>"]}
    path = r.write_report(
        tmp_path / "report.html", results, {"film_strip": png, "other": tmp_path / "a.png"}
    )
    page = path.read_text()
    bare = re.sub(r'src="data:[^"]*"', "", page)
    assert page.count("data:image/png;base64,") == 2 and not re.search(
        r"<script|<link|src=|href=|@import|url\(", bare
    )
    assert "default-src 'none'" in page and "A &amp; &lt;B&gt;" in page and "make demo" in page
    assert "0.200" in page and ">met<" in page
    with pytest.raises(UserError, match="not a PNG"):
        r.report_html(results, {"x": b"GIF89a"})
    with pytest.raises(UserError, match="no model"):
        r.report_html({"models": {}})


def test_training_curves_find_prefixed_keys():
    log = [
        {"step": 1, "loss": 2.0},
        {"step": 2, "probe/additivity": 0.5},
        {"step": 3, "loss": 1.0, "additivity": None},
    ]
    assert figures.series(log, "loss")[0].tolist() == [1, 3] and figures.series(log, "additivity")[
        1
    ].tolist() == [0.5]
    titles = [ax.get_title(loc="left") for ax in figures.draw_training({"a": log}).axes]
    assert titles == ["training loss", "additivity residual"]
    with pytest.raises(UserError):
        figures.draw_training({"a": [{"step": 1}]})


def test_no_model_is_left_out_of_a_figure_because_colours_end():
    many = [f"model {i}" for i in range(len(COLORS) + 2)]
    log = [{"step": i, "loss": 1.0} for i in range(3)]
    loss = figures.draw_training({name: log for name in many}).axes[0]
    assert [line.get_label() for line in loss.lines] == many
    shares = figures.draw_code_usage({name: np.array([0, 1]) for name in many}, 2)
    assert [len(ax.patches) for ax in shares.axes] == [2] * len(many)


def test_save_figures(tmp_path, dots):
    z = measure.collect_latents(DotLam(codes=9), dots, n=32)
    paths = figures.save_figures(
        tmp_path, {"codes": figures.draw_code_usage({"a": z["indices"]}, 9)}
    )
    assert paths == [tmp_path / "codes.png"] and paths[0].read_bytes().startswith(b"\x89PNG")


# Leakage


def test_probes_agree_with_what_was_built_in():
    leak.check_environment_probe(distances=(0.0, 3.0), n=1000)
    leak.check_unequal_stores()
    leak.check_split_matters(trajectories=40)
    leak.check_what_stays()


def test_one_sidedness_is_the_derived_one(dots):
    leak.check_one_sidedness(lambda size: DotLam(leak=size), dots, n=256)
    assert math.isnan(
        leak.one_sidedness(np.ones((50, 3)), *np.random.default_rng(0).random((2, 50, 2)))
    )


def test_a_split_by_trajectory_tests_every_environment():
    environment, trajectory = np.repeat([0, 1, 2], 40), np.arange(120) // 10 % 4
    test = leak.held_out_rows(environment, trajectory)
    for e in range(3):
        rows = environment == e
        assert (
            set(trajectory[rows & test]).isdisjoint(trajectory[rows & ~test])
            and test[rows].sum() == 10
        )
    assert leak.held_out_rows(environment, trajectory, "random").sum() == 24
    with pytest.raises(UserError, match="two or more"):
        leak.held_out_rows(environment, 0 * trajectory)
    with pytest.raises(UserError, match="at least two environments"):
        leak.environment_probe(np.ones((120, 2)), 0 * environment, trajectory)


def test_the_leakage_command(tmp_path, outcome):
    from aclam.lam import LatentActionModel

    for name, seeds in (("a", range(3)), ("b", range(3, 6))):
        write_store(tmp_path / name, (synthetic_trajectory(seed, T=20, size=32) for seed in seeds))
    torch.manual_seed(0)
    LatentActionModel.from_preset("ac_lam_cpu").save_pretrained(tmp_path / "run" / "model")
    known = [
        {"content": fingerprint(read_store(tmp_path / n).trajectories), "held_out": [1, 3]}
        for n in "ab"
    ]
    write_json(tmp_path / "run" / "data.json", {"folders": known, "quantiles": {}})
    words = [
        "leakage",
        "--model",
        tmp_path / "run" / "model",
        "--n",
        "40",
        "--data",
        tmp_path / "a",
    ]
    status, out, err = outcome(main, *words, tmp_path / "b", "--json")
    row = json.loads(out)
    assert status == 0 and row["n"] == {"a": 40, "b": 40} and err.count("episodes 1 to 2") == 2
    assert (
        row["environment"]["random"]["test"] == 16 and row["environment"]["random"]["chance"] == 0.5
    )
    assert {"motion_r2", "place_r2", "goal_r2", "action_r2", "one_sidedness"} == set(
        row["probes"]["a"]
    )
    status, out, _ = outcome(main, *words, "--json")
    assert status == 0 and "environment" not in json.loads(out)
    status, out, err = outcome(main, *words, tmp_path / "a")
    assert (status, out) == (2, "") and "twice" in err
    known[1]["held_out"] = [2, 3]
    write_json(tmp_path / "run" / "data.json", {"folders": known, "quantiles": {}})
    status, out, err = outcome(main, *words, tmp_path / "b")
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert "b: 1 episode that the model was not trained on" in err
    status, out, err = outcome(main, "leekage")
    assert (status, out) == (2, "")


# --- a new metric ---------------------------------------------------------------------------------


def test_a_metric_is_one_row_of_the_table(monkeypatch):
    """A quotient of means needs a row: value, interval and line follow from it."""

    def straight(z_ij, z_jk, z_ik):
        return m.lengths(z_ik), m.lengths(z_ij) + m.lengths(z_jk)

    row = table.Metric("straightness", "Straightness", arrays=("z_ij", "z_jk", "z_ik"))
    row = dataclasses.replace(row, terms=straight)
    monkeypatch.setitem(table.METRICS, "straightness", row)
    monkeypatch.setattr(table, "LINES", (*table.LINES, "straightness"))
    got = measure.collect_latents(DotLam(), DotTriples(), 64)
    found = measure.structure_metrics(got, intervals=20)

    whole, legs = straight(*(got[name] for name in row.arrays))
    low, high = found["intervals"]["straightness"]
    assert found["straightness"] == pytest.approx(whole.mean() / legs.mean())
    assert low < found["straightness"] < high
    assert table.metrics_text(found).splitlines()[-1].startswith("straightness")


def a_film(path, seed):
    """A film of 20 frames; all have the same times."""
    with VideoWriter(path, fps=10) as out:
        out.append(synthetic_trajectory(seed, T=20, size=32).frames[range(20)])
    return path


def test_a_film_is_recognized_alone_in_a_copy_and_in_a_folder_that_has_grown(tmp_path):
    films = tmp_path / "films"
    films.mkdir()
    for n in range(3):
        a_film(films / f"robot_{n}.mp4", n)
    shots = open_dataset(films).trajectories
    told = folder_origin(str(films), shots, 2, [episode_digest(t) for t in shots])
    known = {"folders": [told], "embodiments": [""]}
    for n, was in enumerate(["trained", "trained", "held out"]):
        film = films / f"robot_{n}.mp4"
        copy = shutil.copy(film, tmp_path / f"copy_{n}.mp4")
        assert seen_before(open_dataset(film), known) == [was]
        assert seen_before(open_dataset(copy), known) == [was]
    with pytest.raises(UserError, match="trained on robot_0: measure it on others"):
        unseen(open_dataset(films / "robot_0.mp4"), known)

    stranger = a_film(films / "a_new_one.mp4", 7)
    assert seen_before(open_dataset(stranger), known) == ["other"]
    assert unseen(open_dataset(films), known) == [0, 3]
    older = {"folders": [{k: v for k, v in told.items() if k != "each"}], "embodiments": [""]}
    assert seen_before(open_dataset(tmp_path / "copy_0.mp4"), older) == ["unknown"]
    assert seen_before(open_dataset(tmp_path / "copy_0.mp4"), origin("ac_lam_cpu")) == ["other"]


@pytest.mark.parametrize("place", ["data.json", "config.json"])
def test_triples_span_what_those_of_the_training_spanned(tmp_path, outcome, place):
    """--triples.human-span-s 3: what the model is measured on spans 3 s, and the line says so."""
    film = a_film(tmp_path / "kitchen.mp4", 3)
    shutil.copytree(kept_result("models/ac_lam_cpu") / "model", tmp_path / "run" / "model")
    drawn = {"human_span_s": 1.5, "human_offset_s": [0.1, 1.5], "order": "ordered", "seed": 7}
    told = {"folders": [], "quantiles": {}}
    write_json(tmp_path / "run" / "data.json", told)
    write_json(
        tmp_path / "run" / place, {"triples": drawn} | (told if place == "data.json" else {})
    )
    words = ["--model", tmp_path / "run", "--data", film, "--n", 32, "--json"]
    status, _, err = outcome(main, *words)
    assert status == 0 and "32 unordered triples of kitchen, up to 1.5 s\n" in err
    triples = held_out_triples(open_dataset(film), 32, 64, origin=origin(tmp_path / "run"))
    spans = [np.ptp([triples.draw(n).i, triples.draw(n).j, triples.draw(n).k]) for n in range(64)]
    assert 11 < max(spans) <= 15 and triples.config.seed == 0
    longest = held_out_triples(open_dataset(film), 32, 64)
    assert max(np.ptp(longest.draw(n)[1:4]) for n in range(64)) > 15


def test_films_without_states_have_no_leakage_to_probe(tmp_path, outcome):
    films = tmp_path / "films"
    films.mkdir()
    for n in range(2):
        a_film(films / f"{n}.mp4", n)
    words = ["leakage", "--model", "ac_lam_cpu", "--n", 32, "--data"]
    status, out, err = outcome(main, *words, films)
    assert (status, out) == (2, "") and "films has no states: leakage needs states, or two" in err
    shutil.copytree(films, tmp_path / "others")
    a_film(tmp_path / "others" / "2.mp4", 2)
    status, out, _ = outcome(main, *words, films, tmp_path / "others")
    assert status == 0 and "environment, split by trajectory" in out


def test_three_frames_are_too_few_for_a_number(tmp_path, outcome):
    with VideoWriter(tmp_path / "short.mp4", fps=10) as out:
        out.append(synthetic_trajectory(0, T=3, size=32).frames[range(3)])
    words = ["--model", "ac_lam_cpu", "--data", tmp_path / "short.mp4", "--n", 64]
    status, out, err = outcome(main, *words)
    assert status == 0 and "3 different pairs of frames: too few for a number" in err
    assert "norm_correlation is undefined: " in err and "nan" not in out and "undefined" in out


def test_nearly_the_same_latent_for_every_pair_is_said():
    alike = {"identity": 1.0, "inverse": 1.99, "additivity": 1.0}
    last = table.metrics_text(alike).splitlines()[-1]
    assert last == "identity near 1 and inverse near 2: nearly the same latent for every pair"
    assert table.nearly_alike(alike | {"identity": 1.2}), "beyond 1 is worse"
    kept = json.loads(kept_result("compare.json").read_text())["table_1"]
    found = [
        (store, preset)
        for store, rows in kept.items()
        for preset, row in rows.items()
        if table.nearly_alike({k: row[k]["mean"] for k in ("identity", "inverse")})
    ]
    assert found == [("libero", "lapa_cpu")]  # a world that it has not seen


def test_one_episode_has_no_intervals(outcome, tmp_path):
    """Resampled by episode: of one there is no spread."""
    write_store(tmp_path / "store", [synthetic_trajectory(n, T=14, size=32) for n in range(6)])
    words = ["--model", "ac_lam_cpu", "--data", tmp_path / "store", "--n", 16, "--intervals", 50]
    status, out, err = outcome(main, *words, "--first", "5", "--json")
    assert status == 0 and "intervals" not in json.loads(out)
    assert "1 episode to measure on: no intervals" in err
    assert "triples of episode 5, up to 3 s\n" in err
    assert "intervals" in json.loads(outcome(main, *words, "--json")[1])
