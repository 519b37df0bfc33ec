"""Packed files: every form comes back exactly; anything else is one error that names the key."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from agentforge_kernels import safetensors_file
from agentforge_kernels.errors import KernelInputError
from agentforge_kernels.files import FORMAT_NAME, Stored, load_tensors, save_tensors
from agentforge_kernels.format import FORMAT_VERSION, PackedTernary, pack
from agentforge_kernels.safetensors_file import DTYPES, MOST_HEADER_BYTES, write_safetensors
from agentforge_kernels.sparse import to_block_sparse, to_columns
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from tests.kernels.test_sparse_forms import equal, matrix

fuzzed = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def same(one: Stored, other: Stored) -> bool:
    """Whether two stored things are of one kind and hold the same bits."""
    if not isinstance(one, torch.Tensor):
        return equal(one, other)
    return (
        isinstance(other, torch.Tensor)
        and one.dtype == other.dtype
        and one.shape == other.shape
        and bits(one) == bits(other)
    )


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def every_form(rows: int = 70, columns: int = 45, seed: int = 0) -> dict[str, Stored]:
    packed = matrix(rows, columns, seed)
    return {
        "dense": packed,
        "layers.0.down": to_columns(packed),
        "layers.0.up": to_block_sparse(packed),
        "norm": torch.randn(columns, generator=torch.Generator().manual_seed(seed)),
        "head": torch.arange(-128, 128, dtype=torch.int8).reshape(16, 16),
        "empty": torch.zeros(3, 0),
        "number": torch.tensor(2.5, dtype=torch.float16),
    }


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.integers(1, 140),
    columns=st.integers(1, 300),
    seed=st.integers(0, 2**31),
    dense=st.sampled_from(["2bit", "1.6bit"]),
)
def test_every_form_comes_back(
    tmp_path: Path, rows: int, columns: int, seed: int, dense: Any
) -> None:
    tensors, untouched = every_form(rows, columns, seed), every_form(rows, columns, seed)
    save_tensors(tmp_path / "m", tensors, dense=dense)
    loaded = load_tensors(str(tmp_path / "m"))
    assert list(loaded) == sorted(tensors)
    assert all(same(loaded[name], tensor) for name, tensor in untouched.items())
    assert all(same(tensors[name], tensor) for name, tensor in untouched.items())


def test_plain_tensors_of_any_type_strides_and_sharing(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    tensors: dict[str, Stored] = {
        str(dtype): torch.randint(0, 2, (64,), dtype=torch.uint8).view(dtype) for dtype in DTYPES
    }
    tensors |= {
        "base": base,
        "same": base,
        "transposed": base.T,
        "slice": base[1:, ::2],
        "expanded": base[:1].expand(5, 6),
        "parameter": torch.nn.Parameter(base),
        "name with 'quotes\" \n and \u00e4": base,
    }
    save_tensors(tmp_path / "m", tensors)
    loaded = load_tensors(tmp_path / "m")
    assert all(same(loaded[name], tensor) for name, tensor in tensors.items())


def test_base_three_is_a_fifth_smaller(tmp_path: Path) -> None:
    tensors = {"w": pack(torch.zeros(256, 1280, dtype=torch.int8), 1.0)}
    sizes = {}
    for dense in ("2bit", "1.6bit"):
        save_tensors(tmp_path / dense, tensors, dense=dense)
        sizes[dense] = (tmp_path / dense).stat().st_size
    assert sizes["2bit"] - sizes["1.6bit"] == pytest.approx(256 * 1280 * 0.4 / 8, abs=64)


def test_equal_content_gives_equal_bytes_that_the_library_reads(tmp_path: Path) -> None:
    tensors = every_form()
    one = save_tensors(tmp_path / "one", tensors)
    two = save_tensors(tmp_path / "two", dict(reversed(every_form().items())))
    assert one == two
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert stat.S_IMODE((tmp_path / "one").stat().st_mode) == 0o644
    with safe_open(tmp_path / "one", framework="pt") as file:
        assert file.metadata()["format"] == FORMAT_NAME
        assert file.metadata()["version"] == str(FORMAT_VERSION)
        assert file.metadata()["sha256"] == one
        dense = tensors["dense"]
        assert isinstance(dense, PackedTernary)
        assert torch.equal(file.get_tensor("dense.codes"), dense.codes)
    data = (tmp_path / "one").read_bytes()
    assert hashlib.sha256(data.replace(one.encode(), b"0" * 64)).hexdigest() == one


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "m"
    save_tensors(path, every_form())
    return path.read_bytes()


def attempt(path: Path) -> dict[str, Stored] | KernelInputError:
    """What reading gives: the content or our error; any other exception fails the test."""
    try:
        return load_tensors(path)
    except KernelInputError as error:
        return error


def is_clear(error: KernelInputError, path: Path) -> bool:
    message = str(error)
    return message.startswith(f"{path}: ") and "; allowed: " in message and len(message) < 1000


WANTED = every_form()


def is_the_content_or_an_error(path: Path) -> bool:
    """True for exactly the right content; False for a clear error of ours."""
    loaded = attempt(path)
    if isinstance(loaded, KernelInputError):
        assert is_clear(loaded, path)
        return False
    assert list(loaded) == sorted(WANTED)
    assert all(same(loaded[name], tensor) for name, tensor in WANTED.items())
    return True


@fuzzed
@given(st.data())
def test_truncated_and_flipped_files_never_mislead(tmp_path: Path, good: bytes, data: Any) -> None:
    assert is_the_content_or_an_error(write(tmp_path / "m", good))
    damaged = bytearray(good)
    header = int.from_bytes(good[:8], "little")
    for _ in range(data.draw(st.integers(0, 3))):
        place = data.draw(st.one_of(st.integers(0, 8 + header), st.integers(0, len(good) - 1)))
        damaged[place] = data.draw(st.integers(0, 255))
    keep = data.draw(st.one_of(st.just(len(good)), st.integers(0, len(good))))
    damaged = damaged[:keep] + data.draw(st.binary(max_size=3))
    whole = is_the_content_or_an_error(write(tmp_path / "m", bytes(damaged)))
    assert whole == (bytes(damaged) == good)


def test_every_single_byte_flip_is_noticed(tmp_path: Path, good: bytes) -> None:
    for place in range(0, len(good), 17):
        damaged = bytearray(good)
        damaged[place] ^= 1 << place % 8
        assert not is_the_content_or_an_error(write(tmp_path / "m", bytes(damaged)))


@fuzzed
@given(st.binary(max_size=200))
def test_any_bytes_are_refused(tmp_path: Path, noise: bytes) -> None:
    assert not is_the_content_or_an_error(write(tmp_path / "m", noise))


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# Files with a right checksum and wrong content: what a forger, or a program with a bug, may write.


def forge(
    path: Path, tensors: Mapping[str, torch.Tensor], described: object, **metadata: str
) -> Path:
    text = described if isinstance(described, str) else json.dumps(described)
    known = {"format": FORMAT_NAME, "version": str(FORMAT_VERSION), "tensors": text}
    write_safetensors(path, tensors, {**known, **metadata})
    return path


def seal(path: Path, header: dict[str, Any] | str, values: bytes = b"", **metadata: Any) -> Path:
    """A file of any header, with the checksum the reader wants."""
    if isinstance(header, dict):
        known = {"format": FORMAT_NAME, "version": "1", "tensors": "{}", "sha256": "0" * 64}
        header = json.dumps({"__metadata__": {**known, **metadata}, **header})
    text = header.encode("utf-8", "surrogatepass")
    whole = len(text).to_bytes(8, "little") + text + values
    digest = hashlib.sha256(whole).hexdigest()
    return write(path, whole.replace(b"0" * 64, digest.encode(), 1))


PACKED = matrix(5, 45, seed=1)
BLOCKS = to_block_sparse(matrix(70, 45, seed=1, zero_tiles=0.0))
COLUMNS = to_columns(PACKED)
NAN = torch.tensor([float("nan")])

FORGED: dict[str, tuple[str, dict[str, torch.Tensor], object]] = {
    "codes missing": ("w.codes", {"w.scale": PACKED.scale}, {"form": "packed", "columns": 45}),
    "scale missing": ("w.scale", {"w.codes": PACKED.codes}, {"form": "packed", "columns": 45}),
    "plain missing": ("w", {}, {"form": "plain"}),
    "codes of another type": (
        "w.codes",
        {"w.codes": PACKED.codes.to(torch.int8), "w.scale": PACKED.scale},
        {"form": "packed", "columns": 45},
    ),
    "codes of another shape": (
        "w.codes",
        {"w.codes": PACKED.codes[:, :16].contiguous(), "w.scale": PACKED.scale},
        {"form": "packed", "columns": 45},
    ),
    "code 3": (
        "w.codes",
        {"w.codes": PACKED.codes | 3, "w.scale": PACKED.scale},
        {"form": "packed", "columns": 45},
    ),
    "columns too few": (
        "w.codes",
        {"w.codes": PACKED.codes, "w.scale": PACKED.scale},
        {"form": "packed", "columns": 20},
    ),
    "columns absurd": (
        "w.codes",
        {"w.codes": PACKED.codes, "w.scale": PACKED.scale},
        {"form": "packed", "columns": 2**31 - 1},
    ),
    "columns beyond all": ("w.columns", {}, {"form": "packed", "columns": 2**31}),
    "columns text": ("w.columns", {}, {"form": "packed", "columns": "45"}),
    "columns true": ("w.columns", {}, {"form": "packed", "columns": True}),
    "columns negative": ("w.columns", {}, {"form": "packed_base3", "columns": -45}),
    "columns absent": ("w.columns", {}, {"form": "block_sparse", "rows": 45}),
    "scale NaN": (
        "w.scale",
        {"w.codes": PACKED.codes, "w.scale": NAN},
        {"form": "packed", "columns": 45},
    ),
    "scale of another matrix": (
        "w.scale",
        {"w.codes": COLUMNS.codes, "w.scale": torch.ones(45)},
        {"form": "columns", "rows": 5},
    ),
    "byte 243": (
        "w.trits",
        {"w.trits": torch.full((5, 9), 243, dtype=torch.uint8), "w.scale": PACKED.scale},
        {"form": "packed_base3", "columns": 45},
    ),
    "trits of absurd columns": (
        "w.trits",
        {"w.trits": torch.zeros(5, 9, dtype=torch.uint8), "w.scale": PACKED.scale},
        {"form": "packed_base3", "columns": 2**31 - 1},
    ),
    "tiles of absurd rows": (
        "w.start",
        {f"w.{f}": getattr(BLOCKS, f) for f in ("tiles", "index", "start", "scale")},
        {"form": "block_sparse", "rows": 2**31 - 1, "columns": 45},
    ),
    "tiles of absurd columns": (
        "w.columns",
        {f"w.{f}": getattr(BLOCKS, f) for f in ("tiles", "index", "start", "scale")},
        {"form": "block_sparse", "rows": 70, "columns": 2**31 - 1},
    ),
    "index missing": (
        "w.index",
        {f"w.{f}": getattr(BLOCKS, f) for f in ("tiles", "start", "scale")},
        {"form": "block_sparse", "rows": 70, "columns": 45},
    ),
    "index falling": (
        "w.index",
        {
            f"w.{f}": getattr(BLOCKS, f).flip(0) if f == "index" else getattr(BLOCKS, f)
            for f in ("tiles", "index", "start", "scale")
        },
        {"form": "block_sparse", "rows": 70, "columns": 45},
    ),
    "unknown form": ("w", {"w": NAN}, {"form": "csr"}),
    "form a list": ("w", {"w": NAN}, {"form": ["plain"]}),
    "no description": ("w", {"w": NAN}, 3),
}


@pytest.mark.parametrize("fault", FORGED)
def test_wrong_content_under_a_right_checksum_is_named(tmp_path: Path, fault: str) -> None:
    key, tensors, description = FORGED[fault]
    path = forge(tmp_path / "m", tensors, {"w": description})
    with pytest.raises(KernelInputError) as caught:
        load_tensors(path)
    assert caught.value.argument == f"{path}: {key}"


def test_a_tensor_nobody_described_is_named(tmp_path: Path) -> None:
    path = forge(tmp_path / "m", {"w": NAN, "other": NAN}, {"w": {"form": "plain"}})
    with pytest.raises(KernelInputError, match="m: other: not described"):
        load_tensors(path)


@pytest.mark.parametrize("version", ["2", "10", "999999999"])
def test_a_newer_file_says_so(tmp_path: Path, version: str) -> None:
    path = forge(tmp_path / "m", {}, {}, version=version)
    with pytest.raises(KernelInputError, match=rf"version: {version}; allowed: 1 to 1\. .*newer"):
        load_tensors(path)


@pytest.mark.parametrize("version", ["", "0", "-1", "1.0", "one", "\u0661", "9999999999"])
def test_a_version_that_is_none_is_refused(tmp_path: Path, version: str) -> None:
    path = forge(tmp_path / "m", {}, {}, version=version)
    with pytest.raises(KernelInputError, match="m: version: "):
        load_tensors(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_a_foreign_safetensors_file_is_refused(tmp_path: Path, metadata: Any) -> None:
    save_file({"w": torch.ones(3)}, tmp_path / "m", metadata)
    with pytest.raises(KernelInputError, match=f"m: format: .* allowed: '{FORMAT_NAME}'"):
        load_tensors(tmp_path / "m")


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
DESCRIBED = json.dumps({"w": {"form": "plain"}})


@pytest.mark.parametrize(
    "header",
    [
        "[]",
        "3",
        '{"__metadata__": {"format": ',
        "[" * 100_000,
        '{"__metadata__": ' + "[" * 900 + "]" * 900 + "}",
        '{"__metadata__": []}',
        '{"__metadata__": {"format": 3}}',
        '{"w": ' + "9" * 5000 + "}",
        {"w": []},
        {"w": {**ENTRY, "shape": [2]}},
        {"w": {**ENTRY, "shape": [-1]}},
        {"w": {**ENTRY, "shape": "1"}},
        {"w": {**ENTRY, "shape": [2**63, 2**63]}},
        {"w": {"dtype": "F32", "data_offsets": [0, 4]}},
        {"w": {**ENTRY, "data_offsets": [0]}},
        {"w": {**ENTRY, "data_offsets": [0, "4"]}},
        {"w": {**ENTRY, "data_offsets": [4, 0]}},
        {"w": {**ENTRY, "data_offsets": [-4, 0]}},
        {"w": {**ENTRY, "data_offsets": [0, 2**64]}},
        {"w": {**ENTRY, "data_offsets": [0, 2**63 - 1]}},
        {"w": ENTRY, "overlapping": ENTRY},
        {"w": ENTRY, "after a hole": {**ENTRY, "data_offsets": [8, 12]}},
        {"w": {**ENTRY, "shape": [0, 2**62], "data_offsets": [0, 0]}},
    ],
)
def test_hostile_headers_are_refused(tmp_path: Path, header: Any) -> None:
    for values in (b"", b"\0" * 4, b"\0" * 12):
        path = seal(tmp_path / "m", header, values, tensors=DESCRIBED)
        loaded = attempt(path)
        if isinstance(loaded, KernelInputError):
            assert is_clear(loaded, path)
        else:  # an empty tensor of an absurd shape is a tensor
            assert header["w"]["shape"] == [0, 2**62]
            assert loaded["w"].numel() == 0  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", ["F8_E4M3", "C64", "BOOL", "U64", "none", ["F32"], {}, None])
def test_a_dtype_we_never_write_is_named(tmp_path: Path, dtype: Any) -> None:
    entry = {"dtype": dtype, "shape": [8], "data_offsets": [0, 8]}
    path = seal(tmp_path / "m", {"w": entry}, b"\0" * 8, tensors=DESCRIBED)
    with pytest.raises(KernelInputError, match="m: w: dtype .* allowed: U8, "):
        load_tensors(path)


def test_sealing_by_hand_is_right(tmp_path: Path) -> None:
    path = seal(tmp_path / "m", {"w": ENTRY}, b"\0\0\x80\x3f", tensors=DESCRIBED)
    assert same(load_tensors(path)["w"], torch.ones(1))
    with pytest.raises(KernelInputError, match="m: sha256: "):
        load_tensors(seal(path, {"w": ENTRY}, b"\0" * 4, sha256=""))
    with pytest.raises(KernelInputError, match="m: tensors: no JSON"):
        load_tensors(seal(path, {}, tensors="{"))
    with pytest.raises(KernelInputError, match="m: tensors: a JSON list"):
        load_tensors(seal(path, {}, tensors="[]"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
forms = ["packed", "packed_base3", "block_sparse", "columns", "plain"]


@fuzzed
@given(
    described=st.dictionaries(
        st.sampled_from(["w", "v", ""]),
        json_values
        | st.fixed_dictionaries(
            {"form": st.sampled_from(forms)},
            optional={
                "rows": st.sampled_from([1, 5, 70, 128]) | json_values,
                "columns": st.sampled_from([1, 5, 45, 128]) | json_values,
            },
        ),
        max_size=2,
    )
    | json_values,
    shapes=st.dictionaries(
        st.sampled_from([f"w{part}" for part in ("", ".codes", ".scale", ".tiles", ".start")]),
        st.tuples(
            st.sampled_from([torch.uint8, torch.float32, torch.int32]),
            st.lists(st.sampled_from([0, 1, 2, 5, 32, 256]), max_size=3),
        ),
    ),
)
def test_random_descriptions_are_an_error_or_valid_forms(
    tmp_path: Path, described: Any, shapes: dict[str, tuple[torch.dtype, list[int]]]
) -> None:
    tensors = {name: torch.zeros(shape, dtype=dtype) for name, (dtype, shape) in shapes.items()}
    path = forge(tmp_path / "m", tensors, described)
    loaded = attempt(path)
    if isinstance(loaded, KernelInputError):
        assert is_clear(loaded, path)
    else:
        assert list(loaded) == sorted(described)
        save_tensors(path, loaded)
        assert all(same(load_tensors(path)[name], tensor) for name, tensor in loaded.items())


def test_absurd_sizes_are_refused_before_memory_is_taken(tmp_path: Path, good: bytes) -> None:
    """Files with holes: they claim and "are" terabytes, which reading could not hold."""
    path = write(tmp_path / "m", good)
    os.truncate(path, 1 << 43)
    with pytest.raises(KernelInputError, match="header: longer than its header says"):
        load_tensors(path)
    write(path, (MOST_HEADER_BYTES + 1).to_bytes(8, "little"))
    os.truncate(path, 1 << 43)
    with pytest.raises(KernelInputError, match=f"header: {MOST_HEADER_BYTES + 1} bytes of header"):
        load_tensors(path)
    for length in (1 << 63, (1 << 64) - 1):
        with pytest.raises(KernelInputError, match="bytes of header in 16 bytes of file"):
            load_tensors(write(path, length.to_bytes(8, "little") + b"\0" * 8))


def test_a_missing_or_unreadable_file_is_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing"):
        load_tensors(tmp_path / "nothing")
    with pytest.raises(IsADirectoryError):
        load_tensors(tmp_path)


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m"
    save_tensors(path, {"w": torch.ones(3)})
    steps: list[str] = []

    def full(handle: int, data: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors_file, "_write_all", full)
    with pytest.raises(OSError, match=rf"No space left on device: '{path}'"):
        save_tensors(path, {"w": torch.zeros(3)})
    monkeypatch.undo()
    assert same(load_tensors(path)["w"], torch.ones(3))
    assert os.listdir(tmp_path) == ["m"]
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "no" / "m")):
        save_tensors(tmp_path / "no" / "m", {})

    # The bytes are on disk before the name is theirs, and the name is, before we return.
    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, recorded(name, getattr(os, name), steps))
    save_tensors(path, {})
    assert steps == ["fsync", "replace", "fsync"]


def recorded(name: str, function: Any, steps: list[str]) -> Any:
    def call(*arguments: Any) -> Any:
        steps.append(name)
        return function(*arguments)

    return call


def test_a_write_that_takes_few_bytes_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_some = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write_some(handle, data[:100]))
    save_tensors(tmp_path / "m", every_form())
    monkeypatch.undo()
    assert is_the_content_or_an_error(tmp_path / "m")


@pytest.mark.parametrize(
    "tensors",
    [
        {"": torch.ones(1)},
        {"__metadata__": torch.ones(1)},
        {"\ud800": torch.ones(1)},
        {3: torch.ones(1)},
        {"w": [1.0]},
        {"w": torch.ones(1, dtype=torch.complex64)},
        {"w": torch.ones(1, dtype=torch.bool)},
        {"w": torch.ones(1, device="meta")},
        {"w": torch.eye(3).to_sparse()},
        {"w": PACKED, "w.codes": torch.ones(1)},
        {"w.scale": torch.ones(1), "w": COLUMNS},
    ],
)
def test_what_cannot_be_stored_is_named(tmp_path: Path, tensors: Any) -> None:
    with pytest.raises(KernelInputError, match="^tensors.*allowed: "):
        save_tensors(tmp_path / "m", tensors)
    assert os.listdir(tmp_path) == []


def test_another_way_to_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KernelInputError, match="^dense: '3bit'"):
        save_tensors(tmp_path / "m", {}, dense="3bit")  # type: ignore[arg-type]
