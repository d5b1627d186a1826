"""Places that cannot be read or written, full disks, no HOME, files of an earlier run that are torn."""

import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

from .base import LAM_TRAINING, both, cut, edit_json, remove, write
from .case import EITHER, READ, Case, many, nothing, without_privileges
from .options import CONVERT, FRAME, HELP, LABEL, LEROBOT, PREPARE, needs_of

SAVE = ("aclam-structure", "--model", "lam", "--data", "store", "--n", "8", "--save")
TRAIN = ("aclam-train-lam", "--data", "store", "--out", "new", *LAM_TRAINING)
CACHED = (*TRAIN, "--cache-gib", "1")


def closed(folder: str, mode: int = 0o555) -> Callable[[Path], None]:
    """A folder, and what is in it, that this process may only read, or not even that."""

    def spoil(here: Path) -> None:
        place = here / folder
        place.mkdir(exist_ok=True)
        for path in (*place.rglob("*"), place):
            path.chmod(mode if path.is_dir() else mode & 0o444)
        without_privileges()

    return spoil


def small_files(mib: float) -> Callable[[Path], None]:
    """No file may grow beyond this, as with a quota."""

    def spoil(here: Path) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(mib * 2**20), int(mib * 2**20)))

    return spoil


def few_files(here: Path) -> None:
    """Hardly any file may be open."""
    opened = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 3, opened + 3))


def homeless(here: Path) -> None:
    """No HOME, and data that may only be read."""
    for name in ("HOME", "XDG_CACHE_HOME", "ACLAM_CACHE"):
        os.environ.pop(name, None)
    closed("store")(here)


def home_is_closed(here: Path) -> None:
    os.environ["HOME"] = str(here / "closed")
    closed("closed")(here)
    closed("store")(here)


def _occupied(name: str) -> Callable[[Path], None]:
    return lambda here: (here / name).mkdir()


def _file(name: str) -> Callable[[Path], None]:
    return lambda here: (here / name).write_text("precious")


WRITERS = {  # a command and where it would write
    "frame --out": (*FRAME, "--out", "closed/f.png"),
    "convert --out": (*CONVERT, "--out", "closed/new"),
    "convert --to lerobot --out": (*LEROBOT, "--out", "closed/new"),
    "triples --png": ("aclam-data", "triples", "store", "--png", "closed/t.png"),
    "structure --save": (*SAVE, "closed/z.npz"),
    "prepare --out": (*PREPARE, "--out", "closed/new"),
    "label --out": (*LABEL, "--out", "closed/new"),
    "train-lam --out": (*TRAIN, "--out", "closed/new"),
    "rollout --out": (*HELP["aclam-rollout"], "--out", "closed/new"),
    "demo --out": (*HELP["aclam-demo"], "--out", "closed/new"),
    "look --out": ("aclam-look", "videos", "--out", "closed/new"),
}
OCCUPIED = {
    "structure --save FOLDER": (*SAVE, "place"),
    "frame --out FOLDER": (*FRAME, "--out", "place"),
    "triples --png FOLDER": ("aclam-data", "triples", "store", "--png", "place"),
}
FILE = {
    "label --out FILE": (*LABEL, "--out", "place"),
    "convert --out FILE": (*CONVERT, "--out", "place"),
    "train-lam --out FILE": (*TRAIN, "--out", "place"),
    "rollout --out FILE": (*HELP["aclam-rollout"], "--out", "place"),
    "prepare --out FILE": (*PREPARE, "--out", "place"),
    "compare --out FILE": (*HELP["aclam-structure.compare"], "--out", "place"),
    "demo --out FILE": (*HELP["aclam-demo"], "--out", "place"),
    "look --out FILE": ("aclam-look", "videos", "--out", "place"),
}


def _writing() -> list[Case]:
    found = []
    for name, words in WRITERS.items():
        spoil = closed("closed")
        found.append(Case("places", f"{name}: read-only", needs_of(words), spoil, words))
    for table, make in ((OCCUPIED, _occupied), (FILE, _file)):
        for name, words in table.items():
            found.append(Case("places", name, needs_of(words), make("place"), words))
    full = {
        "train-lam": (TRAIN, 0.02),
        "convert": (CONVERT, 0.002),
        "convert --to lerobot": (LEROBOT, 0.002),
        "prepare": (PREPARE, 0.02),
        "label": (LABEL, 0.002),
        "structure --save": ((*SAVE, "z.npz"), 0.001),
        "train-lam, its frames": (CACHED, 0.005),
    }
    for name, (words, mib) in full.items():
        found.append(Case("places", f"{name}: no room", needs_of(words), small_files(mib), words))
    return found


def _reading() -> list[Case]:
    look = ("aclam-data", "inspect", "store")
    structure = SAVE[:-1]
    found = [
        Case("places", "a store that cannot be read", ("store",), closed("store", 0), look),
        Case("places", "files that cannot be read", ("store",), _unreadable("store"), look),
        Case("places", "weights that cannot be read", ("lam", "store"), _weights, structure),
    ]
    read_only = {"a store that may only be read": closed("store"), "no HOME": homeless}
    read_only["HOME that may only be read"] = home_is_closed
    for name, spoil in read_only.items():
        found.append(Case("places", f"train-lam: {name}", ("store",), spoil, CACHED, READ))
        found.append(Case("places", f"inspect: {name}", ("store",), spoil, look, READ))
    for data, words in (("videos", ()), ("pictures", ("--rate", "5")), ("rlds", ("--rate", "5"))):
        command = ("aclam-data", "inspect", data, *words)
        case = Case("places", f"inspect {data}: read-only", (data,), closed(data), command, READ)
        found.append(case)
    words = ("aclam-data", "inspect", "lerobot_v30")
    few = Case("places", "few open files", ("lerobot_v30",), few_files, words, EITHER)
    return [*found, few]


