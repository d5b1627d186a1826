"""aclam-look: every family, every kind of data, and what it refuses."""

import gc
import html
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from aclam.commands.entry import check_paths
from aclam.commands.look import LookConfig, commands_of, main, turn_words
from aclam.core import UserError, read_json, write_json
from aclam.data.identity import episode_digest
from aclam.data.pixels import ORIENTATIONS
from aclam.data.played import PlayedFrames
from aclam.data.sampling import TripleConfig
from aclam.data.source import open_dataset, recognize
from aclam.data.store import write_store
from aclam.data.trajectory import synthetic_trajectory
from aclam.data.video import VideoWriter, check_exact
from aclam.kept import kept_names, kept_result
from aclam.structure.held_out import origin
from aclam.structure.table import METRICS
from aclam.studies import look, look_page
from aclam.studies.look import LEAST, affordable, cut, plan, thinned
from aclam.studies.look_words import (
    GOOD,
    JUDGED,
    WEAK,
    judge,
    judgements,
    kept_presets,
    marks_of,
    preset_of,
    training_minutes,
    verdict,
)
from aclam.train import lam as train_lam
from aclam.train.lam import folder_origin

ROOT = Path(__file__).resolve().parents[1]
FIXTURES = ROOT / "tests" / "fixtures"
MINUTES = re.compile(r"aclam-train-lam [^\n]*--train\.steps (\d+)[^\n]*about (\d+) minutes")
FEW = ("--n", "16", "--json")
FILES = {"config.json", "index.html", "look.json", "overview.png"}


def moving(frames: int = 24, size: int = 48) -> np.ndarray:
    """A film of a square that moves, uint8 (T, H, W, 3)."""
    return synthetic_trajectory(3, T=frames, size=size, fps=10.0, kind="human").frames.array


def write_film(path: Path, frames: np.ndarray) -> Path:
    with VideoWriter(path, fps=10) as out:
        out.append(frames)
    return path


def write_gif(path: Path, frames: np.ndarray) -> Path:
    pictures = [Image.fromarray(frame) for frame in frames]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100)
    return path


def write_pictures(folder: Path, frames: np.ndarray) -> Path:
    folder.mkdir()
    for n, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"frame_{n}.png")
    return folder


def fixture(name: str, to: Path) -> Path:
    """A copy: nothing is written beside the fixture."""
    shutil.copytree(FIXTURES / name, to)
    return to


def a_store(folder: Path) -> Path:
    write_store(folder, [synthetic_trajectory(n, T=14, size=32) for n in range(12)])
    return folder


KINDS = {
    "mp4": lambda f: write_film(f / "film.mp4", moving()),
    "gif": lambda f: write_gif(f / "film.gif", moving()),
    "pictures": lambda f: write_pictures(f / "pictures", moving(12)),
    "store": lambda f: a_store(f / "store"),
    "lerobot": lambda f: fixture("lerobot_v30", f / "lerobot"),
    "rlds": lambda f: fixture("rlds", f / "rlds"),
    "hdf5": lambda f: fixture("hdf5/robomimic", f / "hdf5"),
}


def looked(outcome, path: Path, out: Path, *words: str) -> dict:
    """Run the command; what it says in JSON."""
    status, said, err = outcome(main, path, "--out", out, *FEW, *words)
    assert status == 0, err
    assert {p.name for p in out.iterdir() if p.name[0] != "."} == FILES
    return json.loads(said)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_has_a_page(outcome, tmp_path, kind):
    path = KINDS[kind](tmp_path)
    found = looked(outcome, path, tmp_path / "page")
    page = (tmp_path / "page" / "index.html").read_text()
    assert found["verdict"]["title"] in page and found["facts"]["Data"]["name"] == path.name
    assert "<script" not in page and 'src="http' not in page and page.count("<img") >= 4
    assert 0 < (tmp_path / "page" / "overview.png").stat().st_size < 400_000
    assert found["numbers"] == read_json(tmp_path / "page" / "look.json")["numbers"]
    assumed = any("are assumed (--rate)" in note for note in found["notes"])
    assert assumed == (kind in ("pictures", "rlds", "hdf5"))


