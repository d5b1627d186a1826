"""Lint the notebooks: what would break the book, the package or a reader's trust, and what the
tests cannot see.

    python tools/lint_notebooks.py [NOTEBOOK ...]

Each rule is one small function that takes a notebook and yields `(cell number, message)`. Cell
numbers start at 1.
"""

import ast
import base64
import io
import json
import os
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from configparser import ConfigParser
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
REPOSITORY = "https://github.com/aclam-project/aclam"
BRANCH = "main"  # what a badge opens and, until a version has a tag, an install cell installs
BLOB = f"https://colab.research.google.com/github/aclam-project/aclam/blob/{BRANCH}/"
INSTALL = "%pip install"

MAX_LINE = 100
MAX_CELL_LINES = (
    35  # of a code cell; a reader should see the whole of it. Methods beyond it: @patch
)
MAX_BYTES = 400_000  # of a notebook with its figures
HEAD = 4  # the first cells, which carry title, module, badge and time

Found = Iterator[tuple[int, str]]


@dataclass(frozen=True)
class Cell:
    number: int  # from 1
    kind: str  # 'code', 'markdown' or 'raw'
    source: str
    outputs: str  # the text of all outputs
    shown: bool = False  # whether there is any output, text or picture
    pictures: tuple[bytes, ...] = ()  # PNG and JPEG

    @property
    def directives(self) -> set[str]:
        """`{'export'}` for a cell that begins with `#| export`."""
        return {m.split()[0].rstrip(":") for m in re.findall(r"^#\|\s*(\S.*)$", self.source, re.M)}

    @property
    def exported(self) -> bool:
        return bool(self.directives & {"export", "exports", "exporti"})

    @property
    def runs(self) -> bool:
        return self.kind == "code" and not re.search(r"^#\|\s*eval:\s*false", self.source, re.M)

    @property
    def tree(self) -> ast.Module:
        """The parsed code; a line for IPython (`%pip ...`) counts as `pass`."""
        return ast.parse(re.sub(r"^([ \t]*)[%!].*$", r"\1pass", self.source, flags=re.M))


@dataclass(frozen=True)
class Notebook:
    path: str  # from the repository's root, with forward slashes
    cells: list[Cell]
    size: int  # bytes

    @property
    def code(self) -> list[Cell]:
        return [c for c in self.cells if c.kind == "code"]

    @property
    def module(self) -> str | None:
        """What `#| default_exp` names."""
        found = [re.search(r"^#\|\s*default_exp\s+(\S+)", c.source, re.M) for c in self.code]
        return next((m.group(1) for m in found if m), None)


def _output_text(output: dict) -> str:
    parts = [
        output.get("text", ""),
        *(v for k, v in output.get("data", {}).items() if k.startswith("text/")),
    ]
    return "\n".join("".join(p) for p in parts)


def _pictures(cell: dict) -> tuple[bytes, ...]:
    data = [output.get("data", {}) for output in cell.get("outputs", [])]
    found = [d.get("image/png") or d.get("image/jpeg") for d in data]
    return tuple(base64.b64decode("".join(picture)) for picture in found if picture)


def read(path: Path, root: Path = ROOT) -> Notebook:
    """Read a notebook; `root` is the folder that its path is told from."""
    raw = path.read_bytes()
    cells = [
        Cell(
            i,
            c["cell_type"],
            "".join(c["source"]),
            "\n".join(map(_output_text, c.get("outputs", []))),
            bool(c.get("outputs")),
            _pictures(c),
        )
        for i, c in enumerate(json.loads(raw)["cells"], 1)
    ]
    return Notebook(path.relative_to(root).as_posix(), cells, len(raw))


# --- the head of a notebook -----------------------------------------------------------------------


def title(nb: Notebook) -> Found:
    """The subtitle becomes the module's docstring, where a backslash would be an escape."""
    match = re.match(r"# \S.*\n\n> (.+)", nb.cells[0].source) if nb.cells else None
    if not match:
        yield 1, "the first cell must be '# Title', an empty line, '> one-line subtitle'"
    elif re.search(r"[\\$]", match.group(1)):
        yield 1, "no LaTeX or backslash in the subtitle: it becomes the module's docstring"


def badge(nb: Notebook) -> Found:
    head = "\n".join(c.source for c in nb.cells[:HEAD])
    if "colab-badge.svg" not in head or f"({BLOB}{nb.path})" not in head:
        yield (
            1,
            f"no Colab badge for this notebook in the first {HEAD} cells; it must link to {BLOB}{nb.path}",
        )
    if "Runs in about" not in head:
        yield (
            1,
            f"the first {HEAD} cells must say how long it takes: 'Runs in about N seconds on two CPU cores.'",
        )


