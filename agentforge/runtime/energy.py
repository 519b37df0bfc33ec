"""Energy the processor has used, where Linux tells (RAPL counters under /sys/class/powercap)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


@dataclass(slots=True)
class Energy:
    """Counters of all packages; they wrap around at their largest value.

    Attributes:
        counters: Files with microjoules, and where each wraps.
    """

    counters: list[tuple[Path, int]]
    _last: list[int] = field(default_factory=list)
    _wrapped: list[int] = field(default_factory=list)

    @classmethod
    def of_this_machine(cls, root: Path = POWERCAP) -> Energy | None:
        """Its counters; None where there are none, or they may not be read (root only, mostly)."""
        found = []
        for zone in sorted(root.glob("intel-rapl:[0-9]*")):
            if zone.name.count(":") > 1:
                continue  # a part of a package, counted already
            try:
                counter = zone / "energy_uj"
                int(counter.read_text())
                found.append((counter, int((zone / "max_energy_range_uj").read_text())))
            except (OSError, ValueError):
                continue
        return cls(found) if found else None

    def joules(self) -> float:
        """Joules of all packages since some moment; call it more often than they wrap (minutes)."""
        now = [int(counter.read_text()) for counter, _ in self.counters]
        if not self._last:
            self._last, self._wrapped = now, [0] * len(now)
        for i, (value, (_, most)) in enumerate(zip(now, self.counters, strict=True)):
            if value < self._last[i]:
                self._wrapped[i] += most
        self._last = now
        return sum(v + w for v, w in zip(now, self._wrapped, strict=True)) / 1e6
