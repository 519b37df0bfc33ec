"""Coherence of thoughts: a monitor and a filter, never a reward (it would be paid for theatre).

    0.4 semantic    cosine of the mean answer states of thought and question, floored at 0
    0.3 syntactic   exp(mean log p of the thought's tokens under the frozen model)
    0.3 predictive  p(right answer | thought) - p(right answer | empty thought), floored at 0

Weights and definitions of the mission (its other tables name other weights).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from agentforge.model.behaviour import Behaviour
from agentforge.model.language_model import CognateLM
from agentforge.thinking.given import answers_given
from agentforge.thinking.questions import Question, prompt_ids
from agentforge.thinking.thought import Answered, ThoughtReader

SEMANTIC, SYNTACTIC, PREDICTIVE = 0.4, 0.3, 0.3
ROWS = 200


@dataclass(frozen=True, slots=True)
class Coherence:
    """One value a thought, all in [0, 1].

    Attributes:
        semantic, syntactic, predictive: The three parts, (n,).
    """

    semantic: NDArray[np.float64]
    syntactic: NDArray[np.float64]
    predictive: NDArray[np.float64]

    @property
    def score(self) -> NDArray[np.float64]:
        """Their weighted sum, (n,)."""
        found: NDArray[np.float64] = (
            SEMANTIC * self.semantic + SYNTACTIC * self.syntactic + PREDICTIVE * self.predictive
        )
        return found


@torch.no_grad()
def coherence(
    model: CognateLM,
    frozen: CognateLM,
    behaviour: Behaviour,
    reader: ThoughtReader,
    questions: Sequence[Question],
    answered: Sequence[Answered],
    *,
    temperature: float,
) -> Coherence:
    """Score the thoughts of some questions; a question without a closed thought scores 0.

    Args:
        model: The model that thought.
        frozen: The baked model, whose likelihood counts as syntax.
        behaviour: How both are run.
        reader: Reader of their vocabulary.
        questions: The questions.
        answered: What was written, one a question.
        temperature: The deployment temperature.
    """
    tokenizer = reader.tokenizer
    prompts = prompt_ids(tokenizer, questions)
    n = len(questions)
    usable = [i for i, a in enumerate(answered) if a.opened and a.closed and a.thought]
    semantic, syntactic, predictive = np.zeros(n), np.zeros(n), np.zeros(n)
    training = model.training
    model.eval()
    for start in range(0, len(usable), ROWS):
        part = usable[start : start + ROWS]
        rows = [[*prompts[i], *_opened(reader, answered[i]), *answered[i].thought] for i in part]
        width = max(len(r) for r in rows)
        ids = torch.full((len(rows), width), tokenizer.pad_id, dtype=torch.int64)
        asked = torch.zeros(len(rows), width, dtype=torch.bool)
        thought = torch.zeros(len(rows), width, dtype=torch.bool)
        for place, (i, row) in enumerate(zip(part, rows, strict=True)):
            ids[place, : len(row)] = torch.tensor(row)
            asked[place, : len(prompts[i])] = True
            thought[place, len(row) - len(answered[i].thought) : len(row)] = True
        ids = ids.to(model.rope_cos.device)
        states = model.run(ids, behaviour).answer.float().cpu()
        mean_asked = (states * asked[..., None]).sum(1) / asked.sum(1, keepdim=True)
        mean_thought = (states * thought[..., None]).sum(1) / thought.sum(1, keepdim=True)
        semantic[part] = F.cosine_similarity(mean_asked, mean_thought).clamp(min=0).numpy()
        before = thought[:, 1:].to(ids.device)
        logits = frozen.embedding.logits(frozen.run(ids[:, :-1], behaviour).answer[before])
        log_p = F.log_softmax(logits.float(), -1).gather(1, ids[:, 1:][before][:, None])[:, 0]
        row_of = torch.nonzero(before)[:, 0]
        sums = torch.zeros(len(rows), device=ids.device).index_add_(0, row_of, log_p)
        syntactic[part] = (sums / before.sum(1)).exp().cpu().numpy()
    model.train(training)
    if usable:
        chosen = [questions[i] for i in usable]
        answers = [[*tokenizer.encode(f" {q.answer}"), tokenizer.eos_id] for q in chosen]
        prefixes = [
            [*prompts[i], *_opened(reader, answered[i]), *answered[i].thought, reader.end]
            for i in usable
        ]
        empty = [[*prompts[i], *_opened(reader, answered[i]), reader.end] for i in usable]
        own, none = (
            answers_given(
                model, behaviour, p, answers, temperature=temperature, pad_id=tokenizer.pad_id
            )
            for p in (prefixes, empty)
        )
        predictive[usable] = np.maximum(np.exp(own.log_p) - np.exp(none.log_p), 0.0)
    return Coherence(semantic, syntactic, predictive)


def _opened(reader: ThoughtReader, answered: Answered) -> list[int]:
    if answered.strategy is None:
        return [reader.start]
    return [reader.start, reader.by_name[answered.strategy]]
