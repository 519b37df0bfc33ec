"""Chat: turns that continue each other, thoughts apart, cancelling, odd input, the command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from agentforge.runtime.chat import Chat, ChatOptions, open_chat
from tests.unit.test_packed_directory import save, ternary_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("packed") / "model", ternary_model())


def chat(model: Path, **options: object) -> Chat:
    given = {"temperature": 0.0, "max_new_tokens": 6, **options}
    return open_chat(model, ChatOptions(**given))  # type: ignore[arg-type]


def run(
    model: Path, *arguments: str, given: bytes = b"", home: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    env = {**os.environ, "XDG_STATE_HOME": str(home or model.parent / "state")}
    command = [sys.executable, "-m", "agentforge.cli", "chat", str(model), *arguments]
    return subprocess.run(command, input=given, capture_output=True, env=env, timeout=120)


def test_turns_continue_each_other(model: Path) -> None:
    session = chat(model)
    for prompt in ("remember 2 0.", "what did i say?"):
        "".join(p.text for p in session.say(prompt))
    read = list(session._sequence.ids)
    tokenizer = session.model.tokenizer
    text = tokenizer.decode(read, skip_special=False)
    assert text.lower().count("q:") == 2
    assert "remember 2 0" in text
    # The same tokens read at once give the same state: what comes next is the same.
    fresh = chat(model)
    logits = fresh._sequence.read([*read, 3]).clone()
    assert torch.equal(logits, session._sequence.read([3]))


def test_pieces_add_up_to_the_turn(model: Path) -> None:
    session = chat(model, temperature=1.0, seed=5, max_new_tokens=12)
    pieces = list(session.say("add 1 2."))
    assert session.last is not None
    answer = "".join(p.text for p in pieces if p.kind == "answer")
    thought = "".join(p.text for p in pieces if p.kind == "thought")
    assert answer or thought
    assert answer.strip() == session.last.answer
    assert thought.strip() == session.last.thought
    assert session.last.tokens <= 12


def test_without_thoughts_no_thinking_token_is_written(model: Path) -> None:
    session = chat(model, thoughts=False, temperature=1.0, max_new_tokens=12)
    for seed in range(5):
        list(session.say(f"add 1 {seed}."))
        assert session.last is not None
        assert session.last.strategy is None
        assert session.last.thought == ""


def test_a_cancelled_reply_is_kept_and_the_chat_goes_on(model: Path) -> None:
    session = chat(model, temperature=1.0, seed=1)
    asked = iter([False, False, True])
    list(session.say("add 1 2.", lambda: next(asked)))
    assert session.last is not None
    assert session.last.stopped == "cancelled"
    assert session.last.tokens <= 2
    stream = session.say("add 3 4.")
    assert next(stream).text
    stream.close()
    assert session.turns[-1].stopped == "cancelled"
    # What was written when the listener left is read before the next prompt, once.
    written = session.turns[-1].tokens
    read = len(session._sequence.ids)
    assert len(session._pending) <= 1
    left = len(session._pending)
    list(session.say("add 5 6."))
    assert session.turns[-1].prompt == "add 5 6."
    ids = session._sequence.ids
    prompt = session.model.tokenizer.encode("\nQ: add 5 6.\nA:")
    assert ids[read + left : read + left + len(prompt)] == prompt
    assert written >= 1


@pytest.mark.parametrize("prompt", ["", "1", "add 1 " * 50_000, "\ud800 broken", "\x00"])
def test_odd_prompts_are_answered(model: Path, prompt: str) -> None:
    session = chat(model)
    list(session.say(prompt))
    assert session.last is not None
    assert session._sequence.room >= 0


def test_a_full_context_leaves_out_the_oldest_turns(model: Path) -> None:
    session = chat(model)
    for number in range(6):
        list(session.say(f"remember {number} {number}."))
    assert any(turn.forgot for turn in session.turns)
    assert len(session._sequence.ids) <= 40


def test_the_command_answers_prints_and_keeps_a_transcript(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "talk.jsonl"
    done = run(model, "--prompt", "add 1 2.", "--json", "--transcript", str(path))
    assert done.returncode == 0, done.stderr
    turn = json.loads(done.stdout)
    assert turn["prompt"] == "add 1 2."
    assert set(turn) >= {"answer", "thought", "strategy", "tokens", "tokens_per_s", "stopped"}
    again = run(model, "--prompt", "add 1 2.", "--json", "--transcript", str(path))
    timed = ("tokens_per_s", "first_token_s")
    second = json.loads(again.stdout)
    assert {k: v for k, v in second.items() if k not in timed} == {
        k: v for k, v in turn.items() if k not in timed
    }
    assert len(path.read_text().splitlines()) == 2


def test_a_pipe_has_one_turn_a_line(model: Path, tmp_path: Path) -> None:
    done = run(model, "--json", given=b"add 1 2.\n\xff\xfe\nadd 3 4.", home=tmp_path)
    assert done.returncode == 0, done.stderr
    turns = [json.loads(line) for line in done.stdout.splitlines()]
    assert [t["prompt"] for t in turns] == ["add 1 2.", "\ufffd\ufffd", "add 3 4."]
    (kept,) = (tmp_path / "agentforge" / "chats").iterdir()
    assert len(kept.read_text().splitlines()) == 3


def test_mistakes_are_said_in_words(model: Path, tmp_path: Path) -> None:
    done = run(tmp_path / "none", "--prompt", "x")
    assert done.returncode == 1
    assert b"neither a model directory nor a run" in done.stderr
    assert b"Traceback" not in done.stderr
    (tmp_path / "file").write_text("")
    done = run(model, "--prompt", "x", "--transcript", str(tmp_path / "file" / "t.jsonl"))
    assert done.returncode == 3
    assert b"--transcript" in done.stderr


def test_an_interrupt_ends_the_reply_and_not_the_chat(model: Path) -> None:
    command = [sys.executable, "-m", "agentforge.cli", "chat", str(model), "--json"]
    env = {**os.environ, "XDG_STATE_HOME": str(model.parent / "state")}
    talk = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env
    )
    assert talk.stdin is not None
    assert talk.stdout is not None
    talk.stdin.write(b"add 1 2.\n")
    talk.stdin.flush()
    assert talk.stdout.readline()
    talk.stdin.write(b"add 3 4.\n")
    talk.stdin.flush()
    assert json.loads(talk.stdout.readline())["prompt"] == "add 3 4."
    talk.send_signal(signal.SIGINT)
    talk.stdin.close()
    assert talk.wait(timeout=60) in (0, 130)
