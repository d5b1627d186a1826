"""The built book in a browser: every page from the file system; and that the instrument notices what is wrong."""

import json
import re
import subprocess
import sys
from pathlib import Path

import build
import convert
import markdown
import markup
import open_book
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
needs_browser = pytest.mark.skipif(open_book.program() is None, reason="there is no Chromium here")

BAD = """<html><meta name="viewport" content="width=device-width"><body><article>
<p id="here">text</p><a href="other.html">a</a>
<a href="#nowhere">b</a><a href="#here">c</a><span class="katex-error">x</span>
<p>left \\\\(x\\\\)</p><div style="width: 900px">wide</div>
<img src="missing.png"></article>
<script>console.error("no"); throw new Error("thrown")</script></body></html>""".replace(
    "\\\\", "\\"
)


@needs_browser
def test_the_browser_sees_what_is_wrong_with_a_page(tmp_path):
    page = tmp_path / "bad.html"
    page.write_text(BAD, encoding="utf-8")
    browser = open_book.Browser(open_book.program())
    try:
        browser.size(*open_book.PHONE)
        events = browser.open(page.as_uri())
        seen = json.loads(browser.evaluate(open_book.LOOK))
    finally:
        browser.close()
    found = open_book.page_troubles(events, seen)
    for words in (
        "missing.png",
        "console",
        "exception",
        "1 formulas with",
        "1 formulas that",
        "wider",
    ):
        assert any(words in line for line in found), words
    links = open_book.link_troubles({page: seen}, tmp_path)
    assert [line.split()[-6:] for line in links] and len(links) == 2


def test_theorems_become_boxes_with_names_numbers_and_anchors():
    claim = "> **Proposition 4.1.** If $x$,\n>\n> $$\n> y\n> $$\n\n"
    claim += "Also\n\n> **Proposition 3.2 (identity).** A.\n>\n> **Proposition 3.3.** B.\n\n"
    other = "> **Theorem (all).** Let.\n\n```text\n> no quote\n```\n"
    text = f"# T\n\n> subtitle\n\nWords.\n\n{claim}And\n\n{other}"
    got = markup.theorems(text)
    assert got.startswith("# T\n\n> subtitle\n\nWords.")
    assert '<div class="admonition theorem" id="proposition-4-1" markdown="1">' in got
    assert "If $x$,\n\n$$\ny\n$$" in got
    assert got.count('class="admonition theorem"') == 4
    assert 'id="proposition-3-2-identity"' in got and 'id="proposition-3-3"' in got
    assert 'id="theorem-1-all"' in got and ">Theorem 1 (all) <" in got
    assert "```text\n> no quote\n```" in got


def test_solutions_are_folded_one_by_one():
    first = "```python\n# 1\nx = 1\n```\n\n```text\n1\n```\n\n"
    rest = "**2.** Because.\n\n## More\n\nend\n"
    text = f"## Exercises\n\n1. Why?\n\n## Solutions\n\n{first}{rest}"
    got = markup.fold_solutions(text)
    assert (
        '??? success "Solution 1"\n\n    ```python\n    # 1\n    x = 1\n    ```\n\n    ```text'
        in got
    )
    assert '??? success "Solution 2"\n\n    **2.** Because.' in got
    assert got.endswith("## More\n\nend\n") and "1. Why?" in got


def test_a_heading_inside_code_opens_no_section():
    text = "```python\n## Solutions\n```\n\nafter\n"
    assert markup.fold_solutions(text) == text


SHORT = "*Proof.* Put $x = y$. $\\square$"
LONG = "\n\n".join(["*Proof.* Collect.", *["$$\ny = x .\n$$", "So."] * 4, "Done. $\\square$"])


def test_a_long_proof_is_folded_and_a_short_one_stands_open():
    text = f"# T\n\n> **Fact.** So.\n\n{SHORT} More.\n\n{LONG} (The paper has it, too.)\n\nEnd.\n"
    got = markup.fold_proofs(text)
    assert f"\n\n{SHORT} More.\n\n" in got
    assert '??? proof "Proof"\n\n    *Proof.* Collect.\n\n    $$\n    y = x .\n    $$' in got
    assert "    Done. $\\square$\n\n(The paper has it, too.)\n\nEnd.\n" in got
    assert markup.height(SHORT) == 1 and markup.height(LONG) > markup.LONGEST


