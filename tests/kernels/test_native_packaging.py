"""The package without a compiler: installs, imports, says why, and computes the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROBE = """
import json, sys
from agentforge_kernels import native
from agentforge_kernels.errors import BackendUnavailableError
from agentforge_kernels.native_backend import NativeBackend
try:
    NativeBackend()
    refused = ""
except BackendUnavailableError as error:
    refused = str(error)
print(json.dumps({
    "file": native.__file__,
    "extension": native.extension is not None,
    "reason": native.unavailable_reason(),
    "refused": refused,
}))
"""


def without_compiler(folder: Path) -> dict[str, str]:
    """An environment in which CMake finds no compiler: not by name, not by variable."""
    tools = folder / "bin"
    tools.mkdir()
    for name in ("sh", "uname", "git", "cmake", "ninja"):
        found = shutil.which(name)
        if found:
            (tools / name).symlink_to(found)
    missing = str(folder / "no-such-compiler")
    return {
        "PATH": str(tools),
        "HOME": str(folder),
        "CC": missing,
        "CXX": missing,
        "PIP_NO_INDEX": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the sources where there is no compiler."""
    folder = tmp_path_factory.mktemp("without-compiler")
    sources = folder / "sources"
    ignore = shutil.ignore_patterns(
        ".git", ".venv", "build", "dist", "runs", "__pycache__", "*.so", ".*_cache"
    )
    shutil.copytree(ROOT, sources, ignore=ignore)
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--verbose", "--no-deps", "--no-build-isolation",
         "--wheel-dir", str(folder), str(sources)],
        env=without_compiler(folder), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "CMake configuration failed - retrying due to override" in done.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_is_pure_and_complete(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if name.endswith((".so", ".pyd", ".cpp", ".hpp"))]
    for file in ("agentforge_kernels/native/__init__.py", "agentforge_kernels/native_backend.py"):
        assert file in names
    assert any(name.startswith("agentforge/configs/") for name in names)
    assert wheel.stat().st_size < 1_000_000


def installed(wheel: Path, folder: Path, code: str) -> str:
    """Output of ``code`` run with the wheel installed in ``folder``, and no other copy in sight."""
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
         "--target", str(folder), str(wheel)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    # An editable install of the product answers imports before the path does: remove its finder.
    isolate = f"""
import sys
sys.meta_path[:] = [f for f in sys.meta_path if "ScikitBuild" not in type(f).__name__]
sources = {{{str(ROOT)!r}, {str(ROOT / "kernels")!r}, {str(ROOT / "tui")!r}}}
sys.path[:] = [{str(folder)!r}] + [p for p in sys.path if p not in sources]
"""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-c", isolate + code], cwd=folder, env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_package_says_why_it_has_no_native_backend(wheel: Path, tmp_path: Path) -> None:
    answer = json.loads(installed(wheel, tmp_path, PROBE))
    assert Path(answer["file"]).is_relative_to(tmp_path)
    assert not answer["extension"]
    assert "not built" in answer["reason"]
    assert answer["reason"] in answer["refused"]


EXACT = """
import json, warnings
import torch
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from agentforge_kernels import *
    from agentforge_kernels import dispatch, reference
    generator = torch.Generator().manual_seed(0)
    cases = wrong = 0

    def compare(output, x, weight, scale, residual=None):
        global cases, wrong
        q, activation_scale, _ = reference.quantize_activations(x)
        wanted = reference.linear(q, activation_scale, weight, scale, residual)
        cases += 1
        wrong += not torch.equal(output, wanted)

    for rows, columns in ((1, 1), (63, 127), (70, 200), (256, 1024)):
        for tokens in (1, 2, 17):
            trits = torch.randint(-1, 2, (rows, columns), generator=generator, dtype=torch.int8)
            scale = torch.rand(rows, generator=generator) + 0.5
            packed = pack(trits, scale)
            x = torch.randn(tokens, columns, generator=generator)
            residual = torch.randn(tokens, rows, generator=generator)
            extreme = torch.full((tokens, columns), -127.0)
            blocks, by_column = to_block_sparse(packed), to_columns(packed)
            head = quantize_int8(torch.randn(rows, columns, generator=generator))
            for v in (x, extreme):
                compare(ternary_linear(v, packed), v, trits, scale)
                compare(ternary_linear(v, packed, residual=residual), v, trits, scale, residual)
                compare(ternary_linear_block_sparse(v, blocks), v, trits, scale)
                compare(ternary_linear_activation_sparse(v, by_column), v, trits, scale)
                compare(int8_linear(v, head), v, head.weight, head.scale)
    layer = TernaryLinear.from_linear(torch.nn.Linear(200, 70, bias=False))
    x = torch.randn(3, 200, generator=generator)
    compare(layer(x), x, unpack(layer.packed), layer.scale)
    try:
        layer(x * float("nan"))
        refused = ""
    except KernelInputError as error:
        refused = str(error)
print(json.dumps({
    "backend": dispatch.backend_for(torch.device("cpu")).name,
    "explained": explain(),
    "cases": cases,
    "wrong": wrong,
    "refused": refused,
    "notices": [str(w.message) for w in caught if "agentforge_kernels" in str(w.message)],
}))
"""


def test_without_a_compiler_results_are_exact_and_one_notice_is_given(
    wheel: Path, tmp_path: Path
) -> None:
    answer = json.loads(installed(wheel, tmp_path, EXACT))
    assert answer["backend"] == "fallback"
    assert answer["explained"].startswith("fallback")
    assert "because the extension was not built" in answer["explained"]
    assert answer["cases"] == 4 * 3 * 2 * 5 + 1
    assert answer["wrong"] == 0
    assert answer["refused"].startswith("x: NaN or infinity in token 0")
    (notice,) = answer["notices"]
    assert "not built" in notice
    assert "install a C++ compiler" in notice
