"""The native executor against the reference: the same bits of integers, floats to rounding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from agentforge_kernels import PackedTernary, reference, unpack
from agentforge_kernels.native import extension

from agentforge.formats.packed import PackedModel, read_packed
from agentforge.runtime.lower import lower_packed
from agentforge.runtime.native import NativeExecutor
from agentforge.runtime.plan import DecodePlan, Linear, Span
from agentforge.runtime.reference import ReferenceExecutor
from agentforge.runtime.states import CacheType
from agentforge.runtime.traffic import token_bytes
from tests.unit.test_packed_directory import save, ternary_model

pytestmark = pytest.mark.skipif(extension is None, reason="the extension was not built")


def ids(count: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 90, (count,), generator=generator).tolist()


@pytest.fixture(params=["", "prelude.1.attention.k", "int8"], ids=["whole", "mixed", "int8"])
def packed(request: pytest.FixtureRequest, tmp_path: Path) -> PackedModel:
    kept, int8 = (request.param, False) if request.param != "int8" else ("", True)
    return read_packed(save(tmp_path / "model", ternary_model(kept), int8=int8))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("cache", ["float32", "bfloat16", "int8"])
def test_decoding_agrees_token_by_token(
    packed: PackedModel, threads: int, cache: CacheType
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    plan = lower_packed(packed)
    oracle = ReferenceExecutor(plan, sequences=2, cache=cache)
    native = NativeExecutor(plan, sequences=2, cache=cache)
    differences, same = [], 0
    first, second = ids(40), ids(40, seed=1)
    for t in range(40):
        call = ([first[t], second[t]], [0, 1], [t, t], [0, 1])
        wanted, found = oracle.run(*call), native.run(*call)
        differences.append(float((wanted - found).abs().max()))
        same += int((oracle.steps == native.steps).sum())
    torch.set_num_threads(before)
    # Where a rounding difference flips an int8 code, later layers amplify it.
    # An int8 cache has codes of its own to flip, each a 127th of its head's largest number.
    assert sorted(differences)[20] < (1e-3 if cache == "int8" else 1e-4)
    assert same >= 77


@pytest.mark.parametrize("together", [1, 5])
def test_what_halted_at_once_is_kept_for_every_pass(packed: PackedModel, together: int) -> None:
    """All halt after a step: one pass fills the caches of the passes that are left, as if each had
    been run."""
    behaviour = replace(packed.behaviour, halting_threshold=0.0)
    plan = lower_packed(replace(packed, behaviour=behaviour))
    oracle, native = ReferenceExecutor(plan), NativeExecutor(plan)
    for t in range(0, 5, together):
        call = (ids(5)[t : t + together], [0] * together, list(range(t, t + together)), [])
        oracle.run(*call)
        native.run(*call)
        assert native.steps.tolist() == oracle.steps.tolist() == [1] * together
    width = plan.caches[0].width // plan.caches[0].heads
    for cache in range(len(plan.caches)):
        keys, values = native.caches.keys[cache][0], native.caches.values[cache][0]
        # (heads, blocks, width, 16) and (heads, slots, padded) to (slots, heads x width)
        found = keys.permute(1, 3, 0, 2).flatten(0, 1).flatten(1)[:5]
        torch.testing.assert_close(found, oracle.keys[cache][0, :5], rtol=0, atol=0.05)
        found = values[:, :5, :width].transpose(0, 1).flatten(1)
        torch.testing.assert_close(found, oracle.values[cache][0, :5], rtol=0, atol=0.05)
        assert float(oracle.keys[cache][0, :5].abs().mean()) > 0.2


def test_every_layer_has_the_bits_of_the_reference_given_its_input(packed: PackedModel) -> None:
    """Layer by layer: each integer product of the native run is recomputed from its input."""
    plan = lower_packed(packed)
    for step in plan.linears():
        if not isinstance(step.weight, PackedTernary):
            continue
        width, rows = step.weight.columns, step.weight.rows
        alone = replace(
            step, src=Span("x", 0, width), out=Span("y", 0, rows), residual=Span("z", 0, rows)
        )
        small = DecodePlan(
            buffers={"x": width, "y": rows, "z": rows},
            prelude=(), recursion=None, head=(alone,), caches=plan.caches[:1], memories=(),
            rope_cos=plan.rope_cos, rope_sin=plan.rope_sin, width=width, vocab_size=rows,
            context=plan.context,
        )  # fmt: skip
        executor = NativeExecutor(small, tokens=5)
        for count in (1, 2, 5):
            x = torch.randn(count, width) * torch.rand(count, 1) * 10
            residual = torch.randn(count, rows)
            executor._buffers["x"][:count] = x
            executor._buffers["z"][:count] = residual
            assert executor._native.plan_head(executor._handle, count, 1) == -1
            q, scale, _ = reference.quantize_activations(x)
            wanted = reference.linear(q, scale, unpack(step.weight), step.weight.scale, residual)
            assert torch.equal(executor._buffers["y"][:count], wanted), step.name


def test_prefill_is_decoding_and_cut_prefill_too(packed: PackedModel) -> None:
    plan = lower_packed(packed)
    tokens = ids(38)
    one, many, cut = (NativeExecutor(plan, tokens=38) for _ in range(3))
    for t, token in enumerate(tokens):
        last = one.run([token], [0], [t], [0]).clone()
    whole = many.run(tokens, [0] * 38, list(range(38)), [37]).clone()
    for start in range(0, 38, 7):
        part = tokens[start : start + 7]
        places = list(range(start, start + len(part)))
        pieces = cut.run(part, [0] * len(part), places, [len(part) - 1]).clone()
    # The same integers and the same order of every sum: equal to the last bit.
    assert torch.equal(whole, last)
    assert torch.equal(pieces, last)
    for a, b in zip(
        one.caches.keys + one.memories.maps, many.caches.keys + many.memories.maps, strict=True
    ):
        assert torch.equal(a, b)


def test_a_batch_is_its_rows(packed: PackedModel) -> None:
    plan = lower_packed(packed)
    rows = [ids(20, seed=s) for s in range(5)]
    together = NativeExecutor(plan, sequences=5)
    alone = [NativeExecutor(plan) for _ in rows]
    for t in range(20):
        found = together.run([r[t] for r in rows], list(range(5)), [t] * 5, list(range(5)))
        for i, executor in enumerate(alone):
            assert torch.equal(found[i : i + 1], executor.run([rows[i][t]], [0], [t], [0])), (t, i)


def test_a_sequence_can_be_reset(packed: PackedModel) -> None:
    plan = lower_packed(packed)
    fresh, used = NativeExecutor(plan), NativeExecutor(plan)
    used.run(ids(20, seed=3), [0] * 20, list(range(20)), [])
    used.reset(0)
    call = (ids(9), [0] * 9, list(range(9)), [8])
    assert torch.equal(fresh.run(*call), used.run(*call))


def test_what_is_out_of_range_is_refused(packed: PackedModel) -> None:
    executor = NativeExecutor(lower_packed(packed), sequences=2, tokens=4)
    calls: tuple[tuple[tuple[list[int], list[int], list[int], list[int]], str], ...] = (
        (([0] * 5, [0] * 5, list(range(5)), []), "5 tokens"),
        (([], [], [], []), "0 tokens"),
        (([-1], [0], [0], []), "id -1"),
        (([packed.vocab_size], [0], [0], []), "id"),
        (([0], [2], [0], []), "sequence 2"),
        (([0], [0], [40], []), "position 40"),
    )
    for call, says in calls:
        with pytest.raises(ValueError, match=says):
            executor.run(*call)


def test_not_a_number_is_said(packed: PackedModel) -> None:
    plan = lower_packed(packed)
    executor = NativeExecutor(plan)
    executor.run([1], [0], [0], [])
    executor.caches.keys[0][:] = float("nan")
    with pytest.raises(FloatingPointError, match="position 1"):
        executor.run([1], [0], [1], [0])


def test_scratch_holds_a_head_wider_than_any_memory(packed: PackedModel) -> None:
    """A key is turned there once everybody has halted, even where there is no memory."""
    plan = lower_packed(packed)
    wide = tuple(replace(c, width=200 * c.heads) for c in plan.caches)
    executor = NativeExecutor(replace(plan, caches=wide, memories=plan.memories))
    assert executor._scratch.numel() >= 200
    assert all(executor._scratch.numel() >= 4 * m.width for m in plan.memories)


def test_bytes_of_a_token_count_every_time_a_matrix_is_read(packed: PackedModel) -> None:
    """Against a sum written out for this model: what the share of the limit is measured with."""
    plan = lower_packed(packed)
    recursion = plan.recursion
    assert recursion is not None
    times: dict[str, int] = dict.fromkeys((s.name for s in plan.linears()), 1)
    for block in recursion.blocks:
        times.update((s.name, recursion.passes) for s in block if isinstance(s, Linear))
    times.update((s.name, recursion.steps) for s in recursion.update if isinstance(s, Linear))
    times.update((s.name, recursion.steps - 1) for s in recursion.halt if isinstance(s, Linear))
    matrices = 0
    for step in plan.linears():
        rows, columns = step.out.width, step.src.width
        bits = 2 if isinstance(step.weight, PackedTernary) else 8
        bits = 32 if isinstance(step.weight, torch.Tensor) else bits
        scales = 0 if bits == 32 else 4 * rows
        matrices += times[step.name] * (rows * columns * bits // 8 + scales)
    memories = sum(5 * 4 * m.width**2 for m in plan.memories)
    embedding = 4 * packed.shapes.embedding_rank
    for kind, size in (("float32", 4), ("bfloat16", 2), ("int8", 1)):
        caches = NativeExecutor(plan, cache=kind).caches
        seen = 3
        scales = 8 * sum(c.heads for c in plan.caches) if kind == "int8" else 0
        kept = seen * (2 * size * sum(c.width for c in plan.caches) + scales)
        assert token_bytes(plan, caches, seen - 1) == matrices + memories + embedding + kept, kind
