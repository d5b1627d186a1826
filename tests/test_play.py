"""The pages to play with, in a headless Chromium from the file system: their numbers are Python's."""

import json
import os
import re
import subprocess
import sys

import browser
import build
import numpy as np
import play
import pytest
import torch

from aclam.additivity.rigid_motion import bch_error, composed
from aclam.core import UserError
from aclam.lam import LatentActionModel
from aclam.linear.evaluate import label_lambda, labeled_optimum
from aclam.linear.llo import llo, readout_factor
from aclam.linear.model import LAM, encode, sample_loss, shift_family
from aclam.linear.objective import innovation, optimum, reconstruction
from aclam.linear.setting import Setting
from aclam.linear.world import factors, make_world

pytestmark = pytest.mark.skipif(not browser.PROGRAM, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The pages of the playground alone, built by MkDocs as the book is; where it lies."""
    work = tmp_path_factory.mktemp("book")
    with pytest.MonkeyPatch.context() as patch:
        for name, folder in (("WORK", work), ("DOCS", work / "pages"), ("VENDOR", work / "npm")):
            patch.setattr(build, name, folder)
        stand_in_for_npm(work / "npm")
        build.DOCS.mkdir()
        build.copy_assets()
        nav = play.write_pages(build.DOCS)
        write_neighbors()
        config = build.configure(nav)
        config.write_text(without_reference(config.read_text()))
        words = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--config-file", str(config)]
        quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
        subprocess.run(words, check=True, timeout=120, env=quiet)
        build.make_offline(work / "site")
    return work / "site"


def stand_in_for_npm(folder):
    """Empty files in place of KaTeX and of the polyfill, which come from the network."""
    katex = folder / f"katex-{build.PACKAGES['katex']}" / "dist"
    shim = folder / f"iframe-worker-{build.PACKAGES['iframe-worker']}" / "shim"
    (katex / "contrib").mkdir(parents=True)
    shim.mkdir(parents=True)
    for path in (katex / "katex.min.js", katex / "katex.min.css", shim / "index.js"):
        path.write_text("")
    (katex / "contrib" / "auto-render.min.js").write_text("renderMathInElement = () => {}")


def write_neighbors():
    """Empty chapters where the pages link to."""
    for path in (build.DOCS / "play").glob("*.md"):
        for link in re.findall(r"\]\((\.\./[\w/]+\.md)", path.read_text()):
            target = (path.parent / link).resolve()
            target.parent.mkdir(exist_ok=True)
            target.write_text("# A chapter\n")


def without_reference(config):
    """The configuration without the pages that are made from modules."""
    return re.sub(r"^- mkdocstrings:\n(?:  .*\n)+", "", config, flags=re.M)


@pytest.fixture(scope="module")
def chromium():
    with browser.Chromium() as program:
        yield program


@pytest.fixture(scope="module")
def models():
    return {name: LatentActionModel.from_pretrained(name) for name in play.MODELS}


@pytest.fixture(scope="module")
def frames():
    return torch.as_tensor(play.read_frames()).float() / 255


@pytest.fixture(scope="module")
def playground(site, chromium):
    page = chromium.page()
    page.open(site / "play" / "playground.html")
    return page


def test_every_file_is_small(site):
    sizes = {p.name: p.stat().st_size for p in (site / "vendor" / "play").iterdir()}
    sizes |= {p.name: p.stat().st_size for p in (site / "play").glob("*.html")}
    assert sizes and max(sizes.values()) < 2_000_000


MOVE = """
(async () => {
  const control = document.querySelector(%r);
  control.value = %r;
  const began = performance.now();
  control.dispatchEvent(new Event(%r, { bubbles: true }));
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  return performance.now() - began;
})()
"""  # a control is moved; milliseconds until the picture has been painted


def move(page, control, value, event="input"):
    return page.evaluate(MOVE % (control, str(value), event))


SHOWN = """
Object.fromEntries(Object.entries(playground.shown).map(([name, r]) => [name, {
  pictures: r.pictures.map((p) => Array.from(p)),
  z: r.scaled.map((z) => Array.from(z)), codes: r.codes, additivity: r.additivity, apart: r.apart,
}]))
"""

CHOICES = [
    (0, 0, 4, 8, 1.0, "i"),
    (2, 9, 3, 0, -1.0, "j"),
    (3, 5, 5, 6, 1.65, "1"),
    (1, 2, 7, 9, 0.35, "0"),
]


@pytest.mark.parametrize("choice", CHOICES)
@torch.no_grad()
def test_the_page_shows_what_python_computes(playground, models, frames, choice):
    """Real controls are moved; frames, latents and codes are those of the kept models."""
    film, i, j, k, scale, start = choice
    playground.evaluate(f"document.querySelector('input[name=film][value=\"{film}\"]').click()")
    for way, value in zip("ijk", (i, j, k), strict=True):
        move(playground, f"[data-frame={way}] input", value)
    move(playground, "#play-start", start, "change")
    move(playground, "#play-scale", scale)
    shown = playground.evaluate(SHOWN)

    o = frames[film]
    starts = {"i": o[i], "j": o[j], "k": o[k], **{str(n): f[0] for n, f in enumerate(frames)}}
    into = starts[start].expand(3, -1, -1, -1)
    for name, lam in models.items():
        code = lam.encode(o[[i, j, i]], o[[j, k, k]])
        ij, jk, ik = code.z
        z = scale * torch.stack([ij, ik, ij + jk])
        pictures = lam.decode(into, z).flatten(1)
        assert np.abs(np.array(shown[name]["z"]) - z.numpy()).max() < 1e-3
        assert np.abs(np.array(shown[name]["pictures"]) - pictures.numpy()).max() < 1e-3
        there = ((ik - ij - jk).square().sum() / ij.square().sum()).item()
        apart = (pictures[1] - pictures[2]).square().sum() / (o[i] - o[k]).square().sum()
        if ij.any():  # that of the potential model is zero where i is j
            assert shown[name]["additivity"] == pytest.approx(there, rel=1e-3, abs=1e-6)
        assert shown[name]["apart"] == pytest.approx(apart.item(), rel=1e-2, abs=1e-6)
        if code.indices is not None:
            own = code.indices % lam.config.bottleneck.codes
            assert [shown[name]["codes"][way] for way in ("ij", "jk", "ik")] == own.tolist()


PAIRS = """
(() => {
  const { episodes, shots, side, data } = PLAY.frames;
  const bytes = Lam.bytesOf(data), size = 3 * side * side, lam = playground.models[%r];
  const frame = (n) => Float64Array.from(bytes.subarray(n * size, (n + 1) * size), (v) => v / 255);
  const out = [];
  for (let n = 0; n < episodes * shots; n++) {
    const first = n - n %% shots;
    for (let m = first + %d; m < first + shots; m += 3) out.push(Array.from(lam.encode(frame(n), frame(m)).z));
  }
  return out;
})()
"""


@pytest.mark.parametrize("name", play.MODELS)
@torch.no_grad()
def test_no_code_falls_out_otherwise(playground, models, frames, name):
    """Every third pair of frames of the page has the latent that Python finds."""
    ours = np.array(playground.evaluate(PAIRS % (name, 1)))
    pairs = [(n, m) for n in range(play.SHOTS) for m in range(1, play.SHOTS, 3)]
    first, later = (torch.tensor(side) for side in zip(*pairs, strict=True))
    z = torch.cat([models[name].encode(o[first], o[later]).z for o in frames])
    assert ours.shape == z.shape and np.abs(ours - z.numpy()).max() < 1e-3


def computed(page):
    """Seconds of this page's thread so far."""
    named = {m["name"]: m["value"] for m in page.call("Performance.getMetrics")["metrics"]}
    return named["TaskDuration"]


def test_a_slider_moves_the_picture_at_once(playground):
    """From the event to the painted picture, warm, in milliseconds of the page's own thread.

    Others may use this machine, too, so times on the clock are only printed.
    """
    playground.call("Performance.enable", timeDomain="threadTicks")
    for n in range(10):
        move(playground, "#play-scale", 0.1 * n)
    began = computed(playground)
    times = [move(playground, "#play-scale", 0.15 * n) for n in range(-6, 13)]
    own = 1000 * (computed(playground) - began) / len(times)
    new = [move(playground, "[data-frame=j] input", n) for n in range(10)]
    print(f"scale {own:.0f} ms; on the clock {np.median(times):.0f}, frame j {np.median(new):.0f}")
    assert 0 < own < 100


def test_nothing_is_fetched_and_nothing_fails(playground):
    assert playground.requests() and playground.problems() == []


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone(site, chromium, dark):
    """At 360 pixels nothing is cut off, and the colors of the page follow the scheme."""
    page = chromium.page(360, 780, dark)
    for name in play.PAGES.values():
        page.open((site / "play" / name).with_suffix(".html"))
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        color = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", color)[:3])) < 300) == dark
        assert page.problems() == []


def test_the_films_of_the_chapter_are_on_their_page(site, chromium):
    """Both move there, and each has an alternative text."""
    page = chromium.page(still=True)
    page.open(site / "play" / "moving_pictures.html")
    assert page.evaluate("document.querySelectorAll('.film').length") == 2
    labels = page.evaluate("[...document.querySelectorAll('.film svg')].map((s) => s.ariaLabel)")
    assert len(labels) == 4 and all(len(words) > 40 for words in labels)
    assert page.evaluate("document.querySelectorAll('animateTransform').length") > 400


def test_what_the_page_cannot_compute_is_refused():
    with pytest.raises(UserError, match="cannot compute this model of family lapa"):
        play.pack(LatentActionModel.from_pretrained("lapa_cpu"), "LAPA")


def test_packed_rows_lose_at_most_half_a_unit():
    t = torch.randn(5, 7)
    t[2] = 0
    for bits in (16, 24):
        raw = play.packed_rows(t, bits)
        unit = np.frombuffer(raw, "<f4", 5)
        upper = np.frombuffer(raw, "<i2", 35, offset=20).astype(int)
        whole = upper if bits == 16 else 256 * upper + np.frombuffer(raw, np.uint8, 35, offset=90)
        back = whole.reshape(5, 7) * unit[:, None]
        assert (np.abs(back - t.numpy()) <= 0.51 * unit[:, None] + 1e-7).all()


# --- the closed forms -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def closed(site, chromium):
    page = chromium.page()
    page.open(site / "play" / "closed_forms.html")
    return page


SIZES = dict(d_o=24, d_a=4, d_b=3)


def grid():
    """Worlds of all kinds: noise, other agents, gain, determinism, labels."""
    rng = np.random.default_rng(0)
    for n in range(60):
        world = {
            "sigma_iid": rng.choice([0.0, 0.3, 1.1]),
            "sigma_agents": rng.choice([0.0, 0.7, 1.9, 3.3]),
            "gain": rng.choice([1.0, 4.3]),
            "chi": rng.choice([0.0, 0.4, 0.9]),
        }
        share = rng.choice([0.0, 0.05, 0.6])
        yield {name: float(x) for name, x in world.items()}, float(share), n % 2 == 0


def by_algebra(world, share, plain, d_z):
    """The latent's factor at the optimum, the world's, and the eigenvalues that decide."""
    F = factors(make_world(**SIZES, **world, orthogonal_agents=True))
    if plain:
        terms = [reconstruction(F)]
        return optimum(terms, d_z).lam, F, np.linalg.eigvalsh(innovation(terms)[0])[::-1]
    weight = label_lambda(Setting(**SIZES, label_ratio=share, label_mean="all"))
    m, _, values, _ = labeled_optimum(F, d_z, weight)
    return m, F, values


def test_the_sliders_say_what_linear_algebra_says(closed):
    """Spectrum and LLO on a grid of worlds and sizes, against eigendecompositions."""
    for world, share, plain in grid():
        p = {**SIZES, **world, "share": 0.0 if plain else share, "plain": plain}
        values = closed.evaluate(f"Closed.spectrum({json.dumps(p)}).map((e) => e.value)")
        for d_z in (1, 4, 6, 9):
            m, F, own = by_algebra(world, share, plain, d_z)
            there = llo(readout_factor(m, F), F)
            here = closed.evaluate(f"Closed.llo({json.dumps(p)}, {d_z})")
            np.testing.assert_allclose(values, own, atol=1e-9, err_msg=str(p))
            for name in ("llo", "nmse_a", "nmse_eps", "nmse_o"):
                np.testing.assert_allclose(
                    here[name], getattr(there, name), atol=1e-7, err_msg=str(p)
                )


def test_at_the_threshold_the_others_take_over(closed):
    """The line in the picture is where LLO falls, without noise from 2 to 0."""
    for share, plain, chi in ((0.0, True, 0.0), (0.0, True, 0.5), (0.3, False, 0.0)):
        p = {
            **SIZES,
            "d_b": 4,
            "gain": 2.0,
            "sigma_iid": 0.0,
            "chi": chi,
            "share": share,
            "plain": plain,
        }
        edge = closed.evaluate(f"Closed.threshold({json.dumps(p)})")
        below, above = (
            closed.evaluate(f"Closed.llo({json.dumps(p | {'sigma_agents': x * edge})}, 4)")
            for x in (0.99, 1.01)
        )
        assert below["nmse_a"] < 1e-12 and above["nmse_a"] == 1
        if chi == 0:
            assert abs(below["llo"] - 2) < 1e-12 and abs(above["llo"]) < 1e-12


def test_the_loss_stands_still_while_the_latent_fills(closed):
    """The shift, the latents and the loss of the page, on its own samples, are Python's."""
    losses = []
    shares = []
    for t in (0, 0.5, 2, 3):
        move(closed, "#play-shift [name=t]", t)
        got = closed.evaluate("closedForms['play-shift']")
        o, after = (np.array([s[name] for s in got["samples"]]) for name in ("o", "next"))
        start = LAM(np.eye(2), np.eye(2)[:, :1], -np.eye(2)[:1], np.eye(2)[:1])
        m = shift_family(start, np.array(got["T"]))
        for name in "ABCD":
            np.testing.assert_allclose(got["model"][name], getattr(m, name), atol=1e-12)
        np.testing.assert_allclose(got["z"], encode(m, o, after)[:, 0], atol=1e-12)
        assert abs(got["loss"] - sample_loss(m, o, after)) < 1e-12
        losses.append(got["loss"])
        shares.append(got["share"])
    assert max(losses) - min(losses) < 1e-12 and min(losses) > 0.01
    assert shares[0] == 0 and shares == sorted(shares) and shares[-1] > 0.85


def test_turns_are_composed_as_scipy_does(closed):
    rng = np.random.default_rng(1)
    for a, b in rng.uniform(-2, 2, (40, 2, 3)):
        words = f"{a.tolist()}, {b.tolist()}"
        np.testing.assert_allclose(
            closed.evaluate(f"Closed.composed({words})"), composed(a, b), atol=1e-9
        )
        assert abs(closed.evaluate(f"Closed.bchError({words})") - bch_error(a, b)) < 1e-9
    move(closed, "#play-bch [name=between]", 0)
    assert closed.evaluate("closedForms['play-bch'].error") < 1e-9
    for name in ("first", "second"):
        move(closed, f"#play-bch [name={name}]", 4)
    move(closed, "#play-bch [name=between]", 90)
    got = closed.evaluate("closedForms['play-bch']")
    assert got["error"] > 0.1 and abs(got["error"] / got["half"] - 1) < 0.01  # to second order


def test_every_slider_of_the_closed_forms_changes_its_picture(closed):
    move(closed, "#play-linear [name=sigma_agents]", 1.5)
    closed.evaluate("document.querySelector('#play-linear [name=plain]').checked = false")
    for part in ("play-linear", "play-shift", "play-bch"):
        pictures = f"[...document.querySelectorAll('#{part} svg')].map((s) => s.innerHTML).join()"
        for name in closed.evaluate(
            f"[...document.querySelectorAll('#{part} input[type=range]')].map((x) => x.name)"
        ):
            move(closed, f"#{part} [name={name}]", 0.5)
            before = closed.evaluate(pictures)
            move(closed, f"#{part} [name={name}]", 100)
            assert closed.evaluate(pictures) != before, name
    assert closed.problems() == []
