"""The converter behind README.md and the web site."""

import base64

import build
import convert
import pytest

PIXEL = base64.b64encode(b"a picture").decode()


def code(source, *outputs):
    return {"cell_type": "code", "source": source, "outputs": list(outputs)}


def text(source):
    return {"cell_type": "markdown", "source": source}


@pytest.fixture
def page():
    """Convert cells; the images that were saved come second."""

    def convert_cells(*cells, **options):
        saved = {}

        def save(name, content):
            saved[name] = content
            return f"pictures/{name}"

        return convert.to_markdown({"cells": list(cells)}, "nb", save, **options), saved

    return convert_cells


def stream(words, name="stdout"):
    return {"output_type": "stream", "name": name, "text": [words]}


def shown(**data):
    return {
        "output_type": "display_data",
        "data": {k.replace("_", "/"): v for k, v in data.items()},
    }


def test_texts_stay_and_code_loses_its_directives(page):
    got, _ = page(
        text("# T\n\n$x$"), code("#| export\ndef f():\n    return 1"), code("f()", stream("1\n"))
    )
    assert (
        got
        == "# T\n\n$x$\n\n```python\ndef f():\n    return 1\n```\n\n```python\nf()\n```\n\n```text\n1\n```\n"
    )


def test_exported_code_carries_its_module(page):
    got, _ = page(code("#| export\nx = 1"), code("x"), module="aclam.core")
    assert got == '```python title="aclam.core"\nx = 1\n```\n\n```python\nx\n```\n'


@pytest.mark.parametrize(
    "cell", [code("#| hide\nx = 1", stream("no")), code("#| default_exp core"), code("")]
)
def test_what_is_hidden_is_absent(page, cell):
    assert page(cell) == ("\n", {})


def test_echo_false_keeps_the_output_only(page):
    assert page(code("#| echo: false\nx", stream("yes")))[0] == "```text\nyes\n```\n"


def test_pictures_become_files_and_markdown_stays(page):
    got, saved = page(
        code("x", shown(image_png=PIXEL, text_plain="<Figure>"), shown(text_markdown=["| a |"]))
    )
    assert got == "```python\nx\n```\n\n![output](pictures/nb-0-0.png)\n\n| a |\n"
    assert saved == {"nb-0-0.png": b"a picture"}


def test_a_picture_is_told_by_its_heading(page):
    got, _ = page(text("## What $x$ does\n\nWords."), code("x", shown(image_png=PIXEL)))
    assert "![figure: What x does](pictures/nb-1-0.png)" in got


def test_a_picture_says_what_it_shows(page):
    got, _ = page(code("#| fig-alt: A line falls\nx", shown(image_png=PIXEL)))
    assert got == "```python\nx\n```\n\n![figure: A line falls](pictures/nb-0-0.png)\n"


def test_figures_have_numbers_and_captions(page):
    one = code("#| fig-cap: It < falls\n#| fig-alt: A line\nx", shown(image_png=PIXEL), stream("3"))
    two = code("#| fig-cap: It rises\nx", shown(image_png=PIXEL), shown(image_png=PIXEL))
    got, _ = page(one, code("#| fig-cap: nothing to see\nx", stream("4")), two)
    assert got.count("<figure markdown>") == 2
    below = '\n<figcaption markdown="span">'
    assert f"![figure: A line](pictures/nb-0-0.png){below}Figure 1. It &lt; falls<" in got
    assert f"nb-2-1.png){below}Figure 2. It rises</figcaption>" in got


def test_progress_bars_and_colours_are_left_out(page):
    got, _ = page(code("x", stream("50%|##", "stderr"), stream("\x1b[31mred\x1b[0m")))
    assert got == "```python\nx\n```\n\n```text\nred\n```\n"


def test_every_notebook_is_in_the_book_once():
    listed = [p for _, notebooks in convert.chapters() for p in notebooks]
    there = [
        p
        for p in convert.NBS.rglob("*.ipynb")
        if ".ipynb_checkpoints" not in p.parts and p.name != "index.ipynb"
    ]
    assert sorted(listed) == sorted(there)


