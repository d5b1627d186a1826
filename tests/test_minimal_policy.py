"""The policy's spine, `aclam.minimal_policy`, held against the package on the same tensors."""

import ast
from pathlib import Path

import pytest
import torch
from test_minimal import lines_of_code

from aclam import minimal_policy as spine
from aclam.policy.attention_mask import Blocks, block_mask, check_closed
from aclam.policy.experts import attend
from aclam.policy.flow import FlowConfig, euler, flow_loss, path, velocity
from aclam.policy.model import Pair, mean_of_known, solve

STRAIGHT = FlowConfig(sigma_min=0.0, time="uniform", steps=10)  # the spine's two settings
ROWS = 12


def data(seed=0):
    rng = torch.Generator().manual_seed(seed)
    return {
        "seen": torch.rand(ROWS, spine.SEEN, generator=rng),
        "robot": torch.randn(ROWS, spine.CHUNK, 2, generator=rng),
        "latent": torch.randn(ROWS, 2, 4, generator=rng),
        "known": torch.arange(ROWS) % 3 > 0,
    }


def new(kind):
    torch.manual_seed(0)
    return kind()


def test_the_spine_stays_short_and_needs_the_first_one_only():
    path = Path(spine.__file__)
    assert 100 < lines_of_code(path) <= 300
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            imported.add("." * node.level + node.module)
    assert imported <= {"collections.abc", "torch", ".minimal", "aclam.minimal"}


def test_the_loss_is_the_package_s_flow_loss():
    model = new(spine.Flow)
    batch = data()
    torch.manual_seed(1)
    loss = model.loss(batch)
    loss.backward()
    gradient = model.eye.embed[0].weight.grad.clone()

    model.zero_grad()
    torch.manual_seed(1)

    def field(x, t):
        return model.field(batch["seen"], {"robot": x}, t)["robot"]

    theirs = flow_loss(field, batch["robot"], STRAIGHT)
    theirs.backward()
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert torch.allclose(gradient, model.eye.embed[0].weight.grad, atol=1e-5)


def test_the_joint_loss_is_the_package_s_terms():
    """Both experts share the time; the error of commands counts where they are known."""
    model = new(spine.Masked)
    batch = data()
    torch.manual_seed(1)
    loss = model.loss(batch).item()

    torch.manual_seed(1)
    noise = {name: torch.randn_like(batch[name]) for name in model.experts}
    t = 1 - torch.rand(ROWS)
    noisy = {name: path(noise[name], batch[name], t, 0.0) for name in noise}
    said = model.field(batch["seen"], noisy, t)
    everywhere = torch.ones(ROWS, dtype=torch.bool)
    total = 0.0
    for name, known in (("latent", everywhere), ("robot", batch["known"])):
        error = (said[name] - velocity(noise[name], batch[name], 0.0)).square()
        total += mean_of_known(name, error, known).item()
    assert list(model.experts) == ["latent", "robot"]
    assert loss == pytest.approx(total, rel=1e-5)


def test_rows_without_commands_count_for_the_plan_alone():
    model = new(spine.Masked)
    films = spine.without_commands(data())
    assert not films["known"].any() and not films["robot"].any()
    torch.manual_seed(1)
    model.loss(films).backward()
    assert model.experts["latent"].head[1].weight.grad.abs().max() > 0
    assert model.experts["robot"].head[1].weight.grad.abs().max() == 0


def test_the_sampler_is_the_package_s():
    batch = data()
    single = new(spine.Flow)
    noise = torch.randn(ROWS, spine.CHUNK, 2)

    def field(x, t):
        return single.field(batch["seen"], {"robot": x}, t)["robot"]

    ours = single.solve(batch["seen"], {"robot": noise}, 10)["robot"]
    assert torch.allclose(ours, euler(field, noise, 10), atol=1e-5)

    both = new(spine.Masked)
    x = {"latent": torch.randn(ROWS, 2, 4), "robot": noise}

    def pair_field(pair, t):
        said = both.field(batch["seen"], {"latent": pair.latent, "robot": pair.action}, t)
        return Pair(said["latent"], said["robot"])

    ours = both.solve(batch["seen"], x, 10)
    with torch.no_grad():
        theirs = solve(pair_field, Pair(x["latent"], x["robot"]), 10)
    assert torch.allclose(ours["latent"], theirs.latent, atol=1e-5)
    assert torch.allclose(ours["robot"], theirs.action, atol=1e-5)


