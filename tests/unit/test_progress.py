"""What a batch run says on standard error."""

import io

from rich.console import Console

from agentforge.events import (
    ActionTaken,
    ControlAck,
    Event,
    GateChecked,
    GenerationDone,
    Heartbeat,
    LogLine,
    Progress,
    RunEnded,
    RunStarted,
    StageEnded,
    StageStarted,
    Stamped,
    StepDone,
    decode,
    encode,
)
from agentforge.sinks.progress import LiveProgress, PlainProgress, make_progress, notice


def step(number: int, loss: float = 1.5) -> StepDone:
    return StepDone(
        phase="cognate",
        model="base",
        step=number,
        steps=100,
        loss=loss,
        lr=0.02,
        grad_norm=1.0,
        tokens=10,
        tokens_per_s=12345.0,
    )


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def stamped(event: Event) -> Stamped:
    """An event as it comes out of the log, where NaN has become null."""
    found = decode(encode(Stamped(seq=1, t=0.0, event=event)))
    assert found is not None
    return found


def test_plain_lines_come_every_ten_seconds_and_at_changes():
    stream, clock = io.StringIO(), Clock()
    sink = PlainProgress(stream, interval_s=10.0, clock=clock)
    sink.show(stamped(StageStarted(phase="cognate", stage="train", model="base", steps=100)))
    sink.show(stamped(Progress(phase="cognate", done=10, total=40, unit="step", eta_s=125.0)))
    for number in range(1, 26):
        clock.now = float(number)
        sink.show(stamped(step(number)))
        sink.show(stamped(Heartbeat(pid=1)))
    lines = [line.split(" ", 1)[1] for line in stream.getvalue().splitlines()]
    assert lines == [
        "cognate train base, 100 steps",
        "cognate base step 10/100 loss 1.500 lr 2.00e-02 12,345 tok/s, phase 25 %, 2m05s left",
        "cognate base step 20/100 loss 1.500 lr 2.00e-02 12,345 tok/s, phase 25 %, 2m05s left",
    ]


def test_numbers_that_are_not_finite_do_not_break_it():
    stream, clock = io.StringIO(), Clock()
    sink = PlainProgress(stream, interval_s=0.0, clock=clock)
    sink.show(stamped(Progress(phase="cognate", done=1, total=4, unit="s", eta_s=float("nan"))))
    sink.show(stamped(step(1, float("nan"))))
    assert "loss nan" in stream.getvalue()
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    live = LiveProgress(console)
    live.show(stamped(step(1, float("inf"))))
    live.close()


def test_small_events_are_not_told():
    gate = GateChecked(name="g", value=1.0, op=">", threshold=0.0, n=1, source="s", status="met")
    short = StageEnded(phase="cognate", stage="eval", model="base", steps=0, wall_s=1.0)
    assert [notice(e) for e in (gate, short, Heartbeat(pid=1), step(1))] == [None] * 4


def test_notices():
    started = RunStarted(run_id="r", preset="demo", phases=("cognate",), seed=3, resumed=True)
    assert notice(started) == "run r resumed: cognate, seed 3"
    taken = ActionTaken(alert_id="a", action="stop", by="on_alert=auto")
    assert notice(taken) == "action stop for a (by on_alert=auto)"
    refused = ControlAck(id="1", verb="set", ok=False, step=3, message="no such key")
    assert notice(refused) == "set refused: no such key"
    assert notice(LogLine(level="warning", source="data", text="x")) == "warning: data: x"
    assert notice(LogLine(level="info", source="data", text="x")) == "data: x"
    assert notice(RunEnded(state="finished", reason="", exit_code=0)) == "run finished"


def test_the_live_form_needs_a_terminal():
    assert isinstance(make_progress(io.StringIO()), PlainProgress)


def test_the_live_form_shows_stage_and_notices():
    stream = io.StringIO()
    live = LiveProgress(Console(file=stream, force_terminal=True, width=120))
    live.show(stamped(StageStarted(phase="cognate", stage="train", model="base", steps=100)))
    live.show(stamped(step(40)))
    live.show(stamped(LogLine(level="info", source="data", text="[16] datasets")))
    live.note("suspending")
    live.close()
    text = stream.getvalue()
    assert "cognate train base" in text
    assert "40/100" in text
    assert "data: [16] datasets" in text
    assert "suspending" in text


def generation(number: int) -> GenerationDone:
    return GenerationDone(
        phase="evomerge",
        generation=number,
        generations=50,
        best_fitness=1.3,
        avg_fitness=1.2,
        worst_fitness=1.1,
        fitness_std=0.05,
        champion_fitness=1.31,
        diversity=0.04,
        best_combo="101",
        wall_s=1.0,
    )


def test_generations_are_told_every_ten_seconds():
    stream, clock = io.StringIO(), Clock()
    sink = PlainProgress(stream, interval_s=10.0, clock=clock)
    for number in range(25):
        clock.now += 1.0
        sink.show(stamped(Progress(phase="evomerge", done=1, total=50, unit="g", eta_s=65.0)))
        sink.show(stamped(generation(number)))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert "evomerge generation 0/50 champion +31.0 % over the parents' mean" in lines[0]
    assert "combo 101" in lines[0]
    assert "1m05s left" in lines[1]


def test_the_live_bar_follows_generations():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    sink = LiveProgress(console)
    sink.show(stamped(StageStarted(phase="evomerge", stage="evolution", model="", steps=50)))
    sink.show(stamped(generation(7)))
    task = sink._bar.tasks[0]
    assert (task.completed, task.total) == (7, 50)
    assert "+31.0 %" in task.fields["figures"]
    sink.close()
