"""What calls cost, exactly: decimal arithmetic on the tokens that the endpoint reports."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from agentforge.config.generator import GeneratorConfig, TeacherConfig

MILLION = Decimal(1_000_000)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one attempt, as reported by the endpoint."""

    input_tokens: int
    output_tokens: int


def cost_of(teacher: TeacherConfig, usage: Usage) -> Decimal:
    """US dollars of one attempt."""
    return (
        teacher.input_usd * usage.input_tokens + teacher.output_usd * usage.output_tokens
    ) / MILLION


def reply_tokens(config: GeneratorConfig, teacher: TeacherConfig, count: int) -> int:
    """Most tokens a reply with `count` examples may have; twice what is expected, and a little."""
    return min(teacher.max_output, 2 * config.tokens_per_example * count + 200)


def worst_case(
    config: GeneratorConfig, teacher: TeacherConfig, request: str, count: int
) -> Decimal:
    """The most one attempt can cost: a token has one byte at least."""
    usage = Usage(len(request.encode()) + 64, reply_tokens(config, teacher, count))
    return cost_of(teacher, usage)


def usd_text(amount: Decimal) -> str:
    """For people: four places below ten cents, else cents."""
    return f"{amount:.2f} USD" if amount >= Decimal("0.1") else f"{amount:.4f} USD"


@dataclass(frozen=True, slots=True)
class Estimate:
    """What generating would take.

    Attributes:
        teacher: Model.
        calls: Calls without failures.
        input_tokens, output_tokens: Expected.
        usd: Expected cost.
    """

    teacher: str
    calls: int
    input_tokens: int
    output_tokens: int
    usd: Decimal


def estimate(config: GeneratorConfig, strategies: int, request_bytes: int) -> list[Estimate]:
    """Expected calls, tokens and cost by teacher; about four bytes a token."""
    found = []
    for teacher in config.teachers:
        calls = strategies * -(-config.per_strategy // config.per_call)
        usage = Usage(
            calls * request_bytes // 4,
            strategies * config.per_strategy * config.tokens_per_example,
        )
        found.append(
            Estimate(
                teacher.name,
                calls,
                usage.input_tokens,
                usage.output_tokens,
                cost_of(teacher, usage),
            )
        )
    return found
