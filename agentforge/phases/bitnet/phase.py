"""Phase 4 from a model that thinks to a packed directory, read from top to bottom."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

from agentforge.data.prepare import prepare
from agentforge.errors import RunSuspended
from agentforge.events import Alert, AlertAction, EvalDone, Progress, StageEnded, StageStarted
from agentforge.formats.packed import packed_module
from agentforge.interventions import decide, intervention
from agentforge.model.language_model import CognateLM
from agentforge.phases.bitnet.agreement import Agreement, compare_twin
from agentforge.phases.bitnet.attempt import Attempt, Quantised, run_attempt, train_control
from agentforge.phases.bitnet.calibrate import (
    Sensitivity,
    prepare_layers,
    projections,
    scan,
    set_norms,
)
from agentforge.phases.bitnet.data import BitData, prepare_bitnet
from agentforge.phases.bitnet.figures import final_figures
from agentforge.phases.bitnet.losses import Losses, Rise, measure_losses, rise
from agentforge.phases.bitnet.measure import (
    Scores,
    measure_scores,
    relative_drop,
    zero_activations,
)
from agentforge.phases.bitnet.outputs import Packed, pack_model
from agentforge.phases.bitnet.quantise import PHASE
from agentforge.phases.bitnet.results import Outcome, phase_report
from agentforge.phases.bitnet.sizes import compression, embedding_in_int8, fp32_bytes
from agentforge.phases.bitnet.speed import measure_speed
from agentforge.phases.cognate.bench import Bench
from agentforge.phases.cognate.models import between, fresh_model, make_bench
from agentforge.phases.cognate.training import load_weights
from agentforge.phases.quietstar.limits import parameters
from agentforge.phases.start import StartModel, load_start
from agentforge.report import PhaseReport
from agentforge.resources import TrainingResources
from agentforge.run.context import RunContext
from agentforge.sizing import SizeCategory, category

REASONER = "quietstar.reasoner"
STANDARD, CONSERVATIVE, CONTROL = "ternary", "conservative", "control"
CONSERVATIVE_THRESHOLD = 0.05
"""Of the documents' conservative configuration; it also keeps the last matrix in FP16."""
RAISED = 1.5
"""What the threshold is multiplied by for another quantisation (documented)."""

FALL_BACK = AlertAction(
    key="conservative",
    label="Fall back to the conservative form",
    consequence="threshold .05, the last matrix in FP16, no pruning; trained again from the start",
)
ACCEPT = AlertAction(
    key="accept", label="Keep it", consequence="the gate will show the loss as measured"
)


def run_bitnet(context: RunContext, resources: TrainingResources) -> PhaseReport:
    """Measure, calibrate, quantise in stages, fall back where it hurts, pack, compare, report.

    Raises:
        PreflightError: There is no model to start from.
        DataError: The reasoning data cannot be used.
        RunSuspended, RunAborted: They were asked for.
        AgentForgeError: A training went wrong, or a file is damaged.
    """
    config = context.config
    data = prepare(config)
    start = load_start(
        context,
        data.tokenizer,
        named=config.bitnet.model,
        key="bitnet.model",
        artifact=REASONER,
        missing="Phase 4 has nothing to start from: this run has no reasoner of Phase 3",
        phase_before="quietstar",
    )
    teacher, _ = fresh_model(context, data, resources)
    load_weights(teacher, start.weights, start.source)
    teacher.eval()
    size = category(parameters(teacher))
    samples = config.bitnet.calibration.samples or size.calibration_samples
    bits = prepare_bitnet(config, data, samples)
    bench = make_bench(context, data, resources)
    bench.phase = PHASE
    bench.finishing = f"{PHASE}.finished_early" in context.manifest.resolved
    bench.progress = (0, config.bitnet.finetune.steps)

    baseline = _scores("phase 3 model", bench, teacher, start, bits)
    losses, alone, together = _calibrate(bench, teacher, start, bits, size)
    quantised = _quantised(bench, teacher, start, bits, losses, alone, baseline, size)
    packed = _packed(bench, quantised, start, bits, size)
    agreement = compare_twin(bench, packed, bits)
    control = _control(bench, teacher, start, bits, quantised)
    return _report(
        bench, teacher, start, bits, losses, alone, together, quantised, packed, agreement, control
    )


def _scores(name: str, bench: Bench, model: CognateLM, start: StartModel, bits: BitData) -> Scores:
    """Search-split scores: what decides within the phase."""
    return measure_scores(
        name, bench.context.config, model, start.behaviour, bits, "search", lambda: between(bench)
    )


