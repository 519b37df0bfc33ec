"""The machine as it is: memory within container limits, disk, devices, and a sampling thread.

torch is imported only where a CUDA device must be asked; everything else works without it.
"""

from __future__ import annotations

import os
import platform
import shutil
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from agentforge.events import Event, LogLine, ResourceSample
from agentforge.gpu import GpuDriver, GpuState, find_driver, used_card
from agentforge.resources import Machine

UNLIMITED = 2**60
"""cgroup v1 writes a number near 2**63 for "no limit"."""


@dataclass(frozen=True, slots=True)
class Ram:
    """Memory this process can count on, in bytes.

    Attributes:
        total: Of the machine, or the container's limit when that is lower.
        available: What can still be taken without swapping.
        limited: True when a container's limit is the lower one.
    """

    total: int
    available: int
    limited: bool


@dataclass(frozen=True, slots=True)
class CgroupMemory:
    """A container's limit and what it uses of it (page cache that can be dropped left out)."""

    limit: int
    used: int


@dataclass(frozen=True, slots=True)
class VramParts:
    """Where the engine's own device memory goes, in bytes."""

    model: int
    optimizer: int
    activations: int


@dataclass(frozen=True, slots=True)
class HardwareSummary:
    """The machine for manifests and ``doctor``; fixed for the length of a run."""

    system: str
    python: str
    cpu: str
    cores: int
    """Cores this process may use."""
    ram_bytes: int
    ram_limited: bool
    gpus: tuple[str, ...]
    """Name and memory of each card."""
    gpu_driver: str | None
    torch: str | None
    """Version; None when torch cannot be imported."""
    cuda: str | None
    """CUDA version torch was built with; None for a CPU build."""
    cuda_usable: bool

    def row(self) -> dict[str, str | int | float | None]:
        """Flat, for the manifest; several cards are one text."""
        return {**asdict(self), "gpus": "; ".join(self.gpus) or None}


def cgroup_memory(
    root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> CgroupMemory | None:
    """The lowest memory limit over this process; None when there is none.

    A limit may sit on any parent group, so all of them are looked at. Version 2 keeps one tree
    with ``memory.max``, version 1 one under ``memory/`` with ``memory.limit_in_bytes``. Inside a
    container the membership names a path of the host; then the mounted root is the own group.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    lowest: CgroupMemory | None = None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, limit_file, usage_file, cache_key = (
                root,
                "memory.max",
                "memory.current",
                "inactive_file",
            )
        elif "memory" in controllers.split(","):
            base, limit_file, usage_file, cache_key = (
                root / "memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            )
        else:
            continue
        own = base / path.lstrip("/")
        for group in [own, *own.parents]:
            limit = _number(group / limit_file)
            if limit is not None and limit < UNLIMITED:
                used = (_number(group / usage_file) or 0) - _stat(group / "memory.stat", cache_key)
                found = CgroupMemory(limit, max(0, used))
                if lowest is None or found.limit - found.used < lowest.limit - lowest.used:
                    lowest = found
            if group == base:
                break
    return lowest


def ram(cgroup: CgroupMemory | None = None) -> Ram:
    """Memory of the machine, or of the container when its limit is lower."""
    cgroup = cgroup or cgroup_memory()
    machine = psutil.virtual_memory()
    if cgroup is None or cgroup.limit >= machine.total:
        return Ram(machine.total, machine.available, False)
    free = max(0, cgroup.limit - cgroup.used)
    return Ram(cgroup.limit, min(machine.available, free), True)


def usable_cores() -> int:
    """Cores this process may run on (affinity respected)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def disk_free(path: Path) -> int:
    """Free bytes of the file system that holds `path` or its nearest existing parent."""
    here = path.absolute()
    while not here.exists() and here != here.parent:
        here = here.parent
    return shutil.disk_usage(here).free


def sample(
    disk_path: Path,
    *,
    driver: GpuDriver | None = None,
    process: psutil.Process | None = None,
    vram: VramParts | None = None,
) -> ResourceSample:
    """What the machine is doing now; card fields are None without a card.

    Args:
        disk_path: The run directory.
        driver: The cards' driver, from `find_driver`.
        process: The engine; keep one object, for its CPU share counts from the last call.
        vram: The engine's own account of device memory.
    """
    process = process or psutil.Process()
    memory = ram()
    card = used_card(driver)
    return ResourceSample(
        rss_bytes=process.memory_info().rss,
        ram_used_bytes=memory.total - memory.available,
        ram_total_bytes=memory.total,
        disk_free_bytes=disk_free(disk_path),
        cpu_percent=process.cpu_percent() / max(1, usable_cores()),
        vram_model_bytes=vram.model if vram else None,
        vram_optimizer_bytes=vram.optimizer if vram else None,
        vram_activations_bytes=vram.activations if vram else None,
        vram_used_bytes=card.used_bytes if card else None,
        vram_total_bytes=card.total_bytes if card else None,
        gpu_percent=card.percent if card else None,
        temperature_c=card.temperature_c if card else _cpu_temperature(),
    )


class ResourceSampler:
    """A thread that emits a `ResourceSample` now and every `interval_s` seconds.

    A sample that fails is told once as a log line and does not stop the run.

    Args:
        emit: Where samples go; must be safe to call from another thread.
        disk_path: The run directory.
        interval_s: Seconds between samples.
        vram: Asked for the engine's own account of device memory.
        driver: The cards' driver; default: NVML when there is one.
    """

    def __init__(
        self,
        emit: Callable[[Event], None],
        disk_path: Path,
        *,
        interval_s: float,
        vram: Callable[[], VramParts | None] = lambda: None,
        driver: GpuDriver | None = None,
    ) -> None:
        self._emit = emit
        self._disk_path = disk_path
        self._interval_s = interval_s
        self._vram = vram
        self._driver = driver or find_driver()
        self._process = psutil.Process()
        self._process.cpu_percent()  # the first call only starts the count
        self._stop = threading.Event()
        self._complained = False
        self._thread = threading.Thread(target=self._run, name="resources", daemon=True)

    def __enter__(self) -> ResourceSampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)

    def _run(self) -> None:
        while True:
            self.once()
            if self._stop.wait(self._interval_s):
                return

    def once(self) -> None:
        """Take and emit one sample."""
        try:
            event: Event = sample(
                self._disk_path, driver=self._driver, process=self._process, vram=self._vram()
            )
        except (OSError, psutil.Error) as error:
            if self._complained:
                return
            self._complained = True
            event = LogLine(level="warning", source="resources", text=f"cannot be sampled: {error}")
        self._emit(event)


