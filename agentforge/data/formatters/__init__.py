"""One function a dataset: raw record in, `Example` out.

To add a dataset: write its function here (in the file of its category), add an entry to
`agentforge.data.registry.REGISTRY`, and a test with a record of each odd form it has.

A formatter is pure. It returns `Skipped` for a record that is well-formed but empty or unlabelled
(counted and reported), and raises `DataError` for one that has the wrong form. Choice tasks carry
all candidate answers and the index of the right one, so that they can be scored by likelihood;
their ``answer`` is always ``choices[gold]``.
"""

from __future__ import annotations

from collections.abc import Callable

from agentforge.data.example import Example
from agentforge.data.records import Record, Skipped

Formatter = Callable[[Record], Example | Skipped]
