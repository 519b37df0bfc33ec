"""The fallback teacher: a causal language model from a local folder or GGUF file.

A small model cannot keep to a JSON schema. It fills in a form instead: a few-shot text that it
continues with question, reasoning and answer; we put the tokens around what it wrote. The result
goes through the same validation, journal and resume as an endpoint's replies.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from agentforge.config.generator import GeneratorConfig, TeacherConfig
from agentforge.data.thinking_tokens import THINKING_END, THINKING_START, THINKING_TOKENS
from agentforge.errors import ConfigError, DataError
from agentforge.reasoning.api.client import Answer
from agentforge.reasoning.api.cost import Usage
from agentforge.reasoning.prompts import TOPICS
from agentforge.reasoning.strategies import Strategy

NEW_TOKENS = 160
"""Tokens one filled form may take."""
_FORM = re.compile(
    r"(?P<prompt>.+?)\s*\n\s*Reasoning:\s*(?P<reasoning>.+?)\s*\n\s*Answer:\s*(?P<answer>[^\n]+)",
    re.DOTALL,
)
_SHOTS = (
    (
        "Tom has 3 apples and buys 4 more. How many apples does he have?",
        "He starts with 3. Buying adds 4 to that. Both numbers count apples, so they are added.",
        "7",
    ),
    (
        "The shop opens at 9 and it is 7 now. Can Ann buy bread now?",
        "The shop is closed before 9. Now it is earlier than that, so the door is locked.",
        "No",
    ),
)


class LocalTeacher:
    """Writes examples with a transformers model; a `Client` of the generation.

    Args:
        place: Folder of a model, or a GGUF file.
        config: Sampling settings.

    Raises:
        ConfigError: There is no model at that place, or `gguf` is not installed.
        DataError: transformers cannot load it.
    """

    def __init__(self, place: Path, config: GeneratorConfig) -> None:
        self._config = config
        folder, gguf = _find(place)
        try:
            import transformers

            named: dict[str, Any] = {"gguf_file": gguf} if gguf else {}
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, **named
            )
            self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, **named
            )
        except ImportError as error:
            raise ConfigError(
                f"{place} cannot be loaded: {str(error).splitlines()[0]}",
                remedy="pip install gguf accelerate, for GGUF files",
            ) from None
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise DataError(
                f"transformers cannot load {place}: {str(error).splitlines()[0]}",
                remedy="name a folder with config.json, tokenizer and weights, or a .gguf file",
            ) from None
        self._model.eval()  # type: ignore[no-untyped-call]

    async def ask(
        self, teacher: TeacherConfig, strategy: Strategy, request: str, count: int, number: int
    ) -> Answer:
        """Fill `count` forms; the reply is the JSON array that an endpoint would send."""
        import torch

        text = form_text(strategy, TOPICS[number % len(TOPICS)])
        ids = self._tokenizer(text, return_tensors="pt")
        # Every call draws its own numbers, so that a resumed generation does not repeat itself.
        torch.manual_seed(number * 1000 + len(strategy.name))
        pad = self._tokenizer.pad_token_id
        with torch.no_grad():
            written = self._model.generate(
                **ids,
                do_sample=self._config.temperature > 0,
                temperature=self._config.temperature or None,
                top_p=self._config.top_p,
                max_new_tokens=NEW_TOKENS,
                num_return_sequences=count,
                pad_token_id=self._tokenizer.eos_token_id if pad is None else pad,
            )
        start = ids["input_ids"].shape[1]
        forms = [self._tokenizer.decode(row[start:], skip_special_tokens=True) for row in written]
        rows = [read_form(form, strategy) for form in forms]
        usage = Usage(int(start), int(written[:, start:].numel()))
        return Answer("ok", text=json.dumps(rows), usage=usage)

    async def close(self) -> None:
        """Nothing to release."""


def form_text(strategy: Strategy, topic: str) -> str:
    """The few-shot text whose last form the model fills in."""
    head = f"Short questions on {topic}. The reasoning must {strategy.instruction}.\n\n"
    shots = "".join(f"Question: {q}\nReasoning: {r}\nAnswer: {a}\n\n" for q, r, a in _SHOTS)
    return f"{head}{shots}Question:"


def read_form(text: str, strategy: Strategy) -> dict[str, str]:
    """A filled form as an example's fields; empty fields where the model did not keep to it."""
    # A small model often begins the next form instead of answering this one.
    text = re.split(r"\n\s*Question:", text)[0]
    found = _FORM.match(text.strip())
    if found is None:
        return {"prompt": text.strip()[:200] or "-", "reasoning": "-", "answer": "-"}
    reasoning = " ".join(found["reasoning"].split())
    for token in THINKING_TOKENS:
        reasoning = reasoning.replace(token, "")
    return {
        "prompt": " ".join(found["prompt"].split()),
        "reasoning": f"{THINKING_START}{strategy.token} {reasoning} {THINKING_END}",
        "answer": found["answer"].strip(),
        "difficulty": strategy.difficulty,
    }


def local_config(config: GeneratorConfig, place: Path) -> GeneratorConfig:
    """The generator's settings for one local teacher: free, one call at a time, no rate limit."""
    name = place.stem if place.is_file() else place.name
    return config.model_copy(
        update={
            "teachers": (TeacherConfig(name=f"local/{name}", input_usd=0, output_usd=0),),
            "concurrency": 1,
            "requests_per_minute": 1e6,
            "per_call": min(4, config.per_call),
            "tries": 1,
        }
    )


def _find(place: Path) -> tuple[str, str | None]:
    """Folder, and the name of the GGUF file when there is one."""
    if place.is_file() and place.suffix == ".gguf":
        return str(place.parent), place.name
    if place.is_dir():
        files = sorted(place.glob("*.gguf"))
        if (place / "config.json").is_file() or not files:
            return str(place), None
        return str(place), files[0].name
    raise ConfigError(
        f"--model-dir {place} is neither a folder nor a .gguf file",
        remedy="name a folder with a transformers model, or a GGUF file",
    )
