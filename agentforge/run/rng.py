"""Random states to and from a checkpoint: Python, NumPy, torch on the CPU and on CUDA."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Generators = Mapping[str, np.random.Generator]
TorchGenerators = Mapping[str, torch.Generator]
_ARRAY = "__array__"


@dataclass(frozen=True, slots=True)
class RngState:
    """All random states at one moment.

    Attributes:
        state: JSON: Python's and NumPy's generators.
        tensors: uint8 states of torch's generators, for a group of their own in a checkpoint.
    """

    state: dict[str, Any]
    tensors: dict[str, torch.Tensor]


def capture_rng(
    generators: Generators | None = None, torch_generators: TorchGenerators | None = None
) -> RngState:
    """The global random states and those of the caller's own generators, by name."""
    tensors = {"cpu": torch.get_rng_state().clone()}
    if torch.cuda.is_available():
        for index, state in enumerate(torch.cuda.get_rng_state_all()):
            tensors[f"cuda.{index}"] = state.clone()
    for name, torch_generator in (torch_generators or {}).items():
        tensors[f"own.{name}"] = torch_generator.get_state().clone()
    numpy_global = np.random.get_state(legacy=False)  # noqa: NPY002 - libraries draw from it
    version, words, gauss = random.getstate()
    return RngState(
        state={
            "python": [version, list(words), gauss],
            "numpy": _to_json(numpy_global),
            "generators": {
                name: _to_json(generator.bit_generator.state)
                for name, generator in (generators or {}).items()
            },
        },
        tensors=tensors,
    )


def restore_rng(
    saved: RngState,
    generators: Generators | None = None,
    torch_generators: TorchGenerators | None = None,
) -> None:
    """Put every random state back.

    CUDA states are put back as far as there are devices: a run may go on without its card.

    Raises:
        KeyError: A generator was passed that the saved state does not hold.
    """
    version, words, gauss = saved.state["python"]
    random.setstate((version, tuple(words), gauss))
    np.random.set_state(_from_json(saved.state["numpy"]))  # noqa: NPY002
    for name, generator in (generators or {}).items():
        generator.bit_generator.state = _from_json(saved.state["generators"][name])
    torch.set_rng_state(saved.tensors["cpu"])
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(devices):
        if f"cuda.{index}" in saved.tensors:
            torch.cuda.set_rng_state(saved.tensors[f"cuda.{index}"], index)
    for name, torch_generator in (torch_generators or {}).items():
        torch_generator.set_state(saved.tensors[f"own.{name}"])


def _to_json(value: Any) -> Any:
    """A copy of a NumPy state with arrays as lists; its integers may exceed 64 bits."""
    if isinstance(value, dict):
        return {key: _to_json(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return {_ARRAY: value.tolist(), "dtype": str(value.dtype)}
    return value.item() if isinstance(value, np.generic) else value


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        if _ARRAY in value:
            return np.array(value[_ARRAY], dtype=value["dtype"])
        return {key: _from_json(item) for key, item in value.items()}
    return value
