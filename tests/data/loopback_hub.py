"""A small stand-in for the hub's HTTP API on the loopback interface, for the real client.

It knows repositories as {id: {revision: {path: bytes}}} and answers what `datasets` asks: dataset
information, file trees, path information, and files with ETag, commit and range headers.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = hashlib.sha1(b"one commit").hexdigest()
Repositories = dict[str, dict[str, dict[str, bytes]]]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LoopbackHub

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        self._answer(body=True, posted=self.rfile.read(length))

    def log_message(self, *args: object) -> None:
        return

    def _answer(self, body: bool, posted: bytes = b"") -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        if self.server.hang and path.startswith(self.server.hang):
            self.server.released.wait(60)
            self.close_connection = True
            return
        if path == "/":
            self._send(200, b"a hub", body)
            return
        match = re.match(
            r"/(?:api/)?(?:datasets/)?([^/]+/[^/]+)/(revision|tree|paths-info|resolve)/"
            r"(refs/convert/parquet|[^/]+)/?(.*)$",
            path,
        )
        if match is None:
            self._send(404, b"", body, error="EntryNotFound")
            return
        name, kind, revision, rest = match.groups()
        files = self._files(name, revision)
        if name not in self.server.repositories:
            self._send(401, b"", body, error="RepoNotFound")
        elif files is None:
            self._send(404, b"", body, error="RevisionNotFound")
        elif kind == "revision":
            siblings = [{"rfilename": file} for file in files]
            self._json({"id": name, "sha": COMMIT, "siblings": siblings, "tags": []}, body)
        elif kind == "tree":
            entries = _tree(files, rest, recursive="recursive=true" in self.path.lower())
            if entries:
                self._json(entries, body)
            else:
                self._send(404, b"", body, error="EntryNotFound")
        elif kind == "paths-info":
            asked = json.loads(posted)["paths"]
            found = [_info(f, files[f]) for f in asked if f in files]
            found += [_folder(a) for a in asked if any(f.startswith(f"{a}/") for f in files)]
            self._json(found, body)
        elif rest in files:
            self._file(files[rest], body)
        else:
            self._send(404, b"", body, error="EntryNotFound")

    def _files(self, name: str, revision: str) -> dict[str, bytes] | None:
        revisions = self.server.repositories.get(name, {})
        if revision == COMMIT and revisions:
            return next(iter(revisions.values()))
        return revisions.get(revision)

    def _json(self, value: Any, body: bool) -> None:
        self._send(200, json.dumps(value).encode(), body, kind="application/json")

    def _file(self, content: bytes, body: bool) -> None:
        extra = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            self._send(200, content, body, extra=extra)
            return
        start, end = int(asked[1]), int(asked[2] or len(content) - 1)
        end = min(end, len(content) - 1)
        extra["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        self._send(206, content[start : end + 1], body, extra=extra)

    def _send(
        self,
        status: int,
        content: bytes,
        body: bool,
        *,
        kind: str = "application/octet-stream",
        error: str = "",
        extra: dict[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if error:
            self.send_header("X-Error-Code", error)
            self.send_header("X-Error-Message", error)
        for name, value in (extra or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


def _info(path: str, content: bytes) -> dict[str, Any]:
    return {
        "type": "file",
        "path": path,
        "size": len(content),
        "oid": hashlib.sha1(content).hexdigest(),
    }


def _folder(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "size": 0, "oid": "0" * 40}


def _tree(files: dict[str, bytes], top: str, *, recursive: bool) -> list[dict[str, Any]]:
    """Files and folders below ``top``: its children, or all descendants."""
    prefix = f"{top}/" if top else ""
    entries: dict[str, dict[str, Any]] = {}
    for path, content in files.items():
        if not path.startswith(prefix):
            continue
        parts = path[len(prefix) :].split("/")
        for depth in range(1, len(parts)):
            if recursive or depth == 1:
                folder = prefix + "/".join(parts[:depth])
                entries.setdefault(folder, _folder(folder))
        if recursive or len(parts) == 1:
            entries[path] = _info(path, content)
    return list(entries.values())


class LoopbackHub(ThreadingHTTPServer):
    """The server; a context manager that serves on a free port in a thread.

    Attributes:
        repositories: What it holds.
        hang: Paths that begin with this are accepted and never answered; empty: none.
        requests: "METHOD /path" in order of arrival.
    """

    daemon_threads = True

    def __init__(self, repositories: Repositories, hang: str = "") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = repositories
        self.hang = hang
        self.requests: list[str] = []
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> LoopbackHub:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *args: object) -> None:
        self.released.set()
        self.shutdown()
        self.server_close()
