"""The course and the chapters: their blanks are a file that runs, and aclam-check says what is wrong."""

import json
from pathlib import Path

import pytest

from aclam.commands.check import main
from aclam.core import UserError
from aclam.course.exercise import blanks, check_exercise
from aclam.course.syllabus import CHAPTERS, LESSONS, check, find_lesson

NBS = Path(__file__).resolve().parents[1] / "nbs"
KNOWN = LESSONS | CHAPTERS
EXERCISES = [(name, n) for name, lesson in KNOWN.items() for n in range(len(lesson.exercises))]


@pytest.mark.parametrize("name", KNOWN)
def test_the_blanks_of_a_lesson_are_a_program_whose_answers_are_blank(name):
    lesson = KNOWN[name]
    found = {}
    exec(blanks(lesson), found)
    for exercise in lesson.exercises:
        result = check_exercise(exercise, found[exercise.name])
        assert result.word == "blank", result
        assert exercise.asks and found[exercise.name].__doc__


@pytest.mark.parametrize("name, n", EXERCISES)
@pytest.mark.parametrize(
    "answer",
    [lambda *given: 0.0, lambda *given: given[0], lambda *given: "text", lambda: None, 3, print],
    ids=["zero", "argument", "text", "no arguments", "no function", "print"],
)
def test_no_answer_that_is_no_answer_is_right(name, n, answer):
    result = check_exercise(KNOWN[name].exercises[n], answer)
    assert result.word != "right" and result.why and "\n" not in result.why


def test_chapters_that_a_lesson_names_are_there():
    for lesson in LESSONS.values():
        assert all((NBS / f"{read}.ipynb").exists() for read in lesson.reads)
        assert (NBS / "course" / f"{lesson.name}.ipynb").exists()


def test_lessons_and_chapters_have_names_of_their_own():
    assert len(KNOWN) == len(LESSONS) + len(CHAPTERS)
    assert all(name.isidentifier() for name in KNOWN)


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_tells_its_command_and_its_functions(name):
    chapter = CHAPTERS[name]
    (read,) = chapter.reads
    cells = json.loads((NBS / f"{read}.ipynb").read_text(encoding="utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells]
    (asks,) = [text for text in texts if "**With blanks.**" in text]
    assert f"`aclam-check {name} --begin`" in asks and f"`aclam-check {name}`" in asks
    assert all(f"`{exercise.name}`" in asks for exercise in chapter.exercises)
    assert texts[0].startswith(f"# {chapter.title}\n")


def test_the_page_of_the_course_lists_all_chapters():
    page = json.loads((NBS / "course/syllabus.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in page)
    for name, chapter in CHAPTERS.items():
        asked = ", ".join(f"`{exercise.name}`" for exercise in chapter.exercises)
        row = f"| `{name}` | [{chapter.title}](../{chapter.reads[0]}.ipynb) | {asked} |"
        assert row in text, name


def test_names_that_nobody_asks_for_are_refused():
    with pytest.raises(UserError, match='no lesson or chapter "flows".*"flow"'):
        find_lesson("flows")
    with pytest.raises(UserError, match="Did you mean linear_model"):
        find_lesson("model")
    with pytest.raises(UserError, match='asks for no "nearst".*"nearest"'):
        check("codebook", nearst=max)


def test_the_command_lists_begins_and_checks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["--json"])
    rows = json.loads(capsys.readouterr().out)
    assert [row["lesson"] for row in rows["lessons"]] == list(LESSONS)
    assert [row["lesson"] for row in rows["chapters"]] == list(CHAPTERS)
    main([])
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in KNOWN)

    main(["flow", "--begin"])
    file = tmp_path / "flow_answers.py"
    text = file.read_text()
    with pytest.raises(SystemExit) as end:
        main(["flow", "--begin"])
    assert end.value.code == 2 and file.read_text() == text
    assert "are kept" in capsys.readouterr().err

    file.write_text("print('hello')\ndef target(noise, action):\n    return action - noise\n")
    with pytest.raises(SystemExit) as end:
        main(["flow", "--json"])
    said = json.loads(capsys.readouterr().out)["results"]
    assert end.value.code == 1 and [r["word"] for r in said] == ["blank", "right", "blank"]


SHORT = {  # a lesson, and the workshop chapter with its functions
    "9_studies/comparison": "9_studies/comparison_command",
    "9_studies/policy_comparison": "9_studies/policy_comparison_command",
    "5_structure/metrics": "5_structure/metric_functions",
    "3_data/gaps": "3_data/sampling",
    "3_data/random_reads": "3_data/store",
    "8_train/training_step": "8_train/loop",
    "8_train/one_training": "8_train/lam",
}


@pytest.mark.parametrize("lesson, workshop", SHORT.items())
def test_a_lesson_is_short_and_leaves_the_functions_to_its_workshop(lesson, workshop):
    exported, own = {}, {}
    for path in (lesson, workshop):
        cells = json.loads((NBS / f"{path}.ipynb").read_text(encoding="utf-8"))["cells"]
        sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        exported[path] = [s for s in sources if s.startswith("#| export")]
        # without imports, and the cell that installs the package on Colab
        others = [s for s in sources if not s.startswith(("import ", "from "))]
        rest = [s for s in others if s not in exported[path] and "find_spec" not in s]
        own[path] = sum(len([line for line in s.splitlines() if line.strip()]) for s in rest)
    assert own[lesson] < 150 and not exported[lesson] and exported[workshop]
