"""The notebook lint finds what it is there to find, and leaves a good notebook alone."""

import io
import json
import os
from pathlib import Path

import install_cells
import lint_notebooks as lint
import pytest
import strip_bars
from PIL import Image

BADGE = f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({lint.BLOB}nbs/room/good.ipynb)"
INSTALL = f"#| eval: false\n{lint.install_lines('[sim]')}"
GOOD = [
    "md:# A title\n\n> One line of plain text",
    "#| default_exp room.good",
    f"md:{BADGE} Runs in about 3 seconds on two CPU cores.",
    INSTALL,
    "#| export\nimport math\n\ntry:\n    import torch\nexcept ModuleNotFoundError:\n    torch = None",
    "#| export\ndef area(r):\n    return math.pi * r**2",
    "md:The area of the unit circle gives 3.14 in the cell below.",
    "assert round(area(1), 2) == 3.14",
]


@pytest.fixture
def notebook(tmp_path):
    """Write the good notebook with some cells replaced or added, and lint it."""

    def check(changes=None, extra=(), name="good", outputs=""):
        sources = [(changes or {}).get(i, s) for i, s in enumerate(GOOD)] + list(extra)
        cells = []
        for source in sources:
            kind = "markdown" if source.startswith("md:") else "code"
            cell = {
                "cell_type": kind,
                "source": source.removeprefix("md:").splitlines(True),
                "metadata": {},
            }
            if kind == "code":
                cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": [outputs]}]
            cells.append(cell)
        path = tmp_path / "nbs" / "room" / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
        )
        return lint.lint([lint.read(path, tmp_path)])

    return check


def test_a_good_notebook_passes(notebook):
    assert notebook() == []


def test_a_file_that_is_asked_for_first_may_be_read(notebook):
    source = 'folder = Path("../../tests/x")\nprint(folder.is_dir())'
    assert notebook(extra=[source]) == []


def test_a_tag_counts_once_it_is_there(notebook, monkeypatch):
    monkeypatch.setattr(lint, "known_refs", lambda: ("main", "v0.1.0"))
    assert notebook({3: f"#| eval: false\n{lint.install_lines('', 'v0.1.0')}"}) == []


def test_the_install_cell_installs_only_where_the_package_is_missing():
    source = (
        lint.install_lines("[sim]").replace(lint.INSTALL, "install(").replace('main"', 'main")')
    )
    asked = []
    for name in ("aclam", "a_package_that_is_missing"):
        code = source.replace('find_spec("aclam")', f"find_spec({name!r})")
        exec(code.replace(" -q", ""), {"install": asked.append})
    assert asked == [f"aclam[sim] @ git+{lint.REPOSITORY}@main"]


def test_one_tool_writes_all_install_cells():
    before = '#| hide\n#| eval: false\n# On Colab:\n%pip install "aclam[sim] @ git+{}@v0.1.0"'
    after = install_cells.renew(before.format(lint.REPOSITORY), "main")
    assert after == f"#| hide\n#| eval: false\n{lint.install_lines('[sim]')}"
    assert install_cells.renew(after, "main") == after
    text = f'`pip install "aclam @ git+{lint.REPOSITORY}@v0.1.0"`'
    assert install_cells.renew(text, "main") == text.replace("v0.1.0", "main")
    assert install_cells.renew("x = 1", "main") == "x = 1"


