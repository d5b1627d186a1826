"""The book as a web site that needs no network: notebooks to Markdown, MkDocs Material, KaTeX.

    python site/build.py        writes _docs/site/index.html

KaTeX and a small polyfill come from npm at build time; nothing third-party is in the repository.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import papers
import play
import yaml
from convert import NBS, ROOT, chapters, title_and_subtitle, to_markdown
from markup import fold_code, fold_proofs, fold_solutions, link_drawings, theorems
from readme import run
from ways import for_pages

WORK = ROOT / "_docs"
FRESH = (
    "index",
    "start",
    "paper_map",
    "symbols",
    "references",
)  # run for the site, as they read the whole book
DOCS = WORK / "pages"
VENDOR = WORK / "vendor"
REPOSITORY = "https://github.com/aclam-project/aclam/blob/main/"
FETCHED = (
    r'<(?:script|img|iframe|source)[^>]*\ssrc="https?:[^>]*|<link[^>]*stylesheet[^>]*"https?:[^>]*'
)
PACKAGES = {"katex": "0.19.1", "iframe-worker": "1.0.4"}  # npm packages, exact


# --- what comes from npm --------------------------------------------------------------------------


def vendor() -> None:
    """Unpack the npm packages into _docs/vendor/<name>, once."""
    for name, version in PACKAGES.items():
        folder = VENDOR / f"{name}-{version}"
        if folder.exists():
            continue
        if not shutil.which("npm"):
            raise SystemExit(
                "the book needs npm (Node.js) to fetch KaTeX: install it, or read the notebooks"
            )
        VENDOR.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--silent", f"{name}@{version}"]
        done = subprocess.run(command, cwd=VENDOR, text=True, capture_output=True)
        if done.returncode:
            raise SystemExit(
                f"npm could not fetch {name} {version}: {done.stderr.strip().splitlines()[-1:]}"
            )
        archive = VENDOR / done.stdout.split()[-1]
        with tarfile.open(archive) as tar:
            tar.extractall(VENDOR / "unpacked", filter="data")
        (VENDOR / "unpacked" / "package").rename(folder)
        archive.unlink()


def copy_assets() -> None:
    """KaTeX (script, style, woff2 fonts) and our own few lines."""
    katex, target = VENDOR / f"katex-{PACKAGES['katex']}" / "dist", DOCS / "vendor" / "katex"
    (target / "fonts").mkdir(parents=True)
    for name in ("katex.min.js", "katex.min.css", "contrib/auto-render.min.js"):
        shutil.copy(katex / name, target)
    for font in (katex / "fonts").glob("*.woff2"):
        shutil.copy(font, target / "fonts")
    for name in ("book.js", "book.css"):
        shutil.copy(ROOT / "site" / name, DOCS / "vendor")
    ways = for_pages(lambda notebook: address(notebook).with_suffix(".html").as_posix())
    script = f"const WAYS = {json.dumps(ways, ensure_ascii=False)}\n"
    (DOCS / "vendor" / "ways.js").write_text(script, encoding="utf-8")


# --- pages ----------------------------------------------------------------------------------------


def symbols() -> dict[str, dict[str, str]]:
    """`{'suggest': {'aclam.core': 'aclam.core.suggest'}}`: the public names, from nbdev's index.

    A method is known by its class, `{'act': {'aclam.policy.model.Policy': ...}}`, and a module by
    itself.
    """
    tree = ast.parse((ROOT / "aclam" / "_modidx.py").read_text(encoding="utf-8"))
    found: dict[str, dict[str, str]] = {}
    for module, names in ast.literal_eval(tree.body[-1].value)["syms"].items():
        for full in names:
            home, _, short = full.rpartition(".")
            if short.startswith("_"):
                continue
            found.setdefault(short, {})[home] = full
            if home == module:
                found.setdefault(module, {})[module] = module
    return found


def modules_of(known: dict[str, dict[str, str]]) -> set[str]:
    """The modules among what is known."""
    return {name for name, homes in known.items() if homes.get(name) == name}


def page_of(name: str, module: str, known: dict[str, dict[str, str]]) -> str:
    """Where the reference explains `name` to a reader of `module`; '' where that is in doubt.

    A name in full, or with the end of its module's or class's, is one thing. A bare one is the
    module's own, or else what has this name in one place only, be it a function or a method.
    """
    modules = modules_of(known)
    if name in modules:
        return f"api/{name}.md"
    *before, short = name.split(".")
    homes = known.get(short, {})
    if before:
        end = ".".join(["", *before])
        fits = [home for home in homes if f".{home}".endswith(end)]
    else:
        fits = [module] if module in homes else list(homes)
    if len(fits) != 1:
        return ""
    (home,) = fits
    if home in modules:
        return f"api/{home}.md#{homes[home]}"
    owner = home.rpartition(".")[0]
    is_named = bool(before) and owner in modules  # a method, and the class that has it
    return f"api/{owner}.md#{home}" if is_named else ""


def link_symbols(text: str, module: str, up: str, known: dict[str, dict[str, str]]) -> str:
    """Turn `name` in prose into a link to its page in the reference; fences, headings and links are
    left alone.
    """

    def link(match: re.Match) -> str:
        page = page_of(match.group(1).removesuffix("()"), module, known)
        return f"[{match.group(0)}]({up}{page})" if page else match.group(0)

    parts = re.split(r"(^```.*?^```|^#.*?$|\[[^\]]*\]\([^)]*\))", text, flags=re.M | re.S)
    return "".join(
        p if i % 2 else re.sub(r"(?<!`)`([\w.]+(?:\(\))?)`(?!`)", link, p)
        for i, p in enumerate(parts)
    )


def address(notebook: Path) -> Path:
    """Where a notebook's page is, from the site's root: as nbdev names it in docstrings, without
    the file's number.
    """
    return notebook.relative_to(NBS).with_name(re.sub(r"^\d+[a-z]?_", "", notebook.stem) + ".md")


def rewrite_links(text: str, folder: Path) -> str:
    """Notebooks become pages; files outside nbs/ become links to the repository; the Colab badge
    becomes words.
    """
    text = re.sub(r"\[!\[Open in Colab\]\([^)]*\)\]", "[Open in Colab]", text)

    def link(match: re.Match) -> str:
        path, _, anchor = match.group(1).partition("#")
        full = (folder / path).resolve()
        if full.suffix == ".ipynb" and full.is_relative_to(NBS):
            path = Path(os.path.relpath(address(full), folder.relative_to(NBS))).as_posix()
        if full.is_relative_to(NBS):
            return f"]({path}{'#' + anchor if anchor else ''})"
        return f"]({REPOSITORY}{full.relative_to(ROOT).as_posix()})"

    return re.sub(r"\]\((?!https?:|#|mailto:)([^)\s]+)\)", link, text)


def link_outputs(body: str, folder: Path) -> str:
    """Links to notebooks that are still there: those of tables that a cell has printed."""
    to_notebook = r"\]\((?!https?:)[^)\s]+\.ipynb(?:#[^)\s]*)?\)"
    return re.sub(to_notebook, lambda found: rewrite_links(found[0], folder), body)


def is_lesson(room: dict) -> bool:
    """Whether long library code folds in a room: not where it is what the chapter is about."""
    return not room.get("part") and room.get("code") != "open"


def page(notebook: Path, known: dict[str, dict[str, str]], lesson: bool = False) -> str:
    """Write the page of one notebook; its address within the site. A lesson folds library code."""
    inside = address(notebook)
    target = DOCS / inside
    target.parent.mkdir(parents=True, exist_ok=True)
    raw = notebook.read_text(encoding="utf-8")
    named = re.search(r'"#\| *default_exp ([\w.]+)', raw)
    module = f"aclam.{named.group(1)}" if named else ""

    def save_image(name: str, content: bytes) -> str:
        folder = target.with_suffix("")
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
        return f"{folder.name}/{name}"

    def text(markdown: str) -> str:
        up = "../" * (len(inside.parts) - 1)
        return link_symbols(rewrite_links(markdown, notebook.parent), module, up, known)

    fresh = notebook.parent == NBS and notebook.stem in FRESH
    nb = run(notebook) if fresh else json.loads(raw)
    mapped = papers.linked()
    body = to_markdown(nb, notebook.stem, save_image, text, module, mapped)
    if fresh:  # tables that are outputs have links too
        body = rewrite_links(body, notebook.parent)
    body = link_outputs(body, notebook.parent)
    body = link_drawings(body, address, notebook.parent, NBS)
    if notebook.stem != "index":
        body = fold_solutions(fold_proofs(theorems(body)))
    if lesson:
        body = fold_code(body)
    target.write_text(f"---\nsearch: {{boost: 3}}\n---\n\n{body}", encoding="utf-8")
    return inside.as_posix()


def reference(known: dict[str, dict[str, str]]) -> list[dict[str, str]]:
    """One page for each module, filled by mkdocstrings from the exported code."""
    (DOCS / "api").mkdir()
    modules = sorted(modules_of(known))
    for module in modules:
        (DOCS / "api" / f"{module}.md").write_text(
            f"---\nsearch: {{boost: 0.5}}\n---\n\n# {module}\n\n::: {module}\n",
            encoding="utf-8",
        )
    return [{module: f"api/{module}.md"} for module in modules]


DOCS_LINE = re.compile(r"<p>Docs: https?://[^\s<]+?/aclam/([^\s<]+?)\.html\.md</p>")


def link_chapter(page: str) -> str:
    """A page of the reference, on which a module's 'Docs: ADDRESS' is a link to its chapter."""
    link = r'<p><a href="../\1.html">The chapter that builds this module</a></p>'
    return DOCS_LINE.sub(link, page)


