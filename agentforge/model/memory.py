"""Titans neural memory (arXiv 2501.00663): a linear map W that is trained at test time.

Per token with key k, query q, value v and data-dependent theta (write), eta (momentum), alpha
(forgetting), in our notation:

    l(W)  = 1/2 ||W k - v||^2                       associative loss
    S_t   = eta_t S_{t-1} - theta_t grad l(W_c)     surprise with momentum, |v - W_c k| limited
    W_t   = (1 - alpha_t) W_{t-1} + S_t             write
    y_t   = W_t q_t                                 read, own write included

W_c is the map at the start of the token's chunk; chunk 1 is the paper's recurrence. The same sums
are computed in two forms: `recurrent_memory`, a loop over tokens (the definition, and what decoding
does), and `chunked_memory`, a few c x c products a chunk (training). The state is per sequence and
starts at zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agentforge.config.schema import MemoryConfig
from agentforge.model.linear import Projection, project
from agentforge.model.norm import RMSNorm
from agentforge.model.record import ForwardRecord

ERROR_LIMIT = 16.0
"""Longest prediction error |v - W_c k| that is written, in units of sqrt(M).

Equal keys within a chunk all correct the same error of the chunk's start: a chunk of 16 overshoots
sixteenfold, and one token repeated 700 times (a table's rule, white space) made the 25M shapes NaN.
The built-in world's questions stay below 6.4, so that nothing changes for ordinary text.
"""


@dataclass(slots=True)
class MemoryState:
    """The memory of a batch of sequences between two tokens.

    Attributes:
        weight: W_t, (B, M, M) fp32.
        momentum: S_t, (B, M, M) fp32.
        chunk_weight: W_c, the map at the start of the running chunk, (B, M, M) fp32.
        position: Tokens written so far.
    """

    weight: Tensor
    momentum: Tensor
    chunk_weight: Tensor
    position: int = 0

    @classmethod
    def empty(cls, batch: int, width: int, device: torch.device) -> MemoryState:
        """A memory that has seen nothing: all zero."""
        zero = torch.zeros(batch, width, width, device=device)
        return cls(zero, zero, zero)


@dataclass(frozen=True, slots=True)
class MemoryInputs:
    """What the memory works on, all fp32.

    Attributes:
        key, query, value: (B, T, M); keys and queries have unit length.
        theta: Write strength in [0, budget], (B, T).
        log_eta: Log of the momentum factor, (B, T).
        log_keep: Log of 1 - alpha, (B, T).
    """

    key: Tensor
    query: Tensor
    value: Tensor
    theta: Tensor
    log_eta: Tensor
    log_keep: Tensor


def recurrent_memory(x: MemoryInputs, state: MemoryState, chunk: int) -> Tensor:
    """Run the recurrence token by token, updating `state` in place.

    Returns:
        Reads y, (B, T, M).
    """
    reads = []
    for t in range(x.key.shape[1]):
        if state.position % chunk == 0:
            state.chunk_weight = state.weight
        k, v = x.key[:, t], x.value[:, t]
        error = limited_error(v - (state.chunk_weight @ k[..., None])[..., 0])
        surprise = (x.theta[:, t, None] * error)[..., None] * k[:, None, :]
        state.momentum = x.log_eta[:, t].exp()[:, None, None] * state.momentum + surprise
        keep = x.log_keep[:, t].exp()[:, None, None]
        state.weight = keep * state.weight + state.momentum
        state.position += 1
        reads.append((state.weight @ x.query[:, t, :, None])[..., 0])
    return torch.stack(reads, dim=1)


def chunked_memory(x: MemoryInputs, chunk: int) -> tuple[Tensor, Tensor]:
    """The same recurrence from an empty state, one chunk at a time.

    Within a chunk both recurrences are linear, so with D_a[t,s] = prod_{s<i<=t} (1 - alpha_i) and
    D_e[t,s] = prod_{s<i<=t} eta_i the weight of write s in map t is C = D_a D_e.

    Returns:
        Reads y, (B, T, M), and squared prediction errors ||v - W_c k||^2, (B, T).
    """
    length = x.key.shape[1]
    weight: Tensor | None = None
    momentum: Tensor | None = None
    reads, errors = [], []
    for start in range(0, length, chunk):
        part = slice(start, start + chunk)
        k, q, v = x.key[:, part], x.query[:, part], x.value[:, part]
        log_keep = x.log_keep[:, part].cumsum(1)
        log_eta = x.log_eta[:, part].cumsum(1)
        future = torch.ones(k.shape[1], k.shape[1], dtype=torch.bool, device=k.device).triu(1)
        decay_keep = _decay(log_keep, future)
        decay_eta = _decay(log_eta, future)
        share = decay_keep @ decay_eta
        error = v if weight is None else v - k @ weight.transpose(1, 2)
        write = x.theta[:, part, None] * limited_error(error)
        y = (share * (q @ k.transpose(1, 2))) @ write
        from_momentum = decay_keep @ log_eta.exp()[..., None]
        if weight is not None and momentum is not None:
            y = y + log_keep.exp()[..., None] * (q @ weight.transpose(1, 2))
            y = y + from_momentum * (q @ momentum.transpose(1, 2))
        reads.append(y)
        errors.append(error.detach().square().sum(-1))
        if start + chunk < length:
            new_weight = (share[:, -1, :, None] * write).transpose(1, 2) @ k
            new_momentum = (decay_eta[:, -1, :, None] * write).transpose(1, 2) @ k
            if weight is not None and momentum is not None:
                new_weight = new_weight + log_keep[:, -1, None, None].exp() * weight
                new_weight = new_weight + from_momentum[:, -1, :, None] * momentum
                new_momentum = new_momentum + log_eta[:, -1, None, None].exp() * momentum
            weight, momentum = new_weight, new_momentum
    return torch.cat(reads, dim=1), torch.cat(errors, dim=1)


def limited_error(error: Tensor) -> Tensor:
    """Prediction errors (..., M) shortened to `ERROR_LIMIT`; shorter ones keep every bit."""
    longest = ERROR_LIMIT * error.shape[-1] ** 0.5
    shrink: Tensor = longest / error.norm(dim=-1, keepdim=True).clamp(min=longest)
    return error * shrink


def _decay(log_cumulative: Tensor, future: Tensor) -> Tensor:
    """exp(L_t - L_s) for s <= t, else 0; masked before exp, which would overflow. (B, c, c)."""
    gap = log_cumulative[:, :, None] - log_cumulative[:, None, :]
    return gap.masked_fill(future, float("-inf")).exp()


class NeuralMemory(nn.Module):
    """Projections, gates and read-out around the recurrence.

    Keys, queries and values are one projection, mixed over the last three tokens by a depthwise
    causal filter, SiLU; keys and queries have unit length, so that theta <= 1 is a stable step
    (at chunk 1; see `ERROR_LIMIT` for longer chunks).
    At the start theta is budget/2, eta .27 and alpha .018 (decay bias -4: near .5 the memory would
    forget within three tokens).
    """

    FILTER = (1.0, 0.3, 0.1)

    def __init__(self, d_model: int, config: MemoryConfig, eps: float) -> None:
        super().__init__()
        self.width = config.width
        self.chunk = config.chunk
        self.k = Projection(d_model, config.width)
        self.q = Projection(d_model, config.width)
        self.v = Projection(d_model, config.width)
        self.filter = nn.Parameter(torch.tensor(self.FILTER)[:, None].repeat(1, 3 * config.width))
        self.rates = nn.Linear(d_model, 3)
        nn.init.zeros_(self.rates.weight)
        with torch.no_grad():
            self.rates.bias.copy_(torch.tensor([0.0, -1.0, -4.0]))
        self.norm = RMSNorm(config.width, eps)
        self.out = Projection(config.width, d_model)

    def inputs(self, x: Tensor, mixed: Tensor, budget: float) -> MemoryInputs:
        """Split filtered projections (B, T, 3M) of x (B, T, D) into the memory's inputs, fp32."""
        key, query, value = F.silu(mixed.float()).chunk(3, dim=-1)
        rates = self.rates(x).float()
        return MemoryInputs(
            key=F.normalize(key, dim=-1),
            query=F.normalize(query, dim=-1),
            value=value,
            theta=budget * torch.sigmoid(rates[..., 0]),
            log_eta=F.logsigmoid(rates[..., 1]),
            log_keep=F.logsigmoid(-rates[..., 2]),
        )

    def raw(self, x: Tensor) -> Tensor:
        """Unfiltered key, query and value projections, (B, T, D) -> (B, T, 3M)."""
        return torch.cat(project(x, self.k, self.q, self.v), dim=-1)

    def mix(self, raw: Tensor) -> Tensor:
        """Causal depthwise filter over this token and the two before it, (B, T, 3M)."""
        length = raw.shape[1]
        one = F.pad(raw, (0, 0, 1, 0))[:, :length]
        two = F.pad(raw, (0, 0, 2, 0))[:, :length]
        return raw * self.filter[0] + one * self.filter[1] + two * self.filter[2]

    def read_out(self, read: Tensor) -> Tensor:
        """Normalise and widen reads, (B, T, M) -> (B, T, D)."""
        # The state is float32 whatever the model is.
        y: Tensor = self.out(self.norm(read.to(self.norm.weight.dtype)))
        return y

    def forward(
        self, x: Tensor, budget: float, record: ForwardRecord | None = None, name: str = ""
    ) -> Tensor:
        """Memory branch of a whole sequence from an empty memory, (B, T, D) -> (B, T, D)."""
        inputs = self.inputs(x, self.mix(self.raw(x)), budget)
        with torch.autocast(x.device.type, enabled=False):
            read, error = chunked_memory(inputs, self.chunk)
        if record is not None:
            record.theta[name] = inputs.theta.detach()
            record.writes[name] = record.mean(inputs.theta)
            record.surprise[name] = record.mean(error)
        return self.read_out(read)
