"""Write what each console script prints for --help, so that it can be shown without importing
PyTorch.

    python tools/help_texts.py [--check]

The texts lie in aclam/configs/help and are read by `aclam.commands.entry`. With --check nothing is
written; the names of texts that differ are printed, and the status is 1 where there are any.
"""

import contextlib
import importlib
import io
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "aclam" / "configs" / "help"
SUBCOMMANDS = {
    "aclam-data": ["plan", "prepare", "inspect", "frame", "triples", "convert"],
    "aclam-structure": ["leakage", "compare", "worth", "lary"],
}


def help_of(prog: str, module: str, *words: str) -> str:
    """What the program prints for `words --help`."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        sys.argv = [prog]
        importlib.import_module(module).main([*words, "--help"])
    return out.getvalue()


def texts() -> dict[str, str]:
    """File name -> help, of every command and subcommand."""
    sys.path.insert(0, str(ROOT))
    commands = importlib.import_module("aclam.commands.entry").COMMANDS
    found = {}
    for prog, module in commands.items():
        for words in [[], *([name] for name in SUBCOMMANDS.get(prog, []))]:
            found[".".join([prog, *words]) + ".txt"] = help_of(prog, module, *words)
    return found


def main() -> int:
    os.environ.update(COLUMNS="100", NO_COLOR="1", TERM="dumb")
    now = texts()
    kept = {p.name: p.read_text(encoding="utf-8") for p in FOLDER.glob("*.txt")}
    differ = sorted(name for name in {*now, *kept} if now.get(name) != kept.get(name))
    if "--check" in sys.argv[1:]:
        print("\n".join(differ))
        return bool(differ)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in differ:
        if name in now:
            (FOLDER / name).write_text(now[name], encoding="utf-8")
        else:
            (FOLDER / name).unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