def _unreadable(folder: str) -> Callable[[Path], None]:
    def spoil(here: Path) -> None:
        for path in (here / folder).rglob("*"):
            if path.is_file():
                path.chmod(0)
        without_privileges()

    return spoil


def _weights(here: Path) -> None:
    (here / "lam" / "model.safetensors").chmod(0)
    without_privileges()


# --- what an earlier run left ---------------------------------------------------------------------


def _checkpoint(file: str) -> str:
    return f"run/it/checkpoints/step_000002/{file}"


RUN = {
    "config.json is a number": write("run/it/config.json", "5"),
    "config.json is cut": cut("run/it/config.json", 0.5),
    "config.json is of another run": edit_json("run/it/config.json", preset="no_ac_cpu"),
    "result.json is cut": cut("run/it/result.json", 0.5),
    "result.json is a list": write("run/it/result.json", "[]"),
    "data.json is a number": write("run/it/data.json", "5"),
    "metrics.jsonl of odd rows": write("run/it/metrics.jsonl", '5\n{"step": "x"}\n{"a": 1}\n'),
    "metrics.jsonl is deep": write("run/it/metrics.jsonl", "[" * 200_000),
    "the model is a file": both(remove("run/it/model"), write("run/it/model", "x")),
    "the newest checkpoint is empty": lambda here: [
        p.write_bytes(b"") for p in (here / "run/it/checkpoints").rglob("*") if p.is_file()
    ],
    "the newest checkpoint is text": lambda here: [
        p.write_text("x") for p in (here / "run/it/checkpoints").rglob("*") if p.is_file()
    ],
    "checkpoints is a file": both(remove("run/it/checkpoints"), write("run/it/checkpoints", "x")),
}
ROLLOUT = {
    "config.json is a number": write("rollout/it/config.json", "5"),
    "config.json is empty": write("rollout/it/config.json", ""),
    "episodes.jsonl is foreign": write("rollout/it/episodes.jsonl", "my thesis\n"),
    "episodes.jsonl of numbers": write("rollout/it/episodes.jsonl", "5\n6\n"),
    "episodes.jsonl of odd rows": write("rollout/it/episodes.jsonl", '{"seed": "x"}\n'),
    "episodes.jsonl is deep": write("rollout/it/episodes.jsonl", "[" * 200_000 + "\n"),
    "episodes.jsonl is a folder": both(
        remove("rollout/it/episodes.jsonl"), _occupied("rollout/it/episodes.jsonl")
    ),
}
STORED = {
    "recipe.json is a number": write("new/recipe.json", "5"),
    "recipe.json is empty": write("new/recipe.json", ""),
    "recipe.json is deep": write("new/recipe.json", "[" * 200_000),
    "a foreign folder": write("new/thesis.txt", "x"),
}


def _earlier() -> list[Case]:
    train = ("aclam-train-lam", "--data", "store", "--out", "run/it", *LAM_TRAINING)
    found = many("an earlier run", ["run", "store"], train, RUN, EITHER)
    more = (*train, "--train.steps", "2")
    foreign = {"config.json is a number": write("run/it/config.json", "5")}
    foreign["another preset"] = edit_json("run/it/config.json", preset="no_ac_cpu")
    found += many("an earlier run", ["run", "store"], more, foreign)
    rollout = ("aclam-rollout", "--policy", "expert", "--split", "id", "--episodes", "1")
    rollout = (*rollout, "--max-steps", "2", "--envs", "1", "--out", "rollout/it")
    found += many("an earlier run", ["rollout"], rollout, ROLLOUT)
    return found + many("an earlier run", [], PREPARE, STORED)


def _valid() -> list[Case]:
    """Every command that the table spoils is right as long as nothing is spoiled."""
    found = []
    for name, words in HELP.items():
        if name == "aclam-demo":  # minutes, also when it is quick
            continue
        found.append(Case("valid", name, needs_of(words), nothing, words, READ))
    for name, data in (("LeRobot v2.1", "lerobot_v21"), ("LeRobot v3.0", "lerobot_v30")):
        words = ("aclam-data", "triples", data, "--n", "2")
        found.append(Case("valid", name, (data,), nothing, words, READ))
    for data in ("rlds", "videos", "pictures"):
        rate = () if data == "videos" else ("--rate", "5")
        words = ("aclam-data", "triples", data, *rate, "--n", "2")
        found.append(Case("valid", data, (data,), nothing, words, READ))
    words = ("aclam-rollout", "--episodes", "1", "--max-steps", "2", "--policy", "policy")
    found.append(Case("valid", "a policy", ("policy",), nothing, words, READ))
    words = ("aclam-data", "plan", "mixture/mixture.yaml", "--root", "mixture/data")
    found.append(Case("valid", "plan", ("mixture",), nothing, words, READ))
    words = ("aclam-structure", "--latents", "latents/z.npz")
    return [*found, Case("valid", "latents", ("latents",), nothing, words, READ)]


def cases() -> list[Case]:
    """All of this module."""
    return [*_valid(), *_writing(), *_reading(), *_earlier()]
