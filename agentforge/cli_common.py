"""What all verbs of the command line share: options, the folder of runs, writing a result."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from agentforge.errors import ExitCode

RUNS_ROOT = "runs"

run_dir_option = click.option(
    "--run-dir",
    type=click.Path(path_type=Path),
    help="Folder of runs; each run is a folder in it.  [default: ./runs]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="JSON on standard output.")


def runs_root(ctx: click.Context, own: Path | None) -> Path:
    """The folder of runs: the verb's own --run-dir, else the group's, else ./runs."""
    chosen = own or ctx.find_root().obj or Path(RUNS_ROOT)
    return Path(chosen).expanduser().absolute()


def say(text: str, code: ExitCode) -> ExitCode:
    """Write a result to standard output; a reader that has gone (``| head``) is no mistake."""
    try:
        sys.stdout.write(text if text.endswith("\n") or not text else f"{text}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter flushes once more when it ends; that must have somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code
