"""Notebooks to Markdown: the one converter behind README.md and the web site."""

import base64
import json
import re
from collections.abc import Callable, Collection
from pathlib import Path

import yaml
from markup import captioned, is_chart, with_caption

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"

INSTALL = "# Where aclam is missing, as on Colab"  # a cell that no reader of a page needs

SaveImage = Callable[
    [str, bytes], str
]  # (file name, content) -> the address to write into the page


def chapters(nbs: Path = NBS) -> list[tuple[dict, list[Path]]]:
    """Rooms in reading order, each with its notebooks that exist; those not named in chapters.yml
    come last in the last room of their folder.
    """
    rooms = yaml.safe_load((ROOT / "site" / "chapters.yml").read_text(encoding="utf-8"))
    last = {room["folder"]: i for i, room in enumerate(rooms)}
    named = {nbs / room["folder"] / f"{n}.ipynb" for room in rooms for n in room["notebooks"]}
    found = []
    for i, room in enumerate(rooms):
        folder = nbs / room["folder"]
        there = [p for n in room["notebooks"] if (p := folder / f"{n}.ipynb").exists()]
        if last[room["folder"]] == i:
            others = set(folder.glob("*.ipynb")) - named - {nbs / "index.ipynb"}
            there += sorted(others)
        if there:
            found.append((room, there))
    return found


def title_and_subtitle(notebook: Path) -> tuple[str, str]:
    """The first heading and the line below it."""
    source = "".join(json.loads(notebook.read_text(encoding="utf-8"))["cells"][0]["source"])
    match = re.match(r"# (.+)\n+(?:> (.+))?", source)
    return (match.group(1), match.group(2) or "") if match else (notebook.stem, "")


def directives(source: str) -> dict[str, str]:
    """`{'export': '', 'eval': 'false'}` from the lines that begin with `#|`."""
    found = re.findall(r"^#\|\s*([\w-]+):?\s*(.*)$", source, re.M)
    return {name: value.strip() for name, value in found}


def to_markdown(
    notebook: dict,
    name: str,
    save_image: SaveImage,
    text: Callable[[str], str] = str,
    module: str = "",
    anchors: Collection[str] = (),
) -> str:
    """One page: texts as they are, code without its directives, outputs below it.

    A picture of a cell with `#| fig-cap:` has these words below it, with its number on the page.
    `notebook` is the parsed file, `name` the prefix of its image files; `text` may rewrite a text
    cell. With `module`, the cells that are exported carry its name as a title, as MkDocs Material
    understands it. Cells whose ids are in `anchors` can be linked to, as `#cell-ID`.
    """
    parts = []
    figures = 0
    shows = ""
    for i, cell in enumerate(notebook["cells"]):
        source = "".join(cell["source"])
        said = directives(source) if cell["cell_type"] == "code" else {}
        if "hide" in said or cell["cell_type"] == "raw" or INSTALL in source:
            continue
        if cell.get("id") in anchors:
            parts.append(f'<div id="cell-{cell["id"]}"></div>')
        if cell["cell_type"] == "markdown":
            parts.append(text(source))
            shows = _last_heading(source) or shows
            continue
        parts.append(_code(source, said, module))
        # what a picture shows, for those who cannot see it
        alt = said.get("fig-alt", shows)
        found = [
            _output(output, f"{name}-{i}-{j}", save_image, alt)
            for j, output in enumerate(cell["outputs"])
        ]
        if "fig-cap" in said and any(words.startswith("![") for words in found):
            figures += 1
            found = with_caption(found, f"Figure {figures}. {said['fig-cap']}")
        parts += found
    return "\n\n".join(p for p in parts if p) + "\n"


def _code(source: str, said: dict[str, str], module: str) -> str:
    body = re.sub(r"^#\|.*\n?", "", source, flags=re.M).strip("\n")
    if not body or said.get("echo") == "false":
        return ""
    title = (
        f' title="{module}"' if module and said.keys() & {"export", "exports", "exporti"} else ""
    )
    return f"```python{title}\n{body}\n```"


def _last_heading(source: str) -> str:
    """The words of the last heading of a text, for readers who cannot see the figures below it."""
    headings = re.findall(r"^#+ (.+)$", source, re.M)
    return re.sub(r"[^\w ,.:?'-]", "", headings[-1]).strip() if headings else ""


def _output(output: dict, name: str, save_image: SaveImage, shows: str = "") -> str:
    """One output: Markdown and HTML as they are, a picture as a file, text in a fence."""
    if output["output_type"] == "stream":
        return _fence("".join(output["text"])) if output["name"] == "stdout" else ""
    data = output.get("data", {})
    for kind, suffix in (("image/png", "png"), ("image/jpeg", "jpg"), ("image/svg+xml", "svg")):
        if kind in data:
            content = "".join(data[kind])
            if 'class="drawing' in content:
                return captioned(content)
            raw = content.encode() if suffix == "svg" else base64.b64decode(content)
            look = "{.chart}" if suffix == "png" and is_chart(raw) else ""
            return f"![{'figure: ' + shows if shows else 'output'}]({save_image(f'{name}.{suffix}', raw)}){look}"
    if "text/markdown" in data:
        return "".join(data["text/markdown"]).strip()
    if "text/html" in data:
        return "".join(data["text/html"]).strip()
    return _fence("".join(data.get("text/plain", "")))


def _fence(text: str) -> str:
    text = re.sub(r"\x1b\[[0-9;]*m", "", text).rstrip()
    return f"```text\n{text}\n```" if text else ""
