"""How large a micro-batch really fits: one forward, backward and step with full-length rows."""

from __future__ import annotations

import gc

import torch

from agentforge.errors import PreflightError
from agentforge.model.loss import training_loss
from agentforge.optim.hybrid import HybridOptimizer
from agentforge.phases.cognate.training import AUTOCAST, Training, out_of_memory
from agentforge.resources import TrainingResources, next_micro_batch_after_oom


def fitting_micro_batch(training: Training, resources: TrainingResources, length: int) -> int:
    """Try the planned micro-batch at its worst, all rows of full length; halve until it fits.

    The step is a real one, optimiser state included, on the model itself; its weights are put back
    and its gradients dropped afterwards. To be called before the first step.

    Args:
        training: A training at step 0.
        resources: Planned micro-batch, precision and logit chunk.
        length: Longest sequence in tokens.

    Raises:
        PreflightError: Not even one sequence fits.
    """
    tokens: int | None = training.micro_batch_tokens
    while tokens is not None:
        if _fits(training, resources, tokens // length or 1, length):
            return tokens
        tokens = next_micro_batch_after_oom(tokens, length)
    raise PreflightError(
        f"one sequence of {length} tokens does not fit into memory in a training step",
        remedy="lower data.sequence_length, or set resources.gradient_checkpointing=on",
    )


def _fits(training: Training, resources: TrainingResources, rows: int, length: int) -> bool:
    model, stage = training.model, training.stage
    before = {name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}
    device = model.rope_cos.device
    ids = torch.arange(rows * length, device=device).view(rows, length) % model.vocab_size
    valid = torch.ones_like(ids, dtype=torch.bool)
    kind = AUTOCAST.get(resources.precision.value)
    optimizer = HybridOptimizer(
        dict(model.named_parameters()), model.hidden_matrices(), stage.optim, 1
    )
    try:
        with torch.autocast(device.type, kind, enabled=kind is not None):
            parts = training_loss(
                model,
                ids,
                ids,
                valid,
                stage.train_behaviour,
                stage.objective,
                ids.numel(),
                ids.numel(),
                resources.vocab_chunk.value,
            )
        parts.total.backward()  # type: ignore[no-untyped-call]
        optimizer.step(0)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        return False
    finally:
        optimizer.zero_grad()
        del optimizer
        model.load_state_dict(before)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return True
