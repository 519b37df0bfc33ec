"""One attempt at the endpoint, and what its failure means. The key stays in here."""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import dataclass
from typing import Protocol

from agentforge.config.generator import GeneratorConfig, TeacherConfig
from agentforge.errors import ConfigError, DataError
from agentforge.reasoning.api.cost import Usage, reply_tokens
from agentforge.reasoning.api.journal import Outcome
from agentforge.reasoning.strategies import Strategy


@dataclass(frozen=True, slots=True)
class Answer:
    """What an attempt brought.

    Attributes:
        outcome: ``ok`` when a text came.
        text: The text.
        usage: Tokens; zero where the endpoint reported none.
        retry_after: Seconds the endpoint asks to wait; 0: it does not say.
        again: Whether another attempt may help.
        detail: For people.
    """

    outcome: Outcome
    text: str = ""
    usage: Usage = Usage(0, 0)
    retry_after: float = 0.0
    again: bool = True
    detail: str = ""


class Client(Protocol):
    """Asks a teacher once."""

    async def ask(
        self, teacher: TeacherConfig, strategy: Strategy, request: str, count: int, number: int
    ) -> Answer:
        """One attempt of call `number`; failures are answers too."""
        ...

    async def close(self) -> None:
        """Release the connections."""
        ...


def read_key(config: GeneratorConfig) -> str:
    """The key from the environment.

    Raises:
        ConfigError: The variable is not set.
    """
    key = os.environ.get(config.key_variable, "").strip()
    if not key:
        raise ConfigError(
            f"the environment variable {config.key_variable} is not set",
            remedy=f"export {config.key_variable}=...; --dry-run prices the generation without it",
        )
    return key


class EndpointClient:
    """An OpenAI-compatible endpoint through the `openai` library.

    Its own retries are off: cost and journal must know of every attempt.

    Args:
        config: Endpoint, limits, sampling.
        key: The key.

    Raises:
        ConfigError: The library is not installed.
    """

    def __init__(self, config: GeneratorConfig, key: str) -> None:
        try:
            import openai
        except ImportError:
            raise ConfigError(
                "the `openai` library is not installed",
                remedy="pip install 'agentforge-tui[api]'",
            ) from None
        # At debug level these libraries log headers.
        for name in ("openai", "httpx", "httpx2", "httpcore", "httpcore2"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self._openai = openai
        self._config = config
        self._key = key
        self._client = openai.AsyncOpenAI(
            api_key=key, base_url=config.base_url, timeout=config.timeout_s, max_retries=0
        )

    def __repr__(self) -> str:
        return f"EndpointClient({self._config.base_url})"

    async def ask(
        self, teacher: TeacherConfig, strategy: Strategy, request: str, count: int, number: int
    ) -> Answer:
        """One attempt.

        Raises:
            DataError: The endpoint refuses for good: wrong key, no credit, unknown model.
        """
        openai, config = self._openai, self._config
        try:
            # The library's own limit is per read; a slow stream of bytes would never end.
            async with asyncio.timeout(config.timeout_s):
                reply = await self._client.chat.completions.create(
                    model=teacher.name,
                    messages=[{"role": "user", "content": request}],
                    max_tokens=reply_tokens(config, teacher, count),
                    temperature=config.temperature,
                    top_p=config.top_p,
                )
        except (TimeoutError, openai.APITimeoutError):
            return Answer("timeout", detail=f"no reply within {config.timeout_s:g} s")
        except openai.APIStatusError as error:
            return self._status(error.status_code, dict(error.response.headers), str(error))
        except openai.APIConnectionError as error:
            return Answer("connection", detail=self._clean(str(error.__cause__ or error)))
        except (ValueError, openai.APIError) as error:
            return Answer("bad_json", detail=self._clean(f"not a completion: {error}"))
        usage = reply.usage
        counted = Usage(0, 0)
        if usage is not None:
            counted = Usage(usage.prompt_tokens or 0, usage.completion_tokens or 0)
        text = reply.choices[0].message.content if reply.choices else ""
        return Answer("ok", text=text or "", usage=counted)

    def _status(self, status: int, headers: dict[str, str], text: str) -> Answer:
        detail = self._clean(f"status {status}")
        if status == 429:
            return Answer("rate_limit", retry_after=_seconds(headers), detail=detail)
        if status >= 500 or status in (408, 409, 425):
            return Answer("server_error", retry_after=_seconds(headers), detail=detail)
        if status in (401, 402, 403):
            raise DataError(
                f"{self._config.base_url} refuses (status {status}): {self._clean(text)[:300]}",
                remedy=f"check the key in {self._config.key_variable} and the account's credit",
            )
        return Answer("refused", again=False, detail=self._clean(f"{detail}: {text}")[:300])

    def _clean(self, text: str) -> str:
        """Some endpoints repeat the key in their messages."""
        return text.replace(self._key, "***")

    async def close(self) -> None:
        """Release the connections."""
        await self._client.close()


def _seconds(headers: dict[str, str]) -> float:
    value = {k.lower(): v for k, v in headers.items()}.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        return 0.0
