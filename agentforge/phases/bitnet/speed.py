"""Time of a token before and after: the Phase 3 model in torch against the packed one."""

from __future__ import annotations

from dataclasses import dataclass

from agentforge_kernels.native import extension

from agentforge.model.language_model import CognateLM
from agentforge.phases.bitnet.outputs import Packed
from agentforge.runtime.latency import Step, TokenTime, time_tokens, torch_decoder
from agentforge.runtime.lower import lower_packed
from agentforge.runtime.native import NativeExecutor

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
    executor = NativeExecutor(lower_packed(directory))

    def native() -> Step:
        executor.reset(0)
        return lambda token, position: _read(executor, token, position)

    found = time_tokens(
        {BEFORE: torch_decoder(teacher, directory.behaviour), AFTER: native},
        min(TOKENS, directory.shapes.context),
        directory.vocab_size,
        ROUNDS,
    )
    return Speed(found[BEFORE], found[AFTER], dict(executor.forms))


def _read(executor: NativeExecutor, token: int, position: int) -> None:
    executor.run([token], [0], [position], [0])
