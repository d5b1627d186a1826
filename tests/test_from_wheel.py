"""What a reader has who has only the wheel: chapters run in an empty folder, README blocks in order."""

import json
import re
from pathlib import Path

import chapters_from_wheel as chapters
import first_hour
import pytest
from alone import ROOT, clean_environment
from lint_notebooks import Cell, install_lines

LIMIT = 240


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """An environment with the wheel and nothing of the checkout: folder, interpreter, digest."""
    work = tmp_path_factory.mktemp("work")
    return work, *chapters.prepare(work)


def notebook(folder: Path, *sources: str) -> Path:
    cells = [
        {"cell_type": "code", "source": s, "metadata": {}, "outputs": [], "execution_count": None}
        for s in sources
    ]
    path = folder / "trial.ipynb"
    path.write_text(
        json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    )
    return path


@pytest.mark.parametrize("chapter", ["0_kept", "2_additivity/algebra"])
def test_a_chapter_runs_from_an_empty_folder_with_only_the_wheel(environment, chapter):
    work, python, digest = environment
    path = ROOT / "nbs" / f"{chapter}.ipynb"
    result = chapters.run_chapter(path, python, work, LIMIT, digest)
    assert (result.status, result.error) == ("passed", "")


BAD = {
    "reads the repository": ("open('../results/seeds.json')", "FileNotFoundError: "),
    "installs what is there": (
        "#| eval: false\n%pip install aclam",
        "RuntimeError: the install cell wants to install though aclam is here",
    ),
    "finds the checkout": (
        f"import lint_notebooks, aclam\nassert {str(ROOT)!r} in aclam.__file__",
        "ModuleNotFoundError: No module named 'lint_notebooks'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_chapter_that_needs_more_fails_with_its_error(environment, tmp_path, case):
    work, python, digest = environment
    source, words = BAD[case]
    result = chapters.run_chapter(notebook(tmp_path, source), python, work, LIMIT, digest)
    assert result.status == "failed" and result.error.startswith(words), result


def test_a_chapter_that_does_not_end_is_ended(environment, tmp_path):
    work, python, digest = environment
    path = notebook(tmp_path, "import time\ntime.sleep(600)")
    result = chapters.run_chapter(path, python, work, 3, digest)
    assert result.status == "over the limit" and result.seconds < 60


def test_slow_cells_are_left_out_and_the_install_cell_is_run():
    def cell(source, kind="code"):
        return Cell(1, kind, source, "")

    assert chapters.runs(cell("x = 1")) and chapters.runs(cell("#| export\nx = 1"))
    assert chapters.runs(cell(f"#| eval: false\n{install_lines('')}"))
    for source in ("#| slow\nx = 1", "#| gpu\nx = 1", "#| notest\nx", "#| eval: false\nx"):
        assert not chapters.runs(cell(source))
    assert not chapters.runs(cell("x", "markdown"))


def test_the_table_names_every_chapter_once():
    names = [chapters.name(p) for p in chapters.chapters([])]
    assert len(names) == len(set(names)) > 150
    assert [chapters.name(p) for p in chapters.chapters(["4_lam/model"])] == ["4_lam/model"]


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_every_chapter_runs_from_an_empty_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["chapters_from_wheel", "--work", str(tmp_path)])
    assert chapters.main() == 0, capsys.readouterr().out[-5000:]


# --- the README, block by block -------------------------------------------------------------------

README = """
# Title
## One
```bash
pip install "aclam[sim] @ git+https://example.org"   # a comment
aclam-data inspect film.mp4    # what is in it
```
## Two
```python
# mine.py
x = 1
```
```bash
accelerate launch --multi_gpu train
make demo
aclam-train-lam --data films \\
    --train.steps 2000
```
```text
no step
```
"""


def test_blocks_are_read_in_order():
    found = first_hour.steps(README)
    assert [(s.title, s.kind) for s in found] == [
        ("One", "shell"),
        ("One", "shell"),
        ("Two", "python"),
        ("Two", "shell"),
        ("Two", "shell"),
        ("Two", "shell"),
    ]
    assert found[1].text == "aclam-data inspect film.mp4"
    assert found[2].text == "# mine.py\nx = 1"
    assert [first_hour.reason(s) for s in found[2:5]] == [
        None,
        "needs several GPUs",
        "needs the repository, not the package",
    ]
    assert re.search(r"--train.steps 7$", first_hour.shorter(found[5].text, 7))


def test_every_block_of_this_readme_is_known():
    found = first_hour.steps((ROOT / "README.md").read_text())
    assert len(found) >= 8
    run = [s for s in found if first_hour.reason(s) is None]
    starts = ("aclam-", "pip install", "python -m aclam.")
    assert not [s.text for s in run if s.kind == "shell" and not s.text.startswith(starts)]


def test_a_step_is_timed_and_its_error_named(tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    walk = first_hour.Walk(here, tmp_path / "environment", limit=5)
    first_hour.take(walk, first_hour.Step("", "shell", "head -c 300000 /dev/zero >big"), 0, None)
    first_hour.take(walk, first_hour.Step("", "shell", "echo no film >&2; false"), 1, None)
    first_hour.take(walk, first_hour.Step("", "python", "# mine.py\nprint(1)"), 2, None)
    first_hour.take(walk, first_hour.Step("", "shell", "sleep 60"), 3, None)
    assert [d.status for d in walk.done] == ["passed", "failed", "passed", "over the limit"]
    assert walk.done[0].megabytes >= 0.3 and walk.done[1].note == "no film"
    assert (here / "mine.py").exists()
    assert "| `sleep 60` |" in first_hour.table(walk.done)


def test_nothing_leads_to_the_checkout(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    found = clean_environment(tmp_path)
    assert "PYTHONPATH" not in found
    assert found["PATH"].startswith(str(tmp_path / "bin"))
