"""The Weights & Biases names of Phase 3, declared once."""

from __future__ import annotations

from agentforge.config.quietstar import STRATEGY_NAMES
from agentforge.events import StepDone
from agentforge.sinks.wandb_metric import Metric

_STEP = "StepDone"
_EXTRA = "StepDone.extra"
_EVAL = "EvalDone"
_TABLE = "TableDone"
_TESTS = ("divergence", "ablation", "correlation")

PHASE3_METRICS: tuple[Metric, ...] = (
    Metric("baking/step", "optimiser steps of the baking", "StepDone.step"),
    Metric("baking/epoch", "passes over the items drawn, with fraction", _EXTRA),
    Metric("baking/loss", "nats per target token of a batch", "StepDone.loss"),
    Metric("baking/learning_rate", "of the hidden matrices", "StepDone.lr"),
    *(
        Metric(f"baking/accuracy_{name}", "converged share of free generations", _EVAL)
        for name in STRATEGY_NAMES
    ),
    Metric("baking/accuracy_overall", "their mean", _EVAL),
    Metric("baking/thinking_token_usage", "free generations that open a thought", _EVAL),
    Metric("baking/strategy_token_usage", "free generations with a strategy token", _EVAL),
    Metric("baking/answer_accuracy", "right answers of free generations", _EVAL),
    Metric("baking/thought_accuracy", "right thoughts of free generations", _EVAL),
    Metric("baking/val_loss", "nats per token of held-out thoughts and answers", _EVAL),
    Metric("baking/val_accuracy", "the same: most likely token is right (masked)", _EVAL),
    Metric("baking/convergence_progress", "overall over its threshold", _EVAL),
    Metric("baking/final_accuracy", "converged share of the report split", _EVAL),
    Metric("baking/converged", "1 when that reaches its threshold", _EVAL),
    Metric("baking/total_epochs", "passes over the items drawn, at the end", _EVAL),
    Metric("baking/total_examples", "training examples", _EVAL),
    Metric("baking/training_time_hours", "wall clock of the phase", _EVAL),
    Metric("baking/prompt_kl", "prompted teacher to student, nats", _EXTRA, optional=True),
    Metric("baking/unprompted_usage", "the baked strategy unasked", _EVAL, optional=True),
    Metric("baking/strategy_accuracy_table", "table: the ten strategies", _TABLE),
    Metric("rl/episode", "questions so far", _EXTRA),
    Metric("rl/reward", "mean reward of a step", _EXTRA),
    Metric("rl/avg_reward", "the same over the last 100 steps", _EXTRA),
    Metric("rl/baked_reward", "mean reward before the first step", _EVAL),
    Metric("rl/kl_divergence", "policy to frozen baked model, nats a token", _EXTRA),
    Metric("rl/loss", "REINFORCE plus weighted KL, a token", "StepDone.loss"),
    Metric("rl/learning_rate", "of the hidden matrices", "StepDone.lr"),
    Metric("rl/kl_weight", "its weight; doubled by a roll-back", _EXTRA),
    Metric("rl/entropy", "nats a token", _EXTRA),
    Metric("rl/converged", "well-formed samples", _EXTRA),
    Metric("rl/avg_thought_length", "tokens", _EXTRA),
    Metric("rl/filtered", "samples left out for want of coherence", _EXTRA),
    Metric("rl/avg_coherence_score", ".4 semantic + .3 syntactic + .3 predictive", _EVAL),
    Metric("rl/semantic_coherence", "cosine of thought and question", _EVAL),
    Metric("rl/syntactic_coherence", "likelihood under the frozen model", _EVAL),
    Metric("rl/predictive_coherence", "gain in probability of the right answer", _EVAL),
    Metric("rl/thought_diversity", "edit distance between strategies, tokens", _EVAL),
    Metric("rl/divergence_from_direct", "edit distance with and without thought", _EVAL),
    Metric("rl/ablation_accuracy_drop", "accuracy lost with an empty thought", _EVAL),
    Metric("rl/inference_time_ms", "one answer with a thought, batch 1", _EVAL),
    Metric("rl/final_reward", "mean of the last steps", _EVAL),
    Metric("rl/final_coherence", "as avg_coherence_score, at hand-off", _EVAL),
    Metric("rl/final_thought_length", "tokens, report split", _EVAL, optional=True),
    Metric("rl/accuracy", "right answers at the deployment temperature", _EVAL),
    Metric("rl/improvement_over_baked", "accuracy gained, share", _EVAL),
    Metric("rl/improvement_over_champion", "the same over Phase 2's champion", _EVAL),
    Metric("rl/total_training_time_hours", "wall clock of the phase", _EVAL),
    Metric("rl/token_gain", "thoughts within text: log p gained, nats", _EXTRA, optional=True),
    Metric("rl/token_reward_std", "spread of their rewards", _EXTRA, optional=True),
    Metric("rl/token_mixing_weight", "mean weight of the thought", _EXTRA, optional=True),
    Metric("rl/gsm8k_accuracy", "only with real records", _EVAL, optional=True),
    Metric("rl/arc_accuracy", "only with real records", _EVAL, optional=True),
    Metric("rl/final_gsm8k_accuracy", "only with real records", _EVAL, optional=True),
    Metric("anti_theater/divergence", "see rl/divergence_from_direct", _EVAL, optional=True),
    Metric("anti_theater/ablation_drop", "see rl/ablation_accuracy_drop", _EVAL, optional=True),
    Metric("anti_theater/correlation", "phi of thought and answer right", _EVAL, optional=True),
    *(Metric(f"anti_theater/{name}_passed", "1 or 0", _EVAL) for name in _TESTS),
    Metric("anti_theater/all_passed", "1 when every test passes", _EVAL),
    Metric("anti_theater/*", "the other tests and whether they passed", _EVAL, optional=True),
    Metric("charts/baking_convergence", "line: converged share by look", _EVAL),
    Metric("charts/rl_reward", "line: mean reward by step", _EXTRA),
    Metric("charts/coherence_distribution", "bars: thoughts by coherence", _TABLE),
    Metric("charts/anti_theater_trend", "lines: the documented tests by check", _EVAL),
)


def quietstar_step(event: StepDone) -> dict[str, float]:
    """The metrics of one optimiser step of Phase 3: baking's or the reinforcement's."""
    if event.model in ("reasoner", "token_level"):
        return {"rl/loss": event.loss, "rl/learning_rate": event.lr, **event.extra}
    found = {
        "baking/step": float(event.step),
        "baking/loss": event.loss,
        "baking/learning_rate": event.lr,
        "train/gradient_norm": event.grad_norm,
        "system/tokens_per_second": event.tokens_per_s,
        **event.extra,
    }
    if "train/epoch" in found:
        found["baking/epoch"] = found.pop("train/epoch")
    return found
