"""The one error a user of the kernels meets: which argument, the value seen, what is allowed."""

from __future__ import annotations


class KernelInputError(ValueError):
    """An argument that no kernel may be given.

    Args:
        argument: Name of the argument (or ``file: key`` for files).
        seen: The value or property seen, in words or numbers.
        allowed: What would have been accepted.
        remedy: What to do about it, when that is not plain from ``allowed``.
    """

    def __init__(self, argument: str, seen: object, allowed: str, remedy: str = "") -> None:
        message = f"{argument}: {seen}; allowed: {allowed}"
        super().__init__(f"{message}. {remedy}" if remedy else message)
        self.argument = argument
        self.seen = seen
        self.allowed = allowed
        self.remedy = remedy


class BackendUnavailableError(RuntimeError):
    """A backend was forced (``AGENTFORGE_KERNELS``) that this machine cannot run; says why."""
