"""Bad numbers of processes."""

import pytest

from bad_inputs.case import Case
from bad_inputs.law import one_message_and_no_change
from cli import bad_ranks

pytestmark = [pytest.mark.reports, pytest.mark.slow("runs a command for each case")]


@pytest.mark.parametrize("case", bad_ranks.AREA.cases, ids=str)
def test_bad_input_is_one_message_and_changes_nothing(case: Case) -> None:
    one_message_and_no_change(case)
