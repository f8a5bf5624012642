"""Whether this process is a fork of another one.

GNU's OpenMP keeps a pool of threads for each thread that has computed. A fork has the pool of the thread that forked,
but none of the threads in it, and waits for them forever; a thread that is new in the fork gets a pool of its own. It
has to be known from the first import of Roundel on, as there is no asking later.
"""

import os

_forked = False


def forked() -> bool:
    """Whether the process has been forked since Roundel was imported."""
    return _forked


def _mark() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_mark)
