"""One reasoning example: the schema all three sources write and baking reads."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from agentforge.reasoning.strategies import Difficulty


class ReasoningExample(BaseModel):
    """A question with the thought that leads to its answer.

    Attributes:
        id: Unique in its set, and the same whenever it is generated again.
        prompt: The question, as a person would type it.
        reasoning: The thought: `[thinking]`, one inner token, text, `[/endthinking]`.
        answer: What is said after the thought.
        strategy: Name of its strategy.
        difficulty: Of the problem.
        topic: What the problem is about.
        model_source: Who wrote it: `synthetic` (our templates), or the model's name.
        timestamp: When, ISO 8601 UTC; empty for templates, whose sets repeat byte for byte.
        quality: 1 for a right thought, 0 for a corrupted one, a share where it was estimated.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1, max_length=200)
    prompt: str = Field(min_length=1, max_length=20_000)
    reasoning: str = Field(min_length=1, max_length=20_000)
    answer: str = Field(min_length=1, max_length=5_000)
    strategy: str
    difficulty: Difficulty
    topic: str = ""
    model_source: str = Field(min_length=1)
    timestamp: str = ""
    quality: float = Field(ge=0.0, le=1.0)
