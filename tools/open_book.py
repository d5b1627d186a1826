"""Open every page of the built book in headless Chromium, from the file system, and say what a reader would miss.

    python tools/open_book.py [--site _docs/site] [--shots FOLDER PAGE ...]

Found are: requests that leave the disk or fail, errors on the console, formulas that did not set,
links and anchors that lead nowhere, pages wider than a phone, and a search that finds nothing.
`--shots` writes pictures of pages instead, wide and narrow, light and dark.
"""

import argparse
import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import yaml

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "_docs" / "site"
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
LOCAL = ("file:", "data:", "blob:", "about:", "chrome:")
PHONE, DESK = (360, 780), (1280, 900)
SEARCHES = {
    "additivity": "dditiv",
    "glossary": "Glossary",
    "quantizer": "",
    "flow matching": "Flow",
}
LOOK = """(() => {
  const text = (e) => [...e.querySelectorAll("p, li, td")].map((p) => {
    const copy = p.cloneNode(true)
    copy.querySelectorAll("code, pre, .katex, script").forEach((c) => c.remove())
    return copy.textContent
  }).join("\\n")
  const article = document.querySelector("article")
  return JSON.stringify({
    errors: document.querySelectorAll(".katex-error").length,
    raw: article ? (text(article).match(/\\\\\\(|\\\\\\[/g) || []).length : 0,
    wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    ids: [...document.querySelectorAll("[id]")].map((e) => e.id),
    links: [...document.querySelectorAll("article a[href]")].map((a) => a.href.baseVal !== undefined
      ? new URL(a.href.baseVal, location.href).href : a.href),
  })
})()"""
ASK = """(async (query) => {
  const box = document.querySelector("input.md-search__input")
  box.focus()
  box.value = query
  box.dispatchEvent(new Event("keyup", { bubbles: true }))
  box.dispatchEvent(new Event("input", { bubbles: true }))
  for (let i = 0; i < 100; i++) {
    await new Promise((done) => setTimeout(done, 100))
    const hits = [...document.querySelectorAll(".md-search-result__item > a.md-search-result__link")]
    if (hits.length) return JSON.stringify(hits.map((a) => [a.querySelector("h1")?.textContent ?? "", a.href]))
  }
  return "[]"
})"""


# --- a browser at the end of a pipe ---------------------------------------------------------------


class Browser:
    """Chromium, spoken to over two pipes: commands in, answers and events out, each ended by a zero byte."""

    def __init__(self, program: str):
        self.profile = tempfile.mkdtemp(prefix="book-")
        theirs, mine = os.pipe()
        answers, theirs_too = os.pipe()
        options = "--headless=new --no-sandbox --disable-gpu --remote-debugging-pipe --no-first-run"
        extra = "--disable-background-networking --disable-component-update --hide-scrollbars"
        shell = f'exec "$0" {options} {extra} --user-data-dir="$1" 3<&{theirs} 4>&{theirs_too}'
        self.process = subprocess.Popen(
            ["bash", "-c", shell, program, self.profile],
            pass_fds=(theirs, theirs_too),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs)
        os.close(theirs_too)
        self.to, self.back = os.fdopen(mine, "wb", 0), os.fdopen(answers, "rb", 0)
        self.rest, self.count, self.session = b"", 0, ""
        self.events: list[dict] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def message(self) -> dict:
        while b"\0" not in self.rest:
            more = self.back.read(1 << 20)
            if not more:
                raise RuntimeError("the browser ended")
            self.rest += more
        one, _, self.rest = self.rest.partition(b"\0")
        return json.loads(one)

    def call(self, method: str, **params) -> dict:
        """One command and its answer; events that come before it are kept."""
        self.count += 1
        said = {"id": self.count, "method": method, "params": params}
        if self.session:
            said["sessionId"] = self.session
        self.to.write(json.dumps(said).encode() + b"\0")
        while True:
            found = self.message()
            if found.get("id") == self.count:
                if "error" in found:
                    raise RuntimeError(f"{method}: {found['error']['message']}")
                return found["result"]
            self.events.append(found)

    def evaluate(self, script: str):
        result = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in result:
            raise RuntimeError(json.dumps(result["exceptionDetails"])[:300])
        return result["result"].get("value")

    def open(self, url: str) -> list[dict]:
        """Load a page to its end; what happened on the way."""
        # first to nowhere: an anchor of the page that is shown would load nothing
        self.events.clear()
        self.call("Page.navigate", url="about:blank")
        self.until_loaded("about:blank")
        self.events.clear()
        self.call("Page.navigate", url=url)
        self.until_loaded(url)
        self.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)))")
        return list(self.events)

    def until_loaded(self, url: str) -> None:
        until = time.monotonic() + 60
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events):
            if time.monotonic() > until:
                raise RuntimeError(f"{url} does not load")
            self.events.append(self.message())

    def size(self, width: int, height: int, dark: bool = False) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        look = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[look])

    def printed(self) -> bytes:
        """The page as a PDF, on the paper that its style asks for."""
        said = self.call("Page.printToPDF", preferCSSPageSize=True)
        return base64.b64decode(said["data"])

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        shutil.rmtree(self.profile, ignore_errors=True)


