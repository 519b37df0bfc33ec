"""WikiText, FineWeb-Edu, OpenWebText: plain text, no prompt."""

from __future__ import annotations

import re

from agentforge.data.example import Example
from agentforge.data.records import Record, Skipped

_HEADING = re.compile(r"(?:= ?){1,6}[^=].*=")
_JOINER = re.compile(r" @([-,.])@ ")
_SPACED = re.compile(r" ([.,;:!?)\]]|'s\b|n't\b)")


def wikitext(record: Record) -> Example | Skipped:
    """One paragraph a record; blank rows and headings (``= Title =``) are skipped.

    The tokenised form's ``1 @,@ 200`` and blanks before punctuation are undone, so perplexities
    must not be compared with published WikiText figures.
    """
    text = record.text("text")
    if not text:
        return Skipped("blank")
    if _HEADING.fullmatch(text):
        return Skipped("heading")
    text = _SPACED.sub(r"\1", _JOINER.sub(r"\1", text)).replace("( ", "(")
    return Example("", text, record.dataset, "language")


def plain_text(record: Record) -> Example | Skipped:
    """FineWeb-Edu and OpenWebText: the text column as it is."""
    text = record.text("text")
    return Example("", text, record.dataset, "language") if text else Skipped("blank")
