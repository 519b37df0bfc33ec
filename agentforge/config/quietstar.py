"""Configuration of Phase 3: reasoning data, prompt baking, reinforcement, checks of thoughts."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from agentforge.config.generator import GeneratorConfig
from agentforge.config.section import TUNABLE, Section, Share

STRATEGY_NAMES = (
    "chain_of_thought",
    "mece",
    "falsification",
    "expert",
    "orthogonal",
    "doubt",
    "bayesian",
    "multidomain",
    "correction",
    "uncertainty",
)
"""The ten strategies of Phase 3, in the order of their tokens."""


class ReasoningConfig(Section):
    """Where the thoughts come from that are baked."""

    path: str | None = Field(
        None,
        description="Folder of a generated set (`data generate`); empty: the built-in templates.",
    )
    train_items: int = Field(
        4000, ge=8, description="Built-in examples per strategy (documented: 2500 of each)."
    )
    corrupt_share: Share = Field(
        0.1, description="Share of built-in thoughts with one wrong step, followed to its end."
    )
    named_share: Share = Field(
        0.85, description="Share of built-in prompts that name their strategy in words."
    )
    search_items: int = Field(
        40, ge=8, description="Held-out problems per strategy that are looked at while training."
    )
    report_items: int = Field(
        150, ge=8, description="Held-out problems per strategy of the report."
    )


class BakingConfig(Section):
    """Step 1: supervised training on thoughts, easy strategies first."""

    steps: int = Field(300, ge=1, description="Optimiser steps (documented: 5 epochs).")
    batch_size: int = Field(
        0, ge=0, description="Sequences a step; 0: by the measured size (32, 16, 8, 4)."
    )
    replay: Share = Field(
        0.2, description="Share of a batch that repeats the skills of Phase 1: less is forgotten."
    )
    replay_mix: dict[str, float] = Field(
        {}, description="Shares of those skills or categories; empty: equal shares."
    )
    curriculum: tuple[Share, Share, Share] = Field(
        (0.1, 0.2, 1.0), description="Ends of the stages: easy strategies, with medium, all."
    )
    lr_share: float = Field(
        0.7, gt=0, le=10, description="Learning rates relative to Phase 1's (documented: .1)."
    )
    warmup_steps: int = Field(15, ge=0, description="Warm-up.")
    answer_weight: float = Field(
        3.0,
        gt=0,
        le=64,
        description="Weight of the answer's tokens in the loss: at 1 some models wrote right "
        "thoughts and answered at chance for 300 steps, at 6 thoughts came late (log.md).",
    )
    target: Share = Field(
        0.85, description="Converged share of free generations below which it trains on."
    )
    extension_steps: int = Field(60, ge=1, description="Steps of one extension.")
    max_extensions: int = Field(
        3, ge=0, description="Extensions at most, each with half the learning rate."
    )
    kl_steps: int = Field(
        0,
        ge=0,
        description="Further steps of Prompt Baking's KL form: the model asked for kl_strategy "
        "teaches the model that is not asked (arXiv 2409.13697).",
    )
    kl_strategy: str = Field(
        "chain_of_thought", description="Strategy whose request is baked in by those steps."
    )

    @field_validator("kl_strategy")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in STRATEGY_NAMES:
            raise ValueError(f"{name!r} is not one of {', '.join(STRATEGY_NAMES)}")
        return name


class ReinforceConfig(Section):
    """Step 2: several thoughts a question, rewarded by the answer."""

    steps: int = Field(40, ge=0, description="Optimiser steps (documented: 10,000 episodes).")
    prompts: int = Field(24, ge=1, description="Questions a step.")
    thoughts: int = Field(
        0, ge=0, le=64, description="Thoughts a question; 0: by the measured size (8, 6, 4)."
    )
    kl: float = Field(
        0.1,
        ge=0,
        le=10,
        description="Weight of the exact KL to the frozen baked model.",
        json_schema_extra=TUNABLE,
    )
    muon_lr: float = Field(2e-3, gt=0, le=1, description="Learning rate of hidden matrices.")
    adamw_lr: float = Field(
        3e-4, gt=0, le=1, description="Learning rate of everything else (documented: 5e-4)."
    )
    replay: float = Field(
        1.0,
        ge=0,
        le=8,
        description="Items of Phase 1's skills in every step, relative to its questions, and their "
        "weight in the loss (.25 lost 8 points of a skill in 40 steps).",
    )
    least_coherence: Share = Field(
        0.0,
        description="Samples whose thought's coherence (.4 semantic + .3 syntactic + .3 "
        "predictive) lies below teach nothing; 0: no filter (documented: .5). It is no reward.",
    )
    least_reward: Share = Field(0.3, description="Mean reward below which it bakes longer first.")
    most_reward: Share = Field(
        0.9, description="Mean reward above which the problems are too easy to learn from."
    )
    check_interval: int = Field(
        20, ge=1, description="Steps between anti-theater checks (documented: 1000)."
    )


class TokenLevelConfig(Section):
    """Quiet-STaR as published: thoughts at positions of ordinary text, trained and reported apart.

    It starts from the baked model and leaves the model that is handed on as it is.
    """

    steps: int = Field(0, ge=0, description="Optimiser steps; 0: not run.")
    text_tokens: int = Field(
        64, ge=16, le=4096, description="Tokens of a text; longer ones are cut to this."
    )
    batch_size: int = Field(4, ge=1, description="Texts a step.")
    places: int = Field(4, ge=1, description="Positions of a text that think.")
    thoughts: int = Field(
        0, ge=0, le=64, description="Thoughts a position; 0: by the measured size, at most 4."
    )
    length: int = Field(
        0, ge=0, le=64, description="Tokens of a thought; 0: by the measured size (20, 15, 12, 10)."
    )
    talk: int = Field(4, ge=1, le=64, description="True tokens predicted behind a thought.")
    lr: float = Field(1e-4, gt=0, le=1, description="AdamW's learning rate (the paper's 7B: 1e-6).")
    kl: float = Field(0.1, ge=0, le=10, description="Weight of the KL to the frozen model.")
    report_texts: int = Field(48, ge=1, description="Held-out texts the gain is measured on.")


class QuietStarConfig(Section):
    """Phase 3: the model learns to think, and the thinking is tested."""

    model: str | None = Field(
        None, description="Model file to start from; empty: the champion of this run's Phase 2."
    )
    data: ReasoningConfig = ReasoningConfig()
    generator: GeneratorConfig = GeneratorConfig()
    baking: BakingConfig = BakingConfig()
    reinforce: ReinforceConfig = ReinforceConfig()
    token_level: TokenLevelConfig = TokenLevelConfig()
    temperature: float = Field(
        1.0,
        gt=0,
        le=5,
        description="Deployment temperature: the generation default of chat and of all gates.",
    )
    max_new_tokens: int = Field(
        0,
        ge=0,
        le=4096,
        description="Tokens of thought and answer together at most; 0: twice the thought's length "
        "by the measured size (40, 30, 24, 20).",
    )
    votes: int = Field(8, ge=1, le=64, description="Thoughts of the majority vote in the report.")
    battery_items: int = Field(
        300, ge=8, description="Problems of the anti-theater tests before hand-off."
    )
    check_items: int = Field(
        60, ge=8, description="Problems of the same tests while the reinforcement runs."
    )
    control: bool = Field(
        True, description="Bake on for the reinforcement's compute, as the fair competitor."
    )
    threads: int = Field(
        0, ge=0, le=1024, description="CPU threads of this phase; 0: the run's own."
    )

    @model_validator(mode="after")
    def _window(self) -> QuietStarConfig:
        low, high = self.reinforce.least_reward, self.reinforce.most_reward
        if low >= high:
            raise ValueError(f"least_reward {low} must be below most_reward {high}")
        return self
