"""What a GPU makes of the training: throughput, memory, waiting, precision, structure (kept; made
by bench/gpu.sh)

    bash bench/gpu.sh [--tiny] [--out DIR] [--only NAME ...] [--minutes M] [--keep]

runs the sections of gpu_sections.py one after the other, each in a process of its own that may
fail, hang or run out of memory without harm to the others, and writes one JSON file. While a
section measures, the next one imports its libraries. `--tiny` runs the same sections with tiny
models on a CPU: it shows that they work, and no speed. Then the libraries are imported once, and
each section is a fork of that process: without a GPU nothing forbids it, and ten imports would take
longer than what is measured.
"""

import argparse
import faulthandler
import importlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "nbs" / "results" / "gpu.json"
NEEDED = {  # module: what brings it
    "torch": "torch",
    "torchvision": "torchvision",
    "numpy": "numpy",
    "timm": "timm",
    "accelerate": "accelerate",
    "safetensors": "safetensors",
    "scipy": "scipy",
    "pyarrow": "pyarrow",
    "PIL": "pillow",
    "tqdm": "tqdm",
    "tensorboard": "tensorboard",
    "yaml": "pyyaml",
    "matplotlib": "matplotlib",
    "tyro": "tyro",
    "docstring_parser": "docstring_parser",
    "typeguard": "typeguard",
    "fastcore": "fastcore",
    "msgspec": "msgspec",
}
NAMES = (
    "machine",
    "stores",
    "sweep",
    "loop",
    "layers",
    "compiled",
    "profile",
    "families",
    "policy",
    "curves",
    "twins",
)
GRACE_S = 10  # for what comes after the last section: the plots
NO_GPU = 3  # exit status of a section that finds none
WITHOUT = "there is no GPU here that PyTorch can use; --tiny runs every section on a CPU, with tiny models"
PATIENCE_S = 5  # a section that is out of time may still finish its row


def forks(args: argparse.Namespace) -> bool:
    """Whether sections are forks of a process that has imported everything."""
    return args.tiny and hasattr(os, "fork")


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench/gpu.sh", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--tiny", action="store_true", help="tiny models on the CPU: does it run?")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/gpu"), help="folder for gpu.json, plots, logs, runs"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=list(NAMES),
        choices=NAMES,
        metavar="NAME",
        help=", ".join(NAMES),
    )
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="of everything, from the start of the script"
    )
    parser.add_argument("--keep", action="store_true", help=f"also write {KEPT.relative_to(ROOT)}")
    parser.add_argument(
        "--missing", action="store_true", help="print the packages that are not there, and stop"
    )
    # this process is one section
    parser.add_argument("--section", choices=NAMES, help=argparse.SUPPRESS)
    return parser.parse_args(list(argv))


def missing() -> list[str]:
    return sorted({package for module, package in NEEDED.items() if find_spec(module) is None})


# --- a section, in a process of its own -----------------------------------------------------------


def load_sections() -> ModuleType:
    """The sections, and with them all libraries."""
    sys.path.insert(0, str(Path(__file__).parent))
    return importlib.import_module("gpu_sections")


def run_section(args: argparse.Namespace) -> int:
    """Import everything, wait for the word, measure.

    The word is a line with the seconds that there are.
    """
    load_sections()
    word = sys.stdin.readline()
    if not word.strip():
        return 0  # the run ended before it was this section's turn
    return measure(args, args.section, float(word))


def measure(args: argparse.Namespace, name: str, seconds: float) -> int:
    """Run one section in this process."""
    sections = load_sections()
    clock = sections.Clock(time.monotonic() + seconds)
    cpu = args.tiny or not sections.torch.cuda.is_available()
    plan = sections.Plan(tiny=args.tiny, device="cpu" if cpu else "cuda", out=args.out)
    page = sections.Page(args.out / "pages" / f"{name}.json")
    if cpu and not args.tiny:
        page.put(error=WITHOUT)
        return NO_GPU
    if not forks(args):  # a section that runs out of time says in its log where it was
        faulthandler.dump_traceback_later(max(seconds - 1, 0.5), file=sys.__stderr__)
    try:
        sections.SECTIONS[name](plan, page, clock)
    # whatever it is, it belongs on the page, and the traceback into the log
    except Exception as error:
        page.put(error=sections.first_line(error))
        raise
    finally:
        faulthandler.cancel_dump_traceback_later()
    return 0


def settings(args: argparse.Namespace) -> dict[str, str]:
    """Environment variables of a section."""
    # of its own: one that was killed may leave half a file
    cache = str(args.out / "runs" / "compiled_code")
    found = {"TORCHINDUCTOR_CACHE_DIR": cache, "TRITON_CACHE_DIR": cache}
    if args.tiny:
        found |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return found


