"""Tiny models for tests of the model: odd shapes, no parameter at a value that hides a fault."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from agentforge.config.schema import MemoryConfig, ModelConfig
from agentforge.model.language_model import CognateLM

VOCAB = 23


def tiny_config(**changes: Any) -> ModelConfig:
    """Width 24, 3 heads of 8, window 5, memory of width 8 with chunks of 4 in the second block."""
    values: dict[str, Any] = {
        "d_model": 24,
        "n_heads": 3,
        "n_prelude": 2,
        "n_core": 1,
        "ffn_width": 40,
        "embedding_rank": 10,
        "window": 5,
        "context": 32,
        "recursion_steps": 3,
        "memory": MemoryConfig(layers=(1,), width=8, chunk=4, gate_rank=3),
    }
    return ModelConfig(**(values | changes))


def tiny_model(seed: int = 0, vocab: int = VOCAB, **changes: Any) -> CognateLM:
    """A model whose zero- and one-initialised parameters are random too."""
    torch.manual_seed(seed)
    model = CognateLM(tiny_config(**changes), vocab).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("halting.logit"):
                parameter.normal_(std=1.0)
            elif parameter.ndim == 1 or "rates" in name or "memory_gate.b" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def random_ids(batch: int, length: int, seed: int = 1, vocab: int = VOCAB) -> Tensor:
    """(batch, length) token ids."""
    return torch.randint(0, vocab, (batch, length), generator=torch.Generator().manual_seed(seed))