BAD = {
    "no subtitle": ({0: "md:# A title"}, [], "cell 1: the first cell must be"),
    "LaTeX in the subtitle": ({0: "md:# A title\n\n> With $x$"}, [], "cell 1: no LaTeX"),
    "backslash in the subtitle": ({0: "md:# A title\n\n> With \\epsilon"}, [], "cell 1: no LaTeX"),
    "no badge": ({2: "md:Runs in about 3 seconds"}, [], "no Colab badge"),
    "another's badge": (
        {2: f"md:{BADGE.replace('good', 'bad')} Runs in about 3 s"},
        [],
        "no Colab badge",
    ),
    "no time": ({2: f"md:{BADGE}"}, [], "how long it takes"),
    "no install cell": ({3: "1 + 1"}, [], "no install cell"),
    "an install cell of one's own": (
        {3: '#| eval: false\n%pip install "aclam"'},
        [],
        "cell 4: not the install cell of all chapters",
    ),
    "installs without being asked": (
        {3: f'#| eval: false\n{lint.INSTALL} "aclam @ git+{lint.REPOSITORY}@main"'},
        [],
        "cell 4: not the install cell of all chapters",
    ),
    "a version that is not there": (
        {3: f"#| eval: false\n{lint.install_lines('', 'v99.0.0')}"},
        [],
        "cell 4: installs v99.0.0, which is not there; main",
    ),
    "a version that is not there, in prose": (
        {},
        [f'md:`pip install "aclam @ git+{lint.REPOSITORY}@v99.0.0"`'],
        "cell 9: installs v99.0.0, which is not there",
    ),
    "an extra that is not there": (
        {3: f"#| eval: false\n{lint.install_lines('[sim,nothing]')}"},
        [],
        "cell 4: settings.ini has no extra nothing",
    ),
    "a file beside the notebook": (
        {},
        ['rows = read_json("../results/seeds.json")'],
        "cell 9: '../results/seeds.json' is not in the package",
    ),
    "a fixture of the tests": (
        {},
        ['folder = Path("tests/fixtures/lapa")\nprint(list(folder.iterdir()))'],
        "cell 9: 'tests/fixtures/lapa' is not in the package",
    ),
    "install cell that runs": (
        {3: INSTALL.replace("#| eval: false\n", "")},
        [],
        "cell 4: the install cell needs",
    ),
    "imports mixed with code": (
        {},
        ["import json\nx = 1"],
        "cell 9: imports need a cell of their own",
    ),
    "import in a function": (
        {},
        ["def f():\n    import json"],
        "cell 9: an import inside a function",
    ),
    "export call": ({}, ["import nbdev; nbdev.nbdev_export()"], "cell 9: no nbdev_export()"),
    "no assert": ({7: "area(1)"}, [], "exports code but asserts nothing"),
    "an exported cell that runs": (
        {},
        ["#| export\nx = 1\nprint(x)"],
        "cell 9: an exported cell defines",
    ),
    "an exported cell that asserts": (
        {},
        ["#| export\nassert area(1) > 3"],
        "cell 9: an exported cell defines",
    ),
    "no module": ({1: "x = 1"}, [], "has no '#| default_exp'"),
    "long cell": ({}, ["x = 1\n" * 36], "cell 9: 36 lines of code in one cell (at most 35)"),
    "long class": (
        {},
        ["#| export\nclass A:\n" + "    x = 1\n" * 35],
        "36 lines of code in one cell (at most 35)",
    ),
    "packed": ({}, ["a, b, c = 1, 2, 3"], "cell 9: 3 names in one assignment"),
    "three for": (
        {},
        ["x = [[c for c in b] for a in [] for b in a]"],
        "cell 9: a comprehension over more than two for",
    ),
    "named lambda": ({}, ["f = lambda x: x"], "cell 9: a lambda with a name"),
    "not formatted": ({}, ["x = 1  # fmt: skip"], "cell 9: a part that the formatter leaves out"),
    "hidden import": (
        {},
        ["#| export\ndef f():\n    from aclam.core import say\n    say(1)"],
        "cell 9: an import of aclam.core inside f",
    ),
    "long line": ({}, [f"x = '{'a' * 120}'"], "cell 9: a line of 126 characters"),
    "path of a machine": ({}, ["x = '/home/someone/data'"], "cell 9: a path of one machine: /home"),
    "cuda": ({}, ["model.cuda()"], "cell 9: .cuda()"),
    "strict": ({}, ["model.load_state_dict(x, strict=False)"], "cell 9: strict=False"),
    "pickle": ({}, ["pickle.load(f)"], "cell 9: pickle.load"),
    "from pickle": ({}, ["from pickle import load"], "cell 9: pickle:"),
    "weights_only": ({}, ["torch.load(f, weights_only=False)"], "cell 9: loading pickled objects"),
    "bare except": ({}, ["try:\n    x = 1\nexcept:\n    x = 2"], "cell 9: a bare except"),
    "display maths in a sentence": ({}, ["md:So $$x = 1$$ holds."], "cell 9: display maths"),
    "a result out of thin air": (
        {7: "x = area(1)"},
        ["md:It gives 3.14 at last.", "x", "x"],
        "a result in prose",
    ),
    "a percentage": (
        {},
        ["x = 1", "x = 1", "md:That is 35 % less.", "x = 1", "x = 1"],
        "cell 11: a result in prose",
    ),
    "computed by nobody": (
        {},
        ["x = 1", "x = 1", "md:It reached 0.5. <!-- computed: nothing_here -->"],
        "cell 11: a result in prose",
    ),
    "does not parse": ({}, ["x = ("], "does not parse"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_notebook_is_named(notebook, name):
    changes, extra, says = BAD[name]
    found = notebook(changes, extra)
    assert any(says in line for line in found), found
    assert all(line.startswith("nbs/room/good.ipynb") for line in found)


FINE = {
    "lazy import in an exported function": ["#| export\ndef f():\n    import json"],
    "zip(strict=False)": ["list(zip([1], [2], strict=False))"],
    "import in a cell that is not run": ["#| eval: false\nimport json\nx = 1"],
    "pickle for the name of an error": ["import pickle"],
    "display maths on its own lines": ["md:So\n\n$$\nx = 1\n$$\n\nholds, or in `code: $$x$$`."],
    "a figure of the paper": ["x = 1", "x = 1", "md:The paper reports a drop to 0.35 (Table 1)."],
    "a number that is no result": ["x = 1", "x = 1", "md:The step is 0.1 seconds long."],
    "a number in a formula": ["x = 1", "x = 1", "md:It gives $0.5 x$ and `0.25`."],
    "printed two cells later": ["x = 1", "x = 1", "md:It reaches 0.5.", "x = 0.5", "print(x)"],
    "computed elsewhere": [
        "rate = 0.5",
        "x = 1",
        "x = 1",
        "x = 1",
        "md:It reached 0.5. <!-- computed: rate -->",
    ],
    "an address": ["md:See https://example.org/home/page and [docs](https://example.org/tmp/x)."],
}


@pytest.mark.parametrize("name", FINE)
def test_what_is_fine_passes(notebook, name):
    assert notebook(extra=FINE[name]) == []


def test_paths_in_outputs_are_found_too(notebook):
    assert any(
        "a path of one machine" in line
        for line in notebook(outputs="written to /tmp/xyz/report.html\n")
    )


def test_a_heavy_notebook(notebook):
    assert any("kB (at most 400)" in line for line in notebook(outputs="x" * 100_000))


def test_two_notebooks_may_not_share_a_module(tmp_path):
    cell = lint.Cell(1, "code", "#| default_exp a.b", "")
    found = lint.shared_modules(
        [lint.Notebook("nbs/one.ipynb", [cell], 1), lint.Notebook("nbs/two.ipynb", [cell], 1)]
    )
    assert found == [
        "nbs/two.ipynb: exports to a.b, as nbs/one.ipynb does: one notebook, one module"
    ]


# --- what a reader sees


def linted(rule, *sources, shown=True):
    """What one rule says of some cells; 'md:' begins a text."""
    cells = []
    for i, s in enumerate(sources, 1):
        kind = "markdown" if s.startswith("md:") else "code"
        cells.append(lint.Cell(i, kind, s.removeprefix("md:"), "", shown))
    return [message for _, message in rule(lint.Notebook("nbs/a.ipynb", cells, 0))]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("print(1)", 1),
        ("for x in range(3):\n    print(x)", 1),
        ("with open(name) as f:\n    display(f)", 1),
        ("if found:\n    print(found)", 0),  # it may have had nothing to say
        ("def f():\n    print(1)", 0),
        ("#| slow\nprint(1)", 0),
        ("#| eval: false\nprint(1)", 0),
        ("x = 1", 0),
    ],
)
def test_a_cell_that_prints_has_its_output(source, found):
    assert len(linted(lint.printed_output, source, shown=False)) == found
    assert linted(lint.printed_output, source) == []