def summarise(driver: GpuDriver | None = None, *, with_torch: bool = True) -> HardwareSummary:
    """The machine in one record; `with_torch` imports torch to tell of CUDA."""
    driver = driver or find_driver()
    memory = ram()
    version = cuda = None
    usable = False
    if with_torch:
        try:
            import torch
        except ImportError:
            pass
        else:
            version, cuda = str(torch.__version__), torch.version.cuda
            usable = torch.cuda.is_available()
    cards = driver.cards() if driver else []
    return HardwareSummary(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        cpu=cpu_name(),
        cores=usable_cores(),
        ram_bytes=memory.total,
        ram_limited=memory.limited,
        gpus=tuple(f"{c.name}, {c.total_bytes / 1e9:.1f} GB" for c in cards),
        gpu_driver=driver.version if driver else None,
        torch=version,
        cuda=cuda,
        cuda_usable=usable,
    )


def measure_machine(device: str, driver: GpuDriver | None = None) -> Machine:
    """What `agentforge.resources` decides from; `device` as in ``resources.device``."""
    import torch

    cuda = device != "cpu" and torch.cuda.is_available()
    if not cuda:
        return Machine(cuda=False, bf16=False, free_bytes=ram().available)
    card: GpuState | None = used_card(driver or find_driver())
    free = card.free_bytes if card else int(torch.cuda.mem_get_info()[0])
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return Machine(cuda=True, bf16=bf16, free_bytes=free)


def cpu_name() -> str:
    """The processor as it names itself."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _cpu_temperature() -> float | None:
    """Hottest CPU sensor; None on machines that show none (most virtual ones)."""
    read = getattr(psutil, "sensors_temperatures", None)
    if read is None:
        return None
    found = read()
    for chip in ("coretemp", "k10temp", "cpu_thermal"):
        values = [t.current for t in found.get(chip, []) if t.current]
        if values:
            return float(max(values))
    return None


def _number(path: Path) -> int | None:
    """The integer in a file; None for "max" and for files that are not there."""
    try:
        return int(path.read_text().strip())
    except (OSError, ValueError):
        return None


def _stat(path: Path, key: str) -> int:
    try:
        for line in path.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == key:
                return int(value)
    except (OSError, ValueError):
        pass
    return 0
