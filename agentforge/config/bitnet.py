"""Configuration of Phase 4: calibration, staged quantisation, fine-tuning, pruning, packing."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from agentforge.config.section import Section, Share


class CalibrationConfig(Section):
    """How much each matrix suffers when it alone becomes ternary."""

    samples: int = Field(
        0,
        ge=0,
        description="Held-out items of the sensitivity scan; 0: by the measured size (500, 1000, "
        "2000, 5000).",
    )


class FinetuneConfig(Section):
    """Quantisation-aware training with the Phase 3 model as teacher."""

    steps: int = Field(150, ge=0, description="Optimiser steps (documented: 2 epochs).")
    batch_size: int = Field(128, ge=1, description="Sequences a step.")
    optimizer: Literal["adamw", "hybrid"] = Field(
        "adamw",
        description="adamw, or hybrid: Muon x Grokfast for hidden matrices as in Phase 1. Muon's "
        "steps have one size for the whole matrix and flip many codes each.",
    )
    adamw_lr: float = Field(
        2e-3, gt=0, le=1, description="AdamW's learning rate (documented: 1e-5, far too low)."
    )
    muon_lr: float = Field(0.02, gt=0, le=1, description="Muon's learning rate, for hybrid.")
    grokfast_lambda: float = Field(
        0.0, ge=0, le=10, description="Grokfast's strength, for hybrid (documented: 2.0)."
    )
    warmup_steps: int = Field(10, ge=0, description="Warm-up.")
    cooldown_share: Share = Field(
        0.5, description="Last share of the steps in which the learning rate falls to its end."
    )
    thoughts: Share = Field(
        0.6, description="Share of a batch that thinks; the rest are the skills of Phase 1."
    )
    label_share: Share = Field(
        0.0, description="Share of the labels in the targets; the rest is the teacher's."
    )
    answer_weight: float = Field(
        3.0, gt=0, le=64, description="Weight of the tokens of answers behind a thought."
    )
    halting_weight: float = Field(
        0.2, ge=0, le=10, description="Weight of the distance to the teacher's halting."
    )


class QuantiseConfig(Section):
    """What becomes ternary, when, and what is done when it hurts."""

    threshold: float = Field(
        0.5,
        ge=0,
        le=2,
        description="Share of the mean magnitude up to which a weight becomes 0: 0.5 is the "
        "paper's rounding; 0: the documented value of the measured size (.05, .10, .15, .20).",
    )
    norms: bool = Field(
        True, description="Norms before the output and down projections (SubLN), as BitNet 2B4T."
    )
    stages: int = Field(
        3, ge=1, le=64, description="Groups of matrices, in the order of their sensitivity."
    )
    ramp: Share = Field(
        0.5, description="Share of a stage's steps in which its strength rises from 0 to 1."
    )
    staged_share: Share = Field(
        0.5, description="Share of the fine-tuning in which the stages follow each other."
    )
    loss_budget: float = Field(
        0.3,
        ge=0,
        description="Held-out loss in nats a token that a stage may add, beyond two standard "
        "errors, before it is trained again or reverted.",
    )
    retries: int = Field(
        1, ge=0, le=10, description="Times a stage over its budget is trained on before it reverts."
    )
    pruned_tiles: float = Field(
        0.25,
        ge=0,
        lt=1,
        description="Share of the 64 x 16 tiles that are pruned while fine-tuning, smallest first.",
    )
    requantisations: int = Field(
        1,
        ge=0,
        le=8,
        description="Times the threshold is raised by half where both the zeros and the "
        "compression stay below their targets.",
    )
    least_sparsity: Share = Field(0.30, description="Share of zero weights that is aimed at.")


class BitNetConfig(Section):
    """Phase 4: ternary weights, staged and checked, packed for the compiled kernels."""

    model: str | None = Field(
        None, description="Model file to start from; empty: the reasoner of this run's Phase 3."
    )
    calibration: CalibrationConfig = CalibrationConfig()
    quantise: QuantiseConfig = QuantiseConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    accuracy_drop: Share = Field(
        0.10,
        description="Relative loss of accuracy from which it falls back to the conservative form.",
    )
    int8_embedding: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Embedding table in int8 with a scale a row instead of FP16; auto: where the "
        "compression stays below its target otherwise.",
    )
    report_items: int = Field(
        50, ge=4, description="Questions per strategy of the comparison before and after."
    )
    control: bool = Field(
        True, description="Give a full-precision copy the same further training, for comparison."
    )
    agreement_tokens: int = Field(
        10_000, ge=100, description="Held-out tokens on which packed model and twin are compared."
    )
