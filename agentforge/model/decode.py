"""Token-by-token decoding with caches: equal to the full forward, position by position.

Plain torch and not fast; the definition that compiled executors are held to. All rows of a batch
are at the same position, so rows with short prompts already write their answer while others still
read their prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from agentforge.model.attention import WindowAttention
from agentforge.model.behaviour import Behaviour
from agentforge.model.block import Block
from agentforge.model.language_model import CognateLM, freeze
from agentforge.model.linear import project
from agentforge.model.memory import MemoryState, NeuralMemory, recurrent_memory
from agentforge.model.rotary import rotate


@dataclass(slots=True)
class KeyValueCache:
    """Keys and values of the last `window` positions, (B, H, <= window, D/H) each."""

    window: int
    key: Tensor | None = None
    value: Tensor | None = None

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add one position, (B, H, 1, D/H) each; returns all that is visible to it."""
        if self.key is not None and self.value is not None:
            key = torch.cat((self.key, key), dim=2)
            value = torch.cat((self.value, value), dim=2)
        self.key, self.value = key[:, :, -self.window :], value[:, :, -self.window :]
        return self.key, self.value

    def select(self, rows: Tensor) -> None:
        """Keep, drop or repeat rows."""
        if self.key is not None and self.value is not None:
            self.key, self.value = self.key[rows], self.value[rows]


@dataclass(slots=True)
class MemoryCache:
    """A memory layer between two tokens: its state and the last two raw projections."""

    state: MemoryState
    recent: Tensor
    """(B, 2, 3M): what the causal filter still needs."""

    def select(self, rows: Tensor) -> None:
        """Keep, drop or repeat rows."""
        state = self.state
        self.state = MemoryState(
            state.weight[rows], state.momentum[rows], state.chunk_weight[rows], state.position
        )
        self.recent = self.recent[rows]


