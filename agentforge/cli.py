"""``agentforge-tui``: argument parsing only; what a verb does is in its own module.

Standard output carries results only, standard error progress and mistakes. Exit codes are those of
`agentforge.errors.ExitCode`. Nothing heavy is imported before it is needed: ``--help`` and the
small verbs start without torch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

import agentforge
from agentforge.cli_common import json_option, run_dir_option, runs_root, say
from agentforge.cli_models import bench, chat, export
from agentforge.config.schema import PHASES
from agentforge.errors import AgentForgeError, ConfigError, ExitCode

NO_CONSOLE = (
    "the console comes with a later release; this one runs with --batch, such as:\n"
    "  agentforge-tui --batch --preset demo"
)

preset_option = click.option(
    "--preset", metavar="NAME", help="A shipped preset; `presets` lists them.  [default: demo]"
)
config_option = click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A TOML file laid over the preset.",
)
set_option = click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change one value, such as cognate.base.steps=50; may be repeated.",
)


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--batch", is_flag=True, help="Run without a console; progress on standard error.")
@preset_option
@config_option
@set_option
@click.option(
    "--data-dir",
    metavar="DIR",
    help="Folder of local records, one folder a dataset; takes the preset laptop unless another "
    "is named.",
)
@run_dir_option
@click.option("--until", type=click.Choice(PHASES), help="Last phase to run.")
@click.option(
    "--resume",
    metavar="RUN",
    help="Go on with a run: its id, a part of it, its folder, or latest. It keeps its "
    "configuration but for tunable values, until, on_alert, resources, storage and logging.",
)
@json_option
@click.option(
    "--on-alert",
    type=click.Choice(["auto", "stop", "ignore"]),
    help="Interventions: take the recommended action, suspend, or go on.  [default: auto]",
)
@click.option(
    "--max-minutes",
    type=click.FloatRange(min=0, min_open=True),
    help="Suspend the run after so many minutes (exit code 5).",
)
@click.option("--dry-run", is_flag=True, help="Print the plan and its checks; start nothing.")
@click.version_option(agentforge.__version__, prog_name="agentforge-tui")
@click.pass_context
def cli(
    ctx: click.Context,
    batch: bool,
    preset: str | None,
    config_file: Path | None,
    sets: tuple[str, ...],
    data_dir: str | None,
    run_dir: Path | None,
    until: str | None,
    resume: str | None,
    as_json: bool,
    on_alert: str | None,
    max_minutes: float | None,
    dry_run: bool,
) -> ExitCode:
    """Train three small mergeable specialist models on your own machine, and watch them.

    Exit codes: 0 ok, 1 failed, 2 usage or configuration, 3 pre-flight, 4 a gate was missed,
    5 suspended, 130 interrupted.

    Values come from: defaults, the preset, --config, the environment (AGENTFORGE_COGNATE__BASE__
    STEPS=50), --set, flags; later ones win. `config show` tells where each one came from.
    """
    ctx.obj = run_dir
    if ctx.invoked_subcommand is not None:
        if batch:
            raise click.UsageError(f"--batch and the verb {ctx.invoked_subcommand} exclude another")
        return ExitCode.OK
    if not batch:
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise ConfigError("no terminal here, and no --batch", remedy=NO_CONSOLE)
        raise ConfigError("there is no console yet", remedy=NO_CONSOLE)
    from agentforge.batch import BatchRequest, run_batch

    folder = str(Path(data_dir).expanduser().absolute()) if data_dir is not None else None
    named = (
        ("data.data_dir", "--data-dir", folder),
        ("until", "--until", until),
        ("on_alert", "--on-alert", on_alert),
    )
    outcome = run_batch(
        BatchRequest(
            runs_root=runs_root(ctx, None),
            preset=preset,
            config_file=config_file,
            sets=sets,
            flags=tuple(item for item in named if item[2] is not None),
            resume=resume,
            as_json=as_json,
            max_minutes=max_minutes,
            dry_run=dry_run,
        )
    )
    return say(outcome.text, outcome.code)


@cli.command()
@run_dir_option
@json_option
@click.pass_context
def status(ctx: click.Context, run_dir: Path | None, as_json: bool) -> ExitCode:
    """All runs with their state."""
    from agentforge import verbs

    return say(*verbs.status(runs_root(ctx, run_dir), as_json=as_json))


@cli.command()
@click.argument("run")
@run_dir_option
@json_option
@click.pass_context
def report(ctx: click.Context, run: str, run_dir: Path | None, as_json: bool) -> ExitCode:
    """What a run measured; RUN is an id, a part of it, a folder, or latest."""
    from agentforge import verbs

    return say(*verbs.report(runs_root(ctx, run_dir), run, as_json=as_json))


@cli.command()
@run_dir_option
@json_option
@click.option("--no-network", is_flag=True, help="Do not ask whether the hub answers.")
@click.pass_context
def doctor(ctx: click.Context, run_dir: Path | None, as_json: bool, no_network: bool) -> ExitCode:
    """What this machine has and lacks."""
    from agentforge import verbs

    root = runs_root(ctx, run_dir)
    return say(*verbs.doctor(root, as_json=as_json, network=not no_network))


@cli.command()
def presets() -> ExitCode:
    """The shipped presets."""
    from agentforge import verbs

    return say(*verbs.presets())


@cli.group()
def config() -> None:
    """Show or validate a configuration."""


@config.command("show")
@preset_option
@config_option
@set_option
@json_option
def config_show(
    preset: str | None, config_file: Path | None, sets: tuple[str, ...], as_json: bool
) -> ExitCode:
    """Every key with its value and where that came from."""
    from agentforge import verbs

    return say(*verbs.config_show(preset, config_file, sets, as_json=as_json))


@config.command("validate")
@click.argument("file", type=click.Path(path_type=Path))
def config_validate(file: Path) -> ExitCode:
    """Whether FILE is a valid configuration."""
    from agentforge import verbs

    return say(*verbs.config_validate(file))


@cli.group()
def data() -> None:
    """The datasets: list, check, fetch."""


@data.command("list")
@json_option
def data_list(as_json: bool) -> ExitCode:
    """The 16 datasets with id, licence and curriculum stage."""
    from agentforge import verbs

    return say(*verbs.data_list(as_json=as_json))


@data.command("check")
@click.option("--data-dir", metavar="DIR", help="Folder of local records.")
@set_option
@json_option
def data_check(data_dir: str | None, sets: tuple[str, ...], as_json: bool) -> ExitCode:
    """Where each dataset is found, or what is missing."""
    from agentforge import verbs

    return say(*verbs.data_check(data_dir, sets, as_json=as_json))


@data.command("fetch")
@click.argument("names", nargs=-1)
@click.option("--data-dir", metavar="DIR", required=True, help="Folder to write to.")
def data_fetch(names: tuple[str, ...], data_dir: str) -> ExitCode:
    """Download datasets (all that are on by default, or NAMES) into a folder."""
    from agentforge import verbs

    return say(*verbs.data_fetch(names, data_dir))


@data.command("generate")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of the set; one that was begun is gone on with.",
)
@click.option(
    "--source",
    type=click.Choice(["api", "local"]),
    default="api",
    show_default=True,
    help="An OpenAI-compatible endpoint, or a model on this machine.",
)
@click.option(
    "--model-dir",
    type=click.Path(path_type=Path),
    help="With --source local: a folder of a transformers model, or a GGUF file.",
)
@click.option("--dry-run", is_flag=True, help="Print the price; call nobody.")
@preset_option
@config_option
@set_option
def data_generate(
    out: Path | None,
    source: str,
    model_dir: Path | None,
    dry_run: bool,
    preset: str | None,
    config_file: Path | None,
    sets: tuple[str, ...],
) -> ExitCode:
    """Have models write reasoning examples for Phase 3 (quietstar.generator.*).

    The key is read from the environment (OPENROUTER_API_KEY) and never written. Interrupted, the
    same command goes on. Train on the set with --set quietstar.data.path=FOLDER.
    """
    from agentforge import verbs

    return say(
        *verbs.data_generate(out, source, model_dir, preset, config_file, sets, dry_run=dry_run)
    )


@cli.command()
@run_dir_option
@click.option("--dry-run", is_flag=True, help="List only.")
@click.pass_context
def clean(ctx: click.Context, run_dir: Path | None, dry_run: bool) -> ExitCode:
    """Remove old runs.

    Failed ones go after 7 days, finished ones after 30, and 100 are kept at most; never a live one.
    """
    from agentforge import verbs

    return say(*verbs.clean(runs_root(ctx, run_dir), dry_run=dry_run))


@cli.command()
@click.argument("run")
@click.argument(
    "verb",
    type=click.Choice(
        ["pause", "resume", "checkpoint", "suspend", "finish", "abort", "set", "answer"]
    ),
)
@click.argument("arguments", nargs=-1)
@run_dir_option
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    help="Seconds to wait for the run's answer.",
)
@click.pass_context
def control(
    ctx: click.Context,
    run: str,
    verb: str,
    arguments: tuple[str, ...],
    run_dir: Path | None,
    wait_s: float,
) -> ExitCode:
    """Send VERB to a live RUN: `control latest set cognate.optim.lr_scale=0.5`.

    pause holds the run in memory, suspend writes a checkpoint and leaves, finish ends the phase
    and keeps its result, abort leaves and writes nothing more.
    """
    from agentforge import verbs

    return say(*verbs.control(runs_root(ctx, run_dir), run, verb, arguments, wait_s=wait_s))


for verb in (bench, export, chat):
    cli.add_command(verb)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code is returned, not raised."""
    try:
        done = cli.main(
            args=None if argv is None else list(argv),
            prog_name="agentforge-tui",
            standalone_mode=False,
        )
    except AgentForgeError as error:
        sys.stderr.write(f"agentforge-tui: {error}\n")
        return int(error.exit_code)
    except click.Abort:
        sys.stderr.write("interrupted\n")
        return int(ExitCode.INTERRUPTED)
    except click.ClickException as error:
        error.show()
        return int(ExitCode.USAGE)
    return int(done) if isinstance(done, int) else 0


if __name__ == "__main__":
    sys.exit(main())
