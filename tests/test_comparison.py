"""The comparison of latent action models: budgets, tables, and what is said where the order is
another.
"""

import math
import subprocess
import sys
import time
from dataclasses import replace
from unittest.mock import Mock

import pytest

from aclam.core import UserError, read_json
from aclam.data.store import write_store
from aclam.data.trajectory import synthetic_trajectory
from aclam.kept import kept_result
from aclam.structure.table import TABLE_1
from aclam.studies import comparison as c
from aclam.studies import tables
from aclam.train.lam import main as train_lam


def config(**changes) -> c.CompareConfig:
    return c.CompareConfig(
        **{"data": ("a", "b"), "ood": ("c",), "models": ("ac_lam_cpu", "no_ac_cpu")} | changes
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"models": ("ac_lam_cpo",)}, 'Did you mean "ac_lam_cpu"'),
        ({"models": ("ac_lam_cpu", "no_ac_paper")}, "choose one kind"),
        ({"models": ("ac_lam_cpu", "ac_lam_cpu")}, "different presets"),
        ({"ood": ("elsewhere/a",)}, "same folder name"),
        ({"data": ()}, "which data"),
        ({"seeds": 0}, "--seeds: int >= 1 expected"),
    ],
)
def test_comparisons_that_cannot_be_made(changes, words):
    with pytest.raises(UserError, match=words):
        c.check_config(config(**changes))


def test_every_model_gets_the_same_budget():
    def option(words, name):
        return words[words.index(name) + 1]

    budgets = {
        tuple(
            option(c.train_words(config(steps=340), m, 2), f"--train.{k}")
            for k in ("steps", "batch-size", "seed")
        )
        for m in ("ac_lam_cpu", "no_ac_cpu")
    }
    assert len(budgets) == 1 and next(iter(budgets))[0] == "340"
    words = c.train_words(config(steps=340), "ac_lam_cpu", 0)
    assert option(words, "--model.bottleneck.continuous-steps") == "220"  # 2200 of 3400


def test_no_time_no_training(tmp_path):
    begun = time.monotonic()
    assert (
        list(c.train_all(config(out=tmp_path), deadline=0.0)) == []
        and time.monotonic() - begun < 30
    )


ALL = ("ac_lam_cpu", "no_ac_cpu", "villa_x_cpu", "potential_lam_cpu", "lapa_cpu", "univla_cpu")


def one_outside(config, deadline):
    """The first model is trained by a process of its own, as the command does with all; the others
    here, for speed.
    """
    yield from c.train_all(replace(config, models=ALL[:1]), deadline)
    for name in ALL[1:]:
        train_lam(c.train_words(config, name, 0))
        yield name, 0


@pytest.mark.timeout(900)  # a process of its own takes its time to begin on a busy machine
def test_the_whole_path(tmp_path, monkeypatch):
    """Tables 1 and 2 and the figures of six models; then nothing is redone."""
    quick = c.quick(tmp_path, models=ALL, steps=2, batch_size=4, n=24, probe_n=40)
    results = c.compare(quick, one_outside)
    assert results["missing"] == [] and set(results["table_1"]) == {"left", "right", "elsewhere"}
    for rows in results["table_1"].values():
        assert tuple(rows) == ALL and all(row["watch"] == "stable" for row in rows.values())
        assert all(
            math.isfinite(rows[m][k]["mean"])
            for m in ALL
            for k in ("additivity", "identity", "inverse")
        )
        assert (
            rows["potential_lam_cpu"]["additivity"]["mean"]
            < 1e-9
            < rows["ac_lam_cpu"]["additivity"]["mean"]
        )
    probes = results["table_2"]
    assert tuple(probes) == (*ALL, tables.MOTION) and probes["lapa_cpu"]["chance"] == pytest.approx(
        1 / 3
    )
    figures = {f.stem for f in (quick.out / "figures").glob("*.png")}
    assert figures == {
        f"{kind}_{s}" for kind in ("norm_trajectory", "motion_transfer") for s in results["table_1"]
    }
    assert read_json(quick.out / "results.json")["tables"] == (quick.out / "tables.md").read_text(
        encoding="utf-8"
    )
    monkeypatch.setattr(c, "start_training", None)  # whoever calls it fails
    assert c.compare(quick)["table_1"] == results["table_1"]


