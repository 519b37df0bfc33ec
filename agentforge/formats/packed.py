"""Our packed model directory: ternary codes and scales, the rest in FP16, and all it takes to run.

    model.safetensors        2-bit codes and scales; embeddings, norms, gates, heads in FP16 or int8
    config.json              shapes, behaviour, which matrices are ternary, generation defaults
    tokenizer.json, ...      the tokenizer
    README.md                the model card: what was measured, with every gate
    files.json               bytes and SHA-256 of the others

It is written to a temporary folder, synced and renamed; read back it is checked file by file.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from agentforge_kernels import (
    Int8Weight,
    KernelInputError,
    PackedTernary,
    pack,
    quantize_int8,
    unpack,
)
from agentforge_kernels.files import Stored, load_tensors, save_tensors
from pydantic import ValidationError
from torch import Tensor

from agentforge.config.schema import ModelConfig
from agentforge.data.tokenizers import TextTokenizer, load_saved
from agentforge.errors import CheckpointError, DataError
from agentforge.formats.json_object import read_json_object
from agentforge.model.behaviour import Behaviour
from agentforge.model.bit_linear import bit_linears
from agentforge.model.language_model import CognateLM
from agentforge.model.linear import Projection
from agentforge.model.packed_linear import DequantisedProjection, PackedProjection
from agentforge.run.atomic import sync_folder, write_atomic
from agentforge.run.tensor_file import file_sha256, require_shapes

FORMAT, VERSION = "agentforge-packed", 1
WEIGHTS, CONFIG, FILES, CARD = "model.safetensors", "config.json", "files.json", "README.md"
TABLE = "embedding.table"
REMEDY = "copy the directory again, or make it again with the bitnet phase"


@dataclass(frozen=True, slots=True)
class Generation:
    """How the model generates unless it is told otherwise."""

    temperature: float = 1.0
    max_new_tokens: int = 40
    thinking: bool = True


@dataclass(frozen=True, slots=True)
class PackedModel:
    """A directory as it was read.

    Attributes:
        shapes: Of the model.
        vocab_size: Rows of the embedding.
        behaviour: How it is run.
        generation: How it generates.
        tokenizer: Text to ids.
        tensors: Every stored tensor by parameter name; ternary ones as `PackedTernary`.
        zero_activations: Measured share of zeros in the input of a matrix, by its name.
        folder: Where it came from.
    """

    shapes: ModelConfig
    vocab_size: int
    behaviour: Behaviour
    generation: Generation
    tokenizer: TextTokenizer
    tensors: Mapping[str, Stored]
    zero_activations: Mapping[str, float]
    folder: Path

    @property
    def ternary(self) -> dict[str, PackedTernary]:
        """Ternary matrices by the name of their module."""
        return {
            n.removesuffix(".weight"): t
            for n, t in self.tensors.items()
            if isinstance(t, PackedTernary)
        }


def save_packed(
    folder: Path,
    model: CognateLM,
    behaviour: Behaviour,
    tokenizer: TextTokenizer,
    generation: Generation,
    *,
    int8_embedding: bool,
    zero_activations: Mapping[str, float],
    card: str,
) -> None:
    """Write a model whose BitLinears are at strength 1 (or 0: those stay in FP16).

    Args:
        folder: The directory; replaced whole.
        model: The model.
        behaviour: How it is run.
        tokenizer: Its tokenizer.
        generation: Its generation defaults.
        int8_embedding: Store the embedding table in int8 with a scale a row.
        zero_activations: Measured share of zeros in the inputs of matrices.
        card: The model card.

    Raises:
        OSError: The folder cannot be written; an old one is untouched.
    """
    temporary = folder.with_name(f".tmp-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_tensors(temporary / WEIGHTS, stored_tensors(model, int8_embedding))
    config = {
        "format": FORMAT,
        "version": VERSION,
        "architecture": "CognateLM",
        "model": model.config.model_dump(mode="json"),
        "vocab_size": model.vocab_size,
        "behaviour": asdict(behaviour),
        "generation": asdict(generation),
        "zero_activations": {k: round(v, 6) for k, v in sorted(zero_activations.items())},
    }
    write_atomic(temporary / CONFIG, json.dumps(config, indent=1) + "\n")
    tokenizer.save(temporary)
    write_atomic(temporary / CARD, card)
    _write_list(temporary)
    old = folder.with_name(f".old-{folder.name}")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(temporary, folder)
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_card(folder: Path, card: str) -> None:
    """Replace the model card of a directory, once its gates are known."""
    write_atomic(folder / CARD, card)
    _write_list(folder)


def stored_tensors(model: CognateLM, int8_embedding: bool) -> dict[str, Stored]:
    """What a model is stored as, by parameter name: chosen by the role of its module."""
    ternary = {n: m for n, m in bit_linears(model).items() if m.strength == 1.0}
    found: dict[str, Stored] = {}
    for name, layer in ternary.items():
        trits, scale = layer.codes()
        found[f"{name}.weight"] = pack(trits, _short_scale(scale))
    layers = bit_linears(model)
    for name, parameter in model.named_parameters():
        owner = name.rpartition(".")[0]
        if name in found or _idle_norm(model, owner):
            continue
        value = parameter.detach()
        if owner in layers and name == f"{owner}.weight":
            value = value * layers[owner].kept  # pruned before it was left in full precision
        plain: Stored = value.to(torch.float16)
        if name == TABLE and int8_embedding:
            plain = quantize_int8(value)
        found[name] = plain
    return found


def _short_scale(scale: Tensor) -> Tensor:
    """The scale with the eleven bits of FP16, so that scale times trit is exact in the twin.

    Scales under FP16's normal range (2^-14) would lose more than the last of those bits; they stay.
    """
    short = scale.to(torch.float16).float()
    return short if bool(((short - scale).abs() <= scale * 2.0**-11).all()) else scale


def _idle_norm(model: CognateLM, owner: str) -> bool:
    """Whether this is the norm of a BitLinear that stays in full precision, which uses none."""
    layer = bit_linears(model).get(owner.removesuffix(".norm")) if owner.endswith(".norm") else None
    return layer is not None and layer.strength == 0.0


def read_packed(folder: Path) -> PackedModel:
    """Read a directory and check it file by file.

    Raises:
        CheckpointError: A file is missing, truncated, altered, of a newer version, or says
            something that cannot be.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a directory", remedy="name a model directory")
    _check_list(folder)
    config = read_json_object(folder / CONFIG, REMEDY)
    if config.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder / CONFIG}: format {config.get('format')!r}; allowed: {FORMAT!r}",
            remedy="name a directory the bitnet phase wrote",
        )
    version = config.get("version")
    if version != VERSION:
        raise CheckpointError(
            f"{folder / CONFIG}: version {version!r}; allowed: {VERSION}",
            remedy="use the program version that wrote it, or a newer one",
        )
    try:
        shapes = ModelConfig(**config["model"])
        vocab_size = int(config["vocab_size"])
        behaviour = Behaviour(**config["behaviour"])
        generation = Generation(**config["generation"])
        zeros = {str(k): float(v) for k, v in config["zero_activations"].items()}
    except (KeyError, TypeError, ValueError, AttributeError, ValidationError) as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}", remedy=REMEDY) from None
    try:
        tensors = load_tensors(folder / WEIGHTS)
    except (KernelInputError, OSError) as error:
        raise CheckpointError(f"{folder / WEIGHTS}: {error}", remedy=REMEDY) from None
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor) and not bool(torch.isfinite(tensor.float()).all()):
            raise CheckpointError(
                f"{folder / WEIGHTS}: {name} holds NaN or infinity", remedy=REMEDY
            )
    try:
        tokenizer = load_saved(folder)
    except DataError as error:
        raise CheckpointError(f"{folder}: {error}", remedy=REMEDY) from None
    if tokenizer.vocab_size != vocab_size:
        raise CheckpointError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the model {vocab_size}",
            remedy=REMEDY,
        )
    return PackedModel(shapes, vocab_size, behaviour, generation, tokenizer, tensors, zeros, folder)


