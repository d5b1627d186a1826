"""Bad inputs over every reader, command and option, each in a child process that has limits of
memory and time.

    python tools/bad_inputs.py [--only TEXT ...] [--workers 2] [--json FILE] [--keep FOLDER]

What is right: one line on standard error (after progress, where work had begun) and exit status 2;
or, for what is unusual and not wrong, that it is read. Everything else is counted: a traceback, an
abort, a hang, an input that is accepted, an answer that is not clear. Exit status 1 where an answer
was not right.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

# before NumPy and PyTorch are imported: forks are safe while there is one thread
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"

from bad import (  # noqa: E402
    arrays,
    calls,
    documents,
    media,
    options,
    places,
    recipes,
    recordings,
    strangers,
    tables,
)
from bad.base import make_base  # noqa: E402
from bad.case import WELL, Answer, Case, clear, run_case  # noqa: E402
from forking import import_all  # noqa: E402

from aclam.core import write_json  # noqa: E402

TABLES = (places, documents, tables, arrays, recordings, recipes, media, options, strangers, calls)
LATE = ("tensorboard", "av", "PIL.PngImagePlugin")  # what libraries import when it is used


def all_cases() -> list[Case]:
    """Every case of every table, each once."""
    found = {}
    for table in TABLES:
        for case in table.cases():
            words = case.do if isinstance(case.do, tuple) else ()
            found.setdefault((case.kind, case.name, words), case)
    return list(found.values())


def in_child(do, *words: object) -> None:
    """Run something in a fork of this process, so that this one stays as it is."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        if status:
            raise SystemExit("the valid data could not be made")
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    status = 1
    try:
        do(*words)
        status = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def share(cases: Sequence[Case], base: Path, place: Path, number: int, workers: int) -> None:
    """Every `workers`-th case, one after the other; an answer a line."""
    with open(place / f"answers_{number}.jsonl", "w") as file:
        for n in range(number, len(cases), workers):
            answer = run_case(cases[n], base, place / f"case_{n:04d}")
            file.write(json.dumps({"n": n, **asdict(answer)}) + "\n")
            file.flush()
            if not answer.well:
                print(line(answer), file=sys.stderr, flush=True)


def line(answer: Answer) -> str:
    """An answer that was not right, for a person."""
    return f"{answer.verdict:10s} {answer.kind}: {answer.name}: {answer.said[:150]}"


def run_all(cases: Sequence[Case], base: Path, place: Path, workers: int) -> list[Answer]:
    """All answers, in the order of the cases."""
    children = []
    for number in range(workers):
        child = os.fork()
        if not child:
            status = 1
            try:
                share(cases, base, place, number, workers)
                status = 0
            finally:
                sys.stderr.flush()
                os._exit(status)
        children.append(child)
    for child in children:
        _, status = os.waitpid(child, 0)
        if status:
            raise SystemExit("a worker of the table ended early")
    rows = {}
    for file in place.glob("answers_*.jsonl"):
        for row in map(json.loads, file.read_text().splitlines()):
            number = row.pop("n")
            rows[number] = Answer(**row)
    return [rows[n] for n in sorted(rows)]


def report(answers: Sequence[Answer], seconds: float) -> dict:
    """Counts, by kind and in all, and each answer that was not right."""
    kinds = {}
    for kind in dict.fromkeys(a.kind for a in answers):
        counted = Counter(a.verdict for a in answers if a.kind == kind)
        kinds[kind] = {"inputs": sum(counted.values()), **dict(sorted(counted.items()))}
    total = Counter(a.verdict for a in answers)
    return {
        "inputs": len(answers),
        "share answered well": round(total[WELL] / max(1, len(answers)), 4),
        "verdicts": dict(total.most_common()),
        "kinds": kinds,
        "most CPU seconds": max((a.seconds for a in answers), default=0.0),
        "most MiB": max((a.mib for a in answers), default=0.0),
        "seconds": round(seconds, 1),
        "not right": [asdict(a) for a in answers if not a.well],
    }


def text_of(found: dict) -> str:
    """The counts as a table."""
    verdicts = list(found["verdicts"])
    lines = [f"{'kind':40s}{'inputs':>8s}" + "".join(f"{v[:12]:>13s}" for v in verdicts)]
    for kind, row in {**found["kinds"], "all": found["verdicts"]}.items():
        inputs = row.get("inputs", found["inputs"])
        counts = "".join(f"{row.get(v, 0):13d}" for v in verdicts)
        lines.append(f"{kind[:40]:40s}{inputs:8d}{counts}")
    most = f"at most {found['most CPU seconds']:.0f} s of CPU and {found['most MiB']:.0f} MiB each"
    share_ = f"{100 * found['share answered well']:.1f} % answered well"
    return "\n".join([*lines, f"{share_}, {most}, {found['seconds']:.0f} s in all"])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=[""],
        help="cases whose kind and name have one of these in them",
    )
    parser.add_argument("--base", type=Path, help="keep the valid data here for the next time")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write counts and wrong answers here")
    parser.add_argument("--keep", type=Path, help="keep the folders of wrong answers here")
    given = parser.parse_args()
    cases = [c for c in all_cases() if any(w in f"{c.kind}: {c.name}" for w in given.only)]
    if not cases:
        parser.error(f"no case has {given.only} in it")
    begun = time.monotonic()
    import_all(*LATE)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    place = Path(tempfile.mkdtemp(prefix="bad_inputs_", dir=given.keep))
    try:
        base = given.base or place / "base"
        if not base.exists():
            in_child(make_base, base)
        answers = run_all(cases, base, place, given.workers)
    finally:
        if not given.keep:
            clear(place)
    found = report(answers, time.monotonic() - begun)
    print(text_of(found))
    if given.json:
        write_json(given.json, found)
    return int(found["share answered well"] < 1)


if __name__ == "__main__":
    sys.exit(main())
