"""MBPP and CodeXGLUE: text to code, and code to text."""

from __future__ import annotations

import re

from agentforge.data.example import Example
from agentforge.data.records import Record, Skipped

_TRIPLE = re.compile(r"[ \t]*[rRuUbB]{0,2}(\"\"\"|''')(.*?)\1[ \t]*\n?", re.DOTALL)
_MEMBERS = 12
"""Class members named in a CONCODE prompt; the longest lists run to thousands of characters."""


def mbpp(record: Record) -> Example | Skipped:
    """The task and its first test, which names the function; the answer is the code.

    The hub's code has ``\\r\\n`` line ends; they become ``\\n``.
    """
    code = record.text("code")
    if not code:
        return Skipped("no code")
    tests = record.texts("test_list")
    prompt = record.text("text")
    if tests:
        prompt = f"{prompt}\nIt must pass: {tests[0]}"
    code = "\n".join(line.rstrip() for line in code.splitlines())
    return Example(prompt, code, record.dataset, "code")


def code_x_glue(record: Record) -> Example | Skipped:
    """CodeXGLUE in either form: by its columns code-to-text (Python) or text-to-code (Java)."""
    return _text_to_code(record) if record.has("nl") else _code_to_text(record)


def _code_to_text(record: Record) -> Example | Skipped:
    """A Python function without its docstring; the answer is the docstring's first paragraph.

    The hub's ``code`` contains the docstring, so leaving it in would hand out the answer.
    """
    docstring = record.text("docstring")
    code = record.text("code")
    summary = " ".join(re.split(r"\n\s*\n", docstring, maxsplit=1)[0].split())
    if not summary or not code:
        return Skipped("no docstring")
    bare = _without_docstring(code, docstring)
    if bare is None:
        return Skipped("docstring cannot be told from the code")
    return Example(f"What does this Python function do?\n{bare}", summary, record.dataset, "code")


def _without_docstring(code: str, docstring: str) -> str | None:
    """The code with its docstring cut out; None when it cannot be found or shows up twice."""
    wanted = " ".join(docstring.split())
    bare = None
    for match in _TRIPLE.finditer(code):
        if wanted in " ".join(match.group(2).split()):
            bare = code[: match.start()] + code[match.end() :]
            break
    if bare is None:  # a docstring in single quotes, on one line
        for quote in ('"', "'"):
            if quote + docstring + quote in code:
                bare = code.replace(quote + docstring + quote, "", 1)
                break
    if bare is None or wanted in " ".join(bare.split()):
        return None
    return "\n".join(line.rstrip() for line in bare.splitlines() if line.strip())


def _text_to_code(record: Record) -> Example | Skipped:
    """CONCODE (Iyer et al. 2018): a comment and the members of its class; the answer is a method.

    ``concode_field_sep`` and ``concode_elem_sep`` are separators of the file format; they become
    punctuation, and at most twelve members are named. The hub's test split has no code.
    """
    code = record.text("code")
    if not code:
        return Skipped("no code")
    comment, *fields = record.text("nl").split("concode_field_sep")
    members = [m.strip() for field in fields for m in field.split("concode_elem_sep")]
    named = list(dict.fromkeys(m for m in members if m))[:_MEMBERS]
    prompt = f"Write a Java method: {comment.strip()}"
    if named:
        prompt += f"\nThe class has: {', '.join(named)}"
    return Example(prompt, code, record.dataset, "code")
