"""Interventions: an alert with actions, and who decides which one is taken.

A detector builds an `Alert` with numbers against thresholds, the cause and two to four actions.
`decide` emits it and returns the key of the action to take: the recommended one, ``stop`` or
``continue``, as ``on_alert`` says; an answer that came through the control channel wins. Every
alert here has an action ``continue`` and an action ``stop``.
"""

from __future__ import annotations

from agentforge.events import ActionTaken, Alert, AlertAction, Level
from agentforge.run.context import RunContext

STOP = AlertAction(
    key="stop",
    label="Stop and look",
    consequence="a checkpoint is written and the run is suspended; it can be resumed",
)
CONTINUE = AlertAction(
    key="continue", label="Go on", consequence="nothing is changed; the alert stays in the log"
)


def intervention(
    alert_id: str,
    code: str,
    title: str,
    detail: str,
    cause: str,
    actions: tuple[AlertAction, ...],
    recommended: str,
    level: Level = "warning",
    optional: bool = True,
) -> Alert:
    """An alert that asks for a decision; ``stop`` is added, and ``continue`` where it is optional.

    Where going on without a remedy is impossible, ``on_alert = ignore`` takes the recommended one.
    """
    return Alert(
        id=alert_id,
        level=level,
        code=code,
        title=title,
        detail=detail,
        cause=cause,
        actions=(*actions, CONTINUE, STOP) if optional else (*actions, STOP),
        recommended=recommended,
    )


def decide(alert: Alert, context: RunContext) -> str:
    """Emit the alert and choose by ``on_alert``; an answer already given wins.

    Args:
        alert: From `intervention`.
        context: The run: its policy, its events, its control channel.

    Returns:
        The key of the action to take; an `ActionTaken` was emitted for it.
    """
    keys = [a.key for a in alert.actions]
    context.control.expect(alert.id, keys)
    context.emit(alert)
    answer = context.control.wait_answer(alert.id, context.config.alert_wait_s, keys)
    policy = context.config.on_alert
    if answer is not None:
        chosen, by = answer.action, answer.by
    else:
        going_on = CONTINUE.key if CONTINUE.key in keys else alert.recommended
        chosen = {"auto": alert.recommended, "stop": STOP.key, "ignore": going_on}[policy]
        by = f"on_alert={policy}"
        context.control.settle(alert.id)
    context.emit(ActionTaken(alert_id=alert.id, action=chosen, by=by))
    return chosen
