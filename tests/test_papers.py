"""The map of both papers: complete, and every row leads to what it names; ways, symbols, references."""

import importlib
import importlib.util
import json
import re
import statistics
import subprocess
from functools import cache
from pathlib import Path

import book_counts
import papers
import pytest
import references
import ways

from aclam.commands.entry import COMMANDS
from aclam.data.recipe import load_recipe, recipe_names
from aclam.lam import PRESETS
from aclam.structure.table import PAPER_TABLE_1
from aclam.studies import ablation, grid_table

ROOT = Path(__file__).resolve().parents[1]
ROWS = list(papers.rows())
NAMES = [f"{paper} {kind} {number}" for paper, kind, number, _ in ROWS]


@cache
def cells(chapter: str) -> dict[str, dict]:
    notebook = ROOT / "nbs" / f"{chapter}.ipynb"
    return {c["id"]: c for c in json.loads(notebook.read_text(encoding="utf-8"))["cells"]}


@cache
def words_of_tests(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


@cache
def words_of_help(command: str) -> str:
    folder = ROOT / "aclam" / "configs" / "help"
    return "\n".join(p.read_text(encoding="utf-8") for p in sorted(folder.glob(f"{command}*.txt")))


def resolve(name: str):
    """What a dotted name stands for."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def command_exists(command: str) -> bool:
    program, *rest = command.split()
    if program == "python":
        return rest[0] == "-m" and importlib.util.find_spec(rest[1]) is not None
    known = words_of_help(program)
    said = [word for word in rest if word.startswith("--")]
    said += [
        word for word in rest[:1] if word.islower() and word[0] != "-"
    ]  # compare, figure, plan
    return program in COMMANDS and all(re.search(rf"{word}\b", known) for word in said)


def test_every_entry_of_both_papers_is_there_once():
    counted = {}
    for paper, kind, _, _ in ROWS:
        counted[paper, kind] = counted.get((paper, kind), 0) + 1
    assert counted == papers.COUNTS
    assert len(set(NAMES)) == len(ROWS) == 64


@pytest.mark.parametrize("row", [row for *_, row in ROWS], ids=NAMES)
def test_a_row_leads_to_what_it_names(row):
    assert row["verdict"] in papers.VERDICTS
    assert row["cell"] in cells(row["chapter"])
    assert callable(resolve(row["function"]))
    assert papers.checks(row)
    path, _, test = row["test"].partition("::")
    assert re.search(rf"^def {test}\(", words_of_tests(path), re.M)
    assert command_exists(papers.remade(row))
    assert "{" not in papers.words(row)
    if at := papers.shown(row):
        assert at[1] in cells(at[0]) and at[1] in papers.linked()


def code_of(chapter: str) -> dict[str, str]:
    """The code cells of a chapter that a reader's kernel runs and nobody exports."""
    sources = {i: "".join(c["source"]) for i, c in cells(chapter).items() if "outputs" in c}
    skipped = ("#| export", "#| slow", "#| eval: false")
    return {i: s for i, s in sources.items() if not any(word in s for word in skipped)}


def chapter_of(function: str) -> str:
    """The chapter that exports a function."""
    module = importlib.import_module(function.rpartition(".")[0])
    source = Path(module.__file__).read_text(encoding="utf-8")
    (found,) = re.findall(r"File to edit: (?:\.\./)+nbs/(.+)\.ipynb", source)
    return found


def fails_where_wrong(source: str) -> bool:
    """Whether a cell asserts anything."""
    return bool(re.search(r"^\s*(assert\b|test_\w+\()", source, re.M))


CHECKS = sorted({(row["chapter"], check) for *_, row in ROWS for check in papers.checks(row)})


@pytest.mark.parametrize(("chapter", "check"), CHECKS)
def test_a_check_is_called_or_asserts(chapter, check):
    """A function `check_` that a cell calls, or a cell that fails where it is wrong."""
    if "#" in check:
        there, cell = check.split("#")
        assert fails_where_wrong(code_of(there)[cell]) and cell in papers.linked()
        return
    name = check.rsplit(".", 1)[1]
    assert name.startswith("check_") and callable(resolve(check))
    places = {chapter, chapter_of(check)}
    called = [s for place in places for s in code_of(place).values() if f"{name}(" in s]
    assert called, f"no cell of {places} calls it"


def printed(chapter: str, cell: str | None = None) -> list[str]:
    """The decimal numbers in the saved outputs of a cell, or of all cells of a chapter."""
    found = [cells(chapter)[cell]] if cell else cells(chapter).values()
    return re.findall(r"-?\d+\.\d+", json.dumps([c.get("outputs") for c in found]))


COUNTED = {name: row for name, (*_, row) in zip(NAMES, ROWS, strict=True) if "numbers" in row}


@pytest.mark.parametrize("row", COUNTED.values(), ids=COUNTED)
def test_numbers_stand_where_a_row_says_that_they_are_shown(row):
    """In the cell that is `shown`, else somewhere in the row's chapter."""
    place = papers.shown(row) or (row["chapter"],)
    for said in row["numbers"].values():
        values = papers.found(said)
        if not isinstance(values[0], float):
            continue  # a word, or a count
        mean = statistics.mean(values)
        as_printed = [f"{mean:.{digits}f}" for digits in (2, 3)]
        assert set(as_printed) & set(printed(*place)), as_printed


def test_the_step_of_table_5_is_the_presets():
    words = papers.content()["ac_lam"]["table"][5]["words"]
    opens = PRESETS["ac_lam_cpu"].bottleneck.continuous_steps
    assert f"one model until step {opens:,d}" in words


def test_norm_correlation_is_unclear_on_every_source():
    verdicts = papers.kept("compare.json")["verdicts"]
    found = [v["met"] for v in verdicts if "first in norm_correlation" in v["claim"]]
    assert found == 4 * [None]
    mapped = papers.content()["ac_lam"]
    for words in (mapped["equation"][8]["words"], mapped["equation"][11]["words"]):
        assert "open on all four sources" in words


def test_a_number_of_ours_is_never_typed():
    """What is left when the papers' own numbers and counts of things are taken away has no decimals."""
    cited = r"paper|\(0\.\d+ (to|and) 0\.\d+|0\.\d+ and 0\.\d+ in the paper"
    for name, (*_, row) in zip(NAMES, ROWS, strict=True):
        for sentence in re.split(r"[;:]", row["words"]):
            assert not re.search(r"\d\.\d", sentence) or re.search(cited, sentence), name


def test_a_number_of_a_paper_stands_in_its_table():
    """The decimals that are typed in verdicts are those of the papers' tables in the package."""
    means = [value for row in grid_table.PAPER.values() for value, _ in filter(None, row)]
    tables = {
        ("linear", "table", "1"): means,
        ("ac_lam", "table", "1"): [x for rows in PAPER_TABLE_1.values() for x in rows["AC-LAM"]],
        ("ac_lam", "table", "5"): [x for *pair, _ in ablation.PAPER.values() for x in pair],
    }
    for *entry, row in ROWS:
        typed = {float(x) for x in re.findall(r"\d\.\d+", row["words"])}
        assert typed <= set(tables.get(tuple(entry), [])), entry


def test_counts_in_words_are_those_of_the_results():
    said = papers.content()
    rows = papers.kept("grid_table.json")["table"]
    trained = {rows[name]["controllable"]["trainings"] for name in grid_table.PAPER}
    assert trained == {5} and "five seeds" in said["linear"]["table"][1]["words"]

    seeds = [run["seeds"]["demonstrations"] for run in papers.kept("seeds.json")["runs"]]
    of_seeds = "seeds S = 0, 1 and 2"
    assert seeds == [0, 1, 2]
    assert all(of_seeds in said["ac_lam"]["figure"][n]["words"] for n in (1, 5))

    compared = papers.kept("compare.json")
    sources = set(compared["table_1"]) - set(compared["ood"])
    of_table_2 = [v for v in compared["verdicts"] if v["claim"].startswith("environment probe")]
    words = said["ac_lam"]["table"][1]["words"]
    assert len(sources) == 3 and "on our three sources" in words
    assert len(of_table_2) == 2 and "two of the goals belong to Table 2" in words

    looks = {policy["seed"] for policy in papers.kept("policy.json")["looks"]["policies"]}
    assert looks == {0} and "one seed" in said["ac_lam"]["table"][4]["words"]
    assert "each of the 28 rows" in said["ac_lam"]["table"][6]["words"]
    assert len([r for r in map(load_recipe, recipe_names()) if r.table6_row]) == 28


def test_wrong_rows_are_noticed():
    with pytest.raises(LookupError):
        papers.number({"file": "linear_figure_3.csv", "where": {"panel": "9"}, "at": "llo"})
    with pytest.raises(KeyError):
        papers.number({"file": "compare.json", "at": ["table_1", "nowhere"]})
    designs = ["IDM, no stop, seed 0", "FDM, pre-VQ, seed 0"]
    said = {"file": "table5_preset.json", "at": ["rows"], "keys": designs, "then": ["stability"]}
    with pytest.raises(ValueError):
        papers.number(said)  # two words, and no mean of them
    assert not command_exists("aclam-linear --no-such-option")
    assert not command_exists("aclam-structure no_such_thing")
    assert not command_exists("aclam-nothing")


def test_the_saved_page_has_the_numbers_of_the_results():
    """The notebook shows on GitHub what the kept results say now."""
    saved = json.dumps(cells("paper_map"), ensure_ascii=False)
    stale = [n for n, (*_, row) in zip(NAMES, ROWS, strict=True) if papers.words(row) not in saved]
    assert not stale, f"run nbdev-test nbs/paper_map.ipynb --save: {stale}"


def drawn(chapter: str, cell: str) -> str:
    outputs = cells(chapter)[cell]["outputs"]
    return "".join("".join(o.get("data", {}).get("image/svg+xml", "")) for o in outputs)


@pytest.mark.parametrize(
    ("chapter", "cell", "words"),
    [
        ("1_linear/model", "lindraw1", ["Linear LAM", ">A<", ">B<", ">C<", ">D<", "2 x 6"]),
        ("4_lam/model", "lamdraw1", ["IDM", "VQ", "FDM", "the AC loss", 'class="ik"']),
        ("4_lam/model", "waydraw2", ["triples", "15 x 16 x 2"]),
        ("6_policy/attention_mask", "poldraw1", ["VLM", "latent expert", "robot expert"]),
        ("3_data/overview", "datdraw1", ["open_dataset", "TripleDataset", "trajectory.ipynb"]),
    ],
)
def test_drawings_show_what_they_name(chapter, cell, words):
    svg = drawn(chapter, cell)
    assert all(word in svg for word in words)


def test_three_ways_of_the_sizes_that_were_promised():
    read = ways.read_ways()
    assert [len(read[name]["chapters"]) for name in ("understand", "build", "use")] == [6, 6, 4]
    for way in read.values():
        assert all(1 < ways.minutes(path) < 45 for path in way["chapters"])
        assert not set(way["then"]) & set(way["chapters"])


def test_what_leads_on_from_a_way_is_offered_with_its_minutes():
    for way in ways.read_ways().values():
        for path in way["then"]:
            minutes = f"{round(ways.minutes(path))} min"
            assert f"({ways.relative(path)}), {minutes} ({way['then'][path]})" in ways.sections()


def test_a_way_is_read_in_the_order_of_the_book_within_a_room():
    order = [path for _, notebooks in ways.chapters() for path in notebooks]
    for name in ("understand", "build"):
        places = [order.index(path) for path in ways.read_ways()[name]["chapters"]]
        assert places == sorted(places), name


def test_what_the_book_was_is_what_the_commit_holds():
    kept = json.loads((ROOT / "site" / "before.json").read_text(encoding="utf-8"))
    try:
        book_counts.git("cat-file", "-e", kept["commit"])
    except subprocess.CalledProcessError:
        pytest.skip("a clone without its history")
    assert book_counts.before(kept["commit"]) == kept


def test_the_size_of_the_book_is_counted_by_hand():
    cells = [("markdown", "two words, $x$"), ("code", "#| export\nx = 1\n\ny = 2"), ("code", "x")]
    notebook = {"cells": [{"cell_type": kind, "source": text} for kind, text in cells]}
    counted = ways.size([notebook, {"cells": []}])
    assert counted == {"chapters": 2, "words": 2, "lines": 4, "exported": 3}
    table = ways.size_table()
    now = ways.size_now()
    assert f"| {now['chapters']} |" in table and ways.rounded(now["words"]) in table


def test_minutes_follow_the_files(tmp_path):
    def book(*sources):
        cells = [{"cell_type": kind, "source": text} for kind, text in sources]
        path = tmp_path / "a.ipynb"
        path.write_text(json.dumps({"cells": cells}))
        return ways.minutes(path)

    assert book(("markdown", "word " * 400)) == pytest.approx(2)
    assert book(("code", "x = 1\n" * 60)) == pytest.approx(2)
    assert book(("code", "#| hide\n" + "x = 1\n" * 60)) == 0
    assert book(("markdown", "$$\nx\n$$\n" * 3)) == pytest.approx(1)


def test_the_map_links_every_lesson_and_stars_the_core():
    svg = ways.chapter_map().svg()
    for room, notebooks in ways.chapters():
        lessons = notebooks[:1] if room.get("part") else notebooks
        assert all(f'href="{ways.relative(path)}"' in svg for path in lessons)
        assert set(room.get("core", ())) <= {path.stem for path in notebooks}
    rooms = {room["room"] for room, _ in ways.chapters()}
    needs = {need for room, _ in ways.chapters() for need in room.get("needs", ())}
    assert needs <= rooms


def repositories(page: str) -> dict[str, str]:
    """The tables of a page: a repository on GitHub, and the commit beside it."""
    cells = json.loads((ROOT / "nbs" / page).read_text(encoding="utf-8"))["cells"]
    prose = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    row = r"^\| \[[^\]]+\]\(https://github\.com/([\w/-]+)\) (?:\| )?(`[0-9a-f]{7}`|not recorded)"
    return dict(re.findall(row, prose, re.M))


def test_the_page_of_sources_has_the_commit_of_each_repository():
    text = (ROOT / "nbs/sources.ipynb").read_text(encoding="utf-8")
    rows = re.findall(r"^ *\"\| \[[\w/-]+\]\(https://github\.com/([\w/-]+)\)", text, re.M)
    read = repositories("sources.ipynb")
    assert len(rows) > 10 and set(rows) == set(read)
    compared = repositories("index.ipynb")
    both = read.keys() & compared.keys()
    assert {"microsoft/villa-x", "Mark-zjtang/ALAM"} <= both
    assert all(read[name] == compared[name] for name in both)


def test_references_are_read_whole():
    found = references.entries()
    assert len(found) == references.text().count("@")
    assert all({"title", "author", "year"} <= set(entry) for entry in found)
    numbers = [entry["eprint"] for entry in found if "eprint" in entry]
    assert all(re.fullmatch(r"\d{4}\.\d{5}", number) for number in numbers)
    assert len(numbers) == len(set(numbers))
    assert all(entry["title"] in references.listed() for entry in found)
