"""Phase 3's control, baked on for the reinforcement's compute, in an engine of its own.

It needs the baked model alone, so it trains while the reinforcement runs; see
`agentforge.phases.side`.
"""

from __future__ import annotations

import dataclasses

from agentforge.data.prepare import prepare
from agentforge.errors import ExitCode
from agentforge.phases.cognate.artifacts import Trained, load_named
from agentforge.phases.cognate.models import fresh_model
from agentforge.phases.quietstar.bake import FURTHER, PHASE, bake, further_stage
from agentforge.phases.quietstar.data import prepare_reasoning
from agentforge.phases.quietstar.limits import parameters
from agentforge.phases.resources import controls_beside, settle_resources
from agentforge.phases.side import SideRun
from agentforge.run.context import RunContext
from agentforge.run.layout import RunLayout
from agentforge.run.manifest import Resolved, load_manifest

FOLDER = "further"
STEPS, BAKED_NAME = "quietstar.further_steps", "quietstar.further_parent"


def start_further(context: RunContext, baked: str, steps: int) -> SideRun | None:
    """Start the engine of the control where it is worth it and the control is not trained yet.

    Args:
        context: The run.
        baked: Name of the artefact that is baked on.
        steps: Steps of the control.
    """
    device = str(context.manifest.resolved["resources.device"].value)
    done = f"{PHASE}.{FURTHER}" in context.manifest.artifacts
    if done or not steps or not controls_beside(context.config, device):
        return None
    given = {
        STEPS: Resolved(value=steps, reason="as much compute as the reinforcement"),
        BAKED_NAME: Resolved(value=baked, reason="the model the reinforcement begins with"),
    }
    return SideRun(context, FOLDER, PHASE, given)


def train_further(context: RunContext) -> int:
    """The pipeline of the second engine: bake on from the run's baked model."""
    given = context.manifest.resolved
    steps, name = given[STEPS].value, str(given[BAKED_NAME].value)
    assert isinstance(steps, int)
    parent = RunLayout(context.layout.root.parent)
    baked = _parents_model(context, parent, name)
    resources = settle_resources(context)
    data = prepare(context.config)
    reasoning = prepare_reasoning(context.config, data)
    model, _ = fresh_model(context, data, resources)
    stage = further_stage(context.config, baked.behaviour, parameters(model), steps, FURTHER)
    bake(context, reasoning, resources, model, stage, baked.weights, baked.sha256)
    return ExitCode.OK


def _parents_model(context: RunContext, parent: RunLayout, name: str) -> Trained:
    """A model of the run this engine works beside."""
    theirs = dataclasses.replace(context, layout=parent, manifest=load_manifest(parent))
    found = load_named(theirs, name)
    assert found is not None
    return found
