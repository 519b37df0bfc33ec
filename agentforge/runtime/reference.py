"""The reference executor: a plan in plain torch, written to be read. The others are held to it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from agentforge_kernels import Int8Weight, PackedTernary, reference, unpack
from torch import Tensor
from torch.nn import functional as F

from agentforge.model.memory import limited_error
from agentforge.model.rotary import rotate
from agentforge.runtime.plan import (
    Activate,
    Attend,
    Blend,
    DecodePlan,
    Embed,
    Linear,
    Norm,
    Recursion,
    Remember,
    Span,
    Step,
    loaded,
)
from agentforge.runtime.states import CacheType, MemoryStates, as_cached


class ReferenceExecutor:
    """Runs a plan with torch, on the CPU.

    Args:
        plan: The model.
        sequences: How many sequences it holds at once.
        cache: How keys and values are kept.

    Attributes:
        steps: Recursion steps each token of the last call took, (tokens,) int64.
        memories: Titans memories of the sequences.
        keys, values: Of every cache, fp32 (sequences, window, width); position p in p % window.
    """

    def __init__(
        self, plan: DecodePlan, sequences: int = 1, *, cache: CacheType = "float32"
    ) -> None:
        self.plan = plan
        self.memories = MemoryStates.of(plan, sequences)
        self.keys = [torch.zeros(sequences, c.window, c.width) for c in plan.caches]
        self.values = [torch.zeros_like(k) for k in self.keys]
        self._cache: CacheType = cache
        self.steps = torch.zeros(0, dtype=torch.int64)
        self._weights = {id(s): loaded(s.weight) for s in plan.linears()}
        self._trits = {
            id(w): unpack(w) for w in self._weights.values() if isinstance(w, PackedTernary)
        }
        self._buffers: dict[str, Tensor] = {}
        self._ids = self._sequence = self._position = torch.zeros(0, dtype=torch.int64)

    def reset(self, sequence: int) -> None:
        """Forget a sequence: its next token is at position 0."""
        self.memories.reset(sequence)

    @torch.no_grad()
    def run(
        self, ids: Sequence[int], sequence: Sequence[int], position: Sequence[int],
        wanted: Sequence[int],
    ) -> Tensor:  # fmt: skip
        """Read tokens.

        Args:
            ids: Token ids.
            sequence: The sequence of each; tokens of one lie in the order of their positions.
            position: Position of each in its sequence.
            wanted: Indices of the tokens whose next token is asked for.

        Returns:
            Logits (len(wanted), vocabulary), fp32.
        """
        count = len(ids)
        self._ids = torch.tensor(ids, dtype=torch.int64)
        self._sequence = torch.tensor(sequence, dtype=torch.int64)
        self._position = torch.tensor(position, dtype=torch.int64)
        self._buffers = {n: torch.zeros(count, w) for n, w in self.plan.buffers.items()}
        self._run(self.plan.prelude, 0)
        if self.plan.recursion is not None:
            self._recurse(self.plan.recursion)
        chosen = torch.tensor(wanted, dtype=torch.int64)
        self._buffers = {n: b[chosen] for n, b in self._buffers.items()}
        if self.plan.recursion is None:
            self._buffers["answer"] = self._buffers["x"]
        self._run(self.plan.head, 0)
        return self._buffers["logits"]

    def _recurse(self, recursion: Recursion) -> None:
        b = self._buffers
        count = b["x"].shape[0]
        h = b["x"].clone()
        active = torch.ones(count, dtype=torch.bool)
        survival = torch.ones(count)
        self.steps = torch.zeros(count, dtype=torch.int64)
        for step in range(recursion.steps):
            latent, answer = b["latent"].clone(), b["answer"].clone()
            for inner in range(recursion.latent_steps):
                u = recursion.inject_prelude * h
                if step or inner:
                    u = u + b["latent"]
                if step:
                    u = u + recursion.inject_answer * b["answer"]
                b["x"] = u.clone()
                number = step * recursion.latent_steps + inner
                for block in recursion.blocks:
                    first = recursion.first_cache + number * len(recursion.blocks)
                    self._run(block, first)
                    # A halted token's block input stays what serves later tokens as keys, values.
                    b["x"] = torch.where(active[:, None], b["x"], u)
                b["latent"] = torch.where(active[:, None], b["x"], latent)
            self._run(recursion.update, 0)
            b["answer"] = torch.where(active[:, None], b["answer"], answer)
            self.steps += active
            if step + 1 < recursion.steps:
                self._run(recursion.halt, 0)
                survival = survival * (1 - torch.sigmoid(b["logit"][:, 0]))
                active = active & (1 - survival < recursion.threshold)

    def _run(self, steps: Sequence[Step], first_cache: int) -> None:
        for step in steps:
            match step:
                case Embed():
                    self._write(step.out, _rows(step.table, self._ids))
                case Norm():
                    x = self._read(step.src)
                    y = F.rms_norm(x, (step.src.width,), step.weight, step.eps)
                    self._write(step.out, y)
                case Linear():
                    self._linear(step)
                case Attend():
                    self._attend(step, first_cache + step.cache)
                case Remember():
                    self._remember(step)
                case Blend():
                    mixed = self._read(step.mixed)
                    mixed += self._read(step.gate) * (self._read(step.read) - mixed)
                case Activate():
                    gate = self._read(step.gate)
                    act = F.relu(gate).square() if step.squared_relu else F.silu(gate)
                    self._write(step.out, act * self._read(step.up))

    def _linear(self, step: Linear) -> None:
        x = self._read(step.src).contiguous()
        residual = None if step.residual is None else self._read(step.residual).contiguous()
        weight = self._weights[id(step)]
        if isinstance(weight, Tensor):
            y = F.linear(x, weight.float())
            y = y if residual is None else y + residual
        else:
            q, scale, _ = reference.quantize_activations(x)
            codes = weight.weight if isinstance(weight, Int8Weight) else self._trits[id(weight)]
            y = reference.linear(q, scale, codes, weight.scale, residual)
        if step.bias is not None:
            y = y + step.bias
        if step.activation == "sigmoid":
            y = torch.sigmoid(y)
        self._write(step.out, y)

    def _attend(self, step: Attend, cache: int) -> None:
        keys, values = self.keys[cache], self.values[cache]
        width = step.q.width // step.heads
        shared = step.heads // step.kv_heads
        q = self._read(step.q).view(-1, step.heads, width)
        k = self._read(step.k).view(-1, step.kv_heads, width)
        v = self._read(step.v).view(-1, step.kv_heads, width)
        out = torch.empty(q.shape)
        for token, (sequence, position) in enumerate(self._places()):
            cos, sin = self.plan.rope_cos[position], self.plan.rope_sin[position]
            slot = position % step.window
            turned = rotate(k[token], cos, sin)
            keys[sequence, slot] = as_cached(turned, self._cache).flatten()
            values[sequence, slot] = as_cached(v[token], self._cache).flatten()
            seen = min(position + 1, step.window)
            # Any order of the slots gives the same sums but for their rounding: oldest first.
            order = torch.arange(position - seen + 1, position + 1) % step.window
            key = keys[sequence][order].view(seen, step.kv_heads, width)
            value = values[sequence][order].view(seen, step.kv_heads, width)
            key, value = (t.repeat_interleave(shared, dim=1).transpose(0, 1) for t in (key, value))
            query = rotate(q[token], cos, sin)[:, None]
            out[token] = F.scaled_dot_product_attention(query, key, value)[:, 0]
        self._write(step.out, out.flatten(1))

    def _remember(self, step: Remember) -> None:
        raw, rates = self._read(step.raw), self._read(step.rates)
        width, number = step.width, step.state
        states = self.memories
        recent = states.recent[number]
        out = torch.empty(raw.shape[0], width)
        for token, (sequence, position) in enumerate(self._places()):
            mixed = (
                raw[token] * step.filter[0]
                + recent[sequence, 1] * step.filter[1]
                + recent[sequence, 0] * step.filter[2]
            )
            recent[sequence] = torch.stack((recent[sequence, 1], raw[token]))
            key, query, value = torch.split(F.silu(mixed), width)
            key, query = F.normalize(key, dim=0), F.normalize(query, dim=0)
            theta = step.budget * torch.sigmoid(rates[token, 0])
            eta, keep = torch.sigmoid(rates[token, 1]), torch.sigmoid(-rates[token, 2])
            weight, momentum = states.maps[number][sequence], states.momenta[number][sequence]
            if position % step.chunk == 0:
                states.chunk_maps[number][sequence] = weight
            error = limited_error(value - states.chunk_maps[number][sequence] @ key)
            momentum.mul_(eta).add_(torch.outer(theta * error, key))
            weight.mul_(keep).add_(momentum)
            out[token] = weight @ query
        self._write(step.out, out)

    def _places(self) -> list[tuple[int, int]]:
        return list(zip(self._sequence.tolist(), self._position.tolist(), strict=True))

    def _read(self, span: Span) -> Tensor:
        return self._buffers[span.buffer][:, span.start : span.start + span.width]

    def _write(self, span: Span, value: Tensor) -> None:
        self._read(span).copy_(value)


def _rows(table: Int8Weight | Tensor, ids: Tensor) -> Tensor:
    if isinstance(table, Int8Weight):
        return table.weight[ids].float() * table.scale[ids, None]
    return table[ids].float()
