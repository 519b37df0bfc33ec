"""A packed directory as one GGUF file: ternary tensors as TQ2_0, the rest in FP16.

Written with the `gguf` package. No runner of other people knows the architecture (``cognate``):
the file is a container that tools can read, list and dequantise. Rows of ternary tensors are padded
with zero weights to a multiple of 256 columns, which GGUF's blocks need; the true number of columns
stands under ``cognate.columns.NAME``. The tokenizer is stored whole under
``tokenizer.huggingface.json``.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from agentforge_kernels import Int8Weight, KernelInputError, PackedTernary
from agentforge_kernels.files import Stored
from agentforge_kernels.gguf import to_tq2_0
from torch import Tensor

from agentforge.errors import CheckpointError, PreflightError
from agentforge.formats.packed import PackedModel
from agentforge.run.atomic import disk_error

ARCHITECTURE = "cognate"


def save_gguf(packed: PackedModel, path: Path) -> None:
    """Write a model as a GGUF file, atomically.

    Args:
        packed: The model.
        path: The file; replaced whole.

    Raises:
        PreflightError: The `gguf` package is missing, or the folder cannot be written.
        CheckpointError: A scale that float16 does not hold.
    """
    try:
        import gguf
    except ImportError:
        raise PreflightError(
            "the package gguf is missing", remedy="pip install 'agentforge-tui[gguf]'"
        ) from None
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        writer: Any = gguf.GGUFWriter(temporary, ARCHITECTURE)
        _write_description(writer, packed)
        for name, tensor in packed.tensors.items():
            _add(writer, gguf, name, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise disk_error(error, path) from None
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _write_description(writer: Any, packed: PackedModel) -> None:
    """Shapes, behaviour, generation defaults and the tokenizer."""
    shapes = packed.shapes
    writer.add_name(packed.folder.name)
    writer.add_context_length(shapes.context)
    writer.add_embedding_length(shapes.d_model)
    writer.add_feed_forward_length(shapes.ffn_width)
    writer.add_head_count(shapes.n_heads)
    writer.add_block_count(shapes.n_prelude + shapes.n_core)
    writer.add_rope_freq_base(shapes.rope_theta)
    writer.add_layer_norm_rms_eps(shapes.norm_eps)
    writer.add_vocab_size(packed.vocab_size)
    for name, value in (
        ("shapes", shapes.model_dump(mode="json")),
        ("behaviour", asdict(packed.behaviour)),
        ("generation", asdict(packed.generation)),
    ):
        writer.add_string(f"{ARCHITECTURE}.{name}", json.dumps(value, sort_keys=True))
    writer.add_string(
        "tokenizer.huggingface.json",
        (packed.folder / "tokenizer.json").read_text(encoding="utf-8"),
    )


def _add(writer: Any, gguf: Any, name: str, tensor: Stored) -> None:
    """One tensor: TQ2_0, or FP16 (int8 embeddings become that again)."""
    if isinstance(tensor, PackedTernary):
        try:
            blocks = to_tq2_0(tensor).numpy()
        except KernelInputError as error:
            raise CheckpointError(
                f"{name} cannot be stored in GGUF: {error}", remedy="quantise the model again"
            ) from None
        writer.add_uint32(f"{ARCHITECTURE}.columns.{name}", tensor.columns)
        writer.add_tensor(name, blocks, raw_dtype=gguf.GGMLQuantizationType.TQ2_0)
        return
    if isinstance(tensor, Int8Weight):
        writer.add_tensor(name, (tensor.weight.float() * tensor.scale[:, None]).half().numpy())
        return
    assert isinstance(tensor, Tensor)
    writer.add_tensor(name, np.ascontiguousarray(tensor.half().numpy()))
