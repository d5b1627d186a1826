"""Write the install cell of every notebook: the same in all, but for the extras that a chapter
needs.

    python tools/install_cells.py [--ref main]

The extras are those that the cell names already. The lint refuses any other cell, and a ref that
is not there: the branch is, a version once it has a tag.
"""

import argparse
import json
import sys
from pathlib import Path

from lint_notebooks import (
    BRANCH,
    INSTALL,
    INSTALLED,
    REPOSITORY,
    ROOT,
    install_lines,
    known_refs,
)


def renew(source: str, ref: str) -> str:
    """The source of a cell with what it installs at `ref`; an install cell is written anew."""
    named = INSTALLED.search(source)
    if named is None:
        return source
    if INSTALL not in source:
        return INSTALLED.sub(rf"aclam\1 @ git+{REPOSITORY}@{ref}", source)
    directives = [line for line in source.splitlines() if line.startswith("#|")]
    return "\n".join([*directives, install_lines(named[1] or "", ref)])


def renew_notebook(path: Path, ref: str) -> bool:
    """Whether the notebook changed; what does not change stays byte for byte."""
    text = path.read_text(encoding="utf-8")
    for cell in json.loads(text)["cells"]:
        before = "".join(cell["source"])
        after = renew(before, ref)
        if after != before:
            text = text.replace(_lines(before), _lines(after), 1)
    changed = text != path.read_text(encoding="utf-8")
    if changed:
        path.write_text(text, encoding="utf-8")
    return changed


def _lines(source: str) -> str:
    """The lines of a cell as a notebook file has them, one to a line."""
    text = json.dumps(source.splitlines(True), indent=1, ensure_ascii=False)
    return text.replace("\n", "\n   ")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ref", default=BRANCH, help="a branch or a tag of the repository")
    ref = parser.parse_args().ref
    if ref not in known_refs():
        print(f"{ref} is not there; {' or '.join(known_refs())} is", file=sys.stderr)
        return 2
    notebooks = sorted((ROOT / "nbs").rglob("*.ipynb"))
    notebooks = [p for p in notebooks if ".ipynb_checkpoints" not in p.parts]
    changed = sum(renew_notebook(path, ref) for path in notebooks)
    print(f"{len(notebooks)} notebooks, {changed} changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
