"""The kernels on the GPU of this machine, at the sizes of models; skipped where there is none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from agentforge_kernels.triton.configs import CONFIG_TYPES
from agentforge_kernels.triton.devices import family_of_device
from torch import Tensor

from tests.gpu.bodies import BODIES, Place, check_operation, nothing, used_operations
from tests.gpu.device import NO_DEVICE, has_device

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not has_device(), reason=NO_DEVICE),
]


def capture(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A CUDA graph of a call, warmed up beside the graph as torch asks for."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call()

    def replay() -> Tensor:
        graph.replay()
        torch.cuda.synchronize()
        return output

    return replay


@pytest.fixture(scope="module")
def place() -> Place:
    device = torch.device("cuda", torch.cuda.current_device())
    return Place(device, family_of_device(device), tiny=False, capture=capture, public=nothing)


@pytest.mark.parametrize("operation", CONFIG_TYPES)
def test_operation(place: Place, operation: str) -> None:
    if operation not in used_operations(place.family):
        with pytest.raises(ValueError, match="tokens"):
            place.problem(operation, 64, 64, 64)
        return
    check_operation(place, operation)


@pytest.mark.parametrize("name", BODIES)
def test_body(place: Place, name: str) -> None:
    BODIES[name](place)
