"""Configuration of the reasoning-data generator: models, prices, limits."""

from __future__ import annotations

from decimal import Decimal

from pydantic import Field, model_validator

from agentforge.config.section import Section, Share


class TeacherConfig(Section):
    """One model that writes examples, with its price (providers change both often)."""

    name: str = Field(min_length=1, description="Name the endpoint knows it by.")
    input_usd: Decimal = Field(
        ge=0, le=10_000, description="US dollars per million tokens of the request."
    )
    output_usd: Decimal = Field(
        ge=0, le=10_000, description="US dollars per million tokens of the reply."
    )
    max_output: int = Field(8192, ge=256, description="Most tokens of one reply.")


TEACHERS: tuple[TeacherConfig, ...] = (
    TeacherConfig(
        name="openai/gpt-4o", input_usd=Decimal(5), output_usd=Decimal(15), max_output=4096
    ),
    TeacherConfig(name="anthropic/claude-3.5-sonnet", input_usd=Decimal(3), output_usd=Decimal(15)),
    TeacherConfig(name="google/gemini-pro-1.5", input_usd=Decimal("1.25"), output_usd=Decimal(5)),
    TeacherConfig(
        name="x-ai/grok-beta", input_usd=Decimal(5), output_usd=Decimal(15), max_output=4096
    ),
    TeacherConfig(
        name="qwen/qwen-2.5-72b-instruct", input_usd=Decimal("0.4"), output_usd=Decimal("0.4")
    ),
)
"""The mission's roster with its prices; model ids age quickly, so look yours up."""


class GeneratorConfig(Section):
    """`agentforge-tui data generate`: examples from any OpenAI-compatible endpoint."""

    base_url: str = Field(
        "https://openrouter.ai/api/v1", description="The endpoint, up to and without /chat."
    )
    key_variable: str = Field(
        "OPENROUTER_API_KEY",
        min_length=1,
        description="Environment variable that holds the key; it is never written anywhere.",
    )
    teachers: tuple[TeacherConfig, ...] = Field(
        TEACHERS, min_length=1, description="Models that write, each the same number."
    )
    per_strategy: int = Field(
        500, ge=1, description="Valid examples of one teacher and strategy (5 x 10 x 500)."
    )
    per_call: int = Field(
        20, ge=1, le=20, description="Examples asked for in one call; more get cut (spec: 100)."
    )
    tokens_per_example: int = Field(
        250, ge=50, description="Reply tokens reserved for one example; also the price estimate."
    )
    requests_per_minute: float = Field(50.0, gt=0, description="Calls started in a minute at most.")
    concurrency: int = Field(8, ge=1, le=64, description="Calls under way at once at most.")
    timeout_s: float = Field(120.0, gt=0, description="Seconds until a call counts as lost.")
    tries: int = Field(5, ge=1, le=20, description="Attempts of one call.")
    backoff_s: float = Field(2.0, ge=0, description="First wait before another attempt; doubles.")
    most_backoff_s: float = Field(60.0, ge=0, description="Longest wait.")
    temperature: float = Field(0.8, ge=0, le=2, description="Sampling temperature.")
    top_p: float = Field(0.95, gt=0, le=1, description="Nucleus of the sampling.")
    cost_limit_usd: Decimal = Field(
        Decimal(200), ge=0, description="No call starts that could go beyond this."
    )
    warn_share: Share = Field(0.8, description="Share of the limit that is warned at.")
    spare_calls: float = Field(
        1.5, ge=1, description="Calls of a teacher and strategy at most, relative to what it needs."
    )

    @model_validator(mode="after")
    def _distinct(self) -> GeneratorConfig:
        names = [t.name for t in self.teachers]
        if len(set(names)) < len(names):
            raise ValueError(f"teachers names a model twice: {', '.join(names)}")
        return self