def packed_module(packed: PackedModel, *, floats: bool = False) -> CognateLM:
    """The model as torch modules over packed matrices, in evaluation mode, on the CPU.

    Args:
        packed: As it was read.
        floats: Matrices as float32 scale times trit and inputs unrounded instead: what the packed
            model is timed against.

    Raises:
        CheckpointError: Tensors that do not fit the shapes.
    """
    with torch.device("meta"):
        model = CognateLM(packed.shapes, packed.vocab_size)
    where = packed.folder / WEIGHTS
    plain = {n: _floats(t) for n, t in packed.tensors.items() if not isinstance(t, PackedTernary)}
    eps = packed.shapes.norm_eps
    expected = {n: tuple(p.shape) for n, p in model.named_parameters()}
    ternary = packed.ternary
    got = {n: t for n, t in plain.items() if not _is_new_norm(n, expected, ternary)}
    shapes = {n: s for n, s in expected.items() if n.removesuffix(".weight") not in ternary}
    require_shapes(shapes, got, where=where)
    for name, matrix in ternary.items():
        wanted = expected.get(f"{name}.weight")
        if wanted != (matrix.rows, matrix.columns):
            raise CheckpointError(
                f"{where}: {name} is {matrix.rows} x {matrix.columns}, the shapes say {wanted}",
                remedy=REMEDY,
            )
        parent, _, leaf = name.rpartition(".")
        norm = plain.get(f"{name}.norm.weight")
        layer: Projection = PackedProjection(
            matrix, norm, eps, packed.zero_activations.get(name, 0.0)
        )
        if floats:
            weight = unpack(matrix).float() * matrix.scale[:, None]
            layer = DequantisedProjection(weight, norm, eps, quantise_input=False)
        setattr(model.get_submodule(parent), leaf, layer)
    model.load_state_dict(got, strict=False, assign=True)
    model.build_rope()
    return model.eval()


