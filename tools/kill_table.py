"""What ends a training, in how many seconds, and what is lost: a table made by doing it to a real
one.

    python tools/kill_table.py [--processes 1 2] [--rows NAME ...] -- python -m aclam.train.lam
    --data DATA \
        --train.log-every 1 --train.checkpoint-every 20 --train.group-timeout-s 10 ...

The command must be one that logs every step; `--out FOLDER` is added to it. For each row it is
started anew, left alone until it has made some steps, and then harmed. Afterwards it is started
once more, to see that it goes on.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import psutil

from aclam.core import write_json
from aclam.studies.processes import hardware

FAIL = """import signal
def fail(number, frame): raise RuntimeError("an exception made by the kill table")
signal.signal(signal.SIGUSR2, fail)
"""
# how other lines begin
NOISE = (" ", "Traceback", "W0", "W1", "E0", "E1", "[W", "[E", "[rank", "====", "---")
PROGRESS = ("it/s]", "s/it]")  # what a progress bar has in it
OURS = ("-m", "aclam.train.cluster", "torchrun")
PLAIN = ("-m", "torch.distributed.run")


@dataclass(frozen=True)
class Setup:
    """What is harmed, and where its files are."""

    command: tuple[str, ...]  # python and its words
    folder: Path  # for runs and for what they say
    processes: int = 1
    launcher: tuple[str, ...] = OURS
    after: int = 5  # steps of this sitting before the deed
    patience: float = 120.0  # seconds until it counts as hanging
    again: bool = True  # start once more and see that it goes on
    gpus: bool = False

    @property
    def out(self) -> Path:
        return self.folder / "run"


@dataclass
class Sitting:
    """One start of the command."""

    process: psutil.Popen
    log: Path
    setup: Setup

    def ranks(self) -> list[psutil.Process]:
        """The training processes, by rank."""
        if self.setup.processes == 1:
            return [self.process]
        found = {}
        for child in self.process.children():
            try:
                found[int(child.environ()["RANK"])] = child
            except (psutil.Error, KeyError):
                continue
        return [found[rank] for rank in sorted(found)]

    def ended(self) -> bool:
        return self.process.poll() is not None

    def everybody(self) -> list[psutil.Process]:
        """What was started, and all that it has started."""
        return [self.process, *self.process.children(recursive=True)]

    def said(self) -> list[str]:
        text = self.log.read_text(errors="replace").replace("\r", "\n")
        return [line for line in text.splitlines() if line.strip()]


@dataclass
class Row:
    """One line of the table."""

    deed: str
    processes: int
    seconds: float  # until every process had ended
    status: int  # of the launcher, or of the one process; negative: a signal
    done: int  # steps that were made
    kept: int  # of the newest checkpoint
    goes_on: bool | None  # whether a second start began with the step after it; None: not tried
    line: str  # the line that tells the cause
    said: list[str] = field(default_factory=list)  # everything, for who wants to know


def steps_done(out: Path) -> int:
    """The last step in the log of a run."""
    try:
        rows = (out / "metrics.jsonl").read_text().splitlines()
        return max((json.loads(row)["step"] for row in rows if row.endswith("}")), default=0)
    except FileNotFoundError:
        return 0


def steps_kept(out: Path) -> int:
    """The step of the newest whole checkpoint."""
    found = [
        int(p.parent.name.removeprefix("step_"))
        for p in out.glob("checkpoints/step_*/progress.json")
    ]
    return max(found, default=0)


def words_of(setup: Setup, out: str) -> list[str]:
    """The command line of one start."""
    python, *words = [*setup.command, "--out", out]
    if setup.processes == 1:
        return [python, *words]
    group = ["--standalone", "--nproc_per_node", str(setup.processes)]
    return [python, *setup.launcher, *group, *words]


def start(setup: Setup, name: str = "first", words: Sequence[str] = ()) -> Sitting:
    """Start the command; any Python in it raises an exception at SIGUSR2."""
    hooks = setup.folder / "hooks"
    hooks.mkdir(parents=True, exist_ok=True)
    (hooks / "sitecustomize.py").write_text(FAIL)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(hooks), env.get("PYTHONPATH", "")]))
    if not setup.gpus:
        env["ACCELERATE_USE_CPU"] = "true"
    log = setup.folder / f"{name}.log"
    with open(log, "w") as out:
        process = psutil.Popen(
            words or words_of(setup, str(setup.out)),
            stdout=out,
            stderr=out,
            env=env,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    return Sitting(process, log, setup)


def wait_for(true: Callable[[], bool], patience: float) -> bool:
    """Whether it came true in time."""
    end = time.monotonic() + patience
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def working(sitting: Sitting) -> None:
    """Wait until it has made its steps."""
    setup = sitting.setup
    begun = steps_done(setup.out)

    def ready():
        return steps_done(setup.out) >= begun + setup.after or sitting.ended()

    if not wait_for(ready, setup.patience) or sitting.ended():
        raise SystemExit("the command did not train:\n" + "\n".join(sitting.said()[-20:]))


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def clear(processes: Sequence[psutil.Process]) -> None:
    """Leave nothing behind."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def log_rows(out: Path) -> list[str]:
    """The lines of a run's log."""
    log = out / "metrics.jsonl"
    return log.read_text().splitlines() if log.exists() else []


