"""Answers to alerts: which are waited for, which have come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agentforge.run.commands import Command


@dataclass(frozen=True, slots=True)
class Answer:
    """What a user chose for an alert."""

    alert_id: str
    action: str
    by: str
    command_id: str


class AnswerDesk:
    """Keeps answers until the engine takes them; refuses those nobody waits for."""

    def __init__(self) -> None:
        self._expected: dict[str, tuple[str, ...]] = {}
        self._answers: dict[str, Answer] = {}

    def expect(self, alert_id: str, actions: Sequence[str]) -> None:
        """Take answers for this alert; no actions: any."""
        self._expected[alert_id] = tuple(actions)

    def is_expected(self, alert_id: str) -> bool:
        """True between `expect` and `take` or `settle`."""
        return alert_id in self._expected

    def offer(self, command: Command) -> str:
        """Keep an answer; what is wrong with it, or nothing."""
        alert_id, action = str(command.args["alert"]), str(command.args["action"])
        allowed = self._expected.get(alert_id)
        if allowed is None:
            waiting = ", ".join(self._expected) or "none"
            return f"no alert {alert_id!r} waits for an answer; waiting: {waiting}"
        if allowed and action not in allowed:
            return f"{action!r} is no action of alert {alert_id}; allowed: {', '.join(allowed)}"
        if alert_id in self._answers:
            return f"alert {alert_id} is already answered"
        self._answers[alert_id] = Answer(alert_id, action, command.by, command.id)
        return ""

    def take(self, alert_id: str) -> Answer | None:
        """The answer of an alert, which is then no longer expected; None while there is none."""
        answer = self._answers.pop(alert_id, None)
        if answer is not None:
            self._expected.pop(alert_id, None)
        return answer

    def settle(self, alert_id: str) -> Answer | None:
        """Expect no answer any more; one that came and was not taken."""
        self._expected.pop(alert_id, None)
        return self._answers.pop(alert_id, None)

    def untaken(self) -> list[Answer]:
        """Answers that came and were not taken."""
        return list(self._answers.values())
