"""From measurements to the report of Phase 3: gates and tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agentforge.config.schema import RunConfig
from agentforge.evals.stats import Interval, paired_bootstrap
from agentforge.gates import Gate
from agentforge.phases.quietstar import gates
from agentforge.phases.quietstar.bake import overall_convergence
from agentforge.phases.quietstar.data import ReasoningData
from agentforge.phases.quietstar.measure import Thinker
from agentforge.phases.quietstar.reinforce import Window
from agentforge.reasoning.strategies import BY_NAME, STRATEGIES
from agentforge.report import Cell, PhaseReport, Table
from agentforge.thinking.battery import Battery
from agentforge.thinking.coherence import Coherence

CHAMPION, BAKED, FURTHER, REASONING = "champion", "baked", "baked further", "reasoning"
LEAST_RIGHT = 5
"""Right thoughts a strategy needs for its answers given them to count."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything Phase 3 measured.

    Attributes:
        config: The run.
        reasoning: The data.
        thinkers: Baked, reasoning and, where it was trained, further baked model.
        champion_right: The champion's right answers, one a question (it may not think).
        champion_skills: Its skills before all this.
        window: The baked model's reward before the reinforcement.
        battery: Of the reasoning model, before hand-off.
        baked_battery: Of the baked model.
        coherence: Of the reasoning model's thoughts.
        milliseconds: An answer with thoughts, without, and how many were timed.
        rl_steps, bake_steps, further_steps: Steps that were taken.
        rewards: Mean reward by step.
        hours: Clock time of the phase.
        extra: Tables of optional parts.
        notes: What happened on the way.
    """

    config: RunConfig
    reasoning: ReasoningData
    thinkers: Mapping[str, Thinker]
    champion_right: NDArray[np.bool_]
    champion_skills: dict[str, float]
    window: Window
    battery: Battery
    baked_battery: Battery
    coherence: Coherence
    milliseconds: tuple[float, float, int]
    rl_steps: int
    bake_steps: int
    further_steps: int
    rewards: list[float]
    hours: float
    extra: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def items(self) -> int:
        """Questions of the report split."""
        return len(self.reasoning.report)

    def lead(self, ours: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> Interval:
        """Difference of accuracies, paired by question."""
        return paired_bootstrap(
            ours.astype(float).tolist(), theirs.astype(float).tolist(), seed=self.config.seed
        )

    @property
    def gain(self) -> Interval:
        """Reasoning model over baked model at the deployment temperature."""
        return self.lead(self.thinkers[REASONING].right, self.thinkers[BAKED].right)

    @property
    def champion_gain(self) -> Interval:
        """Reasoning model over Phase 2's champion."""
        return self.lead(self.thinkers[REASONING].right, self.champion_right)

    @property
    def given(self) -> tuple[int, int]:
        """Strategies whose answers are right given a right thought, baked model; right thoughts."""
        judged = self.thinkers[BAKED].judged
        found = [judged.given_right_thought(s.name) for s in STRATEGIES]
        least = self.config.gates.given_thought
        good = sum(value >= least for value, n in found if n >= LEAST_RIGHT)
        return good, sum(n for _, n in found)

    @property
    def forgotten(self) -> float:
        """Largest loss of a skill from the champion to the reasoning model."""
        after = self.thinkers[REASONING].skills
        losses = [before - after[name] for name, before in self.champion_skills.items()]
        return max(losses, default=float("nan"))


def phase_report(outcome: Outcome) -> PhaseReport:
    """Gates and tables, in the order a reader wants them."""
    return PhaseReport(
        phase="quietstar",
        title="Phase 3: Quiet-STaR",
        gates=tuple(_gates(outcome)),
        tables=(
            _comparison(outcome),
            _strategies(outcome),
            _battery(outcome),
            _controls(outcome),
            _skills(outcome),
            _coherence(outcome),
            _examples(outcome),
            *outcome.extra,
        ),
        notes=(*outcome.notes, *_verdicts(outcome)),
    )


