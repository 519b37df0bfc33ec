"""The README's example of the kernels alone does what it says; the package is cheap to import."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import agentforge_kernels
import pytest
import torch
from agentforge_kernels import dispatch, reference, unpack

README = Path(__file__).parents[2] / "README.md"
TITLE = "## The kernels alone"


def example() -> str:
    """The Python block of the README's section."""
    section = README.read_text(encoding="utf-8").split(TITLE + "\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^```python\n(.*?)^```$", section, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 1
    return str(blocks[0])


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_the_example_runs_and_compares(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setenv(dispatch.VARIABLE, backend)
    torch.manual_seed(0)
    names: dict[str, object] = {}
    exec(compile(example(), str(README), "exec"), names)
    ternary, x, output = names["ternary"], names["x"], names["output"]
    assert isinstance(ternary, agentforge_kernels.TernaryLinear)
    assert isinstance(x, torch.Tensor)
    q, scale, _ = reference.quantize_activations(x)
    wanted = reference.linear(q, scale, unpack(ternary.packed), ternary.scale)
    assert torch.equal(output, wanted)
    assert 0 < names["error"] < 0.02
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == agentforge_kernels.explain()
    assert printed[1] == f"rounding of the activations: {names['error']:.2%}"


def test_the_example_needs_nothing_but_torch_and_the_kernels() -> None:
    imported = re.findall(r"^(?:from|import) (\S+)", example(), flags=re.MULTILINE)
    assert imported == ["torch", "agentforge_kernels"]


IMPORTED = """
import json, sys
import torch
before = set(sys.modules)
import agentforge_kernels
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_importing_the_package_brings_only_its_own_modules() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED], capture_output=True, text=True, check=True
    )
    modules = json.loads(done.stdout)
    foreign = [name for name in modules if not name.startswith("agentforge_kernels")]
    assert set(foreign) <= {"ctypes", "_ctypes", "ctypes._endian"}
    assert "agentforge_kernels.linear" in modules
    for later in ("triton", "verify", "files", "reference_backend", "tune"):
        assert not any(later in name.split(".") for name in modules), later
    assert len(modules) < 30


def test_every_public_name_is_there() -> None:
    names = agentforge_kernels.__all__
    assert names == sorted(names)
    assert dir(agentforge_kernels) == names
    for name in names:
        value = getattr(agentforge_kernels, name)
        assert value.__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        agentforge_kernels.nothing  # noqa: B018