@pytest.mark.parametrize(
    "text",
    [
        "md:Part 2 bounds the gap.",
        "md:as chapter 1 says",
        "md:the terms of the previous notebook",
        "md:the study at the end of the next part",
        "md:see the chapter on labels",
        "md:two chapters ago we split the error",
        "md:a later chapter is about that",
        "md:the theorem of the objectives chapter",
        "md:in other looks (the chapter before)",
        "# the bound of Part 2",
        'def f():\n    """As in Part 2."""',
    ],
)
def test_a_chapter_is_named_by_a_link(text):
    assert len(linted(lint.references_are_links, text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "md:see [the chapter on labels](labels.ipynb) and [Part 2](x.ipynb)",
        "md:the mask of the chapter on [attention](attention_mask.ipynb)",
        "md:two of three parts, and the last part of an option",
        "md:`the next chapter`",
        "md:the first chapter of a way, the whole chapter",
        "part_1 = 1  # part of it",
    ],
)
def test_what_is_no_reference_or_is_a_link_passes(text):
    assert linted(lint.references_are_links, text) == []


@pytest.mark.parametrize(
    "text",
    [
        "md:the number is lost from the paper's text",
        "md:the extraction of its text",
        "md:all visible in the authors' drafts",
        "# as in the draft code",
    ],
)
def test_what_nobody_can_look_up_is_no_evidence(text):
    assert len(linted(lint.evidence_can_be_looked_up, text)) == 1


