"""Bad input of the other commands."""

import pytest

from bad_inputs.case import Case
from bad_inputs.law import one_message_and_no_change
from workflows import (
    bad_benches,
    bad_comparisons,
    bad_exports,
    bad_generation,
    bad_inspections,
    bad_pushes,
    bad_reports,
    bad_sweeps,
)

pytestmark = [pytest.mark.reports, pytest.mark.slow("runs a command for each case")]

AREAS = (
    bad_comparisons.AREA,
    bad_reports.AREA,
    bad_exports.AREA,
    bad_pushes.AREA,
    bad_inspections.AREA,
    bad_generation.AREA,
    bad_benches.AREA,
    bad_sweeps.AREA,
)
CASES = [case for area in AREAS for case in area.cases]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bad_input_is_one_message_and_changes_nothing(case: Case) -> None:
    one_message_and_no_change(case)