def install_lines(extras: str, ref: str = BRANCH) -> str:
    """The install cell without its directives; `extras` is `""` or `"[sim]"`.

    It installs where aclam is missing, as on Colab, and leaves alone what is there: an editable
    checkout, or a release.
    """
    return (
        "# Where aclam is missing, as on Colab, this cell installs it:\n"
        "import importlib.util\n\n"
        'if importlib.util.find_spec("aclam") is None:\n'
        f'    {INSTALL} -q "aclam{extras} @ git+{REPOSITORY}@{ref}"'
    )


INSTALLED = re.compile(rf"aclam(\[[\w,]+\])? @ git\+{re.escape(REPOSITORY)}(?:@([\w.-]+))?")


def install_cell(nb: Notebook) -> Found:
    for c in nb.code[: HEAD + 2]:
        if INSTALL not in c.source:
            continue
        if c.runs:
            yield c.number, "the install cell needs '#| eval: false'"
        lines = "\n".join(x for x in c.source.splitlines() if not x.startswith("#|"))
        named = INSTALLED.search(c.source)
        if not (named and named[2] and lines == install_lines(named[1] or "", named[2])):
            yield c.number, "not the install cell of all chapters: run tools/install_cells.py"
        return
    yield 1, "no install cell for Colab"


def installable(nb: Notebook) -> Found:
    """What a reader is told to install from the repository must be there."""
    for c in nb.cells:
        for named in INSTALLED.finditer(c.source):
            extras = (named[1] or "[]")[1:-1].split(",")
            for extra in [e for e in extras if e and e not in known_extras()]:
                yield c.number, f"settings.ini has no extra {extra}"
            if named[2] and named[2] not in known_refs():
                can = " or ".join(known_refs())
                yield c.number, f"installs {named[2]}, which is not there; {can} is"


@cache
def known_extras() -> frozenset[str]:
    parser = ConfigParser(delimiters=["="], interpolation=None)
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    keys = [key for key in parser["DEFAULT"] if key.endswith("_requirements")]
    return frozenset(key.removesuffix("_requirements") for key in keys)


@cache
def known_refs() -> tuple[str, ...]:
    """What can be installed from the repository: the branch, and this version once it has a tag."""
    version = re.search(r'__version__ = "([^"]+)"', (ROOT / "aclam/__init__.py").read_text())[1]
    try:
        git = ["git", "-C", str(ROOT), "tag", "--list", f"v{version}"]
        tags = subprocess.run(git, capture_output=True, text=True).stdout.split()
    except FileNotFoundError:  # no git: a tag cannot be seen
        tags = []
    return (BRANCH, *tags)


# --- what a reader has who has only the package ---------------------------------------------------

OUTSIDE = re.compile(r"""["'](\.\./|(\./)?(tests|nbs|site|tools|bench)/)[^"'\n]*["']""")
OPENERS = {"Path", "open", "read_json", "read_text", "imread", "read_tensors", "load", "glob"}


def stands_alone(nb: Notebook) -> Found:
    """A chapter runs from an empty folder, with the package and nothing else of the repository."""
    for c in nb.code:
        for call in [n for n in ast.walk(c.tree) if isinstance(n, ast.Call)]:
            if _name(call) not in OPENERS or not call.args:
                continue
            if (found := OUTSIDE.match(ast.unparse(call.args[0]))) and not _guarded(found[0], nb):
                yield (
                    c.number,
                    f"{found[0]} is not in the package: kept_result(...) finds what is, or ask "
                    "is_dir() or exists() first",
                )


def _guarded(path: str, nb: Notebook) -> bool:
    """Whether the notebook gives the path a name and asks whether it is there.

    Where modules are looked for may be absent: the import says so.
    """
    for c in nb.code:
        for node in ast.walk(c.tree):
            if not isinstance(node, ast.Assign) or path not in ast.unparse(node.value):
                continue
            name = re.escape(ast.unparse(node.targets[0]))
            asked = rf"\b{name}\.(is_dir|is_file|exists)\(\)|sys\.path\.insert\(0, str\({name}\b"
            if any(re.search(asked, other.source) for other in nb.code):
                return True
    return False


# --- what would break the export or the book ------------------------------------------------------


