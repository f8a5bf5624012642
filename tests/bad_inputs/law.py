"""What must hold of every bad input."""

import re

from bad_inputs.case import Case
from bad_inputs.page import COMMAND, listed, row
from bad_inputs.run import outcome

# A message says what to do, one way or another; or it lists what there is to choose from.
ADVICE = re.compile(
    r"\b(expected|should|choose|pass|use|give|set|take|leave|narrow|must|known keys|may override|look like"
    r"|Possible options|auto, cpu, cuda)\b"
)


def one_message_and_no_change(case: Case) -> None:
    """And the message stands in docs/errors.md."""
    said = outcome(case)
    assert said.code == case.code, said.lines
    assert [line for line in said.lines if re.match("[eE]rror: ", line)] == said.lines[-1:]
    assert case.message in said.message
    assert ADVICE.search(said.message)
    assert "Traceback" not in "\n".join(said.lines)
    assert said.printed == ""
    assert said.changed == []
    assert listed(case) == row(case, said), f"`{COMMAND}` writes docs/errors.md anew"
