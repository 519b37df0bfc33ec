"""GSM8K's two rules, exact match and choice tasks, with canned outputs and their traps."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from agentforge.errors import DataError
from agentforge.evals.choice import ChoiceItem, evaluate_choices
from agentforge.evals.exact_match import exact_match, exact_match_accuracy, normalise_answer
from agentforge.evals.gsm8k import extract_flexible, extract_strict, score, score_all, until_stop

GOLD = "She sells 16 - 3 - 4 = <<16-3-4=9>>9 eggs.\n9 * 2 = $<<9*2=18>>18\n#### 18"


@pytest.mark.parametrize(
    ("generated", "strict", "flexible"),
    [
        ("9 * 2 = 18\n#### 18", True, True),
        ("#### 18.", True, True),  # one final full stop is dropped
        ("#### $18", False, True),  # strict wants a digit after '#### '
        ("####18", False, True),  # ... and the space
        ("The answer is 18", False, True),
        ("The answer is $18.", False, True),
        ("18 eggs, so 9", False, False),  # flexible takes the last number
        ("#### 18\nThat leaves 5", True, False),
        ("#### 5\n#### 18", False, True),  # strict takes the first
        ("#### 18.0", False, False),  # compared as a string
        ("#### 18..", False, False),
        ("It is 18 ...", False, False),  # '...' is the flexible rule's last match
        ("It is 18. Good.", False, True),
        ("-18", False, False),
        ("eighteen", False, False),
        ("", False, False),
        ("$,.", False, False),
        ("I think 18\n\nQuestion: what is 3 + 4? 7", False, True),  # cut at the stop
        ("Question: #### 18", False, False),
        ("#### 18</s>99", True, True),
    ],
)
def test_gsm8k_canned_outputs(generated: str, strict: bool, flexible: bool) -> None:
    got = score(generated, GOLD)
    assert (got.strict, got.flexible) == (strict, flexible)


@pytest.mark.parametrize(
    ("generated", "gold"),
    [
        ("#### 1,234", "#### 1234"),
        ("#### 1234", "#### 1,234"),
        ("so $1,234.", "1,234"),
        ("#### -3", "lost 3\n#### -3"),
        ("#### 0.5", "#### 0.5\n"),
    ],
)
def test_gsm8k_numbers_are_cleaned_on_both_sides(generated: str, gold: str) -> None:
    assert score(generated, gold).flexible


def test_gsm8k_extraction() -> None:
    assert extract_strict("x #### 1,0.5 y #### 3") == "1,0.5"
    assert extract_strict("#### abc") is None
    assert extract_flexible("a 1 b 22 c 3") == "3"
    assert extract_flexible("none") is None
    assert until_stop("a</s>b Question: c") == "a"


@pytest.mark.parametrize("gold", ["", "no number", "#### ", "#### eighteen", "first 3\nthen 4"])
def test_gsm8k_gold_without_a_number_is_a_data_error(gold: str) -> None:
    with pytest.raises(DataError, match="####"):
        score("#### 18", gold)


def test_gsm8k_accuracy() -> None:
    result = score_all([("#### 18", GOLD), ("18", GOLD), ("7", GOLD), ("#### 18\n5", GOLD)])
    assert (result.strict.value, result.flexible.value, result.strict.n) == (0.5, 0.5, 4)
    assert result.strict.stderr == pytest.approx(0.25)


@pytest.mark.records
@pytest.mark.skipif("AGENTFORGE_TEST_DATA" not in os.environ, reason="no real records")
def test_every_real_gsm8k_answer_scores_itself() -> None:
    folder = Path(os.environ["AGENTFORGE_TEST_DATA"]) / "gsm8k"
    answers = [
        json.loads(line)["answer"]
        for path in sorted(folder.glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    result = score_all([(answer, answer) for answer in answers])
    assert result.strict.n > 1000
    assert (result.strict.value, result.flexible.value) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("  Yes. ", "yes"),
        ("The\n  Eiffel\tTower", "the eiffel tower"),
        ('"Paris".', "paris"),
        ("1,234,567 people", "1234567 people"),
        ("1,23", "1,23"),
        ("3.14", "3.14"),
        ("１２", "12"),  # full-width digits
        ("What?!", "what"),
        ("", ""),
        ("...", ""),
    ],
)
def test_normalise_answer(text: str, normal: str) -> None:
    assert normalise_answer(text) == normal
    assert normalise_answer(normal) == normal


def test_exact_match_is_never_met_by_nothing() -> None:
    assert exact_match("Paris.", "paris")
    assert not exact_match("", "")
    assert not exact_match("the tower", "tower")
    got = exact_match_accuracy([("a", "A"), ("b", "c"), ("d", "d"), ("", "")])
    assert (got.value, got.n) == (0.5, 4)


class Model:
    """Scores continuations from a table and remembers the prompts."""

    def __init__(self, table: dict[str, tuple[float, int]]) -> None:
        self.table = table
        self.prompts: list[str] = []

    def __call__(self, prompt: str, continuations: Sequence[str]) -> list[tuple[float, int]]:
        self.prompts.append(prompt)
        return [self.table[c] for c in continuations]


def test_choice_raw_and_normalised_differ_by_length() -> None:
    model = Model({" short": (-4.0, 1), " rather long": (-6.0, 3), " bad": (-9.0, 1)})
    items = [
        ChoiceItem("q1", (" short", " rather long", " bad"), 1),
        ChoiceItem("q2", (" short", " bad"), 0),
    ]
    result = evaluate_choices(items, model)
    assert model.prompts == ["q1", "q2"]
    assert result.raw_credits == (0.0, 1.0)
    assert result.normalised_credits == (1.0, 1.0)
    assert (result.raw.value, result.raw.n) == (0.5, 2)
    assert result.raw.stderr == pytest.approx(math.sqrt(0.25 / 2))
    assert result.chance == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_choice_a_model_without_preference_gets_chance_not_the_first() -> None:
    model = Model({c: (-2.0, 1) for c in "abcd"})
    result = evaluate_choices([ChoiceItem("q", tuple("abcd"), 0)] * 5, model)
    assert result.raw.value == result.chance == 0.25
    impossible = Model({c: (-math.inf, 2) for c in "abcd"})
    assert evaluate_choices([ChoiceItem("q", tuple("abcd"), 2)], impossible).raw.value == 0.25


@pytest.mark.parametrize("bad", [(math.nan, 1), (math.inf, 1), (-1.0, 0)])
def test_choice_refuses_unusable_scores(bad: tuple[float, int]) -> None:
    with pytest.raises(ValueError, match="not usable"):
        evaluate_choices([ChoiceItem("q", ("a", "b"), 0)], Model({"a": (-1.0, 1), "b": bad}))


def test_choice_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="1 scores for 2 choices"):
        evaluate_choices([ChoiceItem("q", ("a", "b"), 0)], lambda p, c: [(-1.0, 1)])
    for choices, answer in ((("a",), 0), (("a", "b"), 2), (("a", "b"), -1)):
        with pytest.raises(ValueError, match="must index"):
            ChoiceItem("q", choices, answer)
    nothing = evaluate_choices([], lambda p, c: [])
    assert nothing.raw.n == 0
    assert math.isnan(nothing.chance)
