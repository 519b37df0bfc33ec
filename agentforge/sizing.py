"""Every number that follows from the measured size of a model, in one place.

Two scales coexist in the mission's documents and both are kept: parameter counts (50M, 500M, 2B)
decide in phases 1 and 4, megabytes of FP32 weights (``n_params * 4 / 2**20``) in phases 2 and 3.
They do not agree: 100 MB is 26.2M parameters, so a 25M model lies just under the first boundary of
both, while a 33M model is ``tiny`` by count and in the second band by megabytes. Nothing here needs
torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from agentforge.config.schema import ModelConfig, PhaseName, RunConfig

CategoryName = Literal["tiny", "small", "medium", "large"]
Preserved = Literal["embeddings", "lm_head", "layer_norms"]


@dataclass(frozen=True, slots=True)
class SizeCategory:
    """What phases 1, 3 and 4 use for models of one range of parameter counts.

    Attributes:
        name: The category.
        below_params: Parameters from which the next category starts; inf for the last.
        batch_size: Sequences of one optimiser step (phases 1 and 3) the documents name.
        zero_threshold: Phase 4: share of the scale under which a weight becomes 0 (tau).
        target_compression: Phase 4: FP32 bytes over packed bytes that is aimed at.
        expected_sparsity: Phase 4: share of zero weights.
        expected_quantised: Phase 4: share of parameters that become ternary.
        calibration_samples: Phase 4: texts of the calibration.
        preserved: Phase 4: what stays in FP16.
        embedding_share: Share of the embedding in the model the documents claim, (low, high).
        least_compression: Phase 4: ratio under which the result is not accepted.
    """

    name: CategoryName
    below_params: float
    batch_size: int
    zero_threshold: float
    target_compression: float
    expected_sparsity: float
    expected_quantised: float
    calibration_samples: int
    preserved: tuple[Preserved, ...]
    embedding_share: tuple[float, float]
    least_compression: float


_KEPT: tuple[Preserved, ...] = ("embeddings", "lm_head", "layer_norms")

CATEGORIES: tuple[SizeCategory, ...] = (
    SizeCategory("tiny", 50e6, 32, 0.05, 6.0, 0.25, 0.80, 500, _KEPT, (0.15, 0.20), 6.0),
    SizeCategory("small", 500e6, 16, 0.10, 8.0, 0.35, 0.85, 1000, _KEPT[:2], (0.10, 0.15), 8.0),
    SizeCategory("medium", 2e9, 8, 0.15, 10.0, 0.40, 0.90, 2000, _KEPT[:2], (0.05, 0.10), 8.0),
    SizeCategory("large", math.inf, 4, 0.20, 12.0, 0.45, 0.95, 5000, _KEPT[:1], (0.02, 0.05), 8.0),
)
"""Rows of the documents' table, smallest first; a boundary belongs to the larger category."""


@dataclass(frozen=True, slots=True)
class ThoughtBand:
    """Phase 3 by megabytes: baking batch, thoughts sampled per prompt, tokens of a thought."""

    below_mb: float
    baking_batch: int
    thoughts: int
    thought_tokens: int


THOUGHT_BANDS: tuple[ThoughtBand, ...] = (
    ThoughtBand(100, 32, 8, 20),
    ThoughtBand(500, 16, 6, 15),
    ThoughtBand(2000, 8, 4, 12),
    ThoughtBand(math.inf, 4, 4, 10),
)


@dataclass(frozen=True, slots=True)
class FitnessBand:
    """Phase 2 by megabytes: weights of the fitness, which sum to 1."""

    below_mb: float
    perplexity: float
    accuracy: float
    speed: float
    memory: float


FITNESS_BANDS: tuple[FitnessBand, ...] = (
    FitnessBand(100, 0.5, 0.3, 0.1, 0.1),
    FitnessBand(1000, 0.4, 0.3, 0.2, 0.1),
    FitnessBand(math.inf, 0.4, 0.3, 0.15, 0.15),
)
"""The documents' size-dependent form; their fixed form is .4/.3/.2/.1 at every size."""

MEMORY_FACTOR: dict[str, float] = {
    "cognate": 4.0,
    "evomerge": 9.6,  # a population of 8 with 20 % on top
    "quietstar_bake": 4.0,
    "quietstar": 4.3,
    "bitnet": 2.0,
}
"""Documented memory of a phase as a multiple of the FP32 weights (activations not counted)."""


def size_mb(n_params: int) -> float:
    """Megabytes (2**20 bytes) of the FP32 weights."""
    return n_params * 4 / 2**20


def category(n_params: int) -> SizeCategory:
    """The size category of a measured parameter count.

    Raises:
        ValueError: `n_params` is not positive.
    """
    if n_params <= 0:
        raise ValueError(f"n_params {n_params} must be positive")
    return next(row for row in CATEGORIES if n_params < row.below_params)


def thought_band(n_params: int) -> ThoughtBand:
    """Phase 3's row for a measured parameter count, by megabytes."""
    return next(row for row in THOUGHT_BANDS if size_mb(n_params) < row.below_mb)


def answer_tokens(wanted: int, n_params: int) -> int:
    """Tokens of a thought with its answer at most: as asked for, or twice the band's thought."""
    return wanted or 2 * thought_band(n_params).thought_tokens


def fitness_band(n_params: int) -> FitnessBand:
    """Phase 2's row for a measured parameter count, by megabytes."""
    return next(row for row in FITNESS_BANDS if size_mb(n_params) < row.below_mb)


