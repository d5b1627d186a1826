"""The moving pictures: that they move as the numbers say, and stand still where that is wished."""

import re
from dataclasses import replace

import browser
import numpy as np
import pytest
import torch

from aclam.policy.flow import GaussianMixture, euler, exact_field
from aclam.studies import animations
from aclam.studies.animations import (
    CODES,
    DESIGNS,
    Dots,
    Panel,
    as_points,
    as_text,
    check_film,
    codebook_picture,
    flow_paths,
    flow_picture,
    moving_picture,
    on_panel,
    thickness,
    used,
    watch_training,
)


def test_a_training_is_watched_from_its_first_step():
    """Without codes nothing is counted; with codes every pair chooses one."""
    late = replace(DESIGNS["cured"], continuous_steps=2)
    first, last = watch_training(late, steps=4, every=4)
    assert (
        "codes" not in first and used(first) == 0 and first["error"] == pytest.approx(1, abs=0.01)
    )
    assert as_points(last["codes"]).shape == (CODES, 2) and sum(last["chosen"]) == 256
    assert as_points(last["latents"]).shape == (100, 2)
    again = watch_training(late, steps=4, every=4)[1]
    assert again == last


def test_points_are_written_to_hundredths():
    points = np.random.default_rng(0).normal(size=(7, 2))
    assert np.abs(as_points(as_text(points)) - points).max() <= 0.005


def reading(step, chosen, error):
    points = as_text(np.array([[0.1 * step, 0.0], [0.5, 0.5], [0.3, 0.1]]))
    codes = as_text(np.full((CODES, 2), 0.5))
    return {"step": step, "error": error, "latents": points, "codes": codes, "chosen": chosen}


def film(collapsed=2, error=0.2):
    few = [100] * collapsed + [0] * (CODES - collapsed)
    ends = {
        "collapses": (few, 0.7),
        "all in use": ([16] * CODES, 0.7),
        "cured": ([16] * CODES, error),
    }
    return {
        "designs": {name: [reading(0, c, 1.0), reading(1, c, e)] for name, (c, e) in ends.items()}
    }


def test_a_film_that_does_not_show_it_is_refused():
    assert check_film(film())["collapses"] == (2, 0.7)
    for other in (film(collapsed=9), film(error=0.6)):
        with pytest.raises(AssertionError):
            check_film(other)


def test_every_dot_passes_through_its_places():
    places = np.random.default_rng(0).uniform(-2, 2, (4, 3, 2))
    panel = Panel("p", [Dots(places, 2.0, ["red"] * 3)], list("abcd"))
    picture = moving_picture({"what is seen": panel}, "below")
    ways = re.findall(r'type="translate" values="([^"]*)"', picture)
    want = on_panel(places, panel.reach).transpose(1, 0, 2)
    got = np.array([[at.split() for at in way.split(";")] for way in ways], dtype=float)
    np.testing.assert_allclose(got[:, :4], want)
    assert (got[:, 4:] == got[:, 3:4]).all() and 'aria-label="what is seen"' in picture
    assert "\n" not in picture


def test_paths_are_those_of_euler():
    mixture = GaussianMixture()
    field = exact_field(mixture, 0.001)
    noise = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    places = flow_paths(field, noise, 8)
    assert places.shape == (9, 50, 2)
    np.testing.assert_allclose(places[-1], euler(field, noise, 8), atol=1e-6)
    assert flow_picture(places, mixture).count('class="moving"') == 50 + 9


@pytest.mark.skipif(not browser.PROGRAM, reason="no Chromium on this machine")
def test_it_moves_stops_and_respects_a_wish_for_less_motion(tmp_path):
    page_file = tmp_path / "film.html"
    page_file.write_text("<!doctype html><title>film</title>" + codebook_picture(film()))
    where = "[...document.querySelectorAll('circle.moving')].map((c) => c.getCTM().e).join()"
    wait = "new Promise((done) => setTimeout(done, 400))"
    with browser.Chromium() as chromium:
        page = chromium.page(360, 900)
        page.open(page_file)
        before = page.evaluate(where)
        page.evaluate(wait)
        assert page.evaluate(where) != before
        page.evaluate("document.querySelector('button').click()")
        stopped = page.evaluate(where)
        page.evaluate(wait)
        assert page.evaluate(where) == stopped
        assert page.evaluate("document.documentElement.scrollWidth") <= 360

        still = chromium.page(360, 900, still=True)
        still.open(page_file)
        shown = "(c) => [...document.querySelectorAll(c)].filter((x) => x.getClientRects().length).length"
        assert still.evaluate(f"({shown})('.moving, button')") == 0
        assert still.evaluate(f"({shown})('circle.still')") == 3 * (3 + CODES)
        assert page.problems() == still.problems() == []


def test_the_designs_differ_in_the_bottleneck_alone():
    configs = [animations.tiny(b) for b in DESIGNS.values()]
    assert len({replace(c, bottleneck=configs[0].bottleneck) for c in configs}) == 1


def test_a_line_has_no_thickness_and_a_disc_has():
    x = np.linspace(-1, 1, 50)
    line = as_text(np.stack([x, 2 * x], 1))
    disc = as_text(np.random.default_rng(0).normal(size=(500, 2)))
    assert thickness({"latents": line}) < 0.02 and thickness({"latents": disc}) > 0.9
