"""What README.md tells people to type is run on small inputs, or is listed here with the reason."""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from aclam.commands import entry
from aclam.data.lerobot_writer import write_lerobot
from aclam.data.trajectory import synthetic_trajectory
from aclam.data.video import VideoWriter

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = "\n".join(re.findall(r"^```bash\n(.*?)^```", README, re.M | re.S))
SHELL = [line for line in BLOCKS.splitlines() if line.strip() and not line.startswith("#")]
LINES = [line for line in SHELL if line.startswith("aclam-")]
PYTHON = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
LAUNCHES = [line for line in SHELL if line.startswith("accelerate launch")]

NOT_RUN = {  # how a line begins -> why it is not run here
    "pip install": "installs from the network; tests/test_packaging.py builds and reads the wheel",
    "git clone": "needs the network",
    "make demo": "15 minutes; tests/test_comparison.py runs the demo in small",
    "make test": "is what runs this test",
    "accelerate launch": "needs eight GPUs; its module, options and files are looked at below",
    "sbatch": "needs Slurm; tests/test_cluster.py runs the scripts with a stand-in",
}
SMALL = {  # a command -> words that are put behind, so that it takes seconds
    "aclam-train-lam": "--train.steps 4 --train.batch-size 4 --train.probe-every 4 --probe-n 8",
    "aclam-structure": "--n 16",
    "aclam-rollout": "--episodes 1 --max-steps 3 --videos 1 --envs 1 --video-size 64",
}


def reason(line: str) -> str:
    """Why a line is not run; '' where it is."""
    return next((why for start, why in NOT_RUN.items() if line.startswith(start)), "")


def help_of(command: str, words: list[str], capsys) -> str:
    """What `command [subcommand] --help` prints."""
    subcommand = words[:1] if words and not words[0].startswith("-") else []
    with pytest.raises(SystemExit) as e:
        importlib.import_module(entry.COMMANDS[command]).main([*subcommand, "--help"])
    assert not e.value.code
    return capsys.readouterr().out


def film(path: Path, seed: int) -> None:
    with VideoWriter(path, fps=10) as writer:
        writer.append(synthetic_trajectory(seed=seed, T=12, size=64).frames[list(range(12))])


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Path:
    """A folder with what the README's reader has: films, a LeRobot dataset, a model, a policy."""
    folder = tmp_path_factory.mktemp("desk")
    film(folder / "film.mp4", 0)
    (folder / "films").mkdir()
    for seed in range(3):
        film(folder / "films" / f"{seed}.mp4", seed)
    episodes = [synthetic_trajectory(seed=seed, T=12, size=64) for seed in range(3)]
    write_lerobot(folder / "my_lerobot", episodes)
    shutil.copy(ROOT / "tests/own_family/own_family.py", folder)
    (policy,) = [block for block in PYTHON if block.startswith("# my_policy.py\n")]
    (folder / "my_policy.py").write_text(policy)
    return folder


def test_every_line_is_run_or_excused():
    assert len(LINES) >= 10 and LAUNCHES
    for line in SHELL:
        assert reason(line) or line.startswith(("aclam-", "python -m aclam.")), line
    assert all(any(line.startswith(start) for line in SHELL) for start in NOT_RUN)


@pytest.mark.parametrize("line", LINES)
def test_every_option_exists(line, capsys):
    command, *words = shlex.split(line, comments=True)
    text = help_of(command, words, capsys)
    assert not [w for w in words if w.startswith("--") and not re.search(rf"{w}\b", text)]


IN_ORDER = """
import importlib, json, sys
from aclam.commands.entry import main

for program, words in json.loads(sys.argv[1]):
    print("$", program, *words, file=sys.stderr)
    try:
        if program.startswith("aclam-"):
            main(words, program)
        else:
            importlib.import_module(program).main(words)
    except SystemExit as end:
        if end.code:
            raise
"""


def test_the_lines_of_the_shell_run_in_their_order(desk):
    """Each line of the page with words that make it small; later lines need what earlier made.

    In one child: a plug-in stays known to the process that has imported it.
    """
    calls = []
    for line in [line for line in SHELL if not reason(line)]:
        program, *words = shlex.split(line, comments=True)
        if program == "python":
            program, words = words[1], words[2:]
        calls.append((program, words + shlex.split(SMALL.get(program, ""))))

    paths = os.pathsep.join([str(desk), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", IN_ORDER, json.dumps(calls)],
        cwd=desk,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("$ ") >= len(calls) and "Traceback" not in done.stderr

    assert (desk / "film.labels/ac_lam_cpu/labels.json").is_file()
    assert (desk / "my_latents/meta/info.json").is_file()
    assert list((desk / "runs/mine/videos").glob("*.mp4"))


@pytest.mark.parametrize("line", LAUNCHES)
def test_every_launch_is_for_a_module_and_a_file_that_exist(line, capsys):
    words = shlex.split(line, comments=True)
    module, rest = words[words.index("-m") + 1], words[words.index("-m") + 2 :]
    command = next(name for name, target in entry.COMMANDS.items() if target == module)
    text = help_of(command, [], capsys)
    assert not [w for w in rest if w.startswith("--") and not re.search(rf"{w}\b", text)]
    assert all((ROOT / w).is_file() for w in words if w.endswith(".yaml"))


def test_the_blocks_of_python_run_and_give_the_same_twice(desk, monkeypatch, capsys):
    monkeypatch.chdir(desk)
    runs = []
    for _ in range(2):
        names = {}
        for block in PYTHON:
            exec(block, names)  # what a reader types
        runs.append(names)
    for name in ("a", "b"):
        assert torch.equal(runs[0][name].z, runs[1][name].z)
        assert runs[0][name].indices is not None
    assert runs[0]["after_both"].shape == runs[0]["o"][:1].shape
    assert "ac_lam_cpu" in capsys.readouterr().out
    assert runs[0]["observation"]["instruction"] == runs[1]["observation"]["instruction"]


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!https?:|#)([^)]+)\)", README))))
def test_every_link_leads_somewhere(target):
    assert (ROOT / target).exists()


def test_the_page_names_no_path_of_a_machine_and_no_word_of_the_house():
    assert not re.search(r"(?<![\w./])/(home|root|tmp|work|usr)/", README)
    assert not re.findall(r"\b(twins?|of this house|of the house)\b", README, re.I)


def test_the_moving_picture_moves_and_is_small():
    path = ROOT / "nbs/images/latents.gif"
    assert path.stat().st_size < 1_500_000 and f"({path.relative_to(ROOT)})" in README
    with Image.open(path) as picture:
        assert picture.n_frames >= 20 and min(picture.size) >= 400
