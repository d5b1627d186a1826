"""Agent and other in the latent: the theory, the world of pixels, the probe, the command."""

import numpy as np
import pytest
import torch

from aclam.core import UserError, read_json
from aclam.studies import two_papers
from aclam.studies.two_papers import (
    LABEL_WEIGHT,
    TRIALS,
    PixelTraining,
    TwoPapersConfig,
    draw_film,
    explained,
    pictures,
    pixel_gain,
    predicted,
    spots,
    trial_lambda,
)


def test_thresholds_of_the_theory():
    assert predicted(0.99, 2) == (1.0, 0.0) and predicted(1.01, 2) == (0.0, 1.0)
    one = trial_lambda(0.01)
    edge = (1 + one) ** 0.5
    assert predicted(0.99 * edge, 2, one) == (1.0, 0.0)
    assert predicted(1.01 * edge, 2, one) == (0.0, 1.0)
    assert predicted(0.5, 3) == (1.0, 0.5) and predicted(0.0, 1) == (0.5, 0.0)
    assert trial_lambda(0.0) == 0 and np.isclose(trial_lambda(1.0), LABEL_WEIGHT)


def test_a_spot_is_where_it_is_put():
    picture = spots(torch.tensor([[3.0, 6.0]])).view(10, 10)
    assert picture.argmax() == 36 and picture.max() == 1
    middle = (picture.sum(1) * torch.arange(10)).sum() / picture.sum()
    assert abs(float(middle) - 3) < 0.01


def test_the_gain_is_what_a_direction_of_motion_explains():
    """After scaling, the agent's unpredicted error is 1 in each of two directions."""
    gain = pixel_gain()
    film = draw_film(4000, torch.Generator().manual_seed(1), gain)
    places = torch.tensor([[4.0, 5.0]]) + torch.zeros(4000, 2)
    step = film.action * 1.25 / 3**0.5
    moved = spots(places + step) / gain**0.5
    assert abs(float(moved.var(0).sum()) - 2) < 0.2


def test_the_other_is_as_bright_as_its_strength():
    film = draw_film(20, torch.Generator().manual_seed(0), 1.0)
    o_i, *_ = pictures(film, torch.tensor([0.0, 2.0])[:, None, None])
    assert o_i.shape == (2, 20, 200) and (o_i[0, :, 100:] == 0).all()
    assert torch.equal(o_i[1, :, 100:], 2 * film.other[0])
    assert torch.equal(o_i[0, :, :100], o_i[1, :, :100])


def test_the_probe_scores_what_is_there():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3000, 2))
    assert np.isclose(explained(x, x @ rng.standard_normal((2, 2))), 1)
    half = explained(x[:, :1], x)
    assert abs(half - 0.5) < 0.05
    assert explained(x, rng.standard_normal((3000, 2))) < 0.01


def test_the_command_goes_on_where_it_was(tmp_path, capsys):
    out = tmp_path / "t.json"
    words = ["--out", str(out), "--train.updates", "2", "--train.hidden", "4", "--worlds", "pixels"]
    two_papers.main([*words, "--widths", "1", "--seeds", "1"])
    first = read_json(out)
    two_papers.main([*words, "--widths", "1", "2", "--seeds", "1"])
    both = read_json(out)
    assert len(first["groups"]) == 2 and len(both["groups"]) == 4
    assert {k: both["groups"][k] for k in first["groups"]} == first["groups"]
    assert len(both["commands"]) == 2 and both["commands"][0] == first["commands"][0]
    assert both["cpu_seconds"] >= first["cpu_seconds"]
    for group in both["groups"].values():
        assert len(group["rows"]) == len(TRIALS)
    assert "pixels, d_z 1" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        two_papers.main([*words[:2], "--train.updates", "3"])
    assert stop.value.code == 2 and read_json(out) == both


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"worlds": ("mars",)}, "linear, pixels"),
        ({"widths": (0,)}, "between 1 and 16"),
        ({"seeds": 0}, "seeds"),
        ({"train": PixelTraining(updates=0)}, "update"),
    ],
)
def test_bad_input_is_one_line(tmp_path, changes, says):
    config = TwoPapersConfig(out=str(tmp_path / "t.json"), **changes)
    with pytest.raises(UserError, match=says):
        two_papers.run_papers(config)


@pytest.mark.slow
def test_labels_and_not_composition_give_the_latent_back():
    """A short training on both sides of the thresholds, with composition."""
    rows = two_papers.pixel_rows(2, True, 3, PixelTraining(updates=1500))
    by = {(r["strength"], r["label_ratio"]): r for r in rows}
    assert by[0.8, 0.0]["agent"] > 0.7 > 0.3 > by[0.8, 0.0]["other"]
    assert by[2.0, 0.0]["agent"] < 0.3 < 0.7 < by[2.0, 0.0]["other"]
    assert by[1.25, 0.01]["agent"] > 0.7 and by[2.0, 0.1]["agent"] > 0.7
