"""The kernels' benchmark at tiny sizes: complete, consistent, honest about what is missing."""

from __future__ import annotations

import importlib.util
import math
import os
from pathlib import Path
from typing import Any

import pytest
from agentforge_kernels import native

from bench.kernels import __main__ as command
from bench.kernels import cases, contestants, ggml_library, rounds, sections, table, targets
from bench.kernels.cases import Case
from bench.kernels.contestant import MissingPeerError, masked, trits
from bench.kernels.process import OURS, Entry, Worker, WorkerError
from bench.kernels.results import LIMITS, Row, read_rows, write_rows
from bench.kernels.rounds import Measured
from bench.kernels.sections import Plan
from bench.kernels.worker import Clock

if native.extension is None:
    pytest.skip(f"{native.unavailable_reason()}", allow_module_level=True)

BUILT = os.environ.get("AGENTFORGE_TEST_EXTENSION")
OPTIONS: dict[str, Any] = {"extension": BUILT} if BUILT else {}
COLUMNS = (
    "op,backend,peer,n,k,m,threads,median_us,ratio,share_of_limit,machine,isa,versions"  # the issue
)
ABSENT = Entry("nobody", "absent", "bench.kernels.ours:Ours", {"isa": "absent"})
TINY = [
    Case(cases.DENSE, 64, 256, 1, 1),
    Case(cases.DENSE, 64, 256, 5, 2),
    Case(cases.COLD, 64, 256, 1, 1, copies=3),
    Case(cases.BLOCK_SPARSE, 128, 64, 1, 1, zeros=50),
    Case(cases.ACTIVATION_SPARSE, 128, 64, 1, 1, zeros=50),
    Case(cases.HEAD, 100, 64, 1, 1),
    Case(cases.QUANTIZE, 1, 256, 3, 1),
]


@pytest.fixture(scope="module")
def entries() -> list[Entry]:
    wanted = ("ggml TQ2_0", "torch fp32", "native dense", "native operation")
    chosen = [entry for entry in contestants.peers(OPTIONS) if entry.name in wanted]
    return [*contestants.ours(OPTIONS), *chosen, ABSENT]


@pytest.fixture(scope="module")
def rows(entries: list[Entry]) -> list[Row]:
    return command.run(Plan(entries, TINY, rounds=1, measurement_seconds=1e-4))


def measured_rows(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.median_us is not None]


def test_every_case_has_a_row_of_ours_and_of_every_contestant_that_should_be_there(
    rows: list[Row], entries: list[Entry]
) -> None:
    for case in TINY:
        key = (case.label, case.n, case.k, case.m, case.threads)
        names = [row.name for row in rows if row.case == key]
        expected = {entry.name for entry in entries if entry.expects(case)} - set(LIMITS)
        assert expected <= set(names), key
        assert len(names) == len(set(names))
        assert names[0] == OURS


def test_ratio_is_peer_over_ours_and_times_are_positive(rows: list[Row]) -> None:
    ours = {row.case: row.median_us for row in rows if row.name == OURS}
    assert len(measured_rows(rows)) > 2 * len(TINY)
    for row in measured_rows(rows):
        assert row.median_us is not None
        assert row.ratio is not None
        assert row.median_us > 0
        assert row.ratio == pytest.approx(row.median_us / (ours[row.case] or 0), rel=1e-9)


def test_the_limit_is_the_slower_of_reading_and_multiplying(rows: list[Row]) -> None:
    limited = 0
    for ours in (row for row in rows if row.name == OURS):
        limits = [row.median_us for row in rows if row.case == ours.case and row.name in LIMITS]
        if not limits:
            continue
        limited += 1
        assert min(limit or 0 for limit in limits) > 0
        assert ours.share_of_limit == pytest.approx(max(limits) / ours.median_us)  # type: ignore[type-var, operator]
    assert limited >= len(TINY) - 1


