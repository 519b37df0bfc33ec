"""Do the packed model and its dequantised twin say the same?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agentforge.data.batching import micro_batches
from agentforge.formats.packed import packed_module
from agentforge.formats.twin import twin_module
from agentforge.model.behaviour import Behaviour
from agentforge.model.language_model import CognateLM
from agentforge.phases.bitnet.data import BitData
from agentforge.phases.bitnet.outputs import Packed
from agentforge.phases.cognate.bench import Bench
from agentforge.phases.cognate.models import between
from agentforge.run.tensor_file import load_model


@dataclass(frozen=True, slots=True)
class Agreement:
    """Share of held-out positions at which both find the same token most likely.

    Attributes:
        same: The twin with int8 inputs, as the packed model.
        without: The twin with float inputs.
        tokens: Positions compared.
    """

    same: float
    without: float
    tokens: int


@torch.no_grad()
def compare_twin(bench: Bench, packed: Packed, bits: BitData) -> Agreement:
    """Read both back from disk and compare them on the report split, teacher-forced."""
    config = bench.context.config
    directory = packed.directory
    ours = packed_module(directory)
    read = load_model(packed.twin)
    twins = [twin_module(read, packed.twin, inputs).eval() for inputs in (True, False)]
    prepared, behaviour = bits.reasoning.prepared, directory.behaviour
    agreed, tokens = [0, 0], 0
    held = prepared.held_out["report"]
    corpora = {n: held[n] for n in bits.reasoning.replayed if n in held}
    # Questions are short, so that many are needed; each skill gives the same number of items.
    longest = max(len(c) for c in corpora.values())
    items = [(n, i) for i in range(longest) for n, c in corpora.items() if i < len(c)]
    for start in range(0, len(items), config.cognate.eval_batch):
        between(bench)
        chosen = items[start : start + config.cognate.eval_batch]
        for batch in micro_batches(corpora, chosen, 8192, prepared.tokenizer.pad_id):
            best = _most_likely(ours, batch.ids, batch.valid, behaviour)
            for i, twin in enumerate(twins):
                found = _most_likely(twin, batch.ids, batch.valid, behaviour)
                agreed[i] += int((best == found).sum())
            tokens += len(best)
        if tokens >= config.bitnet.agreement_tokens:
            break
    return Agreement(agreed[0] / tokens, agreed[1] / tokens, tokens)


def _most_likely(model: CognateLM, ids: Tensor, valid: Tensor, behaviour: Behaviour) -> Tensor:
    """The most likely next token at every valid position, (positions,)."""
    answer = model(ids, behaviour).answer[valid]
    best = [model.embedding.logits(part).argmax(-1) for part in answer.split(128)]
    return torch.cat(best)
