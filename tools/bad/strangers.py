"""What a user brings: modules by name, policies by factory, models by name, trackers, versions, and
columns that a LeRobot dataset is given.
"""

from collections.abc import Callable
from pathlib import Path

from .base import edit_json, remove, write
from .case import EITHER, REFUSED, Case, many, nothing
from .options import COMPARE, LABEL, ROLLOUT, STRUCTURE, TRAIN_LAM, needs_of

MODULE = "stranger.py"
PLUGIN = ("aclam-data", "inspect", "store", "--plugin", "stranger")
FAMILY = """
from dataclasses import dataclass
from aclam.lam.registry import LAMS, LatentActionModel
{}
"""
PLUGINS = {
    "there is no such module": nothing,
    "a module that raises": write(MODULE, "raise RuntimeError('line\\nline')"),
    "a module that is no Python": write(MODULE, "def ("),
    "a module of zeros": write(MODULE, bytes(100)),
    "a module that imports what is not there": write(MODULE, "import nowhere_at_all"),
    "a family without settings": write(MODULE, FAMILY.format("LAMS.register()(5)")),
}
PLUGINS_EITHER = {
    "a module that is a folder of nothing": write("stranger/x.txt", b""),
    "a family of another kind": write(
        MODULE, FAMILY.format("LAMS.register('x', int, {})(LatentActionModel)")
    ),
    "a family of a known name": write(
        MODULE, FAMILY.format("LAMS.register('ac_lam', object, {})(LatentActionModel)")
    ),
    "a module that ends the program": write(MODULE, "raise SystemExit(0)"),
    "a module that does nothing": write(MODULE, "x = 1"),
    "a module that prints": write(MODULE, "print('hello')"),
}
NAMES = ["", "-x", "../stranger", "stranger.py", "a b", "store/meta.json", ".", "..", "os.path.x"]

POLICY = "policy_of_mine.py"
SPEC = ("aclam-rollout", "--policy", "policy_of_mine:make", *ROLLOUT[3:])
POLICIES = {
    "no such module": nothing,
    "no such factory": write(POLICY, "x = 1"),
    "a factory that raises": write(POLICY, "def make():\n    raise ValueError('no\\nno')"),
    "a factory that wants more": write(POLICY, "def make(a, b):\n    return 1"),
    "a factory of a number": write(POLICY, "def make():\n    return 5"),
    "a factory of nothing": write(POLICY, "def make():\n    pass"),
    "a factory of a policy without methods": write(POLICY, "class make:\n    pass"),
}


def acting(answer: str) -> Callable[[Path], None]:
    """A policy whose answer is an expression of the observations."""
    text = f"import numpy as np\nclass make:\n    def act(self, observations, moments):\n        {answer}\n"
    return write(POLICY, text)


ANSWERS = {
    "an answer of nothing": acting("return None"),
    "an answer of words": acting("return ['a'] * len(observations)"),
    "an answer of NaN": acting("return [np.full((1, 7), np.nan) for o in observations]"),
    "an answer of another width": acting("return [np.zeros((1, 3)) for o in observations]"),
    "an answer of no rows": acting("return [np.zeros((0, 7)) for o in observations]"),
    "too few answers": acting("return []"),
    "an answer that raises": acting("raise KeyError('x')"),
    "an answer that is a generator": acting("return (o for o in ())"),
}
POLICY_NAMES = [
    ":make",
    "policy_of_mine:",
    ":",
    "math:pi",
    "os:getcwd",
    "a:b:c",
    "../x:make",
    "é:x",
]


def _plugin_cases() -> list[Case]:
    found = many("plug-ins", ["store"], PLUGIN, PLUGINS)
    found += many("plug-ins", ["store"], PLUGIN, PLUGINS_EITHER, EITHER)
    for name in NAMES:
        words = ("aclam-data", "inspect", "store", "--plugin", name)
        right = EITHER if name == "" else REFUSED
        found.append(Case("plug-ins", f"--plugin {name!r}", ("store",), nothing, words, right))
    last = ("aclam-data", "inspect", "store", "--plugin")
    found.append(Case("plug-ins", "--plugin without a name", ("store",), nothing, last))
    return found


