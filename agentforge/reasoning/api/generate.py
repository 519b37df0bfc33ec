"""Generating a set: streams of calls, one a teacher and strategy, within rate and cost limits."""

from __future__ import annotations

import asyncio
import datetime
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

from agentforge.config.generator import GeneratorConfig, TeacherConfig
from agentforge.reasoning.api.client import Answer, Client
from agentforge.reasoning.api.cost import cost_of, usd_text, worst_case
from agentforge.reasoning.api.journal import Attempt, Journal
from agentforge.reasoning.api.replies import Read, read_reply
from agentforge.reasoning.dataset import EXAMPLES, METADATA, SetMetadata, metadata_json
from agentforge.reasoning.prompts import request_text
from agentforge.reasoning.strategies import STRATEGIES, Strategy
from agentforge.run.atomic import write_atomic

Sleep = Callable[[float], Awaitable[None]]
Clock = Callable[[], float]


@dataclass(slots=True)
class Progress:
    """Where a generation stands.

    Attributes:
        target: Valid examples wanted.
        valid: Valid examples so far.
        tried: Examples looked at.
        faults: Invalid ones by reason.
        outcomes: Attempts by outcome.
        usd: Spent.
        reserved: The most that attempts under way can cost.
        by_strategy, by_teacher: Valid examples.
        warned: The limit's warning was given.
        stopped: Why no further call starts; empty while they do.
    """

    target: int
    valid: int = 0
    tried: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    usd: Decimal = Decimal(0)
    reserved: Decimal = Decimal(0)
    by_strategy: Counter[str] = field(default_factory=Counter)
    by_teacher: Counter[str] = field(default_factory=Counter)
    warned: bool = False
    stopped: str = ""

    @property
    def projected_usd(self) -> Decimal:
        """What the whole set will have cost at today's rate."""
        return self.usd * self.target / self.valid if self.valid else self.usd

    def count(self, attempt: Attempt) -> None:
        """Add an attempt of the journal."""
        self.outcomes[attempt.outcome] += 1
        self.usd += attempt.usd
        self.valid += len(attempt.examples)
        self.tried += len(attempt.examples) + sum(attempt.faults.values())
        self.faults.update(attempt.faults)
        self.by_strategy[attempt.strategy] += len(attempt.examples)
        self.by_teacher[attempt.teacher] += len(attempt.examples)


class RateLimit:
    """Lets calls start at even distances, never more than so many a minute.

    Args:
        per_minute: Starts a minute.
        clock: Seconds of a clock that never goes back.
        sleep: Waits.
    """

    def __init__(self, per_minute: float, clock: Clock, sleep: Sleep) -> None:
        self._distance = 60.0 / per_minute
        self._clock, self._sleep = clock, sleep
        self._next = clock()

    async def wait(self) -> None:
        """Until the next start is due."""
        now = self._clock()
        due = max(now, self._next)
        self._next = due + self._distance
        if due > now:
            await self._sleep(due - now)


