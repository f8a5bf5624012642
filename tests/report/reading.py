"""A page read without a browser: what is in it, whether it is well formed, whether it would load anything."""

import re
from html.parser import HTMLParser

_VOID = {"meta", "link", "img", "br", "hr", "input", "area", "base", "col", "embed", "source", "track", "wbr"}
# Attributes that make a browser fetch something.
_LOADING = {"src", "srcset", "data", "poster", "background", "action", "formaction", "manifest", "ping"}


class Page(HTMLParser):
    """Attributes:
    ids: all ids, in their order.
    faults: tags that were not closed in their order.
    tags: names of all elements.
    references: `#id` that something points to.
    loads: addresses that would be fetched, and handlers of events.
    tables: cells of each table with an id or caption, row by row.
    text: all text.
    """

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.ids: list[str] = []
        self.faults: list[str] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self.loads: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.marked: list[str] = []
        self.headings: list[str] = []
        self.labels: dict[str, str] = {}
        self.text = ""
        self._open: list[str] = []
        self._rows: list[list[str]] | None = None
        self._row_class = ""
        self.feed(html)
        self.close()
        self.faults += [f"<{tag}> is never closed" for tag in self._open]
        self.references += re.findall(r"url\(#([^)]+)\)", html)
        self.loads += re.findall(r"url\((?!#)[^)]*\)|@import[^;]*", html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, dict(attrs))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, dict(attrs))

    def _note(self, tag: str, attributes: dict[str, str | None]) -> None:
        self.tags.append(tag)
        own = attributes.get("id")
        if own is not None:
            self.ids.append(own)
            self.labels[own] = attributes.get("aria-label") or ""
        for key, value in attributes.items():
            value = value or ""
            if key in ("href", "xlink:href"):
                if value.startswith("#"):
                    self.references.append(value[1:])
                elif not value.startswith("data:"):
                    self.loads.append(value)
            elif key in _LOADING and not value.startswith("data:"):
                self.loads.append(value)
            elif key.startswith("on"):
                self.loads.append(f"{key}={value}")
        if tag == "table":
            self._rows = self.tables.setdefault(own or f"table {len(self.tables)}", [])
        if tag == "tr" and self._rows is not None:
            self._rows.append([])
            self._row_class = attributes.get("class") or ""
        if tag in ("td", "th") and self._rows:
            self._rows[-1].append("")
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open[-1] != tag:
            self.faults.append(f"</{tag}> closes {self._open[-1:]}")
        if tag in self._open:
            while self._open.pop() != tag:
                pass
        if tag == "table":
            self._rows = None
        if tag == "tr" and self._rows and "marked" in self._row_class:
            self.marked.append(self._rows[-1][0])

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._rows and self._rows[-1] and {"td", "th"} & set(self._open[-3:]):
            self._rows[-1][-1] += data


def faults(html: str) -> list[str]:
    """What is wrong with a page that has to work alone, without scripts; empty for a good one."""
    page = Page(html)
    found = list(page.faults)
    found += [f"id {name} twice" for name in sorted(set(page.ids)) if page.ids.count(name) > 1]
    found += [f"#{name} is nowhere" for name in sorted(set(page.references) - set(page.ids))]
    found += [f"would load {address}" for address in page.loads]
    found += [f"<{tag}>" for tag in ("script", "iframe", "object", "embed", "link") if tag in page.tags]
    levels = [int(heading[1]) for heading in page.headings]
    found += [f"h{b} after h{a}" for a, b in zip([0, *levels], levels, strict=False) if b > a + 1]
    return found
