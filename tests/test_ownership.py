"""Nothing is lost: every command, with its output pointed at something that is not its own.

Each command is called in this process with the options that it needs and one that writes. Before and
after, all that is precious is compared, byte by byte.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from aclam.core import MARK, UserError, atomic_folder, read_mark, write_json
from aclam.data.store import write_store
from aclam.data.trajectory import synthetic_trajectory
from aclam.folders import discard, output_folder
from aclam.lam.model import LatentActionModel

# a command -> its module, and its words: DATA a store, MODEL a model, OUT what is tried
FOLDERS = {
    "convert": ("commands.data", "convert DATA --out OUT"),
    "convert to lerobot": ("commands.data", "convert DATA --to lerobot --out OUT"),
    "prepare": ("commands.data", "prepare emoji --episodes 1 --size 32 --workers 1 --out OUT"),
    "train-lam": ("train.lam", "--data DATA --train.steps 1 --no-resume --out OUT"),
    "train-policy": ("train.policy", "--data DATA --train.steps 1 --no-resume --out OUT"),
    "label": ("train.label", "--model MODEL --data DATA --no-resume --out OUT"),
    "rollout": ("policy.rollout", "--policy expert --episodes 1 --envs 1 --out OUT"),
    "compare": ("commands.structure", "compare --data DATA --steps 1 --out OUT"),
    "demo": ("studies.demo", "--quick --out OUT"),
    "look": ("commands.look", "DATA --model MODEL --out OUT"),
    "policies": ("studies.policy_comparison", "--data DATA --steps 1 --out OUT"),
}
FILES = {
    "frame": ("commands.data", "frame DATA --episode 0 --index 0 --out OUT"),
    "triples": ("commands.data", "triples DATA --n 2 --png OUT"),
    "structure": ("commands.structure", "--model MODEL --data DATA --n 8 --save OUT"),
    "linear": ("commands.linear", "figure 3 --steps 1 --seeds 1 --out OUT"),
    "ablation": ("studies.ablation", "--data DATA --out OUT"),
    "potential": ("studies.potential_study", "--models a=MODEL --data DATA --out OUT"),
}
READS_DATA = [name for name, (_, words) in FOLDERS.items() if "DATA" in words]
NAMES = ("config.json", "meta.json", "labels.json", "episodes.jsonl", "recipe.json", "data.json")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder of a user: photographs, a store among them, a model."""
    home = tmp_path_factory.mktemp("made")
    write_store(home / "all" / "data", [synthetic_trajectory(s, T=8, size=32) for s in range(3)])
    LatentActionModel.from_preset("ac_lam_cpu", image_size=32).save_pretrained(home / "model")
    return home


@pytest.fixture
def home(made, tmp_path) -> Path:
    """A copy of it for one test."""
    shutil.copytree(made, tmp_path / "home")
    photos = tmp_path / "home" / "photos"
    photos.mkdir()
    (photos / "thesis.txt").write_text("precious")
    return tmp_path / "home"


def content(folder: Path) -> dict[str, str]:
    """All files and links below a folder: what is in them, or where they lead."""
    found = {}
    for place, folders, names in os.walk(folder):
        for name in [*names, *folders]:
            path = Path(place) / name
            key = str(path.relative_to(folder))
            if path.is_symlink():
                found[key] = os.readlink(path)
            elif path.is_file():
                found[key] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def call(outcome: Callable, home: Path, row: tuple[str, str], out: Path) -> tuple[int, str, str]:
    """Run a command with its output at `out`."""
    module, words = row
    known = {"DATA": home / "all" / "data", "OUT": out}
    words = words.replace("MODEL", str(home / "model")).split()
    main = import_module(f"aclam.{module}").main
    return outcome(main, *(known.get(word, word) for word in words))


def nothing_lost(outcome: Callable, home: Path, row: tuple[str, str], out: Path) -> None:
    """Run a command that must refuse: one line, status 2, and all is as it was."""
    before = content(home)
    status, said, err = call(outcome, home, row, out)
    assert (status, said) == (2, ""), (status, said, err)
    assert err.count("\n") == 1 and "Traceback" not in err, err
    assert content(home) == before


# --- refused starts -------------------------------------------------------------------------------

NOWHERE = {  # a command whose input is not there
    **{
        name: (module, words.replace("DATA", "nowhere"))
        for name, (module, words) in FOLDERS.items()
    },
    "prepare": ("commands.data", "prepare emoji --episodes 0 --out OUT"),
    "rollout": ("policy.rollout", "--policy nowhere --episodes 1 --out OUT"),
    "demo": ("studies.demo", "--episodes 19 --out OUT"),
}


