"""Hugging Face BitNet directories (`BitNetForCausalLM`): configuration and ternary matrices.

Weights are packed four rows to a byte (``quantization_config`` with ``quantization_mode``
``offline``) or floats that transformers quantises online by their mean magnitude. Files are mapped
and read tensor by tensor, so that a model of 2 billion parameters never lies in memory twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from agentforge_kernels import (
    Int8Weight,
    KernelInputError,
    PackedTernary,
    pack,
    quantize_int8,
    quantize_weights,
)
from agentforge_kernels.huggingface import ScaleConvention, from_huggingface, scale_convention
from safetensors import SafetensorError, safe_open
from torch import Tensor

from agentforge.errors import CheckpointError
from agentforge.formats.json_object import read_json_object

CONFIG, INDEX, SINGLE = "config.json", "model.safetensors.index.json", "model.safetensors"
ROWS = 1024
"""Of a matrix that is read in parts; a multiple of 64."""
REMEDY = "name a directory that transformers saved a BitNetForCausalLM in"


@dataclass(frozen=True, slots=True)
class BitNetShapes:
    """What `config.json` says of the model.

    Attributes:
        width, ffn_width, layers, heads, kv_heads, head_width: Sizes.
        vocab_size: Rows of the embedding.
        context: Positions at most.
        eps: Of every RMSNorm.
        rope_theta: Base of the rotary frequencies.
        squared_relu: The gate's activation is squared ReLU (else SiLU).
        tied: The head is the embedding.
    """

    width: int
    ffn_width: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    vocab_size: int
    context: int
    eps: float
    rope_theta: float
    squared_relu: bool
    tied: bool


@dataclass(slots=True)
class BitNetCheckpoint:
    """An opened directory.

    Attributes:
        folder: Where it is.
        shapes: Of the model.
        convention: What stored scales mean; None: weights are floats, quantised when read.
    """

    folder: Path
    shapes: BitNetShapes
    convention: ScaleConvention | None
    _files: Mapping[str, Path] = field(repr=False)

    def tensor(self, name: str, *shape: int) -> Tensor:
        """A tensor in float32.

        Raises:
            CheckpointError: It is missing or has another shape, or is not finite.
        """
        found = self._raw(name)
        if tuple(found.shape) != shape:
            raise CheckpointError(
                f"{self._files[name]}: {name} has shape {tuple(found.shape)}, wanted {shape}",
                remedy=REMEDY,
            )
        found = found.float()
        if not bool(torch.isfinite(found).all()):
            raise CheckpointError(
                f"{self._files[name]}: {name} holds NaN or infinity", remedy=REMEDY
            )
        return found

    def require(self, name: str) -> None:
        """Complain now of a tensor that is read later.

        Raises:
            CheckpointError: It is missing.
        """
        if name not in self._files:
            raise CheckpointError(f"{self.folder}: tensor {name} is missing", remedy=REMEDY)

    def mapped(self, name: str, *shape: int) -> Tensor:
        """A bfloat16 tensor as it lies in the file, mapped and not looked at; others in float32.

        Raises:
            CheckpointError: As `tensor`; of a mapped one NaN is not noticed.
        """
        found = self._raw(name)
        if found.dtype == torch.bfloat16 and tuple(found.shape) == shape:
            return found
        return self.tensor(name, *shape)

    def int8_rows(self, name: str, rows: int, columns: int) -> Iterator[Int8Weight]:
        """A float matrix in int8 with a scale a row, `ROWS` rows at a time.

        Raises:
            CheckpointError: As `tensor`.
        """
        for first in range(0, rows, ROWS):
            # Opened anew each time, so that what was read does not stay mapped.
            whole = self._raw(name)
            if tuple(whole.shape) != (rows, columns):
                whole = self.tensor(name, rows, columns)
            part = whole[first : first + ROWS].float()
            if not bool(torch.isfinite(part).all()):
                raise CheckpointError(
                    f"{self._files[name]}: {name} holds NaN or infinity", remedy=REMEDY
                )
            yield quantize_int8(part)

    def ternary(self, name: str, rows: int, columns: int) -> PackedTernary:
        """The matrix of a projection by its module's name.

        Raises:
            CheckpointError: It is missing, of another shape, or no ternary matrix.
        """
        key = f"{name}.weight"
        if self.convention is None:
            return pack(*quantize_weights(self.tensor(key, rows, columns)))
        stored = self._raw(key)
        try:
            packed = from_huggingface(
                stored, self._raw(f"{name}.weight_scale"), rows, self.convention
            )
        except KernelInputError as error:
            raise CheckpointError(f"{self._files[key]}: {key}: {error}", remedy=REMEDY) from None
        if packed.columns != columns:
            raise CheckpointError(
                f"{self._files[key]}: {key} has {packed.columns} columns, wanted {columns}",
                remedy=REMEDY,
            )
        return packed

    def _raw(self, name: str) -> Tensor:
        self.require(name)
        path = self._files[name]
        try:
            with safe_open(path, framework="pt") as file:
                found: Tensor = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path}: {name} cannot be read: {error}", remedy=REMEDY
            ) from None
        return found


def open_bitnet(folder: Path) -> BitNetCheckpoint:
    """Open a directory; tensors are read when they are asked for.

    Raises:
        CheckpointError: It is no BitNet directory, or something in it is not supported.
    """
    config = read_json_object(folder / CONFIG, REMEDY)
    if config.get("model_type") != "bitnet":
        raise CheckpointError(
            f"{folder / CONFIG}: model_type {config.get('model_type')!r}; allowed: 'bitnet'",
            remedy=REMEDY,
        )
    if config.get("attention_bias"):
        raise CheckpointError(
            f"{folder / CONFIG}: attention_bias true; allowed: false", remedy=REMEDY
        )
    shapes = _shapes(folder, config)
    return BitNetCheckpoint(folder, shapes, _convention(folder, config), _files(folder))


def _shapes(folder: Path, config: dict[str, Any]) -> BitNetShapes:
    rope = config.get("rope_parameters") or {}
    kind = rope.get("rope_type", "default")
    scaling = config.get("rope_scaling")
    if kind != "default" or scaling:
        raise CheckpointError(
            f"{folder / CONFIG}: rope_type {kind!r}, rope_scaling {scaling!r}; allowed: default",
            remedy=REMEDY,
        )
    activation = config.get("hidden_act", "relu2")
    if activation not in ("relu2", "silu"):
        raise CheckpointError(
            f"{folder / CONFIG}: hidden_act {activation!r}; allowed: 'relu2', 'silu'",
            remedy=REMEDY,
        )
    try:
        width, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        shapes = BitNetShapes(
            width=width,
            ffn_width=int(config["intermediate_size"]),
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_width=int(config.get("head_dim") or width // heads),
            vocab_size=int(config["vocab_size"]),
            context=int(config["max_position_embeddings"]),
            eps=float(config["rms_norm_eps"]),
            rope_theta=float(rope.get("rope_theta", config.get("rope_theta", 10_000.0))),
            squared_relu=activation == "relu2",
            tied=bool(config.get("tie_word_embeddings", False)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}", remedy=REMEDY) from None
    if shapes.heads % shapes.kv_heads or shapes.head_width % 2:
        raise CheckpointError(
            f"{folder / CONFIG}: {shapes.heads} heads of {shapes.head_width} with "
            f"{shapes.kv_heads} for keys; allowed: a divisor of the heads, even widths",
            remedy=REMEDY,
        )
    return shapes


def _convention(folder: Path, config: dict[str, Any]) -> ScaleConvention | None:
    quantisation = config.get("quantization_config")
    if not isinstance(quantisation, dict):
        return None
    if quantisation.get("use_rms_norm"):
        raise CheckpointError(
            f"{folder / CONFIG}: quantization_config.use_rms_norm true; allowed: false",
            remedy=REMEDY,
        )
    kind = str(quantisation.get("linear_class", "bitlinear"))
    mode = str(quantisation.get("quantization_mode", "offline"))
    if (kind, mode) == ("autobitlinear", "online"):
        return None
    try:
        return scale_convention(kind, mode)
    except KernelInputError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}", remedy=REMEDY) from None


def _files(folder: Path) -> dict[str, Path]:
    """The file every tensor lies in."""
    if (folder / INDEX).is_file():
        listed = read_json_object(folder / INDEX, REMEDY).get("weight_map")
        if not isinstance(listed, dict):
            raise CheckpointError(f"{folder / INDEX} has no weight_map", remedy=REMEDY)
        return {str(name): folder / Path(str(file)).name for name, file in listed.items()}
    path = folder / SINGLE
    try:
        with safe_open(path, framework="pt") as file:
            return dict.fromkeys(file.keys(), path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}", remedy=REMEDY) from None
