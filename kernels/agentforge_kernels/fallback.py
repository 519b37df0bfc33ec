"""The CPU without a compiler: unpacked int8 weights and ``torch._int_mm``, the same results.

``torch._int_mm`` hands the product to oneDNN, which has instructions that saturate at 16 bits on
processors without VNNI. Whether it is exact here is asked once, with the largest values there are;
where it is not, products are float32 matmuls over so few columns that every partial sum is an
integer below 2^24, which float32 holds exactly in any order of addition.
"""

from __future__ import annotations

import warnings
from functools import cache
from itertools import product

import torch
from torch import Tensor

from agentforge_kernels.backend import Layout
from agentforge_kernels.format import unpack_codes
from agentforge_kernels.native import unavailable_reason
from agentforge_kernels.reference_backend import ReferenceBackend

EXACT_INTEGERS = 1 << 24
"""float32 has 24 bits of significand: integers up to here are exact."""
PROBE_COLUMNS = 512


class FallbackBackend(ReferenceBackend):
    """The reference's results through int8 matrix products; says once that it is in use."""

    name = "fallback"

    def __init__(self) -> None:
        _give_notice()

    def lay_out_dense(self, codes: Tensor, columns: int) -> tuple[Tensor, Layout]:
        """Stored codes to int8 ``[rows, columns]``: four times the memory, no unpacking a call."""
        return unpack_codes(codes)[:, :columns].contiguous(), "int8"

    def lay_out_columns(self, codes: Tensor, rows: int) -> tuple[Tensor, Layout]:
        """Stored columns to int8 ``[rows, columns]``: zeros are not skipped here."""
        return unpack_codes(codes)[:, :rows].T.contiguous(), "int8"

    def accumulate(self, q: Tensor, weight: Tensor) -> Tensor:
        """Exact ``q @ weight.T`` as integers: int8 ``[tokens, columns]``, ``[rows, columns]``."""
        # Over one column torch 2.13 leaves part of _int_mm's result unwritten.
        if q.shape[1] > 1 and int_mm_is_exact():
            return torch._int_mm(_row_major(q), _row_major(weight).T)
        return accumulate_in_float(q, weight)


def _row_major(matrix: Tensor) -> Tensor:
    """Contiguous, the stride of a single row spelled out: torch lets it be anything, and with a 0
    ``_int_mm`` computes nothing (https://github.com/pytorch/pytorch/issues/195066)."""
    return matrix.contiguous().as_strided(matrix.shape, (matrix.shape[1], 1))


def accumulate_in_float(q: Tensor, weight: Tensor) -> Tensor:
    """Exact ``q @ weight.T`` as int32, by float32 products of few enough columns."""
    # Factors are integers up to 128, exact in TF32 and bfloat16 too (8 bits of significand), so a
    # lower float32 matmul precision, which only rounds the factors, changes nothing.
    largest = max(1, int(weight.max()), -int(weight.min()))
    step = EXACT_INTEGERS // (128 * largest)
    total = torch.zeros(q.shape[0], weight.shape[0], dtype=torch.int32, device=q.device)
    for begin in range(0, q.shape[1], step):
        part = slice(begin, begin + step)
        total += (q[:, part].float() @ weight[:, part].float().T).to(torch.int32)
    return total


@cache
def int_mm_is_exact() -> bool:
    """Whether ``torch._int_mm`` gives the exact product of the largest int8 values here."""
    for tokens, q_value, weight_value in product((1, 33), (127, -127, -128), (127, -128, 1, -1)):
        q = torch.full((tokens, PROBE_COLUMNS), q_value, dtype=torch.int8, device="cpu")
        weight = torch.full((48, PROBE_COLUMNS), weight_value, dtype=torch.int8, device="cpu")
        try:
            seen = torch._int_mm(q, weight.T)
        except RuntimeError:
            return False
        if not bool((seen == q_value * weight_value * PROBE_COLUMNS).all()):
            return False
    return True


@cache
def _give_notice() -> None:
    reason = "this backend was asked for"
    if unavailable_reason():
        reason = (
            f"{unavailable_reason()}. For the compiled kernels install a C++ compiler (g++ or "
            "clang++) and reinstall the package"
        )
    warnings.warn(
        "agentforge_kernels computes through torch._int_mm, exact but slower and with four times "
        f"the memory for weights: {reason}.",
        stacklevel=3,
    )
