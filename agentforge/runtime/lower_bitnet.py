"""From a Hugging Face BitNet directory to its plan: grouped queries, norms before o and down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from agentforge_kernels import Int8Weight, PackedTernary, quantize_int8
from torch import Tensor

from agentforge.formats.bitnet_checkpoint import BitNetCheckpoint
from agentforge.model.rotary import rotary_tables
from agentforge.runtime.lower import stacked
from agentforge.runtime.plan import (
    Activate,
    Attend,
    CacheShape,
    DecodePlan,
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
        head: Embedding and head in int8 with a scale a row, or as they are.
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
    table = _rows(checkpoint, "model.embed_tokens.weight", head)
    steps: list[Step] = [Embed(table, x)]
    for i in range(shapes.layers):
        name = f"model.layers.{i}"

        def matrix(part: str, rows: int, columns: int, name: str = name) -> PackedTernary:
            return checkpoint.ternary(f"{name}.{part}", rows, columns)

        def norm(part: str, src: Span, out: Span, name: str = name) -> Norm:
            weight = checkpoint.tensor(f"{name}.{part}.weight", src.width)
            return Norm(src, weight, shapes.eps, out)

        attention = [
            matrix("self_attn.q_proj", queries, d),
            matrix("self_attn.k_proj", keys, d),
            matrix("self_attn.v_proj", keys, d),
        ]
        feed = [matrix("mlp.gate_proj", f, d), matrix("mlp.up_proj", f, d)]
        steps += [
            norm("input_layernorm", x, normed),
            _product(f"{name}.qkv", normed, attention, Span("projected", 0, wide)),
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
            Linear(f"{name}.o", mixed, matrix("self_attn.o_proj", d, queries), x, residual=x),
            norm("post_attention_layernorm", x, normed),
            _product(f"{name}.gate_up", normed, feed, Span("gated", 0, 2 * f)),
            Activate(Span("gated", 0, f), Span("gated", f, f), hidden, shapes.squared_relu),
            norm("mlp.ffn_sub_norm", hidden, hidden),
            Linear(
                f"{name}.down",
                hidden,
                matrix("mlp.down_proj", d, f),
                x,
                residual=x,
                zero_activations=DOWN_ZEROS if shapes.squared_relu else 0.0,
            ),
        ]
    answer = Span("answer", 0, d)
    out = table if shapes.tied else _rows(checkpoint, "lm_head.weight", head)
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


def _product(name: str, src: Span, matrices: Sequence[PackedTernary], out: Span) -> Linear:
    """Products of one input as one."""
    return Linear(name, src, stacked(matrices), out)


def _rows(
    checkpoint: BitNetCheckpoint, name: str, head: Literal["float", "int8"]
) -> Int8Weight | Tensor:
    shapes = checkpoint.shapes
    weight = checkpoint.tensor(name, shapes.vocab_size, shapes.width)
    return quantize_int8(weight) if head == "int8" else weight
