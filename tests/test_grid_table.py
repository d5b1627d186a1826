"""The linear paper's Table 1: the world, what the scores mean, the models, the losses, the command."""

import math

import pytest
import torch
import torch.nn.functional as F

from aclam.core import UserError, read_json
from aclam.studies import grid_table
from aclam.studies.grid_lam import GridTraining, as_matrix, encode, taps
from aclam.studies.grid_table import (
    ACTIONS,
    NUMBERS,
    PAPER,
    PLACES,
    SETTINGS,
    SNAKE,
    GridTableConfig,
    Setting,
    Training,
    as_table,
    best_codes,
    best_decoder,
    check_scores,
    every_transition,
    grid_loss,
    losses,
    moved,
    over_seeds,
    shifted,
    signal,
    stacks,
    train_grid,
    triples,
)

TINY = GridTraining(updates=2, batch=4, channels=2, code_dim=3)


def drawn(settings, n=400, seed=0):
    u = torch.rand(1, NUMBERS, n, generator=torch.Generator().manual_seed(seed))
    return triples(u.expand(len(settings), -1, -1), settings)


def test_the_grid_is_periodic_and_the_snake_closed():
    assert int(moved(torch.tensor(0), torch.tensor(1))) == 8  # up from the top row
    assert int(moved(torch.tensor(3), torch.tensor(4))) == 0  # right from the last column
    place = torch.tensor(0)
    seen = {int(place := moved(place, SNAKE[place])) for _ in range(PLACES)}
    assert seen == set(range(PLACES)) and int(place) == 0


def test_frames_are_what_the_setting_says():
    S = drawn([SETTINGS["no noise"], SETTINGS["high noise"], SETTINGS["correlated policy"]])
    assert (S.frames[:, :, :, :PLACES].sum(-1) == 1).all()
    assert (S.frames[0, :, :, PLACES:] == 0).all()
    assert set(S.frames[1, :, :, PLACES:].unique().tolist()) == {0.0, 2.0}
    place = S.frames[:, :, :, :PLACES].argmax(-1)
    assert torch.equal(moved(place[:, :, 0], S.action), place[:, :, 1])
    follows = (S.action == SNAKE[place[:, :, 0]]).float().mean(1)
    assert abs(float(follows[0]) - 0.2) < 0.07 and float(follows[2]) > 0.9
    assert torch.equal(place[0], place[1]), "settings of a seed see the same draws"


def test_scores_of_known_latents():
    found = check_scores()
    assert found["code = action"][0] < 1e-6 < 0.999 < found["code = action"][1]
    own = signal(1.0, follow=0.95)
    assert math.isclose(own[0], 1 - 0.96**2 - 4 * 0.01**2, rel_tol=1e-5)


def test_the_stochastic_loss_is_of_the_lower_part_and_nothing_without_noise():
    t = every_transition(2.0)
    error = torch.zeros(len(t.after), 16)
    error[:, PLACES:] = 1.0
    assert losses(error, 2.0) == pytest.approx((0, 1), abs=1e-3)
    assert math.isnan(losses(error, 0.0)[1])


def test_the_best_decoder_is_beaten_by_none():
    t = every_transition(1.0)
    code = (t.action + t.coins) % ACTIONS
    least = (best_decoder(t, code) - t.after).square().sum()
    other = (best_decoder(t, code) + 0.01 - t.after).square().sum()
    assert least < other
    assert losses((best_decoder(t, code) - t.after).square(), 1.0)[0] < 1e-6  # coins are known


def test_the_best_codes_change_sides_with_the_noise():
    assert best_codes(0.0)[0] < 1e-6
    assert best_codes(1.0) == pytest.approx((0, 1), abs=1e-3)
    assert best_codes(2.0)[0] == pytest.approx(1, abs=1e-3) and best_codes(2.0)[1] < 0.5


@pytest.mark.parametrize("padding", ["circular", "zeros"])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_matrices_are_convolutions(padding, stride):
    generator = torch.Generator().manual_seed(0)
    kernel = torch.randn(1, 3, 2, 9, generator=generator)
    x = torch.randn(5, 2, 4, 4, generator=generator)
    mode = {"circular": "circular", "zeros": "constant"}[padding]
    wanted = F.conv2d(F.pad(x, (1, 1, 1, 1), mode), kernel[0].unflatten(2, (3, 3)), stride=stride)
    got = x.flatten(1) @ as_matrix(kernel, taps(padding, stride))[0]
    assert torch.allclose(got, wanted.flatten(1), atol=1e-5)


