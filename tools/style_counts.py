"""How densely the package is written: counts per thousand lines, of the working tree and of older
commits.

    python tools/style_counts.py [COMMIT ...]

Lines are those of exported modules with code on them: no blank lines, comments or docstrings. Names
that more than one module lists in `__all__` are counted once.
"""

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
ROWS = {
    "lines": "lines of code",
    "all lines": "lines of the modules, with blanks, comments and docstrings",
    "nodes": "nodes of the syntax tree: size, however it is laid out",
    "tuples": "assignments of a tuple to several names",
    "nested": "comprehensions in comprehensions, or over several for",
    "lambda": "lambdas",
    "ternary": "conditional expressions",
    "noqa": "noqa",
    "fmt": "fmt: skip",
    "names": "names in __all__",
    "shared": "names in the __all__ of several modules",
    "modules": "modules",
    "largest": "lines of the largest module",
}


def files_now() -> dict[str, str]:
    paths = sorted((ROOT / "aclam").rglob("*.py"))
    return {p.relative_to(ROOT).as_posix(): p.read_text(encoding="utf-8") for p in paths}


def files_at(commit: str) -> dict[str, str]:
    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout

    names = git("ls-tree", "-r", "--name-only", commit, "aclam").splitlines()
    return {name: git("show", f"{commit}:{name}") for name in names if name.endswith(".py")}


def code_lines(source: str, tree: ast.Module) -> int:
    """Lines that hold code, without docstrings."""
    lines = {
        number
        for number, line in enumerate(source.splitlines(), 1)
        if line.strip() and not line.strip().startswith("#")
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(getattr(node.value, "value", None), str):
            lines -= set(range(node.lineno, node.end_lineno + 1))
    return len(lines)


def is_nested(node: ast.AST) -> bool:
    if not isinstance(node, COMPREHENSIONS):
        return False
    inner = [n for n in ast.walk(node) if isinstance(n, COMPREHENSIONS)]
    return len(inner) > 1 or len(node.generators) > 1


def is_packed(node: ast.AST) -> bool:
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Tuple):
        return False
    return isinstance(node.targets[0], ast.Tuple)


def listed(tree: ast.Module) -> list[str]:
    """The names in a module's `__all__`."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def counts(files: Mapping[str, str]) -> Counter:
    total: Counter = Counter()
    owners: Counter = Counter()
    for name, source in files.items():
        if name.endswith("_modidx.py"):
            continue
        tree = ast.parse(source)
        total["lines"] += code_lines(source, tree)
        total["all lines"] += source.count("\n")
        total["modules"] += 1
        total["largest"] = max(total["largest"], source.count("\n"))
        total["noqa"] += len(re.findall(r"#\s*noqa", source))
        total["fmt"] += source.count("fmt: skip")
        owners.update(set(listed(tree)))
        for node in ast.walk(tree):
            total["nodes"] += 1
            total["tuples"] += is_packed(node)
            total["nested"] += is_nested(node)
            total["lambda"] += isinstance(node, ast.Lambda)
            total["ternary"] += isinstance(node, ast.IfExp)
    total["names"] = sum(owners.values())
    total["shared"] = sum(number > 1 for number in owners.values())
    return total


def main() -> None:
    columns = {commit: counts(files_at(commit)) for commit in sys.argv[1:]}
    columns["now"] = counts(files_now())
    print(" " * 60 + "".join(f"{name[:9]:>18s}" for name in columns))
    for key, words in ROWS.items():
        cells = ""
        for found in columns.values():
            share = 1000 * found[key] / found["lines"]
            rate = (
                ""
                if key in ("lines", "all lines", "nodes", "modules", "largest")
                else f" ({share:.1f})"
            )
            cells += f"{found[key]:,d}{rate}".rjust(18)
        print(f"{words:60s}{cells}")


if __name__ == "__main__":
    main()
