from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable

import pytest

from agentforge.config.keys import schema_keys
from agentforge.config.schema import RunConfig, tunable_keys
from agentforge.errors import ConfigError, PreflightError
from agentforge.events import ConfigChanged, ControlAck, Event, LogLine, StateChanged
from agentforge.run.commands import MAX_LINE, CommandReader, append_command
from agentforge.run.control import Control, Directive
from agentforge.run.layout import RunLayout
from agentforge.run.manifest import load_manifest, manifest_config
from agentforge.run.tuning import apply_change
from agentforge.sinks.jsonl import JsonlSink
from agentforge.sinks.tee import TeeSink

INTERVAL = "storage.checkpoint_interval"


class Engine:
    """A control with its events, in this process."""

    def __init__(self, layout: RunLayout, config: RunConfig, **options: float) -> None:
        self.layout = layout
        self.events: list[Event] = []
        self.control = Control(
            layout,
            config,
            self.events.append,
            manifest=load_manifest(layout),
            engine_started=options.get("engine_started", 0.0),
            poll_s=0.002,
        )

    def send(self, verb: str, **args: object) -> str:
        return append_command(self.layout, verb, args, by="test")  # type: ignore[arg-type]

    def acks(self) -> dict[str, ControlAck]:
        found = [e for e in self.events if isinstance(e, ControlAck)]
        assert len({a.id for a in found}) == len(found), "a command was answered twice"
        return {a.id: a for a in found}


@pytest.fixture
def engine(layout: RunLayout, config: RunConfig) -> Engine:
    return Engine(layout, config)


def later(action: Callable[[], object], seconds: float = 0.03) -> threading.Timer:
    timer = threading.Timer(seconds, action)
    timer.start()
    return timer


def test_nothing_is_asked_of_an_idle_channel(engine: Engine) -> None:
    assert engine.control.poll(1) == Directive()
    assert engine.events == []


def test_a_checkpoint_is_acknowledged_when_done_and_asked_until_then(engine: Engine) -> None:
    sent = engine.send("checkpoint")
    for step in (1, 2):
        asked = engine.control.poll(step)
        assert asked.checkpoint
        assert engine.acks() == {}
    engine.control.done(asked, "suspend")
    assert engine.acks() == {}
    engine.control.done(asked, message="written")
    assert engine.acks()[sent] == ControlAck(
        id=sent, verb="checkpoint", ok=True, step=2, message="written"
    )
    engine.control.done(asked)
    assert not engine.control.poll(3).checkpoint
    engine.acks()


def test_stop_requests_stand_together(engine: Engine) -> None:
    ids = {verb: engine.send(verb) for verb in ("checkpoint", "finish", "suspend")}
    asked = engine.control.poll(5)
    assert (asked.checkpoint, asked.finish, asked.suspend, asked.abort) == (True, True, True, False)
    ids["abort"] = engine.send("abort")
    asked = engine.control.poll(5)
    assert asked.abort
    assert not asked.suspend
    engine.control.close("aborted")
    acks = engine.acks()
    assert {verb: acks[i].ok for verb, i in ids.items()} == {
        "checkpoint": False,
        "finish": False,
        "suspend": False,
        "abort": True,
    }
    assert "aborted" in acks[ids["finish"]].message


def test_close_answers_what_came_last(engine: Engine) -> None:
    suspend = engine.send("suspend")
    engine.control.poll(1)
    late = engine.send("pause")
    engine.control.close("suspended")
    assert engine.acks()[suspend].ok
    assert not engine.acks()[late].ok
    assert "has ended" in engine.acks()[late].message
    engine.control.close("suspended")
    assert len(engine.acks()) == 2


