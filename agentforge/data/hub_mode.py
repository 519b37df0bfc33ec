"""Switching the hub's client libraries on- or offline, quiet, and with bounded waits.

Left alone, huggingface_hub 2.4 answers a server that accepts a request and then says nothing with
six more attempts of 60 s each (measured: over 6 minutes for one dataset). While `hub_mode` is
active a request waits at most `READ_TIMEOUT_S` for the next bytes, and after one that went
unanswered `UNANSWERED` times all others end as "offline", which the libraries do not repeat.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

READ_TIMEOUT_S = 10.0
UNANSWERED = 3
STREAM_RETRIES = 2
"""Of a broken stream, 5 s apart (the library's own default is 20)."""


@contextmanager
def hub_mode(*, offline: bool) -> Iterator[None]:
    """Set the libraries' switches for a block of code, and put all of them back.

    Both libraries read these switches on every call; the environment variables behind them are
    read only on import, so setting those would come too late.

    Args:
        offline: Use the caches only.
    """
    import datasets
    from datasets.utils import logging as datasets_logging
    from huggingface_hub import constants
    from huggingface_hub.utils import logging as hub_logging

    config = datasets.config
    before = (
        constants.HF_HUB_OFFLINE,
        config.HF_HUB_OFFLINE,
        config.STREAMING_READ_MAX_RETRIES,
        config.STREAMING_OPEN_MAX_RETRIES,
    )
    loud = datasets_logging.get_verbosity(), hub_logging.get_verbosity()
    bars = not datasets.are_progress_bars_disabled()
    constants.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE = offline
    config.STREAMING_READ_MAX_RETRIES = config.STREAMING_OPEN_MAX_RETRIES = STREAM_RETRIES
    datasets_logging.set_verbosity(logging.ERROR)
    hub_logging.set_verbosity(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        with _bounded_waits():
            yield
    finally:
        constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE = before[:2]
        config.STREAMING_READ_MAX_RETRIES, config.STREAMING_OPEN_MAX_RETRIES = before[2:]
        datasets_logging.set_verbosity(loud[0])
        hub_logging.set_verbosity(loud[1])
        if bars:
            datasets.enable_progress_bars()


@contextmanager
def _bounded_waits() -> Iterator[None]:
    """Hooks on the shared HTTP client: shorter waits, no endless repetition."""
    from huggingface_hub import get_session

    client: Any = get_session()
    hooks = getattr(client, "event_hooks", None)  # httpx; older versions use requests: no hooks
    if hooks is None:
        yield
        return
    waits = _Waits()
    client.event_hooks = {
        "request": [*hooks.get("request", []), waits.on_request],
        "response": [*hooks.get("response", []), waits.on_response],
    }
    try:
        yield
    finally:
        client.event_hooks = hooks


class _Waits:
    """Counts requests that were sent again although no answer came.

    Counted by request, since several are under way at once when a set has many files; but when one
    of them is given up, all are.
    """

    def __init__(self) -> None:
        self._pending: Counter[tuple[str, str, str]] = Counter()
        self._given_up = ""

    def on_request(self, request: Any) -> None:
        from huggingface_hub.errors import OfflineModeIsEnabled

        key = _key(request)
        if self._pending[key] >= UNANSWERED:
            self._given_up = f"{request.url} did not answer {UNANSWERED} times"
        if self._given_up:
            raise OfflineModeIsEnabled(self._given_up)
        self._pending[key] += 1
        timeout = request.extensions.get("timeout") or {}
        limits = {"connect": READ_TIMEOUT_S, "read": READ_TIMEOUT_S}
        shorter = {k: min(timeout.get(k) or limit, limit) for k, limit in limits.items()}
        request.extensions["timeout"] = {**timeout, **shorter}

    def on_response(self, response: Any) -> None:
        self._pending.pop(_key(response.request), None)


def _key(request: Any) -> tuple[str, str, str]:
    return request.method, str(request.url), request.headers.get("range", "")
