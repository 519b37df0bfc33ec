"""The 16 datasets: where each one is, what it is for, and under which licence.

To add one, append an entry and write its formatter (`agentforge.data.formatters`).

Revisions: no commit hash is pinned, since the hub could not be reached where this table was
written. ``main`` is resolved to a commit when a dataset is loaded, and that commit is reported
(`LoadedDataset.where`); replace ``main`` by it to pin. One set needs another branch: ybisk/piqa's
main branch is a loading script, which datasets >= 4 does not run; the hub's own parquet conversion
has the same records under the config ``default``.

Stages (1 Foundation, 2 Reasoning, 3 Advanced) follow the mission's plan, with the five sets it
left without a stage added, and WikiText moved from stage 2 to 1: language belongs in every stage.
Licences are those the data's authors state; "read before shipping" is always good advice.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from agentforge.data.example import Category
from agentforge.data.formatters import Formatter, code, commonsense, language, math, qa
from agentforge.errors import DataError

Stage = Literal[1, 2, 3]
STAGE_NAMES: dict[Stage, str] = {1: "Foundation", 2: "Reasoning", 3: "Advanced"}


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetEntry:
    """One row of the registry.

    Attributes:
        name: How configuration and reports call it.
        title: How its authors call it.
        hub_id: Namespaced id on the Hugging Face hub.
        config: The hub's config (subset) name.
        train_splits: Hub splits that may be trained on; our hash split still holds a part back.
        held_out_splits: Hub splits that are only measured on, never trained on.
        revision: Branch or commit on the hub.
        columns: Columns the formatter reads.
        licence: As its authors state it.
        category: What the mixes count.
        stage: First curriculum stage that uses it.
        cap: Most records taken of the training splits.
        formatter: Record to example.
        benchmark: Whether figures on held-out records may be shown beside published ones by
            name; False where the hub has one split only or our form is an easier one.
        streaming: Read from the hub as a stream, up to the cap, instead of downloading it all.
        max_share: Largest share of one curriculum stage.
        default_on: Whether it is used when no dataset is named.
        off_reason: Why not.
        local_folders: Folder names below the data folder; default: ``name``.
    """

    name: str
    title: str
    hub_id: str
    config: str
    train_splits: tuple[str, ...] = ("train",)
    held_out_splits: tuple[str, ...] = ()
    revision: str = "main"
    columns: tuple[str, ...]
    licence: str
    category: Category
    stage: Stage
    cap: int = 20_000
    formatter: Formatter
    benchmark: bool = True
    streaming: bool = False
    max_share: float = 1.0
    default_on: bool = True
    off_reason: str = ""
    local_folders: tuple[str, ...] = ()

    @property
    def folders(self) -> tuple[str, ...]:
        """Local folder names, the entry's own name unless told otherwise."""
        return self.local_folders or (self.name,)


