"""Step 1, prompt baking: training on thoughts until free generations keep to the form."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from agentforge.config.schema import OptimConfig, RunConfig
from agentforge.data.batching import IGNORE, micro_batches
from agentforge.data.corpus import Corpus
from agentforge.events import EvalDone
from agentforge.model.behaviour import Behaviour
from agentforge.model.language_model import CognateLM
from agentforge.model.loss import HaltingObjective
from agentforge.phases.cognate.artifacts import Trained
from agentforge.phases.cognate.bench import Bench
from agentforge.phases.cognate.models import between, get_model, make_bench
from agentforge.phases.cognate.stages import Stage
from agentforge.phases.cognate.training import Training
from agentforge.phases.quietstar.data import SKILLS, THOUGHTS, ReasoningData
from agentforge.phases.quietstar.limits import most_tokens
from agentforge.reasoning.strategies import STRATEGIES
from agentforge.resources import TrainingResources
from agentforge.run.context import RunContext
from agentforge.sizing import thought_band
from agentforge.thinking.questions import Judged, ask
from agentforge.thinking.thought import ThoughtReader

PHASE = "quietstar"
BAKED = "baked"
FURTHER = "baked_further"
FINISHED_EARLY = f"{PHASE}.finished_early"
SEED = 7
"""Added to a thousand times the run's seed: the data order of baking."""


def bake_stage(config: RunConfig, behaviour: Behaviour, params: int) -> Stage:
    """The training that bakes; it is run as the model it starts from."""
    baking = config.quietstar.baking
    return Stage(
        model=BAKED,
        parent="champion",
        steps=baking.steps,
        mix={THOUGHTS: 1.0 - baking.replay, SKILLS: baking.replay},
        optim=_optim(config, baking.lr_share, baking.warmup_steps),
        objective=_objective(config),
        train_behaviour=Behaviour(write_budget=behaviour.write_budget),
        behaviour=behaviour,
        seed=config.seed * 1000 + SEED,
        max_extensions=baking.max_extensions,
        extension_steps=baking.extension_steps,
        target_fitness=baking.target,
        phase=PHASE,
        batch_size=baking.batch_size or thought_band(params).baking_batch,
        curriculum_ends=baking.curriculum,
        answer_weight=baking.answer_weight,
        halve_on_extension=True,
    )


def further_stage(
    config: RunConfig, behaviour: Behaviour, params: int, steps: int, name: str
) -> Stage:
    """Baking on: as the reinforcement's fair competitor, or because the reward is too low."""
    stage = bake_stage(config, behaviour, params)
    baking = config.quietstar.baking
    # At the height the baking's own cool-down ended the loss does not move: half of its peak.
    return Stage(
        model=name,
        parent=BAKED,
        steps=steps,
        mix=stage.mix,
        optim=_optim(config, baking.lr_share / 2, 0),
        objective=stage.objective,
        train_behaviour=stage.train_behaviour,
        behaviour=behaviour,
        seed=stage.seed + 1,
        curriculum=False,
        phase=PHASE,
        batch_size=stage.batch_size,
        answer_weight=stage.answer_weight,
    )


def bake(
    context: RunContext,
    reasoning: ReasoningData,
    resources: TrainingResources,
    model: CognateLM,
    stage: Stage,
    start: Mapping[str, Tensor],
    start_sha256: str,
) -> Trained:
    """Bake, or go on with it, or read the result back.

    Raises:
        RunSuspended, RunAborted, TrainingError: As every training.
    """
    bench = make_bench(context, reasoning.prepared, resources)
    bench.phase = PHASE
    bench.progress = (0, stage.steps)
    bench.finishing = FINISHED_EARLY in context.manifest.resolved
    reader = ThoughtReader(reasoning.prepared.tokenizer)
    if stage.target_fitness:
        bench.fitness = lambda training: _convergence(bench, training, reasoning, reader)
    else:
        bench.fitness = lambda _: float("nan")
    return get_model(bench, stage, model, start, start_sha256)


