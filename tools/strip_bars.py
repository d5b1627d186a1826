"""Take progress bars out of the saved outputs of notebooks.

    python tools/strip_bars.py [NOTEBOOK ...]

A bar goes to standard error; what else a cell said there stays.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BAR = re.compile(r"[^\r\n]*\d+%\|[^\r\n]*\[\d+:\d\d[^\r\n]*[\r\n]*")


def stripped(cell: dict) -> dict:
    """The cell without bars, and without outputs that were nothing else."""
    outputs = []
    for output in cell.get("outputs", []):
        if output.get("name") == "stderr":
            text = BAR.sub("", "".join(output["text"]))
            if not text.strip("\r\n "):
                continue
            output = output | {"text": text.splitlines(keepends=True)}
        outputs.append(output)
    return cell | {"outputs": outputs} if "outputs" in cell else cell


def main() -> None:
    paths = [Path(p) for p in sys.argv[1:]] or sorted((ROOT / "nbs").rglob("*.ipynb"))
    for path in paths:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cells = [stripped(cell) for cell in notebook["cells"]]
        if cells != notebook["cells"]:
            text = json.dumps(notebook | {"cells": cells}, indent=1, ensure_ascii=False)
            path.write_text(text + "\n", encoding="utf-8")
            print(path)


if __name__ == "__main__":
    main()
