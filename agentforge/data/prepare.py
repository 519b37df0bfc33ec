"""From configuration to encoded corpora: the one place that knows both sources of data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agentforge.config.schema import Mix, RunConfig
from agentforge.data.corpus import Corpus, encode
from agentforge.data.curriculum import CurriculumSource, stage_weights
from agentforge.data.example import Example
from agentforge.data.registry import Stage
from agentforge.data.sources import DataInventory, load_datasets
from agentforge.data.splits import SPLITS, Split
from agentforge.data.tokenizers import TextTokenizer, load_gpt2
from agentforge.data.world import KINDS, generate
from agentforge.data.world_tokenizer import world_tokenizer

WORLD_STAGES: dict[str, Stage] = {"dialogue": 2}
"""Curriculum stage of the world's kinds; what is not named is there from the start."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything a phase trains and measures on.

    Attributes:
        tokenizer: The run's tokenizer.
        train: Training corpora by dataset or skill.
        held_out: Held-out corpora by split, then by dataset or skill.
        examples: Held-out examples of the report split (choice and generation tasks need text).
        sources: What the curriculum mixes.
        inventory: What was found where; None for the built-in world.
    """

    tokenizer: TextTokenizer
    train: dict[str, Corpus]
    held_out: dict[Split, dict[str, Corpus]]
    examples: dict[str, list[Example]]
    sources: tuple[CurriculumSource, ...]
    inventory: DataInventory | None
    replay: float

    def weights(self, mix: Mix, stage: Stage) -> dict[str, float]:
        """Share of each training corpus in a batch of one curriculum stage; sums to 1."""
        return stage_weights(stage, self.sources, mix, self.replay)

    def categories(self) -> list[str]:
        """Categories (skills of the world) in a fixed order."""
        return list(dict.fromkeys(s.category for s in self.sources))


def run_tokenizer(config: RunConfig) -> TextTokenizer:
    """The tokenizer a run uses.

    Raises:
        DataError: GPT-2's was not found.
    """
    if config.tokenizer.kind == "world":
        return world_tokenizer()
    return load_gpt2(config.tokenizer.path, config.data.data_dir, use_hub=config.data.use_hub)


def prepare(config: RunConfig) -> Prepared:
    """Load or generate, split and encode all data of a run.

    The last result is kept: phases of one process share it (nothing changes it).

    Raises:
        DataError: See `load_datasets` and `run_tokenizer`.
    """
    key = (
        config.seed,
        config.model.context,
        config.tokenizer.model_dump_json(),
        config.data.model_dump_json(),
    )
    if key not in _LAST:
        found = _prepare(config)
        _LAST.clear()
        _LAST[key] = found
    return _LAST[key]


_LAST: dict[tuple[int, int, str, str], Prepared] = {}


def _prepare(config: RunConfig) -> Prepared:
    tokenizer = run_tokenizer(config)
    if config.data.source == "world":
        return _world(config, tokenizer)
    return _records(config, tokenizer)


def _world(config: RunConfig, tokenizer: TextTokenizer) -> Prepared:
    world = config.data.world
    counts: Mapping[Split, int] = {
        "train": world.train_items,
        "search": world.search_items,
        "rescore": world.rescore_items,
        "report": world.report_items,
    }
    limit = config.model.context
    corpora: dict[Split, dict[str, Corpus]] = {split: {} for split in SPLITS}
    report: dict[str, list[Example]] = {}
    for kind in KINDS:
        for split in SPLITS:
            # Training data follow the run's seed; held-out items are the same for every run.
            seed = config.seed if split == "train" else 0
            examples = generate(kind, split, counts[split], seed)
            corpora[split][kind] = encode(kind, kind, examples, tokenizer, limit)
            if split == "report":
                report[kind] = examples
    sources = tuple(
        CurriculumSource(k, category=k, stage=WORLD_STAGES.get(k, 1), records=world.train_items)
        for k in KINDS
    )
    train = corpora.pop("train")
    return Prepared(tokenizer, train, corpora, report, sources, None, config.data.replay)


def _records(config: RunConfig, tokenizer: TextTokenizer) -> Prepared:
    inventory = load_datasets(config.data)
    limit = min(config.data.sequence_length, config.model.context)
    everything = config.data.train_on_prompts
    train: dict[str, Corpus] = {}
    held_out: dict[Split, dict[str, Corpus]] = {s: {} for s in SPLITS if s != "train"}
    report: dict[str, list[Example]] = {}
    sources = []
    for loaded in inventory.loaded:
        name, category = loaded.entry.name, loaded.entry.category
        corpus = encode(name, category, loaded.examples["train"], tokenizer, limit, everything)
        if len(corpus):
            train[name] = corpus
            sources.append(
                CurriculumSource(
                    name,
                    category=category,
                    stage=loaded.entry.stage,
                    records=len(corpus),
                    max_share=loaded.entry.max_share,
                )
            )
        for split, corpora in held_out.items():
            examples = list(loaded.examples[split])[: _most(config, split)]
            if examples:
                corpora[name] = encode(name, category, examples, tokenizer, limit, everything)
            if split == "report":
                report[name] = examples
    return Prepared(
        tokenizer, train, held_out, report, tuple(sources), inventory, config.data.replay
    )


def _most(config: RunConfig, split: Split) -> int:
    """Records per dataset that are measured; the search split is looked at after every training."""
    most = config.data.eval_records
    return max(8, most // 4) if split == "search" else most
