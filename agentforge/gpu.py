"""What the GPU's driver says: free memory of all users, load, temperature. No torch.

A process sees only its own allocations through torch; whether a card is busy is known to the driver
alone (NVML). Everything here answers "no GPU" when there is no card, no driver or no NVML.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from agentforge.errors import PreflightError
from agentforge.events import Event, LogLine


@dataclass(frozen=True, slots=True)
class GpuState:
    """One card now.

    Attributes:
        index: Its number in the driver's order.
        uuid: Its name for CUDA_VISIBLE_DEVICES.
        name: Product name.
        total_bytes: Memory of the card.
        free_bytes: Memory nobody uses.
        percent: Load; None when the card does not tell.
        temperature_c: Degrees Celsius; None when the card does not tell.
    """

    index: int
    uuid: str
    name: str
    total_bytes: int
    free_bytes: int
    percent: float | None = None
    temperature_c: float | None = None

    @property
    def used_bytes(self) -> int:
        """Memory in use by everyone."""
        return self.total_bytes - self.free_bytes


class GpuDriver(Protocol):
    """Where card states come from; tests bring their own."""

    version: str

    def cards(self) -> list[GpuState]:
        """All cards now."""
        ...


class NvmlDriver:
    """NVIDIA's management library.

    Raises:
        OSError: No library, no driver or no permission.
    """

    def __init__(self) -> None:
        try:
            import pynvml
        except ImportError as error:
            raise OSError("the package nvidia-ml-py is not installed") from error
        self._nvml: Any = pynvml
        try:
            pynvml.nvmlInit()
            self.version = _text(pynvml.nvmlSystemGetDriverVersion())
        except pynvml.NVMLError as error:
            raise OSError(f"NVML: {error}") from error

    def cards(self) -> list[GpuState]:
        """All cards now; empty when the driver has gone away."""
        nvml = self._nvml
        found = []
        try:
            for index in range(nvml.nvmlDeviceGetCount()):
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                memory = nvml.nvmlDeviceGetMemoryInfo(handle)
                load = self._optional(nvml.nvmlDeviceGetUtilizationRates, handle)
                degrees = self._optional(
                    nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU
                )
                found.append(
                    GpuState(
                        index=index,
                        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
                        name=_text(nvml.nvmlDeviceGetName(handle)),
                        total_bytes=int(memory.total),
                        free_bytes=int(memory.free),
                        percent=None if load is None else float(load.gpu),
                        temperature_c=None if degrees is None else float(degrees),
                    )
                )
        except nvml.NVMLError:
            return found
        return found

    def _optional(self, read: Callable[..., Any], *args: Any) -> Any:
        """A value that older cards and virtual ones do not tell: then None."""
        try:
            return read(*args)
        except self._nvml.NVMLError:
            return None


def find_driver() -> GpuDriver | None:
    """NVML when it works here, else None."""
    try:
        return NvmlDriver()
    except OSError:
        return None


def used_card(driver: GpuDriver | None, visible: str | None = None) -> GpuState | None:
    """The card CUDA calls device 0; None when there is none.

    Args:
        driver: Where to look.
        visible: CUDA_VISIBLE_DEVICES; default: the environment's. Numbers are taken in the
            driver's order, which is CUDA's with CUDA_DEVICE_ORDER=PCI_BUS_ID or equal cards.
    """
    if driver is None:
        return None
    cards = driver.cards()
    if visible is None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return cards[0] if cards else None
    first = visible.split(",")[0].strip()
    for card in cards:
        if first == str(card.index) or (first.startswith("GPU-") and card.uuid.startswith(first)):
            return card
    return None


def wait_for_gpu(
    free_bytes_needed: int,
    *,
    timeout_s: float,
    driver: GpuDriver | None = None,
    poll_s: float = 60.0,
    emit: Callable[[Event], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Wait until the card has enough free memory, by the driver's count of all users.

    Args:
        free_bytes_needed: What the run needs.
        timeout_s: How long to wait at most.
        driver: Default: NVML.
        poll_s: Seconds between two looks.
        emit: Told when the wait begins and ends.
        stop: Asked at every look; True gives up the wait.
        clock: Monotonic seconds.
        sleep: How to wait.

    Returns:
        True when the memory is free (or nobody can tell, as without NVML); False when `stop` asked
        to give up.

    Raises:
        PreflightError: Still busy after `timeout_s`, or the card is too small.
    """
    driver = find_driver() if driver is None else driver
    began = clock()
    told = False
    while True:
        card = used_card(driver)
        if card is None:
            return True
        if card.total_bytes < free_bytes_needed:
            raise PreflightError(
                f"GPU {card.index} ({card.name}) has {card.total_bytes / 1e9:.1f} GB, "
                f"{free_bytes_needed / 1e9:.1f} GB are needed",
                remedy="lower resources.micro_batch_tokens, or set resources.device=cpu",
            )
        if card.free_bytes >= free_bytes_needed:
            if told and emit is not None:
                emit(_line("info", f"GPU {card.index} is free after {clock() - began:.0f} s"))
            return True
        state = (
            f"GPU {card.index} ({card.name}) has {card.free_bytes / 1e9:.1f} of "
            f"{card.total_bytes / 1e9:.1f} GB free, {free_bytes_needed / 1e9:.1f} GB are needed"
        )
        waited = clock() - began
        if waited >= timeout_s:
            raise PreflightError(
                f"{state}, after waiting {waited:.0f} s",
                remedy="stop the other user of the card (nvidia-smi names it), raise "
                "resources.gpu_wait_s, or set resources.device=cpu",
            )
        if not told and emit is not None:
            emit(_line("warning", f"{state}: waiting up to {timeout_s:.0f} s"))
        told = True
        if stop():
            return False
        sleep(min(poll_s, max(0.0, timeout_s - waited)))


def _line(level: Any, text: str) -> LogLine:
    return LogLine(level=level, source="gpu", text=text)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
