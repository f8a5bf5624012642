"""One family of errors.

Every message states what was found, what is expected and what to do. The command line prints the message
alone and leaves with `exit_code`; Python users catch `RoundelError`.
"""


class RoundelError(Exception):
    """Base of everything that Roundel raises on purpose."""

    exit_code = 1

    everywhere = False
    """Every rank of a run raises it, so that one of them says it for all."""


class RecipeError(RoundelError):
    """A setting is unknown, out of range, or does not go with another one."""

    exit_code = 2


class ModelError(RoundelError):
    """The source model cannot be opened, is of the wrong kind, or is damaged."""

    exit_code = 3


class CalibrationError(RoundelError):
    """The calibration data cannot be read or do not suffice."""

    exit_code = 4


class FormatError(RoundelError):
    """A container cannot carry a setting, or what was written differs from what was tuned."""

    exit_code = 5


class OutputError(RoundelError):
    """The output folder cannot be written."""

    exit_code = 6


class NonFiniteError(RoundelError):
    """A weight, an activation or a loss is NaN or infinite."""

    exit_code = 7


class RankError(RoundelError):
    """Another process of a run on several ranks is gone, or was never there."""

    exit_code = 8


class HubError(RoundelError):
    """The hub does not take a result; the folder on this machine is whole where there is one."""

    exit_code = 9


class Stopped(RoundelError):
    """The work was asked to end (Ctrl-C) and ended at the next step."""

    exit_code = 130

    def __init__(self, message: str = "stopped; nothing was finished yet") -> None:
        super().__init__(message)
