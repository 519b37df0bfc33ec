"""One batch of the built-in world can be learned by heart and then generated, word for word."""

from __future__ import annotations

import torch

from agentforge.config.schema import MemoryConfig, ModelConfig, OptimConfig
from agentforge.data.batching import micro_batches
from agentforge.data.corpus import encode
from agentforge.data.example import prompt_text
from agentforge.data.world import SKILLS, generate
from agentforge.data.world_tokenizer import world_tokenizer
from agentforge.evals.items import measure
from agentforge.model.behaviour import Behaviour
from agentforge.model.decode import generate_greedy
from agentforge.model.language_model import CognateLM
from agentforge.model.loss import HaltingObjective, training_loss
from agentforge.optim.hybrid import HybridOptimizer

torch.set_num_threads(1)

STEPS = 48


def test_overfit_one_batch_and_generate_it() -> None:
    tokenizer = world_tokenizer()
    examples = [e for skill in SKILLS for e in generate(skill, "train", 8, seed=5)]
    corpus = encode("all", "all", examples, tokenizer, 64)
    batches = micro_batches(
        {"all": corpus}, [("all", i) for i in range(len(corpus))], 4096, tokenizer.pad_id
    )
    targets = sum(b.target_count for b in batches)
    positions = sum(b.valid_count for b in batches)

    torch.manual_seed(0)
    config = ModelConfig(
        d_model=48,
        n_heads=3,
        n_prelude=2,
        n_core=1,
        ffn_width=96,
        embedding_rank=24,
        window=16,
        context=64,
        recursion_steps=2,
        memory=MemoryConfig(layers=(1,), width=16, chunk=16, gate_rank=4),
    )
    model = CognateLM(config, tokenizer.vocab_size)
    optim = OptimConfig(muon_lr=0.03, adamw_lr=1e-2, warmup_steps=5, cooldown_share=0.3)
    optimizer = HybridOptimizer(
        dict(model.named_parameters()), model.hidden_matrices(), optim, STEPS
    )
    behaviour, objective = Behaviour(), HaltingObjective(prior=0.4, beta=0.02)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = 0.0
        for b in batches:
            parts = training_loss(
                model, b.ids, b.targets, b.valid, behaviour, objective, targets, positions
            )
            parts.total.backward()  # type: ignore[no-untyped-call]
            loss += float(parts.task_sum) / targets
        optimizer.step(step)
        losses.append(loss)
    assert losses[0] > 3.0
    assert losses[-1] < 0.1

    prompts = [tokenizer.encode(prompt_text(e.prompt)) for e in examples]
    written = generate_greedy(
        model, prompts, behaviour, 12, tokenizer.eos_id, tokenizer.thinking_ids
    )
    texts = [tokenizer.decode(ids) for ids in written]
    assert texts == [f" {e.answer}" for e in examples]

    # What teacher forcing calls right is what greedy decoding writes.
    assert bool(measure(model, corpus, behaviour, tokenizer.pad_id, batch=7).correct.all())