class Child:
    """A section's process: started early, told to begin later."""

    def __init__(self, args: argparse.Namespace, name: str):
        self.args = args
        self.name = name
        self.page = args.out / "pages" / f"{name}.json"
        self.log = open(args.out / "logs" / f"{name}.log", "w")
        self.start()

    def start(self) -> None:
        """Have it import its libraries."""
        words = [sys.executable, __file__, "--section", self.name, "--out", str(self.args.out)]
        self.process = subprocess.Popen(
            [*words, "--tiny"] if self.args.tiny else words,
            stdin=subprocess.PIPE,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, **settings(self.args)},
        )

    def begin(self, seconds: float) -> None:
        """Give it the word."""
        try:
            self.process.stdin.write(f"{seconds}\n")
            self.process.stdin.close()
        except BrokenPipeError:
            pass

    def wait(self, seconds: float) -> int | None:
        """Its exit status, if it has ended in time."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def measure(self, seconds: float) -> tuple[dict[str, Any], int | None]:
        """Give it so many seconds, and a few more to notice; what became of it, and its status."""
        start = time.monotonic()
        self.begin(seconds)
        code = self.wait(seconds + PATIENCE_S)
        status = {None: "out of time", 0: "done"}.get(code, "failed")
        self.end()
        found = json.loads(self.page.read_text()) if self.page.exists() else {}
        if status == "failed" and "error" not in found:
            found["error"] = self.last_words(code)
        took = round(time.monotonic() - start, 1)
        return {"status": status, "seconds": took, "result": found}, code

    def last_words(self, code: int | None) -> str:
        """The last line of the log."""
        lines = Path(self.log.name).read_text(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else f"exit status {code}"

    def end(self) -> None:
        """End the process and all that it has started."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.wait(PATIENCE_S)
        self.log.close()


class Fork(Child):
    """The same as a fork of this process, which has imported everything."""

    def start(self) -> None:
        os.environ.update(settings(self.args))  # before the first import: threads are counted there
        load_sections()
        self.process = None

    def begin(self, seconds: float) -> None:
        fork = multiprocessing.get_context("fork")
        self.process = fork.Process(target=self.work, args=(seconds,))
        self.process.start()

    def work(self, seconds: float) -> None:
        """What the fork does."""
        os.setsid()
        os.dup2(self.log.fileno(), 1)
        os.dup2(self.log.fileno(), 2)
        sys.exit(measure(self.args, self.name, seconds))

    def wait(self, seconds: float) -> int | None:
        self.process.join(seconds)
        return self.process.exitcode

    def end(self) -> None:
        if self.process is None:
            self.log.close()
        else:
            super().end()


class NoGpu(Exception):
    """There is nothing to measure with."""


# --- all of them ----------------------------------------------------------------------------------


LIMITS = {  # seconds on a GPU: the most, and the least
    "machine": (30, 5),
    "stores": (40, 8),
    "sweep": (50, 25),
    "loop": (100, 60),
    "layers": (50, 30),
    "compiled": (150, 70),
    "profile": (25, 12),
    "families": (50, 36),
    "policy": (40, 28),
    "curves": (35, 24),
    "twins": (150, 40),
}


def limits(tiny: bool) -> dict[str, tuple[float, float]]:
    """Of each section: the most seconds it may take, and the least that it should be left."""
    return dict.fromkeys(NAMES, (300, 5)) if tiny else dict(LIMITS)


def allowed(name: str, todo: Sequence[str], left: float, tiny: bool) -> float:
    """Seconds for a section: its most, but what is left without the least of those that follow."""
    bounds = limits(tiny)
    later = sum(bounds[n][1] for n in todo)
    return max(min(bounds[name][0], left - later - GRACE_S), 1.0)


def run_all(args: argparse.Namespace, started: float) -> dict[str, Any]:
    """One section after the other; the JSON file is whole after each."""
    for folder in ("pages", "logs", "runs"):
        (args.out / folder).mkdir(parents=True, exist_ok=True)
    end = started + 60 * args.minutes
    report: dict[str, Any] = {
        "tiny": args.tiny,
        "made_by": "bash bench/gpu.sh" + (" --tiny" if args.tiny else ""),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "minutes": args.minutes,
        "sections": {},
    }
    kind = Fork if forks(args) else Child
    todo = list(args.only)
    waiting = None
    while todo:
        name = todo.pop(0)
        child = waiting or kind(args, name)
        waiting = kind(args, todo[0]) if todo else None
        seconds = allowed(name, todo, end - time.time(), args.tiny)
        row, code = child.measure(seconds)
        report["sections"][name] = row
        write(args, report)
        if code == NO_GPU:
            if waiting:
                waiting.end()
            raise NoGpu(WITHOUT)
        outcome = f"{name:10s} {row['status']:12s} {row['seconds']:6.1f} s"
        print(f"{outcome}  {row['result'].get('error', '')}", file=sys.stderr, flush=True)
    report["seconds"] = round(time.time() - started, 1)
    return report


