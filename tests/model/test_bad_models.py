"""Bad models: their files, configs, tensors and blocks."""

import pytest

from bad_inputs.case import Case
from bad_inputs.law import one_message_and_no_change
from model import bad_blocks, bad_models, bad_tensors, bad_weight_files

pytestmark = [pytest.mark.reports, pytest.mark.slow("runs a command for each case")]

AREAS = (bad_weight_files.AREA, bad_models.AREA, bad_tensors.AREA, bad_blocks.AREA)
CASES = [case for area in AREAS for case in area.cases]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bad_input_is_one_message_and_changes_nothing(case: Case) -> None:
    one_message_and_no_change(case)
