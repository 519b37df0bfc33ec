"""Benchmarks of real records: GSM8K by generation, choice tasks by likelihood."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from agentforge.data.example import Example, prompt_text
from agentforge.data.prepare import Prepared
from agentforge.data.tokenizers import TextTokenizer
from agentforge.evals.choice import ChoiceItem, ChoiceResult, evaluate_choices
from agentforge.evals.gsm8k import GsmResult, score_all
from agentforge.model.behaviour import Behaviour
from agentforge.model.decode import generate_greedy
from agentforge.model.language_model import CognateLM

GSM8K = "gsm8k"
NEW_TOKENS = 96
"""Tokens generated per GSM8K problem; the median reference solution of the samples has 91."""
ROWS = 32
"""Problems generated at once."""


@dataclass(frozen=True, slots=True)
class TaskResults:
    """Benchmarks of one model; what has no records is not there."""

    gsm8k: GsmResult | None
    choices: dict[str, ChoiceResult]


def measure_tasks(
    model: CognateLM,
    behaviour: Behaviour,
    data: Prepared,
    items: int,
    longest: int,
    between: Callable[[], None],
) -> TaskResults:
    """Measure a model on up to `items` held-out records of every benchmark present.

    Prompts keep their last tokens up to `longest`, the length the model was trained at.
    """
    gsm8k = None
    choices: dict[str, ChoiceResult] = {}
    for name, examples in data.examples.items():
        chosen = examples[:items]
        if not chosen:
            continue
        if name == GSM8K:
            gsm8k = _gsm8k(model, behaviour, data.tokenizer, chosen, longest, between)
        elif all(len(e.choices) > 1 for e in chosen):
            choices[name] = _choices(model, behaviour, data.tokenizer, chosen, longest, between)
    return TaskResults(gsm8k, choices)


def _gsm8k(
    model: CognateLM,
    behaviour: Behaviour,
    tokenizer: TextTokenizer,
    examples: Sequence[Example],
    longest: int,
    between: Callable[[], None],
) -> GsmResult:
    room = min(longest, model.config.context - NEW_TOKENS)
    pairs = []
    for start in range(0, len(examples), ROWS):
        between()
        rows = examples[start : start + ROWS]
        prompts = [tokenizer.encode(prompt_text(e.prompt))[-room:] for e in rows]
        generated = generate_greedy(
            model, prompts, behaviour, NEW_TOKENS, tokenizer.eos_id, tokenizer.thinking_ids
        )
        pairs += [(tokenizer.decode(ids), e.answer) for ids, e in zip(generated, rows, strict=True)]
    return score_all(pairs)


def _choices(
    model: CognateLM,
    behaviour: Behaviour,
    tokenizer: TextTokenizer,
    examples: Sequence[Example],
    longest: int,
    between: Callable[[], None],
) -> ChoiceResult:
    def score(prompt: str, continuations: Sequence[str]) -> list[tuple[float, int]]:
        between()
        return score_continuations(model, behaviour, tokenizer, prompt, continuations, longest)

    items = [
        ChoiceItem(prompt_text(e.prompt), tuple(f" {c}" for c in e.choices), e.gold)
        for e in examples
    ]
    return evaluate_choices(items, score)


@torch.no_grad()
def score_continuations(
    model: CognateLM,
    behaviour: Behaviour,
    tokenizer: TextTokenizer,
    prompt: str,
    continuations: Sequence[str],
    limit: int,
) -> list[tuple[float, int]]:
    """Log-probability (nats) and tokens of each continuation after a prompt.

    The prompt's start is cut where both are longer than `limit` tokens.
    """
    model.eval()
    context = min(limit, model.config.context)
    head = tokenizer.encode(prompt)
    tails = [tokenizer.encode(c)[: context - 1] for c in continuations]
    longest = max(len(t) for t in tails)
    head = head[-(context + 1 - longest) :]
    width = len(head) + longest - 1
    device = model.rope_cos.device
    ids = torch.full((len(tails), width), tokenizer.pad_id, dtype=torch.int64)
    for row, tail in enumerate(tails):
        whole = torch.tensor(head + tail[:-1])
        ids[row, : len(whole)] = whole
    answer = model(ids.to(device), behaviour).answer
    found = []
    for row, tail in enumerate(tails):
        states = answer[row, len(head) - 1 : len(head) - 1 + len(tail)]
        loss = F.cross_entropy(
            model.embedding.logits(states).float(),
            torch.tensor(tail, device=device),
            reduction="sum",
        )
        found.append((-float(loss), len(tail)))
    return found
