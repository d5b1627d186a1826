"""Kill commands at random instants, go on, and hold what they made against a run that was let alone.

    python tools/random_kills.py [--kills 200] [--seed 0] [--only TEXT] [--json FILE]

Each job is started in a fork of this process, which has imported everything, or as a command of its
own. SIGKILL, SIGTERM or SIGINT goes to the main process, to one of its children, or to all of them.
Whatever is still there 2 s after the main process has ended is an orphan. Then the same command is
run to its end: its files must be those of a run that nobody killed, and no others.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"

import psutil  # noqa: E402
from forking import import_all  # noqa: E402

from aclam.commands import entry  # noqa: E402
from aclam.core import write_json  # noqa: E402

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
TARGETS = ("main", "child", "all")
ORPHAN_S = 2.0
PATIENCE_S = 240.0
MOST_IN_A_ROW = 3  # kills before the job is let come to its end
CLUSTER = (sys.executable, "-m", "aclam.train.cluster", "torchrun")
GROUP = (*CLUSTER, "--standalone", "--nproc_per_node", "2")
TIMED = (
    *("second", "speed", "time", "mfu", "versions", "started", "node", "memory", "host"),
    *("data_wait", "shares", "played_now"),
)
IGNORED = ("events.out.tfevents", ".lock")


@dataclass(frozen=True)
class Job:
    """A command whose files are compared; its folder is `out`."""

    name: str
    share: float  # of the kills
    words: tuple[str, ...]  # the command; python ... is a program of its own
    needs: tuple[str, ...]  # of the valid data
    ranks: int = 1  # forks that train together
    out: str = "out"


@dataclass
class Row:
    """What happened to one job."""

    name: str
    kills: int = 0
    runs_compared: int = 0
    equal: int = 0
    orphans: int = 0
    leftovers: int = 0
    refused: int = 0  # the next run did not come to its end
    longest_stop_s: float = 0.0  # until the main process had ended
    by: dict[str, int] = field(default_factory=dict)  # kills by signal and target
    missed: int = 0  # the job had ended before the kill
    remarks: list[str] = field(default_factory=list)


LAM = (
    *("aclam-train-lam", "--data", "store", "--out", "out", "--cache-gib", "1", "--probe-n", "4"),
    *("--model.image-size", "16", "--model.patch-size", "8", "--model.idm-width", "16"),
    *("--model.fdm-width", "16", "--model.idm-depth", "1", "--model.fdm-depth", "1"),
    *("--train.batch-size", "4", "--train.steps", "60", "--train.checkpoint-every", "10"),
    *("--train.log-every", "1", "--train.probe-every", "20", "--train.group-timeout-s", "20"),
)
POLICY = (
    *("aclam-train-policy", "--data", "demos", "--lam", "lam", "--out", "out", "--probe-n", "2"),
    *("--train.steps", "30", "--train.batch-size", "4", "--cache-gib", "1"),
    *("--model.vlm.image-size", "32", "--model.vlm.patch-size", "8", "--model.control", "recorded"),
    *("--train.checkpoint-every", "5", "--train.log-every", "1", "--train.probe-every", "10"),
)
LABEL = (
    *("aclam-label", "--model", "lam", "--data", "many", "--out", "out", "--offsets", "1", "2"),
    *("--piece-frames", "20"),
)
ROLLOUT = (
    *("aclam-rollout", "--policy", "expert", "--split", "id", "--episodes", "6", "--max-steps"),
    *("40", "--envs", "2", "--out", "out"),
)
PREPARE = ("aclam-data", "prepare", "emoji", "--out", "out", "--episodes", "8", "--size", "32")
CONVERT = ("aclam-data", "convert", "many", "--out", "out")
COMPARE = (
    *("aclam-structure", "compare", "--data", "many", "--out", "out", "--models", "ac_lam_cpu"),
    *("--steps", "20", "--batch-size", "4", "--n", "16", "--probe-n", "16", "--seeds", "1"),
    *("--intervals", "10", "--workers", "1"),
)
STRUCTURE = (
    *("aclam-structure", "--model", "lam", "--data", "many", "--n", "256", "--intervals", "20"),
    *("--save", "out/z.npz"),
)
AS_COMMAND = (*GROUP, "-m", "aclam.train.lam", *LAM[1:])
JOBS = (
    Job("prepare, 1 worker", 0.07, (*PREPARE, "--workers", "1"), ()),
    Job("prepare, 2 workers", 0.13, (*PREPARE, "--workers", "2"), ()),
    Job("convert to a store", 0.10, CONVERT, ("many",)),
    Job("convert to LeRobot", 0.06, (*CONVERT, "--to", "lerobot"), ("many",)),
    Job("convert, 2 workers", 0.04, (*CONVERT, "--to", "lerobot", "--workers", "2"), ("many",)),
    Job("train-lam", 0.12, LAM, ("store",)),
    Job("train-lam, a group of two", 0.15, LAM, ("store",), ranks=2),
    Job("train-lam, launched as two", 0.10, AS_COMMAND, ("store",)),
    Job("train-policy", 0.07, POLICY, ("demos", "lam")),
    Job("label", 0.06, LABEL, ("many", "lam")),
    Job("label, a group of two", 0.04, LABEL, ("many", "lam"), ranks=2),
    Job("rollout", 0.08, ROLLOUT, ()),
    Job("structure", 0.03, STRUCTURE, ("many", "lam")),
    Job("compare", 0.03, COMPARE, ("many",)),
)


# --- starting -------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def in_group(rank: int, ranks: int, port: int) -> None:
    """The environment of one process of a group."""
    words = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    words |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    os.environ |= {name: str(value) for name, value in words.items()}


def run_words(job: Job, place: Path, rank: int, port: int) -> None:
    """Run a job in this process, which is a fork; it does not return."""
    status = 1
    try:
        with open(place / f"said_{rank}.txt", "ab") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
        sys.stdout = open(1, "w", closefd=False)
        sys.stderr = open(2, "w", closefd=False)
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(place)
        os.environ["ACLAM_CACHE"] = str(place / "cache")
        if job.words[0] == sys.executable:
            os.environ["ACCELERATE_USE_CPU"] = "true"
            os.execv(sys.executable, job.words)
        if job.ranks > 1:
            in_group(rank, job.ranks, port)
        prog, *words = job.words
        sys.argv = [prog, *words]
        entry.main(words, prog)
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def start(job: Job, place: Path) -> list[int]:
    """Start the processes of a job; the first is the main one."""
    port = free_port()
    children = []
    for rank in range(job.ranks):
        child = os.fork()
        if not child:
            run_words(job, place, rank, port)
        children.append(child)
    return children


def adopt_orphans() -> None:
    """Have processes whose parent ends become children of this one, where they can be counted."""
    import ctypes

    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def living() -> list[psutil.Process]:
    """Every process that descends from this one and has not ended; those that have are reaped."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def reap(ended: dict[int, int]) -> None:
    """Note the status of every child of this process that has ended."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        ended[pid] = os.waitstatus_to_exitcode(status)


def wait_all(pids: Sequence[int], ended: dict[int, int], seconds: float) -> bool:
    """Whether all have ended in time."""
    end = time.monotonic() + seconds
    while True:
        reap(ended)
        if all(pid in ended for pid in pids):
            return True
        if time.monotonic() > end:
            return False
        time.sleep(0.005)


def clear(processes: Sequence[psutil.Process], ended: dict[int, int]) -> None:
    """Leave no process behind."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    end = time.monotonic() + 10
    while living() and time.monotonic() < end:
        reap(ended)
        time.sleep(0.01)


