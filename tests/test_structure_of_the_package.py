"""What the package shows, how large its modules are, and that the glossary speaks of what exists."""

import ast
import importlib
import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ["additivity", "data", "lam", "linear", "policy", "sim", "structure", "train"]
MOST_LINES = 500  # of a module; beyond it, it holds more than one idea


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_shows_three_to_ten_names_and_each_is_there(room):
    package = importlib.import_module(f"aclam.{room}")
    names = [name for name in package.__all__ if not name.startswith("_")]
    assert 3 <= len(names) <= 10, names
    assert all(getattr(package, name) is not None for name in names)
    with pytest.raises(AttributeError):
        _ = package.no_such_name
    files = {p.stem for p in Path(package.__file__).parent.glob("*.py")}
    assert not files & set(names), "what such a name means depends on what was imported before"


def test_the_faces_are_light():
    """All but `aclam.lam`, whose families announce themselves when they are imported."""
    rooms = ", ".join(f"aclam.{room}" for room in ROOMS if room != "lam")
    source = f"import sys, aclam, {rooms}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def modules() -> list[Path]:
    return [p for p in (ROOT / "aclam").rglob("*.py") if p.name != "_modidx.py"]


def test_no_module_is_larger_than_a_reader_can_hold():
    lines = {p.relative_to(ROOT).as_posix(): p.read_text().count("\n") for p in modules()}
    assert not {name: n for name, n in lines.items() if n > MOST_LINES}


def glossary() -> str:
    cells = json.loads((ROOT / "nbs" / "glossary.ipynb").read_text())["cells"]
    return "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def test_the_glossary_names_what_the_package_has():
    names = set(re.findall(r"`([A-Za-z_]\w+)`", glossary()))
    source = "\n".join(p.read_text() for p in modules())
    missing = sorted(name for name in names if not re.search(rf"\b{name}\b", source))
    assert len(names) >= 5 and not missing


PRIVATE = ["house", "paint", "dice", "bury", "seat", "told"]  # what a user should not have to learn


def test_messages_and_public_names_speak_the_fields_words():
    found = []
    for path in modules():
        source = path.read_text()
        names = re.findall(r"^(?:def|class) ([A-Za-z]\w*)", source, re.M)
        messages = re.findall(r"UserError\(\s*f?\"([^\"]*)\"", source)
        for text in [*names, *messages]:
            words = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+", text)}
            found += [(path.name, text) for word in PRIVATE if word in words]
    assert not found


def test_nothing_is_defined_twice():
    """Functions and classes of one name with one body: a copy that a move left behind."""
    owners = defaultdict(set)
    for path in modules():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                owners[node.name, ast.dump(ast.Module(node.body, []))].add(path.name)
    assert not {name: files for (name, _), files in owners.items() if len(files) > 1}
