"""A ternary layer that stands where a ``torch.nn.Linear`` stood."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from agentforge_kernels import layouts, ops
from agentforge_kernels.arguments import check_type
from agentforge_kernels.errors import KernelInputError
from agentforge_kernels.format import (
    FORMAT_VERSION,
    ZERO_WEIGHTS,
    PackedTernary,
    check_scale,
    padded,
    quantize_weights,
)
from agentforge_kernels.format import pack as pack_ternary
from agentforge_kernels.gradient import dense_weight
from agentforge_kernels.native_call import is_watched
from agentforge_kernels.prepared import PreparedTernary, prepare, prepare_in_order


class _Ready(NamedTuple):
    """A prepared weight and the state of the buffers it was made from."""

    prepared: PreparedTernary
    codes_address: int
    scale_address: int
    versions: tuple[int, int] | None
    """Counts of changes in place; ``None`` for tensors of inference mode, which do not count."""


class TernaryLinear(nn.Module):
    """``y = W q(x) + b`` with ternary weights and activations quantised to int8 token by token.

    Buffers, and so the state dict, hold the stored form: ``codes`` uint8 ``[out_features,
    padded(in_features) / 4]``, ``scale`` float32 ``[1]`` or ``[out_features]``, optionally ``bias``
    and ``norm_weight`` float32. What a backend makes of them is laid out at the first call, again
    when a buffer was changed, moved or loaded, and never saved. ``.half()`` and the like leave the
    buffers' dtypes alone.

    Weights are frozen; gradients flow to the input (straight through the quantiser) and into a
    residual. To train ternary weights see :func:`agentforge_kernels.training.ste_ternary_linear`.

    Args:
        in_features: Columns of the weight.
        out_features: Rows of the weight.
        bias: Whether a bias is added.
        norm: Whether the input is RMS-normalised first (with a weight, fused).
        epsilon: Of the norm.
        zero_activations: Share of the input expected to be exactly zero (behind a squared ReLU),
            0 to 1: with enough of them one token at a time is computed by columns.
        device: Where the buffers lie.

    The weight is zero until something is loaded; see :meth:`from_linear` and :meth:`from_packed`.
    """

    _version = FORMAT_VERSION
    codes: Tensor
    scale: Tensor
    bias: Tensor | None
    norm_weight: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = False,
        norm: bool = False,
        epsilon: float = 1e-5,
        zero_activations: float = 0.0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("in_features", in_features), ("out_features", out_features)):
            if size < 1:
                raise KernelInputError(name, size, "1 or more")
        self.in_features = in_features
        self.out_features = out_features
        self.epsilon = epsilon
        self.zero_activations = zero_activations
        shape = out_features, padded(in_features) // 4
        self.register_buffer(
            "codes", torch.full(shape, ZERO_WEIGHTS, dtype=torch.uint8, device=device)
        )
        self.register_buffer("scale", torch.ones(1, dtype=torch.float32, device=device))
        zeros = torch.zeros(out_features, dtype=torch.float32, device=device) if bias else None
        self.register_buffer("bias", zeros)
        ones = torch.ones(in_features, dtype=torch.float32, device=device) if norm else None
        self.register_buffer("norm_weight", ones)
        self._ready: _Ready | None = None

    @classmethod
    def from_packed(
        cls,
        packed: PackedTernary,
        *,
        bias: Tensor | None = None,
        norm_weight: Tensor | None = None,
        epsilon: float = 1e-5,
        zero_activations: float = 0.0,
    ) -> Self:
        """A layer around a packed matrix, whose tensors it shares.

        Args:
            packed: The weight.
            bias: Floating ``[rows]``, copied to float32.
            norm_weight: Floating ``[columns]`` of an RMSNorm before the layer, copied to float32.
            epsilon: Of that norm.
            zero_activations: Share of the input expected to be zero.

        Raises:
            KernelInputError: Not a packed matrix; a bias or norm of the wrong dtype or shape.
        """
        check_type("packed", packed, PackedTernary)
        layer = cls(
            packed.columns,
            packed.rows,
            epsilon=epsilon,
            zero_activations=zero_activations,
            device="meta",
        )
        layer.codes, layer.scale = packed.codes, packed.scale
        layer.bias = _vector("bias", bias, packed.rows, packed.codes.device)
        layer.norm_weight = _vector("norm_weight", norm_weight, packed.columns, packed.codes.device)
        return layer

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, norm: nn.RMSNorm | None = None, *, zero_activations: float = 0.0
    ) -> Self:
        """Quantise a float layer (absmean, BitNet b1.58); the layer given is not changed.

        A layer that was not trained for it loses most of what it knew: ternary weights have to be
        learned (:func:`agentforge_kernels.training.ste_ternary_linear`).

        Args:
            linear: Any floating dtype and device.
            norm: The RMSNorm that stands before it, to be fused into it.
            zero_activations: Share of the input expected to be zero.

        Raises:
            KernelInputError: Not a linear layer, or weights that are not finite.
        """
        check_type("linear", linear, nn.Linear)
        norm_weight, epsilon = None, 1e-5
        if norm is not None:
            check_type("norm", norm, nn.RMSNorm)
            norm_weight = norm.weight
            if norm_weight is None:
                norm_weight = torch.ones(linear.in_features, device=linear.weight.device)
            # torch's default, made for the dtype it computes in.
            epsilon = norm.eps if norm.eps is not None else torch.finfo(norm_weight.dtype).eps
        packed = pack_ternary(*quantize_weights(linear.weight.detach()))
        return cls.from_packed(
            packed,
            bias=linear.bias,
            norm_weight=norm_weight,
            epsilon=epsilon,
            zero_activations=zero_activations,
        )

    @property
    def packed(self) -> PackedTernary:
        """The weight as it is stored (checked; shares the buffers).

        Raises:
            KernelInputError: The buffers were changed to something that is no ternary matrix.
        """
        return PackedTernary(self.codes, self.scale, self.in_features)

    def prepare(self) -> PreparedTernary:
        """Lay the weight out now, instead of at the first call.

        Raises:
            KernelInputError: The buffers hold no ternary matrix.
            BackendUnavailableError: The forced backend cannot run here.
        """
        return self._adopt(prepare(self.packed, zero_activations=self.zero_activations))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """The layer's output.

        Args:
            x: float32, float16 or bfloat16 ``[..., in_features]``; copied where not contiguous.
            residual: Optional floating ``[..., out_features]``, added before the bias.

        Returns:
            ``[..., out_features]`` in the dtype of ``x``.

        Raises:
            KernelInputError: Wrong dtype, shape or device; NaN or infinity in ``x`` on the CPU.
            BackendUnavailableError: The forced backend cannot run here.
        """
        buffers = self._buffers
        if type(x) is Tensor and x.is_cpu and not is_watched():
            call = self._current().prepared.call
            if call is not None:
                output = call(x, buffers["norm_weight"], self.epsilon, residual, buffers["bias"])
                if output is not None:
                    return output if x.dtype == torch.float32 else output.to(x.dtype)
        check_type("x", x, Tensor)
        output = ops.dense_linear(
            x.contiguous(),
            self.codes,
            self.scale,
            self.in_features,
            self.norm_weight,
            self.epsilon,
            None if residual is None else residual.contiguous(),
        )
        if self.bias is not None:
            output = output + self.bias
        return output.to(x.dtype)

    def dequantize(self) -> Tensor:
        """The weight as float32 ``[out_features, in_features]``."""
        return dense_weight(self.codes, self.scale, self.in_features)

    def extra_repr(self) -> str:
        """Sizes and what belongs to the layer, for ``print(model)``."""
        text = f"in_features={self.in_features}, out_features={self.out_features}"
        text += f", bias={self.bias is not None}"
        if self.norm_weight is not None:
            text += f", norm=True, epsilon={self.epsilon}"
        if self.zero_activations:
            text += f", zero_activations={self.zero_activations}"
        return text + (", scale per row" if self.scale.numel() > 1 else "")

    def _current(self) -> _Ready:
        """The prepared weight, made anew when the buffers are others than it was made from."""
        ready = self._ready
        codes, scale = self._buffers["codes"], self._buffers["scale"]
        assert codes is not None
        assert scale is not None
        if (
            ready is not None
            and codes.data_ptr() == ready.codes_address
            and scale.data_ptr() == ready.scale_address
            and (ready.versions is None or ready.versions == (codes._version, scale._version))
        ):
            return ready
        self.prepare()
        assert self._ready is not None
        return self._ready

    def _adopt(self, prepared: PreparedTernary) -> PreparedTernary:
        codes, scale = prepared.packed.codes, prepared.packed.scale
        uncounted = codes.is_inference() or scale.is_inference()
        versions = None if uncounted else (codes._version, scale._version)
        self._ready = _Ready(prepared, codes.data_ptr(), scale.data_ptr(), versions)
        return prepared

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        """Move the buffers, but leave their dtypes: codes are bits, and scales are float32."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.dtype != old.dtype:
                self._buffers[name] = old.to(new.device)
        self._ready = None
        return self

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Check what is loaded before it replaces anything; a scale may be of either kind."""
        version = local_metadata.get("version") or FORMAT_VERSION
        if version > FORMAT_VERSION:
            error_msgs.append(
                f"{prefix}codes: format version {version}; allowed: up to {FORMAT_VERSION}"
            )
            return
        codes, scale = state_dict.get(f"{prefix}codes"), state_dict.get(f"{prefix}scale")
        if isinstance(codes, Tensor) and isinstance(scale, Tensor):
            try:
                PackedTernary(codes.contiguous(), scale, self.in_features)
                check_scale(scale, self.out_features)
            except KernelInputError as error:
                error_msgs.append(f"{prefix}{error}")
                return
            if scale.shape != self.scale.shape:
                self.scale = torch.empty_like(scale, device=self.scale.device)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if self.codes.is_inference():
            layouts.forget(self.codes)
        self._ready = None

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the prepared weight, for copies and pickles."""
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return {**state, "_ready": None}


def prepare_model(model: nn.Module) -> int:
    """Lay out every ternary layer of a model, one after the other in memory, as they are defined.

    Worth it for small matrices on the CPU (:func:`agentforge_kernels.prepared.prepare_in_order`).

    Returns:
        How many layers there were.

    Raises:
        KernelInputError: As :meth:`TernaryLinear.prepare`.
        BackendUnavailableError: As :meth:`TernaryLinear.prepare`.
    """
    layers = [module for module in model.modules() if isinstance(module, TernaryLinear)]
    prepared = prepare_in_order(
        [layer.packed for layer in layers], [layer.zero_activations for layer in layers]
    )
    for layer, weight in zip(layers, prepared, strict=True):
        layer._adopt(weight)
    return len(layers)


def _vector(argument: str, values: Tensor | None, size: int, device: torch.device) -> Tensor | None:
    """A float32 copy ``[size]`` of a bias or of a norm's weight."""
    if values is None:
        return None
    if list(values.shape) != [size] or not values.is_floating_point():
        raise KernelInputError(
            argument, f"{values.dtype} of shape {list(values.shape)}", f"floating [{size}]"
        )
    return values.detach().to(device=device, dtype=torch.float32, copy=True)