def _only_imports(node: ast.stmt) -> bool:
    """An import, or a `try` or `if` around imports."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return True
    if isinstance(node, ast.Try):
        return all(map(_only_imports, node.body))
    return isinstance(node, ast.If) and all(map(_only_imports, node.body + node.orelse))


def imports_alone(nb: Notebook) -> Found:
    """nbdev's page builder runs every cell that contains an import, even a slow one, and skips its
    neighbours.
    """
    for c in nb.code:
        if not c.runs:
            continue
        body = c.tree.body
        imports = [_only_imports(node) for node in body]
        if any(imports) and not all(imports):
            yield c.number, "imports need a cell of their own"
        nested = any(
            isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.walk(c.tree)
        ) and not any(imports)
        if nested and not c.exported:
            yield (
                c.number,
                "an import inside a function: nbdev's page builder would run this cell by itself",
            )


def no_export_call(nb: Notebook) -> Found:
    for c in nb.code:
        if "nbdev_export(" in c.source.replace(" ", ""):
            yield c.number, "no nbdev_export() in a notebook: `make export` does it"


def exports_are_tested(nb: Notebook) -> Found:
    exports = [c for c in nb.code if c.exported]
    if exports and not nb.module:
        yield exports[0].number, "exports code but has no '#| default_exp'"
    shown = [c.source for c in nb.code if c.runs and not c.exported]
    if exports and not any(
        re.search(r"^\s*(assert\b|test_\w+\(|check_\w+\()", source, re.M) for source in shown
    ):
        yield exports[0].number, "exports code but asserts nothing"


def exports_only_define(nb: Notebook) -> Found:
    """What an exported cell calls, it calls in every program that imports the module."""
    for c in nb.code:
        for node in c.tree.body if c.exported else []:
            call = isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant)
            if call or isinstance(node, (ast.Assert, ast.For, ast.While, ast.With)):
                yield (
                    c.number,
                    f"an exported cell defines, it does not run: {ast.unparse(node)[:40]}",
                )


def display_maths(nb: Notebook) -> Found:
    for c in nb.cells:
        lines = _without_code(c.source) if c.kind == "markdown" else []
        if any("$$" in line.strip().removeprefix("$$").removesuffix("$$") for line in lines):
            yield c.number, "display maths: $$ only at the start or the end of a line"
        for before, line, after in zip(["", *lines], lines, [*lines[1:], ""], strict=False):
            if _is_display(line) and (before.strip() or after.strip()):
                yield c.number, f"display maths needs empty lines around it: {line[:40]}"


def _is_display(line: str) -> bool:
    """Whether a line is a whole formula; inside a paragraph the site would set it as running text."""
    return len(line) > 4 and line.startswith("$$") and line.rstrip().endswith("$$")


def _without_code(markdown: str) -> list[str]:
    """The lines of a text outside fenced blocks, without inline code."""
    fenced = re.sub(r"^```.*?^```", "", markdown, flags=re.M | re.S)
    return re.sub(r"`[^`\n]*`", "", fenced).splitlines()


# --- what makes code hard to read or trust --------------------------------------------------------


def cell_length(nb: Notebook) -> Found:
    for c in nb.code:
        n = sum(bool(line.strip()) and not line.startswith("#|") for line in c.source.splitlines())
        if n > MAX_CELL_LINES:
            yield c.number, f"{n} lines of code in one cell (at most {MAX_CELL_LINES})"
        for line in c.source.splitlines():
            if len(line) > MAX_LINE:
                start = line.strip()[:40]
                yield c.number, f"a line of {len(line)} characters (at most {MAX_LINE}): {start}..."


COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def one_thought(nb: Notebook) -> Found:
    """One statement, one thought: nothing packed, nothing nested, no lambda with a name."""
    for c in nb.code:
        if "fmt: skip" in c.source or "fmt: off" in c.source:
            yield c.number, "a part that the formatter leaves out"
        for node in ast.walk(c.tree):
            for what in _packed(node):
                yield c.number, f"{what}: {ast.unparse(node)[:50]}"


def _packed(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Assign):
        if isinstance(node.value, ast.Lambda):
            yield "a lambda with a name: use def"
        target = node.targets[0]
        if (
            isinstance(target, ast.Tuple)
            and isinstance(node.value, ast.Tuple)
            and len(target.elts) > 2
        ):
            yield f"{len(target.elts)} names in one assignment (at most 2, unless one value is unpacked)"
    if isinstance(node, COMPREHENSIONS):
        inner = [n for n in ast.walk(node) if isinstance(n, COMPREHENSIONS) and n is not node]
        if sum(len(n.generators) for n in [node, *inner]) > 2:
            yield "a comprehension over more than two for"


def no_hidden_imports(nb: Notebook) -> Found:
    """An import of ours inside a function hides an arrow.

    For what is optional there is `library`.
    """
    for c in nb.code:
        for function in ast.walk(c.tree) if c.exported else []:
            if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            for node in ast.walk(function):
                module = getattr(node, "module", None) or ""
                if isinstance(node, ast.ImportFrom) and module.split(".")[0] == "aclam":
                    yield c.number, f"an import of {module} inside {function.name}"


def machine_paths(nb: Notebook) -> Found:
    for c in nb.cells:
        found = re.search(
            r"(?<![\w.~/-])/(work|root|home|tmp|Users)\b/?[\w.]*", c.source + "\n" + c.outputs
        )
        if found:
            yield c.number, f"a path of one machine: {found.group(0)}"


PICKLES = {"pickle", "cPickle", "dill", "joblib"}
PICKLING = {"load", "loads", "dump", "dumps", "Pickler", "Unpickler"}


def _name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _bad_call(call: ast.Call) -> str | None:
    given = {k.arg: k.value.value for k in call.keywords if isinstance(k.value, ast.Constant)}
    if isinstance(call.func, ast.Attribute) and call.func.attr == "cuda":
        return ".cuda(): use .to(device)"
    if given.get("strict") is False and _name(call) not in ("zip", "map"):
        return "strict=False: a checkpoint fits or it does not"
    if given.get("weights_only") is False or given.get("allow_pickle") is True:
        return "loading pickled objects runs code from the file"
    return None


def forbidden(nb: Notebook) -> Found:
    for c in nb.code:
        for node in ast.walk(c.tree):
            if isinstance(node, ast.Call) and (why := _bad_call(node)):
                yield c.number, why
            if isinstance(node, ast.ExceptHandler) and node.type is None:
                yield c.number, "a bare except: name the error"
            if (
                isinstance(node, ast.Attribute)
                and getattr(node.value, "id", "") in PICKLES
                and node.attr in PICKLING
            ):
                yield c.number, f"{node.value.id}.{node.attr}: use safetensors, JSON or Arrow"
            if (
                isinstance(node, ast.ImportFrom)
                and node.module in PICKLES
                and PICKLING & {a.name for a in node.names}
            ):
                yield c.number, f"{node.module}: use safetensors, JSON or Arrow"


def size(nb: Notebook) -> Found:
    if nb.size > MAX_BYTES:
        yield 1, f"{nb.size // 1000} kB (at most {MAX_BYTES // 1000}): smaller figures, please"


# --- results in prose -----------------------------------------------------------------------------

NUMBER = r"\d+\.\d+|\d+(\.\d+)?\s?%"
VERBS = "reach(es|ed)?|gives|gave|drops? to|dropped|falls? to|fell|rises? to|rose|scores?|took"
RESULT = rf"\b({VERBS}|we (measured?|get|got|find|found))\b"
THAN = "less|more|lower|higher|better|worse|fewer|faster|slower|smaller|larger"
CITED = r"\bpaper|\b(Table|Tab\.|Eq\.|Eqs\.|Figure|Fig\.|Section|Sec\.|Appendix|Proposition|et al)"


def results_in_prose(nb: Notebook) -> Found:
    """A number that prose calls a result must be computed: by a cell that prints or asserts, at
    most two cells away.

    Heuristic: a sentence with a decimal number or a percentage and a word such as 'reaches',
    'gives' or 'we measured' ('35 % less' needs no such word). Sentences that cite (the paper, a
    table, an equation) pass, and so does a cell with the comment `<!-- computed: name -->`, where
    name is a variable or file that a cell of this notebook sets.
    """
    for i, c in enumerate(nb.cells):
        if c.kind != "markdown" or _computed(c, nb):
            continue
        near = [n for n in nb.cells[max(i - 2, 0) : i + 3] if n.runs]
        shown = any(re.search(r"^\s*(assert\b|print\()|\bprint\(", n.source, re.M) for n in near)
        for sentence in _sentences(c.source):
            if _is_result(sentence) and not shown:
                yield (
                    c.number,
                    f"a result in prose that no cell nearby prints or asserts: {sentence[:60]!r}",
                )


def _sentences(markdown: str) -> list[str]:
    text = " ".join(line for line in _without_code(markdown) if not line.startswith("#"))
    text = re.sub(
        r"\$[^$]*\$|\]\([^)]*\)|<!--.*?-->", " ", text
    )  # formulas, link targets, comments
    return re.split(r"(?<=[.!?:;])\s+(?=[A-Z*>\-])", text)


def _is_result(sentence: str) -> bool:
    if re.search(CITED, sentence) or not re.search(NUMBER, sentence):
        return False
    return bool(re.search(RESULT, sentence) or re.search(rf"\d\s?% ({THAN})\b", sentence))


def _computed(cell: Cell, nb: Notebook) -> bool:
    names = re.findall(r"<!--\s*computed:\s*(.+?)\s*-->", cell.source)
    return bool(names) and all(any(name in c.source for c in nb.code) for name in names)


# --- what a reader sees ---------------------------------------------------------------------------

SHOWS = {"print", "display"}
PARAGRAPHS = (ast.For, ast.With)  # their bodies run as they stand; those of `if` and `try` may not


def printed_output(nb: Notebook) -> Found:
    """A cell that prints has what it printed: the question above it must find its answer."""
    for c in nb.code:
        optional = c.directives & {"slow", "export", "hide"}
        if c.runs and not c.shown and not optional and any(map(_prints, c.tree.body)):
            yield c.number, "prints, but no output is saved: nbdev-test NOTEBOOK --save"


PROGRESS = re.compile(r"\d+%\|[^\r\n]*\[\d+:\d\d")  # as tqdm draws it


def no_progress_bars(nb: Notebook) -> Found:
    """How far a training was is no result: an output keeps no bar."""
    for c in nb.code:
        if PROGRESS.search(c.outputs):
            yield c.number, "a progress bar in the output: python tools/strip_bars.py"


def _prints(node: ast.stmt) -> bool:
    if isinstance(node, PARAGRAPHS):
        return any(map(_prints, node.body))
    call = node.value if isinstance(node, ast.Expr) else None
    return isinstance(call, ast.Call) and getattr(call.func, "id", "") in SHOWS


LINK = "\N{LINK SYMBOL}"
REFERENCE = re.compile(
    r"\b([Tt]he|[Aa]nother) (chapters?|notebooks?) (on|about)\b(?! (the )?" + LINK + ")"
    r"|\b([Pp]revious|[Nn]ext|[Ll]ast|[Ff]ollowing) (chapter|notebook)\b(?!('s question)?, "
    + LINK
    + ")"
    r"|\b(previous|next) part\b|\bPart \d+\b|\b[Cc]hapter \d+\b|\b[Tt]he appendix\b"
    r"|\bchapters? ago\b|\b[Aa] later chapter\b|\b[Tt]he chapter before\b"
    r"|\b[Tt]he (?!(same|whole|other|first|rest|last|next|previous|following)\b)\w+ chapter\b"
    r"(?! (on|about)\b)(?!, " + LINK + ")",
)
NUMBERED = re.compile(r"\bPart \d+\b|\b[Cc]hapter \d+\b")


def references_are_links(nb: Notebook) -> Found:
    """Parts and chapters bear no numbers, and 'the previous one' moves: a link stays right."""
    for c in nb.cells:
        if c.kind == "markdown":
            prose = " ".join(_without_code(c.source))
            found = REFERENCE.search(re.sub(r"\[[^\]]*\]\([^)]*\)", LINK, prose))
        else:
            found = NUMBERED.search("\n".join(_comments(c.source)))
        if found:
            yield c.number, f"a chapter that is named without a link: {found[0]!r}"


BESIDE = re.compile(
    r"\[(?:[Tt]he |[Tt]he chapter )?(last|previous|next|before)(?: chapter| notebook)?\]\(([^)#]+)"
)


def neighbors_are_neighbors(nb: Notebook) -> Found:
    """A link that says 'the last chapter' or 'the next one' leads there, in the reading order."""
    order = [path.as_posix() for path in chapters()]
    if nb.path not in order:
        return
    here = order.index(nb.path)
    for c in [c for c in nb.cells if c.kind == "markdown"]:
        for word, target in BESIDE.findall(c.source):
            place = here + 1 if word == "next" else here - 1
            path = (ROOT / nb.path).parent / target
            if not order[place : place + 1] == [os.path.relpath(path, ROOT)]:
                yield c.number, f"{target} is not the {word} chapter in site/chapters.yml: name it"


def _comments(code: str) -> list[str]:
    """Comments and strings of several lines."""
    plain = re.sub(r"^([ \t]*)[%!].*$", r"\1pass", code, flags=re.M)
    found = []
    for token in tokenize.generate_tokens(io.StringIO(plain).readline):
        block = token.type == tokenize.STRING and token.string.startswith(('"""', 'r"""'))
        if token.type == tokenize.COMMENT or block:
            found.append(token.string)
    return found


# what was wrong with our copy of a paper, and what no reader can look up
NO_EVIDENCE = re.compile(
    r"\b(lost|missing) (from|in) (the|its) (paper's )?(text|extraction)\b"
    r"|\bextraction of (the|its) text\b|\b[Tt]he text (has )?lost\b"
    r"|\b([Aa]uthors'?|[Tt]heir) drafts?\b|\b[Dd]raft code\b",
)


def evidence_can_be_looked_up(nb: Notebook) -> Found:
    """A formula is read in the published paper, or named as not read; code is cited by its name."""
    for c in nb.cells:
        text = _comments(c.source) if c.kind == "code" else _without_code(c.source)
        if found := NO_EVIDENCE.search(" ".join(text)):
            yield c.number, f"no evidence that a reader can look up: {found[0]!r}"


ANOTHER_NAME = re.compile(r"\b[Aa]dditivity (defects?|errors?|gaps?)\b")
HAS_DEFECT = "nbs/2_additivity/"  # the algebra, whose word it is for the vectors of a scene


def one_name_a_metric(nb: Notebook) -> Found:
    """Eq. 7 is additivity, and a value of it an additivity residual: nbs/glossary.ipynb."""
    if nb.path.startswith(HAS_DEFECT) or nb.path == "nbs/glossary.ipynb":
        return
    for c in nb.cells:
        if found := ANOTHER_NAME.search(c.source):
            yield c.number, f"another name for additivity: {found[0]!r}"


SYMBOL = r"\\?[A-Za-z]+(?:_(?:\{[^}]*\}|\\?\w+))?"
DEFINED = re.compile(rf"(?<![\w}}])({SYMBOL})\s*:=|\bany (?:\w+ )?\$({SYMBOL}) \\in\b")


def one_letter_one_meaning(nb: Notebook) -> Found:
    """A symbol is introduced (`:=`, 'any $T \\in') once in a chapter.

    nbs/symbols.ipynb has those of the whole book.
    """
    seen: dict[str, int] = {}
    for c in [c for c in nb.cells if c.kind == "markdown"]:
        for found in DEFINED.findall("\n".join(_without_code(c.source))):
            symbol = "".join(found)
            if symbol in seen:
                yield c.number, f"{symbol} is defined again (first in cell {seen[symbol]})"
            seen[symbol] = c.number


BRITISH = re.compile(
    r"\b((un)?(label|model|travel|cancel|signal)l(ed|ing|er|ers)|(colou|behaviou|neighbou|favou|honou)r\w*"
    r"|centre[ds]?|centring|metres?|grey|fibre|artefacts?|catalogue|programme|defence|judgement"
    r"|analys(e|ed|ing)|whilst|(normal|optim|minim|maxim|organ|recogn|initial|summar|general|random|visual"
    r"|parametr|regular|quant|token|discret|util|penal|character|emphas|real|standard)is(e|es|ed|ing|ation))\b",
    re.IGNORECASE,
)


def american_spelling(nb: Notebook) -> Found:
    """One spelling, the field's."""
    for c in nb.cells:
        is_code = c.kind == "code"
        text = " ".join(_comments(c.source) if is_code else _without_code(c.source))
        text = re.sub(r"\]\([^)]*\)|`[^`]*`|https?://\S+", " ", text)
        for found in BRITISH.finditer(text):
            yield c.number, f"American spelling, please: {found[0]!r}"