@pytest.mark.parametrize("name", NOWHERE)
def test_a_refused_start_leaves_no_folder(outcome, home, name):
    out = home / "new" / "run"
    status, said, err = call(outcome, home, NOWHERE[name], out)
    assert (status, said) == (2, "") and err.count("\n") == 1, (status, said, err)
    assert not out.parent.exists()


PRESETS = {"lam": "ac_lam_cpu", "policy": "policy_cpu_wo_lam", "grounding": None}


@pytest.mark.parametrize("module", PRESETS)
def test_a_refused_start_from_python_leaves_no_folder(tmp_path, module):
    command = import_module(f"aclam.train.{module}")
    out = tmp_path / "run"
    words = ["--data", str(tmp_path / "nowhere"), "--out", str(out)]
    words += ["--preset", PRESETS[module]] if PRESETS[module] else []
    with pytest.raises(UserError, match="nowhere"):
        command.run(command.settings_from(words))
    assert not out.exists()


# --- folders --------------------------------------------------------------------------------------


def a_file(home: Path) -> Path:
    return home / "photos" / "thesis.txt"


def below_a_file(home: Path) -> Path:
    return home / "photos" / "thesis.txt" / "run"


def a_link(home: Path) -> Path:
    (home / "link").symlink_to("photos")
    return home / "link"


def a_link_to_a_file(home: Path) -> Path:
    (home / "link").symlink_to("photos/thesis.txt")
    return home / "link"


def a_link_to_nothing(home: Path) -> Path:
    (home / "link").symlink_to("nowhere")
    return home / "link"


def a_pipe(home: Path) -> Path:
    os.mkfifo(home / "pipe")
    return home / "pipe"


def a_foreign_folder(home: Path) -> Path:
    return home / "photos"


def a_folder_of_folders(home: Path) -> Path:
    (home / "photos" / "2024").mkdir()
    (home / "photos" / "thesis.txt").rename(home / "photos" / "2024" / "thesis.txt")
    return home / "photos"


def a_foreign_folder_with_our_names(home: Path) -> Path:
    for name in NAMES:
        (home / "photos" / name).write_text('{"done": false, "title": "holiday"}')
    return home / "photos"


def a_foreign_mark(home: Path) -> Path:
    write_json(home / "photos" / MARK, {"what": "somebody else's"})
    return home / "photos"


def a_broken_mark(home: Path) -> Path:
    (home / "photos" / MARK).write_text("{")
    return home / "photos"


def a_model(home: Path) -> Path:
    return home / "model"


def a_hidden_file(home: Path) -> Path:
    (home / "photos" / "thesis.txt").rename(home / "photos" / ".thesis.txt")
    return home / "photos"


PRECIOUS = [
    *(a_file, below_a_file, a_link, a_link_to_a_file, a_link_to_nothing, a_pipe),
    *(a_foreign_folder, a_folder_of_folders, a_foreign_folder_with_our_names, a_foreign_mark),
    *(a_broken_mark, a_model, a_hidden_file),
]


@pytest.mark.parametrize("precious", PRECIOUS)
@pytest.mark.parametrize("command", FOLDERS)
def test_a_folder_that_is_not_ours_stays(outcome, home, command, precious):
    nothing_lost(outcome, home, FOLDERS[command], precious(home))


SOURCES = ["all/data", "all/data/../data", "all/data/frames", "all/data/new/run", "all", "."]


@pytest.mark.parametrize("where", SOURCES)
@pytest.mark.parametrize("command", [n for n in READS_DATA if n != "label"])
def test_what_is_read_its_parents_and_its_children_stay(outcome, home, command, where):
    nothing_lost(outcome, home, FOLDERS[command], home / where)


@pytest.mark.parametrize("where", ["all/data", "all/data/frames", "all", "."])
def test_labels_do_not_replace_their_data(outcome, home, where):
    nothing_lost(outcome, home, FOLDERS["label"], home / where)


@pytest.mark.parametrize("command", [n for n in READS_DATA if n != "label"])
def test_a_link_into_what_is_read_is_seen_through(outcome, home, command):
    (home / "elsewhere").symlink_to("all/data")
    nothing_lost(outcome, home, FOLDERS[command], home / "elsewhere" / "run")


# --- files ----------------------------------------------------------------------------------------


def a_folder(home: Path) -> Path:
    return home / "photos"


def a_text(home: Path) -> Path:
    return home / "photos" / "thesis.txt"


def a_store_table(home: Path) -> Path:
    return home / "all" / "data" / "meta.json"