def program() -> str | None:
    """Where Chromium is; None where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


# --- what a page shows ----------------------------------------------------------------------------


def troubles(events: Sequence[dict]) -> Iterator[str]:
    """Requests that leave the disk or fail, and errors on the console."""
    urls = {}
    for event in events:
        said = event.get("params", {})
        match event.get("method"):
            case "Network.requestWillBeSent":
                urls[said["requestId"]] = said["request"]["url"]
                if not said["request"]["url"].startswith(LOCAL):
                    yield f"asks {said['request']['url']}"
            case "Network.loadingFailed" if not said.get("canceled"):
                yield f"cannot load {urls.get(said['requestId'], '?')}: {said['errorText']}"
            case "Runtime.exceptionThrown":
                yield f"exception: {said['exceptionDetails'].get('text')}"
            case "Runtime.consoleAPICalled" if said["type"] == "error":
                yield f"console: {said['args'][:1]}"
            case "Log.entryAdded" if said["entry"]["level"] == "error":
                yield f"log: {said['entry']['text']}"


def page_troubles(events: Sequence[dict], seen: dict) -> list[str]:
    found = list(troubles(events))
    if seen["errors"]:
        found.append(f"{seen['errors']} formulas with errors")
    if seen["raw"]:
        found.append(f"{seen['raw']} formulas that were not set")
    if seen["wide"] > 1:
        found.append(f"{seen['wide']} pixels wider than a phone")
    return found


def link_troubles(pages: dict[Path, dict], site: Path) -> list[str]:
    """Links of pages to files or anchors that are not there."""
    found = []
    for path, seen in pages.items():
        for url in sorted(set(seen["links"])):
            bare, anchor = urldefrag(url)
            parts = urlsplit(bare)
            if parts.scheme != "file":
                continue
            target = Path(unquote(parts.path))
            where = f"{path.relative_to(site)} links to {target.name}"
            if not target.exists():
                found.append(f"{where}, which is not there")
            elif anchor and target in pages and unquote(anchor) not in pages[target]["ids"]:
                found.append(f"{where}#{anchor}, and that anchor is not there")
    return found


def search_troubles(browser: Browser, site: Path) -> list[str]:
    """Each word must be found, and a chapter before the reference."""
    found = []
    for query, title in SEARCHES.items():
        browser.open((site / "index.html").as_uri())
        hits = json.loads(browser.evaluate(f"{ASK}({json.dumps(query)})"))
        if not hits:
            found.append(f"the search finds nothing for {query!r}")
        elif "/api/" in hits[0][1] or title not in hits[0][0]:
            found.append(f"the first hit for {query!r} is {hits[0]}")
    return found


TOUCH = """(() => {
  const figure = document.querySelector(".md-typeset img, svg.drawing:not(.still)")
  figure.dispatchEvent(new MouseEvent("click", { bubbles: true }))
  const sheet = document.querySelector("dialog.zoom[open]")
  const wide = sheet ? sheet.firstElementChild.getBoundingClientRect().width : 0
  sheet?.click()
  const left = document.querySelectorAll("dialog.zoom[open]").length
  return JSON.stringify([figure.getBoundingClientRect().width, wide, left])
})()"""
WAYS = """JSON.stringify([...document.querySelectorAll("article li a")].map((a) => a.href)
  .filter((href) => href.includes("?way=")))"""


def touch_troubles(browser: Browser, site: Path) -> list[str]:
    """A figure opens larger than it stands and closes again; the ways of the start page are followed."""
    found = []
    browser.open((site / "1_linear" / "figures.html").as_uri())
    stands, opened, left = json.loads(browser.evaluate(TOUCH))
    if opened <= stands or left:
        found.append(f"a figure of {stands:.0f} pixels opens with {opened:.0f}; {left} stay open")
    browser.open((site / "start.html").as_uri())
    links = json.loads(browser.evaluate(WAYS))
    named = yaml.safe_load((ROOT / "site" / "ways.yml").read_text(encoding="utf-8"))["ways"]
    expected = sum(len(way["chapters"]) for way in named.values())
    if len(links) != expected:
        found.append(f"{len(links)} links of the start page follow a way, not {expected}")
    for link in links:
        browser.open(link)
        if browser.evaluate('document.querySelectorAll("nav.way").length') != 2:
            found.append(f"{link} has no bar of its way")
    return found


def open_all(site: Path, names: Sequence[str] = ()) -> list[str]:
    """All findings of the pages in a folder, one line each; `names` are pages to which it is limited."""
    browser = Browser(program() or "chromium")
    try:
        browser.size(*PHONE)
        pages, found = {}, []
        paths = [site / name for name in names] or sorted(site.rglob("*.html"))
        for path in paths:
            events = browser.open(path.as_uri())
            pages[path] = json.loads(browser.evaluate(LOOK))
            found += [f"{path.relative_to(site)}: {t}" for t in page_troubles(events, pages[path])]
        found += link_troubles(pages, site) + search_troubles(browser, site)
        return found + touch_troubles(browser, site)
    finally:
        browser.close()


def shoot(site: Path, folder: Path, names: Sequence[str]) -> None:
    """Pictures of pages, wide and narrow, light and dark."""
    folder.mkdir(parents=True, exist_ok=True)
    browser = Browser(program() or "chromium")
    try:
        for name in names:
            for kind, size in (("desk", DESK), ("phone", PHONE)):
                for dark in (False, True):
                    browser.size(*size, dark)
                    page, _, part = name.partition("#")
                    browser.open((site / page).as_uri())
                    browser.evaluate("localStorage.clear()")  # a choice of light or dark is kept
                    browser.open((site / page).as_uri() + (f"#{part}" if part else ""))
                    browser.evaluate("new Promise((done) => setTimeout(done, 400))")
                    picture = browser.call("Page.captureScreenshot", format="png")["data"]
                    stem = f"{name.replace('/', '_')}_{kind}_{'dark' if dark else 'light'}"
                    (folder / f"{stem}.png").write_bytes(base64.b64decode(picture))
    finally:
        browser.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--site", type=Path, default=SITE)
    parser.add_argument("--shots", nargs="+", metavar=("FOLDER", "PAGE"))
    said = parser.parse_args()
    if program() is None or not said.site.is_dir():
        print("needs Chromium, and the book: make book")
        return 2
    site = said.site.resolve()
    if said.shots:
        shoot(site, Path(said.shots[0]), said.shots[1:])
        return 0
    began = time.monotonic()
    found = open_all(site)
    pages = len(list(site.rglob("*.html")))
    print(*found, sep="\n")
    print(f"{pages} pages, {len(found)} findings, {time.monotonic() - began:.0f} s")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
