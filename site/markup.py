"""What a page of the site has beyond its notebook: boxes around theorems, folded solutions, proofs and
library code, drawings that are links.
"""

import ast
import html
import io
import os
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path

from PIL import Image, UnidentifiedImageError

FENCE = re.compile(r"(^```.*?^```$)", re.M | re.S)
SOLUTIONS = re.compile(r"^(#{2,3}) Solutions?$", re.M)
NUMBERED = re.compile(r"(?:```python[^\n]*\n)?(?:#|\*\*|try:\s+#)?\s*(?:[Ee]xercise )?(\d+)[.:\s*]")
QUOTE = re.compile(r"^(?:>.*\n?)+", re.M)
NAMED = re.compile(r"\*\*(?P<name>[^*]+?)\.?\*\*\s*(?P<rest>.*)", re.S)


# --- theorems -------------------------------------------------------------------------------------


def slug(title: str) -> str:
    """`Proposition 4.1 (PCA)` has the anchor `proposition-4-1-pca`."""
    return re.sub(r"\W+", "-", title.lower()).strip("-")


def theorem(title: str, body: str) -> str:
    """A box with a title that can be linked to."""
    anchor = slug(title)
    link = f'<a class="headerlink" href="#{anchor}" title="Link to this">¶</a>'
    return (
        f'<div class="admonition theorem" id="{anchor}" markdown="1">\n'
        f'<p class="admonition-title">{title} {link}</p>\n\n{body}\n\n</div>\n'
    )


def theorems(text: str) -> str:
    """Quotations below the head of a page are claims: each becomes a box with a name and a number.

    A name with a number (Proposition 4.1, AC-1) is kept; the others are counted within the page.
    """
    count = 0

    def box(body: str) -> str:
        nonlocal count
        named = NAMED.match(body)
        title, rest = (named["name"], named["rest"]) if named else ("Claim", body)
        if not re.search(r"\d", title):
            count += 1
            title = re.sub(r"^([\w ]+?)(?= \(|$)", rf"\1 {count}", title, count=1)
        return theorem(title, rest) + "\n"

    def boxed(match: re.Match) -> str:
        body = re.sub(r"^> ?", "", match.group(0), flags=re.M).strip()
        return "".join(map(box, re.split(r"\n\n(?=\*\*[A-Z])", body)))

    head, parted, rest = text.partition("\n\n")  # the title; the line below it is no claim
    subtitle, mark, rest = rest.partition("\n\n")
    parts = FENCE.split(rest)
    done = [p if i % 2 else QUOTE.sub(boxed, p) for i, p in enumerate(parts)]
    return head + parted + subtitle + mark + "".join(done)


# --- solutions ------------------------------------------------------------------------------------


def blocks(section: str) -> list[str]:
    """Fences and paragraphs of a section, in order."""
    found = []
    for i, part in enumerate(FENCE.split(section)):
        found += [part] if i % 2 else re.split(r"\n{2,}", part.strip("\n"))
    return [block for block in found if block.strip()]


def folded(title: str, content: list[str], kind: str = "success") -> str:
    inside = "\n\n".join(content)
    return f'??? {kind} "{title}"\n\n' + re.sub(r"^(?=.)", "    ", inside, flags=re.M)


def fold_section(section: str) -> str:
    """The solutions of a section, each behind a line that opens it."""
    groups: list[tuple[str, list[str]]] = []
    for block in blocks(section):
        number = NUMBERED.match(block)
        if number or not groups:
            groups.append((f"Solution {number[1]}" if number else "Solution", []))
        groups[-1][1].append(block)
    return "\n\n".join(folded(title, content) for title, content in groups)


def fold_solutions(text: str) -> str:
    """Every section named Solutions, up to the next heading of its rank or above."""
    pieces, at = [], 0
    plain = FENCE.sub(lambda m: re.sub(r"\S", "x", m.group(0)), text)  # headings in code are none
    for heading in SOLUTIONS.finditer(plain):
        end = re.compile(rf"^#{{1,{len(heading[1])}}} ", re.M).search(plain, heading.end())
        stop = end.start() if end else len(text)
        pieces += [text[at : heading.end()], "\n\n", fold_section(text[heading.end() : stop])]
        pieces.append("\n\n")
        at = stop
    return "".join(pieces) + text[at:]


# --- proofs ---------------------------------------------------------------------------------------

# what Jupyter shows as it stands: a paragraph that begins with *Proof.*, up to the square
PROOF = re.compile(
    r"^\*(?P<title>(?:Proofs?|[^*\n]*\bproof\b[^*\n]*?)\.?)\*(?:(?!^#|^\*Proof).)*?\\square\s*\$+[ \t]*",
    re.M | re.S,
)
LONGEST = 15  # lines of a proof that stands open
WIDE = 100  # characters of a line on a page


