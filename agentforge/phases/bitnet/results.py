"""What Phase 4 found, and its report."""

from __future__ import annotations

import math
from dataclasses import dataclass

from agentforge_kernels import zero_tile_share

from agentforge.config.schema import RunConfig
from agentforge.evals.stats import Interval
from agentforge.phases.bitnet.agreement import Agreement
from agentforge.phases.bitnet.attempt import Quantised
from agentforge.phases.bitnet.calibrate import Sensitivity
from agentforge.phases.bitnet.gates import bitnet_gates
from agentforge.phases.bitnet.losses import Rise
from agentforge.phases.bitnet.measure import Scores
from agentforge.phases.bitnet.outputs import Packed, zero_weights
from agentforge.phases.bitnet.quantise import PHASE
from agentforge.phases.bitnet.sizes import role, stored_bytes, values
from agentforge.phases.bitnet.speed import AFTER, BEFORE, Speed
from agentforge.report import Cell, PhaseReport, Table
from agentforge.sizing import category

MB = 1e6


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything the report is made of.

    Attributes:
        config: The run.
        params: Parameters of the Phase 3 model.
        before, after: Report-split scores of the Phase 3 model and of the packed one.
        control: The full-precision copy with the same further training; None: there was none.
        drop: Relative loss of accuracy.
        losses: Search-split loss before and after, nats a token.
        sensitivities: Every matrix alone.
        untrained: All matrices at once, without fine-tuning.
        quantised: The attempt that was packed.
        packed: Its files.
        agreement: Of packed model and twin.
        speed: Times of a token; None where the native extension was not built.
        source: The model it started from.
        source_bytes: Of its file.
        hours: Clock time of the phase.
        early: Whether somebody asked to finish.
    """

    config: RunConfig
    params: int
    before: Scores
    after: Scores
    control: Scores | None
    drop: Interval
    losses: tuple[float, float]
    sensitivities: list[Sensitivity]
    untrained: Rise
    quantised: Quantised
    packed: Packed
    agreement: Agreement
    speed: Speed | None
    source: str
    source_bytes: int
    hours: float
    early: bool

    @property
    def ratio(self) -> float:
        """FP32 weight file over packed weight file."""
        return self.source_bytes / self.packed.weight_bytes


def phase_report(outcome: Outcome) -> PhaseReport:
    """Gates, tables and notes."""
    gates = bitnet_gates(
        outcome.config,
        outcome.params,
        outcome.ratio,
        outcome.drop,
        None if outcome.speed is None else outcome.speed.ratio,
        0 if outcome.speed is None else outcome.speed.after.n,
        outcome.packed.zero_share,
        outcome.packed.ternary_weights,
        outcome.agreement,
    )
    tables = (
        _scores_table(outcome),
        *(() if outcome.speed is None else (_speed_table(outcome.speed),)),
        _size_table(outcome),
        _layer_table(outcome),
        _sensitivity_table(outcome),
    )
    return PhaseReport(PHASE, "Phase 4: BitNet", gates, tables, tuple(_notes(outcome)))


def _scores_table(outcome: Outcome) -> Table:
    tasks = list(outcome.before.tasks)
    models = [outcome.before, outcome.after]
    if outcome.control is not None:
        models.append(outcome.control)
    rows: list[tuple[Cell, ...]] = [
        (
            m.name,
            m.accuracy,
            *(float(m.tasks[t].mean()) for t in tasks),
            m.converged,
            m.steps,
            math.exp(m.loss) if math.isfinite(m.loss) else None,
        )
        for m in models
    ]
    drop = outcome.drop
    return Table(
        "evaluation/comparison",
        "Before and after",
        ("model", "accuracy", *tasks, "form kept", "recursion steps", "perplexity"),
        tuple(rows),
        f"Report split, {outcome.before.items:,} items. Accuracy is the mean over the tasks. Lost: "
        f"{100 * drop.mean:.1f} % of it, 95 % interval [{100 * drop.low:.1f}, "
        f"{100 * drop.high:.1f}] over items (negative: gained), "
        f"{100 * (outcome.before.accuracy - outcome.after.accuracy):.1f} points.",
    )


def _speed_table(speed: Speed) -> Table:
    rows = [
        (n, t.median, t.low, t.high, t.n) for n, t in ((BEFORE, speed.before), (AFTER, speed.after))
    ]
    forms = list(speed.forms.values())
    counts = ", ".join(f"{forms.count(f)} {f}" for f in dict.fromkeys(forms))
    return Table(
        "evaluation/speed",
        "Time of a token",
        ("model", "us, median", "us, 10 %", "us, 90 %", "tokens"),
        tuple(rows),
        f"Batch 1, this machine, the run's threads, token by token in turns: {speed.ratio:.1f}x. "
        f"Products for one token: {counts}.",
    )


def _size_table(outcome: Outcome) -> Table:
    rows: dict[str, tuple[int, int]] = {}
    for name, tensor in outcome.packed.directory.tensors.items():
        kind = role(name, tensor)
        count, size = rows.get(kind, (0, 0))
        rows[kind] = (count + values(tensor), size + stored_bytes(tensor))
    found = sorted(rows.items(), key=lambda r: -r[1][1])
    packed = outcome.packed
    return Table(
        "compression/breakdown",
        "What the weights take on disk",
        ("role", "parameters", "bytes", "times smaller than FP32"),
        tuple((kind, count, size, 4 * count / size) for kind, (count, size) in found),
        f"FP32 weight file {outcome.source_bytes / MB:.3f} MB, packed weight file "
        f"{packed.weight_bytes / MB:.3f} MB: {outcome.ratio:.2f}x ({outcome.ratio / 2:.2f}x "
        f"against FP16); the whole directory with tokenizer and configuration takes "
        f"{packed.total_bytes / MB:.3f} MB.",
    )


def _layer_table(outcome: Outcome) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for module, packed in outcome.packed.directory.ternary.items():
        rows.append(
            (
                module,
                f"{packed.rows} x {packed.columns}",
                stored_bytes(packed),
                zero_weights(packed) / (packed.rows * packed.columns),
                zero_tile_share(packed),
                outcome.packed.zeros.get(module),
                float(packed.scale[0]),
            )
        )
    return Table(
        "compression/layers",
        "Ternary matrices",
        ("matrix", "shape", "bytes", "zero weights", "zero tiles", "zero activations", "scale"),
        tuple(rows),
        "Tiles are 64 x 16; zero activations are exact zeros of the int8 input, counted where "
        "the matrix has an input of its own.",
    )


def _sensitivity_table(outcome: Outcome) -> Table:
    found = sorted(outcome.sensitivities, key=lambda s: s.rise.value)
    return Table(
        "calibration/sensitivity",
        "Each matrix alone, without fine-tuning",
        ("matrix", "parameters", "loss added", "s.e.", "zeros"),
        tuple((s.name, s.params, s.rise.value, s.rise.stderr, s.zeros) for s in found),
        f"Held-out loss in nats a token over {found[0].rise.n if found else 0} items, least "
        f"sensitive first: the order of the stages. All at once, without fine-tuning: "
        f"+{outcome.untrained.value:.3f}.",
    )


def _notes(outcome: Outcome) -> list[str]:
    attempt, quantised = outcome.quantised.attempt, outcome.quantised
    documented = category(outcome.params)
    found = [
        f"Started from {outcome.source}; {attempt.name}, threshold {attempt.threshold:g} of the "
        f"mean magnitude, {quantised.steps} steps.",
        f"Zeros: {100 * outcome.packed.zero_share:.1f} % (Gaussian weights would give "
        f"{100 * _gaussian(attempt.threshold):.1f} % at this threshold without pruning, and "
        f"{100 * _gaussian(documented.zero_threshold):.1f} % at the documented "
        f"{documented.zero_threshold:g}).",
        f"Target of the size category {documented.name}: {documented.target_compression:g}x, "
        f"{100 * documented.expected_sparsity:.0f} % zeros, "
        f"{100 * documented.expected_quantised:.0f} % of the parameters ternary (here "
        f"{100 * outcome.packed.ternary_weights / outcome.params:.1f} %).",
        f"Without int8 inputs the twin agrees with the packed model at "
        f"{100 * outcome.agreement.without:.2f} % of {outcome.agreement.tokens:,} positions.",
    ]
    if outcome.control is not None:
        trained = outcome.control.accuracy
        found.append(
            f"A full-precision copy with the same further training reaches {trained:.3f}; "
            f"against it {100 * (1 - outcome.after.accuracy / max(trained, 1e-9)):.1f} % are lost."
        )
    elif outcome.config.bitnet.finetune.label_share == 0:
        found.append(
            "The fine-tuning's targets are the Phase 3 model's alone: a full-precision copy has "
            "nothing to learn from them, so that model is its own control."
        )
    if quantised.reverted:
        found.append(f"Kept in full precision: {', '.join(quantised.reverted)}.")
    if outcome.early:
        found.append("Ended early, as asked for.")
    return found


def _gaussian(threshold: float) -> float:
    """Share of Gaussian weights below a share of their mean magnitude."""
    return math.erf(threshold * math.sqrt(2 / math.pi) / math.sqrt(2))
