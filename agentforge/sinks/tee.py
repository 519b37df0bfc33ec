"""One door for all events: numbered, logged first, then shown to everyone else."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence

from agentforge.errors import PreflightError
from agentforge.events import Alert, Event, Heartbeat, Stamped
from agentforge.sinks.base import Sink
from agentforge.sinks.jsonl import JsonlSink


class TeeSink:
    """Stamps events and hands them to the log, then (heartbeats excepted) to the other sinks.

    Safe for several threads; the log holds the exact order. Another sink that fails becomes one
    `Alert` (code ``sink``) and is not used any more; the run never notices.

    Args:
        log: The event log; the only sink that may stop a run.
        others: Sinks that may fail.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        log: JsonlSink,
        others: Sequence[Sink] = (),
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._log = log
        self._others = list(others)
        self._clock = clock
        self._lock = threading.RLock()
        self._log_lock = threading.Lock()

    def add(self, sink: Sink) -> None:
        """Use one more sink from now on."""
        with self._lock:
            self._others.append(sink)

    def emit(self, event: Event) -> None:
        """Number, time and hand on one event.

        Raises:
            DiskFullError: The log could not be written; the run must stop.
            PreflightError: As above, for another reason.
        """
        failure: PreflightError | None = None
        with self._log_lock:
            stamped = Stamped(seq=self._log.next_seq, t=self._clock(), event=event)
            try:
                self._log.emit(stamped)
            except PreflightError as error:
                failure = error
        # Heartbeats end here: while another sink is slow (W&B may wait for its server for a
        # minute), the run must not look dead.
        if not isinstance(event, Heartbeat):
            self._hand_on(stamped)
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Close the other sinks, then the log."""
        with self._lock:
            for sink in tuple(self._others):
                try:
                    sink.close()
                except Exception as error:
                    self._drop(sink, error)
            self._others.clear()
            self._log.close()

    def _hand_on(self, stamped: Stamped) -> None:
        with self._lock:
            for sink in tuple(self._others):
                if sink not in self._others:
                    continue  # it failed while an alert of another one was handed on
                try:
                    sink.emit(stamped)
                except Exception as error:  # whatever a service's client raises
                    self._drop(sink, error)

    def _drop(self, sink: Sink, error: Exception) -> None:
        if sink not in self._others:
            return
        self._others.remove(sink)
        name = type(sink).__name__
        alert = Alert(
            id=f"sink-{name}-{self._log.next_seq}",
            level="warning",
            code="sink",
            title=f"{name} failed and is switched off for this run",
            detail=f"{type(error).__name__}: {error}",
            cause="nothing is lost: every event is in the run directory's own log",
        )
        with contextlib.suppress(PreflightError):  # the next event of the run meets a bad disk too
            self.emit(alert)
