"""What users ask of a running engine, looked at once per step.

The loop's side of it is::

    asked = control.poll(step)
    if asked.abort:
        raise RunAborted
    if asked.checkpoint or asked.suspend:
        store.save(...)
        control.done(asked, "checkpoint")
    if asked.suspend:
        raise RunSuspended
    if asked.finish:
        control.done(asked, "finish")
        break

Rules:

* A request stays in every `Directive` until `Control.done` is told, so a loop that cannot do it
  passes it on to the next one. Each command is answered exactly once by a `ControlAck`: pause,
  resume and set when they are applied, a checkpoint or finish by `done`, suspend and abort by
  `close`, when the run has really been left.
* Commands sent while no engine ran (before this process was started) are answered
  "ignored" and never obeyed, ``set`` included: nobody can tell what they were meant for.
* While paused, `poll` holds everything in memory and reads on every 50 ms. It comes back for a
  checkpoint with ``paused`` set; the loop saves and polls again before its next step.
"""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Literal

from pydantic import JsonValue

from agentforge.config.schema import RunConfig
from agentforge.errors import ConfigError
from agentforge.events import ConfigChanged, ControlAck, Event, LogLine, RunState, StateChanged
from agentforge.run.answers import Answer, AnswerDesk
from agentforge.run.commands import Command, CommandReader
from agentforge.run.commands import append_command as append_command
from agentforge.run.layout import RunLayout
from agentforge.run.manifest import Manifest, save_manifest
from agentforge.run.process import started_at
from agentforge.run.tail import read_events
from agentforge.run.tuning import apply_change as apply_change
from agentforge.run.tuning import value_of

Request = Literal["checkpoint", "suspend", "finish", "abort"]
REQUESTS: tuple[Request, ...] = ("checkpoint", "suspend", "finish", "abort")

POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Change:
    """One value that was changed by ``set``; `value` is as the schema read it."""

    key: str
    value: JsonValue
    by: str
    id: str


@dataclass(frozen=True, slots=True)
class Directive:
    """What the loop is asked for at this step boundary.

    Attributes:
        checkpoint: Save a checkpoint, then go on.
        suspend: Save a checkpoint, then raise `RunSuspended`.
        finish: End the phase now and keep its result.
        abort: Raise `RunAborted`; write nothing more.
        paused: The run is paused: do what is asked and poll again before the next step.
        changes: Values changed since the last poll; `Control.config` already holds them.
        ids: (id, verb) of the commands behind this, for `Control.done`.
    """

    checkpoint: bool = False
    suspend: bool = False
    finish: bool = False
    abort: bool = False
    paused: bool = False
    changes: tuple[Change, ...] = ()
    ids: tuple[tuple[str, Request], ...] = ()


