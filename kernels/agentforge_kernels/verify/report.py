"""The static report: one kernel case on one target, from its machine code."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

from agentforge_kernels.verify import amdgcn, aot, sass
from agentforge_kernels.verify.cases import KernelCase, Role
from agentforge_kernels.verify.machine_code import Instruction, Tally, hot_loop, tally
from agentforge_kernels.verify.occupancy import Occupancy, occupancy
from agentforge_kernels.verify.roofline import (
    DEVICES,
    PRODUCT_SHAPES,
    Counts,
    ModelledTime,
    modelled_time,
)
from agentforge_kernels.verify.targets import TARGETS

LONGEST_WITHOUT_A_LOOP = 1024
"""Columns up to which a kernel without a loop over them is modelled: a row lies in registers."""


@dataclass(frozen=True, slots=True)
class StaticReport:
    """What the machine code of one case on one target says.

    Attributes:
        case: Name of the case.
        role: Of the case.
        target: Name of the target.
        triton: Version that compiled it.
        threads: Of a program.
        registers: Of a thread; vector registers on AMD.
        spill_bytes: Of a thread: stack, local memory or scratch; on AMD four for a spilled
            register.
        shared_bytes: Of a program.
        occupancy: Blocks and warps of a multiprocessor.
        code: The whole kernel.
        loop: Its hot loop; ``None`` where the code has no loop.
        item: What the case counts its work in.
        items_per_thread: Items of a thread and trip, as the case says; ``None`` if it does not.
        bytes_per_item: Of device memory, as the case says.
        unrolled: Trips of the source's loop in one of the machine code's: the compilers may unroll.
    """

    case: str
    role: Role
    target: str
    triton: str
    threads: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    occupancy: Occupancy
    code: Tally
    loop: Tally | None
    item: str
    items_per_thread: float | None
    bytes_per_item: float
    loaded_bytes_per_item: float | None
    unrolled: int

    @property
    def work(self) -> Tally:
        """The hot loop, or all code where there is none: what a trip of the case's work costs."""
        return self.code if self.loop is None else self.loop

    @property
    def instructions_per_item(self) -> float | None:
        """Issued instructions an item, of all threads; ``None`` if the case counts no items."""
        if not self.items_per_thread:
            return None
        return self.work.instructions / (self.items_per_thread * self.unrolled)

    def modelled_times(self) -> list[ModelledTime]:
        """The roofline model for every product shape, on the device this target is the code of.

        Empty where the case counts no weights, or no device of the model has this target.
        """
        per_item = self.instructions_per_item
        if per_item is None or self.item != "weight":
            return []
        items = (self.items_per_thread or 0.0) * self.unrolled
        counts = Counts(
            instructions=per_item,
            memory_bytes=self.bytes_per_item,
            loaded_bytes=self.work.load_bytes / items,
            # Matrix instructions are of a warp: 32 threads, which hold 32 times a thread's items.
            multiplications=self.work.multiplications / (32 * items),
        )
        return [
            modelled_time(device, counts, rows, columns)
            for device in DEVICES
            if device.target == self.target
            for rows, columns in PRODUCT_SHAPES
            if self.loop is not None or columns <= LONGEST_WITHOUT_A_LOOP
        ]


@dataclass(frozen=True, slots=True)
class Reports:
    """Reports of many cases, and what could not be reported.

    Attributes:
        reports: In the order of cases and targets.
        failures: Sentences: which case does not compile for which target, and why.
    """

    reports: list[StaticReport]
    failures: list[str]


def report_cases(cases: Sequence[KernelCase], target: str) -> Reports:
    """Compile cases for one target, in this process, and read their machine code.

    Cases that do not ship for the target are left out.

    Raises:
        DisassemblyError: NVIDIA's tools are missing or print what is not understood.
        AssemblyError: The same for AMD's assembly.
    """
    described = TARGETS[target]
    shipped = [case for case in cases if target in case.targets]
    compiled: list[tuple[KernelCase, aot.CompiledCase]] = []
    failures = []
    for case in shipped:
        try:
            compiled.append((case, aot.compile_case(case, target)))
        except (aot.CompilationFailure, ValueError) as failure:
            failures.append(str(failure))
    if described.family != "cuda":
        codes = [amdgcn.instructions(item.amdgcn) for _, item in compiled]
    else:
        codes = sass.disassemble([item.cubin for _, item in compiled], described.capability)
    reports = [
        _report(case, item, code) for (case, item), code in zip(compiled, codes, strict=True)
    ]
    return Reports(reports, failures)


