"""The README as a stranger walks it: a new environment with only the wheel, then every block in
order, and what each step takes.

    python tools/first_hour.py [--install] [--steps 200] [--keep]

Blocks are read from README.md; nothing else of the checkout is used. What the reader brings (a
film, a folder of films, a LeRobot dataset, a family and a policy of their own) is made beforehand
with the package's own commands. A line that needs what is not here (the repository, a hub, GPUs, a
cluster) is listed with its reason. `--install` installs the wheel with its requirements from the
package index, as the README says; without it the packages of this interpreter are seen by the new
environment. `--steps` shortens every training. `--keep` writes aclam/results/first_hour.json.
Status 1 where a step fails.
"""

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import venv
from dataclasses import asdict, dataclass
from pathlib import Path

from alone import ROOT, build_wheel, clean_environment, make_environment

KEPT = ROOT / "aclam" / "results" / "first_hour.json"

# What a line needs that is not here: the first pattern that fits says why it is left out.
LEFT_OUT = {
    r"^(git clone|cd |make\b)": "needs the repository, not the package",
    r"^accelerate launch": "needs several GPUs",
    r"^(sbatch|srun)\b": "needs a cluster",
    r"--push|push_to_hub\(|(=| )\"?OWNER/|(^|\s)hf |hf://|hub:": "needs the hub and an account",
    r"pip install(?!.*aclam)": "needs the package index",
}

# What the reader brings, made with the package: words that stand for it in the README, and how.
FILM = """
from pathlib import Path
from aclam.data import open_dataset
from aclam.data.video import VideoWriter

Path("films").mkdir()
for number, episode in enumerate(open_dataset("brought").trajectories):
    frames = episode.frames[list(range(len(episode)))]
    for name in ["film.mp4"] * (number == 0) + [f"films/film_{number}.mp4"]:
        with VideoWriter(name, fps=episode.fps if hasattr(episode, "fps") else 5) as film:
            film.append(frames)
"""
BROUGHT = {
    "my_lerobot": "aclam-data convert brought --to lerobot --out my_lerobot",
    "film": f"python -c {shlex.quote(FILM)}",
    "own_family": f"cp {shlex.quote(str(ROOT / 'tests/own_family/own_family.py'))} .",
}


@dataclass(frozen=True)
class Step:
    title: str  # the heading that the block stands under
    kind: str  # shell or python
    text: str  # a line of a shell, or a whole block of Python


@dataclass(frozen=True)
class Done:
    step: str  # what is shown of it
    under: str
    status: str  # passed, failed, over the limit, or left out
    seconds: float
    megabytes: float  # by which the folder grew
    note: str = ""  # why it was left out, or the line that names the error


def steps(readme: str) -> list[Step]:
    """The blocks of a README in order: shells line by line, Python as a whole."""
    found, title, block, kind = [], "", [], None
    for line in readme.splitlines():
        fence = re.match(r"```(\w*)", line)
        if fence and kind is None:
            kind, block = fence[1] or "text", []
        elif fence:
            found += _steps_of(title, kind, block)
            kind = None
        elif kind is not None:
            block.append(line)
        elif heading := re.match(r"#+ (.+)", line):
            title = heading[1]
    return found


def _steps_of(title: str, kind: str, block: list[str]) -> list[Step]:
    if kind == "python":
        return [Step(title, "python", "\n".join(block))]
    if kind not in ("bash", "sh", "shell", "console"):
        return []
    joined = "\n".join(block).replace("\\\n", " ").splitlines()
    lines = [re.sub(r"^\$ ", "", line).split("  #")[0].strip() for line in joined]
    return [Step(title, "shell", line) for line in lines if line and not line.startswith("#")]


def reason(step: Step) -> str | None:
    """Why a step is left out, or None."""
    code = "\n".join(line.split("  #")[0] for line in step.text.splitlines())
    found = [why for pattern, why in LEFT_OUT.items() if re.search(pattern, code)]
    return found[0] if found else None


def shown(step: Step) -> str:
    """A line for the table: the command, or the first line of Python that says something."""
    lines = [line for line in step.text.splitlines() if line.strip()]
    return lines[0] if step.kind == "shell" or not lines else f"python: {lines[0]}"


def shorter(text: str, steps: int | None) -> str:
    return text if steps is None else re.sub(r"(--train\.steps )\d+", rf"\g<1>{steps}", text)


def size_mb(folder: Path) -> float:
    files = [p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()]
    return sum(p.stat().st_blocks * 512 for p in files) / 1e6


