"""The final figures of Phase 3 as events, under the names of the mission's W&B plan."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from agentforge.events import EvalDone
from agentforge.phases.quietstar.bake import PHASE, overall_convergence
from agentforge.phases.quietstar.results import BAKED, REASONING, Outcome


def final_figures(outcome: Outcome) -> Iterator[EvalDone]:
    """Figures of baking, then of the reinforcement."""
    baked, final = outcome.thinkers[BAKED], outcome.thinkers[REASONING]
    n, battery, scores = outcome.items, outcome.battery, outcome.coherence
    convergence = overall_convergence(baked.judged)
    target = outcome.config.gates.convergence
    yield _figure("baked", "baking/final_accuracy", convergence, n)
    yield _figure("baked", "baking/converged", float(convergence >= target), n)
    yield _figure("baked", "baking/training_time_hours", outcome.hours, 1)
    examples = sum(len(e) for e in outcome.reasoning.examples.values())
    yield _figure("baked", "baking/total_examples", float(examples), 1)
    lengths = [len(a.thought) for a in final.judged.answered if a.opened]
    yield _figure("reasoner", "rl/avg_coherence_score", float(scores.score.mean()), n)
    yield _figure("reasoner", "rl/semantic_coherence", float(scores.semantic.mean()), n)
    yield _figure("reasoner", "rl/syntactic_coherence", float(scores.syntactic.mean()), n)
    yield _figure("reasoner", "rl/predictive_coherence", float(scores.predictive.mean()), n)
    yield _figure("reasoner", "rl/final_coherence", float(scores.score.mean()), n)
    if lengths:
        yield _figure("reasoner", "rl/final_thought_length", float(np.mean(lengths)), n)
    for name, test in (
        ("rl/thought_diversity", "diversity"),
        ("rl/divergence_from_direct", "divergence"),
        ("rl/ablation_accuracy_drop", "ablation"),
    ):
        value = battery.value(test)
        if np.isfinite(value):
            yield _figure("reasoner", name, value, n)
    yield _figure("reasoner", "rl/inference_time_ms", outcome.milliseconds[0], 1)
    # Where no step is left, the model is the baked one.
    last = outcome.rewards[-10:] or [outcome.window.reward]
    yield _figure("reasoner", "rl/final_reward", float(np.mean(last)), len(last), "train")
    yield _figure("reasoner", "rl/accuracy", final.judged.share(final.right), n)
    yield _figure("reasoner", "rl/improvement_over_baked", outcome.gain.mean, n)
    yield _figure("reasoner", "rl/improvement_over_champion", outcome.champion_gain.mean, n)
    yield _figure("reasoner", "rl/total_training_time_hours", outcome.hours, 1)


def _figure(model: str, name: str, value: float, n: int, split: str = "report") -> EvalDone:
    return EvalDone(phase=PHASE, model=model, name=name, value=value, n=n, split=split)
