"""Which family of GPUs a device belongs to: it decides instructions and configurations.

``AGENTFORGE_TENSOR_CORES=0|1`` overrides what is known about tensor cores of compute capability
7.5, where NVIDIA gives no attribute to ask for.
"""

from __future__ import annotations

import os
import re
from typing import Literal

import torch

from agentforge_kernels.errors import BackendUnavailableError, KernelInputError

Family = Literal["turing", "ampere", "hopper", "blackwell", "cdna", "rdna3"]
FAMILIES: tuple[Family, ...] = ("turing", "ampere", "hopper", "blackwell", "cdna", "rdna3")

DOT4_INSTRUCTION: dict[Family, str] = {
    "turing": "dp4a",
    "ampere": "dp4a",
    "hopper": "dp4a",
    "blackwell": "dp4a",
    "cdna": "cdna",
    "rdna3": "rdna3",
}
"""``dot4``'s INSTRUCTION for each family."""

TENSOR_CORES_VARIABLE = "AGENTFORGE_TENSOR_CORES"

# Chips TU116 and TU117: compute capability 7.5 like their larger kin, without tensor cores.
_WITHOUT_TENSOR_CORES = re.compile(
    r"GTX 16\d\d|MX4[05]0|MX550|\bT(400|500|550|600|1000|1200)\b|CMP 30HX", re.IGNORECASE
)


def int8_matrix_units(family: Family) -> bool:
    """Whether ``tl.dot`` of int8 compiles, to matrix instructions: everywhere but on Turing."""
    return family != "turing"


def family_of_capability(major: int, minor: int) -> Family:
    """Family of an NVIDIA compute capability; 8.9 (Ada) counts as Ampere.

    Raises:
        BackendUnavailableError: Older than 7.5, which Triton does not support.
    """
    if (major, minor) < (7, 5):
        raise BackendUnavailableError(
            f"compute capability {major}.{minor}: the Triton kernels need 7.5 (GTX 16xx) or newer"
        )
    if major == 7:
        return "turing"
    if major == 8:
        return "ampere"
    return "hopper" if major == 9 else "blackwell"


def family_of_amd(architecture: str) -> Family:
    """Family of an AMD architecture name such as ``gfx942:sramecc+:xnack-``.

    Raises:
        BackendUnavailableError: Neither CDNA (gfx90a, gfx94x, gfx95x) nor RDNA 3 (gfx11xx).
    """
    name = architecture.split(":")[0]
    if re.fullmatch(r"gfx(90a|94\d|95\d)", name):
        return "cdna"
    if re.fullmatch(r"gfx11\d\d", name):
        return "rdna3"
    raise BackendUnavailableError(
        f"{name}: the Triton kernels know CDNA (gfx90a, gfx94x, gfx95x) and RDNA 3 (gfx11xx)"
    )


def family_of_target(name: str) -> Family:
    """Family of a compilation target by name (``sm_86``, ``gfx1100``)."""
    if name.startswith("sm_"):
        capability = int(name.removeprefix("sm_"))
        return family_of_capability(*divmod(capability, 10))
    return family_of_amd(name)


def family_of_device(device: torch.device) -> Family:
    """Family of a torch device.

    Raises:
        BackendUnavailableError: Not a GPU, or one the kernels do not know.
    """
    if device.type != "cuda":
        raise BackendUnavailableError(f"device {device}: the Triton kernels run on GPUs")
    if torch.version.hip is not None:
        return family_of_amd(torch.cuda.get_device_properties(device).gcnArchName)
    return family_of_capability(*torch.cuda.get_device_capability(device))


def has_tensor_cores(capability: tuple[int, int], name: str) -> bool:
    """Whether an NVIDIA GPU has tensor cores, by its compute capability and product name.

    Args:
        capability: ``torch.cuda.get_device_capability()``.
        name: ``torch.cuda.get_device_name()``.

    Raises:
        KernelInputError: The environment override is neither 0 nor 1.
    """
    override = os.environ.get(TENSOR_CORES_VARIABLE)
    if override not in (None, "", "0", "1"):
        raise KernelInputError(TENSOR_CORES_VARIABLE, override, "0, 1 or unset")
    if override:
        return override == "1"
    if capability == (7, 5):
        return _WITHOUT_TENSOR_CORES.search(name) is None
    return capability >= (7, 0)
