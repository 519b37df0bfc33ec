"""Exact parameter counts by role, and the packed size that follows from the shapes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from agentforge.config.schema import ModelConfig
from agentforge.model.language_model import CognateLM

PACK_K = 128
"""Rows of packed codes are padded to this many inputs."""


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """Parameters of one model by role.

    Attributes:
        total: All parameters.
        embedding: The tied table.
        embedding_maps: Rank to width and back.
        attention, ffn, memory, answer: Hidden matrices, ternary after Phase 4.
        gates: MAG gates, memory rates and filters.
        halting: The halting head with its norm.
        norms: All other RMSNorm weights and the injection vectors.
        packed_bytes: 2-bit codes (inputs padded to 128), one fp32 scale a matrix, the rest in fp16.
    """

    total: int
    embedding: int
    embedding_maps: int
    attention: int
    ffn: int
    memory: int
    answer: int
    gates: int
    halting: int
    norms: int
    packed_bytes: int

    @property
    def ternary(self) -> int:
        """Parameters stored as ternary codes."""
        return self.attention + self.ffn + self.memory + self.answer

    @property
    def fp16(self) -> int:
        """Parameters that stay in high precision."""
        return self.total - self.ternary

    @property
    def fp32_bytes(self) -> int:
        """Size of the FP32 weights."""
        return 4 * self.total


def count_parameters(config: ModelConfig, vocab_size: int) -> ParameterCount:
    """Count without allocating: the model is built on the meta device."""
    with torch.device("meta"):
        model = CognateLM(config, vocab_size)
    return count_model(model)


def count_model(model: CognateLM) -> ParameterCount:
    """Count a model's parameters by role; every parameter falls into exactly one."""
    hidden = model.hidden_matrices()
    sums = dict.fromkeys(
        ("embedding", "embedding_maps", "attention", "ffn", "memory", "answer", "gates")
        + ("halting", "norms"),
        0,
    )
    packed = 0
    for name, parameter in model.named_parameters():
        sums[_role(name, name in hidden)] += parameter.numel()
        packed += _packed_bytes(parameter) if name in hidden else 2 * parameter.numel()
    return ParameterCount(total=sum(sums.values()), packed_bytes=packed, **sums)


def _role(name: str, hidden: bool) -> str:
    if name == "embedding.table":
        return "embedding"
    if name in ("embedding.up.weight", "embedding.down.weight"):
        return "embedding_maps"
    if name.startswith("halting."):
        return "halting"
    if hidden:
        for role in ("attention", "ffn", "memory"):
            if f".{role}." in name:
                return role
        return "answer"
    if "norm" in name or name.startswith("inject_"):
        return "norms"
    return "gates"


def _packed_bytes(matrix: nn.Parameter) -> int:
    rows, inputs = matrix.shape
    padded = -(-inputs // PACK_K) * PACK_K
    return rows * padded // 4 + 4
