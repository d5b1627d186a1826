// Typeset the mathematics of each page, also after a search or a click has replaced it.
document$.subscribe(({ body }) => renderMathInElement(body, {
  delimiters: [{ left: "\\[", right: "\\]", display: true }, { left: "\\(", right: "\\)", display: false }],
  throwOnError: false,
}))