def _report(case: KernelCase, compiled: aot.CompiledCase, code: list[Instruction]) -> StaticReport:
    target = TARGETS[compiled.target]
    if target.family == "cuda":
        nvidia = sass.resources(compiled.cubin, target.capability)
        registers = nvidia.registers
        spill_bytes = nvidia.stack_bytes + nvidia.local_bytes
        declared = nvidia.shared_bytes
    else:
        amd = amdgcn.resources(compiled.amdgcn)
        registers = amd.vector_registers
        spill_bytes = amd.scratch_bytes + 4 * amd.spills
        # What a launch asks for and what the code declares are the same memory on AMD.
        declared = max(0, amd.shared_bytes - compiled.shared_bytes)
    shared_bytes = compiled.shared_bytes + declared
    loop, unrolled = hot_loop(code)
    counted = tally(loop) if loop else None
    items = case.work.items_per_trip / compiled.threads if case.work else None
    return StaticReport(
        case=case.name,
        role=case.role,
        target=compiled.target,
        triton=aot.TRITON_VERSION,
        threads=compiled.threads,
        registers=registers,
        spill_bytes=spill_bytes,
        shared_bytes=shared_bytes,
        occupancy=occupancy(compiled.target, registers, shared_bytes, compiled.threads),
        code=tally(code),
        loop=counted,
        item=case.work.item if case.work else "",
        items_per_thread=items,
        bytes_per_item=case.work.bytes_per_item if case.work else 0.0,
        loaded_bytes_per_item=case.work.loaded_bytes_per_item if case.work else None,
        unrolled=max(unrolled, _repeated_products(case, counted, items)),
    )


def _repeated_products(case: KernelCase, loop: Tally | None, items: float | None) -> int:
    """How often a compiler repeated the source's loop body, from the dot products in it.

    A dot product takes four items (a batch counts a weight once for each token), so one trip has a
    quarter as many, and some more for corrections. Only a matvec's items are sure to be counted so.
    That the products are not merely doubled, ``gates`` sees from the bytes loaded.
    """
    alone = case.role in ("gemv", "masked_gemv")
    if loop is None or not items or not (alone or "token" in (case.work.item if case.work else "")):
        return 1
    return max(1, int(loop.count("dot4") * 4 / items))


def report_everything(
    targets: Iterable[str] = tuple(TARGETS),
    names: Iterable[str] | None = None,
    processes: int | None = None,
) -> Reports:
    """Report all of the product's cases, one worker process a target at a time.

    Args:
        targets: Which targets.
        names: Which cases; all by default.
        processes: Workers; one for each processor by default.

    Raises:
        RuntimeError: A worker was ended from within, as a compiler's failed assertion does.
    """
    # Newest first: they take longest.
    ordered = list(dict.fromkeys(targets))
    chosen = None if names is None else frozenset(names)
    workers = processes or len(os.sched_getaffinity(0))
    found: dict[str, Reports] = {}
    with ProcessPoolExecutor(
        max_workers=min(workers, len(ordered)) or 1,
        # A fork would copy torch's thread pools in whatever state they are.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=aot.share_cache_directory,
        initargs=(str(aot.cache_directory()),),
    ) as pool:
        futures = {
            pool.submit(_report_target, target, chosen): target for target in reversed(ordered)
        }
        for future in as_completed(futures):
            try:
                found[futures[future]] = future.result()
            except BrokenProcessPool as error:
                raise RuntimeError(
                    f"a compiler ended its process while compiling for {futures[future]} or "
                    f"another "
                    f"target; run `python -m agentforge_kernels.verify --target NAME` to see which"
                ) from error
    return Reports(
        [report for target in ordered for report in found[target].reports],
        [failure for target in ordered for failure in found[target].failures],
    )


def _report_target(target: str, names: frozenset[str] | None) -> Reports:
    from agentforge_kernels.verify.all_cases import CASES

    return report_cases([case for case in CASES if names is None or case.name in names], target)
