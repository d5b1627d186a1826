"""What a person meets at the command line: answers that can be checked by hand, and one clear line
for bad input.
"""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from aclam.command_line import option_names
from aclam.commands import entry
from aclam.commands.data import main as data
from aclam.commands.entry import HELP
from aclam.commands.look import main as look
from aclam.commands.structure import main as structure
from aclam.core import UserError
from aclam.data.store import write_store
from aclam.data.trajectory import Trajectory, synthetic_trajectory
from aclam.policy.rollout import main as rollout
from aclam.train.label import main as label
from aclam.train.lam import main as train_lam

# --- aclam-structure --latents --------------------------------------------------------------------

HAND = {  # one-dimensional but for z_ij, so that every number can be had without a computer
    "z_ij": [[3.0, 4.0], [0.0, 5.0], [6.0, 8.0]],  # lengths 5, 5, 10
    "z_jk": [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]],
    "z_ik": [[4.0, 4.0], [0.0, 8.0], [6.0, 7.0]],  # off by 0, 2, 1
    "z_ii": [[0.0, 1.0], [0.0, 0.0], [3.0, 0.0]],  # lengths 1, 0, 3
    "z_ji": [[-3.0, -4.0], [0.0, -4.0], [-6.0, -5.0]],  # off by 0, 1, 3
    "ds": [1.0, 1.0, 3.0],
}


@pytest.fixture
def latents(tmp_path):
    def save(**changes):
        arrays = {k: np.array(v) for k, v in (HAND | changes).items() if v is not None}
        np.savez(tmp_path / "latents.npz", **arrays)
        return tmp_path / "latents.npz"

    return save


def test_structure_agrees_with_a_computation_by_hand(outcome, latents):
    status, out, err = outcome(structure, "--latents", latents(), "--json")
    got = json.loads(out)
    assert status == 0 and out.count("\n") == 1 and got["n"] == 3
    assert got["additivity"] == pytest.approx((0 + 4 + 1) / (25 + 25 + 100))  # Eq. 7
    assert got["norm_correlation"] == pytest.approx(1)  # Eq. 8: lengths 5, 5, 10 against 1, 1, 3
    assert got["identity"] == pytest.approx((1 + 0 + 3) / 20)  # Eq. 9
    assert got["inverse"] == pytest.approx((0 + 1 + 3) / 20)  # Eq. 10


def test_structure_of_vanished_latents_is_null_not_nan(outcome, latents):
    zero = {k: np.zeros((3, 2)) for k in HAND if k != "ds"}
    status, out, _ = outcome(structure, "--latents", latents(**zero), "--json")
    assert status == 0 and json.loads(out)["additivity"] is None and "NaN" not in out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"z_jk": None}, ["z_jk"]),
        ({"z_jk": [[1.0, 0.0]]}, ["z_jk", "(1, 2)", "(3, 2)"]),
        ({"z_ik": [1.0, 2.0, 3.0]}, ["z_ik", "(3,)"]),
        ({"ds": [1.0, 2.0]}, ["ds", "(2,)"]),
        ({"z_ii": [[np.nan, 0.0]] * 3}, ["z_ii", "NaN"]),
        ({"z_ji": [["a", "b"]] * 3}, ["z_ji"]),
        (
            {k: np.zeros((0, 2)) for k in HAND if k != "ds"} | {"ds": np.zeros(0)},
            ["nothing to measure"],
        ),
    ],
)
def test_structure_refuses_bad_arrays(refused, latents, changes, words):
    refused(structure, ["--latents", latents(**changes), "--json"], "aclam-structure: ", *words)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a whole archive", b"some text\n"])
def test_structure_refuses_a_broken_file(refused, tmp_path, content):
    (tmp_path / "bad.npz").write_bytes(content)
    refused(structure, ["--latents", tmp_path / "bad.npz"], "aclam-structure: ", "bad.npz")


def test_structure_refuses_pickled_objects(refused, latents):
    refused(
        structure,
        ["--latents", latents(ds=np.array([{}, {}, {}], dtype=object))],
        "aclam-structure: ",
    )


def test_structure_refuses_a_missing_file_and_an_empty_command(refused, tmp_path):
    refused(structure, ["--latents", tmp_path / "none.npz"], "none.npz")
    refused(structure, [], "--latents")


# --- aclam-data -----------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path):
    """Three short episodes on disk."""
    write_store(tmp_path / "store", [synthetic_trajectory(seed=s) for s in range(3)], {})
    return tmp_path / "store"