# --- the site -------------------------------------------------------------------------------------


def place(nav: list, room: dict) -> list:
    """Where a room belongs in the navigation: at the top, or in its part."""
    part = room.get("part")
    if not part:
        return nav
    for entry in nav:
        if part in entry:
            return entry[part]
    nav.append({part: []})
    return nav[-1][part]


def llms() -> str:
    """The book for a language model: one line a chapter, with the address of its Markdown."""
    lines = [
        "# aclam",
        "",
        "> Latent action models, taught and built in notebooks that are the package",
    ]
    for room, notebooks in chapters():
        part = f"{room['part']}: " if room.get("part") else ""
        lines += ["", f"## {part}{room['room']}", "", f"{room['about']}", ""]
        for notebook in notebooks:
            title, subtitle = title_and_subtitle(notebook)
            where = address(notebook).with_suffix(".html.md").as_posix()
            lines.append(f"- [{title}]({where}): {subtitle}")
    return "\n".join(lines) + "\n"


def configure(nav: list) -> Path:
    """mkdocs.yml with the navigation and the paths of this checkout."""
    config = yaml.safe_load((ROOT / "site" / "mkdocs.yml").read_text(encoding="utf-8"))
    options = {
        "docstring_style": None,
        "show_root_heading": False,
        "show_root_toc_entry": False,
        "heading_level": 2,
        "members_order": "source",
        "filters": ["!^_"],
        "show_source": True,
        "show_signature_annotations": True,
        "separate_signature": True,
    }
    python = {"paths": [str(ROOT)], "options": options}
    config["plugins"] = ["search", "offline", {"mkdocstrings": {"handlers": {"python": python}}}]
    config |= {"nav": nav, "docs_dir": str(DOCS), "site_dir": str(WORK / "site")}
    target = WORK / "mkdocs.yml"
    target.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return target


