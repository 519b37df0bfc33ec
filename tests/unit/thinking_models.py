"""Small models that the tests of thinking share."""

from __future__ import annotations

import torch

from agentforge.config.schema import MemoryConfig, ModelConfig
from agentforge.model.language_model import CognateLM

VOCAB = 37


def small_model(window: int = 7, context: int = 64, vocab: int = VOCAB, seed: int = 3) -> CognateLM:
    """Weights far from any symmetry of a fresh model, in evaluation mode."""
    torch.manual_seed(seed)
    config = ModelConfig(
        d_model=32,
        n_heads=2,
        n_prelude=2,
        n_core=1,
        ffn_width=48,
        embedding_rank=16,
        window=window,
        context=context,
        recursion_steps=3,
        memory=MemoryConfig(layers=(1,), width=16, chunk=4, gate_rank=4),
    )
    model = CognateLM(config, vocab)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model.eval()
