"""The ways to run a packed model that ``bench`` compares."""

from __future__ import annotations

import torch

from agentforge.formats.packed import PackedModel, packed_module
from agentforge.model.block import Block
from agentforge.model.decode import Decoder
from agentforge.model.language_model import CognateLM
from agentforge.runtime.bfloat16_plan import in_bfloat16
from agentforge.runtime.generate import TokenSequence
from agentforge.runtime.latency import Step
from agentforge.runtime.lower import lower_packed
from agentforge.runtime.native import NativeExecutor
from agentforge.runtime.states import CacheType

NATIVE, NATIVE_BF16 = "native", "native_bf16"
TORCH_FP32, TORCH_BF16, TORCH_COMPILE = "torch_fp32", "torch_bf16", "torch_compile"
KERNELS = "kernels"
ALL = (TORCH_FP32, TORCH_BF16, TORCH_COMPILE, KERNELS, NATIVE_BF16, NATIVE)
VARIANTS = tuple(name for name in ALL if name != TORCH_COMPILE)
"""Those that are timed unless others are asked for; compiling takes minutes."""


def torch_model(packed: PackedModel, name: str) -> CognateLM:
    """The model in torch as one of the variants runs it."""
    if name == KERNELS:
        return packed_module(packed)
    model = packed_module(packed, floats=True)
    if name == TORCH_COMPILE:
        # Block by block what has one shape for ever. The whole step has lists that grow with the
        # context: dynamo compiles it anew for every token, eight times, and then runs it eagerly.
        for block in (*model.prelude, *model.core):
            assert isinstance(block, Block)
            block.finish = torch.compile(block.finish, dynamic=False)  # type: ignore[method-assign]
    return model.to(torch.bfloat16) if name == TORCH_BF16 else model


def native_executor(packed: PackedModel, name: str, cache: CacheType) -> NativeExecutor:
    """One of the native variants."""
    plan = lower_packed(packed)
    return NativeExecutor(in_bfloat16(plan) if name == NATIVE_BF16 else plan, cache=cache)


def native_step(packed: PackedModel, executor: NativeExecutor, context: int) -> Step:
    """A new sequence of so many tokens in a native executor."""
    sequence = TokenSequence(executor, packed.shapes.context)
    if context:
        sequence.read([p % packed.vocab_size for p in range(context)])

    def step(token: int, position: int) -> None:
        executor.run([token], [0], [position], [0])

    return step


def torch_step(module: CognateLM, packed: PackedModel, context: int) -> Step:
    """A new sequence of so many tokens in torch, eager, with caches."""
    decoder = decoder_at(module, packed, context)

    def step(token: int, _: int) -> None:
        decoder.step(torch.tensor([token]))

    return step


def decoder_at(module: CognateLM, packed: PackedModel, context: int) -> Decoder:
    """torch's decoder after so many tokens."""
    decoder = Decoder(module, packed.behaviour, 1)
    for position in range(context):
        decoder.step(torch.tensor([position % packed.vocab_size]))
    return decoder
