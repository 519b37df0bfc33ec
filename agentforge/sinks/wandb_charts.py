"""The charts of Phases 3 and 4 in Weights & Biases, from figures collected on the way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentforge.events import TableDone

FOLLOWED = (
    "baking/accuracy_overall",
    "rl/reward",
    "anti_theater/divergence",
    "anti_theater/ablation_drop",
    "anti_theater/correlation",
)
"""Figures that a chart shows."""
TREND = FOLLOWED[2:]
DISTANCE = "finetune/kl"


def follow(
    followed: dict[str, list[float]], phase: str, values: Mapping[str, float | dict[str, float]]
) -> None:
    """Collect what the charts of Phases 3 and 4 show."""
    for name in {"quietstar": FOLLOWED, "bitnet": (DISTANCE,)}.get(phase, ()):
        value = values.get(name)
        if isinstance(value, float | int):
            followed.setdefault(name, []).append(float(value))


def quietstar_charts(wandb: Any, followed: Mapping[str, list[float]], stage: str) -> dict[str, Any]:
    """The charts that are complete when a stage ends."""
    if stage == "train" and "baking/accuracy_overall" in followed:
        chart = _line(wandb, followed["baking/accuracy_overall"], "look", "converged", "Baking")
        return {"charts/baking_convergence": chart}
    if stage == "reinforce" and "rl/reward" in followed:
        return {"charts/rl_reward": _line(wandb, followed["rl/reward"], "step", "reward", "Reward")}
    lines = {name: followed[name] for name in TREND if name in followed}
    if stage == "compare" and lines:
        longest = max(len(values) for values in lines.values())
        chart = wandb.plot.line_series(
            xs=list(range(1, longest + 1)),
            ys=list(lines.values()),
            keys=[name.partition("/")[2] for name in lines],
            title="Anti-theater tests",
            xname="check",
        )
        return {"charts/anti_theater_trend": chart}
    return {}


def bitnet_chart(wandb: Any, followed: Mapping[str, list[float]], stage: str) -> dict[str, Any]:
    """How far the ternary model is from its teacher, once a fine-tuning ends."""
    if stage != "finetune" or DISTANCE not in followed:
        return {}
    title = "Distance from the teacher"
    return {"charts/accuracy_recovery": _line(wandb, followed[DISTANCE], "step", "nats", title)}


def layer_charts(wandb: Any, event: TableDone) -> dict[str, Any]:
    """Bytes and zeros of the ternary matrices, from their table."""
    if event.name != "compression/layers":
        return {}

    def bars(column: str, title: str) -> Any:
        place = event.columns.index(column)
        rows = [[row[0], row[place]] for row in event.rows]
        table = wandb.Table(columns=["matrix", column], data=rows)
        return wandb.plot.bar(table, "matrix", column, title=title)

    return {
        "charts/compression_by_layer": bars("bytes", "Bytes by matrix"),
        "charts/sparsity_distribution": bars("zero weights", "Zeros by matrix"),
    }


def _line(wandb: Any, values: list[float], x: str, y: str, title: str) -> Any:
    rows = [[i, value] for i, value in enumerate(values, 1)]
    return wandb.plot.line(wandb.Table(columns=[x, y], data=rows), x, y, title=title)
