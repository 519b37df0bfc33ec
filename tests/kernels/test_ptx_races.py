"""The race detector against its definition, on random programs of three warps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from agentforge_kernels.verify.ptx import Schedule
from agentforge_kernels.verify.ptx.faults import Race
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.ptx_snippets import WARP, run_block

WARPS, CELLS = 3, 2


@dataclass(frozen=True)
class Access:
    """One instruction for the first lane of some warps.

    Attributes:
        warps: Which, one bit each.
        cell: Word of shared memory.
        value: What is stored; ``None`` for a load.
    """

    warps: int
    cell: int
    value: int | None

    def by(self, warp: int) -> bool:
        return bool(self.warps >> warp & 1)


ACCESS = st.builds(
    Access,
    st.integers(1, 2**WARPS - 1),
    st.integers(0, CELLS - 1),
    st.one_of(st.none(), st.integers(1, 2)),
)
EPOCHS = st.lists(st.lists(ACCESS, max_size=4), min_size=1, max_size=3)
"""Accesses between barriers."""


def verdict(epochs: list[list[Access]]) -> bool | None:
    """Whether any order of the warps gives another result; ``None`` where that is not certain.

    A load and a store of one cell by different warps in one epoch race. So do stores of different
    values; where a warp stores several values itself, only the last may count, so nothing is said.
    """
    open_question = False
    for accesses in epochs:
        for cell in range(CELLS):
            loads, stores = set(), {}
            for access in accesses:
                for warp in range(WARPS):
                    if access.cell == cell and access.by(warp):
                        if access.value is None:
                            loads.add(warp)
                        else:
                            stores.setdefault(warp, []).append(access.value)
            if any(reader != writer for reader in loads for writer in stores):
                return True
            distinct = {value for values in stores.values() for value in values}
            if len(stores) > 1 and len(distinct) > 1:
                if all(len(set(values)) == 1 for values in stores.values()):
                    return True
                open_question = True
    return None if open_question else False


def program(epochs: list[list[Access]]) -> str:
    """Every warp folds what it loads into ``%sum``; the first lane stores it."""
    lines = [
        "shr.u32 %warp, %thread, 5; and.b32 %lane, %thread, 31; mov.b32 %sum, 0;",
        "mov.b32 %s, memory; setp.eq.u32 %first, %thread, 0;",
        *(f"@%first st.shared.b32 [%s+{4 * cell}], 9;" for cell in range(CELLS)),
    ]
    for accesses in epochs:
        lines.append("bar.sync 0;")
        for access in accesses:
            lines += [
                f"mov.b32 %m, {access.warps}; shr.u32 %m, %m, %warp; and.b32 %m, %m, 1;",
                "setp.eq.u32 %q, %lane, 0; setp.eq.and.u32 %q, %m, 1, %q;",
            ]
            place = f"[%s+{4 * access.cell}]"
            if access.value is None:
                lines.append(f"@%q ld.shared.b32 %v, {place};")
                lines.append("@%q mad.lo.u32 %sum, %sum, 31, %v;")
            else:
                lines.append(f"@%q st.shared.b32 {place}, {access.value};")
    lines += [
        "setp.eq.u32 %q, %lane, 0;",
        "mad.wide.u32 %g, %warp, 4, %p0;",
        "@%q st.global.b32 [%g], %sum;",
    ]
    return "\n".join(lines)


def expected(epochs: list[list[Access]]) -> list[int]:
    """The sums, where no order matters."""
    memory, sums = [9] * CELLS, [0] * WARPS
    for accesses in epochs:
        for access in accesses:
            for warp in range(WARPS):
                if access.by(warp) and access.value is None:
                    sums[warp] = (sums[warp] * 31 + memory[access.cell]) % 2**32
            if access.value is not None:
                memory[access.cell] = access.value
    return sums


@pytest.mark.parametrize("schedule", Schedule)
@settings(max_examples=60, deadline=None)
@given(epochs=EPOCHS)
def test_races_are_found_and_nothing_else(schedule: Schedule, epochs: list[list[Access]]) -> None:
    out = np.zeros(WARPS, np.uint32)

    def run() -> None:
        run_block(
            program(epochs),
            [out],
            threads=WARPS * WARP,
            declarations=".reg .b32 %warp, %lane, %sum, %s, %m, %v; .reg .b64 %g;"
            " .reg .pred %first, %q;",
            shared=f".shared .align 4 .b8 memory[{4 * CELLS}];",
            schedule=schedule,
        )

    races = verdict(epochs)
    if races is True:
        with pytest.raises(Race):
            run()
    elif races is False:
        run()
        assert out.tolist() == expected(epochs)
