"""How fast models are on this machine, side by side.

    options.py       what is asked for
    under_test.py    a model in a process of its own: opened, and timed
    worker.py        that process: it answers, line by line
    asking.py        its other end
    turns.py         rounds over all of them, and what comes of them

Every model has a process of its own, so that peaks of memory do not mix; all stay alive and are asked in turns, since a
machine that others use is now faster and now slower.
"""
