"""Numbers of Phase 3 that follow from the measured size of the model."""

from __future__ import annotations

from agentforge.config.schema import RunConfig
from agentforge.model.language_model import CognateLM
from agentforge.sizing import answer_tokens


def parameters(model: CognateLM) -> int:
    """Measured parameters."""
    return sum(p.numel() for p in model.parameters())


def most_tokens(config: RunConfig, model: CognateLM) -> int:
    """Tokens a model may write as thought and answer together."""
    return answer_tokens(config.quietstar.max_new_tokens, parameters(model))
