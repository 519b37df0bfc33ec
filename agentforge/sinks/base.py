"""What a sink is."""

from __future__ import annotations

from typing import Protocol

from agentforge.events import Stamped


class Sink(Protocol):
    """Takes the events of a run, from more than one thread but never two at once."""

    def emit(self, stamped: Stamped) -> None:
        """Take one event."""

    def close(self) -> None:
        """Finish; nothing is emitted afterwards."""
