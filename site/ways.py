"""Ways into the book: minutes of reading from the files, three short ways, and a map of all chapters."""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import yaml
from convert import NBS, ROOT, chapters, directives, title_and_subtitle

from aclam.drawing import Drawing, width_of

WORDS, LINES, FORMULAS = 200, 30, 3  # read in a minute: of prose, of code, displayed
WIDTH, ROW, SIZE = 360, 25, 11.5  # of the map, in pixels: a phone shows it as it is

Href = Callable[[Path], str]  # the address that a notebook is linked to


def words_in(source: str) -> int:
    """The words of a cell of prose; letters of formulas are none."""
    return len(re.findall(r"[^\W\d_]{2,}", source))


def lines_in(source: str) -> int:
    """The lines of a cell of code that are not empty."""
    return sum(bool(line.strip()) for line in source.splitlines())


def minutes(notebook: Path) -> float:
    """How long a chapter takes to read: its prose, its code and its displayed formulas."""
    words, lines, formulas = 0, 0, 0.0
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            formulas += source.count("$$") / 2
            words += words_in(source)
        elif cell["cell_type"] == "code" and not {"hide", "eval"} & directives(source).keys():
            lines += lines_in(source)
    return words / WORDS + lines / LINES + formulas / FORMULAS


def read_ways(nbs: Path = NBS) -> dict[str, dict]:
    """`{"first": {...}, "understand": {...}, ...}`, each with the paths of its chapters that exist."""
    said = yaml.safe_load((ROOT / "site" / "ways.yml").read_text(encoding="utf-8"))
    found = {}
    for name, way in {"first": said["first"], **said["ways"]}.items():
        paths = [nbs / f"{chapter}.ipynb" for chapter in way["chapters"]]
        then = {nbs / f"{chapter}.ipynb": why for chapter, why in way.get("then", {}).items()}
        found[name] = way | {
            "chapters": [p for p in paths if p.exists()],
            "then": {path: why for path, why in then.items() if path.exists()},
        }
    return found


def relative(notebook: Path) -> str:
    """From a notebook at the top of nbs/, as the start page is."""
    return notebook.relative_to(NBS).as_posix()


# --- the ways as a list ---------------------------------------------------------------------------


def total(notebooks: Iterable[Path]) -> int:
    """Minutes of several chapters, to the next five."""
    return 5 * max(1, round(sum(map(minutes, notebooks)) / 5))


def way_section(way: dict) -> str:
    """One way: a heading with its minutes, and its chapters with theirs."""
    listed = way["chapters"]
    lines = [
        f"### {way['title']}: {len(listed)} chapters, about {total(listed)} minutes",
        "",
        f"{way['about']}.",
        "",
    ]
    for i, path in enumerate(listed, 1):
        title, subtitle = title_and_subtitle(path)
        read = max(1, round(minutes(path)))
        lines.append(f"{i}. [{title}]({relative(path)}), {read} min. {subtitle}")
    return "\n".join([*lines, *then_lines(way["then"])])


def then_lines(then: dict[Path, str]) -> list[str]:
    """What leads on from the end of a way, with minutes; empty where nothing does."""
    if not then:
        return []
    found = []
    for path, why in then.items():
        title = title_and_subtitle(path)[0]
        found.append(f"[{title}]({relative(path)}), {round(minutes(path))} min ({why})")
    return ["", f"Then: {'; '.join(found)}."]


def first_section(way: dict) -> str:
    """The lessons to begin with; empty where there are none."""
    if not way["chapters"]:
        return ""
    lines = ["### First lessons", "", f"For {way['about']}.", ""]
    for path in way["chapters"]:
        title, subtitle = title_and_subtitle(path)
        lines.append(f"- [{title}]({relative(path)}), {round(minutes(path))} min. {subtitle}")
    return "\n".join(lines)


def sections() -> str:
    """All of it as Markdown."""
    ways = read_ways()
    parts = [first_section(ways.pop("first"))]
    parts += [way_section(way) for way in ways.values()]
    return "\n\n".join(part for part in parts if part)


# --- how large the book is ------------------------------------------------------------------------

SIZES = {  # what is counted, and how a table calls it
    "chapters": "chapters",
    "words": "words of prose",
    "lines": "lines of code",
    "exported": "of these in the package",
}


