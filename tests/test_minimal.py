"""The spine, `aclam.minimal`, held against the package on the same tensors."""

import ast
import sys
import tokenize
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from aclam import minimal
from aclam.lam.bottlenecks import make_bottleneck
from aclam.lam.objective import ObjectiveConfig, objective
from aclam.lam.odd import odd_part
from aclam.lam.quantizer import BottleneckConfig, LatentAction
from aclam.linear.model import LAM, decode, encode, sample_loss
from aclam.structure import metrics

PACKAGE = Path(minimal.__file__).parent
FRAME = 48  # numbers of a frame


def lines_of_code(path: Path) -> int:
    """Lines that hold something other than a comment; docstrings count."""
    with path.open("rb") as file:
        tokens = list(tokenize.tokenize(file.readline))
    nothing = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    nothing |= {tokenize.ENCODING, tokenize.ENDMARKER}
    lines = set()
    for token in tokens:
        if token.type not in nothing:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines)


def test_the_spine_stays_short_and_alone():
    path = PACKAGE / "minimal.py"
    assert 100 < lines_of_code(path) <= 300
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "an import of the package"
            imported.add(node.module.split(".")[0])
    assert imported == {"numpy", "torch"} <= set(sys.modules)


def films(batch=16, seed=0):
    return torch.randn(batch, 3, FRAME, generator=torch.Generator().manual_seed(seed))


def test_the_linear_model_is_the_package_s():
    model = minimal.LinearLam(FRAME, 5)
    C, D = model.idm.weight.detach().split(FRAME, 1)
    A, B = model.fdm.weight.detach().split([FRAME, 5], 1)
    same = LAM(*(matrix.double().numpy() for matrix in (A, B, C, D)))
    start, end = minimal.pairs(films())
    o, o_next = start.double().numpy(), end.double().numpy()

    z = model.encode(start, end)
    assert np.allclose(z.detach(), encode(same, o, o_next), atol=1e-5)
    assert np.allclose(
        model.predict(start, z).detach(), decode(same, o, z.detach().numpy()), atol=1e-5
    )
    loss = sample_loss(same, o, o_next) / FRAME  # theirs sums over coordinates
    assert model.loss(films()).item() == pytest.approx(loss, rel=1e-5)


class Adapter:
    """A minimal model as the package's objective sees one; frames are 4 x 4 pixels."""

    proprio_fdm = None

    def __init__(self, model, lambda_ac):
        self.model = model
        self.config = SimpleNamespace(
            objective=ObjectiveConfig(lambda_ac=lambda_ac), codebook_size=None
        )

    def normalize(self, o):
        return o

    def triple_latents(self, frames):
        start, end = minimal.pairs(frames.flatten(2))
        z, cost = self.model.channel(self.model.tokens(start, end))
        return LatentAction(z, z, None, cost)

    def predict(self, o_i, z):
        return self.model.predict(o_i.flatten(1), z).view_as(o_i)


CHANNELS = {"open": minimal.Channel, "dying": minimal.Codebook, "living": minimal.LivingCodebook}


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize(("kind", "lambda_ac"), [(minimal.Lam, 0.0), (minimal.AcLam, 1.0)])
def test_the_loss_is_the_package_s_objective(kind, lambda_ac, channel):
    torch.manual_seed(0)
    model = kind(FRAME, 16, 24, CHANNELS[channel](16))
    torch.nn.init.normal_(model.fdm[-1].weight, std=0.1)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(1)
    loss = model.loss(films())
    loss.backward()
    gradient = model.idm[0].weight.grad.clone()

    model.load_state_dict(state)
    model.zero_grad()
    torch.manual_seed(1)
    batch = {"frames": films().view(16, 3, 3, 4, 4)}
    theirs, terms = objective(Adapter(model, lambda_ac), batch)
    theirs.backward()
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-6)
    assert torch.allclose(gradient, model.idm[0].weight.grad, atol=1e-7)
    assert ("ac" in terms) == (lambda_ac > 0)


def package_channel(**settings):
    return make_bottleneck(8, 2, BottleneckConfig(**settings))


@pytest.mark.parametrize(("center", "how"), [(True, "global"), (False, "scale")])
def test_the_open_channel_is_the_package_s(center, how):
    ours = minimal.Channel(16, center=center)
    theirs = package_channel(kind="none", normalize=how, noise=0.3)
    for training in (True, True, False):
        x = 2 * torch.randn(32, 16) + 1
        ours.train(training)
        theirs.train(training)
        torch.manual_seed(2)
        z, cost = ours(x)
        torch.manual_seed(2)
        code = theirs(x.view(32, 8, 2))
        assert torch.allclose(z, code.z.flatten(1), atol=1e-5) and cost == code.loss


