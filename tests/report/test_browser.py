"""The browser's eyes are open: each fault that a page must not have is seen where it is put in."""

from pathlib import Path

import pytest
from browser import Browser
from browser_laws import faults_in_browser
from made import made_report
from reading import faults

from roundel.report.page import render_page

_POLICY = '<meta http-equiv="Content-Security-Policy"'


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        ("<script>1</script>", "<script>"),
        ('<img src="https://example.org/x.png" alt="">', "would load https://example.org/x.png"),
        ('<p style="background: url(x.png)"></p>', "would load url(x.png)"),
        ('<p onclick="x()"></p>', "would load onclick=x()"),
        ('<p id="quality"></p>', "id quality twice"),
        ("<div>", "closes ['div']"),
    ],
)
def test_a_fault_is_read(fault: str, seen: str) -> None:
    assert any(seen in found for found in faults(_with(fault)))


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        ("<script>console.error('broken')</script>", "says broken"),
        ("<script>nothing.at.all()</script>", "says Uncaught"),
        ('<img src="http://127.0.0.1:9/x.png" alt="">', "asks for http://127.0.0.1:9/x.png"),
        ("<style>@import 'style.css';</style>", "style.css"),
        ('<div style="width: 700px">x</div>', "wider than 360"),
        ('<svg class="plot" id="none" viewBox="0 0 9 9"></svg>', "none is empty"),
        (
            '<svg class="plot" id="c" viewBox="0 0 90 90"><path d="M0 0"/><text x="80" y="9">long words</text></svg>',
            "is cut",
        ),
        ("<style>:root { --soft: #8a8a8a; }</style>", "contrast"),
    ],
)
def test_a_fault_is_seen(fault: str, seen: str, browser: Browser, tmp_path: Path) -> None:
    # Without the policy, which would stop it.
    page = tmp_path / "page.html"
    page.write_text(_with(fault).replace(_POLICY, "<meta name='none'"), encoding="utf-8")
    assert any(seen in found for found in faults_in_browser(browser, page))


def test_the_policy_lets_nothing_out(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(_with('<img src="http://127.0.0.1:9/x.png" alt="">'), encoding="utf-8")
    found = faults_in_browser(browser, page)
    assert any("Content Security Policy" in fault for fault in found)


def _with(fault: str) -> str:
    html = render_page(made_report(2))
    assert "</main>" in html
    return html.replace("</main>", fault + "</main>")
