"""The watch on constructed and on real collapses and explosions; the designs of Table 5; the study
command.
"""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from aclam.core import UserError
from aclam.data.sampling import TripleConfig
from aclam.data.store import write_store
from aclam.data.trajectory import synthetic_trajectory
from aclam.data.triples import TripleDataset
from aclam.lam import LatentActionModel
from aclam.lam.objective import ObjectiveConfig
from aclam.structure.watch import Watch, WatchConfig
from aclam.studies import ablation
from aclam.studies.ablation import DESIGNS, SMALL, ShortRun, bottlenecks, designs, train_short

TINY = dict(image_size=16, idm_width=32, fdm_width=32, fdm_depth=1, tokens=2)


@pytest.fixture(scope="module")
def films():
    return [synthetic_trajectory(seed, T=16, size=16) for seed in range(6)]


@pytest.fixture(scope="module")
def triples(films):
    return TripleDataset(films, TripleConfig(), image_size=16)


def readings(latent, steps=(0, 100, 200, 300)) -> str:
    watch = Watch(torch.empty(0))
    for s in steps:
        watch.note(
            s,
            {"z": latent(s / 100, torch.randn(64, 8, generator=torch.Generator().manual_seed(1)))},
        )
    return watch.verdict


@pytest.mark.parametrize(
    ("latent", "verdict"),
    [
        (lambda t, x: x, "stable"),
        (lambda t, x: x * (1 + 2 * t), "stable"),  # growth that a healthy training has
        (lambda t, x: 0.3 * x if t else x, "stable"),  # a constant that goes
        (lambda t, x: x * 10**-t, "collapse"),
        (lambda t, x: 0 * x, "collapse"),
        (lambda t, x: x if t == 0 else 2 + 0.01 * x, "collapse"),  # the same for every pair
        (lambda t, x: x * 10**t, "explode"),
        (lambda t, x: x * (1 if t < 3 else math.inf), "explode"),
        (
            lambda t, x: x * 100 if t == 1 else x,
            "explode",
        ),  # not forgotten when it comes down again
    ],
)
def test_constructed_cases(latent, verdict):
    assert readings(latent) == verdict


def test_a_fresh_model_may_be_alike_but_not_for_long():
    watch = Watch(torch.empty(0), WatchConfig(settle=50))
    alike = {"z": 1 + 0.001 * torch.randn(64, 8)}
    assert watch.note(0, alike)["collapsed"] == 0 and watch.note(49, alike)["collapsed"] == 0
    assert watch.note(50, alike)["collapsed"] == 1


def test_either_side_of_the_bottleneck_may_fail():
    watch, x = Watch(torch.empty(0)), torch.randn(64, 8)
    watch.note(0, {"z": x, "pre": x})
    assert watch.note(200, {"z": x, "pre": 0.01 * x})["collapsed"] == 1


@pytest.mark.parametrize(
    ("design", "verdict"),
    [
        ("IDM, no stop", "collapse"),
        ("IDM, stop z_ij + z_jk", "explode"),
        ("default (FDM, post-VQ)", "stable"),
    ],
)
def test_real_trainings_are_caught(design, verdict, triples):
    """Sixty steps with a heavy weight on the additive loss: what Table 5 calls collapse and
    explode, and the default.
    """
    torch.manual_seed(0)
    objective = replace(DESIGNS[design], lambda_ac=20.0 if "IDM" in design else 1.0)
    quiet = replace(SMALL.bottleneck, continuous_steps=1000)
    lam = LatentActionModel(replace(SMALL, **TINY, objective=objective, bottleneck=quiet))
    watch = Watch(triples.batch(range(64))["frames"])
    train_short(lam, triples, ShortRun(steps=60, batch_size=16, lr=3e-3, every=20), watch)
    assert watch.verdict == verdict, watch.readings


