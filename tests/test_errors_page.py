"""docs/errors.md lists every bad input, in order; that each row says what the code says is a law of the rows."""

from pathlib import Path

from bad_inputs.areas import AREAS
from bad_inputs.page import COMMAND, ERRORS, listed, written

TESTS = Path(__file__).parent


def test_the_page_has_every_area_and_every_case_in_order() -> None:
    assert ERRORS.read_text(encoding="utf-8") == written(AREAS, listed), f"`{COMMAND}` writes it anew"


def test_no_two_cases_have_one_row() -> None:
    cases = [case for area in AREAS for case in area.cases]
    assert len({(case.section, case.summary) for case in cases}) == len(cases)


def test_every_area_is_on_the_page_and_is_tested() -> None:
    """Files with an area are as many as areas, and a test beside each holds it to the law."""
    files = [path for path in TESTS.rglob("bad_*.py") if "\nAREA = " in path.read_text(encoding="utf-8")]
    assert len(files) == len(AREAS)
    for path in files:
        beside = "".join(test.read_text(encoding="utf-8") for test in path.parent.glob("test_bad_*.py"))
        assert f"{path.stem}.AREA" in beside, path
