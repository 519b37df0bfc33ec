"""Thoughts of all positions in one forward: branches that fork off a sequence (Quiet-STaR).

A branch begins after a position j of its sequence and sees that prefix and itself, nothing else:
not the rest of the sequence and no other branch. Quiet-STaR (arXiv 2403.09629, section 4.2) does it
with a diagonal block in the attention mask; here the same mask holds in the prelude and in every
recursion step, rotary positions go on from j, and the Titans memory of a branch goes on from the
map as it was after j. So each branch is what the model would compute for prefix and branch as one
sequence (`tests/unit/test_branches.py` compares with that loop).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from agentforge.model.attention import window_mask
from agentforge.model.behaviour import Behaviour
from agentforge.model.block import Block
from agentforge.model.language_model import CognateLM
from agentforge.model.memory import (
    MemoryInputs,
    MemoryState,
    NeuralMemory,
    limited_error,
    recurrent_memory,
)


@dataclass(frozen=True, slots=True)
class Branched:
    """Answer states of sequences and their branches.

    Attributes:
        base: (B, T, D), the same as without branches.
        branch: (B, P, S, D).
    """

    base: Tensor
    branch: Tensor


def run_branches(
    model: CognateLM, ids: Tensor, places: Tensor, branch_ids: Tensor, behaviour: Behaviour
) -> Branched:
    """Run sequences with branches, as deployed (per-token halting), gradients included.

    Args:
        model: The model.
        ids: (B, T) int64.
        places: (B, P) int64 in [0, T): branch p sees positions up to `places[b, p]`.
        branch_ids: (B, P, S) int64.
        behaviour: How the model is run.

    Raises:
        ValueError: A branch would leave the context.
    """
    embedded = model.embedding(branch_ids)
    return run_embedded_branches(model, ids, places, embedded, behaviour)


def run_embedded_branches(
    model: CognateLM, ids: Tensor, places: Tensor, embedded: Tensor, behaviour: Behaviour
) -> Branched:
    """`run_branches` for branches given as embeddings (B, P, S, D): learned start and end."""
    batch, length = ids.shape
    count, steps = embedded.shape[1:3]
    longest = int(places.max()) + 1 + steps
    if longest > model.config.context:
        raise ValueError(f"a branch ends at {longest}; the context is {model.config.context}")
    mask = branch_mask(length, places, steps, model.config.window)
    position = torch.cat(
        (
            torch.arange(length, device=ids.device).expand(batch, length),
            (places[..., None] + 1 + torch.arange(steps, device=ids.device)).flatten(1),
        ),
        dim=1,
    )
    rope = (model.rope_cos[position][:, None], model.rope_sin[position][:, None])
    base_mask = window_mask(length, model.config.window, ids.device)
    base_rope = model.rope(length)
    base = model.embedding(ids)
    branch = embedded.flatten(1, 2)
    for block in model.prelude:
        assert isinstance(block, Block)
        both = torch.cat((base, branch), dim=1)
        # The sequence itself takes the ordinary pass: the same bits as without branches.
        normed = block.attention_norm(both)
        mixed = block.attention.mix(normed, rope, mask)[:, length:]
        if block.memory is not None and block.memory_gate is not None and behaviour.write_budget:
            gate = block.memory_gate(normed[:, length:])
            read = _branch_memory(block.memory, normed, places, steps, behaviour.write_budget)
            mixed = mixed + gate * (read - mixed)
        branch = block.finish(branch, mixed)
        base = block(base, base_rope, base_mask, behaviour.write_budget)
    states = model.recurse(torch.cat((base, branch), dim=1), rope, mask, behaviour).answer
    alone = model.recurse(base, base_rope, base_mask, behaviour).answer
    return Branched(alone, states[:, length:].reshape(batch, count, steps, -1))


def branch_mask(length: int, places: Tensor, steps: int, window: int) -> Tensor:
    """Who sees whom: (B, 1, L, L) bool with L = T + P S, branch tokens behind the sequence.

    Args:
        length: T.
        places: (B, P).
        steps: S.
        window: Sliding window in tokens, the own one included.
    """
    batch, count = places.shape
    device = places.device
    own = torch.arange(count, device=device).repeat_interleave(steps)
    position = torch.cat(
        (
            torch.arange(length, device=device).expand(batch, length),
            (places[..., None] + 1 + torch.arange(steps, device=device)).flatten(1),
        ),
        dim=1,
    )
    number = torch.cat((torch.full((length,), -1, device=device), own))
    # The last position of the sequence that a token may see: itself, or where its branch forked.
    fork = torch.cat((position[:, :length], places.repeat_interleave(steps, dim=1)), dim=1)
    distance = position[:, :, None] - position[:, None, :]
    near = (distance >= 0) & (distance < window)
    of_sequence = (number == -1)[None, None, :] & (position[:, None, :] <= fork[:, :, None])
    of_branch = (number[:, None] == number[None, :]) & (number != -1)[None, :]
    return (near & (of_sequence | of_branch[None]))[:, None]


def _branch_memory(
    memory: NeuralMemory, normed: Tensor, places: Tensor, steps: int, budget: float
) -> Tensor:
    """Memory reads of all branches, (B, P S, D)."""
    batch, count = places.shape
    length = normed.shape[1] - count * steps
    raw = memory.raw(normed)
    base_raw, branch_raw = raw[:, :length], raw[:, length:].reshape(batch, count, steps, -1)
    inputs = memory.inputs(normed[:, :length], memory.mix(base_raw), budget)
    state = _states_after(inputs, places, memory.chunk)
    # The causal filter of a branch begins with the two tokens before it.
    padded = F.pad(base_raw, (0, 0, 1, 0))
    before = torch.stack(
        [padded[torch.arange(batch, device=raw.device)[:, None], places + i] for i in (0, 1)], dim=2
    )
    mixed = memory.mix(torch.cat((before, branch_raw), dim=2).flatten(0, 1))[:, 2:]
    x = normed[:, length:].reshape(batch * count, steps, -1)
    read = _recurrent_rows(
        memory.inputs(x, mixed, budget), state, (places + 1).flatten(), memory.chunk
    )
    return memory.read_out(read).reshape(batch, count * steps, -1)


def _states_after(inputs: MemoryInputs, places: Tensor, chunk: int) -> MemoryState:
    """The memory after each place, rows (B P): one pass over the sequence, forked on the way."""
    batch, width = inputs.key.shape[0], inputs.key.shape[2]
    state = MemoryState.empty(batch, width, inputs.key.device)
    found: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]] = {}
    wanted = places.tolist()
    for t in range(int(places.max()) + 1):
        one = slice(t, t + 1)
        part = MemoryInputs(
            inputs.key[:, one],
            inputs.query[:, one],
            inputs.value[:, one],
            inputs.theta[:, one],
            inputs.log_eta[:, one],
            inputs.log_keep[:, one],
        )
        recurrent_memory(part, state, chunk)
        for b, row in enumerate(wanted):
            for p, place in enumerate(row):
                if place == t:
                    found[b, p] = (state.weight[b], state.momentum[b], state.chunk_weight[b])
    rows = [found[b, p] for b, row in enumerate(wanted) for p in range(len(row))]
    weight, momentum, chunk_weight = (torch.stack(list(x)) for x in zip(*rows, strict=True))
    return MemoryState(weight, momentum, chunk_weight)


def _recurrent_rows(x: MemoryInputs, state: MemoryState, position: Tensor, chunk: int) -> Tensor:
    """`recurrent_memory` for rows that are at different positions, (N,); reads (N, S, M)."""
    weight, momentum, start = state.weight, state.momentum, state.chunk_weight
    reads = []
    for t in range(x.key.shape[1]):
        fresh = ((position + t) % chunk == 0)[:, None, None]
        start = torch.where(fresh, weight, start)
        k, v = x.key[:, t], x.value[:, t]
        error = limited_error(v - (start @ k[..., None])[..., 0])
        surprise = (x.theta[:, t, None] * error)[..., None] * k[:, None, :]
        momentum = x.log_eta[:, t].exp()[:, None, None] * momentum + surprise
        weight = x.log_keep[:, t].exp()[:, None, None] * weight + momentum
        reads.append((weight @ x.query[:, t, :, None])[..., 0])
    return torch.stack(reads, dim=1)
