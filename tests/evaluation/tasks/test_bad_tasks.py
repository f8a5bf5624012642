"""Bad tasks and documents."""

import pytest

from bad_inputs.case import Case
from bad_inputs.law import one_message_and_no_change
from evaluation.tasks import bad_tasks

pytestmark = [pytest.mark.reports, pytest.mark.slow("loads the harness")]


@pytest.mark.parametrize("case", bad_tasks.AREA.cases, ids=str)
def test_bad_input_is_one_message_and_changes_nothing(case: Case) -> None:
    one_message_and_no_change(case)
