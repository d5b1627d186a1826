"""What README.md tells people to type is what the commands take."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
import torch

from aclam.commands import entry
from aclam.data.trajectory import synthetic_trajectory
from aclam.data.video import VideoWriter

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = "\n".join(re.findall(r"^```bash\n(.*?)^```", README, re.M | re.S))
LINES = [line for line in BLOCKS.splitlines() if line.startswith("aclam-")]
PYTHON = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
LAUNCHES = [line for line in BLOCKS.splitlines() if line.startswith("accelerate launch")]


def help_of(command: str, words: list[str], capsys) -> str:
    """What `command [subcommand] --help` prints."""
    subcommand = words[:1] if words and not words[0].startswith("-") else []
    with pytest.raises(SystemExit) as e:
        importlib.import_module(entry.COMMANDS[command]).main([*subcommand, "--help"])
    assert not e.value.code
    return capsys.readouterr().out


def test_the_readme_shows_commands():
    assert len(LINES) >= 4 and LAUNCHES


@pytest.mark.parametrize("line", LINES)
def test_every_option_exists(line, capsys):
    command, *words = shlex.split(line, comments=True)
    text = help_of(command, words, capsys)
    assert not [w for w in words if w.startswith("--") and not re.search(rf"{w}\b", text)]


@pytest.mark.parametrize("line", LAUNCHES)
def test_every_launch_is_for_a_module_and_a_file_that_exist(line, capsys):
    words = shlex.split(line, comments=True)
    module, rest = words[words.index("-m") + 1], words[words.index("-m") + 2 :]
    command = next(name for name, target in entry.COMMANDS.items() if target == module)
    text = help_of(command, [], capsys)
    assert not [w for w in rest if w.startswith("--") and not re.search(rf"{w}\b", text)]
    assert all((ROOT / w).is_file() for w in words if w.endswith(".yaml"))


@pytest.mark.parametrize("block", PYTHON)
def test_the_lines_of_python_run_and_give_the_same_twice(block, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    frames = synthetic_trajectory(seed=0, T=12, size=64).frames[list(range(12))]
    with VideoWriter("film.mp4", fps=10) as film:
        film.append(frames)

    runs = []
    for _ in range(2):
        names = {}
        exec(block, names)  # what a reader types
        runs.append(names)
    for name in ("a", "b"):
        assert torch.equal(runs[0][name].z, runs[1][name].z)
        assert runs[0][name].indices is not None
    assert runs[0]["after_both"].shape == runs[0]["o"][:1].shape
    assert "ac_lam_cpu" in capsys.readouterr().out


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!https?:|#)([^)]+)\)", README))))
def test_every_link_leads_somewhere(target):
    assert (ROOT / target).exists()
