"""The generator against an HTTP server that misbehaves: nothing lost or twice, cost exact."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest

from agentforge.config.generator import GeneratorConfig, TeacherConfig
from agentforge.errors import ConfigError, DataError, ExitCode
from agentforge.reasoning.api.client import Answer, EndpointClient, read_key
from agentforge.reasoning.api.cost import Usage, worst_case
from agentforge.reasoning.api.generate import Generation, Progress
from agentforge.reasoning.api.journal import JOURNAL
from agentforge.reasoning.dataset import read_set
from agentforge.reasoning.prompts import request_text
from agentforge.reasoning.strategies import STRATEGIES
from tests.phases.endpoint import Endpoint, Reply, Seen

KEY = "sk-planted-3f9a7c51e2"
TEACHERS = (
    TeacherConfig(name="dear", input_usd=Decimal("5"), output_usd=Decimal("15")),
    TeacherConfig(name="cheap", input_usd=Decimal("0.4"), output_usd=Decimal("0.4")),
)


def config_for(endpoint: Endpoint, **changes: object) -> GeneratorConfig:
    fields: dict[str, object] = {
        "base_url": endpoint.url,
        "teachers": TEACHERS,
        "per_strategy": 12,
        "per_call": 5,
        "requests_per_minute": 60_000,
        "timeout_s": 5.0,
    }
    return GeneratorConfig(**{**fields, **changes})  # type: ignore[arg-type]


class Waits:
    """Sleeping without sleeping; what was asked for is kept."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        await asyncio.sleep(0)


def generate(
    config: GeneratorConfig, folder: Path, waits: Waits | None = None
) -> tuple[Progress, list[str]]:
    told: list[str] = []

    async def work() -> Progress:
        client = EndpointClient(config, KEY)
        generation = Generation(
            config, folder, client, lambda _, text: told.append(text), sleep=waits or Waits()
        )
        try:
            return await generation.run()
        finally:
            await client.close()

    return asyncio.run(work()), [t for t in told if t]


def true_cost(endpoint: Endpoint) -> Decimal:
    price = {t.name: t for t in TEACHERS}
    return sum(
        (
            (price[m].input_usd * i + price[m].output_usd * o) / 1_000_000
            for m, i, o in endpoint.spent
        ),
        Decimal(0),
    )


def check_whole(folder: Path, endpoint: Endpoint, per_strategy: int = 12) -> None:
    """Every strategy and teacher has its number, nothing twice, cost to the last digit."""
    found = read_set(folder)
    count = Counter((e.strategy, e.model_source) for e in found.examples)
    assert count == {(s.name, t.name): per_strategy for s in STRATEGIES for t in TEACHERS}
    assert len({e.id for e in found.examples}) == len(found.examples)
    assert len({e.prompt for e in found.examples}) == len(found.examples)
    assert Decimal(found.metadata.cost_usd) == true_cost(endpoint)
    assert found.accepted
    assert not found.faults


