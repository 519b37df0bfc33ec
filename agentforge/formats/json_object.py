"""Reading a JSON object that says what a model is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from agentforge.errors import CheckpointError


def read_json_object(path: Path, remedy: str) -> dict[str, Any]:
    """The object in a file.

    Args:
        path: The file.
        remedy: What to do when it cannot be read.

    Raises:
        CheckpointError: It is missing, no JSON, or no object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing", remedy=remedy) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is no JSON: {error}", remedy=remedy) from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} is no JSON object", remedy=remedy)
    return found
