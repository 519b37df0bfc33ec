"""Measuring members across machines: ``torchrun --no-python ... agentforge-tui --batch ...``.

Rank 0 is the engine; it alone reads and writes the run directory. All other ranks only measure:
each starts as many processes as its cores (or its GPU) allow, which connect to rank 0 and take
jobs as its own workers do. A rank that is lost is a worker that is lost.
"""

from __future__ import annotations

import multiprocessing
import os
import secrets
import socket
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

import torch
import torch.distributed as dist

from agentforge.phases.evomerge.evaluator import worker_count
from agentforge.phases.evomerge.worker import Start, serve

PATIENCE = timedelta(days=30)
"""How long ranks wait for Phase 2 while rank 0 is busy with Phase 1."""


@dataclass(frozen=True, slots=True)
class Invitation:
    """Where the other ranks find the jobs."""

    address: tuple[str, int]
    key: bytes
    start: Start
    workers: int


def world_size() -> int:
    """Ranks of this run; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this process is."""
    return int(os.environ.get("RANK", "0"))


def join() -> None:
    """Meet the other ranks; every rank calls it once, at its start."""
    dist.init_process_group("gloo", timeout=PATIENCE)


def own_workers(wanted: int) -> int:
    """Processes of one rank: the machine's cores are shared by the ranks on it."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if torch.cuda.is_available():
        return 1
    return wanted or max(1, worker_count(0) // local)


def invite(start: Start, workers: int) -> list[Connection]:
    """On rank 0: let the other ranks connect.

    Args:
        start: What a worker is started with.
        workers: Processes wanted of each rank; 0: by its cores.

    Returns:
        One connection a process of another rank.
    """
    host = os.environ.get("MASTER_ADDR", "localhost")
    key = secrets.token_bytes(32)
    with Listener((_own_address(host), 0), backlog=256, authkey=key) as listener:
        address = listener.address
        assert isinstance(address, tuple)
        _broadcast(Invitation((host, int(address[1])), key, start, workers))
        counts: list[Any] = [None] * world_size()
        dist.all_gather_object(counts, 0)
        return [listener.accept() for _ in range(sum(counts))]


def dismiss() -> None:
    """On rank 0: there will be no more work."""
    _broadcast(None)
    dist.destroy_process_group()


def serve_rank() -> int:
    """On every other rank: measure for rank 0 until it dismisses everyone."""
    join()
    while True:
        box: list[Any] = [None]
        dist.broadcast_object_list(box, src=0)
        invitation = box[0]
        if invitation is None:
            dist.destroy_process_group()
            return 0
        count = own_workers(invitation.workers)
        counts: list[Any] = [None] * world_size()
        dist.all_gather_object(counts, count)
        context = multiprocessing.get_context("spawn")
        processes = [
            context.Process(target=_connect, args=(invitation, os.getpid()), daemon=True)
            for _ in range(count)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()


def _connect(invitation: Invitation, parent: int) -> None:
    from dataclasses import replace

    with Client(invitation.address, authkey=invitation.key) as pipe:
        serve(pipe, replace(invitation.start, parent=parent))


def _broadcast(invitation: Invitation | None) -> None:
    dist.broadcast_object_list([invitation], src=0)


def _own_address(host: str) -> str:
    """Where rank 0 listens: the loopback alone when all ranks are on one machine."""
    local = socket.gethostbyname(host).startswith("127.")
    return "127.0.0.1" if local else ""
