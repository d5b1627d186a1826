"""Write README.md from nbs/index.ipynb: its code is run, its texts and outputs become the page.

python site/readme.py           write it
python site/readme.py --check   exit 1 where it is not current
"""

import json
import os
import re
import sys
from pathlib import Path

from convert import NBS, ROOT, to_markdown
from execnb.shell import CaptureShell

NOTICE = (
    "<!-- Made from nbs/index.ipynb by `make export`: edit the notebook, not this file. -->\n\n"
)


def run(notebook: Path) -> dict:
    """The notebook with its outputs as they are now; cells with `eval: false` are left alone."""
    nb = json.loads(notebook.read_text(encoding="utf-8"))
    os.chdir(notebook.parent)
    shell = CaptureShell()
    for cell in nb["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and not re.search(r"^#\|\s*eval:\s*false", source, re.M):
            cell["outputs"] = shell.run(source)
            if shell.exc:
                raise shell.exc
    return nb


def readme() -> str:
    """The text of README.md. Paths that are relative to nbs/ become relative to the root."""

    def no_image(name: str, content: bytes) -> str:
        raise SystemExit(
            f"index.ipynb draws {name}: README.md takes pictures from files, not from outputs"
        )

    text = to_markdown(run(NBS / "index.ipynb"), "index", no_image)
    text = re.sub(
        r"\]\((?!https?:|#|mailto:)([^)]+)\)", lambda m: f"]({_from_root(m.group(1))})", text
    )
    return NOTICE + text


def _from_root(target: str) -> str:
    return os.path.relpath(NBS / target, ROOT).replace(os.sep, "/")


def main() -> int:
    path, new = ROOT / "README.md", readme()
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    if "--check" not in sys.argv[1:]:
        path.write_text(new, encoding="utf-8")
    elif old != new:
        print("README.md is not what nbs/index.ipynb says: run `make export`")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