def test_a_missing_peer_is_said_to_be_missing_everywhere(rows: list[Row]) -> None:
    missing = [row for row in rows if row.name == ABSENT.name]
    assert len(missing) == len(TINY)
    for row in missing:
        assert row.median_us is None
        assert row.ratio is None
        assert "absent" in row.versions
    text = table.text(rows)
    assert f"MISSING PEER {ABSENT.name}: " in text
    assert text.count(table.MISSING) >= 1
    assert all(word not in table.versions(rows) for word in ("does not report", "not installed"))


def test_a_target_whose_peer_is_missing_is_not_met() -> None:
    ours = _row("native", "", 1.0, 1.0)
    absent = _row("ggml", "TQ2_0", None, None)
    verdicts = targets.judge([ours, absent])
    statuses = {v.status for v in verdicts if v.target.peer == "ggml TQ2_0"}
    assert statuses == {"not measured"}
    present = _row("ggml", "TQ2_0", 6.0, 6.0)
    by_bound = {v.target.text: v for v in targets.judge([ours, present])}
    assert by_bound["1 thread, batch 1 hot"].status == "not measured"  # torch fp32 comes last
    first = targets.judge([ours, present])[0]
    assert (first.status, first.worst) == ("met", 6.0)
    slow = targets.judge([ours, _row("ggml", "TQ2_0", 4.0, 4.0)])[0]
    assert slow.status == "MISSED"
    assert slow.possible == pytest.approx(4.0 / 0.8)


def test_ggml_takes_part_where_its_package_is(rows: list[Row]) -> None:
    ggml = [row for row in rows if row.name == "ggml TQ2_0"]
    assert len(ggml) == 3  # dense twice, cold once
    if importlib.util.find_spec("llama_cpp") is None:
        assert all(row.median_us is None and "not installed" in row.versions for row in ggml)
    else:
        assert all(row.median_us is not None and "llama-cpp-python" in row.versions for row in ggml)


def test_without_its_package_ggml_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ggml_library.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPeerError, match="llama-cpp-python is not installed"):
        ggml_library.GgmlLibrary()


def test_results_survive_the_file(rows: list[Row], tmp_path: Path) -> None:
    path = tmp_path / "kernels.csv"
    write_rows(rows, path)
    assert path.read_text().splitlines()[0] == COLUMNS
    again = read_rows(path)
    assert [row.case for row in again] == [row.case for row in rows]
    for before, after in zip(rows, again, strict=True):
        assert (after.backend, after.peer, after.isa) == (before.backend, before.peer, before.isa)
        for name in ("median_us", "ratio", "share_of_limit"):
            value = getattr(before, name)
            if value is None:
                assert getattr(after, name) is None
            else:
                assert getattr(after, name) == pytest.approx(value, rel=1e-4)
    path.write_text(path.read_text().replace("median_us", "seconds"))
    with pytest.raises(ValueError, match="seconds"):
        read_rows(path)


# ---- What is in the repository -------------------------------------------------------------------


def test_the_readme_shows_what_the_results_say() -> None:
    content = command.README.read_text(encoding="utf-8")
    assert table.with_table(content, table.readme(read_rows(command.RESULTS))) == content


def test_the_results_in_the_repository_are_complete_and_consistent() -> None:
    rows = read_rows(command.RESULTS)
    ours = {row.case: row for row in rows if row.name == OURS}
    present = {(row.case, row.name) for row in rows}
    plan = sections.full((1, 2), {})
    for case in plan.cases:
        key = (case.label, case.n, case.k, case.m, case.threads)
        assert key in ours
        for entry in plan.entries:
            own_level = entry.name == f"native {ours[key].isa}"  # the best there: ours itself
            if entry.expects(case) and entry.backend != "machine" and not own_level:
                assert (key, entry.name) in present
    for row in rows:
        assert row.machine
        assert row.isa
        if row.median_us is not None:
            expected = row.median_us / (ours[row.case].median_us or math.nan)
            assert row.ratio == pytest.approx(expected, rel=1e-3)


