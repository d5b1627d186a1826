"""The map of both papers: rows of papers.yml with their numbers read from kept results, as Markdown."""

import csv
import json
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import yaml
from convert import NBS, ROOT, title_and_subtitle

from aclam.kept import kept_result

VERDICTS = ("reproduced", "differs", "open", "not")
KINDS = {"equation": "Eq.", "proposition": "Prop.", "table": "Table", "figure": "Figure"}
COUNTS = {
    ("linear", "equation"): 27,
    ("linear", "proposition"): 4,
    ("linear", "table"): 1,
    ("linear", "figure"): 4,
    ("ac_lam", "equation"): 11,
    ("ac_lam", "proposition"): 5,
    ("ac_lam", "table"): 6,
    ("ac_lam", "figure"): 6,
}


@cache
def content() -> dict:
    return yaml.safe_load((ROOT / "site" / "papers.yml").read_text(encoding="utf-8"))


def rows() -> Iterator[tuple[str, str, str, dict]]:
    """Paper, kind, number and the row itself, in the order of the papers."""
    for paper, kinds in content().items():
        for kind in KINDS:
            for number, row in kinds.get(kind, {}).items():
                yield paper, kind, str(number), row


# --- numbers from kept results --------------------------------------------------------------------


@cache
def kept(name: str) -> Any:
    """What a kept result holds: JSON, or the rows of a table."""
    text = kept_result(name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines())) if name.endswith(".csv") else json.loads(text)


def follow(value: Any, path: list) -> Any:
    for key in path:
        value = value[key]
    return value


def chosen(found: list[Mapping], where: Mapping) -> list[Mapping]:
    """The entries that have these values; at least one."""
    same = [row for row in found if all(row[key] == value for key, value in where.items())]
    if not same:
        raise LookupError(f"no entry with {dict(where)}")
    return same


def found(said: Mapping) -> list:
    """The values that `{file, at, where, keys, then}` leads to: of one entry, or of several."""
    value = kept(said["file"])
    if said["file"].endswith(".csv"):
        return [float(row[said["at"]]) for row in chosen(value, said["where"])]
    value = follow(value, said["at"])
    if "count" in said:
        return [len(chosen(value, said["count"]))]
    if "keys" in said:
        return [follow(value[key], said["then"]) for key in said["keys"]]
    if "where" in said:
        return [follow(entry, said["then"]) for entry in chosen(value, said["where"])]
    return [value]


def number(said: Mapping) -> str:
    """What `found` finds as words: a mean where there are several; `digits` behind the point."""
    values = found(said)
    if isinstance(values[0], str):
        (value,) = set(values)  # one word, whichever of them is asked
        return value
    if "count" in said:
        return str(values[0])
    digits = f".{said['digits']}f" if "digits" in said else ".3g"
    return format(statistics.mean(values), digits)


def words(row: Mapping) -> str:
    """The words of a verdict with their numbers."""
    numbers = {name: number(said) for name, said in row.get("numbers", {}).items()}
    return row["words"].format(**numbers)


# --- the page -------------------------------------------------------------------------------------


def remade(row: Mapping) -> str:
    """The command of a row; without one, its test."""
    return row.get("command") or f"python -m pytest {row['test']}"


def checks(row: Mapping) -> list[str]:
    """What fails where a row is wrong: functions by their names, cells as chapter#cell."""
    said = row["check"]
    return [said] if isinstance(said, str) else said


def check_line(check: str) -> str:
    """A check as Markdown: a function by its name, a cell as a link."""
    if "#" not in check:
        return f"check: `{check}`"
    chapter, cell = check.split("#")
    title = title_and_subtitle(NBS / f"{chapter}.ipynb")[0]
    return f"check: a cell of [{title}]({chapter}.ipynb#cell-{cell})"


def code(row: Mapping) -> str:
    """Chapter, function, checks, test and command, behind a line that opens them."""
    title = title_and_subtitle(NBS / f"{row['chapter']}.ipynb")[0]
    lines = [f"chapter: {title}", f"function: `{row['function']}`"]
    lines += map(check_line, checks(row))
    lines += [f"test: `{row['test']}`", f"command: `{remade(row)}`"]
    return f"<details><summary>show</summary>{'<br>'.join(lines)}</details>"


def shown(row: Mapping) -> tuple[str, str] | None:
    """Chapter and cell that print a row's numbers, where its own chapter does not."""
    if "shown" not in row:
        return None
    chapter, cell = row["shown"].split("#")
    return chapter, cell


def linked() -> set[str]:
    """The ids of all cells that the page links to."""
    cells = {row["cell"] for *_, row in rows()}
    cells |= {at[1] for *_, row in rows() if (at := shown(row))}
    said = [check for *_, row in rows() for check in checks(row) if "#" in check]
    return cells | {check.split("#")[1] for check in said}


def line(kind: str, name: str, row: Mapping) -> str:
    what = f"[{row['what']}]({row['chapter']}.ipynb#cell-{row['cell']})"
    verdict = f"**{row['verdict']}**: {words(row)}"
    if at := shown(row):
        verdict += " ([numbers]({}.ipynb#cell-{}))".format(*at)
    return f"| {KINDS[kind]} {name} | {what} | {verdict} | {code(row)} |"


def table(paper: str) -> str:
    """One paper as a table in Markdown."""
    head = ["| | what | verdict | code |", "|---" * 4 + "|"]
    body = [line(kind, name, row) for p, kind, name, row in rows() if p == paper]
    return "\n".join([f"## {content()[paper]['title']}", "", *head, *body])


def summary() -> str:
    """How many entries of each paper have which verdict."""
    out = ["| paper | " + " | ".join(VERDICTS) + " | all |", "|---" * (len(VERDICTS) + 2) + "|"]
    for paper, kinds in content().items():
        said = Counter(row["verdict"] for p, _, _, row in rows() if p == paper)
        counts = [str(said[verdict]) for verdict in VERDICTS]
        out.append(f"| {kinds['title']} | {' | '.join(counts)} | {said.total()} |")
    return "\n".join([*out, "", *map(results_line, RESULTS)])


RESULTS = {  # of each paper: what its results are called, and which they are; Table 6 lists data
    "ac_lam": ("AC-LAM's Tables 1 to 5", [("table", n) for n in range(1, 6)]),
    "linear": (
        "the linear paper's Figures 3 and 4 and Table 1",
        [("figure", 3), ("figure", 4), ("table", 1)],
    ),
}


def results_line(paper: str) -> str:
    """How many of a paper's results have which verdict."""
    name, wanted = RESULTS[paper]
    entries = {(kind, str(number)): row for p, kind, number, row in rows() if p == paper}
    said = Counter(entries[kind, str(number)]["verdict"] for kind, number in wanted)
    counts = ", ".join(f"{said[verdict]} {verdict}" for verdict in VERDICTS)
    return f"Of {name}: {counts}.\n"