def documented_memory_mb(n_params: int, phase: str) -> float:
    """The documents' memory formula of a phase in MB; `training_memory` is ours.

    Raises:
        KeyError: No such phase in `MEMORY_FACTOR`.
    """
    return MEMORY_FACTOR[phase] * size_mb(n_params)


def documented_batch(n_params: int, memory_mb: float) -> tuple[int, int]:
    """The documents' safe batch: (sequences at once, accumulation steps).

    ``need = 4 size``, ``available = 0.9 memory``; when that does not fit, batch 1 and
    ``ceil(need / available)`` accumulation steps, else ``(available - need) / (0.1 size)``, at
    most 32. It never binds for a 25M model on 6 GB (539 before the cap), so the batch is in fact
    found by a probe; the rule is kept as the first guess on a card.

    Raises:
        ValueError: `memory_mb` is not positive.
    """
    if memory_mb <= 0:
        raise ValueError(f"memory_mb {memory_mb} must be positive")
    size = size_mb(n_params)
    need, available = 4 * size, 0.9 * memory_mb
    if need >= available:
        return 1, math.ceil(need / available)
    return max(1, min(32, int((available - need) / (0.1 * size)))), 1


@dataclass(frozen=True, slots=True)
class TrainingMemory:
    """Estimated memory of training one model, in bytes.

    Attributes:
        state: Weights, gradients and optimiser state (Muon's momentum, AdamW's two moments,
            Grokfast's slow gradient).
        per_token: Activations of one token, kept for the backward pass.
        per_token_checkpointed: The same with gradient checkpointing, block inputs only.
        recompute_per_token: One block's activations, which checkpointing recomputes.
        per_logit_token: Logits of one target token in fp32, which become their gradient in place,
            and one more copy (autocast, gathering).
    """

    state: int
    per_token: int
    per_token_checkpointed: int
    recompute_per_token: int
    per_logit_token: int


BACKWARD_MARGIN = 1.5
"""Peak over saved tensors: gradients of activations and workspaces live beside them."""


def training_memory(
    config: ModelConfig, n_params: int, vocab_size: int, *, grokfast: bool = True
) -> TrainingMemory:
    """Estimate training memory from shapes.

    A block keeps about 16 vectors of the model's width and 6 of the feed-forward's for its
    backward pass, a memory layer 18 maps a chunk and 20 vectors of its width. Against the storages
    that autograd really keeps (fp32) this is 4 to 27 % too high for the shipped presets.

    Args:
        config: Shapes.
        n_params: Measured parameter count.
        vocab_size: Rows of the embedding.
        grokfast: The filter keeps a slow gradient of the hidden matrices.
    """
    d, width, chunk = config.d_model, config.memory.width, config.memory.chunk
    executed = executed_blocks(config)
    block = 4 * (16 * d + 6 * config.ffn_width)
    memory = 4 * (18 * width * width // chunk + 20 * width)
    kept = executed * block + len(config.memory.layers) * memory
    steps = config.recursion_steps
    return TrainingMemory(
        state=(20 if grokfast else 16) * n_params,
        per_token=int(BACKWARD_MARGIN * kept),
        per_token_checkpointed=int(BACKWARD_MARGIN * 4 * d * (executed + steps)),
        recompute_per_token=int(
            BACKWARD_MARGIN * (block + (memory if config.memory.layers else 0))
        ),
        per_logit_token=8 * vocab_size,
    )


def approximate_params(config: ModelConfig, vocab_size: int) -> int:
    """Parameters from the shapes, within 1 %, where torch shall not be imported.

    The exact count is `agentforge.model.count.count_parameters`.
    """
    d, rank = config.d_model, config.embedding_rank
    width, gate = config.memory.width, config.memory.gate_rank
    embedding = vocab_size * rank + 2 * rank * d + rank + d
    block = 4 * d * d + 3 * d * config.ffn_width + 2 * d
    memory = 4 * d * width + 10 * width + 3 * d + 3 + 2 * d * gate + d
    rest = d * d + 5 * d
    blocks = config.n_prelude + config.n_core
    return embedding + blocks * block + len(config.memory.layers) * memory + rest


def longest_sequence(config: RunConfig) -> int:
    """Tokens of the longest training sequence: records are cut, the world's items are not."""
    if config.data.source == "world":
        return config.model.context
    return min(config.data.sequence_length, config.model.context)


def executed_blocks(config: ModelConfig) -> int:
    """Blocks one token passes when nobody halts: prelude plus core x steps x latent updates."""
    return config.n_prelude + config.n_core * config.recursion_steps * config.latent_steps


def checkpoint_bytes(n_params: int) -> int:
    """Upper bound of one checkpoint: fp32 weights and two state tensors a parameter.

    Hidden matrices have momentum and the slow gradient, the rest AdamW's two moments; without
    Grokfast hidden matrices have one less. 64 KiB cover the JSON beside the tensors.
    """
    return 12 * n_params + 65_536


def phase_disk_bytes(phase: PhaseName, n_params: int, keep_last: int, ablations: int) -> int:
    """Bytes a phase leaves on disk at its fullest moment, computed from what it writes.

    Phase 1: the base, three specialists and the ablated controls as weights, `keep_last`
    checkpoints, the best one and the one being written, and 32 MiB of events, tables and reports.
    Phase 2: the champion and its control; its checkpoints are recipes, and those of the control
    take the place of Phase 1's. The later phases write at most as much as Phase 1.
    """
    weights = 4 * n_params + 65_536
    if phase == "evomerge":
        return 2 * weights + 32 * 2**20
    models = 4 + (ablations if phase == "cognate" else 0)
    return models * weights + (keep_last + 2) * checkpoint_bytes(n_params) + 32 * 2**20
