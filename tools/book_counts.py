"""How large the book is, now and at older commits: chapters, words of prose, lines of code.

    python tools/book_counts.py [COMMIT ...] [--keep]

`--keep` writes the counts of the one commit that is named into `site/before.json`, with which the start
page compares. Words and lines are counted as the minutes of reading are (`site/ways.py`).
"""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "site"))

import ways  # noqa: E402


def git(*words: str) -> str:
    return subprocess.run(
        ["git", *words], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout


def notebooks_at(commit: str) -> Iterable[dict]:
    """The chapters of a commit."""
    for name in git("ls-tree", "-r", "--name-only", commit, "nbs").splitlines():
        if name.endswith(".ipynb") and name != "nbs/index.ipynb":
            yield json.loads(git("show", f"{commit}:{name}"))


def before(commit: str) -> dict:
    """What `site/before.json` holds of a commit."""
    date = git("show", "-s", "--format=%as", commit).strip()
    return {"commit": commit, "date": date, **ways.size(notebooks_at(commit))}


def main(argv: list[str]) -> None:
    commits = [word for word in argv if word != "--keep"]
    columns: dict[str, Counter] = {c: Counter(ways.size(notebooks_at(c))) for c in commits}
    columns["now"] = Counter(ways.size_now())
    print(" " * 20 + "".join(f"{name:>12s}" for name in columns))
    for key in ways.SIZES:
        print(f"{key:20s}" + "".join(f"{counted[key]:>12,d}" for counted in columns.values()))
    if "--keep" in argv:
        (commit,) = commits
        text = json.dumps(before(commit), indent=1)
        (ROOT / "site" / "before.json").write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
