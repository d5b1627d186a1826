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
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from aclam.core import write_json
from aclam.studies.processes import hardware

FAIL = """import signal
def fail(number, frame): raise RuntimeError("an exception made by the kill table")
signal.signal(signal.SIGUSR2, fail)
"""
NOISE = (
    " ",
    "Traceback",
    "W0",
    "W1",
    "E0",
    "E1",
    "[W",
    "[E",
    "[rank",
    "====",
    "---",
)  # how other lines begin
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
    setup, begun = sitting.setup, steps_done(sitting.setup.out)

    def ready():
        return steps_done(setup.out) >= begun + setup.after or sitting.process.poll() is not None

    if not wait_for(ready, setup.patience) or sitting.process.poll() is not None:
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


def goes_on(setup: Setup) -> bool:
    """Whether the same command begins with the step after the newest checkpoint."""
    kept, log = steps_kept(setup.out), setup.out / "metrics.jsonl"
    before = log.read_text().splitlines() if log.exists() else []
    sitting = start(setup, "second")

    def rows():
        return log.read_text().splitlines() if log.exists() else []

    def new():
        return [json.loads(r)["step"] for r in rows() if r.endswith("}") and r not in before[:kept]]

    wait_for(
        lambda: any(s > kept for s in new()) or sitting.process.poll() is not None, setup.patience
    )
    begun, everybody = (
        [s for s in new() if s > kept],
        [sitting.process, *sitting.process.children(recursive=True)],
    )
    clear(everybody)
    sitting.process.wait()
    return bool(begun) and kept + 1 in begun


def telling(lines: Sequence[str]) -> str:
    """The line that tells the cause: of rank 0 about another, or the last one that a person would
    read.
    """
    ranks = [line for line in lines if line.startswith("rank ")]
    own = [
        line
        for line in lines
        if not line.startswith(NOISE) and "it/s]" not in line and "s/it]" not in line
    ]
    return (ranks or own or [""])[-1]


def harm(deed: str, setup: Setup, do: Callable[[Sitting], None], before: Sequence[str] = ()) -> Row:
    """Start, wait, do it, wait for the end, look at what is left."""
    sitting = start(setup, words=before)
    if not before:
        working(sitting)
    everybody = [sitting.process, *sitting.process.children(recursive=True)]
    begun = time.monotonic()
    do(sitting)
    try:
        if not wait_for(
            lambda: not any(map(alive, everybody)) and sitting.process.poll() is not None,
            setup.patience,
        ):
            raise SystemExit(
                f"{deed}: still there after {setup.patience:g} s:\n"
                + "\n".join(sitting.said()[-20:])
            )
    finally:
        clear(everybody)
    seconds = time.monotonic() - begun
    status, done, kept = sitting.process.wait(), steps_done(setup.out), steps_kept(setup.out)
    again = goes_on(setup) if setup.again else None
    return Row(
        deed,
        setup.processes,
        seconds,
        status,
        done,
        kept,
        again,
        telling(sitting.said()),
        sitting.said(),
    )


def send(number: int, rank: int | None = None) -> Callable[[Sitting], None]:
    """Send a signal to one rank, or to what was started."""
    return lambda sitting: (sitting.process if rank is None else sitting.ranks()[rank]).send_signal(
        number
    )


def second_run(setup: Setup) -> Row:
    """The same command while the first start of it runs."""
    first = start(setup)
    working(first)
    everybody = [first.process, *first.process.children(recursive=True)]
    try:
        begun = time.monotonic()
        second = start(setup, "refused")
        status = second.process.wait(timeout=setup.patience)
        seconds, steps = time.monotonic() - begun, steps_done(setup.out)
        unharmed = wait_for(lambda: steps_done(setup.out) > steps or first.process.poll() == 0, 30)
    finally:
        clear(everybody)
        first.process.wait()
    said = second.said()
    line = telling(said)
    return Row(
        "two runs on one folder", setup.processes, seconds, status, 0, 0, unharmed, line, said
    )


