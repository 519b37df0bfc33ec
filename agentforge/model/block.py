"""One pre-norm block: window attention, optionally blended with memory (MAG), and a gated FFN."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agentforge.config.schema import MemoryConfig, ModelConfig
from agentforge.model.attention import WindowAttention
from agentforge.model.linear import Projection, project
from agentforge.model.memory import NeuralMemory
from agentforge.model.norm import RMSNorm
from agentforge.model.record import ForwardRecord


class GatedFFN(nn.Module):
    """down(act(gate x) * up x); act is squared ReLU (arXiv 2109.08668) or SiLU."""

    def __init__(self, d_model: int, width: int, activation: str, out_gain: float) -> None:
        super().__init__()
        self.gate = Projection(d_model, width)
        self.up = Projection(d_model, width)
        self.down = Projection(width, d_model, gain=out_gain, normed=False)
        self.squared_relu = activation == "relu2"

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        gate, up = project(x, self.gate, self.up)
        act = F.relu(gate).square() if self.squared_relu else F.silu(gate)
        y: Tensor = self.down(act * up)
        return y


class MemoryGate(nn.Module):
    """MAG's gate, per channel and of low rank: the share of the memory in the blend.

    g = sigmoid(B A x + b), b = -1 and B = 0 at the start: 27 % memory everywhere. Titans leaves the
    gate's form open; the convex blend is our choice, so that shares can be read off.
    """

    def __init__(self, d_model: int, rank: int) -> None:
        super().__init__()
        self.a = nn.Linear(d_model, rank, bias=False)
        self.b = nn.Linear(rank, d_model)
        nn.init.normal_(self.a.weight, std=d_model**-0.5)
        nn.init.zeros_(self.b.weight)
        nn.init.constant_(self.b.bias, -1.0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> shares in (0, 1), (B, T, D)."""
        return torch.sigmoid(self.b(self.a(x)))


class Block(nn.Module):
    """Attention (with memory where `memory` is given) and feed-forward, both residual."""

    def __init__(self, config: ModelConfig, memory: MemoryConfig | None, out_gain: float) -> None:
        super().__init__()
        d = config.d_model
        self.attention_norm = RMSNorm(d, config.norm_eps)
        self.attention = WindowAttention(d, config.n_heads, out_gain)
        self.memory = NeuralMemory(d, memory, config.norm_eps) if memory else None
        self.memory_gate = MemoryGate(d, memory.gate_rank) if memory else None
        self.ffn_norm = RMSNorm(d, config.norm_eps)
        self.ffn = GatedFFN(d, config.ffn_width, config.ffn_activation, out_gain)

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """Residual updates once attention and memory are mixed, (B, T, D) each."""
        x = x + self.attention.out(mixed)
        y: Tensor = x + self.ffn(self.ffn_norm(x))
        return y

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Tensor | None,
        budget: float = 0.0,
        record: ForwardRecord | None = None,
        name: str = "",
    ) -> Tensor:
        """One pass over whole sequences.

        Args:
            x: (B, T, D).
            rope: Cosines and sines, (T, D/H) each.
            mask: From `window_mask`.
            budget: Largest memory write; 0 leaves the memory out.
            record: Where to note logit maxima and memory use.
            name: This block's key in the record.

        Returns:
            (B, T, D).
        """
        normed = self.attention_norm(x)
        mixed = self.attention.mix(normed, rope, mask, record, name)
        if self.memory is not None and self.memory_gate is not None and budget > 0:
            gate = self.memory_gate(normed)
            read = self.memory(normed, budget, record, name)
            mixed = mixed + gate * (read - mixed)
            if record is not None:
                record.gate[name] = record.mean(gate.mean(-1))
        return self.finish(x, mixed)