def test_a_document_without_markers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text("no place for it\n")
    with pytest.raises(ValueError, match="kernels-table"):
        table.write_readme(path, [_row("native", "", 1.0, 1.0)])
    path.write_text(f"a\n{table.BEGIN}\nyesterday\n{table.END}\nb\n")
    results = tmp_path / "kernels.csv"
    write_rows([_row("native", "", 1.0, 1.0)], results)
    command.main(["--render", "--readme", str(path), "--output", str(results)])
    content = path.read_text()
    assert content.startswith(f"a\n{table.BEGIN}\n")
    assert content.endswith(f"\n{table.END}\nb\n")
    assert "yesterday" not in content
    assert "| 512x512 | 1 | 1.00 | 80 % | - |" in content


# ---- How it measures -----------------------------------------------------------------------------


class Scripted:
    """A worker that answers from a list and notes its turns."""

    def __init__(self, name: str, seconds: list[float], turns: list[str]) -> None:
        self.entry = Entry("native", "" if name == OURS else name, "", {})
        self.missing = None
        self._name, self._seconds, self._turns = name, iter(seconds), turns
        self._asked = ""

    def ask(self, do: str, case: Case) -> None:
        self._asked = do
        if do == "time":
            self._turns.append(self._name)

    def reply(self) -> dict[str, Any]:
        return {"error": None} if self._asked == "prepare" else {"seconds": next(self._seconds)}


def test_contestants_take_turns_and_the_median_counts() -> None:
    turns: list[str] = []
    workers = [
        Scripted(OURS, [99.0, 3.0, 1.0, 2.0], turns),
        Scripted("peer", [99.0, 4.0, 40.0, 5.0], turns),
    ]
    [measured] = rounds.measure(workers, TINY[:1], 3)  # type: ignore[arg-type]
    assert turns == [OURS, "peer"] * 4
    assert measured.seconds == {OURS: 2.0, "native peer": 5.0}  # the first turn warms up


class Steady:
    """A contestant whose calls take 1 ms by its own clock."""

    versions = isa = ""

    def __init__(self) -> None:
        self.repeats: list[int] = []

    def run(self, case: Case, repeats: int) -> float:
        self.repeats.append(repeats)
        return repeats * 1e-3


def test_a_measurement_is_as_long_as_asked_and_uses_every_copy() -> None:
    contestant = Steady()
    clock = Clock(contestant, 0.010)  # type: ignore[arg-type]
    assert clock.seconds_per_call(TINY[0]) == pytest.approx(1e-3)
    assert contestant.repeats[-2:] == [2, 10]
    assert clock.seconds_per_call(TINY[2]) == pytest.approx(1e-3)
    assert contestant.repeats[-1] == 12  # three copies, four times each


@pytest.mark.parametrize("error", [0.5, math.nan])
def test_a_wrong_product_is_not_timed(error: float) -> None:
    with pytest.raises(command.WrongProductError, match="torch fp32"):
        command.check_products(Measured(TINY[0], {OURS: 1.0}, {"torch fp32": error}))
    command.check_products(Measured(TINY[0], {OURS: 1.0}, {"torch fp32": 0.01}))


def test_a_process_that_dies_is_named() -> None:
    worker = Worker(Entry("nobody", "broken", "bench.kernels.nowhere:Nobody", {}), 1, 1e-3)
    with pytest.raises(WorkerError, match="nobody broken"):
        worker.greet()
    worker.close()


def test_masks_leave_the_share_of_blocks_asked_for() -> None:
    w = masked(trits(128, 64) | 1, 25, blocks=(64, 16))
    tiles = w.reshape(2, 64, 4, 16).any(axis=(1, 3))
    assert (~tiles).sum() == 2
    assert tiles.sum() == 6


def _row(backend: str, peer: str, median_us: float | None, ratio: float | None) -> Row:
    return Row(
        op=cases.DENSE,
        backend=backend,
        peer=peer,
        n=512,
        k=512,
        m=1,
        threads=1,
        median_us=median_us,
        ratio=ratio,
        share_of_limit=None if peer else 0.8,
        machine="a machine",
        isa="portable",
        versions="1",
    )