# --- what a reader takes along --------------------------------------------------------------------

KNOW = "## What you know now"


@cache
def chapters() -> tuple[Path, ...]:
    """The paths of all chapters, in the order in which they are read."""
    order = yaml.safe_load((ROOT / "site/chapters.yml").read_text(encoding="utf-8"))
    return tuple(
        Path("nbs", room["folder"], f"{n}.ipynb") for room in order for n in room["notebooks"]
    )


@cache
def core_chapters() -> frozenset[str]:
    """The paths of the chapters that the map on the start page stars."""
    order = yaml.safe_load((ROOT / "site/chapters.yml").read_text(encoding="utf-8"))
    paths = [
        Path("nbs", room["folder"], f"{n}.ipynb") for room in order for n in room.get("core", ())
    ]
    return frozenset(path.as_posix() for path in paths)


@cache
def lessons() -> frozenset[str]:
    """The paths of the chapters that teach: of the rooms before the Workshop, but overviews."""
    order = yaml.safe_load((ROOT / "site/chapters.yml").read_text(encoding="utf-8"))
    rooms = [room for room in order if "part" not in room and room["folder"][0].isdigit()]
    paths = [Path("nbs", r["folder"], f"{n}.ipynb") for r in rooms for n in r["notebooks"]]
    return frozenset(path.as_posix() for path in paths if path.stem != "overview")