def test_a_proof_ends_before_the_next_heading_and_code_has_none():
    open_end = LONG.replace("\\square", "x")
    text = f"{open_end}\n\n## Next\n\n{SHORT}\n\n```text\n{LONG}\n```\n"
    assert markup.fold_proofs(text) == text
    title = LONG.replace("*Proof.*", "*The paper's proof, completed.*")
    assert markup.fold_proofs(title).startswith('??? proof "The paper\'s proof, completed"\n')


def test_the_proofs_that_are_folded_are_those_of_the_long_theorems():
    found = []
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        texts = ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
        found += [path.stem for text in texts if "??? proof" in markup.fold_proofs(text)]
    assert {"augmentation", "objective"} <= set(found) and len(found) < 10


LINES = "".join(f"    x = {n}\n" for n in range(markup.LONGEST_CODE))
LIBRARY = f'```python title="aclam.a"\ndef f():\n\n{LINES}```\n'


def test_long_library_code_is_folded_behind_what_it_defines():
    short = '```python title="aclam.a"\ndef g():\n    return 1\n```\n'
    shown = f"```python\n{LINES}```\n"
    text = f"# T\n\n{short}\n{shown}\n{LIBRARY}\nAfter.\n"
    got = markup.fold_code(text)
    assert got.startswith(f"# T\n\n{short}\n{shown}\n??? library")
    fence = '    ```python title="aclam.a"\n    def f():\n\n        x = 0\n'
    assert f'??? library "The code: `f`"\n\n{fence}' in got
    assert got.endswith("        x = 11\n    ```\n\nAfter.\n")


def test_the_anchor_of_a_cell_goes_with_its_code():
    got = markup.fold_code(f'<div id="cell-ab12"></div>\n\n{LIBRARY}')
    assert got.startswith(
        '??? library "The code: `f`"\n\n    <div id="cell-ab12"></div>\n\n    ```'
    )


@pytest.mark.parametrize(
    ("code", "title"),
    [
        ("import math\nfrom a import b", "The imports"),
        ("if ready:\n    start()", "The code"),
        ("A = 1\n_B = 2\nC: int = 3\n\n\nclass D:\n    pass", "The code: `A`, `C`, `D`"),
        ("def _only(): ...", "The code: `_only`"),
        ("@patch\ndef forward(self: Net, x): ...", "The code: `Net.forward`"),
        ("@patch\ndef _hidden(self: Net): ...\n\n\nasync def run(): ...", "The code: `run`"),
        (
            "\n".join(f"{x} = 1" for x in "abcdefgh"),
            "The code: `a`, `b`, `c`, `d`, `e`, `f` and 2 more",
        ),
    ],
)
def test_folded_code_says_what_it_defines(code, title):
    assert markup.code_title(code) == title


def test_lessons_fold_code_and_the_workshop_and_the_spine_do_not():
    folds = {room["room"]: build.is_lesson(room) for room, _ in convert.chapters()}
    parts = {room["room"]: room.get("part") for room, _ in convert.chapters()}
    assert not any(folds[name] for name, part in parts.items() if part == "Workshop")
    assert {name for name, part in parts.items() if not part and not folds[name]} == {"The spine"}


SEEN = """JSON.stringify([...document.querySelectorAll("details.library")].map((d) =>
    [d.open, d.querySelector("summary").innerText, d.querySelector("pre").checkVisibility()]))"""


