"""From a Hugging Face BitNet directory to its plan: grouped queries, norms before o and down."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from agentforge_kernels import PackedTernary
from torch import Tensor

from agentforge.formats.bitnet_checkpoint import BitNetCheckpoint
from agentforge.model.rotary import rotary_tables
from agentforge.runtime.lower import stacked
from agentforge.runtime.plan import (
    Activate,
    Attend,
    CacheShape,
    DecodePlan,
    DeferredWeight,
    Embed,
    Linear,
    Norm,
    Span,
    Step,
)

DOWN_ZEROS = 0.5
"""Share of zeros expected behind a squared ReLU where nothing was measured."""


def lower_bitnet(
    checkpoint: BitNetCheckpoint, *, head: Literal["float", "int8"] = "int8", context: int = 0
) -> DecodePlan:
    """The plan of a BitNet decoder; every token sees all before it.

    Args:
        checkpoint: The opened directory.
        head: The head in int8 with a scale a row, or as it is.
        context: Positions to make room for; 0: all the model has.

    Raises:
        CheckpointError: A tensor is missing or wrong.
    """
    shapes = checkpoint.shapes
    d, f = shapes.width, shapes.ffn_width
    queries, keys = shapes.heads * shapes.head_width, shapes.kv_heads * shapes.head_width
    context = min(context or shapes.context, shapes.context)
    x, normed = Span("x", 0, d), Span("normed", 0, d)
    mixed, hidden = Span("mixed", 0, queries), Span("hidden", 0, f)
    wide = queries + 2 * keys
    embedding = "model.embed_tokens.weight"
    table = checkpoint.mapped(embedding, shapes.vocab_size, d)
    steps: list[Step] = [Embed(table, x)]
    for i in range(shapes.layers):
        name = f"model.layers.{i}"

        def matrices(columns: int, *parts: tuple[str, int], name: str = name) -> DeferredWeight:
            """Matrices of one input as one, read when an executor asks."""

            def read() -> Iterator[PackedTernary]:
                yield stacked(
                    [checkpoint.ternary(f"{name}.{p}", rows, columns) for p, rows in parts]
                )

            for part, _ in parts:
                checkpoint.require(f"{name}.{part}.weight")
            return DeferredWeight(sum(rows for _, rows in parts), columns, "ternary", read)

        def norm(part: str, src: Span, out: Span, name: str = name) -> Norm:
            weight = checkpoint.tensor(f"{name}.{part}.weight", src.width)
            return Norm(src, weight, shapes.eps, out)

        attention = matrices(
            d,
            ("self_attn.q_proj", queries),
            ("self_attn.k_proj", keys),
            ("self_attn.v_proj", keys),
        )
        feed = matrices(d, ("mlp.gate_proj", f), ("mlp.up_proj", f))
        steps += [
            norm("input_layernorm", x, normed),
            Linear(f"{name}.qkv", normed, attention, Span("projected", 0, wide)),
            Attend(
                Span("projected", 0, queries),
                Span("projected", queries, keys),
                Span("projected", queries + keys, keys),
                mixed,
                heads=shapes.heads,
                kv_heads=shapes.kv_heads,
                window=context,
                cache=i,
            ),
            norm("self_attn.attn_sub_norm", mixed, mixed),
            Linear(f"{name}.o", mixed, matrices(queries, ("self_attn.o_proj", d)), x, residual=x),
            norm("post_attention_layernorm", x, normed),
            Linear(f"{name}.gate_up", normed, feed, Span("gated", 0, 2 * f)),
            Activate(Span("gated", 0, f), Span("gated", f, f), hidden, shapes.squared_relu),
            norm("mlp.ffn_sub_norm", hidden, hidden),
            Linear(
                f"{name}.down",
                hidden,
                matrices(f, ("mlp.down_proj", d)),
                x,
                residual=x,
                zero_activations=DOWN_ZEROS if shapes.squared_relu else 0.0,
            ),
        ]
    answer = Span("answer", 0, d)
    out = _head(checkpoint, embedding if shapes.tied else "lm_head.weight", head)
    norm_weight = checkpoint.tensor("model.norm.weight", d)
    cos, sin = rotary_tables(context, shapes.head_width, shapes.rope_theta)
    return DecodePlan(
        buffers={
            "x": d,
            "normed": d,
            "projected": wide,
            "mixed": queries,
            "hidden": f,
            "gated": 2 * f,
            "answer": d,
            "logits": shapes.vocab_size,
        },
        prelude=tuple(steps),
        recursion=None,
        head=(
            Norm(answer, norm_weight, shapes.eps, normed),
            Linear("head", normed, out, Span("logits", 0, shapes.vocab_size)),
        ),
        caches=tuple(CacheShape(context, keys, shapes.kv_heads) for _ in range(shapes.layers)),
        memories=(),
        rope_cos=cos,
        rope_sin=sin,
        width=d,
        vocab_size=shapes.vocab_size,
        context=context,
    )


def _head(
    checkpoint: BitNetCheckpoint, name: str, head: Literal["float", "int8"]
) -> DeferredWeight | Tensor:
    rows, columns = checkpoint.shapes.vocab_size, checkpoint.shapes.width
    if head == "float":
        return checkpoint.tensor(name, rows, columns)
    checkpoint.require(name)
    return DeferredWeight(rows, columns, "int8", lambda: checkpoint.int8_rows(name, rows, columns))
