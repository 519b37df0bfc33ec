"""One attempt at a ternary model: which matrices, which threshold, and the model it gave."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from agentforge.model.behaviour import Behaviour
from agentforge.model.bit_linear import bit_linears
from agentforge.model.language_model import CognateLM
from agentforge.phases.bitnet.calibrate import Sensitivity, prepare_layers, set_norms, stage_groups
from agentforge.phases.bitnet.data import BitData
from agentforge.phases.bitnet.finetune import start_finetuning
from agentforge.phases.bitnet.losses import Losses
from agentforge.phases.bitnet.quantise import PHASE, quantise
from agentforge.phases.cognate.artifacts import Trained, artifact_name, load_named
from agentforge.phases.cognate.bench import Bench
from agentforge.phases.cognate.training import load_weights
from agentforge.run.artifacts import note_artifact
from agentforge.run.tensor_file import save_model


@dataclass(frozen=True, slots=True)
class Attempt:
    """What is tried.

    Attributes:
        name: Of the model it makes.
        threshold: Share of the scale up to which weights become 0.
        names: Matrices that become ternary.
        pruned: Share of the tiles that are pruned.
        steps: Optimiser steps.
    """

    name: str
    threshold: float
    names: tuple[str, ...]
    pruned: float
    steps: int


@dataclass(frozen=True, slots=True)
class Quantised:
    """What an attempt gave.

    Attributes:
        attempt: What was tried.
        model: With BitLinears at strength 1, but for the reverted ones at 0; in evaluation mode.
        reverted: Matrices that stay in full precision because their stage was over its budget.
        steps: Optimiser steps it took.
    """

    attempt: Attempt
    model: CognateLM
    reverted: tuple[str, ...]
    steps: int

    @property
    def zeros(self) -> float:
        """Share of zeros among the ternary weights."""
        pairs = [
            (int((layer.codes()[0] == 0).sum()), layer.weight.numel())
            for layer in bit_linears(self.model).values()
            if layer.strength == 1.0
        ]
        total = sum(count for _, count in pairs)
        return sum(zeros for zeros, _ in pairs) / total if total else 0.0


def run_attempt(
    bench: Bench,
    teacher: CognateLM,
    behaviour: Behaviour,
    data: BitData,
    before: Losses,
    sensitivities: Sequence[Sensitivity],
    attempt: Attempt,
    start: Quantised | None = None,
) -> Quantised:
    """The attempt's model: read back when it is finished, else trained from where it was left.

    Args:
        bench: The phase's bench.
        teacher: The model in full precision.
        behaviour: How it is run.
        data: What it trains on.
        before: Held-out losses in full precision.
        sensitivities: Order of the stages.
        attempt: What to try.
        start: Begin with this ternary model (another threshold), without stages.
    """
    config = bench.context.config
    model = copy.deepcopy(teacher)
    prepare_layers(model, attempt.names, attempt.threshold, config.bitnet.quantise.norms)
    groups: list[list[str]] = []
    reverted: tuple[str, ...] = ()
    if start is None:
        set_norms(model, behaviour, data, bench.resources.micro_batch_tokens.value)
        chosen = [s for s in sensitivities if s.name in attempt.names]
        groups = stage_groups(chosen, config.bitnet.quantise.stages)
    else:
        load_weights(model, start.model.state_dict(), start.attempt.name)
        reverted = start.reverted
    found = load_named(bench.context, artifact_name(attempt.name, PHASE))
    if found is None:
        if start is not None:
            _set_strengths(model, reverted)
        training = start_finetuning(config, model, teacher, data, groups, attempt.steps)
        training.reverted = list(reverted)
        pruned = attempt.pruned if start is None else 0.0
        quantise(bench, training, attempt.name, behaviour, data, before, pruned)
        _save(bench, attempt, model, behaviour, training.reverted, training.step)
        found = load_named(bench.context, artifact_name(attempt.name, PHASE))
        assert found is not None
    load_weights(model, found.weights, attempt.name)
    reverted = tuple(json.loads(found.metadata["reverted"]))
    _set_strengths(model, reverted)
    bench.progress = (bench.progress[0] + found.steps, bench.progress[1])
    return Quantised(attempt, model.eval(), reverted, found.steps)


def train_control(
    bench: Bench, teacher: CognateLM, behaviour: Behaviour, data: BitData, steps: int, name: str
) -> Trained:
    """A full-precision copy with the same data, targets and steps: the fair competitor."""
    found = load_named(bench.context, artifact_name(name, PHASE))
    if found is not None:
        return found
    config = bench.context.config
    model = copy.deepcopy(teacher)
    training = start_finetuning(config, model, teacher, data, [], steps)
    quantise(bench, training, name, behaviour, data, None, 0.0)
    attempt = Attempt(name, 0.0, (), 0.0, steps)
    _save(bench, attempt, model, behaviour, [], training.step)
    found = load_named(bench.context, artifact_name(name, PHASE))
    assert found is not None
    return found


def _set_strengths(model: CognateLM, reverted: Sequence[str]) -> None:
    for name, layer in bit_linears(model).items():
        layer.strength = 0.0 if name in reverted else 1.0


def _save(
    bench: Bench,
    attempt: Attempt,
    model: CognateLM,
    behaviour: Behaviour,
    reverted: Sequence[str],
    steps: int,
) -> None:
    """Write the master weights of a finished attempt."""
    context = bench.context
    path = context.layout.artifacts / PHASE / f"{attempt.name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    saved = save_model(
        path,
        model.state_dict(),
        {
            "model": attempt.name,
            "behaviour": json.dumps(asdict(behaviour)),
            "threshold": repr(attempt.threshold),
            "ternary": json.dumps(list(attempt.names)),
            "reverted": json.dumps(list(reverted)),
            "steps": str(steps),
            "shapes": model.config.model_dump_json(),
            "vocab_size": str(model.vocab_size),
            "tokenizer": bench.data.tokenizer.fingerprint,
        },
    )
    note_artifact(context, PHASE, artifact_name(attempt.name, PHASE), saved)
