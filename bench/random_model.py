"""Writes a packed model directory of any preset's shapes with random weights, to time it.

    python -m bench.random_model --preset full --data-dir DATA out/full

The time of a token does not depend on the values of the weights, except through halting (off here:
every token takes all recursion steps, the slowest case) and zeros. Random weights rounded at half
their mean magnitude have 31 % zeros, spread evenly, so that no sparse form pays.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from agentforge.config.load import load_config
from agentforge.config.schema import RunConfig
from agentforge.data.tokenizers import TextTokenizer, load_gpt2
from agentforge.data.world_tokenizer import world_tokenizer
from agentforge.formats.packed import Generation, save_packed
from agentforge.model.behaviour import ALL_STEPS, Behaviour
from agentforge.model.bit_linear import bit_linears, make_bit_linear
from agentforge.model.language_model import CognateLM
from agentforge.model.linear import Projection


def write_random_model(
    folder: Path, config: RunConfig, *, int8: bool = True, pruned: float = 0.0
) -> None:
    """Write the directory.

    Args:
        folder: Replaced whole.
        config: Gives shapes, seed and tokenizer.
        int8: Embedding table in int8 instead of FP16.
        pruned: Share of 64 x 16 tiles that are zero.
    """
    torch.manual_seed(config.seed)
    tokenizer = tokenizer_of(config)
    model = CognateLM(config.model, tokenizer.vocab_size)
    for name, module in list(model.named_modules()):
        if isinstance(module, Projection):
            make_bit_linear(model, name, config.bitnet.quantise.threshold, config.model.norm_eps)
    for layer in bit_linears(model).values():
        layer.strength = 1.0
        layer.prune(pruned)
    save_packed(
        folder,
        model.eval(),
        Behaviour(halting_threshold=ALL_STEPS),
        tokenizer,
        Generation(),
        int8_embedding=int8,
        zero_activations={},
        card="Random weights, to be timed.\n",
    )


def tokenizer_of(config: RunConfig) -> TextTokenizer:
    """The tokenizer a run of this configuration would have."""
    if config.tokenizer.kind == "gpt2":
        return load_gpt2(config.tokenizer.path, config.data.data_dir)
    return world_tokenizer()


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", default="full")
    parser.add_argument("--data-dir", default="")
    parser.add_argument("--fp16-embedding", action="store_true")
    parser.add_argument("--pruned", type=float, default=0.0)
    given = parser.parse_args()
    sets = [f"data.data_dir={given.data_dir}"] if given.data_dir else []
    config = load_config(preset=given.preset, sets=sets).config
    write_random_model(given.folder, config, int8=not given.fp16_embedding, pruned=given.pruned)


if __name__ == "__main__":
    main()