class Control:
    """Reads ``control.jsonl`` for the engine; used from the engine's main thread only.

    Args:
        layout: The run.
        config: The configuration in force; `config` holds it with later changes.
        emit: Tells of acknowledgements and changes.
        manifest: Where a changed value is written, so that a resumed run keeps it.
        engine_started: Seconds since the epoch before which commands were meant for an earlier
            engine; default: the start of this process.
        poll_s: Seconds between two looks at the file while paused or waiting.
    """

    def __init__(
        self,
        layout: RunLayout,
        config: RunConfig,
        emit: Callable[[Event], None],
        *,
        manifest: Manifest | None = None,
        engine_started: float | None = None,
        poll_s: float = POLL_S,
    ) -> None:
        self._layout = layout
        self._config = config
        self._emit = emit
        self._manifest = manifest
        started = started_at() if engine_started is None else engine_started
        self._engine_started = started
        self._poll_s = poll_s
        self._reader = CommandReader(layout.control)
        self._old_bytes = layout.control.stat().st_size if layout.control.exists() else 0
        self._inbox: deque[Command] = deque()
        self._seen: set[str] = set()
        self._pending: dict[str, Request] = {}
        self._offered: set[str] = set()
        self._changes: list[Change] = []
        self._desk = AnswerDesk()
        self._paused = False
        self._step = 0
        self._signals: list[str] = []
        self._signals_told = 0
        self.followers: list[RunLayout] = []
        """Runs that are paused and resumed with this one."""
        self._skip_commands_of_earlier_engines()

    @property
    def config(self) -> RunConfig:
        """The configuration now in force."""
        return self._config

    @property
    def signals(self) -> tuple[str, ...]:
        """Names of the signals that asked to stop, in order."""
        return tuple(self._signals)

    def poll(self, step: int) -> Directive:
        """What users want at this step boundary; holds here while the run is paused.

        Args:
            step: Steps done in the current stage; acknowledgements carry it.
        """
        self._step = step
        while True:
            self._receive()
            self._tell_signals()
            while self._inbox:
                self._obey(self._inbox.popleft())
            asked = self._directive()
            if self._paused and (asked.suspend or asked.abort or asked.finish):
                self._set_paused(paused=False, tell=asked.finish)
                asked = self._directive()
            new = {command_id for command_id, _ in asked.ids} - self._offered
            if not self._paused or new:
                self._offered |= new
                self._changes.clear()
                return asked
            time.sleep(self._poll_s)

    def done(self, asked: Directive, *verbs: Request, message: str = "", ok: bool = True) -> None:
        """Acknowledge what was asked, now that it has been done (or has failed).

        Args:
            asked: What `poll` returned.
            verbs: Which of its requests; none: all of them.
            message: For people.
            ok: False when it could not be done.
        """
        for command_id, verb in asked.ids:
            if command_id in self._pending and (not verbs or verb in verbs):
                del self._pending[command_id]
                self._ack(command_id, verb, ok, message)

    def close(self, state: RunState) -> None:
        """Answer everything still open, now that the run is left in `state`."""
        self._receive()
        while self._inbox:
            command = self._inbox.popleft()
            message = command.problem or f"ignored: the run has ended ({state})"
            self._ack(command.id, command.verb, False, message)
        kept = {"suspended": "suspend", "aborted": "abort"}.get(state)
        for command_id, verb in self._pending.items():
            message = "" if verb == kept else f"not done: the run has ended ({state})"
            self._ack(command_id, verb, verb == kept, message)
        for answer in self._desk.untaken():
            self._refuse_late(answer)
        self._pending.clear()

    def request_stop(self, why: str) -> None:
        """Ask for a suspend, as SIGTERM does; the second call asks for an abort.

        Safe in a signal handler: it only notes the request.
        """
        self._signals.append(why)

    def expect(self, alert_id: str, actions: Sequence[str] = ()) -> None:
        """Take answers for this alert from now on; call it before the alert is emitted.

        Args:
            alert_id: The alert.
            actions: Keys that may be answered; none: any.
        """
        self._desk.expect(alert_id, actions)

    def settle(self, alert_id: str) -> None:
        """Take no more answers for this alert: it has been decided without one."""
        late = self._desk.settle(alert_id)
        if late is not None:
            self._refuse_late(late)

    def take_answer(self, alert_id: str) -> Answer | None:
        """The answer to an expected alert if there is one; it is acknowledged and forgotten."""
        self._receive()
        others: deque[Command] = deque()
        while self._inbox:
            command = self._inbox.popleft()
            if command.verb == "answer" and not command.problem:
                self._take_in(command)
            else:
                others.append(command)
        self._inbox = others
        answer = self._desk.take(alert_id)
        if answer is not None:
            self._ack(answer.command_id, "answer", True, "")
        return answer

    def wait_answer(
        self, alert_id: str, timeout_s: float, actions: Sequence[str] = ()
    ) -> Answer | None:
        """Wait for the answer to an alert.

        Returns:
            The answer; None after `timeout_s` seconds, or at once when someone asks to suspend,
            finish or abort (the next `poll` tells).
        """
        if not self._desk.is_expected(alert_id):
            self._desk.expect(alert_id, actions)
        deadline = time.monotonic() + timeout_s
        while True:
            answer = self.take_answer(alert_id)
            if answer is not None:
                return answer
            waiting = [*self._pending.values(), *(c.verb for c in self._inbox if not c.problem)]
            stopping = any(verb in ("suspend", "finish", "abort") for verb in waiting)
            if self._signals or stopping or time.monotonic() >= deadline:
                return None
            time.sleep(self._poll_s)

    def _receive(self) -> None:
        """Put new commands into the inbox; a second command under one id is dropped."""
        for command in self._reader.read():
            if command.id in self._seen:
                continue
            self._seen.add(command.id)
            self._inbox.append(command)

    def _skip_commands_of_earlier_engines(self) -> None:
        self._receive()
        if not self._inbox:
            return
        acks = read_events(self._layout.events, kinds=("control_ack",))
        answered = {s.event.id for s in acks if isinstance(s.event, ControlAck)}
        waiting = [command for command in self._inbox if command.id not in answered]
        self._inbox = deque(command for command in waiting if not self._is_stale(command))
        for command in waiting:
            if self._is_stale(command):
                message = command.problem or "ignored: the engine was not running; send it again"
                self._ack(command.id, command.verb, False, message)

    def _is_stale(self, command: Command) -> bool:
        if command.t is None:
            return command.offset < self._old_bytes
        return command.t < self._engine_started

    def _obey(self, command: Command) -> None:
        """Apply one command, or note it for the loop."""
        verb = command.verb
        if command.problem:
            self._ack(command.id, verb, False, command.problem)
        elif verb in ("pause", "resume"):
            if self._paused == (verb == "pause"):
                state = "paused" if self._paused else "running"
                self._ack(command.id, verb, True, f"it was already {state}")
            else:
                self._set_paused(paused=verb == "pause", tell=True)
                self._ack(command.id, verb, True, "")
        elif verb == "set":
            self._change(command)
        elif verb == "answer":
            self._take_in(command)
        else:
            for request in REQUESTS:
                if verb == request:
                    self._pending[command.id] = request

    def _set_paused(self, *, paused: bool, tell: bool) -> None:
        self._paused = paused
        for follower in self.followers:
            append_command(follower, "pause" if paused else "resume", by=self._layout.run_id)
        if tell:
            self._emit(StateChanged(state="paused" if paused else "running"))

    def _change(self, command: Command) -> None:
        key, value = command.args["key"], command.args["value"]
        try:
            if not isinstance(key, str):
                raise ConfigError(f"key {key!r} must be text")
            config = apply_change(self._config, key, value)
        except ConfigError as error:
            self._ack(command.id, "set", False, str(error))
            return
        old = value_of(self._config, key)
        new = value_of(config, key)
        self._config = config
        if self._manifest is not None:
            self._manifest.config = config.model_dump(mode="json")
            self._manifest.provenance[key] = f"set by {command.by}"
            save_manifest(self._layout, self._manifest)
        self._changes.append(Change(key=key, value=value, by=command.by, id=command.id))
        self._emit(ConfigChanged(key=key, old=old, new=new, by=command.by, step=self._step))
        for follower in self.followers:
            args = {"key": key, "value": value}
            append_command(follower, "set", args, by=self._layout.run_id)
        self._ack(command.id, "set", True, f"{key}: {old} -> {new}")

    def _take_in(self, command: Command) -> None:
        """Keep an answer for whoever waits for it, or refuse it."""
        problem = self._desk.offer(command)
        if problem:
            self._ack(command.id, "answer", False, problem)

    def _refuse_late(self, answer: Answer) -> None:
        message = f"alert {answer.alert_id} was decided without an answer"
        self._ack(answer.command_id, "answer", False, message)

    def _tell_signals(self) -> None:
        while self._signals_told < len(self._signals):
            name = self._signals[self._signals_told]
            self._signals_told += 1
            what = "suspending" if self._signals_told == 1 else "aborting"
            self._emit(LogLine(level="info", source="control", text=f"{name}: {what}"))

    def _directive(self) -> Directive:
        verbs = set(self._pending.values())
        abort = "abort" in verbs or len(self._signals) > 1
        return Directive(
            checkpoint="checkpoint" in verbs,
            suspend=bool("suspend" in verbs or self._signals) and not abort,
            finish="finish" in verbs,
            abort=abort,
            paused=self._paused,
            changes=tuple(self._changes),
            ids=tuple(self._pending.items()),
        )

    def _ack(self, command_id: str, verb: str, ok: bool, message: str) -> None:
        self._emit(ControlAck(id=command_id, verb=verb, ok=ok, step=self._step, message=message))


def install_signal_handlers(control: Control) -> None:
    """SIGTERM and SIGINT suspend the run at its next step, a second one aborts it.

    After the second one the system's own handling is back, so that a third ends a process that no
    longer reaches a step boundary. SIGHUP is ignored: a closed terminal ends nothing.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        control.request_stop(signal.Signals(number).name)
        if len(control.signals) > 1:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    if os.name == "posix":
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
