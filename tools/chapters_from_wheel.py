"""Run each chapter as a reader does who has only the package: the notebook alone, in an empty
folder.

    python tools/chapters_from_wheel.py [--only seeds 4_lam ...] [--workers 2] [--limit 600]

A wheel is built of this checkout and put into an environment that has the locked packages and
nothing of the checkout. Each notebook is copied into an empty folder and run there from top to
bottom, the install cell included, which must find that there is nothing to install. Cells marked
slow, gpu, notest or `eval: false` are left out, as in `make test`.

What has passed is kept in `--work` and is not run again until the chapter or the wheel changes.
Ends with a table and with status 1 where a chapter fails.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from alone import ROOT, build_wheel, clean_environment, make_environment
from lint_notebooks import INSTALL, Cell, read

LEFT_OUT = {"slow", "gpu", "notest"}
ONE_THREAD = dict.fromkeys(["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"], "1")

# What runs a notebook: execnb, as nbdev does, but with no configuration of this repository. Any
# call of pip is an error: the package is there.
RUN = """
import sys
from execnb.shell import CaptureShell
from fastcore.nbio import read_nb

def pip(line):
    raise RuntimeError("the install cell wants to install though aclam is here")

import aclam
assert aclam.__file__.startswith(sys.argv[3]), aclam.__file__
left_out = set(map(int, sys.argv[2].split(",")))
shell = CaptureShell(sys.argv[1])
shell.register_magic_function(pip, "line", "pip")
try:
    shell.run_all(read_nb(sys.argv[1]), exc_stop=True, preproc=lambda c: c.idx_ + 1 in left_out)
except BaseException:
    sys.__stderr__.write(shell.prettytb())
    sys.__stderr__.flush()
    import os
    os._exit(1)
"""


@dataclass(frozen=True)
class Result:
    chapter: str  # from nbs/
    seconds: float
    status: str  # passed, failed, or over the limit
    error: str  # the line that names the error, empty where it passed
    digest: str  # of the notebook and of what the wheel holds


def chapters(only: list[str]) -> list[Path]:
    """Notebooks whose path below nbs/ has one of these words in it; all without words."""
    there = sorted((ROOT / "nbs").rglob("*.ipynb"))
    there = [p for p in there if ".ipynb_checkpoints" not in p.parts]
    return [p for p in there if not only or any(word in name(p) for word in only)]


def name(path: Path) -> str:
    """`"4_lam/model"`; a notebook of another place is called by its file alone."""
    nbs = ROOT / "nbs"
    inside = path.relative_to(nbs) if path.is_relative_to(nbs) else Path(path.name)
    return inside.with_suffix("").as_posix()


def content(wheel: Path) -> str:
    """A digest of the files in a wheel, but for the lists and the README that pip adds."""
    digest = hashlib.sha256()
    with zipfile.ZipFile(wheel) as z:
        for entry in sorted(z.namelist()):
            if not entry.endswith(("/RECORD", "/METADATA")):
                digest.update(entry.encode() + b"\0" + z.read(entry))
    return digest.hexdigest()


def runs(cell: Cell) -> bool:
    """Whether a cell is run here: the install cell is, though nbdev leaves it out."""
    if cell.kind != "code":
        return False
    return INSTALL in cell.source or (cell.runs and not cell.directives & LEFT_OUT)


def run_chapter(path: Path, python: Path, work: Path, limit: float, digest: str) -> Result:
    """Run one notebook, alone in an empty folder, and end what it has started."""
    folder = work / "rooms" / name(path).replace("/", ".")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copy(path, folder)
    left_out = ",".join(str(c.number) for c in read(path, path.parent).cells if not runs(c)) or "0"
    command = [str(python), "-c", RUN, path.name, left_out, str(python.parents[1])]
    environment = {**clean_environment(python.parents[1]), **ONE_THREAD}

    start = time.monotonic()
    log = work / "logs" / f"{folder.name}.txt"
    with open(log, "w") as output:
        child = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
        try:
            code = child.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        except BaseException:  # Ctrl-C: the chapter ends, too
            os.killpg(child.pid, signal.SIGKILL)
            raise
    if code is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    seconds = round(time.monotonic() - start, 1)
    shutil.rmtree(folder, ignore_errors=True)
    status = "passed" if code == 0 else "over the limit" if code is None else "failed"
    return Result(name(path), seconds, status, error(log) if code else "", digest)


def error(log: Path) -> str:
    """The line of a traceback that names the error: its last line that is not indented."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    named = [line for line in lines if not line.startswith((" ", "=", "\x1b"))]
    return (named or lines or ["no output"])[-1][:200]


def table(results: list[Result]) -> str:
    rows = [f"| {r.chapter} | {r.seconds:.1f} | {r.status} | {r.error} |" for r in results]
    return "\n".join(["| chapter | seconds | status | error |", "|---|---|---|---|", *rows])


def prepare(work: Path) -> tuple[Path, str]:
    """The interpreter with the wheel, made anew where the checkout has changed, and its digest."""
    shutil.rmtree(work / "new", ignore_errors=True)
    for part in ("new", "logs"):
        (work / part).mkdir(parents=True, exist_ok=True)
    wheel = build_wheel(work / "new")
    digest = content(wheel)
    stamp, environment = work / "wheel.txt", work / "environment"
    python = environment / "bin" / "python"
    if not (stamp.exists() and stamp.read_text() == digest and python.exists()):
        shutil.rmtree(environment, ignore_errors=True)
        make_environment(environment, wheel)
        stamp.write_text(digest)
    return python, digest


def read_kept(file: Path) -> dict[str, Result]:
    if not file.exists():
        return {}
    return {row["chapter"]: Result(**row) for row in json.loads(file.read_text())}


def main() -> int:
    about = __doc__.splitlines()[0]
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--only", nargs="+", default=[], help="words in the chapters' paths")
    parser.add_argument("--workers", type=int, default=2, help="chapters at a time")
    parser.add_argument("--limit", type=float, default=600, help="seconds for one chapter")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "chapters")
    options = parser.parse_args()

    chosen, work = chapters(options.only), options.work.resolve()
    if not chosen:
        print(f"no chapter has one of these in its path: {options.only}", file=sys.stderr)
        return 2
    python, wheel = prepare(work)
    kept = read_kept(work / "chapters.json")

    def one(path: Path) -> Result:
        digest = hashlib.sha256(wheel.encode() + path.read_bytes()).hexdigest()
        before = kept.get(name(path))
        if before and before.digest == digest and before.status == "passed":
            return before
        result = run_chapter(path, python, work, options.limit, digest)
        print(
            f"{result.status:8} {result.seconds:6.1f} s  {result.chapter}  {result.error}",
            flush=True,
        )
        return result

    with ThreadPoolExecutor(options.workers) as pool:
        results = []
        for result in pool.map(one, chosen):
            results.append(result)
            kept[result.chapter] = result
            rows = [asdict(r) for r in kept.values()]
            (work / "chapters.json").write_text(json.dumps(rows, indent=1))
    failed = [r for r in results if r.status != "passed"]
    print(table(results))
    print(f"{len(results) - len(failed)} chapters passed, {len(failed)} failed")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
