"""The anti-theater tests inside the phase: run, told, and what a failure leads to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from agentforge.config.schema import RunConfig
from agentforge.events import AlertAction, EvalDone
from agentforge.interventions import decide, intervention
from agentforge.model.behaviour import Behaviour
from agentforge.model.language_model import CognateLM
from agentforge.phases.quietstar.bake import PHASE
from agentforge.phases.quietstar.limits import most_tokens
from agentforge.run.context import RunContext
from agentforge.thinking.battery import Battery, TheaterTest, run_battery
from agentforge.thinking.questions import Question
from agentforge.thinking.thought import ThoughtReader

ROLL_BACK = AlertAction(
    key="roll_back",
    label="Back to the last checkpoint whose thoughts passed, with twice the KL",
    consequence="the steps since then are taken again, closer to the baked model",
)
ADJUST = AlertAction(
    key="adjust",
    label="Go on with twice the KL",
    consequence="nothing is taken back; the model is pulled towards the baked one",
)
NAMES = {
    "divergence": "anti_theater/divergence",
    "ablation": "anti_theater/ablation_drop",
    "correlation": "anti_theater/correlation",
}
"""The documents' W&B names of three tests; the others carry their own names."""


def run_tests(
    config: RunConfig,
    model: CognateLM,
    behaviour: Behaviour,
    reader: ThoughtReader,
    questions: Sequence[Question],
    items: int,
    between: Callable[[], None],
) -> Battery:
    """The battery on an even choice of questions over the strategies."""
    step = max(1, len(questions) // items)
    return run_battery(
        model,
        behaviour,
        reader,
        questions[::step],
        temperature=config.quietstar.temperature,
        seed=config.seed,
        max_new_tokens=most_tokens(config, model),
        between=between,
    )


def tell_tests(context: RunContext, battery: Battery, model: str, split: str) -> None:
    """The tests' figures as events."""
    for test in battery.tests:
        name = NAMES.get(test.name, f"anti_theater/{test.name}")
        short = f"anti_theater/{test.name}"
        _tell(context, model, split, name, test.value, test.n)
        _tell(context, model, split, f"{short}_passed", float(test.passed), test.n)
    count = min(t.n for t in battery.tests)
    _tell(context, model, split, "anti_theater/all_passed", float(battery.passed), count)


def ask_about_theater(context: RunContext, battery: Battery, step: int) -> str:
    """The intervention after failed tests; the key of what to do."""
    failed = [t for t in battery.tests if not t.passed]
    detail = "; ".join(_line(t) for t in failed)
    return decide(
        intervention(
            alert_id=f"{PHASE}-theater-{step}",
            code="theater",
            title="Thoughts without effect",
            detail=detail,
            cause="the reinforcement found reward without thinking, or the thoughts degenerated",
            actions=(ROLL_BACK, ADJUST),
            recommended="roll_back",
            level="error",
        ),
        context,
    )


def _line(test: TheaterTest) -> str:
    return f"{test.name} {test.value:.3f}, wanted {test.op} {test.threshold:g} ({test.meaning})"


def _tell(context: RunContext, model: str, split: str, name: str, value: float, n: int) -> None:
    if value == value:
        context.emit(EvalDone(phase=PHASE, model=model, name=name, value=value, n=n, split=split))
