"""`--odd`: a model that is read both ways, in every command, for every kept model, or refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from aclam.commands.look import main as look
from aclam.commands.structure import main as structure
from aclam.core import UserError, read_json
from aclam.data.lerobot_metadata import read_info
from aclam.data.store import read_store, write_store
from aclam.data.trajectory import synthetic_trajectory
from aclam.kept import kept_names
from aclam.lam.odd import OddReading, read_as
from aclam.lam.registry import PRESETS, LatentActionModel
from aclam.studies import comparison
from aclam.train import policy as training
from aclam.train.label import main as label
from aclam.train.label_files import labels_of, read_labels, rows_of
from aclam.train.lam import main as train_lam

ALREADY = "odd by construction"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A store, and the folder of a run with a model that quantizes."""
    folder = tmp_path_factory.mktemp("odd")
    write_store(folder / "data", [synthetic_trajectory(s, T=14, size=32) for s in range(6)])
    torch.manual_seed(0)
    quantizes = replace(PRESETS["no_ac_cpu"].bottleneck, continuous_steps=0, init="uniform")
    lam = LatentActionModel.from_preset("no_ac_cpu", bottleneck=quantizes)
    lam.save_pretrained(folder / "run" / "model")
    return folder


# --- which models -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", kept_names())
def test_structure_of_every_kept_model(outcome, place, name):
    words = ["--model", name, "--data", place / "data", "--n", 24, "--first", 0, "--json"]
    status, out, err = outcome(structure, *words, "--odd")
    if name == "potential_lam_cpu":
        assert status == 2 and name in err and ALREADY in err and err.count("\n") == 1
        return
    assert status == 0, err
    read = json.loads(out)
    assert read["identity"] < 1e-6 and read["inverse"] < 1e-6 and "codes_used" not in read
    plain = json.loads(outcome(structure, *words)[1])
    assert plain["inverse"] > 0.1 and plain["n"] == read["n"]


def test_structure_of_a_run_and_its_leaks(outcome, place):
    data = ["--data", place / "data", "--odd", "--json", "--n", 24]
    status, out, err = outcome(structure, "--model", place / "run", *data)
    assert status == 0 and json.loads(out)["inverse"] < 1e-6, err
    status, out, err = outcome(structure, "leakage", "--model", place / "run", *data)
    assert status == 0 and json.loads(out)["probes"], err
    status, _, err = outcome(structure, "--latents", "z.npz", "--odd")
    assert status == 2 and "--odd reads a --model" in err


def test_who_is_odd_already():
    def is_odd(name: str, **changes) -> bool:
        return LatentActionModel.from_preset(name, **changes).is_odd

    assert is_odd("potential_lam_cpu") and is_odd("potential_frame_vq_cpu")
    assert is_odd("odd_signed_cpu"), "its codebook holds the opposite of each code"
    assert not is_odd("potential_vq_cpu"), "its codebook rounds a difference and its opposite apart"
    for name in ("ac_lam_cpu", "odd_cpu", "villa_x_cpu", "lapa_cpu", "univla_cpu"):
        assert not is_odd(name), name
    torch.manual_seed(0)
    lam = LatentActionModel.from_preset("potential_frame_vq_cpu")
    o_i, o_j = torch.rand(2, 3, 3, 32, 32)
    assert torch.equal(lam.encode(o_i, o_j).z, -lam.encode(o_j, o_i).z)
    assert read_as(lam, False) is lam
    with pytest.raises(UserError, match=f"mine: its latents are {ALREADY}"):
        read_as(lam, True, "mine")


# --- labels -------------------------------------------------------------------------------------------


def latents(folder: Path, column: str) -> np.ndarray:
    labels = read_labels(folder)
    return rows_of(labels, column, range(len(labels)))


def test_labels_are_half_the_difference_of_both_directions(outcome, place):
    words = ["--model", place / "run", "--data", place / "data", "--json"]
    plain = json.loads(outcome(label, *words, "--offsets", 2, -2)[1])
    status, out, err = outcome(label, *words, "--offsets", 2, "--odd")
    assert status == 0, err
    read = json.loads(out)
    assert Path(read["folder"]).name == "run_odd" and Path(plain["folder"]).name == "run"
    assert read["model"] == plain["model"] | {"odd": True} and read["tokens"] is None
    assert plain["tokens"] == 16 and "odd" not in read_json(Path(plain["folder"]) / "labels.json")

    there = latents(plain["folder"], "latent_action_2").reshape(6, 14, -1)
    back = latents(plain["folder"], "latent_action_-2").reshape(6, 14, -1)
    odd = latents(read["folder"], "latent_action_2").reshape(6, 14, -1)
    expected = (there[:, :-2] - back[:, 2:]) / 2
    assert np.allclose(odd[:, :-2], expected, atol=1e-5) and np.isnan(odd[:, -2:]).all()


