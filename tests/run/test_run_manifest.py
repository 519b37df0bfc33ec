from __future__ import annotations

import json
import math
import os

import pytest

from agentforge.config.schema import RunConfig
from agentforge.errors import RunError
from agentforge.run.layout import RunLayout
from agentforge.run.manifest import (
    MANIFEST_VERSION,
    Artifact,
    PhaseRecord,
    Resolved,
    load_manifest,
    manifest_config,
    new_manifest,
    save_manifest,
)


def test_everything_comes_back(layout: RunLayout, config: RunConfig) -> None:
    manifest = new_manifest(
        layout, config, {"seed": "--set"}, hardware={"cpu": "a cpu", "gpu": None, "ram": 1.5}
    )
    manifest.resolved["resources.threads"] = Resolved(value=2, reason="two cores")
    manifest.phases["cognate"] = PhaseRecord(status="running", started=1.25)
    manifest.artifacts["base"] = Artifact(
        name="base", phase="cognate", path="artifacts/base.safetensors", bytes=3, sha256="ab"
    )
    manifest.tags.append("first try \u00e4")
    manifest.state = "paused"
    save_manifest(layout, manifest)
    read = load_manifest(layout)
    assert read == manifest
    assert manifest_config(layout, read) == config
    assert read.run_id == layout.run_id
    assert read.versions["torch"]
    assert read.versions["python"].count(".") == 2
    assert not [name for name in os.listdir(layout.root) if name.startswith(".tmp")]


def test_infinities_survive(layout: RunLayout, config: RunConfig) -> None:
    manifest = new_manifest(layout, config, {})
    manifest.resolved["x"] = Resolved(value=math.inf, reason="no limit")
    save_manifest(layout, manifest)
    assert load_manifest(layout).resolved["x"].value == math.inf


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no manifest.json"),
        ("{", "cannot read"),
        ("\xff\xfe", "cannot read"),
        ("[]", "no schema_version"),
        ('{"schema_version": "1"}', "no schema_version"),
        ('{"schema_version": 1}', "run_id"),
        (f'{{"schema_version": {MANIFEST_VERSION + 1}}}', "reads up to"),
    ],
)
def test_a_bad_manifest_is_one_clear_error(
    layout: RunLayout, content: str | None, message: str
) -> None:
    layout.manifest.unlink()
    if content is not None:
        layout.manifest.write_text(content, encoding="latin-1")
    with pytest.raises(RunError, match=message) as caught:
        load_manifest(layout)
    assert str(layout.root) in caught.value.message
    assert caught.value.remedy


def test_a_key_this_version_lacks_is_named(layout: RunLayout) -> None:
    row = json.loads(layout.manifest.read_text())
    row["config"]["model"]["wings"] = 2
    layout.manifest.write_text(json.dumps(row))
    with pytest.raises(RunError, match=r"config\.model\.wings"):
        manifest_config(layout, load_manifest(layout))