@pytest.mark.parametrize("model", [name for name in kept_names() if name != "ac_lam_cpu"])
def test_every_kept_model_looks(outcome, tmp_path, model):
    path = write_film(tmp_path / "film.mp4", moving())
    found = looked(outcome, path, tmp_path / "page", "--model", model)
    assert found["facts"]["Model"]["name"] == model
    page = (tmp_path / "page" / "index.html").read_text()
    assert ("features of a frozen network" in page) == (model == "univla_cpu")
    assert ("no codebook" in page) == (model == "potential_lam_cpu")


def test_an_upright_film_is_shown_upright(outcome, tmp_path):
    flat = write_film(tmp_path / "flat.mp4", np.repeat(moving(12), 2, axis=2))
    path = tmp_path / "phone.mov"
    words = ["ffmpeg", "-v", "error", "-i", flat, "-c", "copy", "-metadata:s:v", "rotate=90", path]
    if not shutil.which("ffmpeg") or subprocess.run(list(map(str, words))).returncode:
        pytest.skip("ffmpeg is not here, or does not write how a film is to be turned")
    facts = looked(outcome, path, tmp_path / "page")["facts"]["Data"]
    assert facts["pictures"] == "48 x 96" and "quarter turn" in facts["turned upright"]


def test_a_turn_has_words():
    words = [turn_words(turn) for turn in ORIENTATIONS.values()]
    assert words.count("mirrored") == 4 and len(set(words)) == 5


# --- what it refuses ------------------------------------------------------------------------------

REFUSED = {
    "one frame": (lambda f: write_gif(f / "a.gif", moving()[:1]), "needs at least two frames"),
    "one picture": (lambda f: write_pictures(f / "p", moving()[:1]) / "frame_0.png", "one picture"),
    "nothing": (lambda f: f / "nowhere.mp4", "no such dataset"),
    "no film": (lambda f: f, "is not a dataset"),
    "a cut film": (lambda f: _cut_off(f / "a.mp4"), "not a whole video file"),
}