@needs_browser
def test_folded_code_opens_by_a_click_and_by_a_link_and_is_printed_without_any_script(tmp_path):
    said = yaml.safe_load((ROOT / "site" / "mkdocs.yml").read_text(encoding="utf-8"))
    rules = [next(iter(x)) if isinstance(x, dict) else x for x in said["markdown_extensions"]]
    text = markup.fold_code(f'# T\n\n<div id="cell-ab12"></div>\n\n{LIBRARY}')
    inside = markdown.markdown(text, extensions=rules)
    style = (ROOT / "site" / "book.css").read_text(encoding="utf-8")
    page = tmp_path / "a.html"
    body = f'<article class="md-typeset">{inside}</article>'
    page.write_text(f"<html><style>{style}</style><body>{body}</body></html>", encoding="utf-8")

    browser = open_book.Browser(open_book.program())
    try:
        browser.open(page.as_uri())
        assert json.loads(browser.evaluate(SEEN)) == [[False, "The code: f", False]]
        browser.call("Emulation.setEmulatedMedia", media="print")
        assert json.loads(browser.evaluate(SEEN)) == [[False, "The code: f", True]]
        browser.call("Emulation.setEmulatedMedia", media="")
        browser.evaluate('document.querySelector("summary").click()')
        assert json.loads(browser.evaluate(SEEN)) == [[True, "The code: f", True]]
        browser.open(page.as_uri() + "#cell-ab12")
        assert json.loads(browser.evaluate(SEEN)) == [[True, "The code: f", True]]
    finally:
        browser.close()


@pytest.mark.slow
@needs_browser
def test_a_search_finds_folded_code_and_opens_it():
    folder = open_book.SITE
    if not (folder / "index.html").exists():
        pytest.skip("the book is not built")
    index = json.loads((folder / "search" / "search_index.json").read_text(encoding="utf-8"))
    here = [d["text"] for d in index["docs"] if d["location"].startswith("4_lam/quantizer.html")]
    assert "The channel between IDM and FDM" in " ".join(here)  # a docstring of folded code

    marks = """JSON.stringify([...document.querySelectorAll("details.library mark")].map((m) =>
        m.closest("details").open))"""
    browser = open_book.Browser(open_book.program())
    try:
        browser.open((folder / "4_lam" / "quantizer.html").as_uri() + "?h=noise_like")
        browser.evaluate("new Promise((done) => setTimeout(done, 3000))")
        found = json.loads(browser.evaluate(marks))
    finally:
        browser.close()
    assert found and all(found)


@pytest.mark.slow
@needs_browser
def test_the_cheat_sheet_is_one_sheet_of_paper():
    page = open_book.SITE / "cheat_sheet.html"
    if not page.exists():
        pytest.skip("the book is not built")
    browser = open_book.Browser(open_book.program())
    try:
        browser.open(page.as_uri())
        paper = browser.printed()
    finally:
        browser.close()
    assert len(re.findall(rb"/Type\s*/Page\b", paper)) == 1
    (size,) = re.findall(rb"/MediaBox\s*\[0 0 ([\d.]+) ([\d.]+)\]", paper)
    assert [round(float(x) * 25.4 / 72) for x in size] == [210, 297]  # millimeters: A4


@pytest.mark.slow
@needs_browser
@pytest.mark.timeout(3000)
def test_every_page_of_the_book_opens_from_the_file_system():
    """Builds the book where it is absent; 420 pages take three minutes of a free machine."""
    if not (ROOT / "_docs" / "site" / "index.html").exists():
        subprocess.run([sys.executable, "site/build.py"], cwd=ROOT, check=True)
    assert open_book.open_all(open_book.SITE) == []
    assert (open_book.SITE / "llms.txt").read_text(encoding="utf-8").count("](") > 150


@needs_browser
def test_a_way_is_followed(tmp_path):
    """The script of the site: a bar with the next chapter of a way, on a page made by hand."""
    book = (ROOT / "site" / "book.js").read_text(encoding="utf-8")
    ways = {"build": {"title": "Build", "pages": [["One", "a.html"], ["Two", "b.html"]]}}
    page = f"""<html><body><script id="__config" type="application/json">{{"base": "."}}</script>
    <div class="md-container"><article class="md-typeset"><p>text</p></article></div>
    <script>const renderMathInElement = () => 0
    const document$ = {{ subscribe: (f) => f({{ body: document.body }}) }}
    const WAYS = {json.dumps(ways)}\n{book}</script></body></html>"""
    (tmp_path / "a.html").write_text(page, encoding="utf-8")
    browser = open_book.Browser(open_book.program())
    try:
        browser.open((tmp_path / "a.html").as_uri() + "?way=build")
        bars = browser.evaluate('document.querySelectorAll("nav.way").length')
        target = browser.evaluate('document.querySelector("nav.way a").href')
    finally:
        browser.close()
    assert bars == 2
    assert target.endswith("/b.html?way=build")
