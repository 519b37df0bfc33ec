"""Examples as token ids, stored flat: what batches are cut from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from agentforge.data.example import Example, answer_text, prompt_text
from agentforge.data.tokenizers import TextTokenizer


@dataclass(frozen=True, slots=True)
class Corpus:
    """Encoded examples of one dataset or skill.

    Attributes:
        name: Dataset or skill.
        category: What mixes count.
        tokens: All ids, int32, items one behind the other, each ending with the end token.
        offsets: (n + 1,) int64, where each item starts.
        first_target: (n,) int32, index within the item of the first token that carries loss
            (never 0: nothing predicts the first token).
        difficulty: (n,) int32, 0 where unknown.
        cut: Items that were longer than allowed and lost text.
    """

    name: str
    category: str
    tokens: NDArray[np.int32]
    offsets: NDArray[np.int64]
    first_target: NDArray[np.int32]
    difficulty: NDArray[np.int32]
    cut: int = 0
    answer_start: NDArray[np.int32] | None = None
    """(n,) index within the item where the answer behind a thought begins; None: no thoughts."""

    def __len__(self) -> int:
        return len(self.first_target)

    def item(self, index: int) -> NDArray[np.int32]:
        """Ids of one item, its end token included."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def part(self, start: int, stop: int) -> Corpus:
        """Items from `start` up to `stop`, as a corpus of its own."""
        stop = min(stop, len(self))
        first, last = self.offsets[start], self.offsets[stop]
        return replace(
            self,
            tokens=self.tokens[first:last],
            offsets=self.offsets[start : stop + 1] - first,
            first_target=self.first_target[start:stop],
            difficulty=self.difficulty[start:stop],
            answer_start=None if self.answer_start is None else self.answer_start[start:stop],
        )

    def pick(self, items: Sequence[int]) -> Corpus:
        """Some items, in the given order, as a corpus of its own."""
        chosen = np.asarray(items, dtype=np.int64)
        lengths = np.diff(self.offsets)[chosen]
        return replace(
            self,
            tokens=np.concatenate([self.item(i) for i in items]),
            offsets=np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)]),
            first_target=self.first_target[chosen],
            difficulty=self.difficulty[chosen],
            answer_start=None if self.answer_start is None else self.answer_start[chosen],
        )

    @property
    def target_count(self) -> int:
        """Tokens that carry loss."""
        return int((np.diff(self.offsets) - self.first_target).sum())


def encode(
    name: str,
    category: str,
    examples: Sequence[Example],
    tokenizer: TextTokenizer,
    max_length: int,
    train_on_prompts: bool = False,
) -> Corpus:
    """Encode examples.

    A question that is too long loses the start of its prompt, so that the answer stays; text that
    is too long is split into pieces, each an item of its own.

    Args:
        name: Dataset or skill.
        category: Its category.
        examples: What to encode.
        tokenizer: The run's tokenizer.
        max_length: Longest item in tokens, the end token included.
        train_on_prompts: Whether prompt tokens carry loss too.
    """
    prompts = tokenizer.encode_batch([prompt_text(e.prompt) for e in examples])
    answers = tokenizer.encode_batch([answer_text(e) for e in examples])
    items: list[list[int]] = []
    first: list[int] = []
    difficulty: list[int] = []
    cut = 0
    for example, prompt, answer in zip(examples, prompts, answers, strict=True):
        if not prompt:
            whole = [*answer, tokenizer.eos_id]
            pieces = [whole[i : i + max_length] for i in range(0, len(whole), max_length)]
            for piece in pieces:
                if len(piece) > 1:
                    items.append(piece)
                    first.append(1)
                    difficulty.append(example.difficulty)
            continue
        answer = [*answer, tokenizer.eos_id]
        cut += len(prompt) + len(answer) > max_length
        answer = answer[: max_length - 1]
        prompt = prompt[-(max_length - len(answer)) :]
        items.append(prompt + answer)
        first.append(1 if train_on_prompts else len(prompt))
        difficulty.append(example.difficulty)
    lengths = np.array([len(i) for i in items], dtype=np.int64)
    return Corpus(
        name=name,
        category=category,
        tokens=np.array([t for i in items for t in i], dtype=np.int32),
        offsets=np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)]),
        first_target=np.array(first, dtype=np.int32),
        difficulty=np.array(difficulty, dtype=np.int32),
        cut=cut,
    )
