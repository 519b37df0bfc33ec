"""Time of a token before and after: the Phase 3 model in torch against the packed one."""

from __future__ import annotations

from dataclasses import dataclass

from agentforge_kernels.native import extension

from agentforge.model.language_model import CognateLM
from agentforge.phases.bitnet.outputs import Packed
from agentforge.runtime.bench_variants import NATIVE, native_executor, native_step, torch_step
from agentforge.runtime.latency import TokenTime, one_by_one, time_tokens

TOKENS, ROUNDS = 32, 3
BEFORE, AFTER = "FP32, torch eager with caches", "packed, native executor"


@dataclass(frozen=True, slots=True)
class Speed:
    """Times of a token, batch 1.

    Attributes:
        before: The Phase 3 model in FP32 with torch, its caches kept.
        after: The packed model with the native executor.
        forms: In which form every matrix was computed, by name.
    """

    before: TokenTime
    after: TokenTime
    forms: dict[str, str]

    @property
    def ratio(self) -> float:
        """How many times faster."""
        return self.before.median / self.after.median


def measure_speed(teacher: CognateLM, packed: Packed) -> Speed | None:
    """Both side by side on this machine; None where the native extension was not built."""
    if extension is None:
        return None
    directory = packed.directory
    executor = native_executor(directory, NATIVE, "float32")
    alone = one_by_one(teacher)
    found = time_tokens(
        {
            BEFORE: lambda: torch_step(alone, directory, 0),
            AFTER: lambda: native_step(directory, executor, 0),
        },
        min(TOKENS, directory.shapes.context),
        directory.vocab_size,
        ROUNDS,
    )
    return Speed(found[BEFORE], found[AFTER], dict(executor.forms))