def _policy_cases() -> list[Case]:
    found = many("policies by name", [], SPEC, POLICIES | ANSWERS)
    for name in POLICY_NAMES:
        words = ("aclam-rollout", "--policy", name, *ROLLOUT[3:])
        found.append(Case("policies by name", f"--policy {name}", (), nothing, words))
    return found


MODELS = (
    "no_such",
    "ac_lam_cp",
    "",
    " ",
    "../lam",
    "hub:",
    "hub:a/b/c",
    "ac_lam_paper",
    "ac_lam_cpu/",
)
TRACKERS = ("nonsense", "", "Tensorboard", "wandb,none", "5")
VERSIONS = [
    ("aclam-data", "--version", "--no-such"),
    ("aclam-label", "--version", "extra"),
    ("aclam-train-lam", "--version", "--train.steps", "x"),
]


def _name_cases() -> list[Case]:
    found = []
    for name in MODELS:
        for command in (LABEL, STRUCTURE):
            words = (command[0], "--model", name, *command[3:])
            needs = needs_of(words)
            right = EITHER if name.endswith("/") else REFUSED
            row = f"{command[0]} --model {name!r}"
            found.append(Case("models by name", row, needs, nothing, words, right))
    for name in TRACKERS:
        words = (*TRAIN_LAM, "--tracker", name)
        found.append(Case("trackers", f"--tracker {name!r}", needs_of(words), nothing, words))
    words = (*COMPARE, "--plugin", "nowhere_at_all")
    found.append(Case("plug-ins", "compare", needs_of(words), nothing, words))
    for words in VERSIONS:
        found.append(Case("--version", " ".join(words), (), nothing, words, EITHER))
    return found


# --- columns of a LeRobot dataset -----------------------------------------------------------------

SET = "lerobot_v30"
INFO = f"{SET}/meta/info.json"
COLUMNS = ("aclam-label", "--model", "lam", "--data", SET, "--offsets", "1", "--lerobot", "vla")
FEATURE = {"dtype": "float32", "shape": [3], "names": None}
LEROBOT = {
    "the folder is the dataset's": ("--lerobot", SET),
    "the folder is in the dataset": ("--lerobot", f"{SET}/vla"),
    "the folder holds something": ("--lerobot", "lam"),
    "the folder is a file": ("--lerobot", INFO),
    "the folder is nothing": ("--lerobot", ""),
    "one shard": ("--lerobot", "vla", "--shard", "0/2"),
    "only a look": ("--lerobot", "vla", "--missing", "2"),
    "the same offsets twice": ("--lerobot", "vla", "--offsets", "1", "1"),
}
SPOILT = {
    "a table is cut": lambda here: write(
        f"{SET}/data/chunk-000/file-000.parquet",
        (here / SET / "data/chunk-000/file-000.parquet").read_bytes()[:900],
    )(here),
    "a film is missing": remove(f"{SET}/videos/observation.images.top/chunk-000/file-000.mp4"),
    "no features": edit_json(INFO, features=...),
    "a path that leaves": edit_json(INFO, data_path="../{chunk_index}/{file_index}.parquet"),
    "statistics are text": write(f"{SET}/meta/stats.json", "hello"),
    "statistics are a list": write(f"{SET}/meta/stats.json", "[]"),
    "statistics are deep": write(f"{SET}/meta/stats.json", "[" * 200_000),
}


def _lerobot_cases() -> list[Case]:
    needs = ("lam", SET)
    found = []
    for name, more in LEROBOT.items():
        words = (*COLUMNS[:7], *more)
        right = EITHER if "twice" in name else REFUSED
        found.append(Case("LeRobot columns", name, needs, nothing, words, right))
    return found + many("LeRobot columns", needs, COLUMNS, SPOILT)


def cases() -> list[Case]:
    """All of this module."""
    return [*_plugin_cases(), *_policy_cases(), *_name_cases(), *_lerobot_cases()]
