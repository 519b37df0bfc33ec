"""The errors a user may meet: each says what, where, what was seen, what is allowed, what to do.

One text serves the batch run's stderr, the event log and the console's dialog. Everything else that
is raised is a defect of ours and shows as a failed run with its traceback in ``console.log``.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of ``agentforge-tui`` (the user guide lists them)."""

    OK = 0
    RUN_FAILED = 1
    USAGE = 2
    PREFLIGHT = 3
    GATE_MISSED = 4
    SUSPENDED = 5
    INTERRUPTED = 130


class AgentForgeError(Exception):
    """A failure that is not a defect of ours, with its remedy.

    Args:
        message: What happened, where (file and key or flag) and the value seen.
        remedy: What the user can do; one sentence.
    """

    code = "error"
    exit_code = ExitCode.RUN_FAILED

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  -> {self.remedy}" if self.remedy else self.message


class ConfigError(AgentForgeError):
    """A key, value or flag that is not allowed."""

    code = "config"
    exit_code = ExitCode.USAGE


class DataError(AgentForgeError):
    """A dataset or record that is missing, unreadable or of the wrong form."""

    code = "data"
    exit_code = ExitCode.PREFLIGHT


class PreflightError(AgentForgeError):
    """The machine cannot run what was asked: disk, memory, device, permission."""

    code = "preflight"
    exit_code = ExitCode.PREFLIGHT


class RunError(AgentForgeError):
    """A run that is locked, missing, or cannot be resumed."""

    code = "run"
    exit_code = ExitCode.RUN_FAILED


class CheckpointError(RunError):
    """A checkpoint that is truncated, altered, or belongs to another model."""

    code = "checkpoint"


class TrainingError(AgentForgeError):
    """Training that cannot go on: NaN after all remedies, divergence that was told to stop."""

    code = "training"


class RunSuspended(Exception):  # noqa: N818 - a way to leave the loops, not a failure
    """Raised at a step boundary after a checkpoint: the run stops and can be resumed."""


class RunAborted(Exception):  # noqa: N818
    """Raised at a step boundary: the run stops and writes nothing more."""
