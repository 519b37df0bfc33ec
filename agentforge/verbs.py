"""What the verbs of ``agentforge-tui`` say: each function returns its text and exit code."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path

from agentforge.config.load import load_config, parse_value, show_rows
from agentforge.config.presets import preset_dir, preset_names, read_toml
from agentforge.errors import ConfigError, ExitCode, RunError
from agentforge.tables import duration_text, size_text, text_table

Answer = tuple[str, ExitCode]


def status(runs_root: Path, *, as_json: bool) -> Answer:
    """All runs of a folder, newest first."""
    from agentforge.run.status import list_runs

    runs = list_runs(runs_root)
    if as_json:
        rows = [dataclasses.asdict(run) | {"path": str(run.path)} for run in runs]
        return json.dumps(rows, indent=1), ExitCode.OK
    if not runs:
        return f"no runs in {runs_root}", ExitCode.OK
    now = time.time()
    table = text_table(
        ("run", "preset", "state", "at", "step", "loss", "left", "gates", "alerts", "last sign"),
        [
            (
                run.run_id,
                run.preset,
                run.state,
                " ".join(dict.fromkeys(p for p in (run.phase, run.stage, run.model) if p)) or None,
                f"{run.step}/{run.steps}" if run.steps else None,
                run.loss,
                duration_text(run.eta_s) if run.eta_s is not None else None,
                f"{run.gates_met} met, {run.gates_missed} missed",
                run.alerts_open + run.warnings,
                f"{duration_text(now - run.updated)} ago",
            )
            for run in runs
        ],
    )
    return table, ExitCode.OK


def report(runs_root: Path, which: str, *, as_json: bool) -> Answer:
    """What a run measured, as Markdown or JSON; the exit code tells of the command, not of gates.

    Raises:
        RunError: No such run, or a damaged report.
    """
    from agentforge.report import build_report, report_json, report_markdown
    from agentforge.run.layout import find_run

    found = build_report(find_run(runs_root, which))
    return (report_json(found) if as_json else report_markdown(found)), ExitCode.OK


def doctor(runs_root: Path, *, as_json: bool, network: bool) -> Answer:
    """The machine; exit code 3 when something that a run needs is missing."""
    from agentforge.doctor import examine, healthy

    findings = examine(runs_root, network=network)
    code = ExitCode.OK if healthy(findings) else ExitCode.PREFLIGHT
    if as_json:
        return json.dumps([dataclasses.asdict(f) for f in findings], indent=1), code
    rows = [(f.name, f.state, f.detail) for f in findings]
    return text_table(("part", "state", "found"), rows), code


def presets() -> Answer:
    """The shipped presets."""
    rows = []
    for name in preset_names():
        table = read_toml(preset_dir() / f"{name}.toml")
        rows.append((name, str(table.get("description", ""))))
    return text_table(("preset", "what it is"), rows), ExitCode.OK


def config_show(
    preset: str | None, file: Path | None, sets: Sequence[str], *, as_json: bool
) -> Answer:
    """Every key with its value and origin.

    Raises:
        ConfigError: As for a run.
    """
    loaded = load_config(preset=preset, file=file, sets=sets)
    if as_json:
        tree = {
            "config": loaded.config.model_dump(mode="json"),
            "provenance": loaded.provenance,
        }
        return json.dumps(tree, indent=1, ensure_ascii=False), ExitCode.OK
    rows = [(row.key, row.origin, row.value) for row in show_rows(loaded)]
    return text_table(("key", "from", "value"), rows), ExitCode.OK


def config_validate(file: Path) -> Answer:
    """Whether a file is a valid configuration, alone or over the preset it names.

    Raises:
        ConfigError: With every mistake in it.
    """
    loaded = load_config(file=file, env={})
    return f"{file}: valid (preset {loaded.config.preset})", ExitCode.OK


def data_list(*, as_json: bool) -> Answer:
    """The registry of the 16 datasets."""
    from agentforge.data.registry import REGISTRY, STAGE_NAMES

    rows = [
        (
            item.name,
            item.category,
            f"{item.stage} {STAGE_NAMES[item.stage]}",
            item.cap,
            f"{item.hub_id} ({item.config})",
            item.licence,
            "on" if item.default_on else f"off: {item.off_reason}",
        )
        for item in REGISTRY
    ]
    columns = ("dataset", "category", "stage", "cap", "hub", "licence", "default")
    if as_json:
        table = [dict(zip(columns, row, strict=True)) for row in rows]
        return json.dumps(table, indent=1, ensure_ascii=False), ExitCode.OK
    return text_table(columns, rows), ExitCode.OK


def data_check(data_dir: str | None, sets: Sequence[str], *, as_json: bool) -> Answer:
    """Where each dataset is found, with records and licence, or what is missing.

    Exit code 3 when a dataset that is on by default is broken, or none is found at all.

    Raises:
        ConfigError: A ``--set`` that is not allowed.
        DataError: The data folder is missing.
    """
    from agentforge.data.inventory import check_data

    flags = {"data.data_dir": ("--data-dir", data_dir)} if data_dir else {}
    config = load_config(preset="laptop", sets=sets, flags=flags).config
    rows = check_data(config.data)
    chosen = [row for row in rows if row.chosen]
    usable = any(row.status in ("local", "cache", "hub") for row in chosen)
    broken = any(row.status == "broken" for row in chosen)
    code = ExitCode.OK if usable and not broken else ExitCode.PREFLIGHT
    if as_json:
        table = [dataclasses.asdict(row) for row in rows]
        return json.dumps(table, indent=1, ensure_ascii=False), code
    text = text_table(
        ("dataset", "used", "category", "found", "records", "train", "licence", "note"),
        [
            (
                row.name,
                row.chosen,
                row.category,
                "hand-written" if row.stand_in else row.status,
                row.records,
                row.train,
                row.licence,
                row.problem or row.why_off or row.skipped,
            )
            for row in rows
        ],
    )
    return text, code


def data_fetch(names: Sequence[str], data_dir: str) -> Answer:
    """Download datasets into a folder; exit code 1 when one failed.

    Raises:
        DataError: An unknown name, no network, or the folder cannot be written.
    """
    from agentforge.data.fetch import fetch_datasets

    results = fetch_datasets(names, data_dir)
    rows = [(r.name, r.status, r.records, r.problem) for r in results]
    failed = any(r.status == "failed" for r in results)
    text = text_table(("dataset", "status", "records", "problem"), rows)
    return text, ExitCode.RUN_FAILED if failed else ExitCode.OK


def data_generate(
    out: Path | None,
    source: str,
    model_dir: Path | None,
    preset: str | None,
    config_file: Path | None,
    sets: Sequence[str],
    *,
    dry_run: bool,
) -> Answer:
    """Generate reasoning examples; exit code 4 when the set is not accepted.

    Raises:
        ConfigError: Options that do not fit, or no key.
        DataError: The endpoint refuses, or a file is damaged.
    """
    from agentforge.reasoning.api.verb import generate_from_api, generate_locally, price_text

    loaded = load_config(preset=preset, file=config_file, sets=sets)
    wanted = loaded.config.quietstar.generator
    if dry_run and source == "api":
        return price_text(wanted), ExitCode.OK
    if out is None:
        raise ConfigError("--out is missing", remedy="name the folder of the set: --out DIR")
    if source == "api":
        if model_dir is not None:
            raise ConfigError("--model-dir belongs to --source local")
        return generate_from_api(wanted, out.expanduser())
    if model_dir is None:
        raise ConfigError("--source local needs --model-dir", remedy="--model-dir FOLDER_OR_GGUF")
    if dry_run:
        return f"free: {model_dir} runs on this machine", ExitCode.OK
    return generate_locally(wanted, out.expanduser(), model_dir.expanduser())


def clean(runs_root: Path, *, dry_run: bool) -> Answer:
    """Remove old runs (see `agentforge.cleanup`); exit code 1 when one could not be removed."""
    from agentforge.cleanup import OldRun, choose, remove
    from agentforge.run.layout import RunLayout
    from agentforge.run.status import list_runs
    from agentforge.run.supervisor import adopt

    runs = [OldRun(r.run_id, r.path, r.state, r.updated) for r in list_runs(runs_root)]
    removals = [r for r in choose(runs, time.time()) if adopt(RunLayout(r.run.path)) is None]
    if not removals:
        return f"nothing to remove in {runs_root} ({len(runs)} runs)", ExitCode.OK
    rows = [(r.run.run_id, r.run.status, size_text(r.bytes), r.reason) for r in removals]
    table = text_table(("run", "state", "size", "why"), rows)
    total = size_text(sum(r.bytes for r in removals))
    if dry_run:
        return f"{table}\n\nwould free {total} (--dry-run: nothing was removed)", ExitCode.OK
    failed = remove(removals)
    for removal, why in failed:
        table += f"\n{removal.run.run_id} could not be removed: {why}"
    code = ExitCode.RUN_FAILED if failed else ExitCode.OK
    return f"{table}\n\nremoved {len(removals) - len(failed)} runs of {total}", code


def control(
    runs_root: Path, which: str, verb: str, arguments: Sequence[str], *, wait_s: float
) -> Answer:
    """Send a command to a live run and wait for its answer.

    Exit code 1 when the run refuses it or does not answer in time.

    Raises:
        ConfigError: A verb or argument that is not allowed.
        RunError: No such run, or no engine runs there.
    """
    from agentforge.events import ControlAck
    from agentforge.run.commands import append_command
    from agentforge.run.layout import find_run
    from agentforge.run.supervisor import adopt
    from agentforge.run.tail import EventTail

    args = control_arguments(verb, arguments)
    layout = find_run(runs_root, which)
    if adopt(layout) is None:
        raise RunError(
            f"run {layout.run_id} has no engine running",
            remedy=f"go on with it: agentforge-tui --batch --resume {layout.run_id}",
        )
    tail = EventTail(layout.events)
    tail.skip_to_end()
    command = append_command(layout, verb, args, by="command line")
    deadline = time.monotonic() + wait_s
    while True:
        over = adopt(layout) is None or time.monotonic() >= deadline
        for stamped in tail.poll():
            ack = stamped.event
            if isinstance(ack, ControlAck) and ack.id == command:
                outcome = "done" if ack.ok else "refused"
                message = f": {ack.message}" if ack.message else ""
                code = ExitCode.OK if ack.ok else ExitCode.RUN_FAILED
                return f"{verb} {outcome} at step {ack.step}{message}", code
        if over:
            return f"{verb} sent; no answer within {wait_s:g} s", ExitCode.RUN_FAILED
        time.sleep(0.05)


def control_arguments(verb: str, arguments: Sequence[str]) -> dict[str, str | int | float | bool]:
    """``key=value`` texts as the arguments of a verb.

    Raises:
        ConfigError: A text that does not fit the verb.
    """
    usage = {"set": ("key", "value", "KEY=VALUE"), "answer": ("alert", "action", "ALERT=ACTION")}
    if verb not in usage:
        if arguments:
            raise ConfigError(f"control {verb} takes no arguments, got {' '.join(arguments)}")
        return {}
    first, second, form = usage[verb]
    key, equals, value = arguments[0].partition("=") if len(arguments) == 1 else ("", "", "")
    if not key or not equals:
        raise ConfigError(
            f"control {verb}: got {' '.join(arguments) or 'nothing'}, needed: one {form}",
            remedy="such as: agentforge-tui control latest set cognate.optim.lr_scale=0.5",
        )
    parsed = parse_value(value) if verb == "set" else value
    return {first: key, second: parsed if isinstance(parsed, (str, int, float, bool)) else value}
