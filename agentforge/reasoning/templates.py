"""Ten ways to solve the built-in problems, one function each: a thought and the answer after it.

What was measured and shaped them (`docs/log.md`):

- The last step is never written: the answer is one operation on the thought's last two values. A
  trace that ends with the answer is copied, and a test of it tests copying.
- Every operand is said again where it is needed, so that each sum is of the two values just before
  it. With bare running totals (3 8 7) a 0.6M model wrote perfect thoughts and answered at chance,
  because the answer alone needed a circuit of its own; with operands (3 5 8 9 7 2) answer and
  steps share one, and all ten strategies are learned together.
- A corrupted step is followed to its end: the answer is what the wrong value leads to, as of a
  teacher who made a slip.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from agentforge.reasoning.problems import EXPERTS, Problem


@dataclass(frozen=True, slots=True)
class Solution:
    """A thought and its answer.

    Attributes:
        thought: Text between the strategy token and `[/endthinking]`.
        answer: Without its full stop.
        right: No step was corrupted.
    """

    thought: str
    answer: str
    right: bool = True


class Slips:
    """Where steps go wrong: at most one step of a thought, and only when told to.

    Args:
        rng: Chooses the step and the wrong value; None makes no slips.
        steps: Steps that may go wrong.
    """

    def __init__(self, rng: random.Random | None, steps: int) -> None:
        self._rng = rng
        self._left = rng.randrange(steps) if rng is not None and steps > 0 else -1
        self.made = False

    def step(self, value: int) -> int:
        """The value of the next step, right or wrong (a digit)."""
        self._left -= 1
        if self._rng is None or self._left != -1 or self.made:
            return value
        self.made = True
        return (value + self._rng.randint(1, 9)) % 10


def solve(problem: Problem, strategy: str, rng: random.Random, corrupt: bool = False) -> Solution:
    """A solution of a problem with one of its strategies.

    Args:
        problem: The problem.
        strategy: One of `problem.strategies`.
        rng: Chooses among equally right thoughts, and the slip.
        corrupt: Whether one step goes wrong (a thought without a step to corrupt stays right).

    Raises:
        ValueError: The strategy does not solve this topic.
    """
    if strategy not in problem.strategies:
        raise ValueError(
            f"strategy {strategy!r} does not solve {problem.topic!r}; allowed: {problem.strategies}"
        )
    return _TEMPLATES[strategy](problem, rng, corrupt)


def right_thoughts(problem: Problem, strategy: str) -> frozenset[str]:
    """Every thought of a strategy that is right for a problem."""
    if strategy == "correction":
        return frozenset(_corrections(problem.numbers))
    return frozenset({solve(problem, strategy, random.Random(0)).thought})


def right_answer(problem: Problem) -> str:
    """The answer, the same for every strategy."""
    return solve(problem, problem.strategies[-1], random.Random(0)).answer


def _chain(numbers: tuple[int, ...], slips: Slips) -> tuple[list[int], int]:
    """Operands and running sums, the last sum left out; and that sum."""
    said, total = [numbers[0]], numbers[0]
    for place, number in enumerate(numbers[1:], 2):
        said.append(number)
        total = (total + number) % 10
        if place < len(numbers):
            total = slips.step(total)
            said.append(total)
    return said, total


def _join(values: list[int]) -> str:
    return " ".join(map(str, values))


def _chain_of_thought(problem: Problem, rng: random.Random, corrupt: bool) -> Solution:
    """3 5 8 9 7 2 -> 9."""
    slips = Slips(rng if corrupt else None, len(problem.numbers) - 2)
    said, total = _chain(problem.numbers, slips)
    return Solution(_join(said), str(total), not slips.made)


def _orthogonal(problem: Problem, rng: random.Random, corrupt: bool) -> Solution:
    """From the other end: 2 9 1 5 6 3 -> 9."""
    slips = Slips(rng if corrupt else None, len(problem.numbers) - 2)
    said, total = _chain(problem.numbers[::-1], slips)
    return Solution(_join(said), str(total), not slips.made)


def _mece(problem: Problem, rng: random.Random, corrupt: bool) -> Solution:
    """Two halves that share nothing and leave nothing out: 3 5 8 and 9 2 1 so 8 1 -> 9."""
    middle = (len(problem.numbers) + 1) // 2
    parts = (problem.numbers[:middle], problem.numbers[middle:])
    slips = Slips(rng if corrupt else None, sum(len(p) - 1 for p in parts))
    texts, sums = [], []
    for part in parts:
        said, total = _chain(part, slips)
        if len(part) > 1:
            total = slips.step(total)
            said.append(total)
        texts.append(_join(said))
        sums.append(total)
    thought = f"{texts[0]} and {texts[1]} so {sums[0]} {sums[1]}"
    return Solution(thought, str(sum(sums) % 10), not slips.made)


def _doubt(problem: Problem, rng: random.Random, corrupt: bool) -> Solution:
    """Each sum is questioned and said again: 3 5 8 sure 8 9 7 sure 7 2 -> 9."""
    numbers = problem.numbers
    slips = Slips(rng if corrupt else None, len(numbers) - 2)
    said, total = [str(numbers[0])], numbers[0]
    for number in numbers[1:-1]:
        total = slips.step((total + number) % 10)
        said += [str(number), str(total), "sure", str(total)]
    said.append(str(numbers[-1]))
    return Solution(" ".join(said), str((total + numbers[-1]) % 10), not slips.made)


def _correction(problem: Problem, rng: random.Random, corrupt: bool) -> Solution:
    """One sum is wrong at first and done again: 3 5 6 no 3 5 8 9 7 2 -> 9."""
    numbers = problem.numbers
    mistake = rng.randrange(len(numbers) - 2)
    wrong = rng.randint(1, 9)
    slips = Slips(rng if corrupt else None, len(numbers) - 2)
    return _corrected(numbers, mistake, wrong, slips)


def _corrected(numbers: tuple[int, ...], mistake: int, wrong: int, slips: Slips) -> Solution:
    said, total = [str(numbers[0])], numbers[0]
    for place, number in enumerate(numbers[1:-1]):
        value = (total + number) % 10
        said.append(str(number))
        if place == mistake:
            said += [str((value + wrong) % 10), "no", str(total), str(number)]
        total = slips.step(value)
        said.append(str(total))
    said.append(str(numbers[-1]))
    return Solution(" ".join(said), str((total + numbers[-1]) % 10), not slips.made)


def _corrections(numbers: tuple[int, ...]) -> Iterator[str]:
    for mistake in range(len(numbers) - 2):
        for wrong in range(1, 10):
            yield _corrected(numbers, mistake, wrong, Slips(None, 0)).thought


def _expert(problem: Problem, rng: random.Random, corrupt: bool) -> Solution:
    """Who would know, then as that expert: a farmer 3 5 8 9 -> 7."""
    slips = Slips(rng if corrupt else None, len(problem.numbers) - 2)
    said, total = _chain(problem.numbers, slips)
    return Solution(f"a {EXPERTS[problem.words[0]]} {_join(said)}", str(total), not slips.made)


def _multidomain(problem: Problem, rng: random.Random, corrupt: bool) -> Solution:
    """Language says which numbers, arithmetic adds them: words dogs numbers 3 4 -> 7."""
    *found, asked = problem.words
    chosen = tuple(n for n, a in zip(problem.numbers, found, strict=True) if a == asked)
    # One number alone is added to nothing: the answer stays a sum of two values.
    numbers = chosen if len(chosen) > 1 else (*chosen, 0)
    slips = Slips(rng if corrupt else None, 1)
    numbers = (slips.step(numbers[0]), *numbers[1:])
    said, total = _chain(numbers, Slips(None, 0))
    return Solution(f"words {asked} numbers {_join(said)}", str(total), not slips.made)


def _bayesian(problem: Problem, rng: random.Random, corrupt: bool) -> Solution:
    """Prior and evidence of both sides as marks: rain 3 4 7 sun 2 1 3 so 7 3 -> rain."""
    (a, b), (c, d) = problem.numbers[:2], problem.numbers[2:]
    first, second = a + b, c + d
    right = True
    if corrupt:
        first = rng.choice([n for n in range(10) if n not in (first, second)])
        right = False
    one, other = problem.words
    thought = f"{one} {a} {b} {first} {other} {c} {d} {second} so {first} {second}"
    return Solution(thought, one if first > second else other, right)


def _falsification(problem: Problem, rng: random.Random, corrupt: bool) -> Solution:
    """The claim is tried, value beside value: 3 5 8 9 7 2 9 but 9 4 -> no."""
    *numbers, claim = problem.numbers
    slips = Slips(rng if corrupt else None, len(numbers) - 1)
    said, total = _chain(tuple(numbers), slips)
    total = slips.step(total)
    verdict = "yes" if total == claim else "no"
    thought = f"{_join([*said, total])} but {total} {claim}"
    return Solution(thought, verdict, not slips.made)


def _uncertainty(problem: Problem, rng: random.Random, corrupt: bool) -> Solution:
    """What is known, up to what is not: known 3 5 8 but x -> open; else known 3 5 8 9 -> 7."""
    numbers = problem.numbers
    if problem.topic == "sum":
        slips = Slips(rng if corrupt else None, len(numbers) - 2)
        said, total = _chain(numbers, slips)
        return Solution(f"known {_join(said)}", str(total), not slips.made)
    known = numbers[: numbers.index(-1)]
    slips = Slips(rng if corrupt else None, len(known) - 1)
    said, total = _chain(known, slips)
    if len(known) > 1:
        said.append(slips.step(total))
    return Solution(f"known {_join(said)} but x", "open", not slips.made)


_TEMPLATES: dict[str, Callable[[Problem, random.Random, bool], Solution]] = {
    "chain_of_thought": _chain_of_thought,
    "mece": _mece,
    "falsification": _falsification,
    "expert": _expert,
    "orthogonal": _orthogonal,
    "doubt": _doubt,
    "bayesian": _bayesian,
    "multidomain": _multidomain,
    "correction": _correction,
    "uncertainty": _uncertainty,
}


def implied_answer(strategy: str, thought: str, sides: tuple[str, ...] = ()) -> str | None:
    """What a thought's last two values lead to, right or wrong; None when it has no such end.

    This is what a model that uses its thought must answer (test of corrupted steps).

    Args:
        strategy: Its strategy.
        thought: Text of the thought.
        sides: The two sides of a weather problem, in order.
    """
    words = thought.split()
    if strategy == "uncertainty" and words[-2:] == ["but", "x"]:
        return "open"
    if len(words) < 2 or not all(w.isdigit() and len(w) == 1 for w in words[-2:]):
        return None
    first, second = int(words[-2]), int(words[-1])
    if strategy == "falsification":
        return "yes" if first == second else "no"
    if strategy == "bayesian":
        if first == second or len(sides) != 2:
            return None
        return sides[0] if first > second else sides[1]
    return str((first + second) % 10)
