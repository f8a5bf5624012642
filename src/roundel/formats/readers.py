"""Which clients open a written folder, and what would have to be set so that more do."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Readers:
    """Clients of a written form.

    Attributes:
        clients: their names, with what they need in brackets.
        hint: which others do not open it, why, and the setting that would widen it; empty where none would.
    """

    clients: tuple[str, ...]
    hint: str = ""

    @property
    def summary(self) -> str:
        """In a line."""
        return f"Opens in: {', '.join(self.clients)}" + (f". {self.hint}" if self.hint else "")
