"""Launch configurations and families of GPUs: the table, the user's own file, what a device is."""

from __future__ import annotations

import itertools
import json
import warnings
from pathlib import Path

import pytest
from agentforge_kernels.errors import BackendUnavailableError, KernelInputError
from agentforge_kernels.triton import devices, user_configs
from agentforge_kernels.triton.config_table import TABLE
from agentforge_kernels.triton.configs import (
    CONFIG_TYPES,
    GemmConfig,
    GemvConfig,
    bucket_of,
    lookup,
)
from agentforge_kernels.triton.devices import FAMILIES, Family
from hypothesis import given
from hypothesis import strategies as st

SIZES = [1 << power for power in range(18)]
TOKENS = [1 << power for power in range(11)]


@pytest.fixture(autouse=True)
def own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads the configurations of whoever runs it."""
    path = tmp_path / "kernels.json"
    monkeypatch.setenv(user_configs.PATH_VARIABLE, str(path))
    return path


@given(
    operation=st.sampled_from(sorted(CONFIG_TYPES)),
    family=st.sampled_from(FAMILIES),
    rows=st.integers(1, 200_000),
    columns=st.integers(1, 200_000),
    tokens=st.integers(1, 100_000),
)
def test_every_call_has_a_configuration_of_its_type(
    operation: str, family: Family, rows: int, columns: int, tokens: int
) -> None:
    without_matrix_units = {"block_sparse_gemm", "int8_gemm"}
    if family == "turing" and operation in without_matrix_units:
        return
    assert type(lookup(operation, family, rows, columns, tokens)) is CONFIG_TYPES[operation]


def test_every_line_of_the_table_is_reached() -> None:
    buckets = list(itertools.product(SIZES, SIZES, TOKENS))
    missed = []
    for family in FAMILIES:
        for operation in CONFIG_TYPES:
            lines = [entry for entry in TABLE if entry.operation == operation]
            reached = {
                next(
                    (i for i, line in enumerate(lines) if line.holds(operation, family, bucket)),
                    None,
                )
                for bucket in buckets
            }
            missed += [
                line for i, line in enumerate(lines) if family in line.families and i not in reached
            ]
    assert missed == []


def test_buckets_are_powers_of_two() -> None:
    assert bucket_of(2560, 6912, 1) == (4096, 8192, 1)
    assert bucket_of(512, 513, 5) == (512, 1024, 8)


def test_an_unknown_operation_is_named() -> None:
    with pytest.raises(KernelInputError, match="operation: gemmv on turing"):
        lookup("gemmv", "turing", 1, 1, 1)


@pytest.mark.parametrize("value", [0, -4, 3, 2.0, "4", True])
def test_fields_are_powers_of_two(value: object) -> None:
    with pytest.raises(KernelInputError, match=r"GemvConfig\.num_warps"):
        GemvConfig(value, 8, 32)  # type: ignore[arg-type]


def test_tiles_have_a_smallest_size() -> None:
    with pytest.raises(KernelInputError, match=r"GemmConfig\.block_tokens: 8; allowed: 16"):
        GemmConfig(4, 8, 64, num_stages=3)
    with pytest.raises(KernelInputError, match=r"GemmConfig\.block_columns: 64"):
        GemmConfig(4, 16, 64, num_stages=3, block_columns=64)
    assert GemmConfig(4, 16, 64, num_stages=3).num_stages == 3


def test_the_users_own_file_comes_first(own_file: Path) -> None:
    before = lookup("gemv", "turing", 2560, 2560, 1)
    own = GemvConfig(8, 4, 64, rows_per_thread=2)
    assert own != before
    user_configs.write_user_configs(own_file, {("gemv", "turing", (4096, 4096, 1)): own}, "a GPU")
    assert lookup("gemv", "turing", 2560, 2560, 1) == own
    assert lookup("gemv", "turing", 2560, 512, 1) != own
    assert lookup("gemv", "ampere", 2560, 2560, 1) != own
    assert json.loads(own_file.read_text())["device"] == "a GPU"


def entry(**changes: object) -> dict[str, object]:
    good: dict[str, object] = {
        "operation": "gemv",
        "family": "turing",
        "bucket": [512, 512, 1],
        "config": {"num_warps": 2, "block_rows": 8, "block_words": 32},
    }
    return {**good, **changes}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "Expecting"),
        ("[]", "version: None; allowed: 1"),
        (json.dumps({"version": 2, "entries": []}), "version: 2; allowed: 1"),
        (json.dumps({"version": 1}), "entries: NoneType; allowed: a list"),
        (json.dumps({"version": 1, "entries": [7]}), r"entries\[0\]: int; allowed: an object"),
        *(
            (json.dumps({"version": 1, "entries": [entry(**{field: value})]}), says)
            for field, value, says in (
                ("operation", "gemmv", r"entries\[0\]\.operation: gemmv"),
                ("operation", ["gemv"], r"entries\[0\]\.operation"),
                ("family", "volta", r"entries\[0\]\.family: volta"),
                ("family", {}, r"entries\[0\]\.family"),
                ("bucket", [1, 2], r"entries\[0\]\.bucket"),
                ("bucket", [1, 2, 0], r"entries\[0\]\.bucket"),
                ("config", 3, r"entries\[0\]\.config: 3"),
                ("config", {"num_warps": 2}, r"entries\[0\]\.config"),
                ("config", {**entry()["config"], "warps": 2}, r"entries\[0\]\.config"),  # type: ignore[dict-item]
                (
                    "config",
                    {"num_warps": 3, "block_rows": 8, "block_words": 32},
                    r"num_warps: 3; allowed: a power of two",
                ),
            )
        ),
    ],
)
def test_a_broken_file_is_named_once_and_the_table_applies(
    own_file: Path, text: str, says: str
) -> None:
    expected = lookup("gemv", "turing", 512, 512, 1)
    own_file.write_text(text)
    user_configs.forget_user_table()
    with pytest.warns(UserWarning, match=f"(?s){own_file.name} is not used: .*{says}"):
        assert lookup("gemv", "turing", 512, 512, 1) == expected
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lookup("gemv", "turing", 512, 512, 1) == expected


def test_a_directory_in_its_place_is_named(own_file: Path) -> None:
    own_file.mkdir()
    user_configs.forget_user_table()
    with pytest.warns(UserWarning, match="is not used"):
        lookup("gemv", "turing", 512, 512, 1)


def test_where_the_file_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(user_configs.PATH_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_configs.user_config_path() == tmp_path / "agentforge" / "kernels.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_configs.user_config_path() == tmp_path / ".cache" / "agentforge" / "kernels.json"


@pytest.mark.parametrize(
    ("capability", "family"),
    [
        ((7, 5), "turing"),
        ((8, 0), "ampere"),
        ((8, 6), "ampere"),
        ((8, 9), "ampere"),
        ((9, 0), "hopper"),
        ((10, 0), "blackwell"),
        ((12, 0), "blackwell"),
    ],
)
def test_families_of_nvidia(capability: tuple[int, int], family: str) -> None:
    assert devices.family_of_capability(*capability) == family
    name = f"sm_{10 * capability[0] + capability[1]}"
    assert devices.family_of_target(name) == family


@pytest.mark.parametrize(
    ("name", "family"),
    [("gfx90a", "cdna"), ("gfx942:sramecc+:xnack-", "cdna"), ("gfx1100", "rdna3")],
)
def test_families_of_amd(name: str, family: str) -> None:
    assert devices.family_of_target(name) == family


def test_other_gpus_are_refused_by_name() -> None:
    with pytest.raises(BackendUnavailableError, match=r"compute capability 7\.0"):
        devices.family_of_capability(7, 0)
    with pytest.raises(BackendUnavailableError, match="gfx1030"):
        devices.family_of_amd("gfx1030")


@pytest.mark.parametrize(
    ("capability", "name", "expected"),
    [
        ((7, 5), "NVIDIA GeForce GTX 1660", False),
        ((7, 5), "NVIDIA GeForce GTX 1650 Ti", False),
        ((7, 5), "NVIDIA GeForce MX450", False),
        ((7, 5), "NVIDIA T600 Laptop GPU", False),
        ((7, 5), "NVIDIA T1000", False),
        ((7, 5), "Tesla T4", True),
        ((7, 5), "NVIDIA GeForce RTX 2060", True),
        ((7, 5), "Quadro RTX 4000", True),
        ((6, 1), "NVIDIA GeForce GTX 1080", False),
        ((8, 6), "NVIDIA GeForce RTX 3060", True),
    ],
)
def test_tensor_cores_by_name(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], name: str, expected: bool
) -> None:
    monkeypatch.delenv(devices.TENSOR_CORES_VARIABLE, raising=False)
    assert devices.has_tensor_cores(capability, name) is expected
    monkeypatch.setenv(devices.TENSOR_CORES_VARIABLE, "0" if expected else "1")
    assert devices.has_tensor_cores(capability, name) is not expected
    monkeypatch.setenv(devices.TENSOR_CORES_VARIABLE, "yes")
    with pytest.raises(KernelInputError, match="AGENTFORGE_TENSOR_CORES: yes; allowed: 0, 1"):
        devices.has_tensor_cores(capability, name)
