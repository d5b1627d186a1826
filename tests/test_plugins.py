"""A family of latent action models in a package of its own goes through every command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aclam.commands import entry
from aclam.core import UserError
from aclam.data.store import write_store
from aclam.data.trajectory import synthetic_trajectory
from aclam.plugins import GROUP, VARIABLE
from aclam.train.scale import launch_config

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "tests" / "own_family"
ONE_PROCESS = "import sys; from aclam.commands.entry import main; main(sys.argv[2:], sys.argv[1])"
SHORT = [
    *("--train.steps", "8", "--train.batch-size", "4", "--train.log-every", "4"),
    *("--train.probe-every", "8", "--train.checkpoint-every", "8", "--probe-n", "16"),
]


def environment(*folders: Path, **more: str) -> dict[str, str]:
    """Of a process that finds the modules in these folders, and this checkout."""
    paths = [str(folder) for folder in (*folders, ROOT)]
    kept = {name: value for name, value in os.environ.items() if name != VARIABLE}
    return {**kept, "PYTHONPATH": os.pathsep.join(paths), **more}


def run(words: list, env: dict, cwd: Path) -> subprocess.CompletedProcess:
    words = [sys.executable, *map(str, words)]
    return subprocess.run(words, env=env, cwd=cwd, capture_output=True, text=True, timeout=300)


def answer(prog: str, *words: object, env: dict, cwd: Path) -> dict:
    """What a console script says with --json, in a process of its own."""
    done = run(["-c", ONE_PROCESS, prog, *words, "--json"], env, cwd)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plugins") / "data"
    write_store(folder, (synthetic_trajectory(seed=n, T=24, size=16) for n in range(20)))
    return folder


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> dict[str, str]:
    """The environment of a process that finds the installed package, by its entry point."""
    site = tmp_path_factory.mktemp("site")
    quiet = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--no-cache-dir"]
    source = tmp_path_factory.mktemp("source")  # building leaves folders beside the source
    for file in ("pyproject.toml", "own_family.py"):
        (source / file).write_text((PACKAGE / file).read_text())
    done = run(["-m", "pip", "install", *quiet, "--target", site, source], dict(os.environ), site)
    assert done.returncode == 0, done.stderr
    assert GROUP in next(site.glob("*.dist-info/entry_points.txt")).read_text()
    return environment(site)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, installed, data) -> Path:
    """A model of the family, trained by the command."""
    folder = tmp_path_factory.mktemp("run")
    words = ["--preset", "own_cpu", "--data", data, "--out", folder / "run", *SHORT]
    result = answer("aclam-train-lam", *words, env=installed, cwd=folder)
    assert result["preset"] == "own_cpu" and result["steps"] == 8
    return folder / "run" / "model"


def test_structure_and_leakage_measure_it(trained, installed, data, tmp_path):
    words = ["--model", trained, "--data", data, "--n", "32"]
    row = answer("aclam-structure", *words, env=installed, cwd=tmp_path)
    assert row["additivity"] > 0
    row = answer("aclam-structure", "leakage", *words, env=installed, cwd=tmp_path)
    assert "probes" in row


def test_label_labels_with_it(trained, installed, data, tmp_path):
    words = ["--model", trained, "--data", data, "--out", tmp_path / "labels"]
    assert answer("aclam-label", *words, env=installed, cwd=tmp_path)["pairs"]


def test_a_policy_learns_its_latents(trained, installed, data, tmp_path):
    words = [*SHORT, "--train.steps", "2", "--probe-n", "2", "--model.control", "recorded"]
    words += ["--model.control-hz", "5"]
    words += ["--lam", trained, "--data", data, "--out", tmp_path / "policy"]
    result = answer("aclam-train-policy", *words, env=installed, cwd=tmp_path)
    config = json.loads((Path(result["model"]) / "config.json").read_text())
    assert config["latent_dim"] == 8


def test_a_comparison_trains_and_measures_it(installed, data, tmp_path):
    words = ["compare", "--models", "own_cpu", "--data", data, "--out", tmp_path / "compare"]
    words += ["--steps", "8", "--batch-size", "4", "--seeds", "1", "--n", "32", "--probe-n", "16"]
    words += ["--intervals", "0"]
    results = answer("aclam-structure", *words, env=installed, cwd=tmp_path)
    assert "own_cpu" in json.dumps(results)


def test_its_cost_is_known_as_far_as_it_can_be(installed, tmp_path):
    done = run(["-m", "aclam.train.cost", "--preset", "own_cpu"], installed, tmp_path)
    assert done.returncode in (0, 2) and "Traceback" not in done.stderr, done.stderr
    assert "unknown preset" not in done.stderr


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_module_of_the_present_folder_is_a_plug_in(data, tmp_path, ranks):
    (tmp_path / "mine.py").write_text((PACKAGE / "own_family.py").read_text())
    words = ["--plugin", "mine", "--preset", "own_cpu", "--data", data, "--out", "run", *SHORT]
    if ranks == 1:
        answer("aclam-train-lam", *words, env=environment(), cwd=tmp_path)
        return
    launch = ["-m", "accelerate.commands.launch", "--main_process_port", "0"]
    launch += ["--config_file", launch_config("two_cpu_processes"), "-m", "aclam.train.lam"]
    done = run([*launch, *words], environment(ACCELERATE_USE_CPU="true"), tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


@pytest.mark.timeout(900)
def test_children_of_a_comparison_know_a_named_plug_in(data, tmp_path):
    (tmp_path / "mine.py").write_text((PACKAGE / "own_family.py").read_text())
    words = ["--plugin=mine", "compare", "--models", "own_cpu", "--data", data, "--out", "compare"]
    words += ["--steps", "8", "--batch-size", "4", "--seeds", "1", "--n", "32", "--probe-n", "16"]
    answer("aclam-structure", *words, "--intervals", "0", env=environment(), cwd=tmp_path)


def test_a_plug_in_that_is_not_there_is_one_line(tmp_path):
    words = ["-c", ONE_PROCESS, "aclam-train-lam", "--plugin", "nobody"]
    done = run(words, environment(), tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert 'plug-in "nobody" cannot be imported' in done.stderr
    named = run(words[:3], environment(**{VARIABLE: "nobody"}), tmp_path)
    assert named.returncode == 2 and named.stderr.count("\n") == 1, named.stderr


def test_the_present_folder_is_searched_for_the_plug_in_alone(tmp_path):
    (tmp_path / "mine.py").write_text("import beside\n")
    (tmp_path / "beside.py").write_text("")
    (tmp_path / "later.py").write_text("")
    source = (
        "import sys, importlib.util; sys.path.remove(''); before = list(sys.path); "
        "from aclam.plugins import take_plugins; take_plugins(['--plugin', 'mine']); "
        "print('beside' in sys.modules, sys.path == before, importlib.util.find_spec('later'))"
    )
    done = run(["-c", source], environment(), tmp_path)
    assert done.stdout == "True True None\n", done.stderr
    (tmp_path / "mine.py").write_text("1 / 0\n")
    source = source.replace("take_plugins(['--plugin', 'mine'])", "import contextlib")
    source += (
        "\nwith contextlib.suppress(Exception): take_plugins(['--plugin', 'mine'])"
        "\nprint(sys.path == before)"
    )
    assert run(["-c", source], environment(), tmp_path).stdout.endswith("\nTrue\n")


def test_a_broken_package_takes_no_command_with_it(tmp_path):
    about = tmp_path / "broken-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{GROUP}]\nbroken = no_such_module\n")
    source = "import aclam.lam; print(len(aclam.lam.PRESETS))"
    done = run(["-c", source], environment(tmp_path), tmp_path)
    assert done.returncode == 0 and int(done.stdout) > 5
    assert done.stderr.count("\n") == 1 and "plug-in broken" in done.stderr, done.stderr


def test_a_plug_in_cannot_take_the_name_of_a_family(tmp_path):
    """`test_peers.py` and the chapter on weights have the registry's other refusals."""
    source = (PACKAGE / "own_family.py").read_text()
    (tmp_path / "taker.py").write_text(source.replace('"own", OwnConfig', '"lapa", OwnConfig'))
    done = run(["-c", ONE_PROCESS, "aclam-train-lam", "--plugin", "taker"], environment(), tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert 'plug-in "taker" cannot be imported' in done.stderr
    assert "family lapa is aclam.lam.lapa.Lapa already" in done.stderr


def test_help_stays_light(installed, tmp_path):
    """Neither PyTorch nor a plug-in is imported for the help that is kept."""
    source = (
        "import sys; from aclam.commands.entry import main; main(['--help'], 'aclam-train-lam'); "
        "print('torch' in sys.modules, 'own_family' in sys.modules)"
    )
    done = run(["-c", source], installed, tmp_path)
    assert done.stdout.endswith("False False\n"), done.stderr


def test_a_family_that_is_not_there_says_what_is_missing(trained, data, tmp_path):
    words = ["aclam-label", "--model", trained, "--data", data, "--out", tmp_path / "out"]
    done = run(["-c", ONE_PROCESS, *words], environment(), tmp_path)
    assert done.returncode == 2 and "--plugin MODULE" in done.stderr, done.stderr


def test_words_are_put_in_order():
    with pytest.raises(UserError, match="which?"):
        entry.prepared("aclam-label", ["--plugin"])
