"""The plan and its reference executor against the model it was lowered from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from agentforge.formats.packed import packed_module, read_packed
from agentforge.model.decode import Decoder
from agentforge.runtime.lower import lower_packed
from agentforge.runtime.reference import ReferenceExecutor
from tests.unit.test_packed_directory import BEHAVIOUR, save, ternary_model


def ids(count: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 90, (count,), generator=generator).tolist()


@pytest.mark.parametrize("kept", ["", "prelude.1.attention.k"])
def test_decoding_a_plan_is_decoding_the_model(kept: str, tmp_path: Path) -> None:
    packed = read_packed(save(tmp_path / "model", ternary_model(kept)))
    decoder = Decoder(packed_module(packed), BEHAVIOUR, 2)
    executor = ReferenceExecutor(lower_packed(packed), sequences=2)
    tokens = torch.tensor([ids(30), ids(30, seed=1)])
    differences, same = [], 0
    for t in range(30):
        wanted = decoder.step(tokens[:, t])
        found = executor.run(tokens[:, t].tolist(), [0, 1], [t, t], [0, 1])
        differences.append(float((wanted - found).abs().max()))
        same += int((decoder.steps[-1] == executor.steps).sum())
    # A rounding difference may flip an int8 code: most tokens agree to rounding, all nearly.
    assert sorted(differences)[15] < 1e-4
    assert same >= 58


def test_prefill_is_decoding(tmp_path: Path) -> None:
    packed = read_packed(save(tmp_path / "model", ternary_model()))
    plan = lower_packed(packed)
    tokens = ids(30)
    one, many = ReferenceExecutor(plan), ReferenceExecutor(plan)
    for t, token in enumerate(tokens):
        last = one.run([token], [0], [t], [0])
    whole = many.run(tokens, [0] * 30, list(range(30)), [29])
    torch.testing.assert_close(last, whole, rtol=1e-3, atol=1e-3)
    for a, b in zip(one.keys + one.memories.maps, many.keys + many.memories.maps, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)


def test_sequences_do_not_see_each_other_and_can_be_reset(tmp_path: Path) -> None:
    plan = lower_packed(read_packed(save(tmp_path / "model", ternary_model())))
    alone, both = ReferenceExecutor(plan), ReferenceExecutor(plan, sequences=2)
    first, second = ids(12), ids(12, seed=5)
    both.run(second, [0] * 12, list(range(12)), [11])
    both.reset(0)
    wanted = alone.run(first, [0] * 12, list(range(12)), [11])
    mixed = [v for pair in zip(first, second, strict=True) for v in pair]
    places = [p for t in range(12) for p in (t, t)]
    found = both.run(mixed, [0, 1] * 12, places, [22])
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
