"""The board of best results: nbs/results/board.md, made from the entries in nbs/results/board/.

    python tools/board.py            entries of our own from the kept files, then the page
    python tools/board.py --check    exit 1 where one of them is not current

An entry is one JSON file. Ours are read off the kept results and name them in `source`; those of
others have `source` "" and are taken as they are, if they pass the schema `Entry`. See
CONTRIBUTING.md for how to enter one.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Annotated, Literal, TypedDict

from msgspec import Meta

from aclam.core import UserError, read_json, write_json
from aclam.schema import Finite, Positive, PositiveFloat, check

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "aclam/results"
NAME = "board.md"
BUDGETS = (5, 10, 20, 40, 80)  # minutes

Text = Annotated[str, Meta(min_length=1, max_length=400)]
Commit = Annotated[str, Meta(pattern="^[0-9a-f]{7,40}$")]


class Entry(TypedDict):
    """One result: what was measured, how long the training took, and how to get it again."""

    benchmark: Literal["sources", "emoji", "policy"]
    name: Annotated[str, Meta(pattern=r"^[\w. -]{1,60}$")]  # of the model
    minutes: PositiveFloat  # of training, the mean over seeds
    hardware: Text  # on which the minutes were taken
    seeds: Positive  # trainings whose mean the numbers are
    numbers: dict[str, Finite]
    command: Text
    commit: Commit  # of the code, or, where `source` is named, the last that changed that file
    by: Text
    source: str  # the kept file that the numbers are from; "": an entry of someone else
    note: str


class Benchmark(TypedDict):
    """How a table of the board reads."""

    title: str
    about: str
    columns: dict[str, str]  # key of a number -> its heading
    rank: str  # the key by which rows of a budget are ordered
    higher: bool  # whether more is better


LATENT = {
    "sum_reconstruction": "of the sum / copy",
    "reconstruction": "reconstruction / copy",
    "additivity": "additivity",
    "norm_correlation": "norm correlation",
}
BENCHMARKS: dict[str, Benchmark] = {
    "sources": {
        "title": "Latent action models on three sources",
        "about": "Trained on Emoji Table-Top, Meta-World and robosuite together; means over their "
        "held-out episodes (the last tenth), 4,096 triples of each.",
        "columns": LATENT,
        "rank": "sum_reconstruction",
        "higher": False,
    },
    "emoji": {
        "title": "Latent action models on Emoji Table-Top",
        "about": "Trained on 440 episodes of `aclam-data prepare emoji`, without the last tenth, on "
        "which 4,096 triples are measured. The minutes are those of the whole demo: rendering, two "
        "trainings, measuring.",
        "columns": LATENT,
        "rank": "sum_reconstruction",
        "higher": False,
    },
    "policy": {
        "title": "Policies on Emoji Table-Top",
        "about": "Success (S): the cube lies on the right card. A hundred new episodes of each split.",
        "columns": {"id": "`id`", "train": "`train`", "val": "`val`"},
        "rank": "id",
        "higher": True,
    },
}
OURS = "the aclam authors"


# --- entries of our own ---------------------------------------------------------------------------


def commit_of(file: str) -> str:
    """The last commit that changed a kept file, renames aside; '' where git does not know it."""
    words = ["git", "log", "--follow", "--diff-filter=AM", "-1", "--format=%h", "--abbrev=10", "--"]
    done = subprocess.run([*words, str(RESULTS / file)], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip()


def machine(hardware: Mapping) -> str:
    return f"{hardware['cores']} x {hardware['processor']}, PyTorch {hardware['torch']}"


def mean_numbers(rows: Iterable[Mapping], norm: str) -> dict[str, float]:
    """Means of the numbers that a board of latents shows; `norm` is the key of the correlation."""
    rows = list(rows)
    keys = {key: norm if key == "norm_correlation" else key for key in LATENT}
    return {key: round(fmean(row[k] for row in rows), 4) for key, k in keys.items()}


def from_compare() -> Iterable[Entry]:
    kept = read_json(RESULTS / "compare.json", dict)
    for name, runs in kept["models"].items():
        rows = [run["structure"][store] for run in runs.values() for store in kept["data"]]
        yield {
            "benchmark": "sources",
            "name": name,
            "minutes": round(fmean(run["seconds"] for run in runs.values()) / 60, 1),
            "hardware": f"one of {machine(kept['hardware'])}",
            "seeds": len(runs),
            "numbers": mean_numbers(rows, "norm_correlation_uniform"),
            "command": kept["command"],
            "commit": "",
            "by": OURS,
            "source": "compare.json",
            "note": "",
        }


def from_seeds() -> Iterable[Entry]:
    runs = read_json(RESULTS / "seeds.json", dict)["runs"]
    names = {"AC-LAM": "ac_lam_cpu", "Twin without AC": "no_ac_cpu"}
    for label, name in names.items():
        yield {
            "benchmark": "emoji",
            "name": name,
            "minutes": round(fmean(run["minutes"] for run in runs), 1),
            "hardware": runs[0]["hardware"],
            "seeds": len(runs),
            "numbers": mean_numbers([run["models"][label] for run in runs], "norm_correlation"),
            "command": runs[0]["commands"][0],
            "commit": "",
            "by": OURS,
            "source": "seeds.json",
            "note": f"{min(r['minutes'] for r in runs):.0f} minutes on a quiet machine; the other "
            "seeds beside other work",
        }


def from_policy() -> Iterable[Entry]:
    single = read_json(RESULTS / "policy.json", dict)["single"]
    rates = {
        split: single["trial"][split]["S"]["rate"] for split in BENCHMARKS["policy"]["columns"]
    }
    yield {
        "benchmark": "policy",
        "name": "policy_cpu_wo_lam",
        "minutes": round(single["training"]["seconds"] / 60, 1),
        "hardware": f"one of {machine(single['hardware'])}",
        "seeds": 1,
        "numbers": rates,
        "command": single["command"],
        "commit": "",
        "by": OURS,
        "source": "policy.json",
        "note": "without the training of its encoder",
    }


def own_entries() -> list[Entry]:
    """What the kept files say, without commits."""
    return [*from_compare(), *from_seeds(), *from_policy()]


def file_of(entry: Entry) -> str:
    return f"{entry['benchmark']}_{entry['name']}.json"


# --- the page -------------------------------------------------------------------------------------


def read_entries(folder: Path) -> list[Entry]:
    """All entries of a folder; one that is none is a `UserError` that says what is wrong."""
    entries = []
    for file in sorted(folder.glob("*.json")):
        entry = read_json(file, Entry, limit_mib=1)
        known = BENCHMARKS[entry["benchmark"]]["columns"]
        if set(entry["numbers"]) != set(known):
            found = ", ".join(sorted(entry["numbers"]))
            raise UserError(f"{file}: numbers are {found}; expected are {', '.join(known)}")
        if entry["source"] and not (RESULTS / entry["source"]).is_file():
            raise UserError(f"{file}: source {entry['source']} is no kept result; '' for others")
        for key in ("command", "hardware", "by", "note"):
            if "\n" in entry[key] or "|" in entry[key]:
                raise UserError(f"{file}: {key} must be one line without |")
        entries.append(entry)
    return entries


def budget_of(entry: Entry) -> int | None:
    """The smallest budget into which a training fits; None: none."""
    return next((b for b in BUDGETS if entry["minutes"] <= b), None)


def row_of(entry: Entry, benchmark: Benchmark, best: bool) -> str:
    budget = budget_of(entry)
    name = f"**{entry['name']}**" if best else entry["name"]
    numbers = [f"{entry['numbers'][key]:.3g}" for key in benchmark["columns"]]
    source = f"[{entry['source']}]({entry['source']})" if entry["source"] else "its author"
    cells = [f"up to {budget}" if budget else f"above {BUDGETS[-1]}", name, *numbers]
    cells += [f"{entry['minutes']:g}", str(entry["seeds"]), f"`{entry['commit']}`", source]
    cells += [entry["by"], entry["note"]]
    return f"| {' | '.join(cells)} |"


def table_of(entries: list[Entry], benchmark: Benchmark) -> list[str]:
    """The rows of one benchmark: by budget, then by rank; the best so far is bold."""
    sign = -1 if benchmark["higher"] else 1
    rank = benchmark["rank"]
    order = []
    for entry in entries:
        place = (budget_of(entry) or 10**9, sign * entry["numbers"][rank], entry["name"])
        order.append((place, entry))
    order.sort(key=lambda pair: pair[0])
    heads = ["minutes", "model", *benchmark["columns"].values(), "taken", "seeds", "commit"]
    heads += ["numbers from", "by", "note"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    record = float("inf")
    for (_, score, _), entry in order:
        lines.append(row_of(entry, benchmark, score < record))
        record = min(record, score)
    return lines


def commands_of(entries: list[Entry]) -> list[str]:
    """A line for each command, with the models that it made."""
    names: dict[str, list[str]] = {}
    for entry in entries:
        names.setdefault(entry["command"], []).append(entry["name"])
    return [f"- {', '.join(made)}: `{command}`" for command, made in names.items()]


def page(entries: list[Entry]) -> str:
    """The whole page."""
    parts = [
        "# The board: best results by budget",
        "Made by `python tools/board.py` from the files in [board/](board); edit those. Rows are "
        "ordered by the minutes that the training took, then by the first number; **bold** is what "
        "no row above it reaches. Numbers are read off the kept results beside this page; the "
        "commit is that of the code, or, for a kept result, which does not name one, the last that "
        "changed the file (`git log`). Enter a result of yours: one JSON file, see "
        "[CONTRIBUTING](../../CONTRIBUTING.md).",
        "Of the sum / copy: the squared error of the frame to which the sum of two latents leads, "
        "over that of copying the first frame. It is small only where a model both predicts and "
        "adds up: latents that are all zero add up, and have 1 here.",
    ]
    for key, benchmark in BENCHMARKS.items():
        mine = [entry for entry in entries if entry["benchmark"] == key]
        parts += [f"## {benchmark['title']}", benchmark["about"]]
        parts.append("\n".join(table_of(mine, benchmark)))
        said = commands_of(mine)
        machines = dict.fromkeys(e["hardware"] for e in mine)
        parts.append(f"Machines: {'; '.join(machines)}. Commands:")
        parts.append("\n".join(said))
    return "\n\n".join(parts) + "\n"


# --- the command ----------------------------------------------------------------------------------


def stale(folder: Path, target: Path) -> list[str]:
    """What is not current: entries of ours, whose commits are not compared, and the page."""
    wrong = []
    for entry in own_entries():
        file = folder / file_of(entry)
        kept = read_json(file, Entry, limit_mib=1) if file.is_file() else {}
        if {**kept, "commit": ""} != entry:
            wrong.append(file.name)
    text = target.read_text(encoding="utf-8") if target.is_file() else ""
    if text != page(read_entries(folder)):
        wrong.append(target.name)
    return wrong


def refresh(folder: Path) -> None:
    """Write our own entries; a commit that git does not tell stays what it was."""
    folder.mkdir(exist_ok=True)
    for entry in own_entries():
        file = folder / file_of(entry)
        before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        entry["commit"] = commit_of(entry["source"]) or before.get("commit", "")
        write_json(file, check(Entry, entry, file.name))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 where out of date")
    folder = RESULTS / "board"
    target = RESULTS / NAME
    try:
        if parser.parse_args().check:
            wrong = stale(folder, target)
            if wrong:
                print(f"not current: {', '.join(wrong)}; run python tools/board.py")
            return int(bool(wrong))
        refresh(folder)
        target.write_text(page(read_entries(folder)), encoding="utf-8")
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
