"""Verbs for a finished model: ``bench``, ``export``, ``chat``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from agentforge.cli_common import json_option, run_dir_option, runs_root, say
from agentforge.errors import ExitCode
from agentforge.run.layout import model_folder


@click.command()
@click.argument("model")
@run_dir_option
@click.option(
    "--threads",
    type=click.IntRange(min=1, max=1024),
    multiple=True,
    default=(1, 2),
    help="Threads; may be repeated.  [default: 1 and 2]",
)
@click.option(
    "--context",
    "contexts",
    type=click.IntRange(min=0),
    multiple=True,
    default=(0, 64, 256),
    help="Tokens read before; may be repeated.  [default: 0, 64, 256]",
)
@click.option("--rounds", type=click.IntRange(min=1), default=3, help="Repetitions.")
@click.option("--compile", "compiled", is_flag=True, help="torch.compile too: takes minutes.")
@click.option(
    "--cache",
    type=click.Choice(["float32", "bfloat16", "int8"]),
    default="float32",
    help="How the native executor keeps keys and values.  [default: float32]",
)
@click.option("--no-memory", is_flag=True, help="Do not measure memory, which starts processes.")
@click.option(
    "--csv",
    "csv_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the decode times here too.",
)
@json_option
@click.pass_context
def bench(
    ctx: click.Context,
    model: str,
    run_dir: Path | None,
    threads: tuple[int, ...],
    contexts: tuple[int, ...],
    rounds: int,
    compiled: bool,
    cache: Literal["float32", "bfloat16", "int8"],
    no_memory: bool,
    csv_file: Path | None,
    as_json: bool,
) -> ExitCode:
    """Time a packed MODEL against torch, side by side on this machine.

    MODEL is its directory, or the run that made it: an id, a part of it, or latest.
    """
    from agentforge import bench_verb
    from agentforge.runtime.bench_variants import ALL, VARIANTS

    text = bench_verb.bench(
        model_folder(model, runs_root(ctx, run_dir)),
        threads=threads,
        contexts=contexts,
        rounds=rounds,
        names=ALL if compiled else VARIANTS,
        cache=cache,
        memory=not no_memory,
        as_json=as_json,
        csv_file=csv_file,
    )
    return say(text, ExitCode.OK)


@click.command()
@click.argument("model")
@run_dir_option
@click.option("--to", "kind", type=click.Choice(["hf", "gguf"]), required=True, help="Format.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    metavar="PATH",
    help="The file (gguf) or folder (hf) to write.",
)
@click.pass_context
def export(ctx: click.Context, model: str, run_dir: Path | None, kind: str, out: Path) -> ExitCode:
    """Write a packed MODEL (a directory, a run, or latest) in another format.

    gguf: one file, ternary tensors as TQ2_0, the rest in FP16. hf: a folder transformers loads with
    trust_remote_code where this package is installed, weights as floats.
    """
    from agentforge.formats.packed import read_packed

    packed = read_packed(model_folder(model, runs_root(ctx, run_dir)))
    if kind == "hf":
        from agentforge.formats.huggingface import save_huggingface

        save_huggingface(packed, out)
        return say(f"{out}: load with AutoModelForCausalLM", ExitCode.OK)
    from agentforge.formats.gguf import save_gguf

    save_gguf(packed, out)
    return say(f"{out}: {out.stat().st_size:,} bytes", ExitCode.OK)


@click.command()
@click.argument("model")
@run_dir_option
@click.option("--prompt", metavar="TEXT", help="Ask one thing and leave.")
@click.option("--system", metavar="TEXT", default="", help="Text before the first turn.")
@click.option("--no-thoughts", is_flag=True, help="Answer without thinking.")
@click.option("--show-thoughts", is_flag=True, help="Print thoughts before the answers.")
@click.option(
    "--temperature", type=click.FloatRange(min=0), help="0: the most likely token.  [model's own]"
)
@click.option("--top-k", type=click.IntRange(min=0), default=0, help="Only the K likeliest tokens.")
@click.option(
    "--top-p",
    type=click.FloatRange(min=0, max=1, min_open=True),
    default=1.0,
    help="Only the likeliest tokens that reach P together.",
)
@click.option(
    "--repetition-penalty",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    help="Above 1: less of what was said before.",
)
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="Tokens of a reply at most.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, help="Equal seeds give equal replies."
)
@click.option(
    "--transcript",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Append the turns here as JSON lines.  [default: in the user's state folder]",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a turn.")
@click.pass_context
def chat(
    ctx: click.Context,
    model: str,
    run_dir: Path | None,
    prompt: str | None,
    system: str,
    no_thoughts: bool,
    show_thoughts: bool,
    temperature: float | None,
    top_k: int,
    top_p: float,
    repetition_penalty: float,
    max_new_tokens: int | None,
    seed: int,
    transcript: Path | None,
    as_json: bool,
) -> ExitCode:
    """Chat with a packed MODEL: its directory, the run that made it, or latest.

    A Hugging Face BitNet directory with its tokenizer is a MODEL too.

    On a terminal, or one turn a line from a pipe. Thinking and showing thoughts are two things:
    hidden thoughts still help.
    """
    from agentforge import chat_verb
    from agentforge.runtime.chat import ChatOptions

    return chat_verb.chat(
        model_folder(model, runs_root(ctx, run_dir)),
        ChatOptions(
            thoughts=not no_thoughts,
            temperature=temperature,
            seed=seed,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            max_new_tokens=max_new_tokens,
        ),
        prompt=prompt,
        system=system,
        show_thoughts=show_thoughts,
        as_json=as_json,
        transcript=transcript,
    )
