"""Measures many models: in worker processes on a CPU, in this process on a GPU.

Jobs are pulled one by one when somebody is free, so the next child is merged while the others are
measured. Answers come back in the order of the jobs, whoever did them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Protocol

import torch

from agentforge.errors import TrainingError
from agentforge.events import Alert
from agentforge.model.language_model import CognateLM
from agentforge.phases.evomerge.measuring import Answer, Job, Settings, do_job
from agentforge.phases.evomerge.worker import Failure, Start, packed, serve
from agentforge.run.context import Emit

POLL_S = 0.05
"""Seconds between two looks at commands while all workers are busy."""
STOP_S = 5.0
MOST_WORKERS = 8
"""More than that and the one process that merges falls behind."""

Between = Callable[[], None]


class Evaluator(Protocol):
    """Measures models."""

    def measure(self, jobs: Iterable[Job], between: Between) -> list[Answer]:
        """Do all jobs; `between` is called while waiting and may raise to leave."""
        ...

    def close(self) -> None:
        """End whatever was started."""
        ...


class LocalEvaluator:
    """In this process, on the model's device."""

    def __init__(self, model: CognateLM, settings: Settings) -> None:
        self._model = model
        self._settings = settings

    def measure(self, jobs: Iterable[Job], between: Between) -> list[Answer]:
        """See `Evaluator`."""
        return [do_job(self._model, self._settings, job, between) for job in jobs]

    def close(self) -> None:
        """Nothing was started."""


class WorkerEvaluator:
    """In processes of one thread each.

    Args:
        start: What every worker is started with.
        workers: How many.
        emit: Tells of a worker that ended.
        others: Connections to workers of other ranks.
    """

    def __init__(
        self, start: Start, workers: int, emit: Emit, others: Sequence[Connection] = ()
    ) -> None:
        self._emit = emit
        context = multiprocessing.get_context("spawn")
        self._workers: list[tuple[BaseProcess | None, Connection]] = [(None, c) for c in others]
        self._stale: set[Connection] = set()
        """Busy with a job nobody waits for any more."""
        for number in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=serve, args=(theirs, start), name=f"evaluation-{number}", daemon=True
            )
            process.start()
            theirs.close()
            self._workers.append((process, ours))

    @property
    def pids(self) -> list[int]:
        """Process ids of this machine's workers that live."""
        own = [p for p, _ in self._workers if p is not None]
        return [p.pid for p in own if p.pid is not None and p.is_alive()]

    def measure(self, jobs: Iterable[Job], between: Between) -> list[Answer]:
        """See `Evaluator`.

        A worker that ends (out of memory) is told of, and its job is given to another one.

        Raises:
            TrainingError: A job failed, or no worker is left.
        """
        busy: dict[Connection, tuple[int, Job]] = {}
        try:
            answers = self._all(enumerate(jobs), busy, between)
        finally:
            self._stale |= set(busy)
        return [answers[i] for i in range(len(answers))]

    def _all(
        self,
        coming: Iterator[tuple[int, Job]],
        busy: dict[Connection, tuple[int, Job]],
        between: Between,
    ) -> dict[int, Answer]:
        answers: dict[int, Answer] = {}
        again: list[tuple[int, Job]] = []
        more = True
        while more or again or busy:
            idle = [c for _, c in self._workers if c not in busy and c not in self._stale]
            if idle and (again or more):
                job = again.pop() if again else next(coming, None)
                if job is None:
                    more = False
                else:
                    self._send(idle[0], job, busy, again)
                between()
                continue
            for ready in wait([*busy, *self._stale], timeout=POLL_S):
                assert isinstance(ready, Connection)
                if ready in self._stale:
                    self._stale.remove(ready)
                    self._receive(ready)
                    continue
                job = busy.pop(ready)
                answer = self._receive(ready)
                if answer is None:
                    again.append(job)
                else:
                    answers[job[0]] = answer
            between()
        return answers

    def _send(
        self,
        pipe: Connection,
        job: tuple[int, Job],
        busy: dict[Connection, tuple[int, Job]],
        again: list[tuple[int, Job]],
    ) -> None:
        try:
            pipe.send(packed(job[1]))
        except OSError:
            again.append(job)
            self._lost(pipe)
        else:
            busy[pipe] = job

    def _receive(self, pipe: Connection) -> Answer | None:
        """The answer; None when the worker is gone."""
        try:
            found = pipe.recv()
        except (EOFError, OSError):
            self._lost(pipe)
            return None
        if isinstance(found, Failure):
            raise TrainingError(
                f"measuring a merged model failed: {found.text.strip().splitlines()[-1]}",
                remedy="console.log has the details; resume goes on from the last generation",
            ) from RuntimeError(found.text)
        assert isinstance(found, Answer)
        return found

    def _lost(self, pipe: Connection) -> None:
        process = next(p for p, c in self._workers if c is pipe)
        how = "its rank is gone"
        if process is not None:
            process.join(timeout=STOP_S)
            how = f"exit code {process.exitcode}"
        self._workers = [(p, c) for p, c in self._workers if c is not pipe]
        pipe.close()
        left = len(self._workers)
        self._emit(
            Alert(
                id=f"evomerge-worker-{left}-left",
                level="warning",
                code="worker",
                title="A process that measures members ended",
                detail=f"{how}; {left} left, its work is done again there",
                cause="usually memory: lower evomerge.workers",
            )
        )
        if not left:
            raise TrainingError(
                f"all processes that measure members ended (the last one: {how})",
                remedy="lower evomerge.workers or cognate.eval_batch, then resume: the search goes "
                "on from the last generation",
            )

    def close(self) -> None:
        """End the workers; a busy one is killed."""
        for _, pipe in self._workers:
            with contextlib.suppress(OSError):
                pipe.close()
        deadline = time.monotonic() + STOP_S
        for process, _ in self._workers:
            if process is None:
                continue
            process.join(timeout=max(0.0, min(0.2, deadline - time.monotonic())))
            if process.is_alive():
                process.kill()
                process.join()
        self._workers = []


def worker_count(wanted: int) -> int:
    """Workers to start: one a core unless asked otherwise."""
    return wanted or max(1, min(MOST_WORKERS, len(os.sched_getaffinity(0))))


def make_evaluator(model: CognateLM, settings: Settings, workers: int, emit: Emit) -> Evaluator:
    """Worker processes on a CPU, and of other ranks; on a single GPU the model itself."""
    from agentforge.phases.evomerge import ranks

    device = model.rope_cos.device.type
    start = Start(os.getpid(), model.config, model.vocab_size, settings, device)
    if ranks.world_size() > 1:
        others = ranks.invite(start, workers)
        return WorkerEvaluator(start, ranks.own_workers(workers), emit, others)
    if device != "cpu":
        return LocalEvaluator(model, settings)
    return WorkerEvaluator(start, worker_count(workers), emit)


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    from agentforge.hardware import ram

    return ram().available
