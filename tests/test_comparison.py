"""The comparison of latent action models: budgets, tables, and what is said where the order is another."""

import math
import time

import pytest

from aclam.core import UserError
from aclam.structure import comparison as c


def config(**changes) -> c.CompareConfig:
    return c.CompareConfig(**{"data": ("a", "b"), "ood": ("c",), "models": ("ac_lam_cpu", "no_ac_cpu")} | changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"models": ("ac_lam_cpo",)}, 'Did you mean "ac_lam_cpu"'),
        ({"models": ("ac_lam_cpu", "no_ac_paper")}, "choose one kind"),
        ({"models": ("ac_lam_cpu", "ac_lam_cpu")}, "different presets"),
        ({"ood": ("elsewhere/a",)}, "same folder name"),
        ({"data": ()}, "which data"),
        ({"seeds": 0}, "--seeds is at least 1"),
    ],
)
def test_comparisons_that_cannot_be_made(changes, words):
    with pytest.raises(UserError, match=words):
        c.check_config(config(**changes))


def test_every_model_gets_the_same_budget():
    def option(words, name):
        return words[words.index(name) + 1]

    budgets = {
        tuple(option(c.train_words(config(steps=340), m, 2), f"--train.{k}") for k in ("steps", "batch-size", "seed"))
        for m in ("ac_lam_cpu", "no_ac_cpu")
    }
    assert len(budgets) == 1 and next(iter(budgets))[0] == "340"
    words = c.train_words(config(steps=340), "ac_lam_cpu", 0)
    assert option(words, "--model.bottleneck.continuous-steps") == "220"  # 2200 of 3400


def test_no_time_no_training(tmp_path):
    begun = time.monotonic()
    assert c.train_all(config(out=tmp_path), deadline=0.0) is False and time.monotonic() - begun < 5


def test_intervals_of_seeds_and_episodes():
    c.check_combine()
    one = c.combine([0.4], [(0.3, 0.5)])
    assert (one["low"], one["high"]) == pytest.approx((0.3, 0.5)) and c.cell(one).endswith("*")
    same = c.combine([0.4] * 3, [(0.3, 0.5)] * 3)  # episodes are shared: more seeds do not narrow their part
    assert (same["low"], same["high"]) == pytest.approx((0.3, 0.5))
    assert math.isnan(c.combine([None, 1.0], [None, None])["mean"])


def test_a_collapsed_model_is_named():
    good = {"perplexity_per_token": [9.0, 12.0], "reconstruction": 0.2, "norm": 3.0}
    assert c.collapsed(good) == "" and "1.20 codes" in c.collapsed(good | {"perplexity_per_token": [1.0, 1.4]})
    assert "copying" in c.collapsed(good | {"reconstruction": 1.0})
    assert c.collapsed(good | {"norm": 0.0}) == c.collapsed(good | {"norm": math.nan}) == "latents have vanished"


def test_only_clear_differences_count():
    cell = {"mean": 0.1, "low": 0.05, "high": 0.15, "seeds": 3}
    far = cell | {"mean": 0.4, "low": 0.3, "high": 0.5}
    table = {"s": {"ac_lam_cpu": {m: far for m in c.METRICS}, "villa_x_cpu": {m: cell for m in c.METRICS}}}
    assert c.order_differs(table)[0] == "s, additivity: villa_x_cpu ahead here, AC-LAM ahead in the paper"
    table["s"]["villa_x_cpu"]["additivity"] = far
    assert "a tie here" in c.order_differs(table)[0]
    assert c.order_differs({"s": {"ac_lam_cpu": table["s"]["ac_lam_cpu"]}}) == []
