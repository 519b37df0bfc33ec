"""An OpenAI-compatible endpoint on the loopback interface that can misbehave, call by call."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from agentforge.reasoning.strategies import BY_TOKEN

INPUT_TOKENS, TOKENS_EACH = 170, 90


def example_row(strategy_token: str, name: str) -> dict[str, str]:
    """A valid example as a teacher writes it."""
    return {
        "prompt": f"Question {name}?",
        "reasoning": f"[thinking]{strategy_token} because of {name} [/endthinking]",
        "answer": "yes",
        "difficulty": "easy",
        "topic": "tests",
    }


@dataclass
class Seen:
    """One request that arrived."""

    model: str
    token: str
    count: int
    authorization: str


Behave = Callable[[int, Seen, "Reply"], None]


@dataclass
class Reply:
    """What the server will answer; a behaviour changes it."""

    rows: list[dict[str, str]]
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    text: str | None = None
    drop: bool = False
    usage: bool = True


class Endpoint:
    """The server; `behave` is asked before every answer."""

    def __init__(self, behave: Behave | None = None, port: int = 0) -> None:
        self.seen: list[Seen] = []
        self.behave = behave
        self.spent: list[tuple[str, int, int]] = []
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                request = body["messages"][0]["content"]
                found = re.search(r"\[thinking\](<\w+>)", request)
                asked = re.match(r"Write (\d+)", request)
                assert found is not None
                assert asked is not None
                seen = Seen(
                    body["model"],
                    found[1],
                    int(asked[1]),
                    self.headers.get("authorization", ""),
                )
                with lock:
                    number = len(outer.seen)
                    outer.seen.append(seen)
                rows = [
                    example_row(seen.token, f"{seen.model} {seen.token[1:-1]} {number} {i}")
                    for i in range(seen.count)
                ]
                reply = Reply(rows)
                if outer.behave is not None:
                    outer.behave(number, seen, reply)
                time.sleep(reply.delay_s)
                if reply.drop:
                    self.close_connection = True
                    self.connection.close()
                    return
                self._answer(seen, reply)

            def _answer(self, seen: Seen, reply: Reply) -> None:
                text = json.dumps(reply.rows) if reply.text is None else reply.text
                content: dict[str, Any] = {"error": {"message": f"bad {seen.authorization}"}}
                if reply.status == 200:
                    content = {
                        "id": "x",
                        "object": "chat.completion",
                        "created": 1,
                        "model": seen.model,
                        "choices": [
                            {
                                "index": 0,
                                "finish_reason": "stop",
                                "message": {"role": "assistant", "content": text},
                            }
                        ],
                    }
                    if reply.usage:
                        tokens = TOKENS_EACH * max(1, len(reply.rows))
                        content["usage"] = {
                            "prompt_tokens": INPUT_TOKENS,
                            "completion_tokens": tokens,
                            "total_tokens": INPUT_TOKENS + tokens,
                        }
                        with lock:
                            outer.spent.append((seen.model, INPUT_TOKENS, tokens))
                data = json.dumps(content).encode()
                self.send_response(reply.status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        ThreadingHTTPServer.allow_reuse_address = True
        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        """What the generator is pointed at."""
        return f"http://127.0.0.1:{self.port}/v1"

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    def strategy(self, seen: Seen) -> str:
        """Name of the strategy a request asks for."""
        return BY_TOKEN[seen.token].name