class Decoder:
    """Feeds one token a time through a model; holds every cache.

    Args:
        model: The model, in evaluation mode.
        behaviour: Halting threshold, write budget, steps.
        batch: Rows.
    """

    def __init__(self, model: CognateLM, behaviour: Behaviour, batch: int) -> None:
        config = model.config
        self.model = model
        self.behaviour = behaviour
        self.position = 0
        self.total = behaviour.recursion_steps or config.recursion_steps
        self.prelude = [KeyValueCache(config.window) for _ in model.prelude]
        self.core = [
            [KeyValueCache(config.window) for _ in model.core]
            for _ in range(self.total * config.latent_steps)
        ]
        device = model.rope_cos.device
        self.memory = {
            i: MemoryCache(
                MemoryState.empty(batch, config.memory.width, device),
                torch.zeros(batch, 2, 3 * config.memory.width, device=device),
            )
            for i in config.memory.layers
            if behaviour.write_budget > 0
        }
        self.steps: list[Tensor] = []

    @torch.no_grad()
    def step(self, ids: Tensor) -> Tensor:
        """Read one token of every row.

        Args:
            ids: (B,) int64.

        Returns:
            Logits of the next token, (B, V).
        """
        model, position = self.model, self.position
        rope = (
            model.rope_cos[position : position + 1],
            model.rope_sin[position : position + 1],
        )
        x: Tensor = model.embedding(ids[:, None])
        for i, block in enumerate(model.prelude):
            assert isinstance(block, Block)
            x = self._block(block, x, rope, self.prelude[i], self.memory.get(i))
        answer = self._recurse(x, rope)
        self.position += 1
        return model.embedding.logits(answer)[:, 0]

    def select(self, rows: Tensor) -> None:
        """Go on with some rows: drop those that ended, or repeat a prompt for several thoughts.

        Args:
            rows: (N,) int64, indices of today's rows; the new batch is N.
        """
        for cache in (*self.prelude, *(c for step in self.core for c in step)):
            cache.select(rows)
        for memory in self.memory.values():
            memory.select(rows)

    def _block(
        self,
        block: Block,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        cache: KeyValueCache,
        memory: MemoryCache | None = None,
    ) -> Tensor:
        """One block on one position, (B, 1, D) -> (B, 1, D)."""
        normed = block.attention_norm(x)
        mixed = _attend(block.attention, normed, rope, cache)
        if memory is not None and block.memory is not None and block.memory_gate is not None:
            gate = block.memory_gate(normed)
            read = _remember(block.memory, normed, self.behaviour.write_budget, memory)
            mixed = mixed + gate * (read - mixed)
        return block.finish(x, mixed)

    def _recurse(self, h: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """The recursive core on one position; rows halt one by one and keep serving the cache."""
        model = self.model
        latent: Tensor | None = None
        answer: Tensor | None = None
        survival = torch.ones(h.shape[0], 1, device=h.device)
        active = torch.ones(h.shape[0], 1, dtype=torch.bool, device=h.device)
        taken = torch.zeros(h.shape[0], dtype=torch.int64, device=h.device)
        for step in range(self.total):
            frozen_latent, frozen_answer = latent, answer
            keep = None if latent is None else ~active[..., None]
            for inner in range(model.config.latent_steps):
                u = model.inject(latent, h, answer)
                caches = self.core[step * model.config.latent_steps + inner]
                x = u
                for block, cache in zip(model.core, caches, strict=True):
                    assert isinstance(block, Block)
                    y = self._block(block, x, rope, cache)
                    x = y if keep is None else torch.where(keep, u, y)
                latent = x if keep is None else freeze(keep, frozen_latent, x)
            assert latent is not None
            answer = model.update_answer(answer, latent)
            answer = answer if keep is None else freeze(keep, frozen_answer, answer)
            taken += active[:, 0]
            if step + 1 < self.total:
                survival = survival * (1 - torch.sigmoid(model.halting(answer)))
                active = active & (1 - survival < self.behaviour.halting_threshold)
        self.steps.append(taken)
        assert answer is not None
        return answer


def _attend(
    attention: WindowAttention, x: Tensor, rope: tuple[Tensor, Tensor], cache: KeyValueCache
) -> Tensor:
    """Attention of one new position over the cache, (B, 1, D) -> (B, 1, D)."""
    q, k, v = (attention.heads(y) for y in project(x, attention.q, attention.k, attention.v))
    key, value = cache.append(rotate(k, *rope), v)
    y = F.scaled_dot_product_attention(rotate(q, *rope), key, value)
    return y.transpose(1, 2).flatten(2)


def _remember(memory: NeuralMemory, x: Tensor, budget: float, cache: MemoryCache) -> Tensor:
    """Write and read one position, (B, 1, D) -> (B, 1, D)."""
    raw = torch.cat((cache.recent, memory.raw(x)), dim=1)
    inputs = memory.inputs(x, memory.mix(raw)[:, 2:], budget)
    read = recurrent_memory(inputs, cache.state, memory.chunk)
    cache.recent = raw[:, 1:]
    return memory.read_out(read)


@torch.no_grad()
def generate_greedy(
    model: CognateLM,
    prompts: list[list[int]],
    behaviour: Behaviour,
    max_new_tokens: int,
    stop_id: int,
    forbidden: tuple[int, ...] = (),
) -> list[list[int]]:
    """Continue every prompt with its most likely tokens.

    Args:
        model: The model.
        prompts: Token ids, at least one each; lengths may differ.
        behaviour: How to run the model.
        max_new_tokens: At most so many new tokens a row.
        stop_id: A row ends before this token.
        forbidden: Tokens that are never chosen (the thinking tokens before Phase 3).

    Returns:
        New tokens of every row, without the stop token.
    """
    limit = model.config.context
    decoder = Decoder(model, behaviour, len(prompts))
    device = model.rope_cos.device
    new: list[list[int]] = [[] for _ in prompts]
    done = [len(p) >= limit for p in prompts]
    longest = min(limit, max(len(p) for p in prompts) + max_new_tokens)
    for t in range(longest):
        column = [
            p[t] if t < len(p) else (n[t - len(p)] if t - len(p) < len(n) else stop_id)
            for p, n in zip(prompts, new, strict=True)
        ]
        logits = decoder.step(torch.tensor(column, device=device))
        if forbidden:
            logits[:, list(forbidden)] = float("-inf")
        chosen = logits.argmax(-1).tolist()
        for row, token in enumerate(chosen):
            if done[row] or t < len(prompts[row]) - 1:
                continue
            if token == stop_id or len(new[row]) >= max_new_tokens:
                done[row] = True
            else:
                new[row].append(token)
        if all(done):
            break
    return new
