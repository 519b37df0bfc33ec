"""The order of the phases: pre-flight, resources, one phase after the other, gates, reports."""

from __future__ import annotations

import os
import time

import torch

from agentforge.config.schema import ResourceConfig
from agentforge.data.prepare import run_tokenizer
from agentforge.errors import ExitCode
from agentforge.events import Alert, LogLine, PhaseEnded, PhaseStarted, TableDone
from agentforge.gates import missed
from agentforge.gpu import wait_for_gpu
from agentforge.hardware import ResourceSampler, measure_machine
from agentforge.model.count import count_parameters
from agentforge.phases.cognate.phase import run_cognate
from agentforge.preflight import check_run, planned_phases, require
from agentforge.report import PhaseReport, build_report, save_phase_report
from agentforge.resources import TrainingResources, resolve_training
from agentforge.run.context import RunContext
from agentforge.run.manifest import Resolved
from agentforge.run.storage import directory_bytes
from agentforge.sizing import longest_sequence, training_memory

PHASE_FUNCTIONS = {"cognate": run_cognate}


def run_pipeline(context: RunContext) -> int:
    """Run every planned phase that is not done yet.

    Returns:
        `ExitCode.OK`, or `ExitCode.GATE_MISSED` when a gate of any phase is missed.

    Raises:
        PreflightError: Something is missing before a phase can start.
        RunSuspended, RunAborted, AgentForgeError: As the phases raise them.
    """
    config = context.config
    todo = [p for p in planned_phases(config) if context.manifest.phases[p].status != "done"]
    written = directory_bytes(context.layout.root)
    require(check_run(config, context.layout.root, phases=todo, bytes_written=written))
    sampler = ResourceSampler(
        context.emit, context.layout.root, interval_s=config.logging.resource_interval_s
    )
    with sampler:
        resources = _resources(context)
        for phase in todo:
            _run_phase(context, phase, resources)
    gates = build_report(context.layout).gates
    return ExitCode.GATE_MISSED if missed(gates) else ExitCode.OK


def _resources(context: RunContext, device: str | None = None) -> TrainingResources:
    """Resolve everything that is "auto", wait for a busy card, and note values with reasons.

    A resumed run keeps the values it began with: another micro-batch would change the last bits.
    """
    config = context.config
    wanted = config.resources
    if device is not None:
        wanted = ResourceConfig(**wanted.model_dump() | {"device": device})
    elif context.resumed:
        wanted = _as_before(context, wanted)
    threads = wanted.threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    vocab_size = run_tokenizer(config).vocab_size
    count = count_parameters(config.model, vocab_size)
    need = training_memory(config.model, count.total, vocab_size)
    machine = measure_machine(wanted.device)
    if machine.cuda:
        wait_for_gpu(need.state, timeout_s=wanted.gpu_wait_s, emit=context.emit)
        machine = measure_machine(wanted.device)
    resources = resolve_training(
        wanted,
        config.model,
        n_params=count.total,
        vocab_size=vocab_size,
        batch_size=config.cognate.batch_size,
        sequence_length=longest_sequence(config),
        machine=machine,
        grokfast=config.cognate.optim.grokfast_lambda > 0,
    )
    resolved = context.manifest.resolved
    reason = "asked for" if wanted.threads else "all cores this process may use"
    resolved["resources.threads"] = Resolved(value=threads, reason=reason)
    for name in resources.__dataclass_fields__:
        item = getattr(resources, name)
        resolved[f"resources.{name}"] = Resolved(value=item.value, reason=item.reason)
    context.save_manifest()
    for line in resources.lines():
        context.emit(LogLine(level="info", source="resources", text=line))
    return resources


def _as_before(context: RunContext, wanted: ResourceConfig) -> ResourceConfig:
    """What the run's first engine resolved, where the configuration says "auto"."""
    values = wanted.model_dump()
    noted = {
        name.removeprefix("resources."): r.value
        for name, r in context.manifest.resolved.items()
        if name.startswith("resources.")
    }
    checkpointing = noted.get("gradient_checkpointing")
    if values["gradient_checkpointing"] == "auto" and isinstance(checkpointing, bool):
        values["gradient_checkpointing"] = "on" if checkpointing else "off"
    if values["precision"] == "auto" and noted.get("device") == "cpu":
        values["precision"] = noted.get("precision", "auto")
    for name in ("micro_batch_tokens", "vocab_chunk", "threads"):
        if not values[name] and isinstance(noted.get(name), int):
            values[name] = noted[name]
    return ResourceConfig(**values)


def _run_phase(context: RunContext, phase: str, resources: TrainingResources) -> None:
    """One phase with its clock, gates and report."""
    record = context.manifest.phases[phase]
    record.status = "running"
    record.started = time.time()
    context.save_manifest()
    context.emit(PhaseStarted(phase=phase))
    try:
        report = _on_cpu_after_cuda_error(context, phase, resources)
    finally:
        record.wall_s += time.time() - record.started
        record.started = time.time()
        context.save_manifest()
    save_phase_report(context.layout, report)
    for table in report.tables:
        context.emit(
            TableDone(phase=phase, name=table.name, columns=table.columns, rows=table.rows)
        )
    for gate in report.gates:
        context.emit(gate.event())
    record.status = "done"
    record.ended = time.time()
    context.save_manifest()
    context.emit(
        PhaseEnded(
            phase=phase,
            gates_met=sum(g.status == "met" for g in report.gates),
            gates_missed=len(missed(report.gates)),
            wall_s=record.wall_s,
        )
    )


def _on_cpu_after_cuda_error(
    context: RunContext, phase: str, resources: TrainingResources
) -> PhaseReport:
    """Run a phase; when the GPU fails, go on from the last checkpoint on the CPU."""
    run = PHASE_FUNCTIONS[phase]
    try:
        return run(context, resources)
    except RuntimeError as error:
        if resources.device.value != "cuda" or "CUDA" not in str(error):
            raise
        context.emit(
            Alert(
                id=f"{phase}-cuda-error",
                level="error",
                code="cuda_error",
                title="The GPU failed; going on with the CPU",
                detail=str(error).splitlines()[0],
                cause="driver, hardware, or a kernel that does not fit the card",
            )
        )
    return run(context, _resources(context, "cpu"))