def test_one_episode_to_measure_on_is_said_before_anything_is_trained(tmp_path):
    quick = c.quick(tmp_path)
    few = [synthetic_trajectory(s, T=12, size=32) for s in range(12)]
    for name, episodes in (("few", few), ("one", few[:1])):
        write_store(tmp_path / name, episodes)
    nothing = Mock(side_effect=AssertionError("a training has begun"))
    cases = {
        r"few: 1 episode to measure on.*\(0.1 of 12\); give 20 or more": {
            "data": (*quick.data, tmp_path / "few")
        },
        "one: 1 episode to measure on, a comparison needs 2": {"ood": (tmp_path / "one",)},
    }
    for said, changes in cases.items():
        with pytest.raises(UserError, match=said):
            c.compare(replace(quick, **changes), nothing)
    assert not quick.out.exists()


def test_more_steps_are_another_training(tmp_path):
    run = c.run_of(config(out=tmp_path), "ac_lam_cpu", 0)
    run.mkdir(parents=True)
    (run / "data.json").write_text("{}")
    (run / "result.json").write_text('{"steps": 300, "seconds": 1}')
    assert c.is_trained(config(out=tmp_path, steps=300), "ac_lam_cpu", 0)
    assert not c.is_trained(config(out=tmp_path, steps=600), "ac_lam_cpu", 0)


def test_a_training_that_fails_does_not_stop_the_others(tmp_path, monkeypatch):
    def start(command, log):
        log.parent.mkdir(parents=True)
        log.write_text("1 %\r2 %\nthe disk is full\n")
        return subprocess.Popen(
            [sys.executable, "-c", f"raise SystemExit({int('no_ac_cpu' in command)})"]
        )

    monkeypatch.setattr(c, "start_training", start)
    done = []
    with pytest.raises(UserError, match="no_ac_cpu, seed 0 failed: the disk is full"):
        done += c.train_all(config(out=tmp_path, models=("no_ac_cpu", "ac_lam_cpu"), seeds=1))
    assert [p.parent.name for p in tmp_path.rglob("train.log")] and (
        tmp_path / "runs/ac_lam_cpu/seed0"
    ).exists()


def test_a_comparison_that_was_cut_off_can_be_read(tmp_path, monkeypatch):
    rows = {k: 0.5 for k in TABLE_1}
    one = {
        "structure": {"a": rows},
        "leakage": {},
        "stability": "stable",
        "parameters": 1,
        "steps": 2,
        "seconds": 3.0,
    }
    monkeypatch.setattr(c, "inputs_of", lambda _: {})  # there are no stores
    monkeypatch.setattr(c, "check_held_out", lambda _: None)
    monkeypatch.setattr(c, "measure_run", lambda *_: one)
    monkeypatch.setattr(c, "draw", lambda *_: None)  # there is no model to draw with
    assert (
        c.compare(
            config(out=tmp_path / "out", seeds=1, data=(tmp_path / "data",)),
            lambda *_: iter([("ac_lam_cpu", 0)]),
        )
        is None
    )
    found = read_json(tmp_path / "out" / "results.json")
    assert (
        found["missing"] == ["no_ac_cpu, seed 0"]
        and found["table_1"]["a"]["ac_lam_cpu"]["inverse"]["mean"] == 0.5
    )


def test_intervals_of_seeds_and_episodes():
    tables.check_combine()
    one = tables.combine([0.4], [(0.3, 0.5)])
    assert (one["low"], one["high"]) == pytest.approx((0.3, 0.5)) and tables.cell(one).endswith("*")
    same = tables.combine(
        [0.4] * 3, [(0.3, 0.5)] * 3
    )  # episodes are shared: more seeds do not narrow their part
    assert (same["low"], same["high"]) == pytest.approx((0.3, 0.5))
    assert math.isnan(tables.combine([None, 1.0], [None, None])["mean"])


def test_a_collapsed_model_is_named():
    good = {"perplexity_per_token": [9.0, 12.0], "reconstruction": 0.2, "norm": 3.0}
    assert tables.collapsed(good) == "" and "1.20 codes" in tables.collapsed(
        good | {"perplexity_per_token": [1.0, 1.4]}
    )
    assert "copying" in tables.collapsed(good | {"reconstruction": 1.0})
    assert (
        tables.collapsed(good | {"norm": 0.0})
        == tables.collapsed(good | {"norm": math.nan})
        == "latents have vanished"
    )


