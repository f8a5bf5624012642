"""What holds of every page in a real browser, wide and narrow, light and dark."""

from pathlib import Path
from typing import Any

from browser import Browser

_OPEN = "document.querySelectorAll('details').forEach(d => d.open = true)"
# Reports by name what is wrong; an empty list is expected.
_EMPTY_DRAWINGS = """
[...document.querySelectorAll('svg.plot, .maps img')].filter(e => {
  const box = e.getBoundingClientRect();
  const shapes = e.tagName === 'IMG' ? e.naturalWidth : e.querySelectorAll('path, use').length;
  return box.width < 60 || box.height < 40 || !shapes;
}).map(e => e.id || e.alt)
"""
_CUT_WORDS = """
[...document.querySelectorAll('svg.plot text')].filter(t => {
  const word = t.getBoundingClientRect(), all = t.closest('svg').getBoundingClientRect();
  return word.left < all.left - 1 || word.right > all.right + 1 ||
    word.top < all.top - 1 || word.bottom > all.bottom + 1;
}).map(t => t.closest('svg').id + ': ' + t.textContent)
"""
_TOUCHING_WORDS = """
[...document.querySelectorAll('svg.plot')].flatMap(svg => {
  const words = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
  return words.flatMap(([a, p], i) => words.slice(i + 1).filter(([b, q]) =>
    Math.min(p.right, q.right) - Math.max(p.left, q.left) > 1 &&
    Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 3
  ).map(([b]) => svg.id + ': ' + a + ' / ' + b));
})
"""
_OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
# Contrast of the words in drawings to the page, as WCAG defines it.
_CONTRAST = """
(() => {
  const shine = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map(x => x / 255)
      .map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = shine(getComputedStyle(document.body).backgroundColor);
  return [...document.querySelectorAll('svg.plot text')].map(t => shine(getComputedStyle(t).fill))
    .map(word => (Math.max(word, paper) + 0.05) / (Math.min(word, paper) + 0.05))
    .reduce((a, b) => Math.min(a, b), 21);
})()
"""
_DARK = "getComputedStyle(document.body).backgroundColor"
_QUESTIONS = (_EMPTY_DRAWINGS, _CUT_WORDS, _TOUCHING_WORDS, _OVERFLOW, _OPEN, _OVERFLOW, _CONTRAST, _DARK)


def faults_in_browser(browser: Browser, page: Path) -> list[str]:
    """What is wrong with a page at 1280 and 360 pixels; empty for a good one."""
    found: list[str] = []
    papers: list[Any] = []
    for width, dark in ((1280, False), (360, True)):
        seen = browser.visit(page, _QUESTIONS, width=width, dark=dark)
        empty, cut, touching, closed, _, opened, contrast, paper = seen.values
        found += [f"asks for {address}" for address in seen.requests]
        found += [f"says {words}" for words in seen.console]
        found += [f"{name} is empty at {width}" for name in empty]
        found += [f"{words} is cut at {width}" for words in cut]
        found += [f"{words} touch at {width}" for words in touching]
        if closed > 0 or opened > 0:
            found.append(f"wider than {width} pixels by {max(closed, opened)}")
        if contrast < 4.5:
            found.append(f"words in drawings have a contrast of {contrast:.1f} at {width}")
        papers.append(paper)
    if papers[0] == papers[1]:
        found.append("the same by day and by night")
    return found