def no_key_in(folder: Path, *texts: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            assert KEY not in path.read_text(encoding="utf-8", errors="replace"), path
    for text in texts:
        assert KEY not in text


def test_a_well_behaved_endpoint(tmp_path: Path) -> None:
    endpoint = Endpoint()
    progress, told = generate(config_for(endpoint), tmp_path)
    check_whole(tmp_path, endpoint)
    assert progress.valid == progress.target == 240
    assert len(endpoint.seen) == 2 * 10 * 3
    assert max(s.count for s in endpoint.seen) == 5
    assert {s.authorization for s in endpoint.seen} == {f"Bearer {KEY}"}
    assert told == []
    no_key_in(tmp_path)
    endpoint.close()


def misbehave(number: int, seen: Seen, reply: Reply) -> None:
    """A different fault every call; every fourth call is in order."""
    match number % 12:
        case 0:
            reply.status, reply.headers = 429, {"retry-after": "7"}
        case 1:
            reply.status = 500
        case 2:
            reply.text = json.dumps(reply.rows)[:-130]
        case 4:
            reply.rows[0]["reasoning"] = "no tokens at all"
        case 5:
            other = "<mece>" if seen.token != "<mece>" else "<step>"
            reply.rows[0]["reasoning"] = reply.rows[0]["reasoning"].replace(seen.token, other)
        case 6:
            reply.drop = True
        case 8:
            reply.text = "I am sorry, I cannot help with that."
        case 9:
            reply.text = "Here you are:\n```json\n" + json.dumps(reply.rows) + "\n```"
        case 10:
            reply.rows[-1] = dict(reply.rows[0])
            reply.usage = False
        case _:
            pass


def test_every_fault_at_once_keeps_what_is_valid_and_counts_the_rest(tmp_path: Path) -> None:
    endpoint = Endpoint(misbehave)
    waits = Waits()
    config = config_for(endpoint, spare_calls=4.0)
    progress, told = generate(config, tmp_path, waits)
    check_whole(tmp_path, endpoint)
    assert {"missing_thinking", "wrong_strategy", "duplicate"} <= set(progress.faults)
    assert {"ok", "rate_limit", "server_error", "connection", "bad_json"} <= set(progress.outcomes)
    assert max(waits.seconds) >= 7.0  # as long as the endpoint asked for
    assert any("status 429" in text for text in told)
    no_key_in(tmp_path, *told)
    endpoint.close()


def test_backoff_grows_is_bounded_and_has_jitter(tmp_path: Path) -> None:
    def down(number: int, seen: Seen, reply: Reply) -> None:
        reply.status = 503

    endpoint = Endpoint(down)
    waits = Waits()
    config = config_for(
        endpoint, teachers=TEACHERS[:1], per_strategy=1, tries=8, most_backoff_s=20.0
    )
    progress, _ = generate(config, tmp_path, waits)
    assert progress.valid == 0
    longer = [s for s in waits.seconds if s > 0.5]
    assert len(longer) == 10 * 7  # ten streams of one call, seven waits each
    assert max(longer) <= 20.0
    assert len(set(longer)) == len(longer)
    assert min(longer) >= 1.0
    endpoint.close()


def test_a_slow_endpoint_is_left_and_asked_again(tmp_path: Path) -> None:
    def slow(number: int, seen: Seen, reply: Reply) -> None:
        reply.delay_s = 1.5 if number == 0 else 0.0

    endpoint = Endpoint(slow)
    config = config_for(endpoint, per_strategy=2, timeout_s=0.6, teachers=TEACHERS[1:])
    progress, _ = generate(config, tmp_path)
    assert progress.outcomes["timeout"] >= 1
    assert progress.valid == 20
    endpoint.close()


@pytest.mark.parametrize("limit", ["0.005", "0.02", "0.05"])
def test_the_cost_limit_holds_and_is_warned_of(tmp_path: Path, limit: str) -> None:
    endpoint = Endpoint()
    config = config_for(
        endpoint,
        cost_limit_usd=Decimal(limit),
        warn_share=0.3,
        teachers=TEACHERS[:1],
        tokens_per_example=50,
    )
    progress, told = generate(config, tmp_path)
    assert true_cost(endpoint) <= Decimal(limit)
    assert progress.usd == true_cost(endpoint)
    assert "cost limit" in progress.stopped
    assert progress.valid < progress.target
    if progress.usd >= Decimal(limit) * Decimal("0.3"):
        assert sum("are spent" in t for t in told) == 1
    spent = len(endpoint.seen)
    again, _ = generate(config, tmp_path)
    assert len(endpoint.seen) == spent
    assert again.valid == progress.valid
    more, _ = generate(config_for(endpoint, teachers=TEACHERS[:1]), tmp_path)
    assert more.valid == more.target
    assert more.usd == true_cost(endpoint)
    endpoint.close()


def test_a_waiting_call_never_meets_a_limit_without_the_cost_of_the_one_before(
    tmp_path: Path,
) -> None:
    """Every reply costs its worst case, and the limit allows exactly three of them."""
    config = GeneratorConfig(
        teachers=TEACHERS[:1],
        per_strategy=1,
        per_call=1,
        tokens_per_example=100,
        concurrency=8,
        requests_per_minute=60_000,
    )
    teacher = config.teachers[0]
    worst = max(worst_case(config, teacher, request_text(s, 1, 0), 1) for s in STRATEGIES)
    limit = 3 * worst
    config = config.model_copy(update={"cost_limit_usd": limit})

    class Dear:
        async def ask(self, *arguments: object) -> Answer:
            await asyncio.sleep(0)
            return Answer(
                "ok",
                text="[]",
                usage=Usage(0, int(worst * 1_000_000 / teacher.output_usd)),
                again=False,
            )

        async def close(self) -> None:
            pass

    async def work() -> Progress:
        generation = Generation(config, tmp_path, Dear(), lambda *_: None, sleep=Waits())
        return await generation.run()

    progress = asyncio.run(work())
    assert progress.usd <= limit
    assert progress.usd > limit - worst
    assert "cost limit" in progress.stopped


def test_a_refused_key_ends_it_with_a_message_that_does_not_hold_the_key(tmp_path: Path) -> None:
    def refuse(number: int, seen: Seen, reply: Reply) -> None:
        reply.status = 401

    endpoint = Endpoint(refuse)
    with pytest.raises(DataError) as error:
        generate(config_for(endpoint), tmp_path)
    assert "status 401" in str(error.value)
    assert "***" in str(error.value)
    no_key_in(tmp_path, str(error.value), repr(error.value))
    endpoint.close()


def test_without_a_key_it_says_which_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENROUTER_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="OPENROUTER_API_KEY is not set"):
        read_key(GeneratorConfig())