def test_only_clear_differences_count():
    cell = {"mean": 0.1, "low": 0.05, "high": 0.15, "seeds": 3}
    far = cell | {"mean": 0.4, "low": 0.3, "high": 0.5}
    table = {
        "s": {
            "ac_lam_cpu": {m: far for m in TABLE_1},
            "villa_x_cpu": {m: cell for m in TABLE_1},
        }
    }
    assert (
        tables.order_differs(table)[0]
        == "s, additivity: villa-X ahead of AC-LAM; in the paper AC-LAM is ahead"
    )
    table["s"]["villa_x_cpu"]["additivity"] = far
    assert "no clear order of AC-LAM and villa-X" in tables.order_differs(table)[0]
    assert tables.order_differs({"s": {"ac_lam_cpu": table["s"]["ac_lam_cpu"]}}) == []


def test_a_store_is_held_against_the_papers_data_of_its_kind():
    """In identity AC-LAM leads in distribution, and villa-X on LIBERO; their mean says nothing."""
    near = {"mean": 0.1, "low": 0.05, "high": 0.15, "seeds": 3}
    far = near | {"mean": 0.4, "low": 0.3, "high": 0.5}
    table = {
        "s": {"ac_lam_cpu": {m: near for m in TABLE_1}, "villa_x_cpu": {m: far for m in TABLE_1}}
    }
    assert not [line for line in tables.order_differs(table) if "identity" in line]
    assert [line for line in tables.order_differs(table, ["s"]) if "identity" in line] == [
        "s, identity: AC-LAM ahead of villa-X; in the paper villa-X is ahead"
    ]


def test_the_kept_order_is_what_the_kept_tables_say():
    kept = read_json(kept_result("compare.json"))
    assert sorted(kept["order"]) == sorted(tables.order_differs(kept["table_1"], kept["ood"]))


def test_the_kept_verdicts_are_those_of_the_kept_tables():
    kept = read_json(kept_result("compare.json"))
    judged = {v["claim"]: v["met"] for v in tables.verdicts(kept)}
    assert {v["claim"]: v["met"] for v in kept["verdicts"]} == judged


def test_first_is_apart_from_every_method_not_from_villa_x_alone():
    def at(mean: float, half: float) -> dict:
        return {"mean": mean, "low": mean - half, "high": mean + half, "seeds": 3}

    def row(cells: dict) -> dict:
        return {"norm_correlation_uniform": cells, "note": "", "watch": "stable"}

    rows = {"AC-LAM": row(at(0.5, 0.06)), "villa-X": row(at(0.14, 0.19)), "LAPA": row(at(0, 0.1))}
    assert tables._first_goal("s", "norm_correlation_uniform", rows)["met"] is True
    rows["LAPA"] = row(at(-0.07, 0.52))
    assert tables._first_goal("s", "norm_correlation_uniform", rows)["met"] is None


def test_goals_are_judged_by_code():
    near, far = ({"mean": x, "low": x - 0.05, "high": x + 0.05, "seeds": 2} for x in (0.1, 0.4))
    good = dict.fromkeys(TABLE_1, near) | {
        "norm_correlation_uniform": far,
        "note": "",
        "watch": "stable",
    }
    bad = dict.fromkeys(TABLE_1, far) | {
        "norm_correlation_uniform": near,
        "note": "",
        "watch": "collapse",
    }
    table = {"table_1": {"s": {"ac_lam_cpu": good, "villa_x_cpu": bad}}, "table_2": {}}
    assert [v["met"] for v in tables.verdicts(table)] == [True, True, True, True, True, False]
    table["table_1"]["s"] = {"ac_lam_cpu": bad, "villa_x_cpu": good}
    assert not any(v["met"] for v in tables.verdicts(table))
    near_tie = dict.fromkeys(TABLE_1, near | {"mean": 0.11}) | {"note": "", "watch": "stable"}
    table["table_1"]["s"] = {"ac_lam_cpu": good, "villa_x_cpu": near_tie}
    assert [v["met"] for v in tables.verdicts(table)[:3]] == [False, False, None]
    table["table_1"]["s"] = {"ac_lam_cpu": good, "villa_x_cpu": bad | {"note": "collapsed"}}
    assert [v["met"] for v in tables.verdicts(table)] == [None] * 5 + [
        False
    ]  # won against a model that learned nothing
    short = good | {"additivity": near | {"mean": 0.3}}  # ahead, and not by the paper's factor
    table["table_1"]["s"] = {"ac_lam_cpu": short, "villa_x_cpu": bad | {"note": "collapsed"}}
    assert tables.verdicts(table)[0]["met"] is None
    table["table_1"]["s"] = {"ac_lam_cpu": short, "villa_x_cpu": bad}
    assert tables.verdicts(table)[0]["met"] is False