def test_a_paper_and_public_code_are_evidence():
    text = "md:Eq. 8 of the paper, and the authors' public code, which lost nothing"
    assert linted(lint.evidence_can_be_looked_up, text) == []


@pytest.mark.parametrize(
    "text", ["md:its additivity error is 1", 'print(f"additivity defect {x}")']
)
def test_a_metric_has_one_name(text):
    assert len(linted(lint.one_name_a_metric, text)) == 1
    assert linted(lint.one_name_a_metric, "md:an additivity residual of 1", "additivity(z)") == []


def test_a_letter_has_one_meaning_in_a_chapter():
    shift = "md:one free matrix $R := B^{+} A$"
    assert linted(lint.one_letter_one_meaning, "md:$R := 1$ and $R_{ij} := 2$", "x := 1") == []
    assert linted(
        lint.one_letter_one_meaning, "md:$$\nS := C + D, \\qquad R := B S\n$$", shift
    ) == ["R is defined again (first in cell 1)"]
    gauge = "md:For any invertible $R \\in \\mathbb{R}^{2}$, replace"
    assert len(linted(lint.one_letter_one_meaning, gauge, shift)) == 1
    greek = "md:$\\Gamma := 1$"
    assert len(linted(lint.one_letter_one_meaning, greek, greek)) == 1


@pytest.mark.parametrize(
    "text", ["md:colours of a labelled set", "# in metres", '"""Normalised."""']
)
def test_british_spelling_is_found(text):
    assert linted(lint.american_spelling, text)


@pytest.mark.parametrize(
    "text",
    ["md:`labelled` and [x](colour.png)", 'x = kept["centred"]', "md:a color, exercises, size"],
)
def test_names_and_american_words_pass(text):
    assert linted(lint.american_spelling, text) == []


