"""The page "Three walks through the code" names what there is, and every file that it counts."""

import json
import re
from functools import reduce
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CELLS = json.loads((ROOT / "nbs" / "walks.ipynb").read_text(encoding="utf-8"))["cells"]
SOURCES = ["".join(cell["source"]) for cell in CELLS]
NAMES = re.compile(r"`(aclam(?:\.\w+)+)`")


def module_of(name: str) -> str:
    """The longest beginning of a dotted name that is a module."""
    parts = name.split(".")
    module = "aclam"
    for part in parts[1:]:
        longer = f"{module}.{part}"
        if not hasattr(import_module(module), "__path__") or find_spec(longer) is None:
            break
        module = longer
    return module


@pytest.mark.parametrize("name", sorted(set(NAMES.findall("\n".join(SOURCES)))))
def test_every_name_of_the_page_is_there(name):
    module = module_of(name)
    attributes = name.removeprefix(module).split(".")[1:]
    assert reduce(getattr, attributes, import_module(module)) is not None


@pytest.mark.parametrize("walk", ["FRAME", "WEIGHT", "METRIC"])
def test_the_stations_of_a_walk_name_each_of_its_files(walk):
    """A cell of the page asserts that these are the files which the walk touches."""
    at = next(n for n, source in enumerate(SOURCES) if f"{walk}_FILES = " in source)
    counted = re.search(rf'{walk}_FILES = """([^"]+)"""', SOURCES[at])[1].split()
    table = next(source for source in reversed(SOURCES[:at]) if "| station |" in source)
    stations = [line for line in table.splitlines() if line.startswith("| `")]
    named = {module_of(name) for name in NAMES.findall("\n".join(stations))}
    assert named == {f"aclam.{file}" for file in counted}


def test_a_name_that_is_not_there_is_found():
    assert module_of("aclam.lam.objective.no_such_name") == "aclam.lam.objective"
    assert not hasattr(import_module("aclam.lam.objective"), "no_such_name")
