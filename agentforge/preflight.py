"""Checks before a run or a phase: everything that would stop it later, told at once and early.

The checks need no torch. Where the parameter count is not given it is estimated from the shapes;
the engine gives the measured one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from agentforge.config.schema import PhaseName, RunConfig
from agentforge.errors import AgentForgeError, PreflightError
from agentforge.gpu import GpuDriver, find_driver, used_card
from agentforge.hardware import disk_free, ram
from agentforge.resources import Machine, resolve_training
from agentforge.sizing import (
    approximate_params,
    checkpoint_bytes,
    longest_sequence,
    phase_disk_bytes,
)
from agentforge.tables import size_text

DISK_MARGIN = 1.5
"""Free disk asked for, as a multiple of the computed bytes."""

VOCAB_ROWS = {"gpt2": 50_269, "world": 512}
"""Embedding rows by tokenizer: GPT-2's with the twelve thinking tokens; the most a world has."""


@dataclass(frozen=True, slots=True)
class Check:
    """One check and its outcome.

    Attributes:
        name: What was looked at.
        ok: True when a run may start.
        detail: What was found, with numbers.
        remedy: What to do when it is not ok.
    """

    name: str
    ok: bool
    detail: str
    remedy: str = ""


def planned_phases(config: RunConfig) -> tuple[PhaseName, ...]:
    """The phases of a run, up to ``until``."""
    if config.until is None or config.until not in config.phases:
        return config.phases
    return config.phases[: config.phases.index(config.until) + 1]


def check_run(
    config: RunConfig,
    directory: Path,
    *,
    phases: Sequence[PhaseName] | None = None,
    n_params: int | None = None,
    vocab_size: int | None = None,
    bytes_written: int = 0,
    driver: GpuDriver | None = None,
) -> tuple[Check, ...]:
    """Look at everything; nothing is raised for what is found.

    Args:
        config: The run.
        directory: Where it writes: the run directory, or the folder of runs before there is one.
        phases: Phases still to do; default: all planned ones.
        n_params: Measured parameters; default: estimated from the shapes.
        vocab_size: Rows of the embedding; default: by tokenizer.
        bytes_written: What a resumed run has on disk already.
        driver: The cards' driver; default: NVML when there is one.
    """
    phases = planned_phases(config) if phases is None else phases
    rows = vocab_size or VOCAB_ROWS[config.tokenizer.kind]
    n_params = n_params or approximate_params(config.model, rows)
    return (
        _check_phases(config, phases),
        _check_write(directory),
        _check_disk(config, phases, n_params, directory, bytes_written),
        _check_device(config, driver),
        _check_memory(config, n_params, rows),
        _check_data(config),
    )


def require(checks: Iterable[Check]) -> None:
    """Go on only when every check is ok.

    Raises:
        PreflightError: Naming every failed check and what to do about each.
    """
    failed = [check for check in checks if not check.ok]
    if not failed:
        return
    if len(failed) == 1:
        raise PreflightError(f"{failed[0].name}: {failed[0].detail}", remedy=failed[0].remedy)
    lines = "\n".join(
        f"  {i}. {check.name}: {check.detail}\n     -> {check.remedy}"
        for i, check in enumerate(failed, 1)
    )
    raise PreflightError(f"{len(failed)} things are missing before this run can start:\n{lines}")


def disk_bytes_needed(config: RunConfig, phases: Sequence[PhaseName], n_params: int) -> int:
    """Bytes the phases write, computed from shapes and storage settings; no margin."""
    ablations = len(config.cognate.ablations)
    keep = config.storage.keep_last
    return sum(phase_disk_bytes(phase, n_params, keep, ablations) for phase in phases)


def _check_phases(config: RunConfig, phases: Sequence[PhaseName]) -> Check:
    if config.until is not None and config.until not in config.phases:
        return Check(
            "phases",
            False,
            f"until = {config.until} is not among phases = {', '.join(config.phases)}",
            f"add {config.until} to phases, or choose one of them",
        )
    return Check("phases", bool(phases), ", ".join(phases) or "none", "name at least one in phases")


def _check_write(directory: Path) -> Check:
    from agentforge.run.layout import check_writable

    here = directory.absolute()
    while not here.exists() and here != here.parent:
        here = here.parent
    return _ask("write permission", lambda: check_writable(here), f"{here} can be written")


def _check_disk(
    config: RunConfig,
    phases: Sequence[PhaseName],
    n_params: int,
    directory: Path,
    bytes_written: int,
) -> Check:
    computed = disk_bytes_needed(config, phases, n_params)
    # A resumed run has most of its files; it always needs room for two more checkpoints.
    needed = max(int(DISK_MARGIN * computed) - bytes_written, 2 * checkpoint_bytes(n_params))
    free = disk_free(directory)
    detail = (
        f"{size_text(needed)} needed ({DISK_MARGIN} x the {size_text(computed)} of models, "
        f"checkpoints and reports), {size_text(free)} free at {directory}"
    )
    remedy = (
        "free some space (agentforge-tui clean --dry-run lists old runs), choose another disk with "
        "--run-dir, or lower storage.keep_last"
    )
    return Check("disk", free >= needed, detail, remedy)


def _check_device(config: RunConfig, driver: GpuDriver | None) -> Check:
    card = used_card(driver or find_driver()) if config.resources.device != "cpu" else None
    if card is not None:
        detail = f"{card.name}, {size_text(card.free_bytes)} of {size_text(card.total_bytes)} free"
        return Check("device", True, detail)
    if config.resources.device == "cuda":
        return Check(
            "device",
            False,
            "resources.device = cuda, and the NVIDIA driver shows no usable card",
            "install the driver (nvidia-smi must work), check CUDA_VISIBLE_DEVICES, or "
            "--set resources.device=cpu",
        )
    return Check("device", True, "CPU")


def _check_memory(config: RunConfig, n_params: int, vocab_size: int) -> Check:
    available = ram().available
    budget = int(config.resources.memory_budget_gb * 1e9)
    if config.resources.device != "cuda" and budget > available:
        return Check(
            "memory",
            False,
            f"resources.memory_budget_gb asks for {size_text(budget)}, "
            f"{size_text(available)} are free",
            "lower it, set it to 0, or end other programs",
        )
    machine = Machine(cuda=False, bf16=False, free_bytes=available)
    resources = config.resources.model_copy(update={"device": "cpu"})
    return _ask(
        "memory",
        lambda: resolve_training(
            resources,
            config.model,
            n_params=n_params,
            vocab_size=vocab_size,
            batch_size=config.cognate.batch_size,
            sequence_length=longest_sequence(config),
            machine=machine,
            grokfast=config.cognate.optim.grokfast_lambda > 0,
        ),
        f"{size_text(available)} free",
    )


def _check_data(config: RunConfig) -> Check:
    """Names and folder only: a run reads the records themselves when it starts."""
    if config.data.source == "world":
        return Check("data", True, "the built-in world")
    from agentforge.data.sources import chosen_entries, data_folder

    def look() -> None:
        chosen_entries(config.data)
        if data_folder(config.data) is None and not config.data.use_hub:
            raise PreflightError(
                "data.source = records, with no data folder and data.use_hub = false",
                remedy="give the folder with --data-dir",
            )

    where = config.data.data_dir or "the hub and its cache"
    return _ask("data", look, f"records from {where}")


def _ask(name: str, look: Callable[[], object], found: str) -> Check:
    """A check that is ok unless `look` raises one of our errors."""
    try:
        look()
    except AgentForgeError as error:
        return Check(name, False, error.message, error.remedy)
    return Check(name, True, found)
