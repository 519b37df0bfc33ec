"""Generated tokens read as a thought and an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agentforge.data.tokenizers import TextTokenizer
from agentforge.reasoning.strategies import STRATEGIES


@dataclass(frozen=True, slots=True)
class Answered:
    """What a model wrote after a prompt, taken apart.

    Attributes:
        tokens: Everything it wrote, without the end token.
        opened: It began with `[thinking]`.
        strategy: The strategy whose token came next; None when there was none.
        thought: Tokens between the strategy token (or `[thinking]`) and `[/endthinking]`.
        closed: There was exactly one `[/endthinking]`.
        answer: Tokens after it; all tokens when no thought was opened.
        ended: The end token came in time.
    """

    tokens: tuple[int, ...]
    opened: bool
    strategy: str | None
    thought: tuple[int, ...]
    closed: bool
    answer: tuple[int, ...]
    ended: bool

    @property
    def well_formed(self) -> bool:
        """One thought of one strategy, opened and closed, then an answer, then the end."""
        return (
            self.opened
            and self.closed
            and self.strategy is not None
            and bool(self.thought)
            and bool(self.answer)
            and self.ended
        )


class ThoughtReader:
    """Reads token ids of one vocabulary.

    Args:
        tokenizer: Its tokenizer.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.tokenizer = tokenizer
        self.start, self.end, *inner = tokenizer.thinking_ids
        self.by_id = {i: s.name for i, s in zip(inner, STRATEGIES, strict=True)}
        self.by_name = {name: i for i, name in self.by_id.items()}
        self.all_ids = frozenset(tokenizer.thinking_ids)

    def read(self, tokens: Sequence[int], ended: bool) -> Answered:
        """Take apart what came after a prompt.

        Args:
            tokens: Ids without the end token.
            ended: Whether the end token followed.
        """
        whole = tuple(tokens)
        if not whole or whole[0] != self.start:
            clean = not self.all_ids.intersection(whole)
            return Answered(whole, False, None, (), False, whole if clean else (), ended)
        strategy = self.by_id.get(whole[1]) if len(whole) > 1 else None
        body = whole[2:] if strategy is not None else whole[1:]
        if self.end not in body:
            return Answered(whole, True, strategy, body, False, (), ended)
        place = body.index(self.end)
        thought, answer = body[:place], body[place + 1 :]
        # A second opening, closing or strategy token means that the form was not understood.
        once = not self.all_ids.intersection((*thought, *answer))
        return Answered(whole, True, strategy, thought, once, answer if once else (), ended)

    def text(self, answered: Answered, show_thought: bool) -> str:
        """What a person reads: the answer, with the thought before it when asked for."""
        decode = self.tokenizer.decode
        answer = decode(answered.answer).strip()
        if not show_thought or not answered.opened:
            return answer
        name = answered.strategy or "thought"
        return f"({name}: {decode(answered.thought).strip()}) {answer}".strip()