def test_inspect_answers_with_one_object(outcome, store):
    status, out, _ = outcome(data, "inspect", store, "--json")
    got = json.loads(out)
    assert status == 0 and got["episodes"] == 3 and out.count("\n") == 1
    assert {"format", "frames", "fps", "cameras", "proprio", "embodiment", "lengths"} <= set(got)


def test_a_truncated_table_is_named(refused, store):
    part = next((store / "frames").rglob("*.parquet"))
    part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])
    refused(data, ["inspect", store, "--json"], "aclam-data", part.name)


def test_an_image_that_cannot_be_read_is_named(refused, store, tmp_path):
    part = next((store / "frames").rglob("*.parquet"))
    content = part.read_bytes()
    start = content.index(b"\xff\xd8\xff")  # the first JPEG; its size stays, so the table is whole
    part.write_bytes(content[:start] + bytes(64) + content[start + 64 :])
    words = ["frame", store, "--episode", 0, "--index", 0, "--out", tmp_path / "x.png"]
    refused(data, words, "aclam-data", "frame 0", "cannot be read")
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["inspect", "nowhere"], ["no such dataset", "nowhere"]),
        (["inspekt", "x"], ["inspect"]),
        (["inspect", "x", "--jsn"], ["--json"]),
        (["prepare", "emojy", "--out", "x"], ["emoji"]),
        (["inspect"], ["path"]),
    ],
)
def test_data_refuses_a_wrong_command_line(refused, argv, words):
    line = refused(data, argv)
    assert all(word in line.lower() for word in words)


FRAMES = np.zeros((3, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("frames", "times", "says"),
    [
        (FRAMES[:1], [0.0], "needs at least two frames"),
        (FRAMES, [0.0, 0.2, 0.1], "time stamps must increase"),
        (FRAMES, [0.0, 0.1, np.nan], "not finite"),
        (FRAMES, [0.0, 0.1], "3 frames but 2 time stamps"),
    ],
)
def test_a_trajectory_that_makes_no_sense_names_its_episode(frames, times, says):
    options = {
        "scene": "s",
        "embodiment": "e",
        "task": "t",
        "kind": "robot",
        "name": "emoji/000012",
    }
    with pytest.raises(UserError, match=f"emoji/000012.*{says}"):
        Trajectory(frames, np.array(times), **options)


# --- aclam-train-lam ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--preset", "ac_lam_cp"], ["ac_lam_cp", 'Did you mean "ac_lam_cpu"?']),
        (["--train.stepz", "3"], ["--train.stepz", 'Did you mean "--train.steps"?']),
        (["--data", "nowhere"], ["nowhere"]),
    ],
)
def test_training_refuses_bad_input(refused, tmp_path, argv, words):
    refused(train_lam, ["--out", tmp_path / "run", *argv], "aclam-train-lam: ", *words)
    assert not (tmp_path / "run").exists()


# --- --device -------------------------------------------------------------------------------------

# a command that has the option -> its main, and words without which it is another question
DEVICES = {
    "aclam-structure": (structure, "--model nowhere --data nowhere"),
    "aclam-structure.leakage": (structure, "leakage --model nowhere --data nowhere"),
    "aclam-structure.compare": (structure, "compare --data nowhere --out OUT"),
    "aclam-structure.worth": (structure, "worth --data nowhere --out OUT"),
    "aclam-structure.lary": (structure, "lary --data nowhere --out OUT"),
    "aclam-label": (label, "--model nowhere --data nowhere --out OUT"),
    "aclam-rollout": (rollout, "--policy expert --episodes 1 --out OUT"),
    "aclam-look": (look, "nowhere --out OUT"),
}


def test_all_commands_with_a_device_are_here():
    asked = {file.stem for file in HELP.iterdir() if "--device" in file.read_text("utf-8")}
    assert asked == set(DEVICES)


@pytest.mark.parametrize("device", ["bogus", "meta", "cuda:99"])
@pytest.mark.parametrize("command", DEVICES)
def test_a_device_that_is_none_is_refused_before_anything_is_read(
    refused, tmp_path, command, device
):
    main, words = DEVICES[command]
    words = [tmp_path / "out" if word == "OUT" else word for word in words.split()]
    refused(main, [*words, "--device", device], device)
    assert not (tmp_path / "out").exists()


def test_a_file_of_latents_is_no_excuse_for_a_wrong_device(refused, latents):
    refused(structure, ["--latents", latents(), "--device", "bogus"], '"bogus"', "cuda:N expected")


# --- python -m ------------------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parents[1]
HELPERS = {"aclam.children", "aclam.train.stop"}  # started by our own processes


