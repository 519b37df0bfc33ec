"""Which runs may go."""

from pathlib import Path

from agentforge.cleanup import DAY_S, MOST_RUNS, OldRun, choose, remove
from agentforge.run.storage import directory_bytes

NOW = 1_800_000_000.0


def run(name: str, status: str, days: float) -> OldRun:
    return OldRun(name, Path("/nowhere") / name, status, NOW - days * DAY_S)


def chosen(*runs: OldRun) -> list[str]:
    return [removal.run.run_id for removal in choose(runs, NOW)]


def test_ages():
    assert chosen(
        run("failed-old", "failed", 8),
        run("failed-new", "failed", 6),
        run("crashed-old", "crashed", 8),
        run("aborted-old", "aborted", 9),
        run("done-old", "finished", 31),
        run("done-new", "finished", 29),
        run("sleeping", "suspended", 400),
    ) == ["done-old", "aborted-old", "failed-old", "crashed-old"]


def test_a_live_run_never_goes():
    assert chosen(*(run(s, s, 1000) for s in ("running", "paused", "stalled"))) == []


def test_at_most_a_hundred_the_oldest_ended_first_then_suspended():
    runs = [run(f"live{i}", "running", 900) for i in range(10)]
    runs += [run(f"susp{i:03}", "suspended", 500 + i) for i in range(80)]
    runs += [run(f"done{i:03}", "finished", 1 + i / 10) for i in range(MOST_RUNS - 85)]
    assert len(runs) == MOST_RUNS + 5
    assert set(chosen(*runs)) == {f"done{i:03}" for i in range(10, 15)}
    runs += [run(f"more{i:03}", "suspended", 1) for i in range(20)]
    names = chosen(*runs)
    assert len(names) == 25
    assert sum(n.startswith("done") for n in names) == 15
    assert {n for n in names if n.startswith("susp")} == {f"susp{i:03}" for i in range(70, 80)}


def test_aged_runs_count_towards_the_limit():
    runs = [run(f"old{i}", "failed", 100) for i in range(50)]
    runs += [run(f"new{i}", "finished", 1) for i in range(MOST_RUNS)]
    assert len(chosen(*runs)) == 50


def test_removing_tells_what_failed(tmp_path: Path):
    folder = tmp_path / "gone"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "file").write_bytes(b"x" * 100)
    assert directory_bytes(folder) == 100
    removals = choose(
        [OldRun("gone", folder, "failed", 0.0), OldRun("absent", tmp_path / "no", "failed", 0.0)],
        NOW,
    )
    failures = remove(removals)
    assert [removal.run.run_id for removal, _ in failures] == ["absent"]
    assert not folder.exists()