def _calibrate(
    bench: Bench, teacher: CognateLM, start: StartModel, bits: BitData, size: SizeCategory
) -> tuple[Losses, list[Sensitivity], Rise]:
    """Full-precision losses, every matrix's sensitivity, and all matrices at once untrained."""
    context, config = bench.context, bench.context.config
    context.emit(StageStarted(phase=PHASE, stage="calibrate", model="", steps=0))
    began = time.perf_counter()
    attempt = _standard(bench, teacher, size)
    model = copy.deepcopy(teacher)
    layers = prepare_layers(model, attempt.names, attempt.threshold, config.bitnet.quantise.norms)
    set_norms(model, start.behaviour, bits, bench.resources.micro_batch_tokens.value)
    items = sum(len(c) for c in bits.calibration)

    def tell(done: int, found: Sensitivity) -> None:
        for name, value in (
            ("calibration/sample", float(items)),
            ("calibration/layer_loss_rise", found.rise.value),
            ("calibration/scale_factors", float(layers[found.name].codes()[1])),
        ):
            context.emit(
                EvalDone(
                    phase=PHASE, model=STANDARD, name=name, value=value, n=items, split="search"
                )
            )
        context.emit(
            Progress(phase=PHASE, done=done, total=len(layers), unit="matrices", eta_s=-1.0)
        )

    batch = config.cognate.eval_batch
    losses, alone = scan(model, start.behaviour, bits, batch, lambda: between(bench), tell)
    for layer in layers.values():
        layer.strength = 1.0
    pad = bits.reasoning.prepared.tokenizer.pad_id
    untrained = measure_losses(
        model, start.behaviour, bits.calibration, pad, batch, lambda: between(bench)
    )
    wall_s = time.perf_counter() - began
    context.emit(StageEnded(phase=PHASE, stage="calibrate", model="", steps=0, wall_s=wall_s))
    return losses, alone, rise(losses, untrained)


def _standard(bench: Bench, model: CognateLM, size: SizeCategory) -> Attempt:
    """The configured form: every projection, the configured threshold and pruning."""
    wanted = bench.context.config.bitnet
    return Attempt(
        name=STANDARD,
        threshold=wanted.quantise.threshold or size.zero_threshold,
        names=tuple(projections(model)),
        pruned=wanted.quantise.pruned_tiles,
        steps=wanted.finetune.steps,
    )


def _quantised(
    bench: Bench,
    teacher: CognateLM,
    start: StartModel,
    bits: BitData,
    losses: Losses,
    alone: list[Sensitivity],
    baseline: Scores,
    size: SizeCategory,
) -> Quantised:
    """The standard attempt; with more zeros if they are short; conservative if it lost too much."""
    attempt = _standard(bench, teacher, size)

    def run(attempt: Attempt, begin: Quantised | None = None) -> Quantised:
        return run_attempt(bench, teacher, start.behaviour, bits, losses, alone, attempt, begin)

    found = run(attempt)
    found = _with_more_zeros(bench, found, start, size, run)
    if _too_much_lost(bench, found, start, bits, baseline):
        found = run(
            Attempt(
                name=CONSERVATIVE,
                threshold=CONSERVATIVE_THRESHOLD,
                names=attempt.names[:-1],
                pruned=0.0,
                steps=attempt.steps,
            )
        )
    return found


def _with_more_zeros(
    bench: Bench,
    found: Quantised,
    start: StartModel,
    size: SizeCategory,
    run: Callable[[Attempt, Quantised | None], Quantised],
) -> Quantised:
    """Raise the threshold while both the zeros and the compression are short of their targets."""
    wanted = bench.context.config.bitnet
    for count in range(1, wanted.quantise.requantisations + 1):
        if len(found.reverted) == len(found.attempt.names):
            break
        before = fp32_bytes(start.bytes, start.weights)
        ratio = compression(found.model, before, int8_embedding=False)
        if found.zeros >= wanted.quantise.least_sparsity or ratio >= size.target_compression:
            break
        threshold = RAISED * found.attempt.threshold
        bench.context.emit(
            Alert(
                id=f"{PHASE}-requantise-{count}",
                level="warning",
                code="sparsity",
                title="Too few zeros: quantised again with a higher threshold",
                detail=f"{100 * found.zeros:.1f} % zeros (wanted "
                f"{100 * wanted.quantise.least_sparsity:.0f} %) and {ratio:.2f}x (wanted "
                f"{size.target_compression:g}x); threshold {found.attempt.threshold:g} -> "
                f"{threshold:g}",
            )
        )
        steps = max(1, int(wanted.quantise.staged_share * wanted.finetune.steps))
        again = Attempt(f"requantised_{count}", threshold, found.attempt.names, 0.0, steps)
        found = run(again, found)
    return found


