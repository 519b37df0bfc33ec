from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentforge.events import KINDS, LogLine, Stamped, decode, encode
from agentforge.run import tail as tail_module
from agentforge.run.tail import EventTail, decode_line, read_events


def line(seq: int, width: int = 20) -> bytes:
    event = LogLine(level="info", source="t", text="x" * width)
    return encode(Stamped(seq=seq, t=1.0, event=event)).encode() + b"\n"


def write_log(folder: Path, counts: list[int], width: int = 20) -> Path:
    seq = 0
    for number, count in enumerate(counts):
        name = f"events-{number:04d}.jsonl" if number else "events.jsonl"
        (folder / name).write_bytes(b"".join(line(seq + i, width) for i in range(count)))
        seq += count
    return folder / "events.jsonl"


def numbers(events: list[Stamped]) -> list[int]:
    return [s.seq for s in events]


@pytest.mark.parametrize("n_bytes", [1, 50, 100, 1000, 10**6])
@pytest.mark.parametrize("chunk", [7, 1 << 20])
def test_last_first_then_the_past_then_what_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_bytes: int, chunk: int
) -> None:
    monkeypatch.setattr(tail_module, "READ_BYTES", chunk)
    first = write_log(tmp_path, [13, 0, 7, 11])
    with (tmp_path / "events-0003.jsonl").open("ab") as file:
        file.write(b'{"torn')
    tail = EventTail(first)
    known = numbers(tail.read_last(n_bytes))
    assert known[-1] == 30
    assert known == list(range(known[0], 31))
    rounds = 0
    while tail.has_older:
        known = numbers(tail.read_older(n_bytes)) + known
        rounds += 1
        assert rounds < 100
    assert known == list(range(31))
    with (tmp_path / "events-0003.jsonl").open("ab") as file:
        file.write(b"line\n" + line(31))
    (tmp_path / "events-0004.jsonl").write_bytes(line(32))
    assert numbers(tail.poll()) == [31, 32]
    assert tail.poll() == []


def test_a_line_being_written_is_not_read_twice(tmp_path: Path) -> None:
    first = tmp_path / "events.jsonl"
    tail = EventTail(first)
    whole = line(0) + line(1)
    seen: list[int] = []
    for size in range(len(whole) + 1):
        first.write_bytes(whole[:size])
        seen += numbers(tail.poll())
    assert seen == [0, 1]


def test_skip_to_end_tells_only_what_is_new(tmp_path: Path) -> None:
    first = write_log(tmp_path, [3, 2])
    tail = EventTail(first)
    tail.skip_to_end()
    assert tail.poll() == []
    assert not tail.has_older
    with (tmp_path / "events-0001.jsonl").open("ab") as file:
        file.write(line(5))
    assert numbers(tail.poll()) == [5]
    empty = EventTail(tmp_path / "later.jsonl")
    empty.skip_to_end()
    (tmp_path / "later.jsonl").write_bytes(line(0))
    assert numbers(empty.poll()) == [0]


def test_follow_tells_everything_before_it_stops(tmp_path: Path) -> None:
    first = write_log(tmp_path, [2])
    calls = 0

    def stop() -> bool:
        nonlocal calls
        calls += 1
        if calls == 3:  # written after the engine was last seen alive
            with first.open("ab") as file:
                file.write(line(2))
        return calls == 3

    assert [s.seq for s in EventTail(first).follow(stop, poll_s=0.0)] == [0, 1, 2]


def test_only_the_asked_kinds(tmp_path: Path) -> None:
    first = tmp_path / "events.jsonl"
    beat = b'{"v":1,"seq":7,"t":1,"kind":"heartbeat","pid":1}\n'
    first.write_bytes(line(6) + beat + b'{"kind":"heartbeat"}\n' + line(8))
    assert [s.seq for s in read_events(first, ("heartbeat",))] == [7]
    assert [s.seq for s in read_events(first)] == [6, 7, 8]
    assert list(read_events(tmp_path / "none.jsonl")) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_no_event(data: bytes) -> None:
    assert decode_line(data) is None or b'"kind"' in data


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.data())
def test_any_fields_of_a_known_kind_never_raise(kind: str, data: st.DataObject) -> None:
    import dataclasses
    import json

    names = [f.name for f in dataclasses.fields(KINDS[kind])] + ["seq", "t", "v", "alien"]
    row = data.draw(st.dictionaries(st.sampled_from(names), JSON))
    text = json.dumps({"v": 1, "seq": 1, "t": 1.0, "kind": kind, **row})
    decode(text)
    assert decode(text[: len(text) // 2]) is None


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"v":1,"seq":1e999,"t":1,"kind":"heartbeat","pid":1}',
        '{"v":1,"seq":1,"t":1' + "0" * 400 + ',"kind":"heartbeat","pid":1}',
        '{"v":1,"seq":1' + "0" * 5000 + ',"t":1,"kind":"heartbeat","pid":1}',
        '{"v":null,"seq":1,"t":1,"kind":"heartbeat","pid":1}',
        '{"v":1,"seq":1,"t":1,"kind":["heartbeat"],"pid":1}',
        '"text"',
        "null",
        "",
    ],
)
def test_hostile_lines(text: str) -> None:
    assert decode(text) is None


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.binary(max_size=40), max_size=12), st.integers(1, 400))
def test_good_lines_survive_any_neighbours(
    tmp_path: Path, noise: list[bytes], n_bytes: int
) -> None:
    first = tmp_path / "events.jsonl"
    pieces = []
    for seq, data in enumerate(noise):
        pieces += [data.replace(b"\n", b" ") + b"\n", line(seq)]
    first.write_bytes(b"".join(pieces))
    wanted = list(range(len(noise)))
    assert numbers(EventTail(first).poll()) == wanted
    assert [s.seq for s in read_events(first)] == wanted
    tail = EventTail(first)
    known = numbers(tail.read_last(n_bytes))
    while tail.has_older:
        known = numbers(tail.read_older(n_bytes)) + known
    assert known == wanted
