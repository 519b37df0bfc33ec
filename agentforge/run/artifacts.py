"""Files a phase hands on: noted in the manifest with their hash, and told of."""

from __future__ import annotations

from agentforge.events import ArtifactSaved
from agentforge.run.context import RunContext
from agentforge.run.manifest import Artifact
from agentforge.run.tensor_file import SavedFile


def note_artifact(context: RunContext, phase: str, name: str, saved: SavedFile) -> None:
    """Put a written file into the manifest and tell of it."""
    artifact = Artifact(
        name=name,
        phase=phase,
        path=context.layout.relative(saved.path),
        bytes=saved.bytes,
        sha256=saved.sha256,
    )
    context.manifest.artifacts[artifact.name] = artifact
    context.save_manifest()
    context.emit(
        ArtifactSaved(
            phase=phase,
            name=artifact.name,
            path=artifact.path,
            bytes=artifact.bytes,
            sha256=artifact.sha256,
        )
    )
