"""Bad recipes and options."""

import bad_recipes
import pytest

from bad_inputs.case import Case
from bad_inputs.law import one_message_and_no_change

pytestmark = [pytest.mark.reports, pytest.mark.slow("runs a command for each case")]


@pytest.mark.parametrize("case", bad_recipes.AREA.cases, ids=str)
def test_bad_input_is_one_message_and_changes_nothing(case: Case) -> None:
    one_message_and_no_change(case)
