"""Phase 1's controls in an engine of their own (`agentforge.phases.side`).

They need nothing but the number of steps the base took, so they train while the specialists do.
"""

from __future__ import annotations

from agentforge.config.schema import AblationName
from agentforge.data.prepare import prepare
from agentforge.errors import ExitCode
from agentforge.phases.cognate.artifacts import artifact_name
from agentforge.phases.cognate.models import fresh_model, get_model, make_bench
from agentforge.phases.cognate.stages import ablation_stage
from agentforge.phases.resources import controls_beside, settle_resources
from agentforge.phases.side import SideRun
from agentforge.run.context import RunContext
from agentforge.run.manifest import Resolved

PHASE = "cognate"
CONTROLS = "cognate.controls"
"""Phase of the controls' events: displays follow the run's own models."""
FOLDER = "controls"
BASE_STEPS = "cognate.base_steps"


def start_controls(context: RunContext, base_steps: int) -> SideRun | None:
    """Start the engine of the controls where it is worth it and something is left to train."""
    config = context.config
    names = [artifact_name(a) for a in config.cognate.ablations]
    device = str(context.manifest.resolved["resources.device"].value)
    done = all(name in context.manifest.artifacts for name in names)
    if done or not controls_beside(config, device):
        return None
    given = {BASE_STEPS: Resolved(value=base_steps, reason="the base took them")}
    return SideRun(context, FOLDER, PHASE, given)


def train_controls(context: RunContext) -> int:
    """The pipeline of the second engine: every control that is not finished yet."""
    steps = context.manifest.resolved[BASE_STEPS].value
    assert isinstance(steps, int)
    resources = settle_resources(context)
    data = prepare(context.config)
    model, fresh = fresh_model(context, data, resources)
    bench = make_bench(context, data, resources)
    name: AblationName
    for name in context.config.cognate.ablations:
        get_model(bench, ablation_stage(context.config, name, steps), model, fresh, "")
    return ExitCode.OK