def _cut_off(path: Path) -> Path:
    whole = write_film(path, moving()).read_bytes()
    path.write_bytes(whole[: len(whole) // 3])
    return path


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_film_is_one_line_and_leaves_nothing(refused, tmp_path, name):
    make, says = REFUSED[name]
    (tmp_path / "in").mkdir()
    path = make(tmp_path / "in")
    refused(main, [path, "--out", tmp_path / "page"], says)
    assert not (tmp_path / "page").exists()


def test_wrong_options_are_refused(refused, outcome, tmp_path):
    path = write_film(tmp_path / "film.mp4", moving())
    out = ["--out", tmp_path / "page"]
    refused(main, [path, *out, "--episode", "1"], "episode 1 of 1")
    refused(main, [path, *out, "--model", "ac_lam_cp"], 'Did you mean "ac_lam_cpu"?')
    refused(main, [path, *out, "--rate", "5"], "time stamps of its own")
    refused(main, [path, *out, "--n", "3"], "--n")
    refused(main, [path, "--out", path], "film.mp4")
    looked(outcome, path, tmp_path / "page")
    other = write_film(tmp_path / "other.mp4", moving())
    refused(main, [other, *out], "holds another look")


def test_a_model_by_name_passes_the_entry():
    check_paths([".", "--model", "lapa_cpu"], "aclam-look")
    check_paths(["--policy=policy_cpu_wo_lam"])
    with pytest.raises(
        UserError, match='--lam: no latent action model at "lapa_cp".*Did you mean "lapa_cpu"'
    ):
        check_paths(["--lam", "lapa_cp"])
    with pytest.raises(UserError, match="nowhere"):
        check_paths(["nowhere"], "aclam-look")


# --- which frames ---------------------------------------------------------------------------------


@pytest.mark.parametrize("fps", [0.2, 1.0, 7.3, 10.0, 29.97, 240.0])
@pytest.mark.parametrize("frames", [2, 9, 100, 1000])
def test_pieces_lie_in_the_film_and_do_not_overlap(fps, frames):
    t = synthetic_trajectory(0, T=frames, size=4, fps=fps, kind="human")
    for most in (1, 2, 5, 48):
        pieces = cut(t, 7, 2.0, most)
        numbers = [n for piece in pieces for n in piece.numbers]
        assert 1 <= len(pieces) <= most and {piece.episode for piece in pieces} == {7}
        assert numbers == sorted(set(numbers)) and set(numbers) <= set(thinned(t).tolist())
        assert all(len(piece.numbers) >= min(LEAST, len(thinned(t))) for piece in pieces)


def test_a_long_film_costs_no_more_than_a_short_one():
    short = synthetic_trajectory(0, T=600, size=4, fps=30.0, kind="human")
    long = synthetic_trajectory(0, T=60_000, size=4, fps=30.0, kind="human")
    size = (1080, 1920)
    read = {
        len(t): sum(len(p.numbers) for p in cut(t, 0, 2.0, affordable(t, 2.0, size)))
        for t in (short, long)
    }
    assert read[60_000] <= 48 * 21 and affordable(long, 2.0, (4320, 7680)) >= 2


def test_a_dataset_is_looked_at_in_many_episodes(tmp_path):
    store = open_dataset(a_store(tmp_path / "store"))
    from_others = {p.episode for p in plan(store, 3, range(12), TripleConfig())}
    assert from_others == set(range(12))


def test_a_film_that_is_read_slowly_has_a_strip_of_what_was_read(tmp_path, monkeypatch):
    """Two pieces, of which one is of another film: no picture that was planned is in them."""
    for n in range(3):
        write_film(tmp_path / f"{n}.mp4", moving(300))
    store = open_dataset(tmp_path)
    pieces = plan(store, 0, range(3), TripleConfig())
    assert sum(p.episode == 0 for p in pieces) > 10
    monkeypatch.setattr(look, "READING_S", 0.0)
    film = look.read_film(store, pieces, 0, 32, quiet=True)
    assert len(film.pieces) == 2 and any("slow" in note for note in film.notes)
    assert len(film.pictures) > 5 and set(film.pictures) <= set(film.numbers)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_the_legend_of_the_map_is_above_its_axes(rows):
    walk = np.random.default_rng(0).standard_normal((12, 2)).cumsum(0)
    seen = SimpleNamespace(
        pairs=np.zeros((rows, 3, 3, 16, 16)),
        directions=SimpleNamespace(axes=np.eye(2)),
        paths=SimpleNamespace(direct=walk, summed=1.2 * walk),
    )
    figure = look_page.draw_pairs_and_map(seen)
    figure.canvas.draw()
    ax = next(ax for ax in figure.axes if ax.get_legend())
    page = figure.bbox
    legend = ax.get_legend().get_window_extent()
    label = ax.xaxis.label.get_window_extent()
    assert legend.y0 >= ax.get_window_extent().y1 and legend.y1 <= page.y1
    assert legend.x1 <= page.x1 and label.y0 >= page.y0
    plt.close(figure)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors in /proc")
def test_frames_as_they_are_played_leave_no_file_open(tmp_path):
    film = moving(12)
    frames = PlayedFrames(str(write_film(tmp_path / "film.mp4", film)), 12)
    first = frames[[1]]
    before = len(os.listdir("/proc/self/fd"))
    gc.disable()
    try:
        for _ in range(8):
            assert np.array_equal(frames[[7, 1]][1:], first)
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        gc.enable()


def test_words_to_go_on_can_be_pasted():
    told = commands_of(LookConfig("my film; $(rm x).mp4", camera="top left", episode=3))
    words = shlex.split(told["The same page again:"])
    assert words[:2] == ["aclam-look", "my film; $(rm x).mp4"]
    assert words[4:] == ["--episode", "3", "--camera", "top left"]


# --- words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", kept_presets())
@pytest.mark.parametrize("key", JUDGED)
def test_marks_are_kept_numbers_in_order(preset, key):
    metric = METRICS[key]
    marks = marks_of(metric, preset)
    worse = max if metric.better == "lower" else min
    assert worse(marks.best, marks.worst) == marks.worst and np.isfinite(marks.floor)


def test_of_three_frames_there_is_no_verdict(outcome, tmp_path):
    film = write_film(tmp_path / "short.mp4", moving(3))
    words = [film, "--n", "64", "--out", tmp_path / "page"]
    status, said, err = outcome(main, *words)
    assert status == 0, err
    assert "Too short for a verdict" in said and "only 3 different pairs" in said
    found = read_json(tmp_path / "page" / "look.json")
    assert found["verdict"]["word"] == "none" and found["words"] == {}
    assert "64 draws of 3 different pairs" in (tmp_path / "page" / "index.html").read_text()


def test_labels_are_offered_at_an_offset_of_the_training(outcome, tmp_path):
    """Half a second ahead, within what the run drew: 5 frames of ten a second, or 8."""
    film = write_film(tmp_path / "film.mp4", moving(24))
    for low, offset in ((0.1, 4), (0.8, 8)):  # 0.4 s, as a policy asks, or the training's
        run = tmp_path / f"run_{offset}"
        shutil.copytree(kept_result("models/ac_lam_cpu") / "model", run / "model")
        drawn = {"human_offset_s": [low, 2.0]}
        write_json(run / "data.json", {"folders": [], "quantiles": {}, "triples": drawn})
        page = tmp_path / f"page_{offset}"
        status, _, err = outcome(main, film, *FEW, "--model", run, "--out", page)
        assert status == 0, err
        assert f"--offsets {offset}<" in (page / "index.html").read_text()


def test_pages_say_the_minutes_that_were_measured():
    """`about N minutes` beside the steps of a training: N is computed, everywhere."""
    pages = [*(ROOT / "nbs").glob("*.ipynb"), *(ROOT / "nbs").glob("*/*.ipynb"), ROOT / "README.md"]
    said = []
    for page in pages:
        for steps, minutes in MINUTES.findall(page.read_text(encoding="utf-8")):
            assert int(minutes) == training_minutes(int(steps)), (page, steps, minutes)
            said.append(page.name)
    assert {"films.ipynb", "index.ipynb", "README.md"} <= set(said)


def test_a_checkpoint_is_held_against_its_own_preset(tmp_path):
    place = tmp_path / "run" / "checkpoints" / "step_000007"
    shutil.copytree(kept_result("models/no_ac_cpu") / "model", place)
    write_json(tmp_path / "run" / "config.json", {"preset": "no_ac_cpu"})
    write_json(tmp_path / "run" / "data.json", {"folders": []})
    assert preset_of(tmp_path / "run") == preset_of(place) == "no_ac_cpu"
    assert origin(tmp_path / "run") == origin(place) == {"folders": []}


# --- GIF ------------------------------------------------------------------------------------------


def test_any_frame_of_a_gif_is_the_right_one(tmp_path):
    assert check_exact(write_gif(tmp_path / "a.gif", moving(40)), queries=20) == 60


def test_a_gif_beside_films_or_pictures_is_a_preview(tmp_path):
    write_gif(tmp_path / "preview.gif", moving(8))
    assert recognize(tmp_path) == "video" and len(open_dataset(tmp_path).trajectories) == 1
    write_film(tmp_path / "film.mp4", moving(9))
    assert [len(t) for t in open_dataset(tmp_path).trajectories] == [9]


# --- a model of one's own films ------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_model(tmp_path_factory):
    """A run on three films, of which the last was held out; the weights are the package's."""
    root = tmp_path_factory.mktemp("own")
    films = root / "films"
    films.mkdir()
    for n in range(3):
        write_film(films / f"robot_{n}.mp4", moving(24 + n))
    shots = open_dataset(films).trajectories
    told = folder_origin(str(films), shots, 2, [episode_digest(t) for t in shots])
    shutil.copytree(kept_result("models/ac_lam_cpu") / "model", root / "run" / "model")
    write_json(root / "run" / "config.json", {"preset": "ac_lam_cpu"})
    about = {"folders": [told | {"fit": "squeeze"}], "embodiments": [""], "quantiles": {}}
    write_json(root / "run" / "data.json", about)
    return root


def test_a_film_of_the_training_is_named_and_its_numbers_are_no_praise(own_model, outcome):
    film = own_model / "films" / "robot_0.mp4"
    words = ["--model", own_model / "run", "--n", "16", "--out", own_model / "page"]
    status, said, err = outcome(main, film, *words)
    assert status == 0, err
    assert "robot_0 is one of the films it was trained on (films)." in said
    assert "Measured on what the model was trained on: none of it was held out." in said
    found = read_json(own_model / "page" / "look.json")
    assert found["verdict"]["title"] not in (GOOD.title, WEAK.title)
    assert found["facts"]["Model"]["sees"].startswith("all, squeezed")  # as in its training


def test_a_copy_of_a_held_out_film_is_known_and_held_against_the_package(own_model, outcome):
    copy = shutil.copy(own_model / "films" / "robot_2.mp4", own_model / "copy.mp4")
    found = looked(outcome, copy, own_model / "other", "--model", own_model / "run")
    page = (own_model / "other" / "index.html").read_text()
    assert "copy is one of the films that its training held out (films)." in page
    said = str(found) + page
    assert "it was trained on." not in said and "on its own data." not in said
    assert ("weak: between the two." in page) == bool(found["words"])


@pytest.mark.parametrize("preset", ["no_ac_cpu", "villa_x_cpu", "univla_cpu", "lapa_cpu"])
@pytest.mark.parametrize(
    ("key", "value"),
    [("additivity", 0.97), ("inverse", 1.5), ("identity", 0.95), ("norm_correlation", 0.2)],
)
def test_structure_that_a_preset_does_not_have_is_no_yardstick(preset, key, value):
    """That the twin's latents add up no better makes them no good ones."""
    judged = judge(METRICS[key], value, preset)
    assert judged.word == "weak" and "ac_lam_cpu" in judged.sentence


def test_what_is_exact_by_form_may_be_rounded():
    assert judge(METRICS["additivity"], 1e-6, "potential_lam_cpu").word == "good"
    assert judge(METRICS["additivity"], 0.2, "potential_lam_cpu").word == "weak"


def test_the_words_name_whose_numbers_they_are_held_against():
    kept = judge(METRICS["reconstruction"], 0.8, "ac_lam_cpu").sentence
    own = judge(METRICS["reconstruction"], 0.8, "ac_lam_cpu", kept=False).sentence
    assert kept.endswith("less well than on the data it was trained on.")
    assert own.endswith("less well than the package's ac_lam_cpu on its simulators.")
    judged = judgements({"reconstruction": 0.7, "additivity": 1.2}, "ac_lam_cpu")
    assert "sees a little of what happens" in verdict({}, judged).title
    judged = judgements({"reconstruction": 0.4, "additivity": 1.2}, "ac_lam_cpu")
    assert "sees what happens" in verdict({}, judged).title
    for seen in ("trained", "unknown"):
        assert "sees what happens" not in verdict({}, judged, seen).title
    alike = {"reconstruction": 0.785, "identity": 1.0, "inverse": 1.99}
    assert verdict(alike, judged).title == "Nearly the same latent for every pair"


def test_a_model_of_these_films_is_told_to_train_longer_in_the_same_way(outcome, tmp_path):
    films = tmp_path / "films"
    films.mkdir()
    for n in range(3):
        write_film(films / f"{n}.mp4", moving())
    words = ["--data", films, "--out", tmp_path / "mine", "--train.steps", 3, "--probe-n", 16]
    words += ["--train.batch-size", 4, "--triples.human-span-s", 3]
    status, _, err = outcome(train_lam.main, *words, "--triples.human-offset-s", 0.1, 3)
    assert status == 0, err
    page = tmp_path / "page"
    status, _, err = outcome(main, films, "--model", tmp_path / "mine", "--n", 32, "--out", page)
    assert status == 0, err
    told = html.unescape((page / "index.html").read_text())
    longer = re.search("aclam-train-lam [^<]*", told).group()
    asked = train_lam.settings_from(shlex.split(longer)[1:])
    assert asked.train.steps == 6 and asked.out == f"{tmp_path / 'mine'}_longer"
    assert asked.data == (str(films),) and asked.preset == "ac_lam_cpu"
    assert asked.triples.human_offset_s == (0.1, 3) and asked.triples.human_span_s == 3
    assert "of what the motion itself changed (mean square)" in told


def test_what_is_told_to_be_done_with_one_film_can_be_done(tmp_path):
    film = write_film(tmp_path / "film.mp4", moving())
    assert not any("train" in words for words in commands_of(LookConfig(str(film)), True).values())
    write_film(tmp_path / "another.mp4", moving())
    told = " ".join(commands_of(LookConfig(str(film)), True).values())
    assert f"--data {shlex.quote(str(tmp_path))} " in told
