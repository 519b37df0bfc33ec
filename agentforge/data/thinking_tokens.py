"""The twelve thinking tokens of Phase 3, reserved in every vocabulary from the start.

Their order is fixed: it is the order of their ids. Reserving them before Phase 1 keeps every
tensor's shape the same through all phases, so checkpoints of different phases stay mergeable.
There are no closing tags for the ten inner tokens.
"""

from __future__ import annotations

THINKING_START = "[thinking]"
THINKING_END = "[/endthinking]"

THINKING_TOKENS: tuple[str, ...] = (
    THINKING_START,
    THINKING_END,
    "<step>",
    "<mece>",
    "<falsify>",
    "<expert>",
    "<orthogonal>",
    "<doubt>",
    "<bayesian>",
    "<multidomain>",
    "<correct>",
    "<uncertain>",
)
"""Two outer and ten inner tokens; in GPT-2's vocabulary ids 50257..50268."""