def what_you_know(nb: Notebook) -> Found:
    """A lesson ends with what a reader takes along: three claims, with numbers."""
    found = [c for c in nb.cells if c.kind == "markdown" and KNOW in c.source.splitlines()]
    if not found and nb.path in lessons():
        yield len(nb.cells), f"a lesson without the section {KNOW!r}"
    for c in found:
        section = re.split(r"^#+ ", c.source.split(KNOW, 1)[1], maxsplit=1, flags=re.M)[0]
        claims = re.findall(r"^- .+", section, re.M)
        if len(claims) != 3:
            yield c.number, f"{KNOW!r} has {len(claims)} lines; three, please"
        elif not re.search(r"\d", section):
            yield c.number, f"{KNOW!r} has no number: claims, please, and not headings"


STATEMENT = re.compile(r"^\*\*(Proposition|Theorem|Lemma|Corollary|Definition|Fact)\b.*", re.M)


def statements_stand_out(nb: Notebook) -> Found:
    """What is proved stands in a quotation, which the site draws as a box with a link."""
    for c in [c for c in nb.cells if c.kind == "markdown"]:
        for found in STATEMENT.finditer(c.source):
            yield c.number, f"a statement that is no quotation (> ...): {found[0][:40]!r}"


def solutions_fold(nb: Notebook) -> Found:
    """Solutions have a heading of their own, under which the site folds them."""
    headings = [line for c in nb.cells if c.kind == "markdown" for line in c.source.splitlines()]
    asked = [line for line in headings if re.match(r"(## |\*\*)Exercises?\b", line)]
    if asked and not any(re.match(r"#+ Solutions?\b", line) for line in headings):
        yield len(nb.cells), "exercises without a heading '## Solutions'"


