"""The native executor: a plan in one call a token, no Python and no torch operation inside."""

from __future__ import annotations

import struct
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from agentforge_kernels import (
    Int8Weight,
    PackedTernary,
    thresholds,
    to_block_sparse,
    to_columns,
    zero_tile_share,
)
from agentforge_kernels.arena import Arena
from agentforge_kernels.native import extension, unavailable_reason
from agentforge_kernels.native.threads import default_threads
from agentforge_kernels.native_backend import NativeBackend
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from agentforge.errors import PreflightError
from agentforge.model.memory import ERROR_LIMIT
from agentforge.runtime.heap import return_free_memory
from agentforge.runtime.plan import (
    Activate,
    Attend,
    Blend,
    DecodePlan,
    DeferredWeight,
    Embed,
    Linear,
    Norm,
    Remember,
    Span,
    Step,
    Weight,
    loaded,
)
from agentforge.runtime.sampling_options import SamplingOptions
from agentforge.runtime.states import BlockedCaches, CacheType, MemoryStates

RECORD, DOUBLES = 32, 28
"""64-bit numbers of a record, and where its doubles begin (native/plan.hpp)."""
EMBED, EMBED_INT8, NORM, TERNARY, INT8, FLOAT, ATTEND, REMEMBER, BLEND, ACTIVATE = range(10)
BFLOAT16, EMBED_BFLOAT16 = 10, 11
CACHE_TYPES: tuple[CacheType, ...] = ("float32", "bfloat16", "int8")
"""In the order of native/float_attention.hpp."""
FLOAT_ROWS = 64
"""Rows of a block of a float matrix, whose columns lie one behind the other."""