def test_a_job_read_both_ways_is_another_job(outcome, place):
    words = ["--model", place / "run", "--data", place / "data", "--name", "mine"]
    assert outcome(label, *words)[0] == 0
    status, _, err = outcome(label, *words, "--odd")
    assert status == 2 and "model.odd" in err and "choose another --name" in err
    store = read_store(place / "data")
    lam = LatentActionModel.from_pretrained(place / "run")
    outcome(label, *words[:4], "--odd", "--name", "both")
    assert labels_of(store, lam)[1].name == "mine"
    assert labels_of(store, lam.odd())[1].name == "both"


def test_labels_that_cannot_be(outcome, place):
    words = ["--data", place / "data", "--odd"]
    status, _, err = outcome(label, "--model", place / "run", *words, "--values", "codes")
    assert status == 2 and "in no codebook" in err
    status, _, err = outcome(label, "--model", "potential_lam_cpu", *words)
    assert status == 2 and ALREADY in err and not (place / "data/labels/potential_odd").exists()


def test_the_lerobot_columns(outcome, place, tmp_path):
    words = ["--model", place / "run", "--data", place / "data", "--odd"]
    status, out, err = outcome(label, *words, "--name", "l", "--lerobot", tmp_path / "l", "--json")
    assert status == 0, err
    assert json.loads(out)["lerobot"] == ["latent_action_1", "latent_action_1_is_pad"]
    assert "latent_codes_1" not in read_info(tmp_path / "l").features
    assert '"odd": true' in "".join(p.read_text() for p in (tmp_path / "l").rglob("*.json"))


# --- the others ---------------------------------------------------------------------------------------


def test_a_look(outcome, place, tmp_path):
    words = [place / "data", "--n", 16, "--json"]
    status, out, err = outcome(look, *words, "--odd", "--out", tmp_path / "page")
    assert status == 0, err
    found = json.loads(out)
    assert found["numbers"]["inverse"] < 1e-6
    assert "both directions" in found["facts"]["Model"]["a latent"]
    page = (tmp_path / "page" / "index.html").read_text()
    assert "read both ways" in page and "no codebook" in page and "aclam-label --model" in page
    assert page.count(" --odd") == 2, "the same page again, and its labels"
    status, _, err = outcome(look, *words, "--out", tmp_path / "page")
    assert status == 2 and "odd was" in err, "the page of the model as trained is another"
    status, _, err = outcome(look, *words, "--odd", "--model", "potential_lam_cpu")
    assert status == 2 and ALREADY in err


@pytest.mark.slow
def test_a_comparison(tmp_path):
    models = ("no_ac_cpu", "potential_lam_cpu")
    config = comparison.quick(tmp_path, models=models)

    def train(config, deadline):
        for name in config.models:
            if not comparison.is_trained(config, name, 0):
                train_lam(comparison.train_words(config, name, 0))
            yield name, 0

    plain = comparison.compare(config, train)
    read = comparison.compare(comparison.quick(tmp_path, models=models, odd=True), train)
    assert read["read"] == "both ways" and "read" not in plain and "--odd" in read["command"]
    assert "both ways" in comparison.as_text(read)
    one, two = (found["models"]["no_ac_cpu"]["0"]["structure"]["left"] for found in (plain, read))
    assert two["inverse"] < 1e-6 < one["inverse"] and two["n"] == one["n"]
    again = comparison.compare(config, train)
    assert again["table_1"] == plain["table_1"], "what was measured as trained is kept"
    same = [found["models"]["potential_lam_cpu"]["0"]["structure"] for found in (plain, read)]
    assert same[0] == same[1], "it is odd already"


def test_a_policy_on_the_odd_reading(place):
    lam = training.open_lam(str(place / "run"), odd=True)
    assert isinstance(lam, OddReading)
    with pytest.raises(UserError, match=ALREADY):
        training.open_lam("potential_lam_cpu", odd=True)
    words = ["--preset", "policy_cpu_wo_lam", "--data", "x", "--odd"]
    with pytest.raises(UserError, match="--odd reads the model of --lam"):
        training.settings_from(words)
