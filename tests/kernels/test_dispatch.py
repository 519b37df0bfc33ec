"""Which backend computes, what forcing one means, and what is said about it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
from agentforge_kernels import dispatch, native
from agentforge_kernels.errors import BackendUnavailableError, KernelInputError
from agentforge_kernels.triton import devices

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)
has_extension = pytest.mark.skipif(native.extension is None, reason="the extension is not built")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No choice forced, none remembered."""
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    monkeypatch.delenv(dispatch.CHECK_VARIABLE, raising=False)
    forget()
    yield
    forget()


def forget() -> None:
    dispatch._choose.cache_clear()
    dispatch._why_not_triton.cache_clear()


def without_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "extension", None)
    monkeypatch.setattr(dispatch, "unavailable_reason", lambda: "the extension was not built")


@has_extension
def test_the_cpu_computes_with_the_extension() -> None:
    assert dispatch.backend_for(CPU).name == "native"
    assert dispatch.backend_for(CPU) is dispatch.backend_for(torch.device("cpu"))


@pytest.mark.filterwarnings("ignore:agentforge_kernels")
def test_the_cpu_falls_back_without_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    without_extension(monkeypatch)
    assert dispatch.backend_for(CPU).name == "fallback"
    text = dispatch.explain()
    assert text.startswith("fallback")
    assert "because the extension was not built" in text


def test_reference_is_always_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(dispatch.VARIABLE, "reference")
    for device in ("cpu", "cuda", "mps", "meta"):
        assert dispatch.backend_for(torch.device(device)).name == "reference"
    assert "forced by AGENTFORGE_KERNELS" in dispatch.explain()


@has_extension
def test_the_variable_is_read_at_every_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(dispatch.VARIABLE, "reference")
    assert dispatch.backend_for(CPU).name == "reference"
    monkeypatch.setenv(dispatch.VARIABLE, "")
    assert dispatch.backend_for(CPU).name == "native"
    monkeypatch.setenv(dispatch.VARIABLE, "native")
    assert dispatch.backend_for(CPU).name == "native"


@pytest.mark.parametrize("value", ["cuda", "Native", "auto ", "1"])
def test_another_value_is_refused_with_the_allowed_ones(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv(dispatch.VARIABLE, value)
    for call in (dispatch.forced_choice, dispatch.explain, lambda: dispatch.backend_for(CPU)):
        with pytest.raises(KernelInputError, match="auto, triton, native, reference") as raised:
            call()
        assert raised.value.argument == dispatch.VARIABLE
        assert repr(value) in str(raised.value)


def test_a_forced_backend_that_is_missing_says_why_and_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_extension(monkeypatch)
    monkeypatch.setenv(dispatch.VARIABLE, "native")
    with pytest.raises(BackendUnavailableError) as raised:
        dispatch.backend_for(CPU)
    text = str(raised.value)
    assert "AGENTFORGE_KERNELS=native: the extension was not built" in text
    assert text.endswith("allowed here: auto, reference")


@has_extension
@pytest.mark.parametrize(
    ("choice", "device", "why"),
    [
        ("triton", "cpu", "computes on a GPU"),
        ("native", "cuda", "computes on the CPU, not on cuda"),
        ("native", "mps", "computes on the CPU, not on mps"),
        ("triton", "mps", "not on mps"),
    ],
)
def test_a_forced_backend_of_another_device_is_refused(
    monkeypatch: pytest.MonkeyPatch, choice: str, device: str, why: str
) -> None:
    monkeypatch.setenv(dispatch.VARIABLE, choice)
    with pytest.raises(BackendUnavailableError, match=why):
        dispatch.backend_for(torch.device(device))


def test_other_devices_use_the_reference_and_say_so_once() -> None:
    mps = torch.device("mps")
    with pytest.warns(UserWarning, match="plain torch, exact but slow: .*none for mps"):
        assert dispatch.backend_for(mps).name == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dispatch.backend_for(mps).name == "reference"
    assert "none for mps" in dispatch.explain(mps)


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    """A GPU of a compute capability, as far as the choice of a backend can see."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    family = devices.family_of_capability
    monkeypatch.setattr(devices, "family_of_device", lambda device: family(*capability))


def test_a_gpu_computes_with_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, (7, 5))
    asked = []
    monkeypatch.setattr(dispatch, "backend_named", lambda name: asked.append(name))
    dispatch.backend_for(GPU)
    assert asked == ["triton"]
    monkeypatch.setenv(dispatch.VARIABLE, "triton")
    dispatch.backend_for(GPU)
    assert asked == ["triton", "triton"]


def test_a_gpu_too_old_for_triton_computes_in_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, (6, 1))
    with pytest.warns(UserWarning, match=r"6\.1.*7\.5"):
        assert dispatch.backend_for(GPU).name == "reference"
    monkeypatch.setenv(dispatch.VARIABLE, "triton")
    with pytest.raises(BackendUnavailableError, match=r"compute capability 6\.1"):
        dispatch.backend_for(GPU)


def test_without_the_package_triton_a_gpu_computes_in_plain_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend_gpu(monkeypatch, (8, 0))
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match="triton is not installed"):
        assert dispatch.backend_for(GPU).name == "reference"


@has_extension
def test_the_explanation_names_level_threads_and_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    assert native.extension is not None
    level = native.extension.isa_name(native.extension.isa())
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert dispatch.explain() == f"native, {level}, 1 thread, shares torch's OpenMP"
        torch.set_num_threads(2)
        assert dispatch.explain("cpu") == f"native, {level}, 2 threads, shares torch's OpenMP"
        monkeypatch.setenv(dispatch.VARIABLE, "native")
        assert dispatch.explain().endswith("; forced by AGENTFORGE_KERNELS")
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_asked_about_a_gpu_that_is_not_there() -> None:
    assert "because torch sees no GPU" in dispatch.explain("cuda")


def test_finite_values_are_checked_on_the_cpu_and_elsewhere_on_demand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert dispatch.checks_finite(CPU)
    assert not dispatch.checks_finite(GPU)
    monkeypatch.setenv(dispatch.CHECK_VARIABLE, "1")
    assert dispatch.checks_finite(GPU)
    monkeypatch.setenv(dispatch.CHECK_VARIABLE, "yes")
    with pytest.raises(KernelInputError, match="AGENTFORGE_KERNELS_CHECK: 'yes'"):
        dispatch.checks_finite(GPU)


def test_a_name_that_is_no_backend_is_refused() -> None:
    with pytest.raises(KernelInputError, match="native, fallback, triton or reference"):
        dispatch.backend_named("cuda")