@pytest.mark.parametrize("verb", ["resume", "suspend", "finish", "abort"])
def test_a_pause_holds_until_something_ends_it(engine: Engine, verb: str) -> None:
    pause = engine.send("pause")
    states: list[bool] = []
    timer = later(lambda: (states.append(pause in engine.acks()), engine.send(verb)))
    asked = engine.control.poll(4)
    timer.join()
    assert states == [True]
    assert not asked.paused
    assert engine.acks()[pause].ok
    assert engine.acks()[pause].step == 4
    if verb == "resume":
        assert asked == Directive()
    else:
        assert getattr(asked, verb)
    changes = [e.state for e in engine.events if isinstance(e, StateChanged)]
    # A run that leaves tells its end itself.
    wanted = ["paused"] if verb in ("suspend", "abort") else ["paused", "running"]
    assert changes == wanted
    assert engine.control.poll(5).paused is False


def test_a_checkpoint_and_a_set_while_paused(engine: Engine) -> None:
    engine.send("pause")
    changed = engine.send("set", key=INTERVAL, value=7)
    saved = engine.send("checkpoint")
    asked = engine.control.poll(3)
    assert asked.paused
    assert asked.checkpoint
    assert engine.acks()[changed].ok
    assert [(c.key, c.value) for c in asked.changes] == [(INTERVAL, 7)]
    engine.control.done(asked, "checkpoint")
    timer = later(lambda: engine.send("resume"))
    asked = engine.control.poll(3)
    timer.join()
    assert asked == Directive()
    assert engine.acks()[saved].ok


def test_a_loop_that_cannot_save_still_pauses(engine: Engine) -> None:
    engine.send("checkpoint")
    engine.send("pause")
    assert engine.control.poll(1).checkpoint
    timer = later(lambda: engine.send("resume"))
    before = len(engine.events)
    asked = engine.control.poll(1)  # offered once already, so this holds
    timer.join()
    assert any(isinstance(e, StateChanged) for e in engine.events[before:])
    assert asked.checkpoint
    assert not asked.paused


def test_pause_and_resume_twice_are_answered(engine: Engine) -> None:
    ids = [engine.send(verb) for verb in ("resume", "pause", "pause", "resume")]
    assert engine.control.poll(1) == Directive()
    acks = engine.acks()
    assert [acks[i].ok for i in ids] == [True] * 4
    assert [bool(acks[i].message) for i in ids] == [True, False, True, False]


def test_set_changes_config_and_manifest_once(engine: Engine, layout: RunLayout) -> None:
    sent = engine.send("set", key="cognate.halting_beta", value="0.5")
    asked = engine.control.poll(8)
    assert engine.control.config.cognate.halting_beta == 0.5
    assert asked.changes[0].by == "test"
    assert engine.control.poll(9).changes == ()
    assert [e for e in engine.events if isinstance(e, ConfigChanged)] == [
        ConfigChanged(key="cognate.halting_beta", old="0.02", new="0.5", by="test", step=8)
    ]
    assert "0.02 -> 0.5" in engine.acks()[sent].message
    manifest = load_manifest(layout)
    assert manifest_config(layout, manifest) == engine.control.config
    assert manifest.provenance["cognate.halting_beta"] == "set by test"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (INTERVAL, 0, "integer of at least 1"),
        (INTERVAL, "many", "integer of at least 1"),
        (INTERVAL, True, "integer of at least 1"),
        (INTERVAL, 2.5, "integer of at least 1"),
        (INTERVAL, None, "integer of at least 1"),
        (INTERVAL, [1], "integer of at least 1"),
        ("cognate.halting_beta", float("nan"), "number of at least 0"),
        ("cognate.optim.lr_scale", 11, "at most 10"),
        ("storage.checkpoint_intervall", 3, "nearest: storage.checkpoint_interval"),
        ("model.d_model", 64, "cannot change while a phase runs"),
        ("storage", {}, "no such key"),
        ("", 1, "no such key"),
        (7, 1, "must be text"),
        ({}, 1, "must be text"),
    ],
)
def test_a_bad_set_is_refused_with_its_reason(
    engine: Engine, config: RunConfig, key: object, value: object, message: str
) -> None:
    sent = engine.send("set", key=key, value=value)
    assert engine.control.poll(1) == Directive()
    ack = engine.acks()[sent]
    assert not ack.ok
    assert message in ack.message
    assert engine.control.config == config
    assert not any(isinstance(e, ConfigChanged) for e in engine.events)


