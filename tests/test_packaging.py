"""The package as its users get it: two configurations that agree, a wheel that stands alone,
commands that answer.
"""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
from alone import build_wheel
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import aclam

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
_parser = ConfigParser(delimiters=["="], interpolation=None)
_parser.read(ROOT / "settings.ini")
SETTINGS = _parser["DEFAULT"]


def lines(key: str) -> list[str]:
    return [line for line in SETTINGS[key].split("\n") if line]


SCRIPTS = dict(line.split("=") for line in lines("console_scripts"))
LOCK = dict(
    line.split("==")
    for line in (ROOT / "requirements.lock").read_text().splitlines()
    if line[0] != "#"
)
EXTRAS = [key for key in SETTINGS if key.endswith("requirements")]


# --- two configurations ---------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["lib_path", "nbs_path", "doc_path"])
def test_nbdev_and_setup_agree(key):
    assert SETTINGS[key] == PYPROJECT["tool"]["nbdev"][key]


def test_name_version_python_and_addresses_agree():
    project = PYPROJECT["project"]
    assert SETTINGS["lib_name"] == project["name"]
    assert SETTINGS["version"] == aclam.__version__
    assert f">={SETTINGS['min_python']}" == project["requires-python"]
    assert (
        "py" + SETTINGS["min_python"].replace(".", "")
        == PYPROJECT["tool"]["ruff"]["target-version"]
    )
    assert SETTINGS["git_url"] == project["urls"]["Repository"]
    assert SETTINGS["doc_url"] == project["urls"]["Documentation"]


def test_citation_has_the_version_and_licence():
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"version: {aclam.__version__}\n" in citation
    assert f"license: {SETTINGS['license']}\n" in citation
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_the_lock_is_exact_and_holds_no_address():
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][\w.]*", f"{n}=={v}") for n, v in LOCK.items())
    assert len(LOCK) > 100


# clients of services that no test here talks to; 217 MB for one format; weights of no named license
NOT_LOCKED = ("trackers_requirements", "lance_requirements", "imagenet_requirements")


@pytest.mark.parametrize("extra", [e for e in EXTRAS if e not in NOT_LOCKED])
def test_what_is_locked_is_what_users_may_have(extra):
    for line in lines(extra):
        requirement = Requirement(line)
        assert requirement.specifier.contains(LOCK[canonicalize_name(requirement.name)]), line


DISTRIBUTIONS = {
    "PIL": "pillow",
    "lance": "pylance",
    "mcap_protobuf": "mcap-protobuf-support",
    "mcap_ros2": "mcap-ros2-support",
    "yaml": "pyyaml",
}


