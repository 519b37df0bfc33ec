"""Our model as a transformers model: `AutoModelForCausalLM`, `generate()`, evaluation harnesses.

The class wraps `CognateLM` with dequantised ternary matrices and int8-rounded inputs, so that other
people's tools see what the packed model says. It is for them, not for speed: `generate()` reads the
whole text for every token.

    import agentforge.formats.huggingface            # registers the classes, or else:
    AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from agentforge_kernels import Int8Weight, PackedTernary, unpack
from agentforge_kernels.files import Stored
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutput

from agentforge.config.schema import ModelConfig
from agentforge.formats.packed import PackedModel
from agentforge.model.behaviour import Behaviour
from agentforge.model.language_model import CognateLM
from agentforge.model.packed_linear import DequantisedProjection
from agentforge.run.atomic import disk_error, write_atomic

CODE = "modeling_cognate.py"
_CODE_TEXT = '''"""Loads with trust_remote_code=True where the package agentforge is installed."""

from agentforge.formats.huggingface import CognateConfig, CognateForCausalLM

__all__ = ["CognateConfig", "CognateForCausalLM"]
'''


class CognateConfig(PretrainedConfig):  # type: ignore[no-untyped-call]
    """Shapes, behaviour, and which matrices are ternary.

    Args:
        shapes: Fields of `ModelConfig`.
        behaviour: Fields of `Behaviour`.
        ternary: Names of the ternary matrices.
        normed: Those of them with a norm of their own before them.
        kwargs: transformers' own.
    """

    model_type = "cognate"

    def __init__(
        self,
        shapes: dict[str, Any] | None = None,
        behaviour: dict[str, Any] | None = None,
        ternary: list[str] | None = None,
        normed: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        self.shapes = shapes or ModelConfig().model_dump(mode="json")
        self.behaviour = behaviour or asdict(Behaviour())
        self.ternary = ternary or []
        self.normed = normed or []
        kwargs.setdefault("vocab_size", 128)
        kwargs["use_cache"] = False
        super().__init__(**kwargs)
        self.hidden_size = self.shapes["d_model"]
        self.num_hidden_layers = self.shapes["n_prelude"] + self.shapes["n_core"]
        self.max_position_embeddings = self.shapes["context"]


class CognateForCausalLM(PreTrainedModel, GenerationMixin):
    """Cognate with a language-model head, as it is deployed: halting, memory, recursion.

    Args:
        config: What to build.
    """

    config_class = CognateConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _supports_cache_class = False

    def __init__(self, config: CognateConfig) -> None:
        super().__init__(config)
        shapes = ModelConfig(**config.shapes)
        self.model = CognateLM(shapes, config.vocab_size)
        for name in config.ternary:
            parent, _, leaf = name.rpartition(".")
            weight = self.model.get_parameter(f"{name}.weight").detach()
            norm = torch.ones(weight.shape[1]) if name in config.normed else None
            layer = DequantisedProjection(weight, norm, shapes.norm_eps, quantise_input=True)
            setattr(self.model.get_submodule(parent), leaf, layer)
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Every module initialises itself; the rotary tables are no part of a file."""
        if isinstance(module, CognateLM):
            module.build_rope()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> CausalLMOutput:
        """Logits of the next token at every position.

        Args:
            input_ids: (B, T) int64.
            attention_mask: (B, T), 0 on padding before or behind a row's text.
            labels: (B, T) int64, -100 where there is no loss; shifted here.
            logits_to_keep: Only the last so many positions; 0: all.
        """
        shift = _leading(attention_mask)
        # Padding in front is turned to the back, where a causal model does not see it.
        ids = _turned(input_ids, shift) if shift is not None else input_ids
        behaviour = Behaviour(**self.config.behaviour)
        answer = self.model.run(ids, behaviour).answer
        if shift is not None:
            answer = _turned(answer, -shift)
        kept = answer[:, -logits_to_keep:] if logits_to_keep else answer
        logits = self.model.embedding.logits(kept)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(
                logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100
            )
        return CausalLMOutput(loss=loss, logits=logits)

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> dict[str, Any]:
        """The whole text again: no cache is kept."""
        return {"input_ids": input_ids, "attention_mask": attention_mask, "logits_to_keep": 1}


def to_huggingface(packed: PackedModel) -> CognateForCausalLM:
    """A packed model as a transformers model, in evaluation mode."""
    ternary = packed.ternary
    normed = [n for n in ternary if f"{n}.norm.weight" in packed.tensors]
    tokenizer = packed.tokenizer
    config = CognateConfig(
        shapes=packed.shapes.model_dump(mode="json"),
        behaviour=asdict(packed.behaviour),
        ternary=list(ternary),
        normed=normed,
        vocab_size=packed.vocab_size,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
        architectures=["CognateForCausalLM"],
        auto_map={
            "AutoConfig": f"{CODE.removesuffix('.py')}.CognateConfig",
            "AutoModelForCausalLM": f"{CODE.removesuffix('.py')}.CognateForCausalLM",
        },
    )
    model = CognateForCausalLM(config)
    tensors = {f"model.{name}": _floats(tensor) for name, tensor in packed.tensors.items()}
    model.load_state_dict(tensors, strict=True)
    generation = packed.generation
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=True,
        temperature=generation.temperature,
        max_new_tokens=generation.max_new_tokens,
        top_k=0,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
        use_cache=False,
    )
    model.eval()  # type: ignore[no-untyped-call]
    return model


def save_huggingface(packed: PackedModel, folder: Path) -> None:
    """Write a directory that transformers loads: floats, configuration, tokenizer.

    Raises:
        PreflightError: The folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        to_huggingface(packed).save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(packed.folder / name, folder / name)
        write_atomic(folder / CODE, _CODE_TEXT)
        path = folder / "config.json"
        described = json.loads(path.read_text(encoding="utf-8"))
        described.setdefault("auto_map", {})
        write_atomic(path, json.dumps(described, indent=2, sort_keys=True) + "\n")
    except OSError as error:
        raise disk_error(error, folder) from None


def _leading(mask: Tensor | None) -> Tensor | None:
    """How many positions of padding stand before each row, (B,); None: nowhere any."""
    if mask is None:
        return None
    count = (mask.cumsum(-1) == 0).sum(-1)
    return count if bool(count.any()) else None


def _turned(x: Tensor, shift: Tensor) -> Tensor:
    """Rows (B, T, ...) turned to the left by (B,) places, what falls out comes in at the end."""
    length = x.shape[1]
    place = (torch.arange(length, device=x.device)[None] + shift[:, None]) % length
    while place.ndim < x.ndim:
        place = place[..., None]
    return x.gather(1, place.expand(x.shape))


def _floats(tensor: Stored) -> Tensor:
    if isinstance(tensor, PackedTernary):
        return unpack(tensor).float() * tensor.scale[:, None]
    if isinstance(tensor, Int8Weight):
        return tensor.weight.float() * tensor.scale[:, None]
    assert isinstance(tensor, Tensor)
    return tensor.float()


AutoConfig.register("cognate", CognateConfig, exist_ok=True)
AutoModelForCausalLM.register(CognateConfig, CognateForCausalLM, exist_ok=True)