def commit() -> str | None:
    """The commit that this is, where git knows; marked where files differ from it.

    A copy without history is told: $ACLAM_COMMIT.
    """
    if told := os.environ.get("ACLAM_COMMIT"):
        return told
    try:
        words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
        return subprocess.run(
            words, capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def write(args: argparse.Namespace, report: dict[str, Any]) -> None:
    from aclam.core import write_json

    write_json(args.out / "gpu.json", report)


# --- what it says ---------------------------------------------------------------------------------


def result_of(report: dict, section: str) -> dict:
    return report["sections"].get(section, {}).get("result", {})


def headline(report: dict) -> dict[str, Any]:
    """The numbers that one asks for first; None where a section has none."""
    swept = [r for r in result_of(report, "sweep").get("micro_batches", []) if r["fits"]]
    best = max(swept, key=lambda r: r["rows_per_second"], default={})
    runs = {r["run"]: r for s in ("loop", "compiled") for r in result_of(report, s).get("runs", [])}
    quickest = max(runs.values(), key=lambda r: r["triples_per_second"] or 0, default={})
    shares = result_of(report, "profile").get("shares", {})
    twins = {r["preset"]: r.get("additivity") for r in result_of(report, "twins").get("models", [])}
    return {
        "card": result_of(report, "machine").get("card"),
        "step_alone": {
            k: best.get(k) for k in ("micro_batch", "rows_per_second", "mfu", "peak_memory_gib")
        },
        "loop": {
            k: quickest.get(k)
            for k in ("run", "triples_per_second", "mfu", "data_wait", "peak_memory_gib")
        },
        "longest_kind_of_kernel": max(shares, key=shares.get, default=None),
        "bf16_against_float32": result_of(report, "curves").get("apart", {}).get("bf16"),
        "additivity": twins,
        "sections_done": sum(s["status"] == "done" for s in report["sections"].values()),
    }


def plots(args: argparse.Namespace, report: dict) -> list[str]:
    """Throughput over micro-batches, and the loss in each precision, where they were measured."""
    from matplotlib.figure import Figure  # an absent library is noticed by --missing

    drawn = []
    for name, draw in (("throughput", draw_throughput), ("curves", draw_curves)):
        figure = Figure(figsize=(5, 3), dpi=110, layout="tight")
        if draw(figure.subplots(), report):
            figure.savefig(args.out / f"gpu_{name}.png")
            drawn.append(f"gpu_{name}.png")
    return drawn


def draw_throughput(ax: Any, report: dict) -> bool:
    swept = [r for r in result_of(report, "sweep").get("micro_batches", []) if r["fits"]]
    ax.plot(
        [r["micro_batch"] for r in swept],
        [r["rows_per_second"] for r in swept],
        "o-",
        label="a step alone",
    )
    for section in ("loop", "compiled"):
        for r in result_of(report, section).get("runs", []):
            ax.plot(
                [r["micro_batch"]], [r["triples_per_second"] or 0], "s", label=f"loop, {r['run']}"
            )
    ax.set(xlabel="triples in a micro-batch", ylabel="triples a second", ylim=(0, None))
    if swept:
        ax.legend(fontsize=7)
    return bool(swept)


def draw_curves(ax: Any, report: dict) -> bool:
    losses = result_of(report, "curves").get("losses", {})
    for name, values in losses.items():
        ax.plot(values, label=name, lw=1)
    ax.set(xlabel="step", ylabel="loss")
    if losses:
        ax.legend(fontsize=7)
    return bool(losses)


def main(argv: Sequence[str]) -> int:
    args = arguments(argv)
    started = float(os.environ.get("ACLAM_GPU_STARTED", time.time()))
    if args.missing:
        print("\n".join(missing()))
        return 0
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    sys.path.insert(0, str(ROOT))
    args.out = args.out.resolve()
    if args.section:
        return run_section(args)
    if absent := missing():
        print(
            f"bench/gpu.sh: not installed: {' '.join(absent)}; see bench/gpu.sh --pack",
            file=sys.stderr,
        )
        return 2
    shutil.rmtree(args.out / "pages", ignore_errors=True)  # what an earlier call has measured
    try:
        report = run_all(args, started)
    except NoGpu as error:
        print(f"bench/gpu.sh: {error}", file=sys.stderr)
        return 2
    report["headline"] = headline(report)
    report["plots"] = plots(args, report)
    write(args, report)
    shutil.rmtree(args.out / "runs", ignore_errors=True)  # gigabytes of weights that nobody wants
    if args.keep:
        KEPT.write_bytes((args.out / "gpu.json").read_bytes())
    print(json.dumps(report["headline"]))
    return 0 if report["headline"]["sections_done"] == len(args.only) else 1


def rows() -> Iterator[tuple[str, float, str]]:
    """For bench/run.py: the kept numbers, where there are some."""
    if not KEPT.exists():
        yield "not measured yet: bash bench/gpu.sh --keep, on a GPU", float("nan"), ""
        return
    report = json.loads(KEPT.read_text())
    how = "tiny, on a CPU" if report["tiny"] else report["headline"]["card"]
    for part in ("step_alone", "loop"):
        for name, value in report["headline"][part].items():
            if isinstance(value, (int, float)):
                yield f"{how}: {part.replace('_', ' ')}, {name}", value, ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