KINDS = ("**With blanks.**", "**With a pencil.**", "**Open.**")  # in this order
CHECKED = re.compile(r"`aclam-check (\w+)`")
OTHER_EXERCISES = {  # core chapters whose exercises are of other kinds, and why
    "nbs/minimal.ipynb": "the spine: its functions are the chapter, and one trains them",
    "nbs/minimal_policy.ipynb": "the spine: its functions are the chapter, and one trains them",
    "nbs/course/syllabus.ipynb": "the page of the lessons, each of which has blanks",
    "nbs/2_additivity/innovation.ipynb": "pencil and open, no blanks: its formulas are measured",
    "nbs/9_studies/comparison.ipynb": "a study: about how to run and read it",
    "nbs/9_studies/policy_comparison.ipynb": "a study: about how to run and read it",
    "nbs/9_studies/demo.ipynb": "a study: about how to run and read it",
    "nbs/symptoms/good_enough.ipynb": "a page for a person in trouble",
}


@cache
def names_to_check() -> frozenset[str]:
    """The lessons and chapters that `aclam-check` knows, as the notebooks of the course name them."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "nbs/course").glob("*.ipynb")]
    cells = ["".join(cell["source"]) for text in texts for cell in json.loads(text)["cells"]]
    return frozenset(re.findall(r'Lesson\(\s*name="(\w+)"', "\n".join(cells)))


def three_kinds_of_exercises(nb: Notebook) -> Found:
    """A core chapter asks for a function, for a pencil, and for what this book does not know."""
    if nb.path not in core_chapters() or nb.path in OTHER_EXERCISES:
        return
    for c in nb.cells:
        if c.kind != "markdown" or not re.search(r"^## Exercises?$", c.source, re.M):
            continue
        section = re.split(r"^## Exercises?$|^## Solutions?$", c.source, flags=re.M)[1]
        at = [section.find(kind) for kind in KINDS]
        if -1 in at or at != sorted(at):
            yield c.number, f"the exercises of a core chapter are {', '.join(KINDS)}, in this order"
        names = CHECKED.findall(section)
        if not names:
            yield c.number, "the exercises of a core chapter name their command, `aclam-check NAME`"
        for name in sorted(set(names) - names_to_check()):
            yield c.number, f"`aclam-check {name}`: there is no such lesson or chapter"


# --- figures ----------------------------------------------------------------------------------------


def figures_have_words(nb: Notebook) -> Found:
    """A caption for all, and what the figure shows for those who cannot see it."""
    for c in nb.code:
        missing = [name for name in ("fig-cap", "fig-alt") if name not in c.directives]
        if c.pictures and missing:
            yield c.number, f"a figure without {' and '.join(f'#| {name}:' for name in missing)}"


PHONE = 328  # pixels: a page of 360 without its margins
LEAST = 7.0  # pixels, of the smallest letters there
USUAL = 10.0  # points: matplotlib's letters where the code does not say otherwise
LETTERS = re.compile(r"""\b(?:font|label)size["']?[=:] ?(\d+(?:\.\d+)?)""")
CALLED = re.compile(r"\b([a-z_]\w*)\(")