def _is_new_norm(
    name: str, expected: Mapping[str, object], ternary: Mapping[str, PackedTernary]
) -> bool:
    return name not in expected and name.removesuffix(".norm.weight") in ternary


def _floats(tensor: Stored) -> Tensor:
    if isinstance(tensor, Int8Weight):
        return tensor.weight.float() * tensor.scale[:, None]
    assert isinstance(tensor, Tensor)
    return tensor.float()


def directory_sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file of a directory, by name."""
    return {p.name: p.stat().st_size for p in sorted(folder.iterdir()) if p.is_file()}


def _write_list(folder: Path) -> None:
    listed = {
        path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(folder.iterdir())
        if path.name != FILES
    }
    write_atomic(folder / FILES, json.dumps(listed, indent=1) + "\n")


def _check_list(folder: Path) -> None:
    listed = read_json_object(folder / FILES, REMEDY)
    for required in (WEIGHTS, CONFIG):
        if required not in listed:
            raise CheckpointError(f"{folder / FILES} does not list {required}", remedy=REMEDY)
    for name, entry in listed.items():
        path = folder / Path(name).name
        if not isinstance(entry, dict) or not path.is_file():
            raise CheckpointError(f"{path} is missing", remedy=REMEDY)
        size = path.stat().st_size
        if size != entry.get("bytes"):
            raise CheckpointError(
                f"{path} has {size} bytes, {entry.get('bytes')} were written", remedy=REMEDY
            )
        if file_sha256(path) != entry.get("sha256"):
            raise CheckpointError(f"{path} was altered: its SHA-256 differs", remedy=REMEDY)
