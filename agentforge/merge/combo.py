"""The eight combos: one technique of each pair, written as three bits.

The leftmost bit is interpolation, as in the documents' tables (their code samples read the bits
from the other end; only 000, 010, 101 and 111 mean the same in both).
"""

from __future__ import annotations

from dataclasses import dataclass

from agentforge.merge.techniques import PAIRS, Technique, technique


@dataclass(frozen=True, slots=True, order=True)
class Combo:
    """A choice of three techniques.

    Attributes:
        number: 0 to 7.
    """

    number: int

    def __post_init__(self) -> None:
        if not 0 <= self.number < 8:
            raise ValueError(f"combo {self.number} is not one of 0 to 7")

    @classmethod
    def parse(cls, text: str) -> Combo:
        """From three binary digits, such as ``101``.

        Raises:
            ValueError: Something else.
        """
        if len(text) != 3 or set(text) - {"0", "1"}:
            raise ValueError(f"combo {text!r} is not three binary digits such as 101")
        return cls(int(text, 2))

    @property
    def digits(self) -> str:
        """Three binary digits: interpolation, task arithmetic, selection."""
        return f"{self.number:03b}"

    @property
    def techniques(self) -> tuple[Technique, Technique, Technique]:
        """The three techniques in the order they are applied."""
        first, second, third = (
            technique(pair, int(bit)) for pair, bit in zip(PAIRS, self.digits, strict=True)
        )
        return first, second, third

    @property
    def title(self) -> str:
        """For people: ``SLERP + DARE + DFS``."""
        return " + ".join(found.title for found in self.techniques)

    def flipped(self, place: int) -> Combo:
        """The combo with another technique at `place`: 0 interpolation, 2 selection."""
        return Combo(self.number ^ (4 >> place))


COMBOS = tuple(Combo(number) for number in range(8))