def _gates(outcome: Outcome) -> list[Gate]:
    config, judged = outcome.config, outcome.thinkers[BAKED].judged
    final = outcome.thinkers[REASONING].judged
    given, given_items = outcome.given
    found = gates.baking_gates(
        config,
        overall_convergence(judged),
        given,
        given_items,
        final.share(final.opened),
        outcome.items,
    )
    found += gates.gain_gates(config, outcome.gain, outcome.champion_gain)
    tests = outcome.battery.tests
    with_thought, _, timed = outcome.milliseconds
    found += gates.hand_off_gates(
        config,
        sum(t.passed for t in tests),
        len(tests),
        min(t.n for t in tests),
        outcome.forgotten,
        len(outcome.champion_skills),
        with_thought,
        timed,
    )
    return found


def _comparison(outcome: Outcome) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, thinker in outcome.thinkers.items():
        lead = None
        if name != REASONING:
            lead = outcome.lead(outcome.thinkers[REASONING].right, thinker.right)
        judged = thinker.judged
        rows.append(
            (
                name,
                judged.share(judged.right),
                thinker.greedy.share(thinker.greedy.right),
                thinker.majority,
                judged.share(judged.converged),
                judged.share(judged.thought_right),
                judged.given_right_thought()[0],
                None if lead is None else 100 * lead.mean,
                None if lead is None else 100 * lead.low,
                None if lead is None else 100 * lead.high,
            )
        )
    champion = outcome.champion_gain
    accuracy = float(outcome.champion_right.mean())
    rows.append(
        (
            f"{CHAMPION} (cannot think)",
            accuracy,
            *([None] * 5),
            100 * champion.mean,
            100 * champion.low,
            100 * champion.high,
        )
    )
    votes = outcome.config.quietstar.votes
    return Table(
        name="quietstar/comparison",
        title="Answers at the deployment temperature",
        columns=(
            "model",
            "accuracy",
            "greedy",
            f"majority of {votes}",
            "converged",
            "thought right",
            "answer given right thought",
            "reasoning's lead, points",
            "95 % from",
            "to",
        ),
        rows=tuple(rows),
        note=f"Report split, {outcome.items:,} questions, temperature "
        f"{outcome.config.quietstar.temperature:g}, the same draws for every model. Greedy (every "
        "third question) and the majority are other ways to use a model. Intervals are over "
        "questions (bootstrap), not over training seeds.",
    )


def _strategies(outcome: Outcome) -> Table:
    baked, final = outcome.thinkers[BAKED].judged, outcome.thinkers[REASONING].judged
    rows: list[tuple[Cell, ...]] = []
    for name in dict.fromkeys(baked.strategies):
        strategy = BY_NAME[name]
        given, count = baked.given_right_thought(name)
        converged = baked.share(baked.converged, name)
        rows.append(
            (
                name,
                strategy.token,
                strategy.difficulty,
                converged,
                strategy.threshold,
                converged >= strategy.threshold,
                baked.share(baked.right, name),
                given,
                count,
                final.share(final.converged, name),
                final.share(final.right, name),
            )
        )
    return Table(
        name="baking/strategy_accuracy_table",
        title="The ten strategies",
        columns=(
            "strategy",
            "token",
            "difficulty",
            "converged",
            "threshold",
            "met",
            "accuracy",
            "answer given right thought",
            "right thoughts",
            "converged after reinforcement",
            "accuracy after it",
        ),
        rows=tuple(rows),
        note="Report split, free generations at the deployment temperature; the left part is the "
        "baked model.",
    )


def _battery(outcome: Outcome) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for test, before in zip(outcome.battery.tests, outcome.baked_battery.tests, strict=True):
        rows.append(
            (
                test.name,
                test.value,
                f"{test.op} {test.threshold:g}",
                test.passed,
                before.value,
                test.documented,
                test.n,
                test.meaning,
            )
        )
    return Table(
        name="anti_theater/tests",
        title="Are the thoughts real?",
        columns=("test", "value", "limit", "passed", "baked model", "documented", "n", "meaning"),
        rows=tuple(rows),
        note="Report split. Accuracies are exact probabilities of the right answer at the "
        "deployment temperature.",
    )


def _controls(outcome: Outcome) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, accuracy in outcome.battery.accuracy.items():
        gain = outcome.battery.gains.get(name)
        rows.append(
            (
                name,
                accuracy,
                None if gain is None else gain.mean,
                None if gain is None else gain.low,
                None if gain is None else gain.high,
            )
        )
    for share, accuracy in outcome.battery.truncation.items():
        rows.append((f"first {100 * share:.0f} % of it", accuracy, None, None, None))
    return Table(
        name="anti_theater/controls",
        title="What the answer loses when the thought is tampered with",
        columns=("thought", "accuracy", "log-likelihood gain of the own one, nats", "from", "to"),
        rows=tuple(rows),
        note="Right answer's probability behind the model's own thought and behind controls.",
    )


