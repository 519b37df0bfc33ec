"""The schedule: its ends, its range, and its shape for any setting."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentforge.optim.schedule import ScheduleKind, lr_share

KINDS = st.sampled_from(["linear", "cosine", "constant"])
SHARES = st.floats(0.0, 1.0)


def shares(
    total: int, warmup: int, kind: ScheduleKind, cooldown: float, final: float
) -> list[float]:
    return [lr_share(s, total, warmup, kind, cooldown, final) for s in range(total + 3)]


def test_linear_by_hand() -> None:
    got = shares(10, 2, "linear", 0.4, 0.0)
    assert got == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0, 0])


def test_linear_with_final_share_by_hand() -> None:
    got = shares(4, 0, "linear", 0.5, 0.2)
    assert got == pytest.approx([1, 1, 1, 0.6, 0.2, 0.2, 0.2])


def test_cosine_by_hand() -> None:
    got = shares(6, 2, "cosine", 0.9, 0.1)
    falling = [0.1 + 0.45 * (1 - math.cos(math.pi * left / 4)) for left in (4, 3, 2, 1, 0)]
    assert got == pytest.approx([0.5, 1.0, *falling, 0.1, 0.1])


def test_constant_only_warms_up() -> None:
    assert shares(4, 4, "constant", 1.0, 0.0) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1])


@given(
    total=st.integers(1, 300),
    warmup=st.integers(0, 400),
    kind=KINDS,
    cooldown=SHARES,
    final=SHARES,
)
def test_range_and_ends(
    total: int, warmup: int, kind: ScheduleKind, cooldown: float, final: float
) -> None:
    got = shares(total, warmup, kind, cooldown, final)
    assert all(0.0 <= x <= 1.0 for x in got)
    assert min(got[0], got[total - 1]) > 0, "no real step may have learning rate 0"
    if warmup == 0 and not (kind == "linear" and cooldown * total > total - 1e-9):
        assert got[0] == pytest.approx(1.0)
    if kind != "constant" and warmup <= total and (kind == "cosine" or cooldown * total > 0):
        assert got[total] == pytest.approx(final, abs=1e-9)
        assert got[total + 1] == got[total], "beyond the end it stays"


@given(
    total=st.integers(2, 300), warmup=st.integers(0, 100), kind=KINDS, cooldown=SHARES, final=SHARES
)
def test_rises_in_the_warmup_then_never_rises(
    total: int, warmup: int, kind: ScheduleKind, cooldown: float, final: float
) -> None:
    got = shares(total, warmup, kind, cooldown, final)
    plateau_end = total if kind == "constant" else int(total * (1 - cooldown))
    if kind == "cosine":
        plateau_end = warmup
    rising = got[: min(warmup, plateau_end, total)]
    assert all(a < b for a, b in zip(rising, rising[1:], strict=False))
    falling = got[warmup:]
    assert all(a >= b - 1e-12 for a, b in zip(falling, falling[1:], strict=False))


@pytest.mark.parametrize(
    "bad", [(-1, 10, 0, 0.3, 0.0), (0, 0, 0, 0.3, 0.0), (0, 10, -1, 0.3, 0), (0, 10, 0, 1.1, 0.0)]
)
def test_refuses_nonsense(bad: tuple[int, int, int, float, float]) -> None:
    step, total, warmup, cooldown, final = bad
    with pytest.raises(ValueError, match="must"):
        lr_share(step, total, warmup, "linear", cooldown, final)
