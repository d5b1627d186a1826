"""The board of best results is current, and takes up what an outsider enters."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from aclam.core import UserError

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import board  # noqa: E402

OUTSIDER = {
    "benchmark": "sources",
    "name": "tiny_lam",
    "minutes": 2.5,
    "hardware": "1 x Somebody's laptop",
    "seeds": 3,
    "numbers": {
        "sum_reconstruction": 0.1234,
        "reconstruction": 0.12,
        "additivity": 0.01,
        "norm_correlation": 0.7,
    },
    "command": "aclam-structure compare --plugin tiny_lam --models tiny_cpu",
    "commit": "0123abc",
    "by": "Somebody",
    "source": "",
    "note": "",
}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of the entries."""
    return Path(shutil.copytree(board.RESULTS / "board", tmp_path / "board"))


def enter(folder: Path, **changes) -> None:
    (folder / "outsider.json").write_text(json.dumps({**OUTSIDER, **changes}))


def test_the_board_is_current():
    assert board.stale(board.RESULTS / "board", board.RESULTS / board.NAME) == []


def test_a_number_that_was_changed_by_hand_is_seen(folder):
    file = folder / "sources_ac_lam_cpu.json"
    entry = json.loads(file.read_text())
    entry["numbers"]["additivity"] /= 2
    file.write_text(json.dumps(entry))
    assert file.name in board.stale(folder, board.RESULTS / board.NAME)


def test_every_entry_of_ours_names_a_commit():
    entries = board.read_entries(board.RESULTS / "board")
    assert len(entries) >= 9
    assert all(len(entry["commit"]) >= 7 for entry in entries)


def test_an_entry_of_someone_else_is_taken_up_and_leads(folder):
    enter(folder)
    text = board.page(board.read_entries(folder))
    lines = [line for line in text.splitlines() if "tiny_lam" in line]
    assert "| **tiny_lam** | 0.123 |" in lines[0] and "Somebody" in lines[0]
    assert lines[0].startswith("| up to 5 |") and "its author" in lines[0]
    after = text[text.index("tiny_lam") :]
    assert "| **potential_lam_cpu** |" not in after[: after.index("## ")]
    assert any(OUTSIDER["command"] in line for line in lines[1:])


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"minutes": -1}, "minutes"),
        ({"commit": "yesterday"}, "commit"),
        ({"benchmark": "mine"}, "benchmark"),
        ({"numbers": {"additivity": 0.1}}, "expected are sum_reconstruction"),
        ({"source": "nowhere.json"}, "no kept result"),
        ({"by": "a | b"}, "one line"),
        ({"seeds": "three"}, "seeds"),
        ({"name": "../../etc"}, "name"),
    ],
)
def test_an_entry_that_is_wrong_is_one_line(folder, changes, says):
    enter(folder, **changes)
    with pytest.raises(UserError) as error:
        board.read_entries(folder)
    assert says in str(error.value) and "outsider.json" in str(error.value)
    assert "\n" not in str(error.value)