def _skills(outcome: Outcome) -> Table:
    columns = list(outcome.champion_skills)
    rows: list[tuple[Cell, ...]] = [(CHAMPION, *(outcome.champion_skills[c] for c in columns))]
    for name, thinker in outcome.thinkers.items():
        rows.append((name, *(thinker.skills[c] for c in columns)))
    what = (
        "exact match"
        if outcome.config.data.source == "world"
        else "geometric mean probability of a target token"
    )
    return Table(
        name="quietstar/skills",
        title="What was not baked: lost or kept",
        columns=("model", *columns),
        rows=tuple(rows),
        note=f"Report split, {what}.",
    )


def _coherence(outcome: Outcome) -> Table:
    edges = np.linspace(0.0, 1.0, 11)
    counts, _ = np.histogram(outcome.coherence.score, bins=edges)
    rows = tuple(
        (f"{low:.1f}-{high:.1f}", int(n))
        for low, high, n in zip(edges, edges[1:], counts, strict=False)
    )
    return Table(
        name="quietstar/coherence",
        title="Coherence of the thoughts",
        columns=("coherence", "thoughts"),
        rows=rows,
        note="Reasoning model, report split; .4 semantic + .3 syntactic + .3 predictive. It is a "
        "monitor, never a reward.",
    )


def _examples(outcome: Outcome) -> Table:
    return Table(
        name="quietstar/examples",
        title="A few thoughts",
        columns=("prompt", "thought and answer"),
        rows=tuple(outcome.battery.examples),
        note="Reasoning model, deployment temperature, not chosen.",
    )


def _verdicts(outcome: Outcome) -> list[str]:
    """Sentences a reader should not have to work out."""
    baked, final = outcome.thinkers[BAKED], outcome.thinkers[REASONING]
    source = outcome.reasoning.source
    found = [
        f"Baked on {sum(len(e) for e in outcome.reasoning.examples.values()):,} examples "
        f"({source}), {100 * (1 - outcome.reasoning.right):.1f} % with a wrong step, in "
        f"{outcome.bake_steps} steps; reinforced for {outcome.rl_steps}.",
        f"Mean reward before the reinforcement {outcome.window.reward:.3f} "
        f"({outcome.window.verdict}), in its last steps {np.mean(outcome.rewards[-10:]):.3f}."
        if outcome.rewards
        else "No step of a reinforcement is in the reasoning model.",
        "Reinforcement sharpens: greedy decoding moves from "
        f"{baked.greedy.share(baked.greedy.right):.3f} to "
        f"{final.greedy.share(final.greedy.right):.3f}, sampling from "
        f"{baked.judged.share(baked.right):.3f} to {final.judged.share(final.right):.3f}.",
    ]
    if baked.majority is not None and baked.majority_single is not None:
        found.append(
            f"A majority of {outcome.config.quietstar.votes} thoughts of the baked model scores "
            f"{baked.majority:.3f} ({baked.majority_single:.3f} alone, same questions): the "
            "reinforced model's single thought is to be compared with that."
        )
    further = outcome.thinkers.get(FURTHER)
    if further is None:
        found.append("There is no control that was baked on in this run.")
    else:
        lead = outcome.lead(final.right, further.right)
        found.append(
            f"Baking on for the same compute ({outcome.further_steps} steps) scores "
            f"{further.judged.share(further.right):.3f}: the reinforced model is "
            f"{100 * lead.mean:+.1f} points from it [{100 * lead.low:.1f}, {100 * lead.high:.1f}]."
        )
    score = outcome.coherence
    found.append(
        f"Coherence {score.score.mean():.3f} (semantic {score.semantic.mean():.3f}, syntactic "
        f"{score.syntactic.mean():.3f}, predictive {score.predictive.mean():.3f}); the documents "
        "hope for .6."
    )
    with_thought, without, _ = outcome.milliseconds
    found.append(f"An answer takes {with_thought:.1f} ms with a thought, {without:.1f} without.")
    return found
