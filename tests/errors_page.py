"""Writes docs/errors.md anew, from running every bad input:

python tests/errors_page.py
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # as in the tests

from bad_inputs.areas import AREAS
from bad_inputs.page import ERRORS, row, written
from bad_inputs.run import outcome

if __name__ == "__main__":
    ERRORS.write_text(written(AREAS, lambda case: row(case, outcome(case))), encoding="utf-8")