def imported(path: Path) -> set[str]:
    """The libraries that a module names in an import, or in a call of `library`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "library":
            names |= {a.value for a in node.args[:1] if isinstance(a, ast.Constant)}
    tops = {name.split(".")[0] for name in names}
    return tops - set(sys.stdlib_module_names) - {"aclam"}


def test_what_the_package_imports_it_declares():
    """Not what another library happens to bring."""
    declared = {canonicalize_name(Requirement(x).name) for key in EXTRAS for x in lines(key)}
    found = set().union(*(imported(path) for path in (ROOT / "aclam").rglob("*.py")))
    assert len(found) > 20
    missing = {n for n in found if canonicalize_name(DISTRIBUTIONS.get(n, n)) not in declared}
    assert not missing


# --- the wheel ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from a copy, so that no earlier build can leak into it."""
    return build_wheel(tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_the_package_and_its_data(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    data = ("configs/*.yaml", "configs/help/*.txt", "data_recipes/*/*.yaml", "data_recipes/*/*.md")
    for pattern in ("*.py", *data):
        there = {p.relative_to(ROOT).as_posix() for p in (ROOT / "aclam").rglob(pattern)}
        assert there <= held, there - held
    assert not [name for name in held if not re.match(r"aclam(-[\d.]+\.dist-info)?/", name)]


def test_the_wheel_alone_finds_its_recipes(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = "from aclam.commands.data import main; main(['plan', 'mixtures/ac_lam.yaml', '--root', 'nowhere', '--json'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (3, "")
    assert len(json.loads(done.stdout)["missing"]) == 28


def test_the_wheel_says_what_it_needs(wheel):
    with zipfile.ZipFile(wheel) as z:
        name = next(n for n in z.namelist() if n.endswith("/METADATA"))
        metadata = z.read(name).decode()
        scripts = z.read(name.replace("METADATA", "entry_points.txt")).decode()
    assert (
        f"\nVersion: {aclam.__version__}\n" in metadata
        and "\nLicense-Expression: Apache-2.0\n" in metadata
    )
    assert "\nRequires-Python: >=3.11\n" in metadata
    assert all(
        f"\nRequires-Dist: {Requirement(line).name}" in metadata for line in lines("requirements")
    )
    assert all(f"\nProvides-Extra: {e}\n" in metadata for e in ("sim", "dev", "policy", "docs"))
    assert all(f"{command} = {target}" in scripts for command, target in SCRIPTS.items())
    needed = [m for m in re.findall(r"\nRequires-Dist: (.*)", metadata) if "extra ==" not in m]
    assert not [m for m in needed if re.match("nbdev|fastai|mujoco|pytest", m)]


def test_the_wheel_alone_imports_quickly_and_lightly(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "import sys, time; start = time.process_time(); import aclam, aclam.core; "
        "took = time.process_time() - start; "
        "heavy = [m for m in ('torch', 'mujoco', 'nbdev', 'fastcore', 'fastai') if m in sys.modules]; "
        "print(aclam.__file__, took < 1, heavy)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == [str(tmp_path / "aclam" / "__init__.py"), "True", "[]"], (
        done.stderr
    )


def test_the_package_does_not_need_the_notebook_tools():
    """What is exported may import neither nbdev nor IPython: users do not have them."""
    for path in (ROOT / "aclam").rglob("*.py"):
        found = re.findall(r"^\s*(?:from|import) (nbdev|execnb|IPython)\b", path.read_text(), re.M)
        assert not found, f"{path.relative_to(ROOT)} imports {found[0]}"


# --- commands -------------------------------------------------------------------------------------


def run_script(command: str, *words: str) -> tuple[subprocess.CompletedProcess, float]:
    """A console script as pip makes it, in a process of its own, and its CPU seconds."""
    module, function = SCRIPTS[command].split(":")
    source = f"import sys; from {module} import {function}; sys.argv[0] = {command!r}; {function}()"
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-c", source, *words], capture_output=True, text=True, timeout=120
    )
    after = os.times()
    used = after.children_user + after.children_system
    return done, used - before.children_user - before.children_system


@pytest.fixture(scope="module")
def torch_alone() -> float:
    """CPU seconds of a process that imports PyTorch and does nothing."""
    before = os.times()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    after = os.times()
    used = after.children_user + after.children_system
    return used - before.children_user - before.children_system


def test_the_kept_help_is_what_the_programs_print():
    tool = ROOT / "tools" / "help_texts.py"
    done = subprocess.run([sys.executable, tool, "--check"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stdout + done.stderr[-2000:]


OPTION = re.compile(r"^  (--[\w.-]+)(.*\n(?:    .*\n)*)", re.M)
VALUES = r"(, --[\w.-]+)?\s*(\{.*?\}(\|[A-Z]+)?|\[.*?\]\]|[A-Z]+( [A-Z]+)*)?"


def test_every_option_is_explained():
    """A comment that stands beside a value in brackets, not beside its field, is no help."""
    silent = []
    for file in sorted((ROOT / "aclam" / "configs" / "help").glob("*.txt")):
        for option, rest in OPTION.findall(file.read_text()):
            words = re.sub(r"\((default:.*|required)\)", "", " ".join(rest.split()))
            explained = re.sub(f"^{VALUES}", "", words).strip()
            silent += [] if explained else [f"{file.stem} {option}"]
    assert silent == []


@pytest.mark.parametrize("command", SCRIPTS)
def test_every_command_answers_help_at_once(command, torch_alone):
    done, seconds = run_script(command, "--help")
    assert done.returncode == 0 and done.stdout.startswith(f"usage: {command}"), done.stderr
    assert done.stderr == "" and seconds < torch_alone


WRONG_PATHS = [
    ("aclam-data", ["inspect", "nowhere"]),
    ("aclam-data", ["convert", "nowhere", "--out", "x"]),
    ("aclam-label", ["--model", "nowhere", "--data", "."]),
    ("aclam-label", ["--model", ".", "--data", "nowhere"]),
    ("aclam-look", ["nowhere"]),
    ("aclam-look", [".", "--model", "nowhere"]),
    ("aclam-rollout", ["--policy", "nowhere"]),
    ("aclam-structure", ["--model", "nowhere", "--data", "."]),
    ("aclam-structure", ["--latents", "nowhere.npz"]),
    ("aclam-structure", ["compare", "--data", "nowhere"]),
    ("aclam-structure", ["leakage", "--model", "nowhere", "--data", "."]),
    ("aclam-structure", ["worth", "--data", "nowhere"]),
    ("aclam-train-lam", ["--data", "nowhere"]),
    ("aclam-train-lam", ["--data", ".", "--held-out", "nowhere"]),
    ("aclam-train-policy", ["--data", "nowhere"]),
    ("aclam-train-policy", ["--lam=nowhere", "--data", "."]),
]


@pytest.mark.parametrize("command, words", WRONG_PATHS)
def test_every_command_names_a_wrong_path_at_once(command, words, torch_alone, tmp_path):
    done, seconds = run_script(command, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(command) and done.stderr.count("\n") == 1
    assert "nowhere" in done.stderr and seconds < torch_alone


@pytest.mark.parametrize("command", SCRIPTS)
def test_every_command_answers_a_wrong_option_in_one_line(command):
    done, _ = run_script(command, "--no-such-option")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(command) and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_an_installed_wheel_puts_commands_on_the_path(wheel, tmp_path):
    subprocess.run(
        [sys.executable, "-m", "venv", "--system-site-packages", tmp_path / "venv"], check=True
    )
    python = tmp_path / "venv" / "bin" / "python"
    env = {
        k: v for k, v in os.environ.items() if k != "PYTHONPATH"
    }  # it would put this checkout before the wheel
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--no-deps", wheel],
        check=True,
        capture_output=True,
    )
    done = subprocess.run(
        [python, "-c", "import aclam; print(aclam.__version__, aclam.__file__)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env=env,
    )
    assert done.stdout.startswith(aclam.__version__) and str(tmp_path) in done.stdout
    assert all((tmp_path / "venv" / "bin" / command).exists() for command in SCRIPTS)
