"""Bytes of a model as it would be stored, by the role of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from agentforge_kernels import Int8Weight, PackedTernary
from agentforge_kernels.files import Stored
from torch import Tensor

from agentforge.formats.packed import TABLE, stored_tensors
from agentforge.model.language_model import CognateLM


def stored_bytes(tensor: Stored) -> int:
    """Bytes of the stored tensors, without names."""
    if isinstance(tensor, PackedTernary):
        return tensor.codes.nbytes + tensor.scale.nbytes
    if isinstance(tensor, Int8Weight):
        return tensor.weight.nbytes + tensor.scale.nbytes
    assert isinstance(tensor, Tensor)
    return tensor.nbytes


def values(tensor: Stored) -> int:
    """Parameters a stored tensor stands for."""
    if isinstance(tensor, PackedTernary | Int8Weight):
        return tensor.rows * tensor.columns
    assert isinstance(tensor, Tensor)
    return tensor.numel()


def fp32_bytes(file_bytes: int, weights: Mapping[str, Tensor]) -> int:
    """Bytes of a weight file were its tensors FP32: what it is, unless they are of another type."""
    stored = sum(t.nbytes for t in weights.values())
    return file_bytes - stored + sum(4 * t.numel() for t in weights.values())


def compression(model: CognateLM, before_bytes: int, int8_embedding: bool) -> float:
    """FP32 bytes over the bytes the model would be stored in (names not counted)."""
    stored = stored_tensors(model, int8_embedding)
    return before_bytes / sum(stored_bytes(t) for t in stored.values())


def embedding_in_int8(
    wanted: Literal["auto", "on", "off"], model: CognateLM, before_bytes: int, target: float
) -> bool:
    """Whether the table is stored in int8; auto: where FP16 keeps it short of the target."""
    if wanted == "auto":
        return compression(model, before_bytes, int8_embedding=False) < target
    return wanted == "on"


def role(name: str, tensor: Stored) -> str:
    """What a stored tensor is, in words."""
    if isinstance(tensor, PackedTernary):
        return "ternary matrices"
    if name == TABLE:
        return "embedding table (int8)" if isinstance(tensor, Int8Weight) else "embedding table"
    if name.startswith("embedding."):
        return "embedding maps, head"
    if "norm" in name:
        return "norms"
    if name.startswith("halting."):
        return "halting head"
    if "gate.a" in name or "gate.b" in name:
        return "memory gate"
    if ".memory." in name:
        return "memory scalars"
    return "matrices kept in FP16" if isinstance(tensor, Tensor) and tensor.ndim == 2 else "vectors"