def test_every_tunable_key_can_be_set_to_its_own_value(config: RunConfig) -> None:
    names = {name for name, key in schema_keys().items() if key.tunable}
    assert names == set(tunable_keys())
    for name in names:
        value = config.model_dump(mode="json")
        for part in name.split("."):
            value = value[part]
        assert apply_change(config, name, value) == config
        assert apply_change(config, name, json.dumps(value)) == config


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "a", "verb": "dance"}', "unknown verb 'dance'; allowed: pause"),
        ('{"id": "a", "verb": "set"}', "set needs args key, value"),
        ('{"id": "a", "verb": "answer", "args": {"alert": "x"}}', "answer needs args action"),
        ('{"id": "a", "verb": 3}', "must be text"),
        ('{"id": "a", "verb": "pause", "args": [1]}', "must be text"),
        ('{"id": "a"', "not JSON"),
        ("pause", "not JSON"),
        ("[" * 3000, "not JSON"),
        ('"pause"', "not a JSON object"),
        ("\udc80\udcff", "not JSON"),
        ("x" * (MAX_LINE + 1), "bytes"),
    ],
)
def test_a_malformed_line_is_answered_once(
    engine: Engine, layout: RunLayout, line: str, message: str
) -> None:
    with layout.control.open("ab") as file:
        file.write(line.encode("utf-8", "surrogateescape") + b"\n\n")
    good = engine.send("resume")
    engine.control.poll(1)
    engine.control.poll(2)
    acks = [e for e in engine.events if isinstance(e, ControlAck)]
    assert len(acks) == 2
    assert not acks[0].ok
    assert message in acks[0].message
    assert acks[0].id in ("a", "line@0")
    assert acks[1].id == good
    assert acks[1].ok


def test_a_shells_line_needs_a_verb_only(engine: Engine, layout: RunLayout) -> None:
    layout.control.write_text('{"verb": "checkpoint"}\n')
    asked = engine.control.poll(1)
    assert asked.ids == (("line@0", "checkpoint"),)


def test_a_torn_line_is_ended_by_the_next_sender(engine: Engine, layout: RunLayout) -> None:
    layout.control.write_text('{"verb": "abo')
    assert engine.control.poll(1) == Directive()
    sent = engine.send("checkpoint")
    asked = engine.control.poll(2)
    assert asked.ids == ((sent, "checkpoint"),)
    assert [a.ok for a in engine.acks().values()] == [False]


def test_one_id_is_obeyed_once(engine: Engine, layout: RunLayout) -> None:
    line = json.dumps({"id": "x", "verb": "pause"}) + "\n"
    layout.control.write_text(line + '{"id": "y", "verb": "resume"}\n' + line)
    assert engine.control.poll(1) == Directive()
    assert set(engine.acks()) == {"x", "y"}


def test_commands_of_an_earlier_engine_are_never_obeyed(
    layout: RunLayout, config: RunConfig
) -> None:
    first = Engine(layout, config)
    tee = TeeSink(JsonlSink(layout.events))
    done = first.send("pause"), first.send("resume")
    first.control.poll(1)
    for event in first.events:
        tee.emit(event)
    unanswered = first.send("suspend"), first.send("set", key=INTERVAL, value=3)
    with layout.control.open("a") as file:
        file.write('nonsense\n{"id": "no time", "verb": "abort"}\n')
    second = Engine(layout, config, engine_started=time.time())
    assert second.control.poll(0) == Directive()
    acks = second.acks()
    for name in done:
        assert name not in acks
    for name in unanswered:
        assert not acks[name].ok
        assert "the engine was not running" in acks[name].message
    assert not acks["no time"].ok
    assert len(acks) == 4
    assert second.control.config == config
    for event in second.events:
        tee.emit(event)
    tee.close()
    third = Engine(layout, config, engine_started=time.time())
    sent = third.send("checkpoint")
    assert third.control.poll(0).checkpoint
    assert third.acks() == {}
    third.control.close("suspended")
    assert set(third.acks()) == {sent}


