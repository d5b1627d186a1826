"""Random bad inputs for a bounded time: `make fuzz`.

    python tools/fuzz.py [--minutes 60] [--only NAME] [--workers 2] [--json FILE] [--keep]

The strategies are those of tools/bad/fuzzed.py, one after the other, again and again with other
seeds. What is answered with a traceback, an abort, a hang, or more than one line is printed, once
for each place in the code; with --keep it goes to tests/fixtures/fuzz.jsonl, where the tests try it
from then on. Exit status 1 where something was found.
"""

import argparse
import json
import os
import random
import re
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import bad_inputs
from bad.base import make_base
from bad.case import Answer, clear, run_case
from bad.fuzzed import PROPERTIES, case_of
from forking import import_all
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.database import DirectoryBasedExampleDatabase

from aclam.core import write_json

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "tests" / "fixtures" / "fuzz.jsonl"
AT_A_TIME = 40  # examples of a strategy, then the next one


def place_of(said: str) -> str:
    """What an answer has in common with others of the same fault: its words without numbers."""
    words = re.sub(r"[\"'`].*?[\"'`]|\S*/\S*|0x[0-9a-f]+|-?[\d.]+", "_", said)
    return " ".join(words.split())[:80]


class Fuzz:
    """What was tried and what was found."""

    def __init__(self, place: Path, number: int):
        self.base = place / "base"
        self.place = place / f"cases_{number}"
        self.file = place / f"found_{number}.jsonl"
        self.random = random.Random(time.time_ns() + number)
        self.tried: Counter[str] = Counter()
        self.known: set[str] = set()
        self.count = 0

    def answer(self, description: dict) -> Answer:
        self.count += 1
        return run_case(case_of(description), self.base, self.place / f"{self.count:06d}")

    def check(self, name: str) -> Callable[[dict], None]:
        """The property: an answer is well."""

        def holds(description: dict) -> None:
            answer = self.answer(description)
            self.tried[name] += 1
            if answer.well:
                return
            clear(self.place / f"{self.count:06d}")
            fault = f"{answer.verdict} {place_of(answer.said)}"
            if fault in self.known:
                return
            self.known.add(fault)
            self.note(name, description, answer)  # no failure: what is found once is enough

        return holds

    def note(self, name: str, description: dict, answer: Answer) -> None:
        row = {"property": name, "verdict": answer.verdict, "said": answer.said}
        with open(self.file, "a") as file:
            file.write(json.dumps({**row, "description": description}) + "\n")
        text = json.dumps(description)[:300]
        print(f"{name}: {answer.verdict}: {answer.said[:200]}\n    {text}", flush=True)

    def once(self, name: str) -> None:
        """Some examples of one strategy."""
        database = DirectoryBasedExampleDatabase(ROOT / ".hypothesis" / "examples")
        phases = (Phase.explicit, Phase.reuse, Phase.generate)
        run = settings(
            max_examples=AT_A_TIME,
            database=database,
            phases=phases,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )(given(PROPERTIES[name])(self.check(name)))
        seed(self.random.getrandbits(32))(run)()

    def run(self, names: list[str], end: float) -> None:
        while time.monotonic() < end:
            for name in names:
                self.once(name)
                if time.monotonic() >= end:
                    break


def worker(place: Path, number: int, names: list[str], end: float) -> int:
    """A process that fuzzes until the end; its number."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        fuzz = Fuzz(place, number)
        fuzz.run(names, end)
        (place / f"tried_{number}.json").write_text(json.dumps(fuzz.tried))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def rows_of(place: Path) -> list[dict]:
    """What all workers have found, each fault once."""
    rows = {}
    for file in sorted(place.glob("found_*.jsonl")):
        for row in map(json.loads, file.read_text().splitlines()):
            rows.setdefault(f"{row['verdict']} {place_of(row['said'])}", row)
    return list(rows.values())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--only", choices=PROPERTIES, nargs="+", default=list(PROPERTIES))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write what was tried and found here")
    parser.add_argument("--keep", action="store_true", help=f"add what is found to {KEPT.name}")
    given_ = parser.parse_args()
    import_all(*bad_inputs.LATE)
    place = Path(tempfile.mkdtemp(prefix="fuzz_"))
    try:
        bad_inputs.in_child(make_base, place / "base")
        end = time.monotonic() + 60 * given_.minutes
        children = [worker(place, n, given_.only, end) for n in range(given_.workers)]
        statuses = [os.waitpid(child, 0)[1] for child in children]
        tried: Counter[str] = Counter()
        for file in place.glob("tried_*.json"):
            tried.update(json.loads(file.read_text()))
        found = rows_of(place)
    finally:
        clear(place)
    if any(statuses):
        raise SystemExit("a worker ended early")
    counts = ", ".join(f"{name} {n:,d}" for name, n in tried.items())
    print(f"{sum(tried.values()):,d} inputs ({counts}): {len(found)} faults")
    if given_.json:
        write_json(given_.json, {"minutes": given_.minutes, "tried": dict(tried), "found": found})
    if given_.keep and found:
        with open(KEPT, "a") as file:
            file.writelines(json.dumps(row["description"]) + "\n" for row in found)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
