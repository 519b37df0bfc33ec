"""What may change when a run is resumed.

The checkpoint belongs to the shapes, data, mixes, steps and seeds it was written under, so those
stay. Free to change are the values that are tunable in a running phase, where the run stops
(``until``), how many processes measure (each has one thread, so results stay the same), who answers
alerts, where logs go, what is kept on disk, and where it computes: the device, the threads and the
memory it may use (another device or thread count rounds differently, so the resumed run is then no
longer bit-identical to the uninterrupted one).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from agentforge.config.keys import schema_keys
from agentforge.config.load import Loaded, leaves, with_overrides
from agentforge.errors import ConfigError

FREE_KEYS = frozenset(
    {"until", "on_alert", "data.data_dir", "data.use_hub", "tokenizer.path", "evomerge.workers"}
)
FREE_SECTIONS = ("storage.", "logging.", "resources.")


def may_change(key: str) -> bool:
    """True when a resumed run may have another value of this dotted key."""
    if key in FREE_KEYS or key.startswith(FREE_SECTIONS):
        return True
    known = schema_keys().get(key)
    return known is not None and known.tunable


def resumed_config(
    saved: Loaded, sets: Sequence[str], flags: Iterable[tuple[str, str, object]] = ()
) -> Loaded:
    """The configuration of a resumed run.

    Args:
        saved: What the run's manifest holds.
        sets: ``--set`` texts.
        flags: (dotted key, flag, value) of flags that stand for one key.

    Raises:
        ConfigError: A key that does not exist, a value out of bounds, or a key that must stay.
    """
    loaded = with_overrides(saved.config, saved.provenance, sets, flags)
    before, after = dict(leaves(saved.config)), dict(leaves(loaded.config))
    fixed = [
        key
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key) and not may_change(key)
    ]
    if fixed:
        lines = "; ".join(
            f"{key} = {after.get(key)} (the run has {before.get(key)})" for key in fixed
        )
        tunable = ", ".join(k.name for k in schema_keys().values() if k.tunable)
        raise ConfigError(
            f"a resumed run keeps these: {lines}",
            remedy=f"start a new run for them; a resumed one may change {tunable}, "
            f"{', '.join(sorted(FREE_KEYS))} and the tables resources, storage, logging",
        )
    return loaded
