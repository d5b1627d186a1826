"""Recipes, mixtures and the plan: YAML of other types, deep, long, twice the same key."""

from collections.abc import Callable
from pathlib import Path

import yaml

from .base import write
from .case import EITHER, READ, REFUSED, Case, many

RECIPE = "mixture/recipe.yaml"
MIXTURE = "mixture/mixture.yaml"
MANY = "".join(f"k{n}: {n}\n" for n in range(30_000))
BILLION = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
ODD = {  # what a YAML file may be instead of itself
    "is empty": "",
    "is a number": "5",
    "is a list": "- 1\n- 2\n",
    "is a word": "hello\n",
    "is binary": b"\x00\x01\xff\xfe" * 20,
    "is not YAML": "a: [1, 2\nb: }",
    "has a tag of Python": "name: !!python/object/apply:os.system [touch ran]\n",
    "is deep": "[" * 5000,
    "has deep mappings": "".join(f"{' ' * n}a:\n" for n in range(2000)),
    "has 30,000 keys": MANY,
    "grows to a billion words": BILLION,
    "has a key twice": "name: a\nname: b\n",
    "has a list as a key": "? [1, 2]\n: 3\n",
    "has an unknown alias": "name: *nobody\n",
    "is long": "name: " + "x" * 2_000_000,
}


def edit_yaml(file: str, *path: str | int, value: object = ...) -> Callable[[Path], None]:
    """Replace, or remove, one value of a YAML file."""

    def spoil(here: Path) -> None:
        content = yaml.safe_load((here / file).read_text())
        place = content
        for key in path[:-1]:
            place = place[key]
        if value is ...:
            place.pop(path[-1])
        else:
            place[path[-1]] = value
        (here / file).write_text(yaml.safe_dump(content))

    return spoil


def _changed(file: str, table: dict[str, object]) -> dict[str, Callable[[Path], None]]:
    """`a.b.0` -> a new value."""
    spoils = {}
    for name, value in table.items():
        place, _, what = name.partition(" ")
        path = [int(p) if p.isdigit() else p for p in place.split(".")]
        spoils[f"{place} {what or 'is ' + repr(value)[:40]}"] = edit_yaml(file, *path, value=value)
    return spoils


RECIPES = {
    "offset_s": 3,
    "offset_s ": [1],
    "offset_s  ": ["a", "b"],
    "offset_s   ": [0.1, 3.0, 5.0],
    "offset_s    ": [3.0, 0.1],
    "offset_s     ": [float("nan"), 1.0],
    "offset_s      ": [-1.0, 1.0],
    "span_s": "long",
    "span_s ": -1.0,
    "span_s  ": float("nan"),
    "span_s   ": None,
    "kind": "animal",
    "kind ": 5,
    "kind  is missing": ...,
    "name": ["a"],
    "camera": "image",
    "camera ": None,
    "camera.key": 5,
    "camera.channels": "brg",
    "camera.third_person": "perhaps",
    "control_hz": "ten",
    "control_hz ": -5,
    "control_hz  ": float("inf"),
    "proprio": 5,
    "proprio.keys": "a",
    "proprio.keys ": [1],
    "proprio.keys  ": [],
    "proprio.position": "x",
    "proprio.position ": ["a", "b", "c"],
    "proprio.position  ": [0, 1, 99],
    "proprio.rotation_repr": "quat",
    "proprio.rotation_repr ": 5,
    "proprio.rotation": [3, 4],
    "proprio.gripper_range": [1],
    "proprio.gripper_range ": ["a", "b"],
    "proprio.absolute": "yes",
    "skip_first": -1,
    "skip_first ": "two",
    "skip_first  ": 10**12,
    "rlds": "x",
    "rlds.name": 5,
    "lerobot": "x",
    "lerobot ": [5],
    "size": 5,
    "size.episodes": "many",
    "commands": "x",
    "commands ": [5],
    "percent": "x",
    "table6_row": "x",
    "licence is missing": ...,
    "no_such_field": 1,
}
MIXTURES = {
    "held_out": 5,
    "held_out ": [5],
    "held_out  ": ["no_such_recipe"],
    "draws": -5,
    "draws ": 0,
    "draws  ": "many",
    "draws   ": 1.5,
    "parts": 5,
    "parts ": [],
    "parts  ": ["jaco_play"],
    "parts is missing": ...,
    "parts.0.weight": float("inf"),
    "parts.0.weight ": float("nan"),
    "parts.0.weight  ": -1,
    "parts.0.weight   ": 0,
    "parts.0.weight    ": "two",
    "parts.0.weight     ": True,
    "parts.0.recipe": "no_such_recipe",
    "parts.0.recipe ": 5,
    "parts.0.recipe  ": "../../../../etc/passwd",
    "parts.0.recipe   ": "/dev/zero",
    "parts.0.recipe    ": "a\x00b",
    "parts.0.folder": "../..",
    "parts.0.folder ": "/etc",
    "parts.0.folder  ": 5,
    "parts.0.max_rotation_deg": -5,
    "parts.0.max_rotation_deg ": float("nan"),
    "parts.0.max_rotation_deg  ": "some",
    "parts.0.across": "everything",
    "parts.0.no_such_field": 1,
    "name": 5,
    "about": [1],
    "no_such_field": 1,
}


def _links(here: Path) -> None:
    (here / RECIPE).unlink()
    (here / RECIPE).symlink_to("recipe.yaml")


def _pipe(here: Path) -> None:
    import os

    (here / RECIPE).unlink()
    os.mkfifo(here / RECIPE)


def _marked(file: str) -> Callable[[Path], None]:
    def spoil(here: Path) -> None:
        (here / file).write_bytes(b"\xef\xbb\xbf" + (here / file).read_bytes())

    return spoil


def cases() -> list[Case]:
    """All of this module."""
    recipe = ("aclam-data", "inspect", "rlds", "--recipe", RECIPE, "--rate", "5")
    plan = ("aclam-data", "plan", MIXTURE, "--root", "mixture/data")
    train = ("aclam-train-lam", "--mixture", MIXTURE, "--root", "mixture/data", "--out", "run")
    small = ("--train.steps", "1", "--train.batch-size", "2", "--probe-n", "2")
    found = []
    for file, words, needs in (
        (RECIPE, recipe, ["mixture", "rlds"]),
        (MIXTURE, plan, ["mixture"]),
    ):
        kind = "recipe" if file == RECIPE else "mixture"
        odd = {f"{kind} {what}": write(file, text) for what, text in ODD.items()}
        found += many(kind, needs, words, odd)
        # the fixture is no Jaco: a recipe that is read is then refused for its camera
        right = REFUSED if file == RECIPE else EITHER
        found += many(kind, needs, words, {"a byte order mark": _marked(file)}, right)
    files = {"recipe is a link to itself": _links, "recipe is a pipe": _pipe}
    found += many("recipe", ["mixture", "rlds"], recipe, files)
    found += many("recipe", ["mixture", "rlds"], recipe, _changed(RECIPE, RECIPES))
    found += many("mixture", ["mixture"], plan, _changed(MIXTURE, MIXTURES))
    listed = {"parts.0.weight": float("inf"), "draws": -5, "held_out": 5}
    spoils = {f"train: {n}": s for n, s in _changed(MIXTURE, listed).items()}
    found += many("mixture", ["mixture"], (*train, *small), spoils)
    fine = {"no root": lambda here: None}
    return found + many(
        "plan", ["mixture"], ("aclam-data", "plan", MIXTURE, "--root", "nowhere"), fine, READ
    )
