"""Where the result of a run goes: a folder, memory, or nowhere (a plan)."""

from dataclasses import dataclass, field
from pathlib import Path

from roundel.engine.journal import Journal
from roundel.engine.streams import StreamOptions
from roundel.workflows.hub_target import HubTarget


@dataclass(frozen=True, kw_only=True)
class WriteOptions:
    """How a run writes its folder.

    Attributes:
        overwrite: what Roundel wrote there may be replaced.
        restart: an interrupted run is forgotten.
        stream: blocks are never in memory together.
        streams: where the activations between blocks are.
        like: a file in the output's format whose metadata it gets.
        held_out: text on which the result is measured for the report; None: it is not.
        hub: where on the hub it goes, too; None: nowhere.
        within: seconds that the run may take; None: as long as its recipe does.
    """

    overwrite: bool = False
    restart: bool = False
    stream: bool = False
    streams: StreamOptions = field(default_factory=StreamOptions)
    like: Path | None = None
    held_out: str | None = None
    hub: HubTarget | None = None
    within: float | None = None


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Where a result goes.

    Attributes:
        target: the folder that is, or in a plan would be, written; None: the result stays in memory.
        stream_with: folder for the converted tensors of a streamed model; None: it is opened whole.
        journal: of the target, for what is finished; None: nothing is written.
        options: how it is written.
    """

    target: Path | None = None
    stream_with: Path | None = None
    journal: Journal | None = None
    options: WriteOptions = field(default_factory=WriteOptions)

    @classmethod
    def folder(cls, journal: Journal, options: WriteOptions) -> "Destination":
        """The target of a journal."""
        stream_with = journal.converted if options.stream else None
        return cls(target=journal.target, stream_with=stream_with, journal=journal, options=options)
