"""What "auto" means: device, precision, memory budget, micro-batch, checkpointing, logit chunk.

Pure decisions from measured numbers, each with its reason; the results go into the run's manifest.
On a CUDA device the micro-batch found here is a first guess that a real step confirms: when it runs
out of memory, `next_micro_batch_after_oom` says what to try next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from agentforge.config.schema import ModelConfig, ResourceConfig
from agentforge.errors import PreflightError
from agentforge.sizing import TrainingMemory, training_memory

T = TypeVar("T")
Device = Literal["cpu", "cuda"]
Precision = Literal["fp32", "bf16", "fp16"]

FREE_SHARE = 0.9
"""Share of the free memory that a run may use when nothing is said."""

LOGIT_SHARE = 8
LOGIT_BYTES: dict[Device, int] = {"cpu": 32 * 2**20, "cuda": 512 * 2**20}
"""Logits get an eighth of the budget and no more than this: larger chunks bring no speed. On a CPU
16 to 64 tokens of GPT-2's vocabulary are fastest (0.20 to 0.23 s for 512 tokens; 256: 0.28 s)."""

CPU_ACTIVATION_BYTES = 2 * 2**30
"""On a CPU more activations than this bring no speed (batch 128 and 256 measured alike)."""

LEAST_CHUNK, MOST_CHUNK = 64, 8192


@dataclass(frozen=True, slots=True)
class Resolved(Generic[T]):
    """A value and why it is that."""

    value: T
    reason: str


@dataclass(frozen=True, slots=True)
class Machine:
    """What the decisions need to know of the machine.

    Attributes:
        cuda: A CUDA device can be used.
        bf16: That device computes in bf16.
        free_bytes: Free memory where training happens (VRAM, else RAM within the cgroup).
    """

    cuda: bool
    bf16: bool
    free_bytes: int


@dataclass(frozen=True, slots=True)
class TrainingResources:
    """All resolved values of one training."""

    device: Resolved[Device]
    precision: Resolved[Precision]
    memory_bytes: Resolved[int]
    vocab_chunk: Resolved[int]
    """Target tokens whose logits exist at once; 0: all."""
    gradient_checkpointing: Resolved[bool]
    micro_batch_tokens: Resolved[int]
    """Tokens of one forward and backward, a whole number of sequences."""

    def lines(self) -> list[str]:
        """One line a value, for logs and ``--dry-run``."""
        return [
            f"{name}: {item.value} ({item.reason})"
            for name in self.__dataclass_fields__
            for item in (getattr(self, name),)
        ]


def resolve_training(
    resources: ResourceConfig,
    model: ModelConfig,
    *,
    n_params: int,
    vocab_size: int,
    batch_size: int,
    sequence_length: int,
    machine: Machine,
    grokfast: bool = True,
) -> TrainingResources:
    """Decide everything that is "auto".

    Args:
        resources: What was asked for.
        model: Shapes.
        n_params: Measured parameter count.
        vocab_size: Rows of the embedding.
        batch_size: Sequences of one optimiser step.
        sequence_length: Longest sequence in tokens.
        machine: The machine as measured.
        grokfast: The optimiser keeps a slow gradient.

    Raises:
        PreflightError: CUDA was asked for and is not there, or one sequence does not fit.
    """
    device = resolve_device(resources, machine)
    precision = resolve_precision(resources, device.value, machine.bf16)
    budget = resolve_memory(resources, machine.free_bytes)
    need = training_memory(model, n_params, vocab_size, grokfast=grokfast)
    batch_tokens = batch_size * sequence_length
    chunk = resolve_vocab_chunk(resources, need, budget.value, batch_tokens, device.value)
    logits = need.per_logit_token * min(chunk.value or batch_tokens, batch_tokens)
    room = budget.value - need.state - logits
    if room < sequence_length * (need.per_token_checkpointed + need.recompute_per_token):
        raise PreflightError(
            f"one sequence of {sequence_length} tokens does not fit into {_gb(budget.value)}: "
            f"weights and optimiser {_gb(need.state)}, logits {_gb(logits)}",
            remedy="lower data.sequence_length or model shapes, set resources.vocab_chunk, or "
            "raise resources.memory_budget_gb",
        )
    checkpointing = _checkpointing(resources, need, room, batch_size, sequence_length)
    if device.value == "cpu":
        room = min(room, CPU_ACTIVATION_BYTES)
    micro = _micro_batch(
        resources, need, room, checkpointing.value, batch_tokens, sequence_length, device.value
    )
    return TrainingResources(device, precision, budget, chunk, checkpointing, micro)