def unshared(setup: Setup) -> Row:
    """Ranks whose folder of the same name is not the same folder."""
    python, *words = setup.command
    inner = " ".join([python, *words, "--out", f"{setup.out}_$RANK"])
    group = [
        "--standalone",
        "--nproc_per_node",
        str(setup.processes),
        "--no_python",
        "bash",
        "-c",
        f"exec {inner}",
    ]
    row = harm(
        "an unshared folder",
        replace_again(setup),
        lambda _: None,
        [python, *setup.launcher, *group],
    )
    row.done = steps_done(Path(f"{setup.out}_0"))
    return row


def replace_again(setup: Setup) -> Setup:
    return Setup(**{**vars(setup), "again": False})


def plain(setup: Setup) -> Setup:
    return Setup(**{**vars(setup), "launcher": PLAIN})


ROWS: dict[
    str, tuple[int, Callable[[Setup], Row]]
] = {  # name: (smallest number of processes, how it is made)
    "sigterm": (1, lambda s: harm("SIGTERM to one process", s, send(signal.SIGTERM, -1))),
    "sigusr1": (1, lambda s: harm("SIGUSR1 to one process", s, send(signal.SIGUSR1, -1))),
    "launcher": (2, lambda s: harm("SIGTERM to our launcher", s, send(signal.SIGTERM))),
    "launcher_usr1": (2, lambda s: harm("SIGUSR1 to our launcher", s, send(signal.SIGUSR1))),
    "torchrun": (2, lambda s: harm("SIGTERM to torchrun", plain(s), send(signal.SIGTERM))),
    "sigkill": (1, lambda s: harm("SIGKILL of the last rank", s, send(signal.SIGKILL, -1))),
    "sigkill_0": (2, lambda s: harm("SIGKILL of rank 0", s, send(signal.SIGKILL, 0))),
    "sigkill_torchrun": (2, lambda s: harm("SIGKILL of torchrun", plain(s), send(signal.SIGKILL))),
    "sigstop": (2, lambda s: harm("SIGSTOP of the last rank", s, send(signal.SIGSTOP, -1))),
    "exception": (1, lambda s: harm("an exception on the last rank", s, send(signal.SIGUSR2, -1))),
    "two_runs": (1, second_run),
    "unshared": (2, unshared),
}


def as_markdown(rows: Sequence[Row]) -> str:
    """The table; what is lost are the steps after the newest checkpoint."""
    head = (
        "| what was done | processes | seconds | status | steps lost | goes on | what was said |\n"
        + "|---" * 7
        + "|"
    )
    body = [
        f"| {r.deed} | {r.processes} | {r.seconds:.1f} | {r.status} | {r.done - r.kept} of {r.done} | "
        f"{ {True: 'yes', False: 'NO', None: '-'}[r.goes_on] } | {r.line} |"
        for r in rows
    ]
    return "\n".join([head, *body])


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
        for name in given.rows:
            least, make = ROWS[name]
            if n >= least:
                with tempfile.TemporaryDirectory() as folder:
                    setup = Setup(
                        (python, *given.command[1:]),
                        Path(folder),
                        n,
                        after=given.after,
                        patience=given.patience,
                        again=not given.no_again,
                        gpus=given.gpus,
                    )
                    row = make(setup)
                row.line = row.line.replace(folder, "...").replace(socket.gethostname(), "node1")
                print(as_markdown([row]).splitlines()[-1], file=sys.stderr, flush=True)
                rows.append(row)
    print(as_markdown(rows))
    if given.json:
        kept = [{k: v for k, v in asdict(row).items() if k != "said"} for row in rows]
        words = [Path(word).name if word.startswith("/") else word for word in given.command]
        write_json(given.json, {"command": " ".join(words), "rows": kept, "hardware": hardware()})


if __name__ == "__main__":
    main()
