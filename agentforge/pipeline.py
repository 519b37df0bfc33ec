"""The order of the phases: pre-flight, resources, one phase after the other, gates, reports."""

from __future__ import annotations

import time

from agentforge.errors import ExitCode
from agentforge.events import Alert, PhaseEnded, PhaseStarted, TableDone
from agentforge.gates import missed
from agentforge.hardware import ResourceSampler
from agentforge.phases.bitnet.phase import run_bitnet
from agentforge.phases.cognate.artifacts import remove_controls
from agentforge.phases.cognate.phase import run_cognate
from agentforge.phases.evomerge.phase import run_evomerge
from agentforge.phases.quietstar.phase import run_quietstar
from agentforge.phases.resources import settle_resources
from agentforge.preflight import check_run, planned_phases, require
from agentforge.report import PhaseReport, build_report, save_phase_report
from agentforge.resources import TrainingResources
from agentforge.run.context import RunContext
from agentforge.run.storage import directory_bytes

PHASE_FUNCTIONS = {
    "cognate": run_cognate,
    "evomerge": run_evomerge,
    "quietstar": run_quietstar,
    "bitnet": run_bitnet,
}


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
        resources = settle_resources(context)
        for phase in todo:
            _run_phase(context, phase, resources)
    if config.storage.policy == "minimal":
        remove_controls(context)
    gates = build_report(context.layout).gates
    return ExitCode.GATE_MISSED if missed(gates) else ExitCode.OK


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
    return run(context, settle_resources(context, "cpu"))