def legible_on_a_phone(nb: Notebook) -> Found:
    """The letters of a figure, by the sizes that the cell and the functions it calls give them."""
    for c in [c for c in nb.code if c.pictures]:
        points = min(map(float, LETTERS.findall(_with_functions(c, nb))), default=USUAL)
        for inches in filter(None, map(_inches, c.pictures)):
            pixels = points / 72 * PHONE / inches
            if pixels < LEAST:
                yield (
                    c.number,
                    f"letters of {points:g} points in a figure of {inches:.1f} inches are {pixels:.1f} "
                    f"pixels high on a phone, {LEAST:g} are legible: a narrower figure, please",
                )


def _with_functions(cell: Cell, nb: Notebook) -> str:
    """The source of a cell and of the functions that it calls: the chapter's and the package's."""
    here = {
        node.name: [(nb.path, ast.unparse(node))]
        for c in nb.code
        for node in c.tree.body
        if isinstance(node, ast.FunctionDef)
    }
    text, seen, ahead = "", set(), [(nb.path, cell.source)]
    while ahead:
        file, source = ahead.pop()
        text += source + "\n"
        for name in set(CALLED.findall(source)) - seen:
            known = (here if file == nb.path else {}).get(name) or functions().get(name, [])
            beside = [found for found in known if found[0] == file] or known
            if len(beside) == 1:  # a name that two modules have says nothing
                seen.add(name)
                ahead += beside
    return text


