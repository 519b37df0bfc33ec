"""Memory of one way to run a model: a process of its own loads it and decodes a little."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args

from agentforge.formats.packed import read_packed
from agentforge.runtime.bench_variants import (
    NATIVE,
    NATIVE_BF16,
    native_executor,
    native_step,
    torch_model,
    torch_step,
)
from agentforge.runtime.states import CacheType

TOKENS = 8


def peak_resident(folder: Path | None, name: str, cache: CacheType) -> int:
    """Most resident bytes of a process that decodes `TOKENS` tokens.

    Args:
        folder: The packed model; None: the process only imports everything.
        name: The variant.
        cache: How the native executor keeps keys and values.

    Returns:
        0 where the system does not tell (anything but Linux).

    Raises:
        RuntimeError: The process failed; says its last words.
    """
    if not Path("/proc/self/status").exists():
        return 0
    command = [sys.executable, "-m", __name__, name, cache, *([str(folder)] if folder else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"memory of {name}: {done.stderr.strip().splitlines()[-1:]}")
    return int(done.stdout)


def main() -> None:
    """The process: variant, cache, folder."""
    name, cache, *folder = sys.argv[1:]
    if folder:
        packed = read_packed(Path(folder[0]))
        kind = next(k for k in get_args(CacheType) if k == cache)
        if name in (NATIVE, NATIVE_BF16):
            step = native_step(packed, native_executor(packed, name, kind), 0)
        else:
            step = torch_step(torch_model(packed, name), packed, 0)
        for position in range(min(TOKENS, packed.shapes.context)):
            step(position, position)
    sys.stdout.write(str(resident("VmHWM")))


def resident(kind: str) -> int:
    """Bytes of a line of /proc/self/status, such as ``VmRSS`` or ``VmHWM``, its peak.

    Not getrusage: the peak that tells begins at that of the process that started this one.

    Raises:
        RuntimeError: There is no such line.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{kind}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status tells no {kind}")


if __name__ == "__main__":
    main()
