"""What layouts of other clients do not carry."""

import pytest

from bad_inputs.case import Case
from bad_inputs.law import one_message_and_no_change
from formats import bad_layouts


@pytest.mark.parametrize("case", bad_layouts.AREA.cases, ids=str)
def test_bad_input_is_one_message_and_changes_nothing(case: Case) -> None:
    one_message_and_no_change(case)