def test_shifts_move_columns_together_and_only_where_they_are_set():
    frames = torch.arange(16.0).expand(2, 3, 16)
    u = torch.tensor([[0.1, 0.5, 0.9]]).expand(2, -1)
    got = shifted(frames, u, [Setting(shift=True), Setting()])
    rows = frames[0, 0].view(4, 4)
    assert torch.equal(got[1], frames[1]) and torch.equal(got[0, 1], frames[0, 1])
    assert torch.equal(got[0, 0].view(4, 4), rows.roll(-1, 1))
    assert torch.equal(got[0, 2].view(4, 4), rows.roll(1, 1))


def test_the_odd_reading_is_odd_and_others_are_not():
    S = drawn([Setting(odd=True)], n=6)
    o_i, o_j, _ = S.frames.unbind(2)
    for row, wanted in (("odd IDM", True), ("low noise", False)):
        m = train_grid([Training(row, 0)], TINY, watch=0)
        with torch.no_grad():
            there, back = encode(m, o_i, o_j), encode(m, o_j, o_i)
        assert torch.allclose(there, -back, atol=1e-6) is wanted


def test_labels_and_composition_add_to_the_loss():
    m = train_grid([Training("low noise", 0)], TINY, watch=0)
    settings = [Setting(), Setting(labels=1.0), Setting(ac=True)]
    plain, labeled, composed = (
        float(grid_loss(m, drawn([s], n=50), [s], TINY).detach()) for s in settings
    )
    assert labeled > plain and composed > plain


def test_a_training_does_not_depend_on_its_stack():
    alone = train_grid([Training("low noise", 1)], TINY, watch=0)
    among = train_grid([Training("high noise", 0), Training("low noise", 1)], TINY, watch=0)
    for name, value in alone.w.items():
        assert torch.allclose(value[0], among.w[name][1], atol=1e-6)
    assert torch.allclose(alone.vq.book.codes[0], among.vq.book.codes[1], atol=1e-6)


def test_a_stack_is_of_one_kind_and_skips_what_is_done():
    config = GridTableConfig(seeds=2, stack=5)
    work = stacks(config, {"odd IDM, seed 0": {}})
    assert sum(map(len, work)) == 2 * len(SETTINGS) - 1 and max(map(len, work)) <= 5
    for stack in work:
        assert len({grid_table.kind(SETTINGS[each.row]) for each in stack}) == 1


def test_the_command_goes_on_where_it_was(tmp_path, capsys):
    out = tmp_path / "t.json"
    sizes = ["--train.updates", "2", "--train.batch", "4", "--train.channels", "2"]
    words = ["--out", str(out), *sizes, "--seeds", "1"]
    grid_table.main([*words, "--rows", "low noise", "odd IDM"])
    first = read_json(out)
    grid_table.main([*words, "--rows", "no noise", "low noise", "composition (AC)"])
    both = read_json(out)
    assert len(first["groups"]) == 2 and len(both["groups"]) == 4
    assert {k: both["groups"][k] for k in first["groups"]} == first["groups"]
    assert both["groups"]["no noise, seed 0"]["stochastic"] is None
    assert len(both["commands"]) == 2
    told = capsys.readouterr()
    assert "0.781 +- 0.079" in told.out and "stack 1 of 2" in told.err
    with pytest.raises(SystemExit) as stop:
        grid_table.main([*words[:2], "--train.updates", "3"])
    assert stop.value.code == 2 and read_json(out) == both


def test_the_table_has_mean_and_spread():
    groups = {f"low noise, seed {k}": {"controllable": k, "stochastic": None} for k in range(3)}
    for group in groups.values():
        group |= {"best_controllable": 0.5, "codes": 5}
    found = {"groups": groups}
    assert over_seeds(found, "low noise", "controllable") == pytest.approx((1, (2 / 3) ** 0.5, 3))
    assert over_seeds(found, "low noise", "stochastic")[2] == 0
    assert "1.000 +- 0.816" in as_table(found) and "no noise" not in as_table(found)
    assert set(PAPER) < set(SETTINGS)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rows": ("mars",)}, "low noise"),
        ({"seeds": 0}, "seeds"),
        ({"stack": 0}, "stack"),
        ({"train": GridTraining(updates=0)}, "at least 1"),
        ({"train": GridTraining(lr=1.0)}, "lr"),
        ({"train": GridTraining(beta=-1.0)}, "beta"),
    ],
)
def test_bad_input_is_one_line(tmp_path, changes, says):
    config = GridTableConfig(out=str(tmp_path / "t.json"), **changes)
    with pytest.raises(UserError, match=says):
        grid_table.run_table(config)