def resolve_device(resources: ResourceConfig, machine: Machine) -> Resolved[Device]:
    """Where to train.

    Raises:
        PreflightError: CUDA was asked for and is not there.
    """
    if resources.device == "cuda" and not machine.cuda:
        raise PreflightError(
            "resources.device = 'cuda', and no CUDA device can be used",
            remedy="set resources.device=cpu, or see `agentforge-tui doctor` for what is missing",
        )
    if resources.device != "auto":
        return Resolved(resources.device, "asked for")
    if machine.cuda:
        return Resolved("cuda", "a CUDA device is there")
    return Resolved("cpu", "no CUDA device")


def resolve_precision(resources: ResourceConfig, device: Device, bf16: bool) -> Resolved[Precision]:
    """Autocast type: what was asked for, else bf16 where the card has it, fp16 else."""
    if resources.precision != "auto":
        return Resolved(resources.precision, "asked for")
    if device == "cpu":
        return Resolved("fp32", "exact and as fast as bf16 on most CPUs")
    if bf16:
        return Resolved("bf16", "the card computes in bf16")
    return Resolved("fp16", "the card lacks bf16; with loss scaling")


def resolve_memory(resources: ResourceConfig, free_bytes: int) -> Resolved[int]:
    """Bytes the run may use: what was asked for, else 90 % of what is free."""
    if resources.memory_budget_gb > 0:
        return Resolved(int(resources.memory_budget_gb * 1e9), "asked for")
    return Resolved(int(FREE_SHARE * free_bytes), f"90 % of the {_gb(free_bytes)} that are free")


def resolve_vocab_chunk(
    resources: ResourceConfig,
    need: TrainingMemory,
    budget_bytes: int,
    batch_tokens: int,
    device: Device,
) -> Resolved[int]:
    """Target tokens whose logits exist at once: a power of two in 64..8192, or 0 for all."""
    if resources.vocab_chunk:
        return Resolved(resources.vocab_chunk, "asked for")
    room = min(budget_bytes // LOGIT_SHARE, LOGIT_BYTES[device])
    per_token = need.per_logit_token
    if batch_tokens * per_token <= room:
        return Resolved(0, f"logits of the whole batch fit into {_gb(room)}")
    fits = max(LEAST_CHUNK, min(MOST_CHUNK, room // per_token))
    chunk = 1 << (fits.bit_length() - 1)
    return Resolved(chunk, f"{_gb(chunk * per_token)} of logits at once, of {_gb(room)} for them")


def next_micro_batch_after_oom(tokens: int, sequence_length: int) -> int | None:
    """Half the micro-batch in whole sequences; None when it is one sequence already.

    Raises:
        ValueError: `sequence_length` is not positive.
    """
    if sequence_length <= 0:
        raise ValueError(f"sequence_length {sequence_length} must be positive")
    sequences = tokens // sequence_length
    return None if sequences <= 1 else (sequences // 2) * sequence_length


def accumulation_steps(batch_tokens: int, micro_batch_tokens: int) -> int:
    """Forward and backward passes of one optimiser step."""
    return max(1, -(-batch_tokens // micro_batch_tokens))


def _checkpointing(
    resources: ResourceConfig,
    need: TrainingMemory,
    room: int,
    batch_size: int,
    sequence_length: int,
) -> Resolved[bool]:
    if resources.gradient_checkpointing != "auto":
        return Resolved(resources.gradient_checkpointing == "on", "asked for")
    wanted = min(batch_size, 4)
    cost = wanted * sequence_length * need.per_token
    if cost <= room:
        return Resolved(False, f"{wanted} sequences keep {_gb(cost)}, which fits {_gb(room)}")
    return Resolved(True, f"{wanted} sequences would keep {_gb(cost)}, more than {_gb(room)}")


def _micro_batch(
    resources: ResourceConfig,
    need: TrainingMemory,
    room: int,
    checkpointing: bool,
    batch_tokens: int,
    sequence_length: int,
    device: Device,
) -> Resolved[int]:
    if resources.micro_batch_tokens:
        whole = max(1, resources.micro_batch_tokens // sequence_length) * sequence_length
        return Resolved(min(whole, batch_tokens), "asked for, in whole sequences")
    per_token = need.per_token
    if checkpointing:
        per_token = need.per_token_checkpointed + need.recompute_per_token
    sequences = max(1, room // (per_token * sequence_length))
    tokens = min(batch_tokens, sequences * sequence_length)
    bound = "the whole batch" if tokens == batch_tokens else f"what {_gb(room)} of activations hold"
    probe = "" if device == "cpu" else "; confirmed by a real step"
    return Resolved(tokens, f"{bound}, {per_token / 1e3:.0f} kB a token{probe}")


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB"
