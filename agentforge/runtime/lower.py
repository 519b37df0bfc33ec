"""From a packed model to its plan: matrices of one input become one, caches are numbered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from agentforge_kernels import Int8Weight, PackedTernary, pack, unpack
from agentforge_kernels.files import Stored
from torch import Tensor

from agentforge.formats.packed import PackedModel
from agentforge.model.rotary import rotary_tables
from agentforge.runtime.plan import (
    Activate,
    Attend,
    Blend,
    CacheShape,
    DecodePlan,
    Embed,
    Linear,
    MemoryShape,
    Norm,
    Recursion,
    Remember,
    Span,
    Step,
    Weight,
)


def lower_packed(packed: PackedModel) -> DecodePlan:
    """The plan of our own model (`agentforge.model.language_model`), as its behaviour runs it.

    Raises:
        CheckpointError: A tensor is missing (`packed_module` finds it first).
    """
    return _Lowering(packed).plan()


class _Lowering:
    """What is known while the steps are written down."""

    def __init__(self, packed: PackedModel) -> None:
        self.shapes = packed.shapes
        self.behaviour = packed.behaviour
        self.tensors: Mapping[str, Stored] = packed.tensors
        self.zeros = packed.zero_activations
        self.vocab_size = packed.vocab_size
        self.buffers: dict[str, int] = {}
        self.caches: list[CacheShape] = []
        self.memories: list[MemoryShape] = []

    def plan(self) -> DecodePlan:
        d, shapes = self.shapes.d_model, self.shapes
        x = self._span("x", d)
        factors = self._span("factors", shapes.embedding_rank)
        prelude: list[Step] = [
            Embed(self._table(), factors),
            self._linear("embedding.up", factors, x),
        ]
        for i in range(shapes.n_prelude):
            self.caches.append(CacheShape(shapes.window, d, shapes.n_heads))
            prelude += self._block(f"prelude.{i}", len(self.caches) - 1)
        recursion = self._recursion()
        answer = self._span("answer", d)
        normed = self._span("normed", d)
        head: list[Step] = [
            Norm(answer, self._float("embedding.norm.weight"), shapes.norm_eps, normed),
            self._linear("embedding.down", normed, factors),
            Linear(
                "embedding.table", factors, self._table(), self._span("logits", self.vocab_size)
            ),
        ]
        cos, sin = rotary_tables(shapes.context, d // shapes.n_heads, shapes.rope_theta)
        return DecodePlan(
            buffers=self.buffers,
            prelude=tuple(prelude),
            recursion=recursion,
            head=tuple(head),
            caches=tuple(self.caches),
            memories=tuple(self.memories),
            rope_cos=cos,
            rope_sin=sin,
            width=d,
            vocab_size=self.vocab_size,
            context=shapes.context,
        )

    def _recursion(self) -> Recursion:
        d, shapes = self.shapes.d_model, self.shapes
        steps = self.behaviour.recursion_steps or shapes.recursion_steps
        first = len(self.caches)
        for _ in range(steps * shapes.latent_steps * shapes.n_core):
            self.caches.append(CacheShape(shapes.window, d, shapes.n_heads))
        latent, answer = self._span("latent", d), self._span("answer", d)
        normed, logit = self._span("normed", d), self._span("logit", 1)
        for name in ("h", "u"):
            self._span(name, d)
        eps = shapes.norm_eps
        return Recursion(
            steps=steps,
            latent_steps=shapes.latent_steps,
            threshold=self.behaviour.halting_threshold,
            inject_prelude=self._float("inject_prelude"),
            inject_answer=self._float("inject_answer"),
            blocks=tuple(tuple(self._block(f"core.{i}", i)) for i in range(shapes.n_core)),
            update=(
                Norm(latent, self._float("latent_norm.weight"), eps, normed),
                self._linear("answer", normed, answer, residual=answer),
            ),
            halt=(
                Norm(answer, self._float("halting.norm.weight"), eps, normed),
                self._linear("halting.logit", normed, logit),
            ),
            first_cache=first,
        )

    def _block(self, name: str, cache: int) -> list[Step]:
        """One block on the buffer ``x``."""
        shapes, d, f = self.shapes, self.shapes.d_model, self.shapes.ffn_width
        eps = shapes.norm_eps
        x, normed = self._span("x", d), self._span("normed", d)
        mixed, hidden = self._span("mixed", d), self._span("hidden", f)
        remembers = (
            f"{name}.memory.rates.weight" in self.tensors and self.behaviour.write_budget > 0
        )
        m = shapes.memory.width if remembers else 0
        projected = [f"{name}.attention.{p}" for p in "qkv"]
        if remembers:
            projected += [f"{name}.memory.{p}" for p in "kqv"]
        wide = 3 * d + 3 * m
        steps: list[Step] = [Norm(x, self._float(f"{name}.attention_norm.weight"), eps, normed)]
        # A buffer as wide as what is written: tokens then lie one behind the other for kernels.
        buffer = "remembered" if remembers else "projected"
        steps += self._together(projected, normed, buffer, wide)

        def part(start: int, width: int) -> Span:
            return Span(buffer, start, width)

        steps.append(
            Attend(
                part(0, d),
                part(d, d),
                part(2 * d, d),
                mixed,
                heads=shapes.n_heads,
                kv_heads=shapes.n_heads,
                window=shapes.window,
                cache=cache,
            )  # fmt: skip
        )
        if remembers:
            steps += self._memory(name, normed, part(3 * d, 3 * m), mixed)
        steps += self._subnormed(f"{name}.attention.out", mixed, "subnormed", x)
        steps.append(Norm(x, self._float(f"{name}.ffn_norm.weight"), eps, normed))
        steps += self._together([f"{name}.ffn.gate", f"{name}.ffn.up"], normed, "gated", 2 * f)
        squared = shapes.ffn_activation == "relu2"
        steps.append(Activate(Span("gated", 0, f), Span("gated", f, f), hidden, squared))
        steps += self._subnormed(f"{name}.ffn.down", hidden, "subhidden", x)
        return steps

    def _memory(self, name: str, normed: Span, raw: Span, mixed: Span) -> list[Step]:
        """The memory branch of a block and its gate."""
        memory, d = self.shapes.memory, self.shapes.d_model
        rates, read = self._span("rates", 3), self._span("read", memory.width)
        low, gate = self._span("low", memory.gate_rank), self._span("gate", d)
        branch = self._span("branch", d)
        self.memories.append(MemoryShape(memory.width))
        where = f"{name}.memory"
        return [
            self._linear(f"{where}.rates", normed, rates),
            Remember(
                raw, rates, read, self._float(f"{where}.filter"), memory.width, memory.chunk,
                self.behaviour.write_budget, len(self.memories) - 1,
            ),
            Norm(read, self._float(f"{where}.norm.weight"), self.shapes.norm_eps, read),
            self._linear(f"{where}.out", read, branch),
            self._linear(f"{name}.memory_gate.a", normed, low),
            self._linear(f"{name}.memory_gate.b", low, gate, sigmoid=True),
            Blend(mixed, gate, branch),
        ]  # fmt: skip

    def _subnormed(self, name: str, src: Span, buffer: str, x: Span) -> list[Step]:
        """A product that is added to ``x``, with the norm that Phase 4 put before it."""
        weight = self.tensors.get(f"{name}.norm.weight")
        if weight is None:
            return [self._linear(name, src, x, residual=x)]
        normed = self._span(buffer, src.width)
        norm = Norm(src, _float(weight), self.shapes.norm_eps, normed)
        return [norm, self._linear(name, normed, x, residual=x)]

    def _together(self, names: Sequence[str], src: Span, buffer: str, width: int) -> list[Step]:
        """Products of one input: one product of the stacked matrix where all are ternary."""
        self._span(buffer, width)
        found = [self.tensors[f"{n}.weight"] for n in names]
        if all(isinstance(t, PackedTernary) for t in found):
            whole = stacked([t for t in found if isinstance(t, PackedTernary)])
            return [Linear("+".join(names), src, whole, Span(buffer, 0, whole.rows))]
        steps: list[Step] = []
        start = 0
        for name, tensor in zip(names, found, strict=True):
            weight = _weight(tensor)
            rows = weight.rows if not isinstance(weight, Tensor) else weight.shape[0]
            steps.append(Linear(name, src, weight, Span(buffer, start, rows)))
            start += rows
        return steps

    def _linear(
        self, name: str, src: Span, out: Span, residual: Span | None = None, sigmoid: bool = False
    ) -> Linear:
        bias = self.tensors.get(f"{name}.bias")
        return Linear(
            name,
            src,
            _weight(self.tensors[f"{name}.weight"]),
            out,
            residual=residual,
            bias=None if bias is None else _float(bias),
            activation="sigmoid" if sigmoid else "none",
            zero_activations=self.zeros.get(name, 0.0),
        )

    def _span(self, name: str, width: int) -> Span:
        """A whole buffer; it is made as wide as its widest use."""
        self.buffers[name] = max(width, self.buffers.get(name, 0))
        return Span(name, 0, width)

    def _float(self, name: str) -> Tensor:
        return _float(self.tensors[name])

    def _table(self) -> Int8Weight | Tensor:
        table = self.tensors["embedding.table"]
        return table if isinstance(table, Int8Weight) else _float(table)


def stacked(matrices: Sequence[PackedTernary]) -> PackedTernary:
    """Ternary matrices of one input, one below the other, with a scale a row."""
    scale = torch.cat([m.scale.expand(m.rows) for m in matrices]).contiguous()
    return pack(torch.cat([unpack(m) for m in matrices]), scale)


def _weight(tensor: Stored) -> Weight:
    if isinstance(tensor, PackedTernary | Int8Weight):
        return tensor
    return _float(tensor)


def _float(tensor: Stored) -> Tensor:
    assert isinstance(tensor, Tensor)
    return tensor.detach().float().contiguous()
