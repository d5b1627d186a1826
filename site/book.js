// Typeset the mathematics of each page, also after a search or a click has replaced it.
const typeset = (body) => renderMathInElement(body, {
  delimiters: [{ left: "\\[", right: "\\]", display: true }, { left: "\\(", right: "\\)", display: false }],
  throwOnError: false,
})

// A figure that is tapped opens alone, as large as it was drawn, and scrolls.
const enlarge = (figure) => {
  const sheet = document.createElement("dialog")
  const copy = figure.cloneNode(true)
  copy.removeAttribute("tabindex")
  copy.style.width = `${figure.naturalWidth || 1.6 * figure.viewBox?.baseVal.width || 800}px`
  sheet.className = "zoom"
  sheet.append(copy)
  sheet.addEventListener("click", () => sheet.close())
  sheet.addEventListener("close", () => sheet.remove())
  figure.closest(".md-container").append(sheet)
  sheet.showModal()
}

const enlargeable = (body) => {
  for (const figure of body.querySelectorAll(".md-typeset img, svg.drawing:not(.still)")) {
    if (figure.closest("a")) continue
    figure.tabIndex = 0
    figure.addEventListener("click", () => enlarge(figure))
    figure.addEventListener("keydown", (event) => event.key === "Enter" && enlarge(figure))
  }
}

// "Next" follows the way that was taken on the start page; it is named in the address, ?way=build.
const root = () => new URL(`${JSON.parse(document.getElementById("__config").textContent).base}/`, location.href)
const link = (page, name, words) => {
  const a = document.createElement("a")
  a.href = `${new URL(page[1], root())}?way=${name}`
  a.textContent = words
  return a
}

const bar = (name, at) => {
  const { title, pages } = WAYS[name]
  const line = document.createElement("nav")
  line.className = "way"
  line.setAttribute("aria-label", `The way ${title}`)
  const where = document.createElement("span")
  where.textContent = `${title}: ${at + 1} of ${pages.length}`
  line.append(at ? link(pages[at - 1], name, "← back") : document.createElement("span"), where)
  const next = pages[at + 1]
  const last = document.createElement("a")
  last.href = new URL("start.html", root())
  last.textContent = "the end: start page"
  line.append(next ? link(next, name, `next: ${next[0]} →`) : last)
  return line
}

const follow = (body) => {
  const here = location.href.split(/[?#]/)[0]
  const name = new URLSearchParams(location.search).get("way")
  const article = body.querySelector("article")
  if (article && WAYS[name]) {
    const at = WAYS[name].pages.findIndex((page) => new URL(page[1], root()).href === here)
    if (at >= 0) {
      article.prepend(bar(name, at))
      article.append(bar(name, at))
      body.querySelector(".md-footer__inner")?.remove()
    }
  }
  if (here !== new URL("start.html", root()).href) return
  for (const [name, way] of Object.entries(WAYS)) {
    const heading = [...body.querySelectorAll("h3")].find((h) => h.textContent.startsWith(`${way.title}:`))
    let list = heading?.nextElementSibling
    while (list && list.tagName !== "OL") list = list.nextElementSibling
    for (const a of list?.querySelectorAll("li > a:first-child, li > p > a:first-child") ?? []) {
      a.href = `${a.href}?way=${name}`
    }
  }
}

// Search results have formulas, too.
const results = (body) => {
  const list = body.querySelector(".md-search-result__list")
  if (list) new MutationObserver(() => typeset(list)).observe(list, { childList: true })
}

// A word that was searched for is marked; where it is in folded code, that opens.
const reveal = (body) => {
  if (!new URLSearchParams(location.search).has("h")) return
  new MutationObserver(() => {
    for (const mark of body.querySelectorAll("details.library:not([open]) mark")) mark.closest("details").open = true
  }).observe(body, { childList: true, subtree: true })
}

document$.subscribe(({ body }) => {
  typeset(body)
  enlargeable(body)
  follow(body)
  results(body)
  reveal(body)
})