def test_the_order_file_names_what_is_there(tmp_path):
    assert lint.reading_order() == []
    (tmp_path / "site").mkdir()
    (tmp_path / "nbs" / "a").mkdir(parents=True)
    for name in ("one", "two"):
        (tmp_path / "nbs" / "a" / f"{name}.ipynb").write_text("{}")
    order = tmp_path / "site" / "chapters.yml"
    order.write_text("- {folder: a, room: A, about: x, notebooks: [one, cost, one]}\n")
    assert lint.reading_order(tmp_path) == [
        "site/chapters.yml names nbs/a/cost.ipynb, which is not there",
        "site/chapters.yml does not name nbs/a/two.ipynb",
        "site/chapters.yml names nbs/a/one.ipynb twice",
    ]


KNOW = "md:## What you know now\n\n- LLO is 2.\n- a\n- b\n\n## Exercises\n\n- more\n"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (KNOW, 0),
        (KNOW.replace("- a\n", ""), 1),
        (KNOW.replace("2.", "two."), 1),
        (KNOW.replace("## Exercises\n", ""), 1),  # the list goes on: four lines
        ("md:no such section", 0),  # and no core chapter
    ],
)
def test_what_a_reader_takes_along_is_three_claims_with_numbers(text, found):
    assert len(linted(lint.what_you_know, text)) == found


def test_a_lesson_says_what_its_reader_knows():
    assert {"nbs/1_linear/pca.ipynb", "nbs/9_studies/grid_table.ipynb"} <= lint.lessons()
    assert "nbs/8_train/loop.ipynb" not in lint.lessons()  # in the Workshop
    bare = lint.Notebook("nbs/1_linear/pca.ipynb", [lint.Cell(1, "markdown", "# T", "")], 0)
    assert len(list(lint.what_you_know(bare))) == 1


KINDS = "## Exercises\n\n**With blanks.** `aclam-check pca`\n\n**With a pencil.**\n\n1. a\n\n**Open.** b\n"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (KINDS, 0),
        (KINDS.replace("**Open.**", "Open:"), 1),
        (KINDS.replace("**With a pencil.**", "") + "\n**With a pencil.** c", 1),  # another order
        (KINDS.replace("**Open.** b", "## Solutions\n\n**Open.** b"), 1),  # in another section
        (KINDS.replace("`aclam-check pca`", ""), 1),
        (KINDS.replace("-check pca", "-check pcas"), 1),
        ("no exercises", 0),
    ],
)
def test_a_core_chapter_has_exercises_of_three_kinds(text, found):
    cell = lint.Cell(1, "markdown", text, "")
    for path, expected in (("nbs/1_linear/pca.ipynb", found), ("nbs/1_linear/llo.ipynb", 0)):
        nb = lint.Notebook(path, [cell], 0)
        assert len(list(lint.three_kinds_of_exercises(nb))) == expected


def test_exceptions_are_core_chapters_that_need_one(monkeypatch):
    excepted = lint.OTHER_EXERCISES
    assert excepted.keys() <= lint.core_chapters()
    monkeypatch.setattr(lint, "OTHER_EXERCISES", {})
    for path in excepted:
        assert list(lint.three_kinds_of_exercises(lint.read(lint.ROOT / path))), path


@pytest.mark.parametrize(
    "text, found",
    [
        ("md:the latent\n$$z = x.$$\n", 1),
        ("md:$$z = x.$$\nhas a meaning", 1),
        ("md:the latent\n\n$$z = x.$$\n\nhas a meaning", 0),
        ("md:the latent\n\n$$\nz = x.\n$$\n", 0),
    ],
)
def test_a_formula_on_a_line_of_its_own_has_empty_lines_around(text, found):
    assert len(linted(lint.display_maths, text)) == found


