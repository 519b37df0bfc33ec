from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from agentforge.errors import PreflightError
from agentforge.events import (
    Alert,
    Event,
    Heartbeat,
    LogLine,
    PhaseStarted,
    RunEnded,
    Stamped,
    decode,
)
from agentforge.run.atomic import DiskFullError
from agentforge.run.tail import EventTail, log_files, read_events
from agentforge.sinks import jsonl
from agentforge.sinks.jsonl import JsonlSink, last_seq
from agentforge.sinks.tee import TeeSink


def say(text: str) -> LogLine:
    return LogLine(level="info", source="test", text=text)


def texts(first: Path) -> list[str]:
    return [s.event.text for s in read_events(first) if isinstance(s.event, LogLine)]


def seqs(first: Path) -> list[int]:
    return [s.seq for s in read_events(first)]


def open_tee(path: Path, **options: int) -> TeeSink:
    return TeeSink(JsonlSink(path, **options), clock=lambda: 5.0)


def test_numbers_go_on_after_reopening(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    assert last_seq(path) == -1
    for round_ in range(3):
        tee = open_tee(path)
        tee.emit(say(f"{round_}a"))
        tee.emit(say(f"{round_}b"))
        tee.close()
    assert seqs(path) == [0, 1, 2, 3, 4, 5]
    assert texts(path) == ["0a", "0b", "1a", "1b", "2a", "2b"]
    assert os.listdir(tmp_path) == ["events.jsonl"]


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_last_line_is_cut_off(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "events.jsonl"
    tee = open_tee(path)
    for text in ("one", "two", "a longer third line \u00e4\u00f6\u00fc"):
        tee.emit(say(text))
    tee.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    tee = open_tee(path)
    tee.emit(say("next"))
    tee.close()
    # Without its newline alone the line is whole and is kept.
    kept = ["one", "two"] + (["a longer third line \u00e4\u00f6\u00fc"] if cut == 1 else [])
    assert texts(path) == [*kept, "next"]
    assert seqs(path) == list(range(len(kept) + 1))
    assert all(decode(line) is not None for line in path.read_text().splitlines())


def test_zeros_and_foreign_lines_do_not_stop_the_numbering(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tee = open_tee(path)
    tee.emit(say("one"))
    tee.close()
    newer = b'{"v":9,"seq":41,"t":1,"kind":"of_tomorrow"}\n'
    path.write_bytes(path.read_bytes() + newer + b"not json\n" + b"\0" * 5000)
    tee = open_tee(path)
    tee.emit(say("two"))
    tee.close()
    assert seqs(path) == [0, 42]


def test_a_line_longer_than_the_look_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "TAIL_BYTES", 64)
    path = tmp_path / "events.jsonl"
    tee = open_tee(path)
    tee.emit(say("x" * 1000))
    tee.close()
    with path.open("ab") as file:
        file.write(b'{"torn": "' + b"y" * 1000)
    tee = open_tee(path)
    tee.emit(say("end"))
    tee.close()
    assert seqs(path) == [0, 1]
    assert texts(path) == ["x" * 1000, "end"]


def test_rotation_keeps_order_and_numbers(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for part in range(2):
        tee = open_tee(path, rotate_bytes=300)
        for i in range(10):
            tee.emit(say(f"line {part * 10 + i}"))
        tee.close()
    files = log_files(path)
    assert [f.name for f in files[:3]] == ["events.jsonl", "events-0001.jsonl", "events-0002.jsonl"]
    assert all(f.stat().st_size <= 300 for f in files)
    assert seqs(path) == list(range(20))
    assert texts(path) == [f"line {i}" for i in range(20)]


def test_a_tail_follows_over_rotation_and_repair(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tail = EventTail(path)
    assert tail.poll() == []
    seen: list[int] = []
    for _ in range(4):
        tee = open_tee(path, rotate_bytes=200)
        for i in range(5):
            tee.emit(say(f"line {i}"))
            seen += [s.seq for s in tail.poll()]
        tee.close()
        with log_files(path)[-1].open("ab") as file:
            file.write(b'{"v":1,"seq":99')
        seen += [s.seq for s in tail.poll()]
    assert seen == list(range(20))


def test_threads_write_whole_lines_with_unique_numbers(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tee = open_tee(path, rotate_bytes=4096)

    def write(name: int) -> None:
        for i in range(50):
            tee.emit(say(f"{name} {i}"))

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tee.close()
    assert seqs(path) == list(range(200))
    for name in range(4):
        mine = [t for t in texts(path) if t.startswith(f"{name} ")]
        assert mine == [f"{name} {i}" for i in range(50)]


def test_durable_events_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tee = open_tee(tmp_path / "events.jsonl")
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    tee.emit(say("cheap"))
    assert synced == []
    tee.emit(PhaseStarted(phase="cognate"))
    assert len(synced) == 1


class Broken:
    """Fails from the n-th event on."""

    def __init__(self, works: int, fails_to_close: bool = False) -> None:
        self.works = works
        self.fails_to_close = fails_to_close
        self.seen: list[Event] = []
        self.calls = 0

    def emit(self, stamped: Stamped) -> None:
        self.calls += 1
        if self.calls > self.works:
            raise ConnectionError("no route")
        self.seen.append(stamped.event)

    def close(self) -> None:
        if self.fails_to_close:
            raise RuntimeError("cannot upload")


def test_a_broken_sink_becomes_one_alert(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    broken, also_broken, good = Broken(2), Broken(2), Broken(99)
    tee = TeeSink(JsonlSink(path), [broken, good, also_broken])
    for i in range(5):
        tee.emit(say(str(i)))
    tee.emit(Heartbeat(pid=1))
    tee.close()
    alerts = [s.event for s in read_events(path, ("alert",))]
    assert [(a.level, a.code) for a in alerts if isinstance(a, Alert)] == [("warning", "sink")] * 2
    assert len({a.id for a in alerts if isinstance(a, Alert)}) == 2
    assert "no route" in str(alerts[0])
    assert broken.calls <= 4
    assert [e.text for e in good.seen if isinstance(e, LogLine)] == ["0", "1", "2", "3", "4"]
    assert sum(isinstance(e, Alert) for e in good.seen) == 2
    assert not any(isinstance(e, Heartbeat) for e in good.seen)
    assert texts(path) == ["0", "1", "2", "3", "4"]


def test_a_sink_that_fails_to_close_is_told_too(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tee = TeeSink(JsonlSink(path), [Broken(99, fails_to_close=True)])
    tee.close()
    assert "cannot upload" in str([s.event for s in read_events(path)])
    with pytest.raises(PreflightError):
        tee.emit(say("too late"))


def test_a_full_disk_stops_the_run_and_still_takes_the_last_word(small_disk: Path) -> None:
    path = small_disk / "events.jsonl"
    tee = TeeSink(JsonlSink(path))
    tee.emit(say("before"))
    (small_disk / "ballast").write_bytes(b"x" * (os.statvfs(small_disk).f_bavail * 4096))
    written: list[int] = []

    def write_on() -> None:
        for i in range(1000):  # the last page of the file has some room left
            tee.emit(say(f"{i} " + "y" * 200))
            written.append(i)

    with pytest.raises(DiskFullError, match=r"events\.jsonl") as caught:
        write_on()
    assert "--resume" in caught.value.remedy
    assert (small_disk / "ballast").stat().st_size > 500_000
    tee.emit(RunEnded(state="suspended", reason="disk full", exit_code=3))
    tee.close()
    events = list(read_events(path))
    assert isinstance(events[-1].event, RunEnded)
    # The event that met the full disk is there too: the reserve took it.
    assert [s.seq for s in events] == list(range(len(written) + 3))
    assert path.read_bytes().endswith(b"\n")
    with pytest.raises(DiskFullError):
        JsonlSink(small_disk / "other.jsonl")


def test_no_torn_line_after_a_partial_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "events.jsonl"
    tee = open_tee(path)
    tee.emit(say("one"))

    def torn(handle: int, data: bytes) -> None:
        os.write(handle, data[:10])
        raise OSError(errno.EIO, "broken cable")

    with monkeypatch.context() as patch:
        patch.setattr(jsonl, "write_all", torn)
        with pytest.raises(PreflightError, match="broken cable"):
            tee.emit(say("two"))
    tee.emit(say("three"))
    tee.close()
    assert texts(path) == ["one", "three"]
    assert seqs(path) == [0, 1]


def test_a_heartbeat_never_uses_the_reserve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tee = open_tee(tmp_path / "events.jsonl")

    def full(handle: int, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(jsonl, "write_all", full)
    with pytest.raises(DiskFullError):
        tee.emit(Heartbeat(pid=1))
    assert (tmp_path / ".events.reserve").exists()
    with pytest.raises(DiskFullError):
        tee.emit(RunEnded(state="suspended", reason="", exit_code=3))
    assert not (tmp_path / ".events.reserve").exists()
