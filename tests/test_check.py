"""The gate itself: it must see a notebook that is not clean and a module that is not what its
notebook exports.
"""

import json
import shutil
import subprocess
import sys

import check
import pytest

SOURCES = [
    "# Title\n\n> A line",
    "#| default_exp small",
    "#| export\ndef one():\n    return 1",
    "assert one() == 1",
]


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A house of one notebook, clean and exported."""
    for name in ("pyproject.toml", "settings.ini"):
        shutil.copy(check.ROOT / name, tmp_path)
    cells = [
        {
            "cell_type": "code" if i else "markdown",
            "id": f"cell{i}",
            "metadata": {},
            "source": s.splitlines(True),
        }
        | ({"execution_count": None, "outputs": []} if i else {})
        for i, s in enumerate(SOURCES)
    ]
    (tmp_path / "nbs").mkdir()
    (tmp_path / "aclam").mkdir()
    (tmp_path / "aclam" / "__init__.py").write_text('__version__ = "0.1.0"\n')
    nb = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "nbs" / "small.ipynb").write_text(json.dumps(nb))
    for command in ("nbdev-clean", "nbdev-export"):
        assert check.run(check.BIN / command, cwd=tmp_path).returncode == 0
    monkeypatch.setattr(check, "ROOT", tmp_path)
    monkeypatch.setattr(check.notebooks, "__defaults__", (tmp_path,))
    return tmp_path


def test_a_house_in_order_passes(house):
    assert check.clean() == check.sync() == check.Outcome(1, 0)


def test_a_notebook_that_was_run_is_not_clean(house):
    path = house / "nbs" / "small.ipynb"
    nb = json.loads(path.read_text())
    nb["cells"][3]["execution_count"] = 7
    before = json.dumps(nb)
    path.write_text(before)
    outcome = check.clean()
    assert (
        outcome.failed == 1
        and "nbs/small.ipynb: differs" in outcome.note
        and "nbdev-clean" in outcome.note
    )
    assert path.read_text() == before  # the check looks, it does not touch


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (
            lambda aclam: (aclam / "small.py").write_text(f"# {check.MARK}"),
            "aclam/small.py: differs",
        ),
        (lambda aclam: (aclam / "small.py").unlink(), "aclam/small.py: missing"),
        (lambda aclam: shutil.copy(aclam / "small.py", aclam / "gone.py"), "aclam/gone.py: stale"),
        (lambda aclam: (aclam / "_modidx.py").unlink(), "aclam/_modidx.py: missing"),
    ],
)
def test_a_module_out_of_step(house, break_it, says):
    break_it(house / "aclam")
    outcome = check.sync()
    assert outcome.failed == 1 and says in outcome.note and "make export" in outcome.note


def test_modules_written_by_hand_are_left_alone(house):
    (house / "aclam" / "by_hand.py").write_text("x = 1\n")
    assert check.sync() == check.Outcome(1, 0)


def test_a_failing_notebook_is_reported(house):
    path = house / "nbs" / "small.ipynb"
    path.write_text(path.read_text().replace("one() == 1", "one() == 2"))
    assert check.one_notebook(path)[2] != ""
    outcome = check.test_notebooks()
    assert (outcome.passed, outcome.failed) == (0, 1) and "AssertionError" in outcome.note


def test_an_unknown_step_is_named():
    done = subprocess.run([sys.executable, check.__file__, "clena"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("unknown step clena; there are clean")