def test_a_command_sent_while_the_engine_starts_is_obeyed(
    layout: RunLayout, config: RunConfig
) -> None:
    began = time.time() - 0.001
    append_command(layout, "suspend")
    assert Engine(layout, config, engine_started=began).control.poll(0).suspend


def test_signals_suspend_then_abort(engine: Engine) -> None:
    engine.control.request_stop("SIGTERM")
    for step in range(2):
        asked = engine.control.poll(step)
        assert asked.suspend
        assert not asked.abort
    engine.control.request_stop("SIGINT")
    asked = engine.control.poll(2)
    assert asked.abort
    assert not asked.suspend
    told = [e.text for e in engine.events if isinstance(e, LogLine)]
    assert told == ["SIGTERM: suspending", "SIGINT: aborting"]


def test_a_signal_ends_a_pause(engine: Engine) -> None:
    engine.send("pause")
    timer = later(lambda: engine.control.request_stop("SIGTERM"))
    assert engine.control.poll(1).suspend
    timer.join()


def test_an_answer_is_waited_for(engine: Engine) -> None:
    engine.control.expect("low", ("retry", "stop"))
    assert engine.control.take_answer("low") is None
    wrong = engine.send("answer", alert="low", action="dance")
    stranger = engine.send("answer", alert="other", action="retry")
    right: list[str] = []
    timer = later(lambda: right.append(engine.send("answer", alert="low", action="retry")))
    answer = engine.control.wait_answer("low", 10.0)
    timer.join()
    assert answer is not None
    assert (answer.action, answer.by) == ("retry", "test")
    acks = engine.acks()
    assert acks[right[0]].ok
    assert "allowed: retry, stop" in acks[wrong].message
    assert "no alert 'other'" in acks[stranger].message
    again = engine.send("answer", alert="low", action="stop")
    engine.control.poll(1)
    assert not engine.acks()[again].ok


def test_waiting_ends_in_time_or_when_the_run_shall_stop(engine: Engine) -> None:
    assert engine.control.wait_answer("a", 0.0) is None
    engine.send("pause")
    engine.send("suspend")
    assert engine.control.wait_answer("a", 60.0) is None
    assert engine.acks() == {}  # waiting obeys nothing; the next poll does
    assert engine.control.poll(1).suspend


def test_an_alert_that_was_settled_takes_no_answer(engine: Engine) -> None:
    engine.control.expect("a", ("x",))
    early = engine.send("answer", alert="a", action="x")
    engine.control.poll(1)
    engine.control.settle("a")
    late = engine.send("answer", alert="a", action="x")
    engine.control.poll(2)
    acks = engine.acks()
    assert not acks[early].ok
    assert not acks[late].ok


def test_senders_are_told_at_once(layout: RunLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="unknown verb 'stop'"):
        append_command(layout, "stop")
    with pytest.raises(ConfigError, match="set needs args value"):
        append_command(layout, "set", {"key": "a"})
    with pytest.raises(ConfigError, match="bytes"):
        append_command(layout, "set", {"key": "a", "value": "x" * MAX_LINE})
    assert not layout.control.exists()

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PreflightError, match=r"control\.jsonl"):
        append_command(layout, "pause")


def test_many_senders_never_mix_their_lines(layout: RunLayout) -> None:
    sent: list[str] = []

    def send() -> None:
        for i in range(30):
            sent.append(append_command(layout, "set", {"key": "k" * i, "value": "\u00e4" * i}))

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    reader = CommandReader(layout.control)
    read = []
    while any(t.is_alive() for t in threads):
        read += reader.read()
    read += reader.read()
    assert sorted(c.id for c in read) == sorted(sent)
    assert not any(c.problem for c in read)
    raw = layout.control.read_bytes()
    assert all(raw[c.offset : c.offset + 1] == b"{" for c in read)
