"""What Phase 1 trains, in order: the base, three specialists, the ablations."""

from __future__ import annotations

from dataclasses import dataclass, replace

from agentforge.config.schema import (
    SPECIALTIES,
    AblationName,
    Mix,
    OptimConfig,
    RunConfig,
    Specialty,
)
from agentforge.model.behaviour import Behaviour
from agentforge.model.loss import HaltingObjective

BASE = "base"


@dataclass(frozen=True, slots=True)
class Stage:
    """One training from given weights.

    Attributes:
        model: Name of the model it makes: ``base``, a specialty, or an ablation.
        parent: Model it starts from; None: fresh weights from the run's seed.
        steps: Optimiser steps (an ablation takes as many as the base really took).
        mix: Shares of skills or categories.
        optim: Optimiser settings.
        objective: Halting prior and its weight.
        train_behaviour: Write budget and steps in training.
        behaviour: How the finished model is run.
        seed: Seed of its data order.
        curriculum: Whether the three curriculum stages apply (the base learns through them; a
            branch sees all stages from its start).
        max_extensions, extension_steps, target_fitness: Train on while the fitness is short.
        phase: The phase it belongs to; Phase 2 trains its multi-task control like a specialist.
        batch_size: Sequences of a step; 0: Phase 1's.
        curriculum_ends: Ends of the curriculum stages as shares of the steps; None: Phase 1's.
        answer_weight: Weight of the tokens of answers behind a thought.
        halve_on_extension: Whether an extension halves the learning rates.
    """

    model: str
    parent: str | None
    steps: int
    mix: Mix
    optim: OptimConfig
    objective: HaltingObjective
    train_behaviour: Behaviour
    behaviour: Behaviour
    seed: int
    curriculum: bool = True
    max_extensions: int = 0
    extension_steps: int = 0
    target_fitness: float = 0.0
    phase: str = "cognate"
    batch_size: int = 0
    curriculum_ends: tuple[float, float, float] | None = None
    answer_weight: float = 1.0
    halve_on_extension: bool = False


def base_stage(config: RunConfig) -> Stage:
    """The trunk on the mixture, with the middle halting prior."""
    phase, base = config.cognate, config.cognate.base
    behaviour = Behaviour(base.halting_threshold, base.write_budget)
    return Stage(
        model=BASE,
        parent=None,
        steps=base.steps,
        mix=base.mix,
        optim=phase.optim,
        objective=_objective(config, base.halting_prior),
        train_behaviour=behaviour,
        behaviour=behaviour,
        seed=config.seed,
        max_extensions=base.max_extensions,
        extension_steps=base.extension_steps,
        target_fitness=base.target_fitness,
    )


def specialist_stages(config: RunConfig, apart: bool = False) -> list[Stage]:
    """The three branches: same shapes, different mix, prior, budget, length and data order.

    Args:
        config: The run.
        apart: Move own shares and halting priors further apart (after a low diversity).
    """
    return [_specialist(config, specialty, apart) for specialty in SPECIALTIES]


def _specialist(config: RunConfig, specialty: Specialty, apart: bool) -> Stage:
    phase = config.cognate
    chosen = phase.specialists[specialty]
    prior = chosen.halting_prior
    mix = chosen.mix
    if apart:
        # Odds of the prior are squared away from 1/2; half of what is not the own share goes there.
        odds = (prior / (1 - prior)) ** 2
        prior = min(0.95, max(0.05, odds / (1 + odds)))
        total = sum(mix.values())
        mix = {k: v / total * 0.5 + (0.5 if k == chosen.skill else 0.0) for k, v in mix.items()}
    optim = phase.optim.model_copy(
        update={
            "muon_lr": phase.optim.muon_lr * chosen.lr_share,
            "adamw_lr": phase.optim.adamw_lr * chosen.lr_share,
            "warmup_steps": chosen.warmup_steps,
        }
    )
    behaviour = Behaviour(chosen.halting_threshold, chosen.write_budget)
    return Stage(
        model=specialty,
        parent=BASE,
        steps=chosen.steps,
        mix=mix,
        optim=optim,
        objective=_objective(config, prior),
        train_behaviour=behaviour,
        behaviour=behaviour,
        seed=config.seed * 1000 + chosen.seed,
        curriculum=False,
    )


def ablation_stage(config: RunConfig, name: AblationName, steps: int) -> Stage:
    """The base once more from the same fresh weights and data, one feature left out.

    Args:
        config: The run.
        name: What is left out.
        steps: Steps the base took, extensions included.
    """
    base = base_stage(config)
    behaviour = base.behaviour
    optim, objective = base.optim, base.objective
    if name == "memory_off":
        behaviour = Behaviour(behaviour.halting_threshold, 0.0)
    elif name == "one_step":
        behaviour = Behaviour(behaviour.halting_threshold, behaviour.write_budget, 1)
    elif name == "halting_off":
        behaviour = Behaviour(2.0, behaviour.write_budget)
        objective = replace(objective, beta=0.0, enabled=False)
    else:
        optim = optim.model_copy(update={"grokfast_lambda": 0.0})
    return Stage(
        model=name,
        parent=None,
        steps=steps,
        mix=base.mix,
        optim=optim,
        objective=objective,
        train_behaviour=behaviour,
        behaviour=behaviour,
        seed=base.seed,
    )


def _objective(config: RunConfig, prior: float) -> HaltingObjective:
    phase = config.cognate
    return HaltingObjective(prior, phase.halting_beta, early_stride=phase.early_stride)
