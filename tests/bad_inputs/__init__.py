"""Bad input: each gives one message, and leaves everything as it was.

A case damages a copy of a trained model, or gives a command something wrong, and is run through the command line's
own `main`. The message must come alone, say what was found and what to do, and no file may appear or change.

    box.py          a folder for one case, and what damages a model in it
    commands.py     commands that cases of several areas give
    case.py         a case, and the cases of an area
    run.py          a command in this process: what it said, printed and changed
    law.py          what must hold of every case
    page.py         docs/errors.md; `python tests/errors_page.py` writes it anew
    areas.py        all areas, in the order of the page

The cases are data beside the tests of their area: `bad_*.py`, and `test_bad_*.py` holds each to the law. A new case
is a row there; a new area stands in areas.py too.
"""
