"""The verb ``chat``: a conversation on a terminal, through a pipe, or one prompt."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import IO

from agentforge.errors import ExitCode, PreflightError
from agentforge.runtime.chat import Chat, ChatOptions, Turn, open_chat


def chat(
    folder: Path,
    options: ChatOptions,
    *,
    prompt: str | None,
    system: str,
    show_thoughts: bool,
    as_json: bool,
    transcript: Path | None,
) -> ExitCode:
    """Talk to a packed model.

    One prompt when it is given; else one turn a line of standard input, with a prompt on a
    terminal. Ctrl-C stops the reply; at the prompt it ends the chat, as Ctrl-D does.

    Args:
        folder: The model directory.
        options: How it answers.
        prompt: A single question.
        system: Text before the first turn.
        show_thoughts: Print thoughts before answers.
        as_json: One JSON object a turn instead of text.
        transcript: File the turns are appended to; None: a new one in the user's state folder.

    Raises:
        CheckpointError: The directory is missing or damaged.
        PreflightError: The transcript cannot be written.
    """
    session = open_chat(folder, options, system)
    terminal = prompt is None and sys.stdin.isatty()
    with _transcript(transcript) as file:
        for asked in [prompt] if prompt is not None else _lines(terminal):
            turn = _turn(session, asked, show_thoughts, as_json)
            file.write(json.dumps(asdict(turn), ensure_ascii=False) + "\n")
            file.flush()
    return ExitCode.OK


def _turn(session: Chat, asked: str, show_thoughts: bool, as_json: bool) -> Turn:
    """One turn, streamed unless it is printed as JSON."""
    stop: list[bool] = []

    def note(_: int, __: FrameType | None) -> None:
        stop.append(True)

    before = signal.signal(signal.SIGINT, note)
    thinking = False
    try:
        for piece in session.say(asked, lambda: bool(stop)):
            if as_json or (piece.kind == "thought" and not show_thoughts):
                continue
            if piece.kind == "thought" and not thinking:
                sys.stdout.write("(")
                thinking = True
            elif piece.kind == "answer" and thinking:
                sys.stdout.write(" ) ")
                thinking = False
            sys.stdout.write(piece.text)
            sys.stdout.flush()
    finally:
        signal.signal(signal.SIGINT, before)
    turn = session.last
    assert turn is not None
    if as_json:
        sys.stdout.write(json.dumps(asdict(turn), ensure_ascii=False))
    elif thinking:
        sys.stdout.write(" )")
    sys.stdout.write("\n")
    sys.stdout.flush()
    if not as_json and sys.stderr.isatty():
        sys.stderr.write(_figures(turn) + "\n")
    return turn


def _figures(turn: Turn) -> str:
    """What a person may want to know of a turn, in one line."""
    words = [
        f"{turn.tokens} tokens",
        f"{turn.tokens_per_s:,.0f} a second",
        f"first after {1000 * turn.first_token_s:.1f} ms",
    ]
    if turn.strategy:
        words.append(turn.strategy)
    if turn.stopped != "end":
        words.append(f"stopped: {turn.stopped}")
    if turn.forgot:
        words.append(f"{turn.forgot} earlier turns left out")
    return "  [" + ", ".join(words) + "]"


def _lines(terminal: bool) -> Iterator[str]:
    """Turns from standard input; bytes that are no UTF-8 are replaced."""
    if not terminal:
        for line in sys.stdin.buffer:
            yield line.decode("utf-8", "replace").rstrip("\r\n")
        return
    sys.stderr.write("Ask something; Ctrl-C stops a reply, Ctrl-D ends the chat.\n")
    while True:
        try:
            yield input("> ")
        except (EOFError, KeyboardInterrupt):
            sys.stderr.write("\n")
            return


@contextmanager
def _transcript(path: Path | None) -> Iterator[IO[str]]:
    """The file turns are appended to."""
    if path is None:
        state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.jsonl"
        path = state / "agentforge" / "chats" / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a", encoding="utf-8")
    except OSError as error:
        raise PreflightError(
            f"--transcript {path} cannot be written: {error.strerror}",
            remedy="name a file in a folder you may write to",
        ) from None
    with file:
        yield file
