"""Window, rotary positions, and the logit maxima QK-clip works with."""

from __future__ import annotations

import math

import pytest
import torch

from agentforge.model.attention import WindowAttention, window_mask
from agentforge.model.behaviour import Behaviour
from agentforge.model.record import ForwardRecord
from agentforge.model.rotary import rotary_tables, rotate
from agentforge.optim.qk_clip import qk_clip_
from tests.unit.tiny_models import random_ids, tiny_model

torch.set_num_threads(1)

CPU = torch.device("cpu")


@pytest.mark.parametrize(("length", "window"), [(1, 2), (5, 5), (6, 5), (9, 2), (17, 4), (7, 100)])
def test_window_mask_against_a_loop(length: int, window: int) -> None:
    mask = window_mask(length, window, CPU)
    if length <= window:
        assert mask is None
        return
    assert mask is not None
    for i in range(length):
        for j in range(length):
            assert bool(mask[i, j]) is (i - window < j <= i)


@pytest.mark.parametrize(("length", "window"), [(4, 9), (11, 3), (13, 13), (13, 1 + 1)])
def test_attention_against_a_loop(length: int, window: int) -> None:
    torch.manual_seed(0)
    attention = WindowAttention(12, 3, 1.0).double()
    x = torch.randn(2, length, 12, dtype=torch.float64)
    cos, sin = (t.double() for t in rotary_tables(length, 4, 100.0))
    found = attention.mix(x, (cos, sin), window_mask(length, window, CPU))
    for b in range(2):
        for head in range(3):
            part = slice(4 * head, 4 * head + 4)
            q = rotate(x[b] @ attention.q.weight[part].T, cos, sin)
            k = rotate(x[b] @ attention.k.weight[part].T, cos, sin)
            v = x[b] @ attention.v.weight[part].T
            for i in range(length):
                seen = range(max(0, i - window + 1), i + 1)
                score = torch.stack([q[i] @ k[j] for j in seen]) / 2.0
                y = torch.stack([v[j] for j in seen]).T @ score.softmax(0)
                torch.testing.assert_close(found[b, i, part], y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("head_dim", [2, 6, 64])
def test_rotary_scores_depend_on_the_distance_only(head_dim: int) -> None:
    g = torch.Generator().manual_seed(head_dim)
    q, k = (torch.randn(head_dim, generator=g, dtype=torch.float64) for _ in range(2))
    cos, sin = (t.double() for t in rotary_tables(200, head_dim, 10_000.0))

    def score(i: int, j: int) -> float:
        return float(rotate(q, cos[i], sin[i]) @ rotate(k, cos[j], sin[j]))

    for i, j in ((5, 0), (9, 9), (40, 3)):
        for shift in (1, 17, 150):
            assert score(i + shift, j + shift) == pytest.approx(score(i, j), abs=1e-5)
    assert score(9, 9) == pytest.approx(float(q @ k), abs=1e-6)
    assert abs(score(5, 0) - score(6, 0)) > 1e-4
    torch.testing.assert_close(rotate(q, cos[33], sin[33]).norm(), q.norm(), rtol=1e-6, atol=0)


def test_rotary_angles_against_the_definition() -> None:
    cos, sin = rotary_tables(7, 6, 50.0)
    for position in range(7):
        for pair in range(3):
            angle = position * 50.0 ** (-2 * pair / 6)
            for column in (pair, pair + 3):
                assert float(cos[position, column]) == pytest.approx(math.cos(angle), abs=1e-6)
                assert float(sin[position, column]) == pytest.approx(math.sin(angle), abs=1e-6)


def direct_maxima(
    model_inputs: list[torch.Tensor], attention: WindowAttention, window: int, valid: torch.Tensor
) -> torch.Tensor:
    """Largest logit per head over all passes, by a loop over pairs of positions."""
    heads, dim = attention.n_heads, attention.q.weight.shape[0] // attention.n_heads
    best = [-math.inf] * heads
    for x in model_inputs:
        length = x.shape[1]
        cos, sin = rotary_tables(length, dim, 10_000.0)
        for b in range(x.shape[0]):
            for head in range(heads):
                part = slice(dim * head, dim * head + dim)
                q = rotate(x[b] @ attention.q.weight[part].T, cos, sin)
                k = rotate(x[b] @ attention.k.weight[part].T, cos, sin)
                for i in range(length):
                    for j in range(max(0, i - window + 1), i + 1):
                        if valid[b, i]:
                            best[head] = max(best[head], float(q[i] @ k[j]) / math.sqrt(dim))
    return torch.tensor(best)


@pytest.mark.parametrize("window", [3, 40])
def test_recorded_maxima_equal_a_direct_computation(window: int) -> None:
    """Padding is ignored; a shared core block keeps the maximum over its passes."""
    model = tiny_model(5, window=window, recursion_steps=3, n_core=2)
    ids = random_ids(2, 9)
    valid = torch.ones(2, 9, dtype=torch.bool)
    valid[1, 4:] = False
    seen: dict[str, list[torch.Tensor]] = {}
    handles = []
    names = ["prelude.0", "prelude.1", "core.0", "core.1"]
    for name in names:
        norm = model.get_submodule(f"{name}.attention_norm")
        seen[name] = []
        handles.append(
            norm.register_forward_hook(lambda _m, _i, out, n=name: seen[n].append(out.detach()))
        )
    record = ForwardRecord(valid=valid)
    with torch.no_grad():
        model.answers(ids, Behaviour(), record)
    for handle in handles:
        handle.remove()
    assert {n: len(passes) for n, passes in seen.items()} == {
        "prelude.0": 1,
        "prelude.1": 1,
        "core.0": 3,
        "core.1": 3,
    }
    assert sorted(record.logit_max) == sorted(names)
    for name in names:
        attention = model.get_submodule(f"{name}.attention")
        assert isinstance(attention, WindowAttention)
        with torch.no_grad():
            expected = direct_maxima(seen[name], attention, window, valid)
        torch.testing.assert_close(record.logit_max[name], expected, rtol=0, atol=1e-5)


def test_padding_never_raises_the_maxima() -> None:
    model, ids = tiny_model(5), random_ids(2, 6)
    plain = ForwardRecord(valid=torch.ones(2, 6, dtype=torch.bool))
    model.answers(ids, Behaviour(), plain)
    padded = ForwardRecord(valid=torch.arange(15).expand(2, 15) < 6)
    model.answers(torch.cat([ids, random_ids(2, 9, seed=5)], 1), Behaviour(), padded)
    for name, maxima in plain.logit_max.items():
        torch.testing.assert_close(padded.logit_max[name], maxima, rtol=0, atol=1e-5)


def test_clipping_with_the_recorded_maxima_bounds_the_same_inputs_logits() -> None:
    model, ids = tiny_model(6), random_ids(3, 10)
    record = ForwardRecord()
    model.answers(ids, Behaviour(), record)
    attention = model.get_submodule("prelude.0.attention")
    assert isinstance(attention, WindowAttention)
    before = record.logit_max["prelude.0"]
    tau = float(before.max()) / 3
    clipped = qk_clip_(attention.q.weight.data, attention.k.weight.data, before, tau)
    assert clipped == int((before > tau).sum()) >= 1
    again = ForwardRecord()
    model.answers(ids, Behaviour(), again)
    expected = before.clamp(max=tau)
    torch.testing.assert_close(again.logit_max["prelude.0"], expected, rtol=1e-4, atol=1e-5)