def render(config: Path) -> None:
    """Let MkDocs make the pages; a link that leads nowhere ends it with what MkDocs says of it."""
    command = [Path(sys.executable).with_name("mkdocs"), "build", "--config-file", config]
    done = subprocess.run(
        command,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode:
        said = [line for line in done.stdout.splitlines() if not line.startswith("INFO")]
        raise SystemExit("\n".join(said))


def make_offline(site: Path) -> None:
    """Replace the one script that the theme would fetch, then look for any other."""
    shim = VENDOR / f"iframe-worker-{PACKAGES['iframe-worker']}" / "shim" / "index.js"
    shutil.copy(shim, site / "vendor" / "iframe-worker.js")
    (site / "404.html").unlink(missing_ok=True)  # a server's page: its addresses begin at a root
    for html in site.rglob("*.html"):
        text = html.read_text(encoding="utf-8")
        up = "../" * (len(html.relative_to(site).parts) - 1)
        text = text.replace("https://unpkg.com/iframe-worker/shim", f"{up}vendor/iframe-worker.js")
        html.write_text(text, encoding="utf-8")
        outside = re.search(FETCHED, text)
        if outside:
            raise SystemExit(f"{html.relative_to(site)} needs the network: {outside.group(0)}")


def main() -> None:
    vendor()
    shutil.rmtree(DOCS, ignore_errors=True)
    DOCS.mkdir(parents=True)
    copy_assets()
    for images in NBS.rglob("images"):
        shutil.copytree(images, DOCS / images.relative_to(NBS))
    known = symbols()
    nav: list = [{"aclam": page(NBS / "index.ipynb", known)}]
    nav.append({"Playground": play.write_pages(DOCS)})
    for room, notebooks in chapters():
        lesson = is_lesson(room)
        pages = [{title_and_subtitle(n)[0]: page(n, known, lesson)} for n in notebooks]
        place(nav, room).append({room["room"]: pages})
    nav.append({"Reference": reference(known)})
    render(configure(nav))
    make_offline(WORK / "site")
    for html in (WORK / "site" / "api").glob("*.html"):
        html.write_text(link_chapter(html.read_text(encoding="utf-8")), encoding="utf-8")
    for markdown in DOCS.rglob(
        "*.md"
    ):  # module docstrings point to the text of a page at <page>.html.md
        shutil.copy(markdown, WORK / "site" / markdown.relative_to(DOCS).with_suffix(".html.md"))
    (WORK / "site" / "llms.txt").write_text(llms(), encoding="utf-8")
    print(f"the book: {(WORK / 'site' / 'index.html').relative_to(ROOT)}")


if __name__ == "__main__":
    main()
