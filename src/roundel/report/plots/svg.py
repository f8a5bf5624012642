"""A matplotlib figure as a piece of SVG that lives inside a page.

A page may hold twenty figures, is read in the light and in the dark, and is compared byte by byte. So a figure
is drawn with colours that stand for roles (`INK`, `ACCENT`, ...), which become CSS variables here; its texts take
the page's font; its ids get the figure's name in front; and neither date nor chance gets in. No global state of
matplotlib is touched: no pyplot, settings inside a context only.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any, cast

# Roles, as colours that no map of colours contains. The page says what they look like.
INK = "#010203"
SOFT = "#010204"
RULE = "#010205"
ACCENT = "#010206"
PAPER = "#010207"
SECOND = "#010208"
_ROLES = {
    INK: "var(--ink)",
    SOFT: "var(--soft)",
    RULE: "var(--rule)",
    ACCENT: "var(--accent)",
    PAPER: "var(--paper)",
    SECOND: "var(--second)",
}

_SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "roundel",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.parse_math": False,  # a name may hold dollars
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": SOFT,
    "axes.facecolor": "none",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "legend.frameon": False,
    "path.simplify": False,
}


@contextmanager
def drawing() -> Iterator[None]:
    """Settings under which a figure is made and written; whatever the user has set is out of the way meanwhile."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(cast(Any, _SETTINGS))
        yield


def blank(width: float, height: float) -> Any:
    """An empty figure of some width and height in the page's pixels at its natural size."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")


def to_svg(figure: Any, name: str, label: str, tips: Mapping[str, Sequence[str]] | None = None) -> str:
    """Write a figure.

    Args:
        figure: from `blank`, inside `drawing`.
        name: its id in the page; letters, digits and dashes.
        label: what it shows, in words, for those who do not see it.
        tips: for a group of shapes, by its gid, what each says under the pointer, in the order of drawing.
    """
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    for gid, words in (tips or {}).items():
        text = _with_tips(text, gid, words)
    text = text.replace("xlink:href", "href")
    text = re.sub(r'\b(id|href)="(#?)([^"]*)"', lambda m: f'{m[1]}="{_own(m, name)}"', text)
    text = re.sub(r"url\(#([^)]*)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r"font: (?:(bold) )?([\d.]+)px[^;\"]*", _font, text)
    for role, variable in _ROLES.items():
        text = text.replace(role, variable)
    text = re.sub(r'\b(?:d|x|y|points|transform)="[^"]*"', _rounded, text)
    text = re.sub(r"\s*\n\s*", "\n", text)
    text = re.sub(r' *\n(?=L |C |Q |z|M |")', " ", text)
    view = re.search(r'viewBox="([^"]*)"', text)
    assert view is not None
    width = float(view[1].split()[2])
    title = escape(label)
    opening = (
        f'<svg id="{name}" class="plot" role="img" viewBox="{view[1]}" style="--natural:{width:.0f}px" '
        f'aria-label="{title}">\n<title>{title}</title>'
    )
    return re.sub(r"^<svg[^>]*>", lambda m: opening, text).strip() + "\n"


def _own(match: re.Match[str], name: str) -> str:
    if match[1] == "href" and not match[2]:
        return match[3]  # an image's data
    return f"{match[2]}{name}-{match[3]}"


def _rounded(match: re.Match[str]) -> str:
    """Places to a hundredth of a pixel: half the file, and nothing that an eye sees."""
    return re.sub(r"\d+\.\d{3,}", lambda m: f"{float(m[0]):.2f}".rstrip("0").rstrip("."), match[0])


def _font(match: re.Match[str]) -> str:
    weight = "font-weight: 600; " if match[1] else ""
    return f"{weight}font-size: {match[2]}px"


def _with_tips(text: str, gid: str, words: Sequence[str]) -> str:
    """Give the paths of one group titles. A group holds its shapes and nothing else, each an empty element."""
    begin = text.index(f'<g id="{gid}"')
    end = text.index("</g>", begin)
    body, said = text[begin:end], iter(words)

    def told(match: re.Match[str]) -> str:
        tip = next(said, "")
        return f"<path {match[1]}><title>{escape(tip)}</title></path>" if tip else match[0]

    return text[:begin] + re.sub(r"<path ([^>]*?)/>", told, body, flags=re.DOTALL) + text[end:]
