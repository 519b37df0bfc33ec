"""The machine's share of a run: device, precision, threads and memory, settled before a phase."""

from __future__ import annotations

import os

import torch

from agentforge.config.schema import ResourceConfig, RunConfig
from agentforge.data.prepare import run_tokenizer
from agentforge.events import LogLine
from agentforge.gpu import wait_for_gpu
from agentforge.hardware import measure_machine
from agentforge.model.count import count_parameters
from agentforge.resources import TrainingResources, resolve_training
from agentforge.run.context import RunContext
from agentforge.run.manifest import Resolved
from agentforge.sizing import longest_sequence, training_memory


def settle_resources(context: RunContext, device: str | None = None) -> TrainingResources:
    """Resolve everything that is "auto", wait for a busy card, and note values with reasons.

    A resumed run keeps the values it began with: another micro-batch would change the last bits.
    """
    config = context.config
    wanted = config.resources
    if device is not None:
        wanted = ResourceConfig(**wanted.model_dump() | {"device": device})
    elif context.resumed:
        wanted = as_before(context)
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
    threads = _threads(config, wanted, resources.device.value)
    torch.set_num_threads(int(str(threads.value)))
    resolved["resources.threads"] = threads
    for name in resources.__dataclass_fields__:
        item = getattr(resources, name)
        resolved[f"resources.{name}"] = Resolved(value=item.value, reason=item.reason)
    context.save_manifest()
    for line in resources.lines():
        context.emit(LogLine(level="info", source="resources", text=line))
    return resources


def _threads(config: RunConfig, wanted: ResourceConfig, device: str) -> Resolved:
    """CPU threads of this engine: half the cores where controls train beside it."""
    cores = len(os.sched_getaffinity(0))
    if wanted.threads:
        return Resolved(value=wanted.threads, reason="asked for")
    if controls_beside(config, device):
        reason = f"half of {cores} cores: the controls train on the other"
        return Resolved(value=max(1, cores // 2), reason=reason)
    return Resolved(value=cores, reason="all cores this process may use")


def controls_beside(config: RunConfig, device: str) -> bool:
    """Whether Phase 1's controls get a process of their own: on a CPU with two cores or more."""
    if not config.cognate.ablations or config.cognate.side_process == "off":
        return False
    cores = len(os.sched_getaffinity(0))
    return config.cognate.side_process == "on" or (device == "cpu" and cores >= 2)


def as_before(context: RunContext) -> ResourceConfig:
    """What the run's first engine resolved, where the configuration says "auto"."""
    values = context.config.resources.model_dump()
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
