"""Bad texts, references and places for figures."""

import pytest

from bad_inputs.case import Case
from bad_inputs.law import one_message_and_no_change
from evaluation import bad_evaluation, bad_held_out, bad_predictions

pytestmark = [pytest.mark.reports, pytest.mark.slow("runs a command for each case")]

AREAS = (bad_evaluation.AREA, bad_predictions.AREA, bad_held_out.AREA)
CASES = [case for area in AREAS for case in area.cases]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bad_input_is_one_message_and_changes_nothing(case: Case) -> None:
    one_message_and_no_change(case)
