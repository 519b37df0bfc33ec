"""A BitNet of 2 billion parameters from a directory: resident memory and speed of decoding.

    python -m bench.two_billion FOLDER [--threads 1 --threads 2] [--layers 30]

Writes a `BitNetForCausalLM` directory of the shape of BitNet b1.58 2B4T (arXiv 2504.12285: 30
layers, d 2560, FFN 6912, 20 heads and 5 key heads of 128, vocabulary 128,256, tied) with random
packed weights, one file a layer; when it is there, decodes in this process and prints JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from agentforge.formats.bitnet_checkpoint import open_bitnet
from agentforge.runtime.bench_memory import resident
from agentforge.runtime.lower_bitnet import lower_bitnet
from agentforge.runtime.native import NativeExecutor
from agentforge.runtime.traffic import read_seconds, token_bytes

WIDTH, FFN, HEADS, KEY_HEADS, HEAD_WIDTH, VOCABULARY = 2560, 6912, 20, 5, 128, 128_256
CONTEXT = 256


def write_directory(folder: Path, layers: int) -> None:
    """Write the directory tensor by tensor: no more than one layer lies in memory.

    Args:
        folder: Made where it is missing.
        layers: Decoder layers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    where: dict[str, str] = {}

    def save(file: str, tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, folder / file)
        where.update(dict.fromkeys(tensors, file))

    def packed(rows: int, columns: int) -> torch.Tensor:
        # Four codes a byte, each 0, 1 or 2 (transformers' packing of trit + 1): no code is 3.
        trits = torch.randint(0, 3, (4, rows // 4, columns), generator=generator, dtype=torch.uint8)
        return trits[0] | trits[1] << 2 | trits[2] << 4 | trits[3] << 6

    table = torch.empty(VOCABULARY, WIDTH, dtype=torch.bfloat16)
    for start in range(0, VOCABULARY, 8192):
        part = table[start : start + 8192]
        part.copy_(torch.randn(part.shape, generator=generator) * 0.02)
    save("embedding.safetensors", {"model.embed_tokens.weight": table})
    del table
    queries, keys = HEADS * HEAD_WIDTH, KEY_HEADS * HEAD_WIDTH
    shapes = {
        "self_attn.q_proj": (queries, WIDTH),
        "self_attn.k_proj": (keys, WIDTH),
        "self_attn.v_proj": (keys, WIDTH),
        "self_attn.o_proj": (WIDTH, queries),
        "mlp.gate_proj": (FFN, WIDTH),
        "mlp.up_proj": (FFN, WIDTH),
        "mlp.down_proj": (WIDTH, FFN),
    }
    norms = {
        "input_layernorm": WIDTH,
        "post_attention_layernorm": WIDTH,
        "self_attn.attn_sub_norm": queries,
        "mlp.ffn_sub_norm": FFN,
    }
    for layer in range(layers):
        tensors: dict[str, torch.Tensor] = {}
        for name, (rows, columns) in shapes.items():
            tensors[f"model.layers.{layer}.{name}.weight"] = packed(rows, columns)
            scale = torch.tensor([columns**-0.5], dtype=torch.bfloat16)
            tensors[f"model.layers.{layer}.{name}.weight_scale"] = scale
        for name, width in norms.items():
            tensors[f"model.layers.{layer}.{name}.weight"] = torch.ones(width, dtype=torch.bfloat16)
        save(f"layer-{layer:02d}.safetensors", tensors)
    save("norm.safetensors", {"model.norm.weight": torch.ones(WIDTH, dtype=torch.bfloat16)})
    config = {
        "architectures": ["BitNetForCausalLM"],
        "model_type": "bitnet",
        "hidden_size": WIDTH,
        "intermediate_size": FFN,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_HEADS,
        "head_dim": HEAD_WIDTH,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "hidden_act": "relu2",
        "tie_word_embeddings": True,
        "quantization_config": {
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": "offline",
        },
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, action="append")
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=24)
    given = parser.parse_args()
    if not (given.folder / "config.json").exists():
        write_directory(given.folder, given.layers)
        print("written; run again to measure: writing took memory of its own")
        return
    began = time.perf_counter()
    plan = lower_bitnet(open_bitnet(given.folder), context=CONTEXT)
    executor = NativeExecutor(plan, tokens=8, cache="bfloat16")
    load_s, after_load = time.perf_counter() - began, resident("VmRSS")
    medians: dict[int, float] = {}
    position = 0
    for threads in given.threads or [1, 2]:
        torch.set_num_threads(threads)
        times = []
        for turn in range(given.tokens):
            started = time.perf_counter()
            executor.run([turn * 17 % VOCABULARY], [0], [position], [0])
            times.append(time.perf_counter() - started)
            position += 1
        medians[threads] = float(np.median(times[2:]))
    # Before the limit is measured, in a block of memory as large as the model.
    peak = resident("VmHWM")
    size = token_bytes(plan, executor.caches, position)
    runs = []
    for threads, median in medians.items():
        limit = read_seconds(size, threads, rounds=2)
        runs.append(
            {
                "threads": threads,
                "ms_per_token": 1000 * median,
                "limit_ms": 1000 * limit,
                "share_of_limit": limit / median,
            }
        )
    found = {
        "layers": given.layers,
        "load_s": load_s,
        "weight_bytes": executor.weight_bytes(),
        "bytes_per_token": size,
        "resident_after_load": after_load,
        "peak_resident": peak,
        "runs": runs,
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