@pytest.mark.parametrize("counts", [(2, 2, 4), (7, 3, 5), (1, 0, 4), (3, 2, 0)])
def test_the_mask_is_the_package_s(counts):
    kinds = torch.arange(3).repeat_interleave(torch.tensor(counts))
    mask = new(spine.Masked).who_looks(kinds)
    assert torch.equal(mask, block_mask(Blocks(*counts))[0])
    check_closed(mask[None])


def test_the_policy_s_own_mask_has_its_parts_in_the_package_s_order():
    blocks = Blocks(2, 2, spine.CHUNK)
    assert torch.equal(new(spine.Masked).mask, block_mask(blocks)[0])
    assert new(spine.TwoExperts).mask.all(), "the broken version"


def test_attention_is_the_package_s_under_the_mask():
    model = new(spine.Masked)
    tokens = [torch.randn(3, n, spine.WIDTH) for n in (2, 2, spine.CHUNK)]
    layers = [part.layers[0] for part in model.parts()]
    q, k, v = torch.cat([layer.read(x) for layer, x in zip(layers, tokens, strict=True)], 3)
    brought = attend(q, k, v, model.mask[None]).split([2, 2, spine.CHUNK], 2)
    work = zip(layers, tokens, brought, strict=True)
    theirs = [layer.write(x, news) for layer, x, news in work]
    for part in model.parts():
        part.layers = part.layers[:1]
    ours = spine.together(model.parts(), tokens, model.mask)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("kind", [spine.TwoExperts, spine.Masked])
def test_the_plan_reads_commands_in_the_broken_version_only(kind):
    model = new(kind)
    batch = data()
    robot = batch["robot"].requires_grad_()
    noisy = {"latent": batch["latent"], "robot": robot}
    said = model.field(batch["seen"], noisy, torch.full((ROWS,), 0.5))
    (gradient,) = torch.autograd.grad(said["latent"].square().sum(), robot)
    assert (gradient.abs().max() > 0) == (kind is spine.TwoExperts)


def test_the_demonstrator_is_right_on_both_sides():
    films = spine.demonstrate(200, seed=3)
    success, hit = spine.outcome(films["hand"], films["post"], films["word"])
    assert success.float().mean() > 0.97 and hit.float().mean() < 0.02
    above = films["hand"][:, spine.CHUNK, 1] > films["post"][:, 1]
    assert 0.35 < above.float().mean() < 0.65


def test_rows_are_moments_of_their_film():
    films = spine.demonstrate(5, seed=4)
    made = spine.rows(films)
    assert made["seen"].shape == (5 * 21, spine.SEEN) and made["known"].all()
    at = 5 * 7 + 2  # the third film's eighth moment
    assert torch.equal(made["seen"][at, :64], films["frames"][2, 7])
    assert made["seen"][at, 64:].argmax() == films["word"][2]
    assert torch.equal(made["robot"][at], films["command"][2, 7:11])
    # a command moves the hand as the film has it
    moved = spine.move(films["hand"][:, 7], films["command"][:, 7])
    assert torch.allclose(moved, films["hand"][:, 8], atol=1e-5)


def test_a_perfect_player_succeeds_and_one_that_stands_still_does_not():
    still = spine.play(lambda seen: torch.zeros(len(seen), spine.CHUNK, 2), count=20)
    assert not still["success"].any() and not still["hit"].any()

    def straight(seen):  # one unit to the right in each step
        return torch.tensor([0.7, 0.0]) @ spine.MOTION.expand(len(seen), spine.CHUNK, 2, 2)

    assert spine.play(straight, count=20)["hit"].float().mean() > 0.7
