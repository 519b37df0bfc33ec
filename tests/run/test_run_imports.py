from __future__ import annotations

import subprocess
import sys

LIGHT = (
    "answers atomic commands context control layout lock manifest process status supervisor tail "
    "tuning worker"
).split()
HEAVY = ("torch", "transformers", "datasets", "wandb", "textual", "numpy")


def test_what_the_console_reads_needs_no_torch(environment: dict[str, str]) -> None:
    modules = [f"agentforge.run.{name}" for name in LIGHT]
    modules += ["agentforge.sinks.base", "agentforge.sinks.jsonl", "agentforge.sinks.tee"]
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    loaded = set(done.stdout.split())
    assert set(modules) <= loaded
    assert not loaded & set(HEAVY)


def test_the_engine_imports_no_console(environment: dict[str, str]) -> None:
    code = (
        "import sys, agentforge.run.checkpoint, agentforge.run.rng, agentforge.run.worker; "
        "print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    loaded = set(done.stdout.split())
    assert "torch" in loaded
    assert not loaded & {"textual", "agentforge_tui", "rich"}
