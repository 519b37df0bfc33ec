"""The model card: what the packed model is, and every gate as it was measured."""

from __future__ import annotations

from agentforge.report import PhaseReport, phase_markdown

_HEAD = """# A 1.58-bit language model

Ternary weights in two bits each, int8 activations, the rest in FP16 or int8 (`config.json` says
which). Chat with it:

    agentforge-tui chat {name}

"""


def unfinished_card(name: str) -> str:
    """Before anything was measured."""
    return f"{_HEAD.format(name=name)}Not measured yet.\n"


def model_card(name: str, report: PhaseReport) -> str:
    """With the whole report of the phase."""
    return _HEAD.format(name=name) + phase_markdown(report)
