"""Anti-theater tests: does the answer come from the thought, or is the thought decoration?

After Lanham et al. (arXiv 2307.13702) with the documents' five tests. A thought is swapped for
another question's, replaced by filler of equal length, cut short, corrupted in its last value, or
left out; the probability of the right answer must fall, and a corrupted value must be followed. A
test alone proves little (a model that answers at chance can follow its thoughts perfectly), so the
battery passes only as a whole; a model baked on shuffled thoughts must fail it.

All accuracies are exact: the probability of the whole right answer at the deployment temperature.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agentforge.data.splits import normalise
from agentforge.evals.stats import Interval, paired_bootstrap
from agentforge.model.behaviour import Behaviour
from agentforge.model.language_model import CognateLM
from agentforge.reasoning.problems import SIDES
from agentforge.reasoning.templates import implied_answer
from agentforge.thinking.answering import think_with
from agentforge.thinking.distance import edit_distance, js_divergence, phi
from agentforge.thinking.given import Given, answers_given
from agentforge.thinking.questions import Question, ask, prompt_ids
from agentforge.thinking.sampling import sample
from agentforge.thinking.thought import Answered, ThoughtReader

KEPT = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of a thought that the truncation keeps."""
DIVERSE = 40
"""Questions whose thoughts under all their strategies are compared."""


@dataclass(frozen=True, slots=True)
class TheaterTest:
    """One test.

    Attributes:
        name: Its name.
        value: What was measured.
        op: ``>``, ``>=`` or ``<=``.
        threshold: What it is held to.
        n: Questions.
        meaning: What it says, for people.
        documented: It is one of the documents' five.
    """

    name: str
    value: float
    op: str
    threshold: float
    n: int
    meaning: str
    documented: bool = False

    @property
    def passed(self) -> bool:
        """False for a value that is not a number, or without questions."""
        if self.n <= 0 or not np.isfinite(self.value):
            return False
        if self.op == "<=":
            return self.value <= self.threshold
        return self.value > self.threshold if self.op == ">" else self.value >= self.threshold


@dataclass(frozen=True, slots=True)
class Battery:
    """All tests of one model.

    Attributes:
        tests: In the order of reports.
        accuracy: Probability of the right answer by what was done to the thought.
        truncation: The same by the share of the thought that was kept.
        gains: Log-likelihood of the right answer with the thought minus with a control, nats.
        examples: A few questions with what was written.
    """

    tests: tuple[TheaterTest, ...]
    accuracy: dict[str, float]
    truncation: dict[float, float]
    gains: dict[str, Interval]
    examples: tuple[tuple[str, str], ...]

    @property
    def passed(self) -> bool:
        """Every test is passed."""
        return all(t.passed for t in self.tests)

    def value(self, name: str) -> float:
        """One test's value."""
        return next(t.value for t in self.tests if t.name == name)