# --- comparing ------------------------------------------------------------------------------------


def without_times(value: Any) -> Any:
    """JSON values without what depends on the clock and the machine."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if not any(word in k.lower() for word in TIMED)}
        return {k: without_times(v) for k, v in kept.items()}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def content(path: Path) -> str:
    """A digest of what a file says."""
    data = path.read_bytes()
    if path.suffix == ".json":
        data = json.dumps(without_times(json.loads(data)), sort_keys=True).encode()
    elif path.suffix == ".jsonl":
        rows = [without_times(json.loads(line)) for line in data.decode().splitlines()]
        data = "\n".join(sorted(json.dumps(row, sort_keys=True) for row in rows)).encode()
    return hashlib.sha256(data).hexdigest()


def older_checkpoints(place: Path) -> tuple[str, ...]:
    """All but the newest of each run: a process that is asked to stop saves one at its own step."""
    steps = sorted(place.glob("**/checkpoints/step_*"))
    older = [a for a, b in pairwise(steps) if a.parent == b.parent]
    return tuple(f"{path.relative_to(place).as_posix()}" for path in older)


def names(place: Path) -> set[str]:
    """The files of a job, and folders that are empty."""
    found = set()
    older = older_checkpoints(place)
    for path in place.rglob("*"):
        name = path.relative_to(place).as_posix()
        if any(word in path.name for word in IGNORED) or name.startswith(("said_", *older)):
            continue
        if path.is_file() or not any(path.iterdir()):
            found.add(name)
    return found


def digests(place: Path) -> dict[str, str]:
    return {name: content(place / name) for name in names(place) if (place / name).is_file()}


# --- one job --------------------------------------------------------------------------------------


class Unkilled(Exception):
    """A job that fails by itself."""


class Trial:
    """A job, its folders, and what it makes when nobody kills it."""

    def __init__(self, job: Job, base: Path, folder: Path, rng: random.Random):
        self.job = job
        self.base = base
        self.folder = folder
        self.rng = rng
        self.row = Row(job.name)
        self.ended: dict[int, int] = {}
        self.number = 0
        self.place = self.fresh()
        begun = time.monotonic()
        problem = self.complete()
        if problem:
            raise Unkilled(f"{job.name} fails also when nobody kills it:\n{problem}")
        self.seconds = time.monotonic() - begun
        self.right = digests(self.place)
        self.names = names(self.place)

    def fresh(self) -> Path:
        """A folder of its own with the data of the job."""
        place = self.folder / "place"
        shutil.rmtree(place, ignore_errors=True)
        for name in self.job.needs:
            shutil.copytree(self.base / name, place / name)
        (place / "out").mkdir(parents=True, exist_ok=True)
        (place / "out").rmdir() if "out/" not in " ".join(self.job.words) else None
        self.number += 1
        return place

    def said(self) -> str:
        files = sorted(self.place.glob("said_*.txt"))
        return "\n".join(f.read_text(errors="replace")[-1500:] for f in files)

    def complete(self) -> str:
        """Run to the end; what was said where it did not come to it."""
        children = start(self.job, self.place)
        if not wait_all(children, self.ended, PATIENCE_S):
            clear(living(), self.ended)
            return f"did not end in {PATIENCE_S:g} s"
        if any(self.ended[child] for child in children):
            clear(living(), self.ended)
            return self.said() or "failed"
        return ""

    def begun(self, since: float) -> bool:
        """Whether the command has written anything since then."""
        out = self.place / "out"
        try:
            return any(p.stat().st_mtime >= since for p in (out, *out.rglob("*")))
        except OSError:
            return False

    def instant(self, children: list[int]) -> bool:
        """Wait for the instant of the kill; False where the job has ended before."""
        if self.job.words[0] == sys.executable:  # not while it imports
            since = time.time()
            while not self.begun(since):
                if wait_all(children, self.ended, 0.02):
                    return False
            return not wait_all(children, self.ended, self.rng.uniform(0, 4.0))
        return not wait_all(children, self.ended, self.rng.uniform(0, self.seconds))

    def kill_once(self) -> None:
        """Start, kill at a random instant, and count what is left after 2 s."""
        children = start(self.job, self.place)
        if not self.instant(children):
            self.row.missed += 1
            clear(living(), self.ended)
            return
        number = self.rng.choice(SIGNALS)
        target = self.rng.choice(TARGETS)
        victims = self.victims(children, target)
        begun = time.monotonic()
        for pid in victims:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        self.row.kills += 1
        by = f"{signal.Signals(number).name} to {target}"
        self.row.by[by] = self.row.by.get(by, 0) + 1
        self.after(children, victims, begun, by)

    def victims(self, children: list[int], target: str) -> list[int]:
        """Processes of this job: the main one, another one, or all."""
        others = [p.pid for p in living() if p.pid != children[0]]
        if target == "all":
            return [children[0], *others]
        if target == "child" and others:
            return [self.rng.choice(others)]
        return [children[0]]

    def after(self, children: list[int], victims: list[int], begun: float, by: str) -> None:
        """Wait for the end of the main processes, and for what should end with them."""
        if not wait_all(children, self.ended, PATIENCE_S):
            self.row.remarks.append(f"{by}: did not end in {PATIENCE_S:g} s")
            clear(living(), self.ended)
            return
        if children[0] in victims:
            self.row.longest_stop_s = max(self.row.longest_stop_s, time.monotonic() - begun)
        end = time.monotonic() + ORPHAN_S
        while living() and time.monotonic() < end:
            reap(self.ended)
            time.sleep(0.01)
        left = living()
        if left:
            self.row.orphans += len(left)
            words = " ".join(left[0].cmdline()[:4])[-80:]
            self.row.remarks.append(f"{by}: {len(left)} orphans: {words}")
        clear(left, self.ended)
        text = self.said()
        if "Traceback" in text:
            self.row.remarks.append(f"{by}: a traceback")
            keep = self.folder / f"traceback_{len(self.row.remarks)}.txt"
            keep.write_text(text)
        for file in self.place.glob("said_*.txt"):
            file.unlink()

    def compare(self) -> None:
        """Let the job come to its end, and hold its files against the right ones."""
        problem = self.complete()
        self.row.runs_compared += 1
        if problem:
            self.row.refused += 1
            self.row.remarks.append(problem.splitlines()[-1].replace(str(self.folder), "..."))
            return
        extra = names(self.place) - self.names
        if extra:
            self.row.leftovers += len(extra)
            self.row.remarks.append(f"left over: {', '.join(sorted(extra)[:3])}")
        made = digests(self.place)
        differ = [name for name in self.right if made.get(name) != self.right[name]]
        self.row.equal += not differ
        if differ:
            self.row.remarks.append(f"differ: {', '.join(differ[:3])}")
            keep = self.folder / f"differs_{self.row.runs_compared}"
            shutil.copytree(self.place, keep, symlinks=True)

    def run(self, kills: int) -> Row:
        while self.row.kills < kills:
            self.place = self.fresh()
            for _ in range(self.rng.randint(1, min(MOST_IN_A_ROW, kills - self.row.kills))):
                self.kill_once()
            self.compare()
        return self.row


def valid_data(folder: Path) -> None:
    """Made by another process: this one must not have used its libraries before it forks."""
    code = "import sys; from pathlib import Path; from bad.base import make_base; "
    code += "make_base(Path(sys.argv[1]))"
    tools = str(Path(__file__).parent)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([tools, *sys.path])}
    words = [sys.executable, "-c", code, str(folder)]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)


def as_markdown(rows: Sequence[Row]) -> str:
    titles = ("job", "kills", "compared", "equal", "refused", "orphans", "left over", "stop, s")
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for r in rows:
        numbers = (r.kills, r.runs_compared, r.equal, r.refused, r.orphans, r.leftovers)
        cells = [r.name, *map(str, numbers), f"{r.longest_stop_s:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def total(rows: Sequence[Row]) -> Row:
    """The sum of all rows."""
    by = Counter()
    for row in rows:
        by.update(row.by)
    sums = {
        name: sum(getattr(row, name) for row in rows)
        for name in ("kills", "runs_compared", "equal", "refused", "orphans", "leftovers", "missed")
    }
    return Row("all", by=dict(by), longest_stop_s=max(r.longest_stop_s for r in rows), **sums)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[""], help="jobs whose name has one in it")
    parser.add_argument("--json", type=Path, help="write the rows here, after every job")
    parser.add_argument("--keep", type=Path, help="keep the folders of wrong results here")
    given = parser.parse_args()
    jobs = [job for job in JOBS if any(word in job.name for word in given.only)]
    folder = Path(tempfile.mkdtemp(prefix="random_kills_", dir=given.keep))
    valid_data(folder / "base")
    import_all()
    adopt_orphans()
    rng = random.Random(given.seed)
    rows: list[Row] = []
    whole = sum(job.share for job in jobs)
    for n, job in enumerate(jobs):
        kills = max(1, round(given.kills * job.share / whole))
        (folder / f"job_{n}").mkdir()
        try:
            rows.append(Trial(job, folder / "base", folder / f"job_{n}", rng).run(kills))
        except Unkilled as e:
            print(e, flush=True)
            rows.append(Row(job.name, refused=1, remarks=[str(e).splitlines()[-1]]))
        print(as_markdown(rows[-1:]).splitlines()[-1], *rows[-1].remarks, sep="\n  ", flush=True)
        if given.json:
            counted = [asdict(row) for row in [*rows, total(rows)]]
            write_json(given.json, {"seed": given.seed, "rows": counted})
    print(as_markdown([*rows, total(rows)]))
    if not given.keep:
        shutil.rmtree(folder)
    found = total(rows)
    return int(found.equal < found.runs_compared or found.orphans + found.leftovers > 0)


if __name__ == "__main__":
    sys.exit(main())
