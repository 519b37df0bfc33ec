"""The C++ backend: AMX, AVX-512-VNNI, AVX-VNNI, AVX2 or portable code, chosen at run time.

Hands raw addresses to the extension (0.1 us a call), so here every tensor is made contiguous and
checked for dtype, size and device: memory that is not ours is never read, whatever the caller did.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter

from agentforge_kernels import int8
from agentforge_kernels.backend import Activations, Layout
from agentforge_kernels.errors import BackendUnavailableError, KernelInputError
from agentforge_kernels.format import CODES_PER_BYTE, padded
from agentforge_kernels.layouts import tile_layout
from agentforge_kernels.native import extension, unavailable_reason
from agentforge_kernels.native.threads import default_threads
from agentforge_kernels.native_call import ELEMENT_TYPES
from agentforge_kernels.sparse import MOST_COLUMNS, TILE_BYTES, tile_grid

_START_FAULT, _INDEX_FAULT = -2, -3
"""What the extension answers for the index of a block-sparse matrix that is not one."""
_CPU = torch.device("cpu")


class NativeBackend:
    """The operations of :class:`agentforge_kernels.backend.Backend` in C++.

    Args:
        threads: Threads a call may use; by default torch's number at the time of the call.

    Raises:
        BackendUnavailableError: The extension was not built or does not load.
    """

    name = "native"

    def __init__(self, threads: int | None = None) -> None:
        if extension is None:
            raise BackendUnavailableError(f"native: {unavailable_reason()}")
        self._extension = extension
        self._threads = threads

    @property
    def threads(self) -> int:
        """Threads the next call may use."""
        return default_threads() if self._threads is None else self._threads

    def lay_out_dense(self, codes: Tensor, columns: int) -> tuple[Tensor, Layout]:
        """Stored codes uint8 ``[rows, padded_columns / 4]`` to panels, uint8 ``[bytes]``."""
        codes = _on_cpu("codes", codes, torch.uint8)
        rows = codes.shape[0]
        _check_columns(columns)
        _check_size("codes", codes, rows * padded(columns) // CODES_PER_BYTE)
        panels = _new(self._extension.panels_bytes(rows, columns), dtype=torch.uint8)
        self._extension.pack_panels(codes.data_ptr(), rows, columns, panels.data_ptr())
        return panels, "panels"

    def stored_codes(self, panels: Tensor, rows: int, columns: int) -> Tensor:
        """Panels back to the stored form, uint8 ``[rows, padded_columns / 4]``."""
        panels = _on_cpu("codes", panels, torch.uint8)
        _check_size("codes", panels, self._extension.panels_bytes(rows, columns))
        codes = _new(rows, padded(columns) // CODES_PER_BYTE, dtype=torch.uint8)
        self._extension.unpack_panels(panels.data_ptr(), rows, columns, codes.data_ptr())
        return codes

    def lay_out_columns(self, codes: Tensor, rows: int) -> tuple[Tensor, Layout]:
        """Stored columns uint8 ``[columns, padded_rows / 4]`` to blocks, uint8 ``[bytes]``."""
        codes = _matrix("codes", codes, torch.uint8)
        columns = codes.shape[0]
        _check_rows(rows)
        _check_columns(columns)
        _check_size("codes", codes, columns * padded(rows) // CODES_PER_BYTE)
        blocks = _new(self._extension.column_blocks_bytes(rows, columns), dtype=torch.uint8)
        self._extension.pack_columns(
            codes.data_ptr(), padded(rows) // CODES_PER_BYTE, rows, columns, blocks.data_ptr()
        )
        return blocks, "column_blocks"

    def stored_columns(self, blocks: Tensor, rows: int, columns: int) -> Tensor:
        """Column blocks back to the stored form, uint8 ``[columns, padded_rows / 4]``."""
        blocks = _on_cpu("codes", blocks, torch.uint8)
        _check_size("codes", blocks, self._extension.column_blocks_bytes(rows, columns))
        codes = _new(columns, padded(rows) // CODES_PER_BYTE, dtype=torch.uint8)
        self._extension.unpack_columns(
            blocks.data_ptr(), rows, columns, codes.data_ptr(), codes.shape[1]
        )
        return codes

    def lay_out_tiles(self, tiles: Tensor) -> tuple[Tensor, Layout]:
        """Stored tiles uint8 ``[count, 256]`` in the order of panels; its own inverse."""
        tiles = _matrix("tiles", tiles, torch.uint8)
        _check_size("tiles", tiles, tiles.shape[0] * TILE_BYTES)
        laid_out = _new(*tiles.shape, dtype=torch.uint8)
        self._extension.pack_tiles(tiles.data_ptr(), tiles.shape[0], laid_out.data_ptr())
        return laid_out, "panel_tiles"

    def lay_out_int8(self, weight: Tensor) -> tuple[Tensor, Layout]:
        """int8 ``[rows, columns]`` to lanes, uint8 ``[bytes]``."""
        weight = _matrix("weight", weight, torch.int8)
        rows, columns = weight.shape
        _check_columns(columns, int8.MOST_COLUMNS)
        lanes = _new(self._extension.lanes_bytes(rows, columns), dtype=torch.uint8)
        self._extension.pack_lanes(weight.data_ptr(), rows, columns, lanes.data_ptr())
        return lanes, "lanes"

    def quantize_activations(
        self, x: Tensor, norm_weight: Tensor | None = None, epsilon: float = 1e-5
    ) -> Activations:
        """Per-token absmax int8 of ``x`` ``[tokens, columns]`` (float32, float16 or bfloat16).

        A token that holds NaN or infinity gets scale NaN.
        """
        x = _floating(x)
        norm_weight = _norm_weight(norm_weight, x)
        tokens, columns = x.shape
        stride = padded(columns)
        q = _new(tokens, stride, dtype=torch.int8)
        scale = _new(tokens, dtype=torch.float32)
        total = _new(tokens, dtype=torch.int32)
        self._extension.quantize(
            x.data_ptr(),
            ELEMENT_TYPES[x.dtype],
            _address(norm_weight),
            epsilon,
            tokens,
            columns,
            q.data_ptr(),
            stride,
            scale.data_ptr(),
            total.data_ptr(),
            self.threads,
        )
        return Activations(q, scale, total)

    def ternary_linear(
        self,
        activations: Activations,
        codes: Tensor,
        layout: Layout,
        weight_scale: Tensor,
        residual: Tensor | None,
        rows: int,
        columns: int,
    ) -> Tensor:
        """Dense ternary matmul; ``codes`` are panels. Returns float32 ``[tokens, rows]``."""
        _check_layout(layout, "panels")
        q, scale, total = _activations(activations, columns)
        codes = _on_cpu("codes", codes, torch.uint8)
        _check_size("codes", codes, self._extension.panels_bytes(rows, columns))
        weight_scale, residual = _epilogue(weight_scale, residual, q.shape[0], rows)
        output = _new(q.shape[0], rows, dtype=torch.float32)
        self._extension.dense_linear(
            q.data_ptr(),
            q.shape[1],
            scale.data_ptr(),
            total.data_ptr(),
            q.shape[0],
            codes.data_ptr(),
            weight_scale.data_ptr(),
            weight_scale.numel() > 1,
            _address(residual),
            output.data_ptr(),
            rows,
            columns,
            self.threads,
        )
        return output

    def ternary_linear_fused(
        self,
        x: Tensor,
        norm_weight: Tensor | None,
        epsilon: float,
        codes: Tensor,
        layout: Layout,
        weight_scale: Tensor,
        residual: Tensor | None,
        rows: int,
        columns: int,
    ) -> Tensor:
        """Quantise (optionally normalised) and multiply in one call.

        The outputs of a token that holds NaN or infinity are NaN.
        """
        _check_layout(layout, "panels")
        x = _floating(x, columns)
        norm_weight = _norm_weight(norm_weight, x)
        codes = _on_cpu("codes", codes, torch.uint8)
        _check_size("codes", codes, self._extension.panels_bytes(rows, columns))
        weight_scale, residual = _epilogue(weight_scale, residual, x.shape[0], rows)
        output = _new(x.shape[0], rows, dtype=torch.float32)
        self._extension.dense_linear_fused(
            x.data_ptr(),
            ELEMENT_TYPES[x.dtype],
            _address(norm_weight),
            epsilon,
            x.shape[0],
            codes.data_ptr(),
            weight_scale.data_ptr(),
            weight_scale.numel() > 1,
            _address(residual),
            output.data_ptr(),
            rows,
            columns,
            self.threads,
        )
        return output

    def ternary_linear_block_sparse(
        self,
        activations: Activations,
        tiles: Tensor,
        index: Tensor,
        start: Tensor,
        weight_scale: Tensor,
        residual: Tensor | None,
        rows: int,
        columns: int,
    ) -> Tensor:
        """Ternary matmul over the stored tiles only.

        The tiles' order is changed at the first call and kept (:mod:`agentforge_kernels.layouts`).
        """
        q, scale, total = _activations(activations, columns)
        _check_rows(rows)
        row_blocks, column_groups = tile_grid(rows, columns)
        tiles = _matrix("tiles", tiles, torch.uint8)
        index = _on_cpu("index", index, torch.int32)
        start = _on_cpu("start", start, torch.int32)
        count = tiles.shape[0]
        _check_size("tiles", tiles, count * TILE_BYTES)
        _check_size("index", index, count)
        _check_size("start", start, row_blocks + 1)
        laid_out = tile_layout(tiles, self, self.lay_out_tiles).tensor
        weight_scale, residual = _epilogue(weight_scale, residual, q.shape[0], rows)
        output = _new(q.shape[0], rows, dtype=torch.float32)
        fault = self._extension.block_sparse_linear(
            q.data_ptr(),
            q.shape[1],
            scale.data_ptr(),
            total.data_ptr(),
            q.shape[0],
            laid_out.data_ptr(),
            index.data_ptr(),
            start.data_ptr(),
            count,
            weight_scale.data_ptr(),
            weight_scale.numel() > 1,
            _address(residual),
            output.data_ptr(),
            rows,
            columns,
            self.threads,
        )
        if fault == _START_FAULT:
            raise KernelInputError(
                "start",
                f"{start[0]} to {start[-1]}, steps {start.diff().amin()} to {start.diff().amax()}",
                f"0 to {count} (the tiles) in steps of 0 to {column_groups} (the column groups)",
            )
        if fault == _INDEX_FAULT:
            raise KernelInputError(
                "index", f"values {index.min()} to {index.max()}", f"0 to {column_groups - 1}"
            )
        return output

    def ternary_linear_activation_sparse(
        self,
        activations: Activations,
        codes: Tensor,
        layout: Layout,
        weight_scale: Tensor,
        residual: Tensor | None,
        rows: int,
        columns: int,
    ) -> Tensor:
        """Ternary matmul that reads only the columns whose activation is not zero."""
        _check_layout(layout, "column_blocks")
        q, scale, total = _activations(activations, columns)
        _check_rows(rows)
        codes = _on_cpu("codes", codes, torch.uint8)
        _check_size("codes", codes, self._extension.column_blocks_bytes(rows, columns))
        weight_scale, residual = _epilogue(weight_scale, residual, q.shape[0], rows)
        output = _new(q.shape[0], rows, dtype=torch.float32)
        self._extension.activation_sparse_linear(
            q.data_ptr(),
            q.shape[1],
            scale.data_ptr(),
            total.data_ptr(),
            q.shape[0],
            codes.data_ptr(),
            weight_scale.data_ptr(),
            weight_scale.numel() > 1,
            _address(residual),
            output.data_ptr(),
            rows,
            columns,
            self.threads,
        )
        return output

    def int8_linear(
        self,
        activations: Activations,
        weight: Tensor,
        layout: Layout,
        row_scale: Tensor,
        residual: Tensor | None,
        rows: int,
        columns: int,
    ) -> Tensor:
        """int8 matmul with a scale a row (language-model head)."""
        _check_layout(layout, "lanes")
        q, scale, total = _activations(activations, columns)
        _check_rows(rows)
        _check_columns(columns, int8.MOST_COLUMNS)
        weight = _on_cpu("weight", weight, torch.uint8)
        _check_size("weight", weight, self._extension.lanes_bytes(rows, columns))
        row_scale, residual = _epilogue(row_scale, residual, q.shape[0], rows)
        row_scale = row_scale.expand(rows).contiguous()  # named: it must outlive its address
        output = _new(q.shape[0], rows, dtype=torch.float32)
        self._extension.int8_linear(
            q.data_ptr(),
            q.shape[1],
            scale.data_ptr(),
            total.data_ptr(),
            q.shape[0],
            weight.data_ptr(),
            row_scale.data_ptr(),
            _address(residual),
            output.data_ptr(),
            rows,
            columns,
            self.threads,
        )
        return output


def _new(*shape: int, dtype: torch.dtype) -> Tensor:
    """Memory to be written to: of this dtype and on the CPU, whatever torch's defaults are.

    Raises:
        KernelInputError: Under a mode that answers with tensors without memory.
    """
    tensor = torch.empty(shape, dtype=dtype, device=_CPU)
    if type(tensor) is not Tensor:
        raise KernelInputError(
            "tensor mode", type(tensor).__name__, "tensors with memory (native backend)"
        )
    return tensor


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _on_cpu(argument: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor``, contiguous; an error for another device or dtype, or one without memory."""
    if tensor.dtype != dtype:
        raise KernelInputError(argument, tensor.dtype, str(dtype))
    if not tensor.is_cpu:
        raise KernelInputError(argument, f"device {tensor.device}", "the CPU (native backend)")
    if type(tensor) not in (Tensor, Parameter):
        raise KernelInputError(argument, type(tensor).__name__, "a tensor with memory of its own")
    # A view may carry a minus sign that its memory does not have (torch.Tensor.is_neg).
    tensor = tensor.resolve_neg()
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def _matrix(argument: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor``, contiguous and of two dimensions."""
    if tensor.ndim != 2:
        raise KernelInputError(argument, f"shape {list(tensor.shape)}", "a matrix")
    return _on_cpu(argument, tensor, dtype)


def _floating(x: Tensor, columns: int | None = None) -> Tensor:
    if x.dtype not in ELEMENT_TYPES or x.ndim != 2 or x.shape[1] == 0:
        raise KernelInputError(
            "x",
            f"{x.dtype} of shape {list(x.shape)}",
            "float32, float16 or bfloat16 [tokens, columns]",
        )
    if columns is not None and x.shape[1] != columns:
        raise KernelInputError("x", f"{x.shape[1]} columns", f"{columns}, as the weight has")
    return _on_cpu("x", x, x.dtype)


def _norm_weight(norm_weight: Tensor | None, x: Tensor) -> Tensor | None:
    if norm_weight is None:
        return None
    _check_size("norm_weight", norm_weight, x.shape[1])
    return _on_cpu("norm_weight", norm_weight.float(), torch.float32)


def _activations(activations: Activations, columns: int) -> Activations:
    q = _on_cpu("activations.q", activations.q, torch.int8)
    if q.ndim != 2 or q.shape[1] != padded(columns):
        raise KernelInputError(
            "activations.q",
            f"shape {list(q.shape)}",
            f"[tokens, {padded(columns)}] for {columns} columns",
        )
    _check_columns(columns)
    scale = _on_cpu("activations.scale", activations.scale, torch.float32)
    total = _on_cpu("activations.sum", activations.sum, torch.int32)
    _check_size("activations.scale", scale, q.shape[0])
    _check_size("activations.sum", total, q.shape[0])
    return Activations(q, scale, total)


def _epilogue(
    weight_scale: Tensor, residual: Tensor | None, tokens: int, rows: int
) -> tuple[Tensor, Tensor | None]:
    weight_scale = _on_cpu("weight_scale", weight_scale, torch.float32)
    if weight_scale.numel() not in (1, rows):
        raise KernelInputError("weight_scale", f"{weight_scale.numel()} values", f"1 or {rows}")
    if residual is None:
        return weight_scale, None
    residual = _on_cpu("residual", residual, torch.float32)
    _check_size("residual", residual, tokens * rows)
    return weight_scale, residual


def _check_size(argument: str, tensor: Tensor, expected: int) -> None:
    if tensor.numel() != expected:
        raise KernelInputError(argument, f"{tensor.numel()} values", f"{expected} for these sizes")


def _check_rows(rows: int) -> None:
    if rows < 1:
        raise KernelInputError("rows", rows, "1 or more")


def _check_columns(columns: int, most: int = MOST_COLUMNS) -> None:
    if not 1 <= columns <= most:
        raise KernelInputError("columns", columns, f"1 to {most}")


def _check_layout(layout: Layout, expected: Layout) -> None:
    if layout != expected:
        raise KernelInputError(
            "layout", layout, f"{expected} (lay the weights out with this backend first)"
        )