def size(notebooks: Iterable[dict]) -> dict[str, int]:
    """Chapters, words of prose, lines of code, and how many of these are exported."""
    found = dict.fromkeys(SIZES, 0)
    for notebook in notebooks:
        found["chapters"] += 1
        for cell in notebook["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "markdown":
                found["words"] += words_in(source)
            elif cell["cell_type"] == "code":
                found["lines"] += lines_in(source)
                found["exported"] += lines_in(source) * ("export" in directives(source))
    return found


def size_now() -> dict[str, int]:
    """The size of the book as it lies here."""
    paths = [path for _, notebooks in chapters() for path in notebooks]
    return size(json.loads(path.read_text(encoding="utf-8")) for path in paths)


def rounded(count: int) -> str:
    """A count for a page: to the hundred, but small ones as they are."""
    return f"{round(count, -2):,d}" if count > 1000 else str(count)


def size_table() -> str:
    """How large the book was when its readers had no entrance, and how large it is."""
    before = json.loads((ROOT / "site" / "before.json").read_text(encoding="utf-8"))
    now = size_now()
    head = f"| | {before['date']} (`{before['commit']}`) | now |"
    rows = [f"| {SIZES[key]} | {rounded(before[key])} | {rounded(now[key])} |" for key in SIZES]
    return "\n".join([head, "|---|---:|---:|", *rows])


def for_pages(href: Href) -> dict[str, dict]:
    """What the pages need so that "Next" follows a way: titles and addresses."""
    found = {}
    for name, way in read_ways().items():
        if name != "first":
            pages = [[title_and_subtitle(p)[0], href(p)] for p in way["chapters"]]
            found[name] = {"title": way["title"], "pages": pages}
    return found


# --- the map --------------------------------------------------------------------------------------


def rows_of(labels: list[tuple[str, str]], room: float) -> list[list[tuple[str, str, float]]]:
    """Chips of labels with their links, laid out line by line in a given width."""
    rows: list[list[tuple[str, str, float]]] = [[]]
    used = 0.0
    for label, link in labels:
        wide = width_of(label, SIZE) + 14
        if used + wide > room and rows[-1]:
            rows.append([])
            used = 0.0
        rows[-1].append((label, link, wide))
        used += wide + 5
    return rows


def shorter(label: str, most: float) -> str:
    """The label, cut so that its chip is at most so wide."""
    while width_of(label, SIZE) + 14 > most:
        label = label.removesuffix("…")[:-1].rstrip() + "…"
    return label


def chips(room: dict, notebooks: list[Path], href: Href) -> list[tuple[str, str]]:
    """The labels of a room on the map; of the workshop, one for the whole room."""
    if room.get("part"):
        return [(f"{len(notebooks)} chapters", href(notebooks[0]))]
    stars = room.get("core", ())
    labels = []
    for path in notebooks:
        star = "★ " * (path.stem in stars)
        labels.append((shorter(star + title_and_subtitle(path)[0], WIDTH - 40), href(path)))
    return labels


def draw_arcs(drawing: Drawing, rooms: list[dict], tops: dict[str, float]) -> None:
    """A line at the left from each room to those that build on it."""
    for room in rooms:
        for i, need in enumerate(room.get("needs", ())):
            start, end = tops[need] + 16, tops[room["room"]] + 10
            across = 18 - min(14, 2 + abs(end - start) / 75) + i
            drawing.arrow([(24, start), (across, start), (across, end), (24, end)])


def chapter_map(href: Href = relative) -> Drawing:
    """Every room and lesson as a link: core chapters starred, arrows from what a room builds on."""
    rooms = [(room, chips(room, notebooks, href)) for room, notebooks in chapters()]
    laid = [(room, rows_of(labels, WIDTH - 36)) for room, labels in rooms]
    height = sum(30 + ROW * len(rows) for _, rows in laid) + 40
    drawing = Drawing(WIDTH, height, "Map of the chapters", "Links to every chapter.", tap=False)
    tops: dict[str, float] = {}
    y = 6.0
    for room, rows in laid:
        if room.get("part") and not any(r.get("part") for r, _ in laid[: len(tops)]):
            drawing.text(28, y + 18, room["part"], 15, "start", bold=True)
            y += 28
        tops[room["room"]] = y
        drawing.text(28, y + 18, room["room"], 13, "start", bold=True)
        y = draw_rows(drawing, rows, y + 24) + 6
    draw_arcs(drawing, [room for room, _ in laid], tops)
    return drawing


def draw_rows(drawing: Drawing, rows: list, y: float) -> float:
    """The chips of a room from `y` on; where the next room may begin."""
    for row in rows:
        x = 28.0
        for label, link, wide in row:
            kind = "jk" if label.startswith("★") else "box"
            drawing.box(x, y, wide, ROW - 4, label, kind, SIZE, link)
            x += wide + 5
        y += ROW
    return y