PRECIOUS_FILES = [a_folder, a_text, below_a_file, a_link_to_a_file, a_link_to_nothing, a_pipe]


@pytest.mark.parametrize("precious", [*PRECIOUS_FILES, a_store_table])
@pytest.mark.parametrize("command", FILES)
def test_a_file_that_is_not_ours_stays(outcome, home, command, precious):
    nothing_lost(outcome, home, FILES[command], precious(home))


def test_a_frame_does_not_replace_one_of_its_data(outcome, home):
    images = home / "images" / "episode"
    images.mkdir(parents=True)
    for n in range(3):
        shutil.copy(Path(__file__).parents[1] / "nbs" / "images" / "hands.png", images / f"{n}.png")
    row = ("commands.data", f"frame {home / 'images'} --rate 5 --episode 0 --index 0 --out OUT")
    nothing_lost(outcome, home, row, images / "1.png")


# --- places that cannot be written ----------------------------------------------------------------

EVERY = FOLDERS | FILES
NOT_WRITABLE = "/proc/nowhere"  # a disk on which nobody can make anything


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a disk without files of ours")
@pytest.mark.parametrize("ending", ["", "/deeper/run"])
@pytest.mark.parametrize("command", EVERY)
def test_a_place_that_cannot_be_written_is_one_line(outcome, home, command, ending):
    suffix = {"frame": ".png", "triples": ".png", "linear": ".png", "structure": ".npz"}
    out = Path(NOT_WRITABLE + ending + suffix.get(command, ""))
    nothing_lost(outcome, home, EVERY[command], out)


# --- what is ours ---------------------------------------------------------------------------------


def test_our_own_store_is_replaced_and_one_with_a_note_in_it_is_not(outcome, home):
    row = FOLDERS["convert"]
    assert call(outcome, home, row, home / "copy")[0] == 0
    assert read_mark(home / "copy")["what"] == "store"
    assert call(outcome, home, row, home / "copy")[0] == 0
    (home / "copy" / "frames" / "note.txt").write_text("mine")
    nothing_lost(outcome, home, row, home / "copy")


def test_a_store_without_a_mark_is_known_by_its_files(outcome, home):
    assert call(outcome, home, FOLDERS["convert"], home / "copy")[0] == 0
    (home / "copy" / MARK).unlink()
    assert call(outcome, home, FOLDERS["convert"], home / "copy")[0] == 0
    (home / "copy" / "note.txt").write_text("mine")
    nothing_lost(outcome, home, FOLDERS["convert"], home / "copy")
    write_json(home / "copy" / MARK, {"what": "store"})  # as `output_folder` does, nothing listed
    nothing_lost(outcome, home, FOLDERS["convert"], home / "copy")


def test_starting_anew_leaves_what_a_person_put_there(outcome, home):
    row = FOLDERS["train-lam"]
    words = row[0], row[1] + " --train.batch-size 2 --probe-n 2 --cache-gib 0"
    assert call(outcome, home, words, home / "run")[0] == 0
    notes = ["note.txt", "tb/note.txt", "model/note.txt", "checkpoints/step_000001/note.txt"]
    for name in notes:
        (home / "run" / name).parent.mkdir(exist_ok=True, parents=True)
        (home / "run" / name).write_text("mine")
    call(outcome, home, words, home / "run")
    assert all((home / "run" / name).read_text() == "mine" for name in notes)


def test_discard_takes_what_it_names(tmp_path):
    for name in ("a/1.png", "a/2.txt", "b/c/3.png", "4.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "link").symlink_to("../a")
    discard(tmp_path, ["a/*.png", "b/**/*.png"])
    assert sorted(content(tmp_path)) == ["4.png", "a/2.txt", "b/link"]


def test_what_is_put_into_a_folder_while_it_is_written_stays(tmp_path):
    with atomic_folder(tmp_path / "model") as temporary:
        (temporary / "weights").touch()
    with pytest.raises(UserError, match="note.txt"):
        with atomic_folder(tmp_path / "model") as temporary:
            (temporary / "weights").touch()
            (tmp_path / "model" / "note.txt").touch()
    assert (tmp_path / "model" / "note.txt").exists()


def test_many_may_begin_at_once(tmp_path):
    code = "import sys; from aclam.folders import output_folder; output_folder(sys.argv[1])"
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    started = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(6)]
    assert [process.communicate()[1] for process in started] == [b""] * 6
    assert os.listdir(tmp_path / "run") == [MARK]


def test_a_folder_that_may_not_be_read_is_one_line(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "x").mkdir()
    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(UserError, match="Permission denied"):
        output_folder(tmp_path / "x")