class Walk:
    """Steps in one folder and one environment, timed."""

    def __init__(self, folder: Path, environment: Path, limit: float):
        self.folder = folder
        self.environment = environment
        self.limit = limit
        self.done: list[Done] = []

    def run(self, name: str, under: str, command: list[str] | str, measured: Path) -> Done:
        """Run a command; a string is for a shell."""
        before, start = size_mb(measured), time.monotonic()
        said = self.folder.parent / "said.txt"
        with open(said, "w") as output:
            child = subprocess.Popen(
                command,
                cwd=self.folder,
                env=clean_environment(self.environment),
                shell=isinstance(command, str),
                executable="/bin/bash" if isinstance(command, str) else None,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = child.wait(self.limit)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                code = None
        seconds = round(time.monotonic() - start, 1)
        grown = round(size_mb(measured) - before, 2)
        lines = [x for x in said.read_text(errors="replace").splitlines() if x.strip()]
        status = "passed" if code == 0 else "over the limit" if code is None else "failed"
        note = "" if code == 0 else (lines or ["no output"])[-1][:200]
        return self.add(Done(name, under, status, seconds, grown, note))

    def add(self, done: Done) -> Done:
        self.done.append(done)
        print(f"{done.status:9} {done.seconds:7.1f} s  {done.step}  {done.note}", flush=True)
        return done


def install(walk: Walk, line: str, under: str, really: bool) -> None:
    """The README's line that installs the package, with the wheel in its place."""
    start = time.monotonic()
    out = walk.folder.parent / "wheel"
    out.mkdir(exist_ok=True)
    wheel = build_wheel(out)
    extras = (re.search(r"aclam(\[[\w,]+\])", line) or ["", ""])[1]
    if really:
        venv.create(walk.environment, with_pip=True, symlinks=True)
        python = walk.environment / "bin" / "python"
        command = [str(python), "-m", "pip", "install", "--quiet", f"{wheel}{extras}"]
        walk.run(f"pip install {wheel.name}{extras}", under, command, walk.environment)
        return
    make_environment(walk.environment, wheel)
    seconds, grown = round(time.monotonic() - start, 1), round(size_mb(walk.environment), 2)
    name = f"the wheel {wheel.name}, {wheel.stat().st_size / 1e6:.1f} MB"
    walk.add(Done(name, under, "passed", seconds, grown, "the packages were there"))


def bring(walk: Walk, episodes: int) -> None:
    """What the reader has already: made in the folder."""
    under = "what the reader brings"
    prepare = f"aclam-data prepare emoji --episodes {episodes} --out brought"
    for name, command in {"demonstrations": prepare, **BROUGHT}.items():
        walk.run(name, under, command, walk.folder)


def take(walk: Walk, step: Step, number: int, trainings: int | None) -> None:
    """Run one step, or say why not."""
    why = reason(step)
    if why:
        walk.add(Done(shown(step), step.title, "left out", 0, 0, why))
        return
    if step.kind == "shell":
        text = shorter(step.text, trainings)
        walk.run(text, step.title, text, walk.folder)
        return
    named = re.match(r"#\s*(\w+\.py)\s*\n", step.text)
    if named:  # a file of the reader's, for the blocks that follow
        (walk.folder / named[1]).write_text(step.text + "\n")
    script = walk.folder / (named[1] if named else f"block_{number}.py")
    script.write_text(step.text + "\n")
    walk.run(shown(step), step.title, f"python {script.name}", walk.folder)


def table(done: list[Done]) -> str:
    rows = [
        f"| `{d.step}` | {d.seconds:.1f} | {d.megabytes:.1f} | {d.status} | {d.note} |"
        for d in done
    ]
    return "\n".join(["| step | seconds | MB | status | |", "|---|---|---|---|---|", *rows])


def walk_readme(options: argparse.Namespace, folder: Path) -> list[Done]:
    """All steps of the README, in `folder`."""
    here = folder / "here"
    here.mkdir(parents=True)
    walk = Walk(here, folder / "environment", options.limit)
    found = steps(options.readme.read_text())
    installs = [s for s in found if s.kind == "shell" and re.search(r"pip install.*aclam", s.text)]
    first = installs[0] if installs else Step("", "shell", "pip install aclam")
    install(walk, first.text, first.title, options.install)
    bring(walk, options.episodes)
    for number, step in enumerate(s for s in found if s not in installs):
        take(walk, step, number, options.steps)
    return walk.done


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--install", action="store_true", help="requirements from the index, too")
    parser.add_argument("--steps", type=int, help="of every training, in place of the README's")
    parser.add_argument("--episodes", type=int, default=24, help="of the reader's demonstrations")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="another one")
    parser.add_argument("--limit", type=float, default=1800, help="seconds for one step")
    parser.add_argument("--keep", action="store_true", help=f"write {KEPT.relative_to(ROOT)}")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as tmp:
        done = walk_readme(options, Path(tmp))
    failed = [d for d in done if d.status not in ("passed", "left out")]
    print(table(done))
    print(f"{sum(d.seconds for d in done):.0f} seconds, {len(failed)} steps failed")
    if options.keep:
        found = {
            "steps": [asdict(d) for d in done],
            "training_steps": options.steps or "as in README.md",
            "requirements": "from the package index" if options.install else "there already",
        }
        KEPT.write_text(json.dumps(found, indent=1) + "\n")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