@cache
def functions() -> dict[str, list[tuple[str, str]]]:
    """File and source of each function of the package, by its name."""
    found: dict[str, list[tuple[str, str]]] = {}
    for path in sorted((ROOT / "aclam").rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef):
                found.setdefault(node.name, []).append((str(path), ast.unparse(node)))
    return found


def _inches(png: bytes) -> float | None:
    """How wide a PNG says that it is (chunk pHYs, pixels a meter); None where none is said."""
    at = png.find(b"pHYs")
    if at < 0:
        return None
    pixels = int.from_bytes(png[16:20], "big")
    a_meter = int.from_bytes(png[at + 4 : at + 8], "big")
    return pixels / a_meter / 0.0254


RULES = [
    title,
    badge,
    install_cell,
    installable,
    stands_alone,
    imports_alone,
    no_export_call,
    exports_are_tested,
    exports_only_define,
    display_maths,
    cell_length,
    one_thought,
    no_hidden_imports,
    machine_paths,
    forbidden,
    size,
    results_in_prose,
    printed_output,
    no_progress_bars,
    what_you_know,
    statements_stand_out,
    solutions_fold,
    three_kinds_of_exercises,
    figures_have_words,
    legible_on_a_phone,
    references_are_links,
    neighbors_are_neighbors,
    evidence_can_be_looked_up,
    one_name_a_metric,
    one_letter_one_meaning,
    american_spelling,
]


def lint(notebooks: list[Notebook]) -> list[str]:
    """All findings, one line each."""
    found = []
    for nb in notebooks:
        try:
            found += [f"{nb.path} cell {n}: {message}" for rule in RULES for n, message in rule(nb)]
        except SyntaxError as e:
            found.append(f"{nb.path}: a cell does not parse: {e}")
    return found + shared_modules(notebooks)


def shared_modules(notebooks: list[Notebook]) -> list[str]:
    """One notebook, one module: two notebooks that write to one module overwrite each other."""
    owner: dict[str, str] = {}
    found = []
    for nb in notebooks:
        if nb.module in owner:
            found.append(
                f"{nb.path}: exports to {nb.module}, as {owner[nb.module]} does: one notebook, one module"
            )
        elif nb.module:
            owner[nb.module] = nb.path
    return found


def reading_order(root: Path = ROOT) -> list[str]:
    """The order file names the notebooks that are there, each once, and no other."""
    order = yaml.safe_load((root / "site/chapters.yml").read_text(encoding="utf-8"))
    named = [Path("nbs", room["folder"], f"{n}.ipynb") for room in order for n in room["notebooks"]]
    there = {p.relative_to(root) for p in (root / "nbs").rglob("*.ipynb")}
    there = {p for p in there if ".ipynb_checkpoints" not in p.parts} - {Path("nbs/index.ipynb")}
    found = [f"names {p.as_posix()}, which is not there" for p in named if p not in there]
    found += [f"does not name {p.as_posix()}" for p in sorted(there - set(named))]
    found += [
        f"names {p.as_posix()} twice" for p in sorted({p for p in named if named.count(p) > 1})
    ]
    return [f"site/chapters.yml {line}" for line in found]


def main() -> int:
    paths = [Path(p).resolve() for p in sys.argv[1:]] or sorted((ROOT / "nbs").rglob("*.ipynb"))
    paths = [p for p in paths if ".ipynb_checkpoints" not in p.parts]
    found = lint([read(p) for p in paths])
    if not sys.argv[1:]:
        found += reading_order()
    print("\n".join([*found, f"{len(paths)} notebooks, {len(found)} findings"]))
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
