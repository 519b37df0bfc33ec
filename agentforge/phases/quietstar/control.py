"""How long the control bakes on: as many steps as cost what the reinforcement costs."""

from __future__ import annotations

import numpy as np

from agentforge.config.schema import RunConfig
from agentforge.phases.quietstar.data import ReasoningData
from agentforge.sizing import thought_band

TRAINED, READ = 3.0, 1.0
"""Passes a token costs: forward and backward, or forward alone (backward counts twice)."""


def further_steps(config: RunConfig, reasoning: ReasoningData, params: int) -> int:
    """Baking steps of the reinforcement's compute, counted in tokens passed through the model.

    A reinforced token is written, read by the frozen model, and trained: 5 passes; a baked one is
    trained: 3. Lengths are those of the training examples.
    """
    wanted = config.quietstar.reinforce
    band = thought_band(params)
    rows = wanted.prompts * (wanted.thoughts or band.thoughts)
    corpora = reasoning.prepared.train
    thought = float(np.mean([np.diff(corpora[n].offsets).mean() for n in reasoning.examples]))
    skill = float(np.mean([np.diff(corpora[n].offsets).mean() for n in reasoning.replayed]))
    replayed = wanted.replay * wanted.prompts * skill
    reinforced = wanted.steps * (rows * thought * (TRAINED + 2 * READ) + replayed * TRAINED)
    baking = config.quietstar.baking
    batch = baking.batch_size or band.baking_batch
    a_step = batch * ((1 - baking.replay) * thought + baking.replay * skill) * TRAINED
    return round(reinforced / a_step)
