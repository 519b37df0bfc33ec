"""Each formatter on hand-made records of every odd form its dataset has."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from agentforge.data.example import Example
from agentforge.data.formatters import Formatter, code, commonsense, language, math, qa
from agentforge.data.records import Record, Skipped
from agentforge.errors import DataError


def run(formatter: Formatter, **values: Any) -> Example:
    result = formatter(Record(values, "some_set", "file.jsonl:7"))
    assert isinstance(result, Example)
    assert result.dataset == "some_set"
    if result.choices:
        assert result.choices[result.gold] == result.answer
    return result


def skipped(formatter: Formatter, **values: Any) -> str:
    result = formatter(Record(values, "some_set", "file.jsonl:7"))
    assert isinstance(result, Skipped)
    return result.reason


GSM = "She has 48/2 = <<48/2=24>>24 clips.\nIn all 48+24 = <<48+24=72>>72.\n#### 72"


def test_gsm8k_loses_calculator_marks_and_keeps_the_last_line() -> None:
    made = run(math.gsm8k, question="How many?", answer=GSM)
    assert made.answer == "She has 48/2 = 24 clips.\nIn all 48+24 = 72.\n#### 72"
    assert made.difficulty == 2


def test_gsm8k_without_final_number_is_an_error() -> None:
    with pytest.raises(DataError, match="#### NUMBER"):
        run(math.gsm8k, question="q", answer="about 7")


@pytest.mark.parametrize(
    ("answer", "text"),
    [("51.0", "51"), ("-3.50", "-3.5"), (7, "7"), (0.1, "0.1"), ("1,200.0", "1200"), ("-0.0", "0")],
)
def test_svamp_number(answer: object, text: str) -> None:
    made = run(math.svamp, Body="If there are 2 of us", Question="How many each?", Answer=answer)
    assert made.answer == text
    assert made.prompt == "If there are 2 of us How many each?"


@pytest.mark.parametrize("answer", ["", "many", None, True, "nan", "inf", [3]])
def test_svamp_answer_that_is_no_number_is_an_error(answer: object) -> None:
    with pytest.raises(DataError, match="a finite number"):
        run(math.svamp, Body="b", Question="q", Answer=answer)


def test_numbers_have_no_exponent() -> None:
    assert math.number_text(Decimal("1E+20")) == "1" + "0" * 20
    assert math.number_text(Decimal("1200")) == "1200"


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("9 (apples)", "9"),
        ("14  (seats)", "14"),
        ("50 (years old); 20 (years old)", "50; 20"),
        ("8 (ft); 128 (sq. ft)", "8; 128"),
        ("2.0 (km)", "2"),
        ("7:4", "7:4"),
        ("5/13", "5/13"),
        ("They are equal", "They are equal"),
        ("11:55 p.m. on 24 December 2014.", "11:55 p.m. on 24 December 2014."),
    ],
)
def test_asdiv_answer_without_units(answer: str, text: str) -> None:
    assert run(math.asdiv, body="b.", question="q?", answer=answer).answer == text


def test_mbpp_line_ends_and_first_test() -> None:
    made = run(
        code.mbpp,
        text="Add.",
        code="def f(a):\r\n\treturn a \r\n",
        test_list=["assert f(1) == 1", "assert f(2) == 2"],
    )
    assert made.answer == "def f(a):\n\treturn a"
    assert made.prompt == "Add.\nIt must pass: assert f(1) == 1"
    assert run(code.mbpp, text="Add.", code="x", test_list=[]).prompt == "Add."


@pytest.mark.parametrize(
    ("function", "doc"),
    [
        ('def f(a):\n    """Add one."""\n    return a + 1', "Add one."),
        ("def f(a):\n    r'''Add\n      one.'''\n    return a + 1", "Add\n      one."),
        ("def f(a):\n    'Add one.'\n    return a + 1", "Add one."),
        ('def f(a):\n    """ Add one.\n    """\n    return a + 1', "Add one."),
    ],
)
def test_code_to_text_takes_the_docstring_out_of_the_code(function: str, doc: str) -> None:
    made = run(code.code_x_glue, code=function, docstring=doc)
    assert made.answer == "Add one."
    assert "Add" not in made.prompt
    assert made.prompt.endswith("return a + 1")


def test_code_to_text_answers_with_the_first_paragraph() -> None:
    doc = "Add\none.\n\nParameters\n---------"
    made = run(code.code_x_glue, code=f'def f():\n    """{doc}"""\n    pass', docstring=doc)
    assert made.answer == "Add one."


def test_code_to_text_never_hands_out_the_answer() -> None:
    twice = 'def f():\n    """Add."""\n    print("Add.")'
    assert "cannot be told" in skipped(code.code_x_glue, code=twice, docstring="Add.")
    assert "cannot be told" in skipped(code.code_x_glue, code="def f(): pass", docstring="Other.")
    assert skipped(code.code_x_glue, code="def f(): pass", docstring=" ") == "no docstring"


def test_text_to_code_replaces_its_separators() -> None:
    nl = "close it . concode_field_sep int a concode_elem_sep int b concode_field_sep void c"
    made = run(code.code_x_glue, id=1, nl=nl, code="void function ( ) { }")
    assert made.prompt == "Write a Java method: close it .\nThe class has: int a, int b, void c"
    assert "concode" not in made.prompt
    long = "x concode_field_sep " + " concode_elem_sep ".join(f"int a{i}" for i in range(99))
    assert run(code.code_x_glue, nl=long, code="y").prompt.count("int a") == 12
    assert skipped(code.code_x_glue, id=1, nl=nl, code="") == "no code"


def arc(labels: list[str], key: str) -> dict[str, Any]:
    texts = [f"text {label}" for label in labels]
    return {"question": "Why?", "choices": {"text": texts, "label": labels}, "answerKey": key}


@pytest.mark.parametrize(
    ("labels", "key", "gold"),
    [
        (["A", "B", "C", "D"], "C", 2),
        (["1", "2", "3", "4"], "4", 3),
        (["A", "B", "C"], "2", 1),
        (["1", "2", "3", "4", "5"], "E", 4),
    ],
)
def test_arc_labels_may_be_letters_or_numbers(labels: list[str], key: str, gold: int) -> None:
    made = run(qa.arc, **arc(labels, key))
    assert (made.gold, made.category, len(made.choices)) == (gold, "qa", len(labels))


def test_arc_key_outside_its_labels_is_an_error() -> None:
    with pytest.raises(DataError, match="one of the labels A, B"):
        run(qa.arc, **arc(["A", "B"], "D"))
    with pytest.raises(DataError, match="as many labels as texts"):
        run(qa.arc, question="q", choices={"text": ["a"], "label": ["A", "B"]}, answerKey="A")
    with pytest.raises(DataError, match="key 'label'"):
        run(qa.arc, question="q", choices={"text": ["a", "b"]}, answerKey="A")


def hotpot(titles: list[str], wanted: list[str]) -> dict[str, Any]:
    return {
        "question": "Who?",
        "answer": "Ann",
        "level": "hard",
        "supporting_facts": {"title": wanted, "sent_id": [0] * len(wanted)},
        "context": {"title": titles, "sentences": [[f"{t} one.", " Two."] for t in titles]},
    }


def test_hotpot_keeps_only_supporting_paragraphs() -> None:
    made = run(qa.hotpot_qa, **hotpot(["A", "B", "C"], ["C", "A", "A"]))
    assert made.prompt == "A: A one. Two.\nC: C one. Two.\nWho?"
    assert made.difficulty == 3


def test_hotpot_keeps_all_paragraphs_when_the_titles_are_not_there() -> None:
    assert run(qa.hotpot_qa, **hotpot(["A", "B"], ["Z"])).prompt.count("Two.") == 2


def drop(spans: list[str], types: list[str]) -> dict[str, Any]:
    answers = {"spans": spans, "types": types}
    return {"passage": "P.", "question": "Q?", "answers_spans": answers}


@pytest.mark.parametrize(
    ("spans", "types", "answer"),
    [
        (["6", "5"], ["number", "number"], "6"),
        (["1615", "1615"], ["date", "number"], "1615"),
        (["Carlisle", "Preston"], ["span", "span"], "Carlisle, Preston"),
        (["200-300 recruits", "200-300"], ["span", "span"], "200-300 recruits"),
        (["Ann", "Ann"], ["span", "span"], "Ann"),
        (["Rio was founded", "5"], ["span", "number"], "Rio was founded"),
    ],
)
def test_drop_answer_spans(spans: list[str], types: list[str], answer: str) -> None:
    assert run(qa.drop, **drop(spans, types)).answer == answer


def test_drop_without_answer_is_skipped() -> None:
    assert skipped(qa.drop, **drop([], [])) == "no answer"


@pytest.mark.parametrize(("answer", "text", "gold"), [(True, "yes", 0), (False, "no", 1)])
def test_yes_no_questions(answer: bool, text: str, gold: int) -> None:
    made = run(qa.strategy_qa, question="Can it? ", answer=answer)
    assert (made.answer, made.gold, made.choices) == (text, gold, ("yes", "no"))
    made = run(commonsense.boolq, question="is it", answer=answer, passage="It is.")
    assert (made.answer, made.prompt) == (text, "It is.\nIs it?")


@pytest.mark.parametrize("answer", ["true", 1, None])
def test_yes_no_answer_must_be_a_boolean(answer: object) -> None:
    with pytest.raises(DataError, match="true or false"):
        run(qa.strategy_qa, question="q", answer=answer)


def test_piqa_and_its_unlabelled_test_split() -> None:
    goal = {"goal": "g", "sol1": "a", "sol2": "b"}
    assert run(commonsense.piqa, **goal, label=1).answer == "b"
    assert skipped(commonsense.piqa, **goal, label=-1) == "no label"
    with pytest.raises(DataError, match="from 0 to 1"):
        run(commonsense.piqa, **goal, label=2)


def test_hellaswag_text_label_and_markers() -> None:
    row = {
        "activity_label": "Cooking",
        "ctx": "How to cook. [header] Boil [title] water.",
        "endings": ["[step] One.", "Two.", "Three.", "Four."],
    }
    made = run(commonsense.hellaswag, **row, label="0")
    assert made.answer == "One."
    assert made.prompt == "Cooking: How to cook. Boil water.\nWhat comes next?"
    assert skipped(commonsense.hellaswag, **row, label="") == "no label"


def test_wikitext_blank_rows_headings_and_token_marks() -> None:
    assert skipped(language.wikitext, text="") == "blank"
    assert skipped(language.wikitext, text=" \n") == "blank"
    assert skipped(language.wikitext, text=" = Title = \n") == "heading"
    assert skipped(language.wikitext, text=" = = = Deep one = = = \n") == "heading"
    made = run(
        language.wikitext, text=" In 1 @,@ 200 well @-@ known ( old ) men 's huts , all . \n"
    )
    assert made.answer == "In 1,200 well-known (old) men's huts, all."
    assert (made.prompt, made.category) == ("", "language")


def test_plain_text() -> None:
    assert run(language.plain_text, text="a\r\nb\n").answer == "a\nb"
    assert skipped(language.plain_text, text=" ") == "blank"


def test_lone_surrogates_become_the_replacement_character() -> None:
    made = run(language.plain_text, text="a\ud800b")
    made.answer.encode("utf-8")
    assert "\ud800" not in made.answer


def test_a_missing_column_names_everything() -> None:
    with pytest.raises(DataError) as error:
        run(math.gsm8k, question="q", anwser="#### 1")
    text = str(error.value)
    for part in ("file.jsonl:7", "some_set", "'answer'", "anwser"):
        assert part in text


def test_a_wrong_type_names_what_was_seen_and_expected() -> None:
    with pytest.raises(DataError, match=r"file\.jsonl:7.*'question'.*12 \(int\), expected a text"):
        run(math.gsm8k, question=12, answer="#### 1")
    with pytest.raises(DataError, match="a list of texts"):
        run(code.mbpp, text="t", code="c", test_list="assert True")
    with pytest.raises(DataError, match="a list of texts"):
        run(code.mbpp, text="t", code="c", test_list=[1])