def _convergence(
    bench: Bench, training: Training, reasoning: ReasoningData, reader: ThoughtReader
) -> float:
    """Converged share of free generations, the mean over strategies; told by strategy too."""
    config = bench.context.config.quietstar
    judged = ask(
        training.model,
        training.stage.behaviour,
        reader,
        reasoning.search,
        temperature=config.temperature,
        seed=bench.context.config.seed,
        max_new_tokens=most_tokens(bench.context.config, training.model),
        between=lambda: between(bench),
    )
    for event in baking_figures(judged, training.stage.model, "search"):
        bench.context.emit(event)
    loss, accuracy, tokens = token_accuracy(
        training.model,
        training.stage.behaviour,
        reasoning.held_out,
        reasoning.prepared.tokenizer.pad_id,
        bench.context.config.cognate.eval_batch,
    )
    for name, value in (
        ("baking/val_loss", loss),
        ("baking/val_accuracy", accuracy),
        ("baking/total_epochs", training.epochs()),
    ):
        bench.context.emit(
            EvalDone(
                phase=PHASE,
                model=training.stage.model,
                name=name,
                value=value,
                n=tokens,
                split="search",
            )
        )
    return overall_convergence(judged)


@torch.no_grad()
def token_accuracy(
    model: CognateLM, behaviour: Behaviour, corpus: Corpus, pad_id: int, batch: int
) -> tuple[float, float, int]:
    """Nats per masked token, share of most likely tokens that are right, and tokens.

    It looks much better than free generations do: one wrong token spoils a thought.
    """
    training = model.training
    model.eval()
    loss, right, count = 0.0, 0, 0
    items = [(corpus.name, i) for i in range(len(corpus))]
    for start in range(0, len(items), batch):
        for micro in micro_batches(
            {corpus.name: corpus}, items[start : start + batch], batch * 512, pad_id
        ):
            micro = micro.to(model.rope_cos.device)
            wanted = micro.targets != IGNORE
            labels = micro.targets[wanted]
            states = model(micro.ids, behaviour).answer[wanted]
            logits = model.embedding.logits(states).float()
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
            right += int((logits.argmax(-1) == labels).sum())
            count += len(labels)
    model.train(training)
    return loss / count, right / count, count


def overall_convergence(judged: Judged) -> float:
    """Unweighted mean over the strategies (the documents' overall figure)."""
    found = judged.by_strategy(judged.converged)
    return sum(found.values()) / len(found)


def baking_figures(judged: Judged, model: str, split: str) -> list[EvalDone]:
    """Figures of free generations under the mission's W&B names."""
    found = judged.by_strategy(judged.converged)
    n = len(judged.answered)
    overall = overall_convergence(judged)
    values = {f"baking/accuracy_{s}": v for s, v in found.items()}
    values |= {
        "baking/accuracy_overall": overall,
        "baking/thinking_token_usage": judged.share(judged.opened),
        "baking/strategy_token_usage": sum(a.strategy is not None for a in judged.answered) / n,
        "baking/convergence_progress": overall / 0.85,
        "baking/answer_accuracy": judged.share(judged.right),
        "baking/thought_accuracy": judged.share(judged.thought_right),
    }
    count = {s.name: judged.strategies.count(s.name) for s in STRATEGIES}
    return [
        EvalDone(
            phase=PHASE,
            model=model,
            name=name,
            value=value,
            n=count.get(name.removeprefix("baking/accuracy_"), n),
            split=split,
        )
        for name, value in values.items()
    ]


def _optim(config: RunConfig, share: float, warmup: int) -> OptimConfig:
    optim = config.cognate.optim
    return optim.model_copy(
        update={
            "muon_lr": optim.muon_lr * share,
            "adamw_lr": optim.adamw_lr * share,
            "warmup_steps": warmup,
        }
    )


def _objective(config: RunConfig) -> HaltingObjective:
    cognate = config.cognate
    return HaltingObjective(
        cognate.base.halting_prior, cognate.halting_beta, early_stride=cognate.early_stride
    )
