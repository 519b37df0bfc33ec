from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from agentforge_kernels.native import threads
from agentforge_kernels.native_backend import NativeBackend

from tests.kernels.native_cases import extension

MAPS = """\
7f0000000000-7f0000001000 r-xp 00000000 fe:00 12 /usr/lib/torch/lib/libgomp.so.1
7f0000001000-7f0000002000 r--p 00001000 fe:00 12 /usr/lib/torch/lib/libgomp.so.1
7f0000003000-7f0000004000 r-xp 00000000 fe:00 13 /opt/with space/libiomp5.so
7f0000005000-7f0000006000 r-xp 00000000 fe:00 14 /opt/libgomp-a34b3233.so.1.0.0
7f0000007000-7f0000008000 r-xp 00000000 fe:00 15 /opt/libgompertz.so.1
7f0000009000-7f000000a000 rw-p 00000000 00:00 0
7f000000b000-7f000000c000 rw-p 00000000 00:00 0 [heap]
"""


@pytest.fixture
def forgetful() -> Iterator[None]:
    """The answer about the runtime is kept for the process; forget it around a test."""
    threads.shares_openmp.cache_clear()
    yield
    threads.shares_openmp.cache_clear()


def test_runtimes_are_found_in_the_map_of_the_process(tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    maps.write_text(MAPS)
    assert threads.mapped_runtimes(maps) == [
        "/opt/libgomp-a34b3233.so.1.0.0",
        "/opt/with space/libiomp5.so",
        "/usr/lib/torch/lib/libgomp.so.1",
    ]
    assert threads.mapped_runtimes(tmp_path / "missing") == []


def test_the_extension_runs_on_the_runtime_of_torch() -> None:
    code = (
        "import warnings; warnings.simplefilter('error');"
        "from agentforge_kernels.native import threads; import torch;"
        "assert threads.shares_openmp();"
        "torch.set_num_threads(1); assert threads.default_threads() == 1;"
        "torch.set_num_threads(2); assert threads.default_threads() == 2;"
        "print(len(threads.mapped_runtimes()))"
    )
    if not threads.shares_openmp():
        pytest.skip("this extension was built without OpenMP, or torch runs on another runtime")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 1


@pytest.mark.usefixtures("forgetful")
def test_another_runtime_means_one_thread_and_one_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_openmp_address_of_torch", lambda: 12345)
    monkeypatch.setattr(threads, "mapped_runtimes", lambda: ["/a/libgomp.so.1", "/b/libomp.so"])
    with pytest.warns(UserWarning, match="one thread.*libgomp.so.1, /b/libomp.so"):
        assert threads.default_threads() == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert threads.default_threads() == 1
        assert NativeBackend().threads == 1
    assert NativeBackend(threads=2).threads == 2


@pytest.mark.usefixtures("forgetful")
def test_when_torch_cannot_be_asked_the_number_of_runtimes_decides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "_openmp_address_of_torch", lambda: 0)
    monkeypatch.setattr(threads, "mapped_runtimes", lambda: ["/a/libgomp.so.1"])
    assert threads.shares_openmp() == (extension.openmp_address() != 0)
    threads.shares_openmp.cache_clear()
    monkeypatch.setattr(threads, "mapped_runtimes", lambda: ["/a/libgomp.so.1", "/b/libomp.so"])
    with pytest.warns(UserWarning, match="one thread"):
        assert not threads.shares_openmp()


def test_more_threads_than_processors_or_panels_are_harmless() -> None:
    panels = torch.full((extension.panels_bytes(128, 4096),), 0xAA, dtype=torch.uint8)  # weights 1
    q = torch.ones(40, 4096, dtype=torch.int8)
    scale, total = torch.ones(40), torch.full((40,), 4096, dtype=torch.int32)
    one, output = torch.ones(1), torch.zeros(40, 128)
    for count in (-1, 0, 1, 3, 7):
        output.zero_()
        extension.dense_linear(
            q.data_ptr(), 4096, scale.data_ptr(), total.data_ptr(), 40, panels.data_ptr(),
            one.data_ptr(), False, 0, output.data_ptr(), 128, 4096, count,
        )  # fmt: skip
        assert (output == 4096).all()