class Generation:
    """One generation into one folder; goes on with what the folder holds.

    Args:
        config: Teachers, counts, limits.
        folder: The set's folder; it is made when it is missing.
        client: Asks the endpoint.
        tell: Called after every attempt and with every warning (a text).
        sleep, clock: Replaced by tests.
        seed: Seed of the jitter.
    """

    def __init__(
        self,
        config: GeneratorConfig,
        folder: Path,
        client: Client,
        tell: Callable[[Progress, str], None],
        *,
        sleep: Sleep = asyncio.sleep,
        clock: Clock | None = None,
        seed: int = 0,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._config, self._folder, self._client, self._tell = config, folder, client, tell
        self._sleep = sleep
        self._clock = clock or asyncio.get_event_loop().time
        self._rate = RateLimit(config.requests_per_minute, self._clock, sleep)
        self._jitter = random.Random(seed)
        self._slots = asyncio.Semaphore(config.concurrency)
        self._freed = asyncio.Condition()
        self.journal = Journal(folder)
        target = len(config.teachers) * len(STRATEGIES) * config.per_strategy
        self.progress = Progress(target)
        self._prompts: set[str] = set()
        for attempt in self.journal.attempts:
            self.progress.count(attempt)
            self._prompts |= {" ".join(e.prompt.lower().split()) for e in attempt.examples}

    async def run(self) -> Progress:
        """Generate until the target, the limits, or a refusal.

        Raises:
            DataError: The endpoint refuses for good.
            PreflightError: The disk refuses.
        """
        try:
            async with asyncio.TaskGroup() as group:
                for strategy in STRATEGIES:
                    for teacher in self._config.teachers:
                        group.create_task(self._stream(teacher, strategy))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            self.write_set()
            self.journal.close()
        return self.progress

    async def _stream(self, teacher: TeacherConfig, strategy: Strategy) -> None:
        """Calls of one teacher and strategy, one after the other."""
        config = self._config
        mine = [
            a
            for a in self.journal.attempts
            if (a.teacher, a.strategy) == (teacher.name, strategy.name)
        ]
        valid = sum(len(a.examples) for a in mine)
        number = max((a.call for a in mine), default=-1) + 1
        most = int(-(-config.per_strategy * config.spare_calls // config.per_call))
        while valid < config.per_strategy and number < most and not self.progress.stopped:
            count = min(config.per_call, config.per_strategy - valid)
            async with self._slots:
                valid += await self._call(teacher, strategy, number, count)
            number += 1

    async def _call(
        self, teacher: TeacherConfig, strategy: Strategy, number: int, count: int
    ) -> int:
        """One call with its attempts; the valid examples it brought."""
        config = self._config
        request = request_text(strategy, count, number)
        for attempt in range(config.tries):
            await self._rate.wait()
            most = worst_case(config, teacher, request, count)
            if not await self._reserved(most):
                return 0
            try:
                answer = await self._client.ask(teacher, strategy, request, count, number)
                # Counted before its reservation goes: in between another call could slip through.
                read = self._note(teacher, strategy, number, attempt, count, answer)
            finally:
                self.progress.reserved -= most
                async with self._freed:
                    self._freed.notify_all()
            if read.examples or not answer.again:
                return len(read.examples)
            if attempt + 1 < config.tries:
                await self._sleep(self._pause(attempt, answer.retry_after))
        return 0

    async def _reserved(self, most: Decimal) -> bool:
        """Whether an attempt may start: even when all under way cost their worst the limit holds.

        It waits for those under way, which mostly cost less; when none is left, the limit is
        reached.
        """
        progress, limit = self.progress, self._config.cost_limit_usd
        async with self._freed:
            while not progress.stopped and progress.usd + progress.reserved + most > limit:
                if progress.reserved <= 0:
                    progress.stopped = f"the cost limit of {usd_text(limit)} is reached"
                    self._tell(progress, progress.stopped)
                    break
                await self._freed.wait()
        if progress.stopped:
            return False
        progress.reserved += most
        return True

    def _note(
        self,
        teacher: TeacherConfig,
        strategy: Strategy,
        number: int,
        attempt: int,
        count: int,
        answer: Answer,
    ) -> Read:
        """Read an answer, journal the attempt, tell of it."""
        read = Read((), {}, cut=False)
        outcome, detail = answer.outcome, answer.detail
        if outcome == "ok":
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            call = f"{teacher.name}/{strategy.name}/{number:04d}"
            read = read_reply(answer.text, strategy, teacher.name, call, count, now, self._prompts)
            if not read.examples:
                outcome, detail = "bad_json", "no valid example"
            elif read.cut:
                detail = "the reply was cut; its complete examples are kept"
        noted = Attempt(
            teacher=teacher.name,
            strategy=strategy.name,
            call=number,
            attempt=attempt,
            outcome=outcome,
            asked=count,
            input_tokens=answer.usage.input_tokens,
            output_tokens=answer.usage.output_tokens,
            usd=cost_of(teacher, answer.usage),
            faults={str(k): v for k, v in read.faults.items()},
            examples=read.examples,
            detail=detail,
        )
        self.journal.add(noted)
        self.progress.count(noted)
        self._tell(self.progress, "" if outcome == "ok" else f"{call_name(noted)}: {detail}")
        limit, share = self._config.cost_limit_usd, self._config.warn_share
        if not self.progress.warned and self.progress.usd >= limit * Decimal(str(share)):
            self.progress.warned = True
            self._tell(
                self.progress,
                f"{usd_text(self.progress.usd)} of the limit of {usd_text(limit)} are spent",
            )
        return read

    def _pause(self, attempt: int, retry_after: float) -> float:
        """Exponential backoff with jitter, at least what the endpoint asks for."""
        most = min(self._config.most_backoff_s, self._config.backoff_s * float(2**attempt))
        return max(retry_after, most * (0.5 + self._jitter.random() / 2))

    def write_set(self) -> None:
        """`examples.jsonl` and `metadata.json` from the journal, whole or not at all.

        Raises:
            PreflightError: The disk refuses.
        """
        order = {s.name: i for i, s in enumerate(STRATEGIES)}
        rows = sorted(
            (e for a in self.journal.attempts for e in a.examples),
            key=lambda e: (order[e.strategy], e.id),
        )
        write_atomic(self._folder / EXAMPLES, "".join(f"{e.model_dump_json()}\n" for e in rows))
        progress = self.progress
        metadata = SetMetadata(
            target=progress.target,
            tried=progress.tried,
            faults=dict(progress.faults),
            cost_usd=str(progress.usd),
            source=", ".join(t.name for t in self._config.teachers),
        )
        write_atomic(self._folder / METADATA, metadata_json(metadata))


def call_name(attempt: Attempt) -> str:
    """How a call is called in messages."""
    return f"{attempt.teacher} {attempt.strategy} call {attempt.call}, attempt {attempt.attempt}"
