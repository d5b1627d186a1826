"""Phases of a training keep their share of its steps; what it draws, says and asks for."""

import json
import re
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from aclam.commands import entry
from aclam.data.store import write_store
from aclam.data.trajectory import synthetic_trajectory
from aclam.lam import LatentActionModel
from aclam.lam.quantizer import not_yet_quantized
from aclam.train import lam, policy
from aclam.train.tracker import Tracker

HELP = Path(entry.__file__).parents[1] / "configs" / "help"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("proportion") / "data"
    write_store(folder, (synthetic_trajectory(seed=n, T=12, size=32) for n in range(20)))
    return folder


def test_the_user_sets_the_steps_and_phases_follow():
    usual = lam.settings_from([])
    short = lam.settings_from(["--train.steps", "340"])
    assert usual.model.bottleneck.continuous_steps == 2200
    assert short.model.bottleneck.continuous_steps == 220
    assert (short.train.probe_every, short.train.checkpoint_every) == (25, 25)
    paper = lam.settings_from(["--preset", "ac_lam_paper", "--train.steps", "1000"])
    assert paper.train.warmup_steps == 20 and paper.model.bottleneck.continuous_steps == 10


def test_what_is_said_wins():
    words = ["--train.steps", "340", "--model.bottleneck.continuous-steps", "2200"]
    own = lam.settings_from([*words, "--train.probe-every", "7"])
    assert own.model.bottleneck.continuous_steps == 2200 and own.train.probe_every == 7
    assert lam.settings_from(["--train.steps", "3400"]) == lam.settings_from([])


def test_a_policy_follows_too():
    need = ["--preset", "policy_paper_wo_lam", "--data", "x"]
    usual = policy.settings_from(need).train
    short = policy.settings_from([*need, "--train.steps", str(usual.steps // 10)]).train
    assert short.warmup_steps == usual.warmup_steps // 10


SMALL = [
    "--train.steps",
    "4",
    "--train.batch-size",
    "4",
    "--probe-n",
    "8",
    "--train.log-every",
    "2",
]


def train(data: Path, out: Path, *words: str, outcome) -> tuple[int, str, str]:
    return outcome(lam.main, "--data", data, "--out", out, *SMALL, *words)


def test_a_run_that_will_not_quantize_says_so_first(data, tmp_path, outcome):
    words = ["--model.bottleneck.continuous-steps", "9", "--tracker", "none"]
    status, out, err = train(data, tmp_path / "run", *words, outcome=outcome)
    assert status == 0 and "will not quantize: its continuous phase has 9 steps" in err
    assert "on what was held out:" in out and "Eq. 7" in out and "lower is better" in out
    assert not list((tmp_path / "run").glob("tb/*"))
    model = LatentActionModel.from_pretrained(tmp_path / "run" / "model")
    assert "continuous phase has 5 steps left" in not_yet_quantized(model)


def test_tensorboard_gets_pictures(data, tmp_path, outcome):
    status, _, err = train(data, tmp_path / "run", outcome=outcome)
    assert status == 0 and "will not quantize" not in err
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(tmp_path / "run" / "tb"))
    found.Reload()
    assert any("reconstruction" in tag for tag in found.Tags()["images"])
    assert "probe/additivity" in found.Tags()["scalars"]
    weights = tmp_path / "run" / "model" / "model.safetensors"
    train(data, tmp_path / "other", "--tracker", "none", outcome=outcome)
    assert (
        weights.read_bytes() == (tmp_path / "other" / "model" / "model.safetensors").read_bytes()
    )  # drawing leaves no trace


class Recorded(ModuleType):
    """A tracker's library that writes down what it is told."""

    def __init__(self, name: str):
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        self.told = []
        self.config = self

    def init(self, **about):
        self.told.append(("init", about))
        return self

    def log(self, values, step=None, **_):
        self.told.append((step, values))

    def finish(self):
        self.told.append("end")

    def Image(self, picture):  # noqa: N802 (their name)
        assert picture.dtype == np.uint8 and picture.shape[-1] == 3
        return "a picture"


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_other_trackers(name, data, tmp_path, outcome, monkeypatch):
    library = Recorded(name)
    monkeypatch.setitem(sys.modules, name, library)
    status, _, err = train(data, tmp_path / "run", "--tracker", name, outcome=outcome)
    assert status == 0, err
    (_, about), *told, end = library.told
    assert about["project"] == "aclam" and end == "end"
    assert re.fullmatch("run" if name == "wandb" else "run-[0-9a-f]{8}", about["name"])
    assert about["config"]["train"]["steps"] == 4
    keys = {key for _, values in told for key in values}
    assert {"loss", "probe/additivity", "reconstruction"} <= keys


@pytest.mark.parametrize("name, key", [("wandb", "id"), ("trackio", "name")])
def test_a_run_that_begins_anew_is_another_curve(name, key, tmp_path, monkeypatch):
    """Both libraries append to a run of the same name."""
    library = Recorded(name)
    monkeypatch.setitem(sys.modules, name, library)
    for first in (0, 10, 0):
        Tracker(name, tmp_path, first).close()
    one, more, other = (told[1][key] for told in library.told if told[0] == "init")
    assert one == more != other


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_that_is_missing_is_one_line(name, data, tmp_path, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    words = ["--data", data, "--out", tmp_path / "run", "--tracker", name]
    refused(lam.main, words, name, "aclam[trackers]")
    assert not (tmp_path / "run").exists()
    refused(lam.main, ["--data", data, "--tracker", "paper"], "tracker")


def test_version(outcome):
    for prog in entry.COMMANDS:
        status, out, _ = outcome(lambda words, prog=prog: entry.main(words, prog), "--version")
        assert status == 0 and re.fullmatch(rf"{prog} [0-9.]+\n", out)


@pytest.mark.parametrize("file", sorted(HELP.glob("*.txt")), ids=lambda file: file.stem)
def test_a_page_of_help(file):
    text = file.read_text()
    basic = text.split("\nadvanced, ")[0]
    assert basic.count("\n") < 80 and "# assumed" not in text and "--version" in basic
    prog = file.stem.split(".")
    examples = text.split("\nexamples:\n")[1].splitlines()
    assert len(examples) == 2 and all(line.split()[0] == prog[0] for line in examples)
    for line in examples:
        words = line.split()
        subcommand = [word for word in words[1:2] if (HELP / f"{prog[0]}.{word}.txt").exists()]
        options = (HELP / f"{'.'.join([prog[0], *subcommand])}.txt").read_text()
        for option in [word for word in words if word.startswith("--")]:
            assert re.search(rf"^  (--\S+, )?{option}[ ,\n]", options, re.M), (line, option)


def test_presets_are_listed():
    text = (HELP / "aclam-train-lam.txt").read_text()
    assert "no_ac_cpu" in text.split("\npresets:\n")[1].split("\n\n")[0]
    assert "policy_cpu_wo_lam" in (HELP / "aclam-train-policy.txt").read_text()
    assert "villa_x" in (HELP / "aclam-structure.compare.txt").read_text()


def test_a_note_in_python(tmp_path, capsys):
    from toy_lam import Blobs, ToyLam

    from aclam.train.config import TrainConfig
    from aclam.train.loop import train as train_in_python

    torch.manual_seed(0)
    config = TrainConfig(steps=2, batch_size=2, probe_every=0)
    train_in_python(ToyLam(), Blobs(), config, tmp_path / "run")
    assert "will not reach its highest value" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 2
