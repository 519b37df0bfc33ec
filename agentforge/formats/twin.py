"""The dequantised twin: the ternary model as an FP16 file, the start of further training.

Every ternary matrix is stored as scale times trit. Only with the norms before the matrices and the
int8 rounding of their inputs is it the packed model again; the file's metadata say which those are.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from agentforge_kernels import PackedTernary, unpack
from agentforge_kernels.files import Stored
from torch import Tensor

from agentforge.config.schema import ModelConfig
from agentforge.errors import CheckpointError
from agentforge.formats.packed import stored_tensors
from agentforge.model.behaviour import Behaviour
from agentforge.model.language_model import CognateLM
from agentforge.model.packed_linear import DequantisedProjection
from agentforge.run.tensor_file import LoadedModel, SavedFile, require_shapes, save_model


def save_twin(path: Path, model: CognateLM, behaviour: Behaviour, tokenizer: str) -> SavedFile:
    """Write the twin of a model with BitLinears.

    Args:
        path: The file.
        model: The model.
        behaviour: How it is run.
        tokenizer: Fingerprint of its tokenizer.
    """
    stored = stored_tensors(model, int8_embedding=False)
    ternary = [n.removesuffix(".weight") for n, t in stored.items() if isinstance(t, PackedTernary)]
    return save_model(
        path,
        {name: _half(tensor) for name, tensor in stored.items()},
        {
            "model": "twin",
            "behaviour": json.dumps(asdict(behaviour)),
            "ternary": json.dumps(ternary),
            "shapes": model.config.model_dump_json(),
            "vocab_size": str(model.vocab_size),
            "tokenizer": tokenizer,
        },
    )


def twin_module(read: LoadedModel, where: Path, quantise_inputs: bool) -> CognateLM:
    """The twin as a model that can be trained.

    Args:
        read: The file.
        where: Its path, for messages.
        quantise_inputs: Round the inputs of its ternary matrices as the packed model does.

    Raises:
        CheckpointError: It is no twin, or tensors do not fit.
    """
    try:
        shapes = ModelConfig(**json.loads(read.metadata["shapes"]))
        model = CognateLM(shapes, int(read.metadata["vocab_size"]))
        ternary: list[str] = json.loads(read.metadata["ternary"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{where} is no twin of a packed model: {error}", remedy="name a twin.safetensors"
        ) from None
    expected = {n: tuple(p.shape) for n, p in model.named_parameters()}
    new = {f"{name}.norm.weight" for name in ternary} & read.tensors.keys()
    plain = {n: t for n, t in read.tensors.items() if n not in new}
    require_shapes(expected, plain, where=where)
    for name in ternary:
        parent, _, leaf = name.rpartition(".")
        norm = read.tensors.get(f"{name}.norm.weight")
        layer = DequantisedProjection(
            read.tensors[f"{name}.weight"], norm, shapes.norm_eps, quantise_inputs
        )
        setattr(model.get_submodule(parent), leaf, layer)
    model.load_state_dict({n: t.float() for n, t in plain.items()}, strict=False)
    return model


def _half(tensor: Stored) -> Tensor:
    if isinstance(tensor, PackedTernary):
        return (unpack(tensor).float() * tensor.scale[:, None]).to(torch.float16)
    assert isinstance(tensor, Tensor)
    return tensor.to(torch.float16)