def test_the_textbook_s_codebook_is_the_package_s():
    ours = minimal.Codebook(16)
    theirs = package_channel(update="gradient", init="uniform", restart_below=0.0)
    theirs.book.codes.data[0] = ours.codes.data
    x = torch.randn(32, 16, requires_grad=True)
    z, cost = ours(x)
    (cost + z.square().sum()).backward()
    mine, x.grad = x.grad, None
    code = theirs(x.view(32, 8, 2))
    (code.loss + code.z.square().sum()).backward()
    assert torch.allclose(z, code.z.flatten(1), atol=1e-6)
    assert cost.item() == pytest.approx(code.loss.item(), rel=1e-6)
    assert torch.allclose(mine, x.grad, atol=1e-6)
    assert torch.allclose(ours.codes.grad, theirs.book.codes.grad[0], atol=1e-6)


def test_the_living_codebook_is_the_package_s_through_its_start_and_averages():
    ours = minimal.LivingCodebook(16, codes=32)
    theirs = package_channel()
    for step in range(60):
        x = torch.randn(8, 16)
        torch.manual_seed(step)
        z, cost = ours(x)
        torch.manual_seed(step)
        code = theirs(x.view(8, 8, 2))
        assert torch.allclose(z, code.z.flatten(1), atol=1e-4), step
        assert torch.allclose(cost, code.loss, rtol=1e-3, atol=1e-6), step
        assert torch.allclose(ours.codes, theirs.book.codes[0], atol=1e-4), step


def test_the_four_numbers_are_the_package_s():
    torch.manual_seed(3)
    model = minimal.Lam(FRAME, 16, 24).eval()
    frames = films(200)
    moved = torch.rand(200)
    i, j, k = frames.unbind(1)
    encoded = {"ij": (i, j), "jk": (j, k), "ik": (i, k), "ii": (i, i), "ji": (j, i)}
    latents = {f"z_{name}": model.encode(*pair).detach().numpy() for name, pair in encoded.items()}
    theirs = metrics.four_numbers(latents | {"ds": moved.numpy()})
    ours = minimal.four_numbers(model.encode, frames, moved)
    assert list(ours) == list(theirs)
    assert list(ours.values()) == pytest.approx(list(theirs.values()), rel=1e-4, abs=1e-5)


def test_the_odd_reading_is_the_package_s():
    model = minimal.Lam(FRAME, 16, 24).eval()
    i, j, _ = films().unbind(1)
    theirs = odd_part(model.encode(i, j), model.encode(j, i))
    assert torch.equal(minimal.odd(model.encode)(i, j), theirs)


def test_the_potential_is_additive_and_the_others_are_not():
    torch.manual_seed(4)
    moved = torch.rand(16)
    model = minimal.PotentialLam(FRAME, 16, 24).eval()
    found = minimal.four_numbers(model.encode, films(), moved)
    assert max(found["additivity"], found["identity"], found["inverse"]) < 1e-5
    found = minimal.four_numbers(minimal.AcLam(FRAME, 16, 24).eval().encode, films(), moved)
    assert found["additivity"] > 0.1


def test_squares_lie_where_they_are_said_to():
    frames, places = minimal.square_films(4, length=30, seed=2)
    pictures = frames.view(4, 30, 3, 16, 16)
    assert torch.isfinite(frames).all() and 2.5 < places.min() and places.max() < 13.5
    # what differs from the film's median is the square: its middle is the place
    away = (pictures - pictures.median(1, keepdim=True).values).abs().sum(2)  # (4, 30, 16, 16)
    grid = torch.arange(16) + 0.5
    x = (away.sum(2) * grid).sum(-1) / away.sum((2, 3))
    clear = away.sum((2, 3)) > 0.7 * away.sum((2, 3)).amax(1, keepdim=True)
    assert (x - places[..., 0])[clear].abs().median() < 1


def test_triples_are_three_frames_of_one_film_within_the_gap():
    where = minimal.triples(torch.zeros(5, 24, 2), 500, torch.Generator().manual_seed(0))
    film, times = where[:, 0], where[:, 1:]
    assert film.min() == 0 and film.max() == 4 and times.min() >= 0 and times.max() < 24
    span = times.max(1).values - times.min(1).values
    assert span.max() <= 8 and all(len(set(row)) == 3 for row in times.tolist())
    assert 0.3 < (times[:, 1] > times[:, 0]).float().mean() < 0.7, "any order"
