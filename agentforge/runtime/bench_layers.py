"""Matrix by matrix: which kernel runs it, its zeros, and what sparse forms gain over the dense."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from agentforge_kernels import PackedTernary, unpack, zero_tile_share

from agentforge.runtime.generate import TokenSequence
from agentforge.runtime.native import NativeExecutor
from agentforge.runtime.plan import loaded

TOKENS = 16
"""Tokens a round; the executors take turns from round to round."""


@dataclass(frozen=True, slots=True)
class LayerTime:
    """One matrix of the plan, one token, with the first number of threads.

    Attributes:
        name: Of the matrices that are one in the plan, joined with ``+``.
        form: ``dense``, ``block-sparse``, ``activation-sparse``, ``int8`` or ``float``.
        rows, columns: Its shape.
        zero_share: Of its weights; None for float and int8 matrices.
        zero_tiles: Share of 64 x 16 tiles that are zero; None as above.
        zero_inputs: Measured share of zeros in its input.
        us: Microseconds a token, all recursion steps together.
        dense_us: The same with the dense form forced.
    """

    name: str
    form: str
    rows: int
    columns: int
    zero_share: float | None
    zero_tiles: float | None
    zero_inputs: float
    us: float
    dense_us: float

    @property
    def gain(self) -> float:
        """How many times faster than the dense form."""
        return self.dense_us / self.us if self.us else 1.0


def time_layers(executor: NativeExecutor, rounds: int) -> list[LayerTime]:
    """Time every matrix with its form and with the dense one, in turns.

    Args:
        executor: The model as it is run.
        rounds: Sequences of `TOKENS` tokens each.
    """
    plan = executor.plan
    executors = {"used": executor, "dense": NativeExecutor(plan, sparse=False)}
    times: dict[str, list[dict[str, float]]] = {name: [] for name in executors}
    tokens = min(TOKENS, plan.context)
    for turn in range(rounds + 1):
        for name, timed in executors.items():
            sequence = TokenSequence(timed, plan.context)
            timed.start_timing()
            for position in range(tokens):
                sequence.read([position % plan.vocab_size])
            found = timed.stop_timing()
            if turn:
                times[name].append(found)
    forms = executor.forms
    layers = []
    for step in plan.linears():
        weight = loaded(step.weight)
        ternary = weight if isinstance(weight, PackedTernary) else None
        layers.append(
            LayerTime(
                name=step.name,
                form=forms[step.name],
                rows=step.out.width,
                columns=step.src.width,
                zero_share=float((unpack(ternary) == 0).float().mean()) if ternary else None,
                zero_tiles=zero_tile_share(ternary) if ternary else None,
                zero_inputs=step.zero_activations,
                us=statistics.median(t[step.name] for t in times["used"]) / tokens,
                dense_us=statistics.median(t[step.name] for t in times["dense"]) / tokens,
            )
        )
    return layers