def _too_much_lost(
    bench: Bench, found: Quantised, start: StartModel, bits: BitData, baseline: Scores
) -> bool:
    """Whether to fall back: the accuracy on the search split fell by more than is allowed."""
    context, config = bench.context, bench.context.config
    after = _scores(found.attempt.name, bench, found.model, start, bits)
    drop = relative_drop(baseline, after, config.seed)
    for name, value in (
        ("finetune/accuracy", after.accuracy),
        ("finetune/accuracy_recovery", after.accuracy / max(baseline.accuracy, 1e-9)),
    ):
        context.emit(
            EvalDone(
                phase=PHASE,
                model=found.attempt.name,
                name=name,
                value=value,
                n=after.items,
                split="search",
            )
        )
    if not drop.mean > config.bitnet.accuracy_drop or bench.finishing:
        return False
    verdict = decide(
        intervention(
            alert_id=f"{PHASE}-accuracy-drop",
            code="accuracy_drop",
            title="The ternary model lost too much",
            detail=f"accuracy {baseline.accuracy:.3f} -> {after.accuracy:.3f} on the search "
            f"split, {100 * drop.mean:.1f} % [{100 * drop.low:.1f}, {100 * drop.high:.1f}] of it; "
            f"allowed {100 * config.bitnet.accuracy_drop:g} %",
            cause="too few steps of fine-tuning, or a task ternary weights cannot hold",
            actions=(FALL_BACK, ACCEPT),
            recommended="conservative",
        ),
        context,
    )
    if verdict == "stop":
        raise RunSuspended("the ternary model lost too much; its weights are kept")
    return verdict == "conservative"


def _packed(
    bench: Bench, quantised: Quantised, start: StartModel, bits: BitData, size: SizeCategory
) -> Packed:
    """The packed directory and its twin on disk."""
    config = bench.context.config
    tokens = bench.resources.micro_batch_tokens.value
    zeros = zero_activations(quantised.model, start.behaviour, bits, tokens)
    int8 = embedding_in_int8(
        config.bitnet.int8_embedding,
        quantised.model,
        fp32_bytes(start.bytes, start.weights),
        size.target_compression,
    )
    return pack_model(bench, quantised, start.behaviour, zeros, int8)


def _control(
    bench: Bench,
    teacher: CognateLM,
    start: StartModel,
    bits: BitData,
    quantised: Quantised,
) -> Scores | None:
    """The full-precision copy with the same further training; None where there is none to give.

    With targets from the teacher alone the copy has no gradient: it is the Phase 3 model.
    """
    config = bench.context.config
    if not config.bitnet.control or config.bitnet.finetune.label_share == 0 or bench.finishing:
        return None
    trained = train_control(bench, teacher, start.behaviour, bits, quantised.steps, CONTROL)
    model = copy.deepcopy(teacher)
    load_weights(model, trained.weights, CONTROL)
    return measure_scores(
        "full precision, trained on",
        config,
        model.eval(),
        start.behaviour,
        bits,
        "report",
        lambda: between(bench),
    )


def _report(
    bench: Bench,
    teacher: CognateLM,
    start: StartModel,
    bits: BitData,
    losses: Losses,
    alone: list[Sensitivity],
    together: Rise,
    quantised: Quantised,
    packed: Packed,
    agreement: Agreement,
    control: Scores | None,
) -> PhaseReport:
    """Compare on the report split what was handed in and what is on disk now."""
    context, config = bench.context, bench.context.config
    context.emit(StageStarted(phase=PHASE, stage="compare", model="", steps=0))
    began = time.perf_counter()

    def scores(name: str, model: CognateLM) -> Scores:
        return measure_scores(
            name, config, model, start.behaviour, bits, "report", lambda: between(bench)
        )

    def look() -> None:
        between(bench)

    loaded = packed_module(packed.directory)
    pad = bits.reasoning.prepared.tokenizer.pad_id
    after = measure_losses(
        loaded, start.behaviour, bits.calibration, pad, config.cognate.eval_batch, look
    )
    before = scores("Phase 3 model", teacher)
    ternary = scores("packed ternary model", loaded)
    outcome = Outcome(
        config=config,
        params=parameters(teacher),
        before=before,
        after=ternary,
        control=control,
        drop=relative_drop(before, ternary, config.seed),
        losses=(losses.mean, after.mean),
        sensitivities=alone,
        untrained=together,
        quantised=quantised,
        packed=packed,
        agreement=agreement,
        speed=measure_speed(teacher, packed),
        source=start.source,
        source_bytes=fp32_bytes(start.bytes, start.weights),
        hours=context.phase_hours(PHASE),
        early=bench.finishing,
    )
    for figure in final_figures(outcome):
        context.emit(figure)
    wall_s = time.perf_counter() - began
    context.emit(StageEnded(phase=PHASE, stage="compare", model="", steps=0, wall_s=wall_s))
    report = phase_report(outcome)
    packed.write_card(report)
    return report
