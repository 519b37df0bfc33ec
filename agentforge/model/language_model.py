"""CognateLM: prelude blocks with Titans memory, a recursive core (TRM), per-token halting.

    h       = prelude(embed(ids))                               once per token
    u_r     = z_{r-1} + a * h + b * y_{r-1}                     z_0 = y_0 = 0
    z_r     = core(u_r)                                         latent update, `latent_steps` times
    y_r     = y_{r-1} + W_y norm(z_r)                           answer update
    logits  = table . down(norm(y_r))

`core` is the last blocks of the model, shared by all steps (TRM, arXiv 2510.04871, made causal;
its position-0 halting head would see only the first token, so halting is per position here). The
reference of per-token halting is the parallel forward: a halted position's z and y are copied to
later steps, and its keys and values there come from the copied state.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from agentforge.config.schema import ModelConfig
from agentforge.model.attention import window_mask
from agentforge.model.behaviour import Behaviour
from agentforge.model.block import Block
from agentforge.model.embedding import FactorisedEmbedding
from agentforge.model.halting import HaltingHead
from agentforge.model.linear import Projection
from agentforge.model.norm import RMSNorm
from agentforge.model.record import ForwardRecord
from agentforge.model.rotary import rotary_tables


@dataclass(frozen=True, slots=True)
class Forward:
    """What an inference forward gives.

    Attributes:
        answer: Final answer states, (B, T, D); `CognateLM.embedding.logits` reads them.
        steps: Recursion steps each position took, (B, T) int64.
    """

    answer: Tensor
    steps: Tensor


class CognateLM(nn.Module):
    """The language model of all phases.

    Args:
        config: Shapes.
        vocab_size: Rows of the embedding, the twelve thinking tokens included.
    """

    rope_cos: Tensor
    rope_sin: Tensor

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.gradient_checkpointing = False
        d = config.d_model
        depth = config.n_prelude + config.n_core * config.recursion_steps * config.latent_steps
        gain = (2 * depth) ** -0.5
        self.embedding = FactorisedEmbedding(vocab_size, config.embedding_rank, d, config.norm_eps)
        self.prelude = nn.ModuleList(
            Block(config, config.memory if i in config.memory.layers else None, gain)
            for i in range(config.n_prelude)
        )
        self.core = nn.ModuleList(Block(config, None, gain) for _ in range(config.n_core))
        self.inject_prelude = nn.Parameter(torch.ones(d))
        self.inject_answer = nn.Parameter(torch.ones(d))
        self.latent_norm = RMSNorm(d, config.norm_eps)
        self.answer = Projection(d, d)
        self.halting = HaltingHead(d, config.norm_eps)
        self.build_rope()

    def build_rope(self) -> None:
        """(Re)build the rotary tables on the CPU, which no file holds."""
        config = self.config
        width = config.d_model // config.n_heads
        cos, sin = rotary_tables(config.context, width, config.rope_theta)
        self.register_buffer("rope_cos", cos, persistent=False)
        self.register_buffer("rope_sin", sin, persistent=False)

    def hidden_matrices(self) -> dict[str, nn.Parameter]:
        """The matrices Muon trains and Phase 4 makes ternary, by parameter name."""
        parameters = dict(self.named_parameters())
        return {
            f"{name}.weight": parameters[f"{name}.weight"]
            for name, module in self.named_modules()
            if isinstance(module, Projection)
        }

    def rope(self, length: int) -> tuple[Tensor, Tensor]:
        """Rotary tables of the first `length` positions."""
        return self.rope_cos[:length], self.rope_sin[:length]

    def encode(self, ids: Tensor, budget: float, record: ForwardRecord | None = None) -> Tensor:
        """Embedding and prelude: ids (B, T) -> h (B, T, D). Memory is written here, once."""
        h: Tensor = self.embedding(ids)
        rope = self.rope(ids.shape[1])
        mask = window_mask(ids.shape[1], self.config.window, ids.device)
        for i, block in enumerate(self.prelude):
            h = self._run(block, h, rope, mask, budget, record, f"prelude.{i}")
        return h

    def _run(
        self,
        block: nn.Module,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Tensor | None,
        budget: float,
        record: ForwardRecord | None,
        name: str,
    ) -> Tensor:
        """A block, recomputed in the backward pass when checkpointing is on."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            y: Tensor = checkpoint(block, x, rope, mask, budget, record, name, use_reentrant=False)
            return y
        y = block(x, rope, mask, budget, record, name)
        return y

    def inject(self, latent: Tensor | None, h: Tensor, answer: Tensor | None) -> Tensor:
        """The core's input u; the first step has neither latent nor answer."""
        u = self.inject_prelude * h
        if latent is not None:
            u = u + latent
        if answer is not None:
            u = u + self.inject_answer * answer
        return u

    def update_answer(self, answer: Tensor | None, latent: Tensor) -> Tensor:
        """y_r = y_{r-1} + W_y norm(z_r)."""
        update: Tensor = self.answer(self.latent_norm(latent))
        return update if answer is None else answer + update

    def answers(
        self, ids: Tensor, behaviour: Behaviour, record: ForwardRecord | None = None
    ) -> list[Tensor]:
        """Answer states after every recursion step, nobody halted: R tensors (B, T, D)."""
        h = self.encode(ids, behaviour.write_budget, record)
        rope = self.rope(ids.shape[1])
        mask = window_mask(ids.shape[1], self.config.window, ids.device)
        latent: Tensor | None = None
        answer: Tensor | None = None
        found = []
        for _ in range(behaviour.recursion_steps or self.config.recursion_steps):
            for _ in range(self.config.latent_steps):
                latent = self.inject(latent, h, answer)
                for i, block in enumerate(self.core):
                    latent = self._run(block, latent, rope, mask, 0.0, record, f"core.{i}")
            assert latent is not None
            answer = self.update_answer(answer, latent)
            found.append(answer)
        return found

    @torch.no_grad()
    def forward(
        self, ids: Tensor, behaviour: Behaviour, record: ForwardRecord | None = None
    ) -> Forward:
        """`run` without gradients: what measuring uses."""
        return self.run(ids, behaviour, record)

    def run(
        self, ids: Tensor, behaviour: Behaviour, record: ForwardRecord | None = None
    ) -> Forward:
        """Whole sequences with per-token halting, as deployed: the reference of all executors.

        Gradients flow through the steps that were taken; where a position halts is no function of
        the weights to them. Phase 3 trains the deployed model with it.

        Args:
            ids: (B, T) int64.
            behaviour: Halting threshold, write budget, steps.
            record: Notes memory use.

        Returns:
            Final answer states and the steps each position took.
        """
        h = self.encode(ids, behaviour.write_budget, record)
        mask = window_mask(ids.shape[1], self.config.window, ids.device)
        return self.recurse(h, self.rope(ids.shape[1]), mask, behaviour)

    def recurse(
        self, h: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, behaviour: Behaviour
    ) -> Forward:
        """The recursive core with per-token halting over prelude states h (B, T, D)."""
        total = behaviour.recursion_steps or self.config.recursion_steps
        latent: Tensor | None = None
        answer: Tensor | None = None
        shape, device = h.shape[:2], h.device
        survival = torch.ones(shape, device=device)
        active = torch.ones(shape, dtype=torch.bool, device=device)
        steps = torch.zeros(shape, dtype=torch.int64, device=device)
        for step in range(total):
            frozen_latent, frozen_answer = latent, answer
            keep = None if latent is None else ~active[..., None]
            for _ in range(self.config.latent_steps):
                u = self.inject(latent, h, answer)
                x = u
                for block in self.core:
                    y = block(x, rope, mask)
                    x = y if keep is None else torch.where(keep, u, y)
                latent = x if keep is None else freeze(keep, frozen_latent, x)
            assert latent is not None
            answer = self.update_answer(answer, latent)
            answer = answer if keep is None else freeze(keep, frozen_answer, answer)
            steps += active
            if step + 1 < total:
                survival = survival * (1 - torch.sigmoid(self.halting(answer.detach()))).detach()
                active = active & (1 - survival < behaviour.halting_threshold)
                if not bool(active.any()):
                    break
        assert answer is not None
        return Forward(answer=answer, steps=steps)


def freeze(halted: Tensor, before: Tensor | None, now: Tensor) -> Tensor:
    """The state before for halted positions, the new one for the others, (B, T, D)."""
    assert before is not None  # nobody halts before the first step
    return torch.where(halted, before, now)
