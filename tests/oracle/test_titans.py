"""Our memory against titans-pytorch, an independent implementation of the paper.

``pip install titans-pytorch==0.5.5``, then ``pytest -m oracle tests/oracle``. Its loss is the mean
of the squared error over the M features, ours half their sum: our theta is its step times 2 / M.
Its keys and queries are not normalised and its values carry no limit; both make no difference to
the recurrence, and at these magnitudes ours limits nothing.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from agentforge.model.memory import MemoryInputs, MemoryState, chunked_memory, recurrent_memory

try:
    import titans_pytorch
except ModuleNotFoundError:  # deselected by default: no skip to be counted
    titans_pytorch = None

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(titans_pytorch is None, reason="titans-pytorch is not installed"),
]

torch.set_num_threads(1)


def oracle(width: int, refresh: int | None, seed: int) -> torch.nn.Module:
    """Its linear memory from zero weights; gradients are taken at weights `refresh` tokens old."""
    torch.manual_seed(seed)
    memory = titans_pytorch.NeuralMemory(
        dim=width,
        chunk_size=1,
        batch_size=refresh,
        model=titans_pytorch.MemoryMLP(width, depth=1),
        mem_model_norm_add_residual=False,
        pre_rmsnorm=False,
        default_step_transform_max_lr=1.0,
    )
    with torch.no_grad():
        for parameter in memory.memory_model_parameters:
            parameter.zero_()
    return memory


@torch.no_grad()
def our_inputs(memory: torch.nn.Module, x: Tensor) -> MemoryInputs:
    """What its projections make of x, in our terms."""
    width = x.shape[-1]
    return MemoryInputs(
        key=memory.to_keys(x),
        query=memory.to_queries(x),
        value=memory.to_values(x),
        theta=torch.sigmoid(memory.to_adaptive_step(x)) * 2 / width,
        log_eta=torch.nn.functional.logsigmoid(memory.to_momentum(x)[0, ..., 0]),
        log_keep=torch.nn.functional.logsigmoid(-memory.to_decay_factor(x)[..., 0]),
    )


@pytest.mark.parametrize(("batch", "length", "width"), [(1, 12, 8), (3, 33, 8), (2, 20, 16)])
@pytest.mark.parametrize("chunk", [1, 3, 5])
def test_both_forms_equal_titans_pytorch(batch: int, length: int, width: int, chunk: int) -> None:
    memory = oracle(width, chunk, seed=length)
    x = torch.randn(batch, length, width, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        expected, _ = memory(x)
    inputs = our_inputs(memory, x)
    state = MemoryState.empty(batch, width, x.device)
    found = {
        "recurrent": recurrent_memory(inputs, state, chunk),
        "chunked": chunked_memory(inputs, chunk)[0],
    }
    scale = float(expected.abs().max())
    assert scale > 0.1, "a memory that reads nothing proves nothing"
    for form, read in found.items():
        gap = float((read - expected).abs().max())
        assert gap < 2e-6 * max(1.0, scale), form


def test_the_gradient_point_matters() -> None:
    """The comparison can fail: another chunk than the oracle's is far off."""
    memory = oracle(8, 1, seed=1)
    x = torch.randn(2, 20, 8, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        expected, _ = memory(x)
    assert float((chunked_memory(our_inputs(memory, x), 5)[0] - expected).abs().max()) > 1e-2