def a_figure(source: str, inches: float = 4.0) -> "lint.Notebook":
    """A chapter of one cell that shows a PNG of this width."""
    png = io.BytesIO()
    Image.new("RGB", (round(100 * inches), 50)).save(png, "PNG", dpi=(100, 100))
    cell = lint.Cell(5, "code", source, "", True, (png.getvalue(),))
    return lint.Notebook("nbs/3_data/one.ipynb", [cell], 1)


DRAWS = "def draw(ax):\n    ax.legend(fontsize=8)\n\n\n"


@pytest.mark.parametrize(
    ("inches", "source", "legible"),
    [
        (6.0, "plt.plot(x)", True),
        (7.0, "plt.plot(x)", False),
        (6.0, "ax.legend(fontsize=8)", False),
        (4.6, "ax.tick_params(labelsize=8)", True),
        (6.0, f"{DRAWS}draw(ax)", False),  # the chapter's own function
        (6.0, "draw_code_usage(codes, 65)", False),  # the package's, through `tidy`
        (5.0, "draw_code_usage(codes, 65)", True),
    ],
)
def test_letters_that_a_phone_cannot_show_are_found(inches, source, legible):
    found = list(lint.legible_on_a_phone(a_figure(source, inches)))
    assert (found == []) == legible


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ("#| fig-cap: It falls.\n#| fig-alt: A line\nplot()", None),
        ("#| fig-cap: It falls.\nplot()", "without #| fig-alt:"),
        ("plot()", "without #| fig-cap: and #| fig-alt:"),
    ],
)
def test_a_figure_has_a_caption_and_an_alternative_text(source, missing):
    found = [message for _, message in lint.figures_have_words(a_figure(source))]
    assert found == ([f"a figure {missing}"] if missing else [])


def beside(path: str, text: str) -> list[str]:
    """What the rule on the chapters beside says of a text in a chapter of the book."""
    nb = lint.Notebook(path, [lint.Cell(1, "markdown", text, "")], 0)
    return [message for _, message in lint.neighbors_are_neighbors(nb)]


def test_the_next_chapter_is_the_next_one():
    here, after, later = (p.as_posix() for p in lint.chapters()[40:43])
    near, far = (os.path.relpath(p, Path(here).parent) for p in (after, later))
    assert beside(here, f"[The next chapter]({near}) says more") == []
    assert len(beside(here, f"in the [next chapter]({far})")) == 1
    assert len(beside(here, f"[the last notebook]({near})")) == 1
    assert beside(here, f"[the chapter on that]({far})") == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("md:**Proposition 2.** Let it be so.", 1),
        ("md:> **Proposition 2.** Let it be so.", 0),
        ("md:By **Proposition 2** it is so.", 0),
        ("md:We need:\n\n**Definition.** A leak is", 1),
    ],
)
def test_a_statement_is_a_quotation(text, found):
    assert len(linted(lint.statements_stand_out, text)) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("md:## Exercises\n\n1. Why?", 1),
        ("md:**Exercise.** Why?\n\n**Solution.** So.", 1),
        ("md:## Exercise\n\nWhy?\n\n## Solution\n\nSo.", 0),
        ("md:no exercise", 0),
    ],
)
def test_exercises_have_a_heading_for_solutions(text, found):
    assert len(linted(lint.solutions_fold, text)) == found


def test_a_bar_in_an_output_is_found_and_stripped():
    bar = "run:  12%|#2        | 12/100 [00:01<00:09]\rrun: 100%|####| 100/100 [00:02<00:00]\n"
    cell = lint.Cell(3, "code", "train()", bar + "going on\n", True)
    nb = lint.Notebook("nbs/a.ipynb", [cell], 0)
    assert [number for number, _ in lint.no_progress_bars(nb)] == [3]
    said = {"name": "stderr", "output_type": "stream", "text": [bar, "going on\n"]}
    kept = strip_bars.stripped({"outputs": [said, said | {"text": [bar]}]})
    assert kept["outputs"] == [said | {"text": ["going on\n"]}]
