"""All that would stop a run is told at once, with what to do."""

from pathlib import Path

import pytest

import agentforge.preflight as preflight
from agentforge.config.load import load_config
from agentforge.config.schema import RunConfig
from agentforge.errors import ExitCode, PreflightError
from agentforge.gpu import GpuState
from agentforge.hardware import Ram
from agentforge.preflight import check_run, disk_bytes_needed, planned_phases, require

LATE = ('phases=["cognate", "quietstar"]', "until=bitnet")


def config(*sets, preset="demo", data_dir=None) -> RunConfig:
    flags = {"data.data_dir": ("--data-dir", data_dir)} if data_dir else {}
    return load_config(preset=preset, env={}, sets=sets, flags=flags).config


def failed(checks) -> dict[str, str]:
    return {c.name: c.detail for c in checks if not c.ok}


class Card:
    version = "1"

    def cards(self):
        return [GpuState(0, "GPU-a", "GTX 1660", 6 * 10**9, 5 * 10**9)]


def test_a_good_machine_passes(tmp_path: Path):
    checks = check_run(config(), tmp_path / "runs")
    assert failed(checks) == {}
    assert [c.name for c in checks] == [
        "phases",
        "write permission",
        "disk",
        "device",
        "memory",
        "data",
    ]
    require(checks)
    assert not (tmp_path / "runs").exists()


def test_every_failure_is_named_with_its_remedy(tmp_path: Path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setattr(preflight, "disk_free", lambda _: 10**6)
    monkeypatch.setattr(preflight, "ram", lambda: Ram(10**9, 10**7, True))
    checks = check_run(
        config("resources.device=cuda", *LATE, preset="full", data_dir="/no/such/folder"),
        blocked,
        phases=("cognate", "quietstar"),
    )
    assert set(failed(checks)) == {
        "phases",
        "write permission",
        "disk",
        "device",
        "memory",
        "data",
    }
    with pytest.raises(PreflightError) as caught:
        require(checks)
    text = str(caught.value)
    assert caught.value.exit_code == ExitCode.PREFLIGHT
    assert text.startswith("6 things are missing")
    assert "until = bitnet is not among phases" in text
    assert "1.0 MB free" in text
    assert "/no/such/folder" in text
    assert text.count("->") == 6


def test_one_failure_is_one_sentence(tmp_path: Path):
    with pytest.raises(PreflightError, match="^phases: until = bitnet is not among") as caught:
        require(check_run(config(*LATE), tmp_path))
    assert "add bitnet to phases" in caught.value.remedy


def test_disk_is_computed_from_shapes(tmp_path: Path, monkeypatch):
    full = config(preset="full")
    needed = disk_bytes_needed(full, planned_phases(full), 25_000_000)
    monkeypatch.setattr(preflight, "disk_free", lambda _: int(1.5 * needed))
    assert "disk" not in failed(check_run(full, tmp_path, n_params=25_000_000))
    monkeypatch.setattr(preflight, "disk_free", lambda _: int(1.5 * needed) - 1)
    assert "disk" in failed(check_run(full, tmp_path, n_params=25_000_000))
    written = check_run(full, tmp_path, n_params=25_000_000, bytes_written=needed)
    assert "disk" not in failed(written)


def test_a_card_that_is_there(tmp_path: Path):
    checks = check_run(config("resources.device=cuda"), tmp_path, driver=Card())
    device = next(c for c in checks if c.name == "device")
    assert device.ok
    assert device.detail == "GTX 1660, 5.00 GB of 6.00 GB free"


def test_more_memory_asked_for_than_there_is(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(preflight, "ram", lambda: Ram(8 * 10**9, 4 * 10**9, False))
    found = failed(check_run(config("resources.memory_budget_gb=6"), tmp_path))
    assert found == {"memory": "resources.memory_budget_gb asks for 6.00 GB, 4.00 GB are free"}


def test_records_need_a_folder_or_the_hub(tmp_path: Path):
    found = failed(check_run(config("data.use_hub=false", preset="laptop"), tmp_path))
    assert "no data folder" in found["data"]
    found = failed(check_run(config("data.datasets=gsm9k", preset="laptop"), tmp_path))
    assert "gsm8k" in found["data"] or "gsm9k" in found["data"]


def test_phases_end_with_until():
    whole = config('phases=["cognate", "evomerge", "bitnet"]', "until=evomerge")
    assert planned_phases(whole) == ("cognate", "evomerge")
    assert planned_phases(config()) == ("cognate", "evomerge", "quietstar", "bitnet")
