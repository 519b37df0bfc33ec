"""The GPU: what it is, what it can do at most, how a call on it is timed."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
from agentforge_kernels.triton.devices import Family, family_of_device, has_tensor_cores

Call = Callable[[], object]
Timer = Callable[[Call], float]
"""Microseconds of a call."""

COPY_BYTES = 256 << 20
SQUARE = 4096
"""Rows, columns and depth of the int8 matrix product that measures the multiplication limit."""
DP4A_LANES = 64
"""Of a multiprocessor and clock; four products each (Turing and newer)."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """What a row of the results says about the machine.

    Attributes:
        name: As the vendor calls it.
        family: Whose configurations it uses.
        capability: Compute capability, or AMD's architecture.
        clocks: Of multiprocessors and memory in MHz while measured; empty where nothing says so.
        versions: Of torch, Triton, the driver's CUDA or HIP, the system.
    """

    name: str
    family: Family
    capability: str
    clocks: str
    versions: str


@dataclass(frozen=True, slots=True)
class Limits:
    """What the device reached in this run.

    Attributes:
        bytes_per_second: Read and written, copying ``COPY_BYTES``.
        products_per_second: int8 multiplications: of a large matrix product where that runs on
            matrix units, else dp4a at the device's clock.
    """

    bytes_per_second: float
    products_per_second: float


def describe(device: torch.device) -> Gpu:
    """The device and the software around it."""
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is None:
        capability = f"sm_{properties.major}{properties.minor}"
    else:
        capability = properties.gcnArchName
    runtime = torch.version.cuda or torch.version.hip
    return Gpu(
        name=properties.name,
        family=family_of_device(device),
        capability=capability,
        clocks=clocks(device),
        versions=f"torch {torch.__version__}, triton {triton.__version__}, runtime {runtime}, "
        f"{platform.system()} {platform.machine()}",
    )


def clocks(device: torch.device) -> str:
    """Current clocks by NVIDIA's management library; empty where it does not answer."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(
            f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        )
        multiprocessors = pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)
        memory = pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM)
    # The library is NVIDIA's only, may be missing, and may refuse any question.
    except Exception:
        return ""
    return f"{multiprocessors} / {memory} MHz"


def measure_limits(device: torch.device, timer: Timer) -> Limits:
    """Copy memory, multiply matrices; the best the device did."""
    source = torch.zeros(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = timer(lambda: target.copy_(source))
    return Limits(2 * COPY_BYTES / (copied * 1e-6), _products_per_second(device, timer))


def _products_per_second(device: torch.device, timer: Timer) -> float:
    properties = torch.cuda.get_device_properties(device)
    capability = (properties.major, properties.minor)
    if torch.version.hip is not None or has_tensor_cores(capability, properties.name):
        try:
            left = torch.ones(SQUARE, SQUARE, dtype=torch.int8, device=device)
            return float(SQUARE**3 / (timer(lambda: torch._int_mm(left, left)) * 1e-6))
        except RuntimeError:
            pass  # no such matrix product for this device: its dp4a is the limit
    lanes = properties.multi_processor_count * DP4A_LANES
    return float(4 * lanes * _clock_hertz(properties))


def _clock_hertz(properties: Any) -> float:
    """Highest clock of the multiprocessors; torch gives it in kHz."""
    return 1000.0 * float(properties.clock_rate)


def time_cold(call: Call) -> float:
    """Median microseconds between events, the second-level cache emptied before each call."""
    return 1000.0 * float(triton.testing.do_bench(call, warmup=25, rep=100, return_mode="median"))


def time_in_graph(call: Call) -> float:
    """Median microseconds of a call among many in a CUDA graph: no launch cost, warm cache."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        return 1000.0 * float(triton.testing.do_bench_cudagraph(call, rep=50, return_mode="median"))