def goes_on(setup: Setup) -> bool:
    """Whether the same command begins with the step after the newest checkpoint."""
    kept = steps_kept(setup.out)
    before = log_rows(setup.out)[:kept]
    sitting = start(setup, "second")

    def new_steps():
        rows = [row for row in log_rows(setup.out) if row.endswith("}") and row not in before]
        return [step for step in (json.loads(row)["step"] for row in rows) if step > kept]

    wait_for(lambda: new_steps() or sitting.ended(), setup.patience)
    begun = new_steps()
    clear(sitting.everybody())
    sitting.process.wait()
    return kept + 1 in begun


def telling(lines: Sequence[str]) -> str:
    """The line that tells the cause.

    That of rank 0 about another, or the last one that a person would read.
    """
    ranks = [line for line in lines if line.startswith("rank ")]
    words = [line for line in lines if not line.startswith(NOISE)]
    own = [line for line in words if not any(mark in line for mark in PROGRESS)]
    return (ranks or own or [""])[-1]


def harm(deed: str, setup: Setup, do: Callable[[Sitting], None], before: Sequence[str] = ()) -> Row:
    """Start, wait, do it, wait for the end, look at what is left."""
    sitting = start(setup, words=before)
    if not before:
        working(sitting)
    everybody = sitting.everybody()

    def all_ended():
        return not any(map(alive, everybody)) and sitting.ended()

    begun = time.monotonic()
    do(sitting)
    try:
        if not wait_for(all_ended, setup.patience):
            said = "\n".join(sitting.said()[-20:])
            raise SystemExit(f"{deed}: still there after {setup.patience:g} s:\n{said}")
    finally:
        clear(everybody)
    seconds = time.monotonic() - begun
    said = sitting.said()
    return Row(
        deed=deed,
        processes=setup.processes,
        seconds=seconds,
        status=sitting.process.wait(),
        done=steps_done(setup.out),
        kept=steps_kept(setup.out),
        goes_on=goes_on(setup) if setup.again else None,
        line=telling(said),
        said=said,
    )


def send(number: int, rank: int | None = None) -> Callable[[Sitting], None]:
    """Send a signal to one rank, or to what was started."""

    def do(sitting: Sitting) -> None:
        process = sitting.process if rank is None else sitting.ranks()[rank]
        process.send_signal(number)

    return do


def harmed(
    deed: str, number: int, rank: int | None = None, launcher: tuple[str, ...] = OURS
) -> Callable[[Setup], Row]:
    """A row of the table: what a signal does."""
    return lambda setup: harm(deed, replace(setup, launcher=launcher), send(number, rank))


def second_run(setup: Setup) -> Row:
    """The same command while the first start of it runs."""
    first = start(setup)
    working(first)
    everybody = first.everybody()
    try:
        begun = time.monotonic()
        second = start(setup, "refused")
        status = second.process.wait(timeout=setup.patience)
        seconds = time.monotonic() - begun
        steps = steps_done(setup.out)
        unharmed = wait_for(lambda: steps_done(setup.out) > steps or first.process.poll() == 0, 30)
    finally:
        clear(everybody)
        first.process.wait()
    said = second.said()
    return Row(
        deed="two runs on one folder",
        processes=setup.processes,
        seconds=seconds,
        status=status,
        done=0,
        kept=0,
        goes_on=unharmed,
        line=telling(said),
        said=said,
    )


