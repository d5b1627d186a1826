"""References of the book: a BibTeX file as a list that can be read."""

import re

from convert import ROOT

FILE = ROOT / "site" / "references.bib"
ENTRY = re.compile(r"^@(\w+)\{(\w+),\n(.*?)^\}", re.M | re.S)
FIELD = re.compile(r"^\s*(\w+) = \{(.*)\},?$", re.M)


def text() -> str:
    return FILE.read_text(encoding="utf-8").strip()


def entries() -> list[dict[str, str]]:
    """The entries in the order of the file: kind, key and their fields."""
    found = []
    for kind, key, body in ENTRY.findall(text()):
        fields = {name: value.strip("{}") for name, value in FIELD.findall(body)}
        found.append({"kind": kind, "key": key, **fields})
    return found


def person(name: str) -> str:
    """`Chen, Xiaoyu` as `Xiaoyu Chen`."""
    family, comma, given = name.partition(", ")
    return f"{given} {family}" if comma else family


def listed() -> str:
    """All entries as a list in Markdown, with links where there is an arXiv number."""
    lines = []
    for entry in sorted(entries(), key=lambda e: (e["author"], e["year"])):
        people = ", ".join(person(name) for name in entry["author"].split(" and "))
        people = people.replace(", others", " et al.")
        place = next((entry[f] for f in ("booktitle", "journal", "publisher") if f in entry), "")
        number = entry.get("eprint", "")
        link = f"[arXiv {number}](https://arxiv.org/abs/{number})" if number else ""
        parts = [f"{people} ({entry['year']}). *{entry['title']}*", place, link]
        lines.append(f"- {'. '.join(part for part in parts if part)}. `{entry['key']}`")
    return "\n".join(lines)