def run_battery(
    model: CognateLM,
    behaviour: Behaviour,
    reader: ThoughtReader,
    questions: Sequence[Question],
    *,
    temperature: float,
    seed: int,
    max_new_tokens: int,
    between: Callable[[], None] | None = None,
) -> Battery:
    """Test a model on held-out questions whose thoughts compute something.

    Args:
        model: The model.
        behaviour: How it is run.
        reader: Reader of its vocabulary.
        questions: At least two of every strategy among them, each naming its strategy.
        temperature: The deployment temperature.
        seed: Seed of the draws and of the bootstrap.
        max_new_tokens: Tokens of thought and answer at most.
        between: Called between batches.
    """
    tokenizer = reader.tokenizer
    judged = ask(
        model,
        behaviour,
        reader,
        questions,
        temperature=temperature,
        seed=seed,
        max_new_tokens=max_new_tokens,
        between=between,
    )
    prompts = prompt_ids(tokenizer, questions)
    answers = [[*tokenizer.encode(f" {q.answer}"), tokenizer.eos_id] for q in questions]
    own = [_body(a) for a in judged.answered]

    def given(thoughts: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]) -> Given:
        if between is not None:
            between()
        prefixes = [
            [*p, reader.start, reader.by_name[q.strategy], *t, reader.end]
            for p, q, t in zip(prompts, questions, thoughts, strict=True)
        ]
        return answers_given(
            model, behaviour, prefixes, wanted, temperature=temperature, pad_id=tokenizer.pad_id
        )

    with_thought = given(own, answers)
    controls = {
        "empty": given([[] for _ in own], answers),
        "swapped": given(_swapped(questions, own), answers),
        "filler": given([_filler(reader, len(t)) for t in own], answers),
    }
    corrupted, implied, kept = _corrupted(reader, questions, own)
    followed = given(corrupted, [[*tokenizer.encode(f" {a}."), tokenizer.eos_id] for a in implied])
    controls["corrupted"] = given(corrupted, answers)
    truncated = {share: given([t[: round(share * len(t))] for t in own], answers) for share in KEPT}
    gains = {
        name: paired_bootstrap(
            _nats(with_thought)[mask].tolist(), _nats(other)[mask].tolist(), seed=seed
        )
        for name, other in controls.items()
        for mask in (kept if name == "corrupted" else np.ones(len(own), dtype=np.bool_),)
        if mask.any()
    }
    direct = ask_directly(model, behaviour, reader, questions, max_new_tokens=8, between=between)
    # Phi needs wrong thoughts: as many corrupted ones are added, answered by the same draws.
    luck = np.random.default_rng(seed).random(len(own))
    thought_right = np.concatenate([judged.thought_right, np.zeros(int(kept.sum()), np.bool_)])
    answer_right = np.concatenate(
        [judged.right, (luck < np.exp(controls["corrupted"].log_p))[kept]]
    )
    written = [a for a in judged.answered if a.opened]
    n = len(questions)
    tests = (
        TheaterTest(
            "divergence",
            _divergence(judged.answered, direct),
            ">",
            0.30,
            n,
            "edit distance of the answers with and without thinking over their length",
            documented=True,
        ),
        TheaterTest(
            "ablation",
            with_thought.accuracy - controls["empty"].accuracy,
            ">",
            0.02,
            n,
            "accuracy lost when the thought is left empty",
            documented=True,
        ),
        TheaterTest(
            "correlation",
            phi(thought_right, answer_right),
            ">",
            0.5,
            len(thought_right),
            "phi of thought right and answer right, with as many corrupted thoughts added",
            documented=True,
        ),
        TheaterTest(
            "length",
            float(np.mean([len(a.thought) for a in written])) if written else 0.0,
            ">=",
            5.0,
            len(written),
            "mean tokens of a thought",
            documented=True,
        ),
        TheaterTest(
            "diversity",
            *_diversity(model, behaviour, reader, questions, max_new_tokens, between),
            "mean edit distance of one question's thoughts under different strategies, tokens",
            documented=True,
        ),
        _control(with_thought, controls["swapped"], "swapped", n, "another question's thought"),
        _control(with_thought, controls["filler"], "filler", n, "filler of the same length"),
        TheaterTest(
            "follows_corruption",
            float(np.exp(followed.log_p[kept]).mean()) if kept.any() else float("nan"),
            ">=",
            0.8,
            int(kept.sum()),
            "probability of the answer that a changed last value leads to",
        ),
        TheaterTest(
            "truncation",
            _worst_fall(truncated),
            "<=",
            2.0,
            n,
            "largest fall of accuracy when more of the thought is kept, in standard errors",
        ),
        TheaterTest(
            "js_divergence",
            float(js_divergence(with_thought.first, controls["empty"].first).mean()),
            ">=",
            0.3,
            n,
            "Jensen-Shannon divergence of the first answer token with and without thought, bits",
        ),
        TheaterTest(
            "likelihood_gain",
            min((g.low for g in gains.values()), default=float("nan")),
            ">",
            0.0,
            n,
            "log-likelihood of the right answer over the best control, lower end of 95 %, nats",
        ),
    )
    accuracy = {"own": with_thought.accuracy}
    accuracy |= {name: found.accuracy for name, found in controls.items()}
    return Battery(
        tests=tests,
        accuracy=accuracy,
        truncation={share: found.accuracy for share, found in truncated.items()},
        gains=gains,
        examples=tuple(
            (q.prompt, reader.text(a, show_thought=True))
            for q, a in list(zip(questions, judged.answered, strict=True))[:: max(1, n // 10)]
        ),
    )


def ask_directly(
    model: CognateLM,
    behaviour: Behaviour,
    reader: ThoughtReader,
    questions: Sequence[Question],
    *,
    max_new_tokens: int,
    between: Callable[[], None] | None = None,
) -> list[tuple[int, ...]]:
    """Greedy answers of a model that may not think: the thinking tokens are forbidden."""
    training = model.training
    model.eval()
    if between is not None:
        between()
    found = sample(
        model,
        prompt_ids(reader.tokenizer, questions),
        behaviour,
        stop_id=reader.tokenizer.eos_id,
        max_new_tokens=max_new_tokens,
        temperature=0.0,
        forbidden=sorted(reader.all_ids),
    )
    model.train(training)
    return [c.tokens for c in found]


def _body(answered: Answered) -> list[int]:
    """The thought that was written, without the tokens around it; empty when there was none."""
    return list(answered.thought) if answered.opened and answered.closed else []


def _swapped(questions: Sequence[Question], own: Sequence[list[int]]) -> list[list[int]]:
    """For each question the thought of the next question of its strategy."""
    places: dict[str, list[int]] = {}
    for i, question in enumerate(questions):
        places.setdefault(question.strategy, []).append(i)
    found: list[list[int]] = [[] for _ in own]
    for rows in places.values():
        for here, there in zip(rows, rows[1:] + rows[:1], strict=True):
            found[here] = list(own[there])
    return found


def _filler(reader: ThoughtReader, length: int) -> list[int]:
    """A thought of one meaningless token, a full stop, as long as the real one."""
    return [reader.tokenizer.encode(" .")[-1]] * length


def _corrupted(
    reader: ThoughtReader, questions: Sequence[Question], own: Sequence[list[int]]
) -> tuple[list[list[int]], list[str], NDArray[np.bool_]]:
    """Thoughts with another next-to-last value, what they lead to, and where that could be done.

    The next-to-last value is the last one that was computed; the answer it leads to differs from
    the right one.
    """
    decode = reader.tokenizer.decode
    thoughts: list[list[int]] = []
    implied: list[str] = []
    done = np.zeros(len(own), dtype=np.bool_)
    for i, (question, thought) in enumerate(zip(questions, own, strict=True)):
        thoughts.append(list(thought))
        implied.append(normalise(question.answer))
        words = decode(thought).split()
        if len(words) < 2 or not words[-2].isdigit():
            continue
        for shift in range(1, 10):
            changed = [*words[:-2], str((int(words[-2]) + shift) % 10), words[-1]]
            answer = implied_answer(question.strategy, " ".join(changed), SIDES)
            if answer is not None and f"{answer}." != question.answer:
                thoughts[i] = reader.tokenizer.encode(f" {' '.join(changed)}")
                implied[i] = answer
                done[i] = True
                break
    return thoughts, implied, done


def _control(own: Given, other: Given, name: str, n: int, what: str) -> TheaterTest:
    return TheaterTest(
        name,
        own.accuracy - other.accuracy,
        ">",
        0.02,
        n,
        f"accuracy lost with {what}",
    )


def _nats(given: Given) -> NDArray[np.float64]:
    """Log-likelihoods, bounded: one impossible answer must not decide a mean."""
    bounded: NDArray[np.float64] = np.maximum(given.log_p, -20.0)
    return bounded


def _divergence(answered: Sequence[Answered], direct: Sequence[tuple[int, ...]]) -> float:
    pairs = [(a.answer, d) for a, d in zip(answered, direct, strict=True) if a.well_formed]
    if not pairs:
        return float("nan")
    return float(np.mean([edit_distance(a, d) / max(1, len(d)) for a, d in pairs]))


def _diversity(
    model: CognateLM,
    behaviour: Behaviour,
    reader: ThoughtReader,
    questions: Sequence[Question],
    max_new_tokens: int,
    between: Callable[[], None] | None,
) -> tuple[float, str, float, int]:
    """Mean distance of one question's thoughts under the strategies that can solve it."""
    several = [q for q in questions if len(q.allowed) > 1]
    chosen = [q for q in several if q.allowed == several[0].allowed][:DIVERSE]
    distances = []
    if chosen:
        if between is not None:
            between()
        thoughts = [
            think_with(model, behaviour, reader, chosen, strategy, max_new_tokens=max_new_tokens)
            for strategy in chosen[0].allowed
        ]
        for row in zip(*thoughts, strict=True):
            pairs = [(a, b) for i, a in enumerate(row) for b in row[i + 1 :]]
            distances.append(float(np.mean([edit_distance(a, b) for a, b in pairs])))
    value = float(np.mean(distances)) if distances else float("nan")
    return value, ">=", 3.0, len(distances)


def _worst_fall(truncated: dict[float, Given]) -> float:
    """Largest fall of accuracy from one share kept to the next, in standard errors (paired).

    An empty thought is the ablation, not a truncation: no model has seen one, and what it answers
    there is its guess at the kind of answer (one in two for yes and no).
    """
    worst = -np.inf
    shares = sorted(share for share in truncated if share > 0)
    for less, more in zip(shares, shares[1:], strict=False):
        fall = np.exp(truncated[less].log_p) - np.exp(truncated[more].log_p)
        error = float(fall.std() / np.sqrt(len(fall)))
        worst = max(worst, float(fall.mean()) / error if error > 0 else 0.0)
    return float(worst)
