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
