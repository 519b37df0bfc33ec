"""`agentforge-tui data generate`: the price first, progress, interruption without loss."""

from __future__ import annotations

import asyncio
import sys
import time
from decimal import Decimal
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from agentforge.config.generator import GeneratorConfig
from agentforge.errors import ExitCode
from agentforge.reasoning.api.client import Client, EndpointClient, read_key
from agentforge.reasoning.api.cost import estimate, usd_text
from agentforge.reasoning.api.generate import Generation, Progress
from agentforge.reasoning.dataset import LEAST_SHARE, WARN_SHARE, read_set
from agentforge.reasoning.local_model import LocalTeacher, local_config
from agentforge.reasoning.prompts import request_text
from agentforge.reasoning.strategies import STRATEGIES
from agentforge.tables import duration_text, text_table

LINE_S = 10.0


def price_text(config: GeneratorConfig) -> str:
    """What generating would cost and take, computed: no call is made."""
    request = request_text(STRATEGIES[0], config.per_call, 0)
    found = estimate(config, len(STRATEGIES), len(request.encode()))
    calls = sum(e.calls for e in found)
    total = sum((e.usd for e in found), Decimal(0))
    rows = [(e.teacher, e.calls, e.input_tokens, e.output_tokens, usd_text(e.usd)) for e in found]
    target = len(config.teachers) * len(STRATEGIES) * config.per_strategy
    minutes = calls / config.requests_per_minute
    lines = [
        f"{target:,} examples: {len(config.teachers)} teachers x {len(STRATEGIES)} strategies x "
        f"{config.per_strategy}, at most {config.per_call} a call",
        "",
        text_table(("teacher", "calls", "tokens in", "tokens out", "cost"), rows),
        "",
        f"in all: {calls:,} calls, {usd_text(total)} (limit {usd_text(config.cost_limit_usd)}), "
        f"{duration_text(60 * minutes)} at {config.requests_per_minute:g} calls a minute",
        f"assumed: {config.tokens_per_example} reply tokens an example, no failures",
    ]
    if total > config.cost_limit_usd:
        lines.append("the limit would end it early: raise cost_limit_usd or ask for less")
    return "\n".join(lines)


class _Display:
    """A bar on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, target: int) -> None:
        self._bar: Bar | None = None
        self._last = 0.0
        if sys.stderr.isatty():
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[cost]}"),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task("examples", total=target, cost="")
            self._bar.start()

    def show(self, progress: Progress, text: str) -> None:
        cost = f"{usd_text(progress.usd)}, about {usd_text(progress.projected_usd)} in the end"
        if self._bar is not None:
            self._bar.update(self._task, completed=progress.valid, cost=cost)
            if text:
                self._bar.console.print(text, markup=False, highlight=False)
            return
        if text:
            sys.stderr.write(f"{text}\n")
        now = time.monotonic()
        if now - self._last >= LINE_S:
            self._last = now
            faults = sum(progress.faults.values())
            sys.stderr.write(
                f"{progress.valid:,} of {progress.target:,} examples, {faults} not usable, {cost}\n"
            )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def generate_from_api(config: GeneratorConfig, folder: Path) -> tuple[str, ExitCode]:
    """Generate from the endpoint, or go on, into a folder.

    Raises:
        ConfigError: No key, or the client library is missing.
        DataError: The endpoint refuses, or the journal is damaged.
        PreflightError: The disk refuses.
    """
    return _generate(config, folder, EndpointClient(config, read_key(config)))


def generate_locally(config: GeneratorConfig, folder: Path, model: Path) -> tuple[str, ExitCode]:
    """Generate with a local model, or go on, into a folder.

    Raises:
        ConfigError: There is no model at that place.
        DataError: It cannot be loaded, or the journal is damaged.
        PreflightError: The disk refuses.
    """
    wanted = local_config(config, model)
    return _generate(wanted, folder, LocalTeacher(model, wanted))


def _generate(config: GeneratorConfig, folder: Path, client: Client) -> tuple[str, ExitCode]:
    """Generate with any teacher.

    Raises:
        DataError: The endpoint refuses, or the journal is damaged.
        PreflightError: The disk refuses.
    """
    interrupted = False

    async def work() -> Progress:
        display: _Display | None = None

        def tell(progress: Progress, text: str) -> None:
            assert display is not None
            display.show(progress, text)

        generation = Generation(config, folder, client, tell)
        display = _Display(generation.progress.target)
        try:
            return await generation.run()
        finally:
            display.close()
            await client.close()

    try:
        progress: Progress | None = asyncio.run(work())
    except KeyboardInterrupt:
        progress, interrupted = None, True
    text = summary(folder)
    if interrupted:
        text += "\ninterrupted: the same command goes on where it stopped"
        return text, ExitCode.INTERRUPTED
    if progress is not None and progress.stopped:
        text += f"\n{progress.stopped}"
    accepted = read_set(folder).accepted
    return text, ExitCode.OK if accepted else ExitCode.GATE_MISSED


def summary(folder: Path) -> str:
    """What a set holds and whether it is accepted."""
    found = read_set(folder)
    rows = [(name, count) for name, count in found.by_strategy.items()]
    faults = ", ".join(f"{k} {v}" for k, v in sorted(found.metadata.faults.items())) or "none"
    lines = [
        text_table(("strategy", "valid"), rows),
        "",
        f"{len(found.examples):,} valid of {found.metadata.tried:,} tried "
        f"({100 * found.valid_share:.1f} %), target {found.metadata.target:,}; "
        f"not usable: {faults}",
        f"cost: {usd_text(Decimal(found.metadata.cost_usd))}; folder: {folder}",
        f"accepted: {'yes' if found.accepted else 'no'} (at least {100 * LEAST_SHARE:.0f} % of the "
        "target and all ten strategies)",
    ]
    if found.needs_attention:
        lines.append(f"warning: less than {100 * WARN_SHARE:.0f} % are valid: look at the faults")
    return "\n".join(lines)