def command_modules() -> list[str]:
    """All modules with a `main`: what `python -m` runs."""
    found = []
    for path in sorted((ROOT / "aclam").rglob("*.py")):
        if re.search(r"^def main\(", path.read_text(), re.M):
            found.append(".".join(path.relative_to(ROOT).with_suffix("").parts))
    return [name for name in found if name not in HELPERS]


# those that a console script starts, too, or that once did nothing; the others are slow
FIRST = ("train.lam", "train.label", "commands.data", "commands.structure", "policy.rollout")


def tried(module: str) -> object:
    first = module.removeprefix("aclam.") in FIRST
    return pytest.param(module, marks=() if first else pytest.mark.slow)


@pytest.mark.parametrize("module", map(tried, command_modules()))
def test_a_module_runs_as_a_command(module):
    """A module that does nothing and says 0 is the worst of answers."""
    command = [sys.executable, "-m", module, "--no-such-option"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    said = [line for line in done.stderr.splitlines() if "Warning" not in line]
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    expected = ("--no-such-option", "no command", "with the options of torchrun", "missing from")
    assert any(words in said[-1] for words in expected), done.stderr


@pytest.mark.parametrize("module", sorted(HELPERS))
def test_what_our_processes_start_says_so_when_a_person_does(module):
    command = [sys.executable, "-m", module, "--no-such-option"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0 and done.stdout == ""
    assert done.stderr.splitlines()[-1] == f"{module} is started by other processes, not by hand"


# -- words that are refused before PyTorch is imported


def test_the_kept_help_has_every_option_of_the_program():
    """Else `check_options` would refuse what the program takes."""
    modules = {prog: importlib.import_module(name) for prog, name in entry.COMMANDS.items()}
    types = {f"aclam-data {n}": t for n, (t, _) in modules["aclam-data"].SUBCOMMANDS.items()}
    types |= {
        "aclam-check": modules["aclam-check"].CheckConfig,
        "aclam-demo": modules["aclam-demo"].DemoConfig,
        "aclam-label": modules["aclam-label"].LabelConfig,
        "aclam-linear": modules["aclam-linear"].LinearCommand,
        "aclam-look": modules["aclam-look"].LookConfig,
        "aclam-rollout": modules["aclam-rollout"].RolloutConfig,
        "aclam-structure": modules["aclam-structure"].StructureConfig,
    }
    train = [modules[f"aclam-train-{kind}"] for kind in ("lam", "policy")]
    usual = train[0].settings_for("ac_lam_cpu")
    types |= {"aclam-train-lam": train[0]._config_type(usual)}
    types |= {"aclam-train-policy": train[1].PolicyTrainConfig}
    assert {words.split()[0] for words in types} == set(entry.COMMANDS)
    for words, config_type in types.items():
        prog, *first = words.split()
        names = option_names(config_type)
        # a first field that is no option stands in the usage, in capitals
        usage = re.sub(r"\[[^\]]*\]", "", entry.help_for(prog, first).split("\n")[0])
        is_positional = re.search(r" [A-Z{]", usage)
        given = [f"{name}=1" for name in names[bool(is_positional) :]]
        assert given, words
        entry.check_options([*first, *given], prog)


@pytest.mark.parametrize(
    "prog, words, says",
    [
        (
            "aclam-train-lam",
            ["--train.stepz", "5"],
            'unknown option --train.stepz.*"--train.steps"',
        ),
        ("aclam-train-lam", ["--preset=lapa_cpuu"], 'no preset "lapa_cpuu".*"lapa_cpu"'),
        ("aclam-label", ["--plugin", "no_such_module"], 'plug-in "no_such_module" cannot be'),
        ("aclam-data", ["triples", "x", "--pgn", "y"], 'unknown option --pgn.*"--png"'),
        ("aclam-look", ["film.mp4", "--modle", "y"], 'unknown option --modle.*"--model"'),
    ],
)
def test_wrong_words_cost_no_import_of_pytorch(prog, words, says):
    start = f"""
import sys
from aclam.commands.entry import main
try:
    main({words!r}, {prog!r})
finally:
    print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "False\n")
    assert re.search(says, done.stderr) and done.stderr.count("\n") == 1


def test_what_the_kept_help_cannot_know_is_left_to_the_program(tmp_path, monkeypatch):
    entry.check_options(["figure", "3", "--seeds", "3"], "aclam-linear")
    entry.check_options(["--model.of-a-family-of-yours", "3"], "aclam-train-lam")
    monkeypatch.setenv("ACLAM_PLUGINS", "mine")
    entry.check_preset(["--preset", "mine_cpu"], "aclam-train-lam")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").touch()
    entry.check_plugins(["mine", "json"])