class NativeExecutor:
    """Runs a plan in C++ on the CPU.

    Args:
        plan: The model.
        sequences: How many sequences it holds at once.
        tokens: Most tokens of one call; longer prefills are cut into several.
        sparse: Use the sparse forms of matrices where they are measured to pay.
        cache: How keys and values are kept.

    Attributes:
        steps: Recursion steps each token of the last call took, (tokens,) int32.
        memories: Titans memories of the sequences.
        caches: Their keys and values.
        forms: In which form every matrix is computed for one token, by name.

    Raises:
        PreflightError: The extension was not built.
    """

    def __init__(
        self,
        plan: DecodePlan,
        sequences: int = 1,
        tokens: int = 64,
        *,
        sparse: bool = True,
        cache: CacheType = "float32",
    ) -> None:
        if extension is None:
            raise PreflightError(
                f"the native executor cannot run: {unavailable_reason()}",
                remedy="install with a C++ compiler, or use the reference executor",
            )
        self.plan = plan
        self.capacity = tokens
        self.forms: dict[str, str] = {}
        self._native: Any = extension
        self._sparse = sparse
        self._backend = NativeBackend()
        self._kept: list[Tensor] = []
        self._buffers = {n: torch.zeros(tokens, w) for n, w in plan.buffers.items()}
        for name, width in (("latent", plan.width), ("answer", plan.width), ("logit", 1)):
            self._buffers.setdefault(name, torch.zeros(tokens, width))
        for name in ("h", "u"):
            self._buffers.setdefault(name, torch.zeros(tokens, plan.width))
        self.sequences = sequences
        self.memories = MemoryStates.of(plan, sequences)
        self.caches = BlockedCaches.of(plan, sequences, cache)
        self._cache_type = CACHE_TYPES.index(cache)
        self._places = torch.zeros(3, tokens, dtype=torch.int32)
        self._count = 0
        self._numbers = self._places.numpy()
        self._addresses = [self._places[i].data_ptr() for i in range(3)]
        self._steps = torch.zeros(tokens, dtype=torch.int32)
        self._arena = Arena(
            [
                extension.panels_bytes(s.out.width, s.src.width)
                for s in plan.linears()
                if _is_ternary(s.weight)
            ]
        )
        self._handle = self._create()
        weakref.finalize(self, extension.plan_destroy, self._handle)

    @property
    def steps(self) -> Tensor:
        """Recursion steps each token of the last call took, (tokens,) int32."""
        return self._steps[: self._count]

    def reset(self, sequence: int) -> None:
        """Forget a sequence: its next token is at position 0."""
        self.memories.reset(sequence)

    def run(
        self, ids: Sequence[int], sequence: Sequence[int], position: Sequence[int],
        wanted: Sequence[int],
    ) -> Tensor:  # fmt: skip
        """Read tokens; as `ReferenceExecutor.run`, at most `capacity` of them.

        Raises:
            ValueError: More tokens than `capacity`, or a token, sequence or position that is out
                of range: memory that is not ours is never read.
            FloatingPointError: NaN or infinity met a matrix.
        """
        count = len(ids)
        if not 0 < count <= self.capacity:
            raise ValueError(f"{count} tokens; allowed: 1 to {self.capacity}")
        limits = (self.plan.vocab_size, self.sequences, self.plan.context)
        given = (("id", ids), ("sequence", sequence), ("position", position))
        for (name, row), limit in zip(given, limits, strict=True):
            if len(row) != count:
                raise ValueError(f"{len(row)} numbers of {name} for {count} tokens")
            low, high = min(row), max(row)
            if low < 0 or high >= limit:
                raise ValueError(f"{name} {low if low < 0 else high}; allowed: 0 to {limit - 1}")
        # A view of NumPy takes a list in 0.3 us, a new torch tensor 10.
        self._numbers[:, :count] = ids, sequence, position
        self._count = count
        threads = default_threads()
        bad = self._native.plan_read(
            self._handle, count, *self._addresses, self._steps.data_ptr(), threads
        )
        if bad >= 0:
            raise FloatingPointError(f"token {bad} (position {position[bad]}) met NaN or infinity")
        answer = self._buffers["answer"]
        for place, token in enumerate(wanted):
            if place != token:
                answer[place] = answer[token]
        if not wanted:
            return torch.zeros(0, self.plan.vocab_size)
        if self._native.plan_head(self._handle, len(wanted), threads) >= 0:
            raise FloatingPointError("the answer met NaN or infinity")
        return self._buffers["logits"][: len(wanted)]

    def generate(
        self, token: int, sequence: int, position: int, seen: Sequence[int],
        options: SamplingOptions, stop_ids: Sequence[int], uniforms: NDArray[np.float64],
    ) -> tuple[list[int], bool]:  # fmt: skip
        """Read a token, choose the next, and so on, in one call for all `uniforms`.

        Args:
            token: Read first.
            sequence: Its sequence.
            position: Its position.
            seen: Tokens read before, for the repetition penalty.
            options: How to choose.
            stop_ids: Tokens that end it; they are not among the chosen.
            uniforms: A number in [0, 1) for every token, float64.

        Returns:
            The chosen tokens; the last was not read yet unless it ended. Whether it ended.

        Raises:
            ValueError: A token, sequence or position out of range.
            FloatingPointError: NaN or infinity met a matrix.
        """
        count, limit = len(uniforms), self.plan.vocab_size
        for name, value, most in (
            ("id", token, limit), ("sequence", sequence, self.sequences),
            ("position", position + count - 1, self.plan.context),
        ):  # fmt: skip
            if not 0 <= value < most or position < 0:
                raise ValueError(f"{name} {value}; allowed: 0 to {most - 1}")
        forbidden, stop = (np.array(ids, dtype=np.int32) for ids in (options.forbidden, stop_ids))
        if forbidden.size and not 0 <= forbidden.min() <= forbidden.max() < limit:
            raise ValueError(f"forbidden {options.forbidden}; allowed: 0 to {limit - 1}")
        read = np.empty(len(seen) + count, dtype=np.int32)
        read[: len(seen)] = seen
        chosen = np.empty(count, dtype=np.int32)
        told = np.array(
            [*map(_bits, (options.temperature, options.top_p, options.repetition_penalty)),
             options.top_k, forbidden.ctypes.data, len(forbidden), stop.ctypes.data, len(stop)],
            dtype=np.int64,
        )  # fmt: skip
        place = np.array([token, sequence, position, count, len(seen)], dtype=np.int64)
        luck = np.ascontiguousarray(uniforms, dtype=np.float64)
        self._count = 1
        done: int = self._native.plan_generate(
            self._handle, told.ctypes.data, place.ctypes.data, luck.ctypes.data,
            self._buffers["logits"].data_ptr(), limit, read.ctypes.data, chosen.ctypes.data,
            self._steps.data_ptr(), default_threads(),
        )  # fmt: skip
        if done < 0:
            raise FloatingPointError(f"position {position - 1 - done} met NaN or infinity")
        return chosen[:done].tolist(), done < count

    def start_timing(self) -> None:
        """From now on the time of every step is added up, which costs 0.05 us a step."""
        self._spent = torch.zeros(len(self._names), dtype=torch.int64)
        self._native.plan_time_steps(self._handle, self._spent.data_ptr())

    def stop_timing(self) -> dict[str, float]:
        """Microseconds since `start_timing` by what was done: matrices by name, others by kind."""
        self._native.plan_time_steps(self._handle, 0)
        times: dict[str, float] = {}
        for name, nanoseconds in zip(self._names, self._spent.tolist(), strict=True):
            times[name] = times.get(name, 0.0) + nanoseconds / 1000
        return times

    def weight_bytes(self) -> int:
        """Bytes of weights as they lie in memory for the kernels."""
        return sum(t.nbytes for t in self._kept)

    def _create(self) -> int:
        plan, recursion = self.plan, self.plan.recursion
        blocks = recursion.blocks if recursion else ()
        sections: list[Sequence[Step]] = [
            plan.prelude,
            *blocks,
            recursion.update if recursion else (),
            recursion.halt if recursion else (),
            plan.head,
        ]
        self._names = [
            step.name if isinstance(step, Linear) else type(step).__name__.lower()
            for section in sections
            for step in section
        ]
        flat = [number for section in sections for step in section for number in self._record(step)]
        records = torch.tensor(flat, dtype=torch.int64)
        counts = torch.tensor([len(s) for s in sections], dtype=torch.int64)
        cos, sin = self._keep(plan.rope_cos), self._keep(plan.rope_sin)
        ours = self.caches
        self._tables = [
            torch.tensor([t.data_ptr() for t in tensors], dtype=torch.int64)
            for tensors in (ours.keys, ours.values, ours.key_scales, ours.value_scales)
        ]
        scratch = torch.zeros(self._scratch_floats())
        self._scratch = scratch
        names = ("x", "h", "u", "latent", "answer", "logit")
        inject = [0, 0]
        if recursion:
            inject = [self._keep(recursion.inject_prelude), self._keep(recursion.inject_answer)]
        shape = [
            plan.width,
            *(self._buffers[n].data_ptr() for n in names),
            scratch.data_ptr(),
            cos,
            sin,
            *(t.data_ptr() for t in self._tables),
            recursion.steps if recursion else 0,
            recursion.latent_steps if recursion else 0,
            recursion.first_cache if recursion else 0,
            *inject,
            _bits(recursion.threshold if recursion else 2.0),
            self._cache_type,
        ]
        numbers = torch.tensor(shape, dtype=torch.int64)
        handle: int = self._native.plan_create(
            numbers.data_ptr(), records.data_ptr(), counts.data_ptr(), len(sections)
        )
        return handle

    def _scratch_floats(self) -> int:
        """The vectors of a memory, or a key that is turned for all passes that are left."""
        heads = [c.width // c.heads for c in self.plan.caches]
        return max([64, *heads, *(4 * m.width for m in self.plan.memories)])

    def _record(self, step: Step) -> list[int]:
        match step:
            case Embed():
                fields = self._embed(step)
            case Norm():
                fields = [NORM, *self._span(step.src), step.src.width, self._keep(step.weight),
                          *self._span(step.out)]  # fmt: skip
            case Linear():
                fields = self._linear(step)
            case Attend():
                width = step.q.width // step.heads
                fields = [ATTEND, *self._span(step.q), *self._span(step.k), *self._span(step.v),
                          *self._span(step.out), step.heads, step.kv_heads, width, 0, step.window,
                          step.cache]  # fmt: skip
            case Remember():
                ours = self.memories
                states = (ours.maps, ours.momenta, ours.chunk_maps, ours.recent)
                fields = [REMEMBER, *self._span(step.raw), *self._span(step.rates),
                          *self._span(step.out), self._keep(step.filter), step.width, step.chunk,
                          *(s[step.state].data_ptr() for s in states)]  # fmt: skip
            case Blend():
                fields = [BLEND, *self._span(step.mixed), *self._span(step.gate),
                          *self._span(step.read), step.mixed.width]  # fmt: skip
            case Activate():
                spans = (step.gate, step.up, step.out)
                fields = [ACTIVATE, *(n for s in spans for n in self._span(s)), step.out.width]
                fields.append(int(step.squared_relu))
        record = fields + [0] * (RECORD - len(fields))
        if isinstance(step, Norm):
            record[DOUBLES] = _bits(step.eps)
        elif isinstance(step, Remember):
            record[DOUBLES : DOUBLES + 2] = [
                _bits(step.budget), _bits(ERROR_LIMIT * step.width**0.5)
            ]  # fmt: skip
        return record

    def _embed(self, step: Embed) -> list[int]:
        table = step.table
        if isinstance(table, Int8Weight):
            return [EMBED_INT8, self._keep(table.weight), table.columns, *self._span(step.out),
                    self._keep(table.scale.expand(table.rows))]  # fmt: skip
        kind = EMBED_BFLOAT16 if table.dtype == torch.bfloat16 else EMBED
        return [kind, self._keep(table), table.shape[1], *self._span(step.out)]

    def _linear(self, step: Linear) -> list[int]:
        residual = (0, 0) if step.residual is None else self._span(step.residual)
        weight = step.weight
        if isinstance(weight, Tensor):
            halves = weight.dtype == torch.bfloat16
            self.forms[step.name] = "bfloat16" if halves else "float"
            rows, columns = weight.shape
            blocks = F.pad(weight, (0, 0, 0, -rows % FLOAT_ROWS)).view(-1, FLOAT_ROWS, columns)
            bias = 0 if step.bias is None else self._keep(step.bias)
            kind = BFLOAT16 if halves else FLOAT
            return [kind, *self._span(step.src), columns, rows, self._keep(blocks.transpose(1, 2)),
                    *self._span(step.out), *residual, bias,
                    int(step.activation == "sigmoid")]  # fmt: skip
        if step.bias is not None or step.activation != "none":
            raise NotImplementedError(f"{step.name}: bias and activation of float matrices only")
        start = [*self._span(step.src), step.src.width, step.out.width]
        end = [*self._span(step.out), *residual]
        if not _is_ternary(weight):
            self.forms[step.name] = "int8"
            lanes, scale = self._int8(step)
            return [INT8, *start, lanes, scale, 1, *end]
        ternary = loaded(weight)
        assert isinstance(ternary, PackedTernary)
        panels = self._backend.lay_out_dense(ternary.codes, ternary.columns)[0]
        scale = self._keep(ternary.scale)
        record = [TERNARY, *start, self._keep(self._arena.place(panels)), scale,
                int(ternary.scale.numel() > 1), *end, 0,
                *self._sparse_forms(step, ternary)]  # fmt: skip
        if isinstance(weight, DeferredWeight):
            del ternary, panels
            return_free_memory()
        return record

    def _int8(self, step: Linear) -> tuple[int, int]:
        """Addresses of lanes and scales of an int8 matrix, laid out part by part."""
        weight, rows = step.weight, step.out.width
        parts = weight.parts() if isinstance(weight, DeferredWeight) else iter((weight,))
        lanes = torch.empty(self._native.lanes_bytes(rows, step.src.width), dtype=torch.uint8)
        scale = torch.empty(rows)
        row = byte = 0
        for part in parts:
            assert isinstance(part, Int8Weight)
            laid = self._backend.lay_out_int8(part.weight)[0]
            lanes[byte : byte + laid.numel()] = laid
            scale[row : row + part.rows] = part.scale
            row, byte = row + part.rows, byte + laid.numel()
        del parts
        return_free_memory()
        return self._keep(lanes), self._keep(scale)

    def _sparse_forms(self, step: Linear, weight: PackedTernary) -> list[int]:
        """Most tokens and addresses of the column form and of the tiles, where they pay."""
        self.forms[step.name] = "dense"
        if not self._sparse:
            return [0] * 7
        size, tiles_share = weight.codes.nbytes, zero_tile_share(weight)
        left_out = thresholds.share_of_columns_left_out(step.zero_activations, weight.rows)
        columns = thresholds.most_tokens(thresholds.ACTIVATION_SPARSE, size, left_out)
        tiles = thresholds.most_tokens(thresholds.BLOCK_SPARSE, size, tiles_share)
        if tiles and tiles_share > left_out:
            columns = 0  # the form that leaves out more
        fields = [columns, 0, tiles, 0, 0, 0, 0]
        if columns:
            self.forms[step.name] = "activation-sparse"
            blocks = self._backend.lay_out_columns(to_columns(weight).codes, weight.rows)[0]
            fields[1] = self._keep(blocks)
        if tiles:
            if not columns:
                self.forms[step.name] = "block-sparse"
            sparse = to_block_sparse(weight)
            fields[3:] = [
                self._keep(self._backend.lay_out_tiles(sparse.tiles)[0]),
                self._keep(sparse.index),
                self._keep(sparse.start),
                sparse.count,
            ]
        return fields

    def _span(self, span: Span) -> tuple[int, int]:
        """Address of its first column and floats between tokens."""
        buffer = self._buffers[span.buffer]
        return buffer.data_ptr() + 4 * span.start, buffer.shape[1]

    def _keep(self, tensor: Tensor) -> int:
        """The address of a contiguous tensor that is kept as long as the executor."""
        tensor = tensor.contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()


def _is_ternary(weight: Weight | DeferredWeight) -> bool:
    if isinstance(weight, DeferredWeight):
        return weight.kind == "ternary"
    return isinstance(weight, PackedTernary)


def _bits(value: float) -> int:
    """A double as a whole number of 64 bits."""
    return int(struct.unpack("<q", struct.pack("<d", value))[0])
