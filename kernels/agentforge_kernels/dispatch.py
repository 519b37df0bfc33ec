"""Which backend computes: chosen by device, or forced by ``AGENTFORGE_KERNELS``.

===============  ==================================================================
device           backend
===============  ==================================================================
CPU              ``native``; without the compiled extension ``fallback``
CUDA and HIP     ``triton``; a GPU that Triton does not serve: ``reference``
anything else    ``reference`` (plain torch)
===============  ==================================================================

All of them give the same bits, so the choice is one of speed only.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from functools import cache
from importlib import import_module

import torch

from agentforge_kernels.backend import Backend
from agentforge_kernels.errors import BackendUnavailableError, KernelInputError
from agentforge_kernels.native import extension, unavailable_reason

VARIABLE = "AGENTFORGE_KERNELS"
CHOICES = ("auto", "triton", "native", "reference")
CHECK_VARIABLE = "AGENTFORGE_KERNELS_CHECK"

_CPU = torch.device("cpu")


def forced_choice() -> str:
    """The value of ``AGENTFORGE_KERNELS``; ``auto`` when it is unset or empty.

    Raises:
        KernelInputError: Another value than auto, triton, native or reference.
    """
    value = os.environ.get(VARIABLE) or "auto"
    if value not in CHOICES:
        raise KernelInputError(VARIABLE, repr(value), ", ".join(CHOICES))
    return value


def backend_for(device: torch.device) -> Backend:
    """The backend that computes on a device, now (the environment is read at every call).

    Raises:
        KernelInputError: ``AGENTFORGE_KERNELS`` has a value that means nothing.
        BackendUnavailableError: The forced backend cannot run here; says why and what can.
    """
    return _choose(forced_choice(), device)


@cache
def _choose(choice: str, device: torch.device) -> Backend:
    if choice == "auto":
        name, why_not = _automatic(device)
        if name == "reference":
            warnings.warn(
                f"agentforge_kernels computes in plain torch, exact but slow: {why_not}",
                stacklevel=3,
            )
        return backend_named(name)
    missing = missing_reason(choice, device)
    if missing is not None:
        raise BackendUnavailableError(
            f"{VARIABLE}={choice}: {missing}. For tensors on {device} allowed here: "
            f"{', '.join(_available(device))}"
        )
    return backend_named(choice)


@cache
def backend_named(name: str) -> Backend:
    """The one instance of a backend: ``native``, ``fallback``, ``triton`` or ``reference``."""
    if name == "native":
        from agentforge_kernels.native_backend import NativeBackend

        return NativeBackend()
    if name == "fallback":
        from agentforge_kernels.fallback import FallbackBackend

        return FallbackBackend()
    if name == "triton":
        triton_backend: Backend = import_module("agentforge_kernels.triton.backend").TritonBackend()
        return triton_backend
    if name == "reference":
        from agentforge_kernels.reference_backend import ReferenceBackend

        return ReferenceBackend()
    raise KernelInputError("name", repr(name), "native, fallback, triton or reference")


def missing_reason(name: str, device: torch.device) -> str | None:
    """Why a backend cannot compute on a device, in words; ``None`` when it can."""
    if name == "native":
        if extension is None:
            return unavailable_reason()
        return None if device.type == "cpu" else f"it computes on the CPU, not on {device}"
    if name == "triton":
        return _why_not_triton(device)
    return None


def instruction_set() -> str:
    """Level of the native kernels in use: portable, avx2, avxvnni, avx512vnni or amxint8.

    Raises:
        BackendUnavailableError: The extension was not built or does not load.
    """
    if extension is None:
        raise BackendUnavailableError(f"native: {unavailable_reason()}")
    return str(extension.isa_name(extension.isa()))


def checks_finite(device: torch.device) -> bool:
    """Whether NaN and infinity in activations are looked for on a device.

    On the CPU always: the quantiser sees them on the way. On a GPU only with
    ``AGENTFORGE_KERNELS_CHECK=1``, because the answer has to be waited for; without it the outputs
    of such a token are NaN.

    Raises:
        KernelInputError: The variable is neither 0 nor 1.
    """
    if device.type == "cpu":
        return True
    value = os.environ.get(CHECK_VARIABLE) or "0"
    if value not in ("0", "1"):
        raise KernelInputError(CHECK_VARIABLE, repr(value), "0, 1 or unset")
    return value == "1"


def explain(device: torch.device | str = _CPU) -> str:
    """One sentence: which backend computes on a device, how, and why not a faster one.

    Args:
        device: Where the tensors would lie.

    Returns:
        For example ``native, avx512vnni, 2 threads, shares torch's OpenMP``.

    Raises:
        KernelInputError: As :func:`backend_for`.
        BackendUnavailableError: As :func:`backend_for`.
    """
    device = torch.device(device)
    choice = forced_choice()
    if choice != "auto":
        name = backend_for(device).name
        return f"{_describe(name, device)}; forced by {VARIABLE}"
    name, why_not = _automatic(device)
    because = "" if why_not is None else f" because {why_not}"
    return f"{_describe(name, device)}{because}"


def _automatic(device: torch.device) -> tuple[str, str | None]:
    """Name of the backend for a device, and why it is not the fastest kind (``None``: it is)."""
    if device.type == "cpu":
        missing = missing_reason("native", device)
        return ("native", None) if missing is None else ("fallback", missing)
    if device.type == "cuda":
        missing = _why_not_triton(device)
        return ("triton", None) if missing is None else ("reference", missing)
    return "reference", f"there are kernels for the CPU, CUDA and HIP, none for {device.type}"


def _available(device: torch.device) -> list[str]:
    return [name for name in CHOICES if missing_reason(name, device) is None]


@cache
def _why_not_triton(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"it computes on a GPU (CUDA or HIP), not on {device}"
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    from agentforge_kernels.triton.devices import family_of_device

    try:
        family_of_device(device)
    except BackendUnavailableError as error:
        return str(error)
    return None


def _describe(name: str, device: torch.device) -> str:
    if name == "native" and extension is not None:
        from agentforge_kernels.native.threads import default_threads, shares_openmp

        threads = default_threads()
        runtime = "shares torch's OpenMP" if shares_openmp() else "without torch's OpenMP"
        return (
            f"native, {instruction_set()}, {threads} thread{'s' if threads > 1 else ''}, {runtime}"
        )
    if name == "fallback":
        return "fallback (int8 through torch, the same results, slower)"
    if name == "triton":
        import triton

        from agentforge_kernels.triton.devices import family_of_device

        return f"triton {triton.__version__}, {family_of_device(device)} configurations"
    return "reference (plain torch, slow)"