REGISTRY: tuple[DatasetEntry, ...] = (
    DatasetEntry(
        name="gsm8k",
        title="GSM8K",
        hub_id="openai/gsm8k",
        config="main",
        held_out_splits=("test",),
        columns=("question", "answer"),
        licence="MIT",
        category="math",
        stage=1,
        formatter=math.gsm8k,
    ),
    DatasetEntry(
        name="svamp",
        title="SVAMP",
        hub_id="ChilleD/SVAMP",
        config="default",
        held_out_splits=("test",),
        columns=("Body", "Question", "Answer"),
        licence="MIT",
        category="math",
        stage=1,
        formatter=math.svamp,
    ),
    DatasetEntry(
        name="asdiv",
        title="ASDiv",
        hub_id="EleutherAI/asdiv",
        config="asdiv",
        train_splits=("validation",),  # its only split
        columns=("body", "question", "answer"),
        licence="CC BY-NC 4.0",
        category="math",
        stage=1,
        formatter=math.asdiv,
        benchmark=False,
        default_on=False,
        off_reason="non-commercial licence (CC BY-NC 4.0): a model trained on it may not be sold",
    ),
    DatasetEntry(
        name="mbpp",
        title="MBPP",
        hub_id="google-research-datasets/mbpp",
        config="full",
        held_out_splits=("test", "validation"),
        columns=("text", "code", "test_list"),
        licence="CC BY 4.0",
        category="code",
        stage=1,
        formatter=code.mbpp,
    ),
    DatasetEntry(
        # "microsoft/codexglue" of the plan is no dataset id. The hub's python code-to-text set is
        # the primary; a local folder of text-to-code (Java) is read as well.
        name="code_x_glue",
        title="CodeXGLUE",
        hub_id="google/code_x_glue_ct_code_to_text",
        config="python",
        held_out_splits=("validation",),
        columns=("code", "docstring"),
        licence="C-UDA",
        category="code",
        stage=2,
        cap=10_000,  # of 251,820
        formatter=code.code_x_glue,
        streaming=True,
        local_folders=("code_x_glue_ct_code_to_text", "code_x_glue_tc_text_to_code"),
    ),
    DatasetEntry(
        name="arc_easy",
        title="ARC-Easy",
        hub_id="allenai/ai2_arc",
        config="ARC-Easy",
        held_out_splits=("test", "validation"),
        columns=("question", "choices", "answerKey"),
        licence="CC BY-SA 4.0",
        category="qa",
        stage=2,
        formatter=qa.arc,
    ),
    DatasetEntry(
        name="arc_challenge",
        title="ARC-Challenge",
        hub_id="allenai/ai2_arc",
        config="ARC-Challenge",
        held_out_splits=("test", "validation"),
        columns=("question", "choices", "answerKey"),
        licence="CC BY-SA 4.0",
        category="qa",
        stage=2,
        formatter=qa.arc,
    ),
    DatasetEntry(
        name="hotpot_qa",
        title="HotpotQA",
        hub_id="hotpotqa/hotpot_qa",
        config="distractor",
        held_out_splits=("validation",),
        columns=("question", "answer", "level", "supporting_facts", "context"),
        licence="CC BY-SA 4.0",
        category="qa",
        stage=3,
        cap=10_000,  # of 90,447
        formatter=qa.hotpot_qa,
        benchmark=False,  # supporting paragraphs only
        streaming=True,
    ),
    DatasetEntry(
        name="drop",
        title="DROP",
        hub_id="ucinlp/drop",
        config="default",
        held_out_splits=("validation",),
        columns=("passage", "question", "answers_spans"),
        licence="CC BY-SA 4.0",
        category="qa",
        stage=3,
        cap=10_000,  # of 77,400
        formatter=qa.drop,
    ),
    DatasetEntry(
        # wics/strategy-qa is a loading script (its one split is called test);
        # tasksource/strategy-qa holds the same 2,290 records and columns as JSON, split train.
        name="strategy_qa",
        title="StrategyQA",
        hub_id="tasksource/strategy-qa",
        config="default",
        columns=("question", "answer"),
        licence="MIT",
        category="qa",
        stage=2,
        formatter=qa.strategy_qa,
        benchmark=False,  # one split only
    ),
    DatasetEntry(
        name="piqa",
        title="PIQA",
        hub_id="ybisk/piqa",
        config="default",
        held_out_splits=("validation",),
        revision="refs/convert/parquet",
        columns=("goal", "sol1", "sol2", "label"),
        licence="AFL 3.0",
        category="commonsense",
        stage=2,
        formatter=commonsense.piqa,
    ),
    DatasetEntry(
        name="hellaswag",
        title="HellaSwag",
        hub_id="Rowan/hellaswag",
        config="default",
        held_out_splits=("validation",),
        columns=("activity_label", "ctx", "endings", "label"),
        licence="MIT",
        category="commonsense",
        stage=3,
        cap=10_000,  # of 39,905
        formatter=commonsense.hellaswag,
        max_share=0.2,
    ),
    DatasetEntry(
        name="boolq",
        title="BoolQ",
        hub_id="google/boolq",
        config="default",
        held_out_splits=("validation",),
        columns=("question", "passage", "answer"),
        licence="CC BY-SA 3.0",
        category="commonsense",
        stage=1,
        formatter=commonsense.boolq,
    ),
    DatasetEntry(
        name="wikitext",
        title="WikiText-2",
        hub_id="Salesforce/wikitext",
        config="wikitext-2-raw-v1",
        held_out_splits=("validation", "test"),
        columns=("text",),
        licence="CC BY-SA 3.0, GFDL",
        category="language",
        stage=1,
        cap=40_000,  # all 36,718 rows
        formatter=language.wikitext,
        benchmark=False,  # text is detokenised
    ),
    DatasetEntry(
        name="fineweb_edu",
        title="FineWeb-Edu",
        hub_id="HuggingFaceFW/fineweb-edu",
        config="sample-10BT",
        columns=("text",),
        licence="ODC-By 1.0",
        category="language",
        stage=3,
        formatter=language.plain_text,
        benchmark=False,
        streaming=True,  # the head of a sample of 10 billion tokens
    ),
    DatasetEntry(
        name="openwebtext",
        title="OpenWebText",
        hub_id="Skylion007/openwebtext",
        config="plain_text",
        columns=("text",),
        licence="CC0 1.0 (packaging; the pages belong to their authors)",
        category="language",
        stage=3,
        formatter=language.plain_text,
        benchmark=False,
        streaming=True,
        default_on=False,
        off_reason="size: 8 million pages, some 40 GB of text; optional, and read as a stream",
    ),
)

NAMES: tuple[str, ...] = tuple(entry.name for entry in REGISTRY)


def entry(name: str) -> DatasetEntry:
    """The entry called ``name``.

    Raises:
        DataError: There is none; the message names the nearest one.
    """
    for candidate in REGISTRY:
        if candidate.name == name:
            return candidate
    near = difflib.get_close_matches(name.lower().replace("-", "_"), NAMES, n=1, cutoff=0.4)
    guess = f"; did you mean {near[0]!r}?" if near else ""
    raise DataError(f"unknown dataset {name!r}{guess}", remedy=f"choose among: {', '.join(NAMES)}")