def test_a_journal_cut_in_the_middle_of_a_line_goes_on(tmp_path: Path) -> None:
    endpoint = Endpoint()
    generate(config_for(endpoint, per_strategy=5), tmp_path)
    journal = tmp_path / JOURNAL
    data = journal.read_bytes()
    lines = data.splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]) + lines[-1][:50])
    endpoint.spent.pop()  # the call whose line was lost is not known any more
    generate(config_for(endpoint), tmp_path)
    found = read_set(tmp_path)
    assert len(found.examples) == 240
    assert len({e.id for e in found.examples}) == 240
    endpoint.close()


def test_a_damaged_journal_is_named(tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_text('{"teacher": 1}\n')
    endpoint = Endpoint()
    with pytest.raises(DataError, match=r"calls\.jsonl line 1"):
        generate(config_for(endpoint), tmp_path)
    endpoint.close()


def test_one_call_at_a_time_repeats_but_for_timestamps(tmp_path: Path) -> None:
    rows = []
    for name in ("a", "b"):
        endpoint = Endpoint()
        config = config_for(endpoint, concurrency=1, per_strategy=3)
        generate(config, tmp_path / name)
        text = (tmp_path / name / "examples.jsonl").read_text()
        rows.append([json.loads(line) | {"timestamp": ""} for line in text.splitlines()])
        endpoint.close()
    assert rows[0] == rows[1]


def start(endpoint: Endpoint, folder: Path, config_file: Path) -> subprocess.Popen[str]:
    teachers = "\n".join(
        f'[[quietstar.generator.teachers]]\nname = "{t.name}"\ninput_usd = "{t.input_usd}"\n'
        f'output_usd = "{t.output_usd}"\n'
        for t in TEACHERS
    )
    config_file.write_text(
        f'[quietstar.generator]\nbase_url = "{endpoint.url}"\nper_strategy = 12\nper_call = 5\n'
        f"requests_per_minute = 3000\nbackoff_s = 0.05\nspare_calls = 4.0\n{teachers}"
    )
    return subprocess.Popen(
        [sys.executable, "-m", "agentforge.cli", "data", "generate", "--preset", "smoke"]
        + ["--config", str(config_file), "--out", str(folder)],
        env={**os.environ, "OPENROUTER_API_KEY": KEY},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_killed_and_with_the_endpoint_gone_for_a_while_nothing_is_lost(tmp_path: Path) -> None:
    endpoint = Endpoint(misbehave)
    folder = tmp_path / "set"
    for kill in (signal.SIGKILL, signal.SIGINT):
        process = start(endpoint, folder, tmp_path / "c.toml")
        seen = len(endpoint.seen)
        while len(endpoint.seen) < seen + 15 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(kill)
        output = process.communicate(timeout=60)[0]
        assert KEY not in output
        if kill is signal.SIGINT:
            assert process.returncode == ExitCode.INTERRUPTED, output
            assert "the same command goes on" in output
    process = start(endpoint, folder, tmp_path / "c.toml")
    seen = len(endpoint.seen)
    while len(endpoint.seen) < seen + 10 and process.poll() is None:
        time.sleep(0.01)
    port = endpoint.port
    endpoint.close()
    time.sleep(0.3)
    second = Endpoint(misbehave, port)
    output = process.communicate(timeout=120)[0]
    assert KEY not in output
    if process.returncode != ExitCode.OK:  # a stream may have used up its tries meanwhile
        process = start(second, folder, tmp_path / "c.toml")
        output = process.communicate(timeout=120)[0]
    assert process.returncode == ExitCode.OK, output
    assert "accepted: yes" in output
    found = read_set(folder)
    count = Counter((e.strategy, e.model_source) for e in found.examples)
    assert all(n >= 9 for n in count.values())
    assert len({e.id for e in found.examples}) == len(found.examples)
    assert len({e.prompt for e in found.examples}) == len(found.examples)
    # Replies that were under way when it was killed are the endpoint's, not ours.
    assert Decimal(found.metadata.cost_usd) <= sum(
        (true_cost(e) for e in (endpoint, second)), Decimal(0)
    )
    no_key_in(tmp_path)
    second.close()