def unshared(setup: Setup) -> Row:
    """Ranks whose folder of the same name is not the same folder."""
    python, *words = setup.command
    inner = " ".join([python, *words, "--out", f"{setup.out}_$RANK"])
    group = ["--standalone", "--nproc_per_node", str(setup.processes)]
    command = [python, *setup.launcher, *group, "--no_python", "bash", "-c", f"exec {inner}"]
    row = harm("an unshared folder", replace(setup, again=False), lambda _: None, command)
    row.done = steps_done(Path(f"{setup.out}_0"))
    return row


ROWS: dict[str, tuple[int, Callable[[Setup], Row]]] = {
    # name: (smallest number of processes, how it is made)
    "sigterm": (1, harmed("SIGTERM to one process", signal.SIGTERM, -1)),
    "sigusr1": (1, harmed("SIGUSR1 to one process", signal.SIGUSR1, -1)),
    "launcher": (2, harmed("SIGTERM to our launcher", signal.SIGTERM)),
    "launcher_usr1": (2, harmed("SIGUSR1 to our launcher", signal.SIGUSR1)),
    "torchrun": (2, harmed("SIGTERM to torchrun", signal.SIGTERM, launcher=PLAIN)),
    "sigkill": (1, harmed("SIGKILL of the last rank", signal.SIGKILL, -1)),
    "sigkill_0": (2, harmed("SIGKILL of rank 0", signal.SIGKILL, 0)),
    "sigkill_torchrun": (2, harmed("SIGKILL of torchrun", signal.SIGKILL, launcher=PLAIN)),
    "sigstop": (2, harmed("SIGSTOP of the last rank", signal.SIGSTOP, -1)),
    "exception": (1, harmed("an exception on the last rank", signal.SIGUSR2, -1)),
    "two_runs": (1, second_run),
    "unshared": (2, unshared),
}
GOES_ON = {True: "yes", False: "NO", None: "-"}


def as_markdown(rows: Sequence[Row]) -> str:
    """The table; what is lost are the steps after the newest checkpoint."""
    titles = ["what was done", "processes", "seconds", "status", "steps lost", "goes on"]
    lines = [f"| {' | '.join([*titles, 'what was said'])} |", "|---" * 7 + "|"]
    for r in rows:
        lost = f"{r.done - r.kept} of {r.done}"
        columns = [r.deed, str(r.processes), f"{r.seconds:.1f}", str(r.status), lost]
        lines.append(f"| {' | '.join([*columns, GOES_ON[r.goes_on], r.line])} |")
    return "\n".join(lines)


def one_row(name: str, setup: Setup) -> Row:
    """Make one row in a folder of its own, and print it."""
    with tempfile.TemporaryDirectory() as folder:
        row = ROWS[name][1](replace(setup, folder=Path(folder)))
    row.line = row.line.replace(folder, "...").replace(socket.gethostname(), "node1")
    print(as_markdown([row]).splitlines()[-1], file=sys.stderr, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--after", type=int, default=5, help="steps before the deed")
    parser.add_argument(
        "--patience", type=float, default=120.0, help="seconds until a run counts as hanging"
    )
    parser.add_argument("--no-again", action="store_true", help="do not start once more afterwards")
    parser.add_argument("--gpus", action="store_true", help="do not keep the processes on CPUs")
    parser.add_argument("--json", type=Path, help="write the rows to this file, too")
    parser.add_argument("command", nargs="+", help="after --: python and its words")
    given = parser.parse_args()
    python = sys.executable if given.command[0] == "python" else given.command[0]
    rows = []
    for n in given.processes:
        setup = Setup(
            command=(python, *given.command[1:]),
            folder=Path(),
            processes=n,
            after=given.after,
            patience=given.patience,
            again=not given.no_again,
            gpus=given.gpus,
        )
        rows += [one_row(name, setup) for name in given.rows if n >= ROWS[name][0]]
    print(as_markdown(rows))
    if given.json:
        kept = [{k: v for k, v in asdict(row).items() if k != "said"} for row in rows]
        words = [Path(word).name if word.startswith("/") else word for word in given.command]
        write_json(given.json, {"command": " ".join(words), "rows": kept, "hardware": hardware()})


if __name__ == "__main__":
    main()
