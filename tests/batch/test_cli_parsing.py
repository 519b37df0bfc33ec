"""The command line before any run starts: help, mistakes, verbs."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import agentforge
from agentforge.cli import main
from agentforge.config.presets import preset_names

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith("AGENTFORGE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


def imported(*arguments: str) -> tuple[int, set[str]]:
    """Exit code and top-level modules after a command, in a fresh interpreter."""
    script = (
        "import sys\n"
        "from agentforge.cli import main\n"
        f"code = main({list(arguments)!r})\n"
        "names = {name.split('.')[0] for name in sys.modules}\n"
        "sys.stderr.write('\\nMODULES ' + ' '.join(sorted(names)))\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, set(done.stderr.rsplit("MODULES ", 1)[1].split())


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("--version",),
        ("presets",),
        ("config", "show"),
        ("status",),
        ("--batch", "--set", 'phases=["cognate"]', "--until", "bitnet"),
        ("clean", "--dry-run"),
    ],
)
def test_small_verbs_and_mistakes_start_without_torch_or_a_toolkit(arguments):
    code, modules = imported(*arguments)
    assert code in (0, 3)
    assert not modules & {"torch", "transformers", "datasets", "wandb", "textual", "agentforge_tui"}


def test_help_names_every_option_of_the_batch_run(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for option in (
        "--batch --preset --config --set --data-dir --run-dir --until --resume --json --on-alert "
        "--max-minutes --dry-run"
    ).split():
        assert option in out
    for verb in "status report doctor presets config data clean control".split():
        assert verb in out
    assert "5 suspended" in out


def test_version(capsys):
    code, out, _ = run(capsys, "--version")
    assert (code, out) == (0, f"agentforge-tui, version {agentforge.__version__}\n")


def test_without_batch_and_terminal_there_is_a_hint(capsys):
    code, out, err = run(capsys, "--preset", "smoke")
    assert code == 2
    assert out == ""
    assert "no terminal" in err
    assert "--batch" in err


def test_with_a_terminal_but_no_console_yet(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    code, _, err = run(capsys)
    assert code == 2
    assert "later release" in err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--batch", "--preset", "lptop"), 2, "nearest: laptop"),
        (("--batch", "--config", "gone.toml"), 2, "--config gone.toml: no such file"),
        (("--batch", "--set", "modle.d_model=3"), 2, "nearest: model.d_model"),
        (("--batch", "--set", "cognate.base.steps=0"), 2, "integer of at least 1"),
        (("--batch", "--set", "seed"), 2, "KEY=VALUE"),
        (("--batch", "--until", "nowhere"), 2, "'nowhere' is not one of"),
        (("--batch", "--max-minutes", "0"), 2, "--max-minutes"),
        (("--batch", "--on-alert", "shout"), 2, "'shout' is not one of"),
        (("--batch", "--nope"), 2, "--nope"),
        (("nope",), 2, "nope"),
        (("--batch", "status"), 2, "--batch and the verb status"),
        (("--batch", "--preset", "demo", "--data-dir", "x"), 2, "data.source = 'world'"),
        (("--batch", "--data-dir", "gone"), 3, "gone"),
        (
            ("--batch", "--set", 'phases=["cognate"]', "--until", "bitnet"),
            3,
            "add bitnet to phases",
        ),
        (("--batch", "--resume", "latest"), 1, "no runs in"),
        (("--batch", "--resume", "latest", "--preset", "demo"), 2, "--preset with --resume"),
        (("report", "nope"), 1, "nope"),
        (("report",), 2, "RUN"),
        (("control", "latest", "jump"), 2, "'jump' is not one of"),
        (("control", "latest", "set"), 2, "needed: one KEY=VALUE"),
        (("control", "latest", "pause", "now"), 2, "takes no arguments"),
        (("data", "fetch"), 2, "--data-dir"),
        (("data", "check", "--data-dir", "gone"), 3, "does not exist"),
        (("config", "validate", "gone.toml"), 2, "no such file"),
    ],
)
def test_mistakes(capsys, arguments, code, says):
    found, out, err = run(capsys, *arguments)
    assert found == code, err
    assert says in err
    assert "Traceback" not in err
    assert out == ""
    assert not list(Path.cwd().iterdir())


def test_presets_are_listed(capsys):
    code, out, _ = run(capsys, "presets")
    assert code == 0
    assert all(name in out for name in preset_names())


def test_config_show_has_values_and_origins(capsys, monkeypatch):
    monkeypatch.setenv("AGENTFORGE_SEED", "5")
    code, out, _ = run(capsys, "config", "show", "--preset", "smoke", "--set", "on_alert=stop")
    assert code == 0
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert lines["seed"].split() == ["seed", "env", "AGENTFORGE_SEED", "5"]
    assert "--set" in lines["on_alert"]
    code, out, _ = run(capsys, "config", "show", "--json")
    tree = json.loads(out)
    assert tree["config"]["preset"] == "demo"
    assert tree["provenance"]["seed"] == "env AGENTFORGE_SEED"


def test_config_validate(capsys, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('preset = "smoke"\n[cognate.base]\nsteps = 3\n')
    assert run(capsys, "config", "validate", str(file))[:2] == (
        0,
        f"{file}: valid (preset smoke)\n",
    )
    file.write_text("[cognate.base]\nstep = 3\n")
    code, _, err = run(capsys, "config", "validate", str(file))
    assert code == 2
    assert "nearest: cognate.base.steps" in err


def test_dry_run_prints_a_plan_and_starts_nothing(capsys, tmp_path):
    code, out, _ = run(capsys, "--batch", "--preset", "smoke", "--dry-run", "--json")
    plan = json.loads(out)
    assert code == 0
    assert plan["ready"] is True
    assert plan["parameters"]["total"] == sum(
        v for k, v in plan["parameters"].items() if k != "total"
    )
    assert [t["model"] for t in plan["trainings"]][:4] == ["base", "reasoning", "memory", "speed"]
    assert not list(tmp_path.iterdir())
    late = ("--set", 'phases=["cognate"]', "--until", "bitnet")
    code, out, _ = run(capsys, "--batch", "--preset", "smoke", "--dry-run", *late)
    assert code == 3
    assert "-> phases:" in out


def records(folder: Path) -> str:
    gsm8k = folder / "gsm8k"
    gsm8k.mkdir(parents=True)
    rows = [
        {"question": f"What is {i} plus {i}?", "answer": f"{i}+{i}={2 * i}\n#### {2 * i}"}
        for i in range(40)
    ]
    (gsm8k / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def test_dry_run_reads_the_records(capsys, tmp_path):
    folder = records(tmp_path / "data")
    arguments = ["--batch", "--data-dir", folder, "--dry-run", "--json", "--set"]
    code, out, _ = run(capsys, *arguments, "data.use_hub=false")
    plan = json.loads(out)
    assert code == 0
    found = {d["dataset"]: (d["status"], d["records"]) for d in plan["data"]}
    assert found["gsm8k"] == ("local", 40)
    assert found["svamp"][0] == "missing"
    with (tmp_path / "data" / "gsm8k" / "train.jsonl").open("a") as file:
        file.write("{broken\n")
    code, out, _ = run(capsys, *arguments, "data.use_hub=false")
    assert code == 3
    assert {c["name"] for c in json.loads(out)["checks"] if not c["ok"]} == {"data"}


def test_data_list_and_check(capsys, tmp_path):
    code, out, _ = run(capsys, "data", "list", "--json")
    assert code == 0
    assert len(json.loads(out)) == 16
    folder = records(tmp_path / "data")
    code, out, _ = run(
        capsys, "data", "check", "--data-dir", folder, "--set", "data.use_hub=false", "--json"
    )
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0
    assert rows["gsm8k"]["records"] == 40
    assert rows["piqa"]["status"] == "missing"
    assert rows["asdiv"]["why_off"]


def test_doctor(capsys):
    code, out, _ = run(capsys, "doctor", "--no-network", "--json")
    findings = {f["name"]: f for f in json.loads(out)}
    assert code == 0
    assert findings["torch"]["state"] == "ok"
    assert "core(s)" in findings["cpu"]["detail"]


def doctor_on_kernels(capsys):
    code, out, _ = run(capsys, "doctor", "--no-network", "--json")
    return code, {f["name"]: f for f in json.loads(out)}["kernels"]


def test_doctor_says_which_kernels_compute(capsys, monkeypatch):
    from agentforge_kernels import dispatch, native

    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    code, found = doctor_on_kernels(capsys)
    assert code == 0
    if native.extension is None:
        assert found["state"] == "note"
        assert found["detail"].startswith("fallback")
    else:
        level = native.extension.isa_name(native.extension.isa())
        assert found["state"] == "ok"
        assert found["detail"].startswith(f"native, {level}, ")
        assert "OpenMP" in found["detail"]
    monkeypatch.setattr(dispatch, "extension", None)
    monkeypatch.setattr(dispatch, "unavailable_reason", lambda: "no compiler was found")
    code, found = doctor_on_kernels(capsys)
    assert (code, found["state"]) == (0, "note")
    assert "because no compiler was found" in found["detail"]


def test_doctor_refuses_kernels_that_are_forced_and_cannot_run(capsys, monkeypatch):
    from agentforge_kernels import dispatch

    monkeypatch.setenv(dispatch.VARIABLE, "reference")
    code, found = doctor_on_kernels(capsys)
    assert (code, found["state"]) == (0, "note")
    assert "forced by AGENTFORGE_KERNELS" in found["detail"]
    monkeypatch.setenv(dispatch.VARIABLE, "native")
    monkeypatch.setattr(dispatch, "extension", None)
    monkeypatch.setattr(dispatch, "unavailable_reason", lambda: "no compiler was found")
    dispatch._choose.cache_clear()
    code, found = doctor_on_kernels(capsys)
    dispatch._choose.cache_clear()
    assert (code, found["state"]) == (3, "missing")
    assert "no compiler was found" in found["detail"]
    assert "allowed here: auto, reference" in found["detail"]
    monkeypatch.setenv(dispatch.VARIABLE, "fast")
    code, found = doctor_on_kernels(capsys)
    assert (code, found["state"]) == (3, "missing")
    assert "auto, triton, native, reference" in found["detail"]


def test_doctor_on_a_gpu_the_forced_kernels_do_not_serve(monkeypatch):
    from agentforge_kernels import BackendUnavailableError

    from agentforge.doctor import Finding, _kernels

    def explain(device):
        if device == "cpu":
            raise BackendUnavailableError("it computes on a GPU")
        return "triton 3.7.1, turing configurations"

    monkeypatch.setattr("agentforge_kernels.explain", explain)
    assert _kernels(gpu=True) == [
        Finding("gpu kernels", "ok", "triton 3.7.1, turing configurations"),
        Finding("kernels", "note", "it computes on a GPU"),
    ]
    assert _kernels(gpu=True, torch_works=False)[0].state == "note"
    assert _kernels(gpu=False) == [Finding("kernels", "missing", "it computes on a GPU")]


def test_clean_lists_and_removes_old_runs(capsys, tmp_path):
    from agentforge.config.load import load_config
    from agentforge.run.layout import create_run_dir
    from agentforge.run.manifest import new_manifest, save_manifest

    loaded = load_config(preset="smoke", env={})
    layouts = [create_run_dir(tmp_path / "runs", "smoke", seed) for seed in range(2)]
    for layout, age in zip(layouts, (20, 0), strict=True):
        manifest = new_manifest(layout, loaded.config, loaded.provenance)
        manifest.created = time.time() - age * 86_400
        save_manifest(layout, manifest)
    old, new = layouts
    code, out, _ = run(capsys, "clean", "--dry-run")
    assert code == 0
    assert old.run_id in out
    assert new.run_id not in out
    assert old.root.exists()
    code, out, _ = run(capsys, "clean")
    assert code == 0
    assert "removed 1 runs" in out
    assert not old.root.exists()
    assert new.root.exists()
    assert "nothing to remove" in run(capsys, "clean")[1]
