"""What can go wrong while PTX is executed; every fault names the instruction it met."""

from __future__ import annotations


class PtxFault(Exception):
    """A program did what no correct program does, or what this executor cannot do."""


class PtxSyntaxError(PtxFault):
    """Text that the parser does not understand."""


class UnsupportedInstruction(PtxFault):
    """An instruction, or a form of one, that the executor does not know."""


class OutOfBounds(PtxFault):
    """An access outside of every buffer, or outside of the declared shared memory."""


class Misaligned(PtxFault):
    """An access whose address is no multiple of its size."""


class ReadOnly(PtxFault):
    """A store to a buffer that the caller made read-only."""


class Divergence(PtxFault):
    """A warp-wide or block-wide instruction reached by only some of the threads it needs."""


class UninitialisedRead(PtxFault):
    """Shared memory read before anything was stored there, or while a copy is under way."""


class Race(PtxFault):
    """Two threads touch the same memory, one of them storing, with no barrier in between."""


class Endless(PtxFault):
    """The program took more steps than allowed."""


class Trap(PtxFault):
    """The program executed ``trap``."""
