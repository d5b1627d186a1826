"""One bad input, run in a child process that has limits of memory and time."""

import contextlib
import ctypes
import os
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from aclam.commands import entry
from aclam.core import UserError

REFUSED = "refused"  # one line on standard error and status 2
READ = "read"  # status 0: the input is unusual and right
EITHER = "either"  # one or the other; never a traceback, a hang or an abort

MEMORY_MIB = 2048  # of address space, above what this process has
CPU_S = 30  # of the child itself
WALL_S = 120.0
ASLEEP_S = 8.0  # without any CPU: it waits for something that never comes
WITH_CHILDREN = ("aclam-rollout", "aclam-demo", "compare")
LONGEST_LINE = 800  # characters of an error; some name two paths
TRACEBACK, ABORT, HANG, ACCEPTED, UNCLEAR, LONG, MEMORY, WELL = (
    *("traceback", "abort", "hang", "accepted", "more than one line", "a long line", "memory"),
    "well",
)
NOISE = ("Error", "Exception", "Warning", "error:")  # before the line; progress may stand there
OUT_OF_MEMORY = ("memory", "cannot allocate")
OWN_FAULT = 99  # the status of a child whose input could not be made


@dataclass(frozen=True)
class Case:
    """A bad input and the command, or the call, that gets it."""

    kind: str  # the group that it is counted in
    name: str
    needs: tuple[str, ...]  # valid data, copied into the folder of the case
    spoil: Callable[[Path], object]  # makes the input, in that folder
    do: tuple[str, ...] | Callable[[Path], object]  # a command and its words, or a call
    right: str = REFUSED
    memory_mib: int = MEMORY_MIB


@dataclass(frozen=True)
class Answer:
    """What a child did."""

    kind: str
    name: str
    verdict: str
    right: str
    status: int  # negative: a signal
    seconds: float  # of CPU
    mib: float  # memory above that of the parent
    said: str  # the last line of standard error

    @property
    def well(self) -> bool:
        return self.verdict == WELL


def nothing(here: Path) -> None:
    """Spoil nothing: the command's words are what is bad."""


def without_privileges() -> None:
    """Have this process obey the permissions of files, also as root."""
    if os.geteuid() or not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    head = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3 of the interface; this process
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; low and high words
    libc.capget(head, sets)
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP: children, too
        for word in range(3):
            sets[word] &= ~(1 << capability)
    if libc.capset(head, sets):
        raise OSError(ctypes.get_errno(), "capset")


def limit(memory_mib: int) -> None:
    """Give this process a limit of memory and one of CPU time."""
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    size = pages * resource.getpagesize() + (memory_mib << 20)
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _act(case: Case, here: Path) -> None:
    """Run the command, or the call, as a process of its own would."""
    if callable(case.do):
        try:
            case.do(here)
        except UserError as e:
            print(f"call: {e}", file=sys.stderr)
            raise SystemExit(2) from None
        return
    prog, *words = case.do
    sys.argv = [prog, *words]
    entry.main(words, prog)


def _child(case: Case, base: Path, here: Path) -> int:
    """The status of the case; everything it says goes to files in `here`."""
    os.setsid()
    room = here / "room"
    with open(here / "said", "wb") as said, open("/dev/null") as nowhere:
        for number, file in enumerate((nowhere, said, said)):
            os.dup2(file.fileno(), number)
    sys.stdout = open(1, "w", closefd=False)
    sys.stderr = open(2, "w", closefd=False)
    os.environ["ACLAM_CACHE"] = str(here / "cache")
    try:
        for name in case.needs:
            shutil.copytree(base / name, room / name, symlinks=True)
        os.chdir(room)
        case.spoil(room)
    except BaseException:
        traceback.print_exc()
        return OWN_FAULT
    try:
        limit(case.memory_mib)
        _act(case, room)
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    return status


def _verdict(case: Case, status: int, text: str) -> str:
    """Hold an answer against what would be right."""
    lines = [line for line in text.splitlines() if line.strip()]
    if status in (-signal.SIGXCPU, -signal.SIGKILL):
        return HANG
    if "Traceback (most recent call last)" in text or status == 1:
        return TRACEBACK
    if status < 0 or status not in (0, 2, 3):
        return ABORT
    if status == 2:
        if any(word in lines[-1].lower() for word in OUT_OF_MEMORY) if lines else False:
            return MEMORY
        if case.right == READ:
            return REFUSED
        if not lines or any(word in line for word in NOISE for line in lines[:-1]):
            return UNCLEAR
        if not re.match(r"[\w -]+: \S", lines[-1]):
            return UNCLEAR
        return LONG if len(lines[-1]) > LONGEST_LINE else WELL
    return ACCEPTED if case.right == REFUSED else WELL


def has_children(case: Case) -> bool:
    """Whether the command starts others, for which it may wait."""
    words = case.do if isinstance(case.do, tuple) else ()
    return bool(set(words[:2]) & set(WITH_CHILDREN))


def _sleeps(child: int) -> float | None:
    """Seconds of CPU that a process has had; None where it is not asleep."""
    try:
        fields = Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    if fields[0] not in "SD":
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _wait(child: int, seconds: float, asleep: float) -> tuple[int, resource.struct_rusage]:
    """Wait for a child and end its group: after so long, or so long asleep, it is killed."""
    end = time.monotonic() + seconds
    busy = time.monotonic()
    used_s = 0.0
    while True:
        ended, status, used = os.wait4(child, os.WNOHANG)
        if ended:
            break
        now = time.monotonic()
        had = _sleeps(child)
        if had is None or had > used_s:
            used_s = had or used_s
            busy = now
        if now > end or now - busy > asleep:
            os.kill(child, signal.SIGKILL)
            _, status, used = os.wait4(child, 0)
            break
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)  # what the command has started
    return os.waitstatus_to_exitcode(status), used


def run_case(case: Case, base: Path, here: Path) -> Answer:
    """Fork, spoil, run, judge. `here` is made, and removed unless the answer was wrong."""
    (here / "room").mkdir(parents=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    child = os.fork()
    if not child:
        status = 1
        try:
            status = _child(case, base, here)
        finally:
            os._exit(status)
    asleep = WALL_S if has_children(case) else ASLEEP_S
    status, used = _wait(child, WALL_S, asleep)
    text = (here / "said").read_text(errors="replace") if (here / "said").exists() else ""
    if status == OWN_FAULT:
        raise SystemExit(f"{case.kind}: {case.name}: the input could not be made:\n{text}")
    answer = Answer(
        kind=case.kind,
        name=case.name,
        verdict=_verdict(case, status, text),
        right=case.right,
        status=status,
        seconds=round(used.ru_utime + used.ru_stime, 2),
        mib=round(max(0, used.ru_maxrss - before) / 1024, 1),
        said=last_line(text, here),
    )
    if answer.well:
        clear(here)
    return answer


def clear(folder: Path) -> None:
    """Remove the folder of a case, whatever permissions it was given."""
    for path in sorted(folder.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
    shutil.rmtree(folder)


def last_line(text: str, here: Path) -> str:
    """The last line that was said, without this machine's paths."""
    lines = [line for line in text.splitlines() if line.strip()] or [""]
    return lines[-1].replace(f"{here}/room", "...").replace(str(here), "...")[:400]


def many(
    kind: str,
    needs: Sequence[str],
    do: Sequence[str],
    table: dict[str, Callable[[Path], object]],
    right: str = REFUSED,
) -> list[Case]:
    """Cases that differ in how the same data are spoiled."""
    return [
        Case(kind, name, tuple(needs), spoil, tuple(do), right) for name, spoil in table.items()
    ]
