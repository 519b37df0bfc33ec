"""The two results on disk: the packed directory and the dequantised twin."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from agentforge_kernels import PackedTernary, unpack

from agentforge.formats.packed import (
    CONFIG,
    FILES,
    WEIGHTS,
    Generation,
    PackedModel,
    directory_sizes,
    read_packed,
    save_packed,
    write_card,
)
from agentforge.formats.twin import save_twin
from agentforge.model.behaviour import Behaviour
from agentforge.phases.bitnet.attempt import Quantised
from agentforge.phases.bitnet.card import model_card, unfinished_card
from agentforge.phases.bitnet.quantise import PHASE
from agentforge.phases.cognate.artifacts import artifact_name
from agentforge.phases.cognate.bench import Bench
from agentforge.phases.quietstar.limits import most_tokens
from agentforge.report import PhaseReport
from agentforge.run.artifacts import note_artifact
from agentforge.run.atomic import write_atomic
from agentforge.run.tensor_file import SavedFile, file_sha256

MODEL, TWIN, SETTINGS = "model", "twin", "compression_config"


@dataclass(frozen=True, slots=True)
class Packed:
    """What is on disk.

    Attributes:
        directory: The packed directory, read back.
        twin: The FP16 file.
        int8_embedding: Whether the embedding table is int8.
        sizes: Bytes of the directory's files by name.
        zeros: Share of zero int8 activations in the input of every ternary matrix, by its name.
    """

    directory: PackedModel
    twin: Path
    int8_embedding: bool
    sizes: dict[str, int]
    zeros: dict[str, float]

    @property
    def folder(self) -> Path:
        """The directory."""
        return self.directory.folder

    @property
    def ternary_weights(self) -> int:
        """Weights in ternary matrices, as they are on disk."""
        return sum(t.rows * t.columns for t in self.directory.ternary.values())

    @property
    def zero_share(self) -> float:
        """Zeros among them; 0 where there are none."""
        zeros = sum(zero_weights(t) for t in self.directory.ternary.values())
        return zeros / self.ternary_weights if self.ternary_weights else 0.0

    @property
    def weight_bytes(self) -> int:
        """Of the weight file."""
        return self.sizes[WEIGHTS]

    @property
    def total_bytes(self) -> int:
        """Of the directory; the list of files and the card, which follow, not counted."""
        return sum(v for n, v in self.sizes.items() if n not in (FILES, "README.md"))

    def write_card(self, report: PhaseReport) -> None:
        """The model card with everything that was measured."""
        write_card(self.folder, model_card(self.folder.name, report))


def zero_weights(matrix: PackedTernary) -> int:
    """How many of a matrix's weights are 0."""
    return int((unpack(matrix) == 0).sum())


def pack_model(
    bench: Bench,
    quantised: Quantised,
    behaviour: Behaviour,
    zeros: dict[str, float],
    int8_embedding: bool,
) -> Packed:
    """Write both results and note them in the manifest."""
    context, config = bench.context, bench.context.config
    folder = context.layout.artifacts / PHASE / MODEL
    tokenizer = bench.data.tokenizer
    save_packed(
        folder,
        quantised.model,
        behaviour,
        tokenizer,
        Generation(
            temperature=config.quietstar.temperature,
            max_new_tokens=most_tokens(config, quantised.model),
            thinking=True,
        ),
        int8_embedding=int8_embedding,
        zero_activations=zeros,
        card=unfinished_card(folder.name),
    )
    for file in (WEIGHTS, CONFIG):
        path = folder / file
        saved = SavedFile(path, path.stat().st_size, file_sha256(path))
        name = MODEL if file == WEIGHTS else f"{MODEL}_config"
        note_artifact(context, PHASE, artifact_name(name, PHASE), saved)
    twin = context.layout.artifacts / PHASE / "twin.safetensors"
    saved = save_twin(twin, quantised.model, behaviour, tokenizer.fingerprint)
    note_artifact(context, PHASE, artifact_name(TWIN, PHASE), saved)
    settings = context.layout.artifacts / PHASE / "compression_config.json"
    row = {
        "attempt": quantised.attempt.name,
        "threshold": quantised.attempt.threshold,
        "ternary": [n for n in quantised.attempt.names if n not in quantised.reverted],
        "reverted": list(quantised.reverted),
        "pruned_tiles": quantised.attempt.pruned,
        "steps": quantised.steps,
        "zeros": round(quantised.zeros, 6),
        "int8_embedding": int8_embedding,
        "settings": config.bitnet.model_dump(mode="json"),
    }
    write_atomic(settings, json.dumps(row, indent=1) + "\n")
    note_artifact(
        context,
        PHASE,
        artifact_name(SETTINGS, PHASE),
        SavedFile(settings, settings.stat().st_size, file_sha256(settings)),
    )
    return Packed(read_packed(folder), twin, int8_embedding, directory_sizes(folder), zeros)