def test_normalised_latents_can_neither_collapse_nor_explode_in_scale(triples):
    torch.manual_seed(0)
    objective = ObjectiveConfig(lambda_ac=20.0, ac_form="idm", ac_stop="sum")
    fixed = replace(SMALL.bottleneck, continuous_steps=1000, normalize="global", momentum=0.5)
    lam = LatentActionModel(replace(SMALL, **TINY, objective=objective, bottleneck=fixed))
    watch = Watch(triples.batch(range(64))["frames"])
    train_short(lam, triples, ShortRun(steps=60, batch_size=16, lr=3e-3, every=20), watch)
    assert watch.readings[-1]["norm"] == pytest.approx(1, abs=0.5)


def test_table_5_differs_in_the_objective_only():
    models = designs()
    assert len({replace(c, objective=ObjectiveConfig()) for c in models.values()}) == 1
    assert len({c.objective for c in models.values()}) == 5
    assert {c.bottleneck.kind for c in bottlenecks().values()} == {
        "vq",
        "rvq",
        "nsvq",
        "fsq",
        "vae",
        "none",
    }


def test_forms_differ_in_the_form_or_the_objective_and_not_in_size():
    models = ablation.forms()
    sizes = ("idm_width", "idm_depth", "fdm_width", "fdm_depth", "tokens", "code_dim")
    twin = models["twin, no AC"]
    for name, config in models.items():
        assert [getattr(config, s) for s in sizes] == [getattr(twin, s) for s in sizes], name
        assert config.bottleneck.codes in (31, 32)
        whole = ablation.budget(name, models, ShortRun())
        continuous = config.bottleneck.continuous_steps / whole.steps
        assert continuous == pytest.approx(0.65, abs=0.01), name
        assert (whole == ShortRun()) == (not name.endswith(ablation.EQUAL_WORK))
        assert ("signed" in name) == config.bottleneck.signed == LatentActionModel(config).is_odd
    assert replace(models["odd"], odd=False) == twin
    assert replace(models["ALAM"], objective=twin.objective) == twin


def test_the_command_writes_every_row_once_and_goes_on(films, tmp_path, monkeypatch, capsys):
    write_store(
        tmp_path / "data", [*films, *(synthetic_trajectory(9 + n, T=16, size=16) for n in range(6))]
    )

    def two():
        return {n: replace(c, **TINY) for n, c in list(designs().items())[:2]}

    monkeypatch.setitem(ablation.STUDIES, "table5", two)
    words = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "found.json"), "--json"]
    words += "--run.steps 4 --run.batch-size 4 --run.every 2 --run.n 32".split()
    ablation.main(words)
    printed = capsys.readouterr()
    rows = json.loads(printed.out)["rows"]
    assert (
        list(rows) == [f"{name}, seed 0" for name in list(DESIGNS)[:2]]
        and printed.out.count("\n") == 1
    )
    assert all(row["readings"][-1]["step"] == 4 and "additivity" in row for row in rows.values())
    ablation.main(words)
    assert capsys.readouterr().err == ""  # nothing was trained again
    with pytest.raises(SystemExit):
        ablation.main([*words, "--run.steps", "5"])
    assert "another study or budget" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["bogus", "cuda:99"])
def test_a_device_that_is_none_is_refused_before_anything_is_read(refused, tmp_path, device):
    words = ["--data", "nowhere", "--out", tmp_path / "found.json", "--device", device]
    refused(ablation.main, words, device)
    assert not (tmp_path / "found.json").exists()


@pytest.mark.parametrize("changes", [dict(fall=1.0), dict(rise=1.0), dict(alike=2.0)])
def test_bad_settings_are_one_line(changes):
    with pytest.raises(UserError) as error:
        WatchConfig(**changes)
    assert "\n" not in str(error.value)


def test_the_study_of_the_preset_trains_only_what_is_missing(tmp_path, monkeypatch, capsys):
    kept = Path(__file__).parents[1] / "nbs/results/bottlenecks.json"
    shutil.copyfile(kept, tmp_path / "found.json")
    monkeypatch.setattr(ablation, "train_lam", None)  # whoever calls it fails
    words = ["--study", "channels", "--data", "data/emoji", "--out", str(tmp_path / "found.json")]
    ablation.main([*words, "--json"])
    assert json.loads(capsys.readouterr().out) == json.loads(kept.read_text())
    with pytest.raises(SystemExit):
        ablation.main([*words, "--run.n", "8"])
    assert "another study or budget" in capsys.readouterr().err
