"""Who decides about an alert: the policy, or an answer that came first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agentforge.config.load import load_config
from agentforge.events import ActionTaken, Alert, AlertAction, ControlAck, Event
from agentforge.interventions import CONTINUE, STOP, decide, intervention
from agentforge.run.commands import append_command
from agentforge.run.context import RunContext
from agentforge.run.control import Control
from agentforge.run.layout import create_run_dir
from agentforge.run.manifest import new_manifest

SHRINK = AlertAction(key="shrink", label="Shrink it", consequence="it gets smaller")


class Run:
    """A real context whose events are kept in a list."""

    def __init__(self, folder: Path, policy: str) -> None:
        self.config = load_config(preset="smoke", env={}, sets=[f"on_alert={policy}"]).config
        self.layout = create_run_dir(folder, "smoke", 1)
        self.events: list[Event] = []
        manifest = new_manifest(self.layout, self.config, {})
        self.control = Control(self.layout, self.config, self.events.append, manifest=manifest)
        self.context = RunContext(
            layout=self.layout,
            manifest=manifest,
            emit=self.events.append,
            control=self.control,
            resumed=False,
        )

    def decide(self, alert: Alert) -> str:
        return decide(alert, self.context)

    def taken(self) -> list[ActionTaken]:
        return [e for e in self.events if isinstance(e, ActionTaken)]

    def answer(self, alert: str, action: str) -> None:
        append_command(self.layout, "answer", {"alert": alert, "action": action}, by="ada")


@pytest.fixture
def run(tmp_path: Path) -> Callable[[str], Run]:
    return lambda policy: Run(tmp_path, policy)


def alert(name: str = "a1") -> Alert:
    return intervention(
        alert_id=name,
        code="demo",
        title="Too large",
        detail="7 against 5",
        cause="growth",
        actions=(SHRINK,),
        recommended="shrink",
    )


def test_every_intervention_can_be_stopped_and_ignored() -> None:
    made = alert()
    assert made.actions == (SHRINK, CONTINUE, STOP)
    assert 2 <= len(made.actions) <= 4
    assert made.recommended in {a.key for a in made.actions}
    assert made.level == "warning"
    assert made.durable


@pytest.mark.parametrize(
    ("policy", "chosen"), [("auto", "shrink"), ("stop", "stop"), ("ignore", "continue")]
)
def test_the_policy_decides(run: Callable[[str], Run], policy: str, chosen: str) -> None:
    one = run(policy)
    assert one.decide(alert()) == chosen
    assert one.events[0] == alert(), "people read the alert before the action"
    (taken,) = one.taken()
    assert (taken.alert_id, taken.action, taken.by) == ("a1", chosen, f"on_alert={policy}")


@pytest.mark.parametrize("policy", ["auto", "stop", "ignore"])
@pytest.mark.parametrize("action", ["shrink", "stop", "continue"])
def test_an_answer_that_came_in_time_wins(
    run: Callable[[str], Run], policy: str, action: str
) -> None:
    one = run(policy)
    emit = one.context.emit

    def answer_at_once(event: Event) -> None:
        emit(event)
        if isinstance(event, Alert):
            one.answer(event.id, action)

    context = RunContext(
        layout=one.layout,
        manifest=one.context.manifest,
        emit=answer_at_once,
        control=one.control,
        resumed=False,
    )
    assert decide(alert(), context) == action
    (taken,) = one.taken()
    assert (taken.action, taken.by) == (action, "ada")
    assert [e.ok for e in one.events if isinstance(e, ControlAck)] == [True]


def test_an_answer_to_another_alert_or_with_a_foreign_action_decides_nothing(
    run: Callable[[str], Run],
) -> None:
    one = run("auto")
    one.control.expect("a1", ["shrink", "stop", "continue"])
    one.answer("a2", "stop")
    one.answer("a1", "explode")
    assert one.decide(alert()) == "shrink"
    assert [e.ok for e in one.events if isinstance(e, ControlAck)] == [False, False]


def test_an_answer_that_comes_late_is_refused(run: Callable[[str], Run]) -> None:
    one = run("auto")
    assert one.decide(alert()) == "shrink"
    one.answer("a1", "stop")
    asked = one.control.poll(3)
    assert not asked.suspend
    (ack,) = [e for e in one.events if isinstance(e, ControlAck)]
    assert not ack.ok
    assert len(one.taken()) == 1