def height(proof: str) -> int:
    """About how many lines of a page a proof takes, with those between paragraphs and displays."""
    lines = 0
    for i, part in enumerate(proof.split("$$")):
        if i % 2:
            lines += 3 + part.count(r"\\") + 2 * part.count("brace")
            continue
        paragraphs = re.split(r"\n{2,}", part.strip())
        lines += len(paragraphs) - 1
        for paragraph in paragraphs:
            letters = re.sub(r"\\[A-Za-z]+", "x", paragraph)  # a command is a letter or so
            lines += -(-len(re.sub(r"[{}$*\\]", "", letters)) // WIDE)
    return lines


def fold_proofs(text: str) -> str:
    """A long proof stays behind a line that opens it, between the claim and what follows from it."""

    def fold(match: re.Match) -> str:
        proof = match[0].rstrip()
        if height(proof) <= LONGEST:
            return match[0]
        return folded(match["title"].rstrip("."), [proof], "proof") + "\n\n"

    parts = FENCE.split(text)
    return "".join(p if i % 2 else PROOF.sub(fold, p) for i, p in enumerate(parts))


# --- library code ---------------------------------------------------------------------------------

# an exported cell, which has its module as a title, with the anchor before it if there is one
EXPORTED = re.compile(
    r'^(?:<div id="cell-\w+"></div>\n\n)?```python title="[^"\n]*"\n(?P<code>.*?)^```$', re.M | re.S
)
LONGEST_CODE = 12  # lines of library code that stand open in a lesson
MOST_NAMES = 6  # in the line that opens it


def defined(node: ast.stmt) -> list[str]:
    """The names that a statement gives: of a function, a class, constants; a patched method has its
    class's.
    """
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            patched = any(ast.unparse(d) == "patch" for d in node.decorator_list)
            owner = node.args.args[0].annotation if patched and node.args.args else None
            return [f"{ast.unparse(owner)}.{node.name}" if owner else node.name]
        case ast.ClassDef():
            return [node.name]
        case ast.Assign():
            return [target.id for target in node.targets if isinstance(target, ast.Name)]
        case ast.AnnAssign() if isinstance(node.target, ast.Name):
            return [node.target.id]
    return []


def code_title(code: str) -> str:
    """One line about library code: what it defines, what others may use first."""
    body = ast.parse(code).body
    names = [name for node in body for name in defined(node)]
    names = list(dict.fromkeys(names))
    public = [name for name in names if not name.rpartition(".")[2].startswith("_")]
    shown = public or names
    if not shown:
        only_imports = all(isinstance(node, ast.Import | ast.ImportFrom) for node in body)
        return "The imports" if only_imports else "The code"
    more = f" and {len(shown) - MOST_NAMES} more" if len(shown) > MOST_NAMES else ""
    return "The code: " + ", ".join(f"`{name}`" for name in shown[:MOST_NAMES]) + more


def fold_code(text: str) -> str:
    """Long library code stays behind a line that says what it defines.

    The anchor of the cell goes inside: a link to it opens the code.
    """

    def fold(match: re.Match) -> str:
        lines = sum(bool(line.strip()) for line in match["code"].splitlines())
        if lines <= LONGEST_CODE:
            return match[0]
        return folded(code_title(match["code"]), [match[0]], "library")

    return EXPORTED.sub(fold, text)


# --- pictures -------------------------------------------------------------------------------------


def is_chart(content: bytes) -> bool:
    """Whether a PNG is lines on white, which a dark page may turn, and no photograph."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            small = image.convert("RGB").resize((160, 160), Image.Resampling.NEAREST)
    except UnidentifiedImageError:
        return False
    counts = sorted((n for n, _ in small.getcolors(160 * 160)), reverse=True)
    return counts[0] > 0.5 * 160 * 160 and len(counts) < 3500


def captioned(svg: str) -> str:
    """A drawing as a figure of the page, with its description below."""
    words = re.search(r"<desc>(.*?)</desc>", svg, re.S)
    caption = f"<figcaption>{words[1]}</figcaption>" if words and words[1] else ""
    return f'<figure class="drawn">{svg.strip()}{caption}</figure>'


def with_caption(outputs: list[str], caption: str) -> list[str]:
    """The outputs of a cell with a caption below the last picture among them."""
    pictures = [i for i, output in enumerate(outputs) if output.startswith("![")]
    if not pictures:
        return outputs
    last = pictures[-1]
    words = html.escape(caption, quote=False)
    below = f'<figcaption markdown="span">{words}</figcaption>'
    shown = f"<figure markdown>\n{outputs[last]}\n{below}\n</figure>"
    return [*outputs[:last], shown, *outputs[last + 1 :]]


def link_drawings(text: str, address: Callable[[Path], Path], folder: Path, nbs: Path) -> str:
    """Links from a drawing to notebooks lead to their pages."""

    def link(match: re.Match) -> str:
        notebook = (folder / unescape(match[1])).resolve()
        page = address(notebook).with_suffix(".html")
        return f'href="{Path(os.path.relpath(page, folder.relative_to(nbs))).as_posix()}"'

    return re.sub(r'href="([^":#]+\.ipynb)"', link, text)
