"""The adaptive numbers at their boundaries, and what "auto" becomes."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentforge.config.load import load_config
from agentforge.config.schema import ModelConfig, ResourceConfig
from agentforge.errors import PreflightError
from agentforge.resources import (
    CPU_ACTIVATION_BYTES,
    LOGIT_BYTES,
    Machine,
    accumulation_steps,
    next_micro_batch_after_oom,
    resolve_training,
)
from agentforge.sizing import (
    CATEGORIES,
    FITNESS_BANDS,
    approximate_params,
    category,
    checkpoint_bytes,
    documented_batch,
    documented_memory_mb,
    executed_blocks,
    fitness_band,
    phase_disk_bytes,
    size_mb,
    thought_band,
    training_memory,
)

GPT2_ROWS = 50_269


@pytest.mark.parametrize(
    ("n_params", "name", "batch"),
    [
        (1, "tiny", 32),
        (49_999_999, "tiny", 32),
        (50_000_000, "small", 16),
        (499_999_999, "small", 16),
        (500_000_000, "medium", 8),
        (1_999_999_999, "medium", 8),
        (2_000_000_000, "large", 4),
        (70_000_000_000, "large", 4),
    ],
)
def test_category_boundaries_belong_to_the_larger(n_params, name, batch):
    assert category(n_params).name == name
    assert category(n_params).batch_size == batch


@given(st.integers(1, 10**11), st.integers(1, 10**11))
def test_categories_are_monotonic(a, b):
    small, large = sorted((a, b))
    assert category(small).batch_size >= category(large).batch_size
    assert category(small).zero_threshold <= category(large).zero_threshold
    assert category(small).target_compression <= category(large).target_compression
    assert category(small).calibration_samples <= category(large).calibration_samples
    assert thought_band(small).thoughts >= thought_band(large).thoughts


def test_category_rows_are_the_documents():
    assert [c.target_compression for c in CATEGORIES] == [6, 8, 10, 12]
    assert [c.expected_sparsity for c in CATEGORIES] == [0.25, 0.35, 0.40, 0.45]
    assert [c.expected_quantised for c in CATEGORIES] == [0.80, 0.85, 0.90, 0.95]
    assert [c.calibration_samples for c in CATEGORIES] == [500, 1000, 2000, 5000]
    assert [c.least_compression for c in CATEGORIES] == [6, 8, 8, 8]
    assert [len(c.preserved) for c in CATEGORIES] == [3, 2, 2, 1]
    assert all(c.least_compression <= c.target_compression for c in CATEGORIES)
    with pytest.raises(ValueError, match="positive"):
        category(0)


def test_the_two_scales_disagree_where_the_documents_say():
    mb100 = 100 * 2**20 // 4
    assert mb100 == 26_214_400
    assert size_mb(mb100) == 100.0
    assert thought_band(mb100 - 1).thoughts == 8
    assert thought_band(mb100).thoughts == 6
    assert category(32_600_000).name == "tiny"
    assert thought_band(32_600_000).thought_tokens == 15
    assert round(size_mb(25_000_000), 1) == 95.4


@pytest.mark.parametrize(("mb", "speed"), [(99.99, 0.1), (100, 0.2), (999.9, 0.2), (1000, 0.15)])
def test_fitness_bands(mb, speed):
    assert fitness_band(int(mb * 2**20 / 4)).speed == speed


def test_fitness_weights_sum_to_one():
    for band in FITNESS_BANDS:
        assert math.isclose(band.perplexity + band.accuracy + band.speed + band.memory, 1.0)


def test_documented_memory_of_a_25m_model():
    n = 25_000_000
    assert round(documented_memory_mb(n, "cognate")) == 381
    assert round(documented_memory_mb(n, "evomerge")) == 916
    assert round(documented_memory_mb(n, "quietstar")) == 410
    assert round(documented_memory_mb(n, "bitnet")) == 191


def test_documented_batch():
    assert documented_batch(25_000_000, 6 * 1024) == (32, 1)
    uncapped = (0.9 * 6144 - 4 * size_mb(25_000_000)) / (0.1 * size_mb(25_000_000))
    assert int(uncapped) == 539
    assert documented_batch(1_000_000_000, 6 * 1024) == (1, 3)
    with pytest.raises(ValueError, match="positive"):
        documented_batch(1000, 0)


@given(st.integers(1, 10**10), st.floats(1.0, 1e6))
def test_documented_batch_is_always_usable(n_params, memory_mb):
    batch, accumulation = documented_batch(n_params, memory_mb)
    assert 1 <= batch <= 32
    assert accumulation >= 1
    assert batch == 1 or accumulation == 1


def resolve(preset="full", n_params=25_000_000, vocab=GPT2_ROWS, machine=None, **resources):
    config = load_config(preset=preset, env={}).config
    asked = config.resources.model_dump() | {"device": "auto", "micro_batch_tokens": 0} | resources
    return resolve_training(
        ResourceConfig(**asked),
        config.model,
        n_params=n_params,
        vocab_size=vocab,
        batch_size=config.cognate.batch_size,
        sequence_length=min(config.data.sequence_length, config.model.context),
        machine=machine or Machine(cuda=False, bf16=False, free_bytes=20 * 10**9),
    )


def test_a_cpu_trains_in_fp32_and_needs_no_checkpointing_when_memory_is_there():
    found = resolve()
    assert found.device.value == "cpu"
    assert found.precision.value == "fp32"
    assert found.gradient_checkpointing.value is False
    assert found.micro_batch_tokens.value % 256 == 0
    assert found.micro_batch_tokens.value * training_memory_full().per_token <= CPU_ACTIVATION_BYTES
    assert all(line for line in found.lines())


def training_memory_full():
    return training_memory(load_config(preset="full", env={}).config.model, 25_000_000, GPT2_ROWS)


def test_precision_follows_the_card():
    old = Machine(cuda=True, bf16=False, free_bytes=6 * 10**9)
    new = Machine(cuda=True, bf16=True, free_bytes=6 * 10**9)
    assert resolve(machine=old).precision.value == "fp16"
    assert resolve(machine=new).precision.value == "bf16"
    assert resolve(machine=new, precision="fp32").precision.value == "fp32"
    assert resolve(machine=new, device="cpu").device.value == "cpu"


def test_what_is_asked_for_is_taken():
    found = resolve(
        micro_batch_tokens=1024, gradient_checkpointing="on", vocab_chunk=100, memory_budget_gb=9.0
    )
    assert found.micro_batch_tokens.value == 1024
    assert found.gradient_checkpointing.value is True
    assert found.vocab_chunk.value == 100
    assert found.memory_bytes.value == 9_000_000_000
    assert resolve(micro_batch_tokens=700).micro_batch_tokens.value == 512
    assert resolve(micro_batch_tokens=1).micro_batch_tokens.value == 512


def test_little_memory_turns_checkpointing_on():
    small = Machine(cuda=True, bf16=False, free_bytes=2 * 10**9)
    assert resolve(machine=small).gradient_checkpointing.value is True
    assert (
        resolve(machine=small, gradient_checkpointing="off").gradient_checkpointing.value is False
    )


def test_logits_stay_within_their_share():
    card = Machine(cuda=True, bf16=True, free_bytes=6 * 10**9)
    for found, device in ((resolve(), "cpu"), (resolve(machine=card), "cuda")):
        chunk = found.vocab_chunk.value
        assert chunk > 0
        assert chunk & (chunk - 1) == 0
        assert chunk * training_memory_full().per_logit_token <= LOGIT_BYTES[device]
    assert resolve("demo", n_params=572_036, vocab=150).vocab_chunk.value == 0


def test_cuda_asked_for_and_not_there():
    with pytest.raises(PreflightError, match="no CUDA device"):
        resolve(device="cuda")


def test_no_room_for_one_sequence_is_said_before_training():
    with pytest.raises(PreflightError, match="one sequence of 512 tokens does not fit"):
        resolve(memory_budget_gb=0.7)


@given(st.integers(1, 10**6), st.integers(1, 4096))
def test_after_oom_the_micro_batch_shrinks_to_one_sequence_and_stops(sequences, length):
    tokens: int | None = sequences * length
    seen = []
    while tokens is not None:
        seen.append(tokens)
        tokens = next_micro_batch_after_oom(tokens, length)
    assert seen[-1] == length
    assert all(t % length == 0 for t in seen)
    assert all(b <= a // 2 for a, b in zip(seen, seen[1:], strict=False))


def test_a_micro_batch_needs_a_length():
    with pytest.raises(ValueError, match="sequence_length"):
        next_micro_batch_after_oom(8, 0)


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_accumulation_covers_the_batch(batch, micro):
    steps = accumulation_steps(batch, micro)
    assert steps * micro >= batch
    assert (steps - 1) * micro < batch


@given(st.integers(0, 64), st.integers(1, 64), st.integers(1, 8))
def test_memory_grows_with_the_model(extra, heads, steps):
    base = ModelConfig(d_model=heads * 16, n_heads=heads, recursion_steps=steps)
    wider = base.model_copy(update={"ffn_width": base.ffn_width + extra})
    small, large = training_memory(base, 10**6, 512), training_memory(wider, 10**6, 512)
    assert large.per_token >= small.per_token
    assert small.per_token_checkpointed < small.per_token
    assert executed_blocks(base) == 2 + steps


def test_disk_counts_models_and_checkpoints():
    n = 25_000_000
    assert checkpoint_bytes(n) >= 3 * 4 * n
    without = phase_disk_bytes("cognate", n, keep_last=3, ablations=0)
    assert without >= 4 * 4 * n + 5 * checkpoint_bytes(n)
    assert phase_disk_bytes("cognate", n, keep_last=3, ablations=2) - without >= 2 * 4 * n
    assert phase_disk_bytes("cognate", n, keep_last=4, ablations=0) > without


@pytest.mark.parametrize("preset", ["smoke", "demo", "laptop", "full"])
def test_the_torch_free_count_is_close_to_the_real_one(preset):
    from agentforge.model.count import count_parameters

    config = load_config(preset=preset, env={}).config.model
    for rows in (150, GPT2_ROWS):
        real = count_parameters(config, rows).total
        assert abs(approximate_params(config, rows) - real) / real < 0.01


@pytest.mark.parametrize("preset", ["smoke", "demo", "laptop"])
def test_estimated_activations_cover_what_autograd_keeps(preset):
    import torch

    from agentforge.model.behaviour import Behaviour
    from agentforge.model.language_model import CognateLM

    torch.set_num_threads(1)
    config = load_config(preset=preset, env={}).config.model
    model = CognateLM(config, 64)
    own = {p.data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    ids = torch.zeros(2, 96, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model.answers(ids, Behaviour(write_budget=1.0))
    measured = sum(kept.values()) / ids.numel()
    estimate = training_memory(config, 1, 64).per_token
    assert measured < estimate < 2.2 * measured