KNOWN = {
    "suggest": {"aclam.core": "aclam.core.suggest"},
    "f": {"aclam.a": "aclam.a.f", "aclam.b": "aclam.b.f"},
    "step": {"aclam.b": "aclam.b.step", "aclam.a.Env": "aclam.a.Env.step"},
    "look": {"aclam.a.Env": "aclam.a.Env.look"},
    "recipe": {"aclam.b": "aclam.b.recipe"},
    **{module: {module: module} for module in ("aclam.core", "aclam.a", "aclam.b")},
    "aclam.data.recipe": {"aclam.data.recipe": "aclam.data.recipe"},
}


@pytest.mark.parametrize(
    ("given", "want"),
    [
        ("see `suggest`", "see [`suggest`](../api/aclam.core.md#aclam.core.suggest)"),
        (
            "see `aclam.core.suggest()`",
            "see [`aclam.core.suggest()`](../api/aclam.core.md#aclam.core.suggest)",
        ),
        ("`f` of this module", "[`f`](../api/aclam.a.md#aclam.a.f) of this module"),
        ("`nothing`", "`nothing`"),
        ("`step` of an environment", "`step` of an environment"),
        ("`look`", "`look`"),
        ("`Env.look`", "[`Env.look`](../api/aclam.a.md#aclam.a.Env)"),
        ("`b.step`", "[`b.step`](../api/aclam.b.md#aclam.b.step)"),
        ("`aclam.data.recipe`", "[`aclam.data.recipe`](../api/aclam.data.recipe.md)"),
        ("`elsewhere.recipe`", "`elsewhere.recipe`"),
        ("```\n`suggest`\n```", "```\n`suggest`\n```"),
        ("# `suggest`", "# `suggest`"),
        ("[`suggest`](x.md)", "[`suggest`](x.md)"),
    ],
)
def test_names_in_prose_link_to_the_reference(given, want):
    assert build.link_symbols(given, "aclam.a", "../", KNOWN) == want


def test_what_pages_say_of_others_is_not_linked_to_namesakes():
    known = build.symbols()
    for name, module in (("sample", "aclam.policy"), ("step", ""), ("nowhere.recipe", "")):
        assert build.page_of(name, module, known) == ""
    assert build.page_of("aclam.data.recipe", "", known) == "api/aclam.data.recipe.md"
    world = "api/aclam.linear.world.md#aclam.linear.world.sample"
    assert build.page_of("sample", "aclam.linear.world", known) == world
    policy = "api/aclam.policy.model.md#aclam.policy.model.Policy"
    assert build.page_of("Policy.sample", "", known) == policy


def test_a_name_of_two_other_modules_is_left_alone():
    assert build.link_symbols("`f`", "aclam.c", "", KNOWN) == "`f`"


@pytest.mark.parametrize(
    ("given", "want"),
    [
        ("[c](../0_core.ipynb#x)", "[c](../core.md#x)"),
        ("[m](model.ipynb)", "[m](model.md)"),
        ("![p](../images/p.png)", "![p](../images/p.png)"),
        ("[l](../../LICENSE)", f"[l]({build.REPOSITORY}LICENSE)"),
        ("[w](https://example.org/a.ipynb)", "[w](https://example.org/a.ipynb)"),
        ("[![Open in Colab](https://x/badge.svg)](https://y)", "[Open in Colab](https://y)"),
    ],
)
def test_links_follow_the_pages(given, want):
    assert build.rewrite_links(given, convert.NBS / "1_linear") == want


def test_a_module_in_the_reference_leads_to_its_chapter():
    line = "<p>A model.</p>\n<p>Docs: https://aclam-project.github.io/aclam/4_lam/model.html.md</p>"
    linked = build.link_chapter(line)
    assert '<a href="../4_lam/model.html">' in linked and "https://" not in linked


def test_a_table_that_was_printed_links_to_pages():
    table = "| a | [collapse](collapse.ipynb#why) |\n\n    x = f[0](y)\n"
    linked = build.link_outputs(table, build.NBS / "symptoms")
    assert "[collapse](collapse.md#why)" in linked and "f[0](y)" in linked
