"""The peer of the training benchmark: an ordinary decoder of the same width and depth."""

from __future__ import annotations

from torch import Tensor, nn

from agentforge.config.schema import ModelConfig
from agentforge.model.block import Block
from agentforge.model.embedding import FactorisedEmbedding
from agentforge.model.linear import Projection
from agentforge.model.rotary import rotary_tables


class PlainDecoder(nn.Module):
    """Pre-norm blocks over the same factorised, tied embedding."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        d = config.d_model
        self.depth = executed_blocks(config)
        gain = (2 * self.depth) ** -0.5
        self.embedding = FactorisedEmbedding(vocab_size, config.embedding_rank, d, config.norm_eps)
        self.blocks = nn.ModuleList(Block(config, None, gain) for _ in range(self.depth))
        cos, sin = rotary_tables(config.context, d // config.n_heads, config.rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, D)."""
        x: Tensor = self.embedding(ids)
        rope = (self.get_buffer("cos")[: ids.shape[1]], self.get_buffer("sin")[: ids.shape[1]])
        for block in self.blocks:
            x = block(x, rope, None)
        return x

    def hidden_matrices(self) -> dict[str, nn.Parameter]:
        """What Muon trains."""
        return {
            f"{n}.weight": m.get_parameter("weight")
            for n, m in self.named_modules()
            if isinstance(m, Projection)
        }


def executed_blocks(config: ModelConfig) -> int:
    """Blocks evaluated per token at full recursion."""
    return config.n_prelude + config.n_core * config.recursion_steps * config.latent_steps
