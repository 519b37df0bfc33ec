from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest

from agentforge.errors import ExitCode, PreflightError, RunError
from agentforge.run import atomic
from agentforge.run.atomic import DiskFullError, write_atomic
from agentforge.run.layout import RunLayout, check_writable, create_run_dir, find_run, run_dirs


def make_run(runs: Path, name: str, created: float) -> RunLayout:
    layout = RunLayout(runs / name)
    layout.root.mkdir(parents=True)
    layout.manifest.write_text(f'{{"created": {created}}}')
    return layout


def test_names_are_readable_and_never_collide(tmp_path: Path) -> None:
    made = [create_run_dir(tmp_path, "My Preset/2", 42) for _ in range(40)]
    assert len({layout.run_id for layout in made}) == 40
    year, _, _, _, *rest = made[0].run_id.split("-")
    assert year.isdigit()
    assert rest[:3] == ["my", "preset", "2"]
    assert len(rest[3]) == 4
    assert all(layout.checkpoints.is_dir() and layout.root.is_absolute() for layout in made)


def test_latest_is_the_run_created_last_whatever_its_name(tmp_path: Path) -> None:
    make_run(tmp_path, "2026-12-01-0000-demo-aaaa", created=100.0)
    newest = make_run(tmp_path, "2026-11-01-0000-demo-bbbb", created=200.0)
    assert find_run(tmp_path, "latest") == newest


def test_a_run_is_found_by_id_part_and_path(tmp_path: Path) -> None:
    first = make_run(tmp_path, "2026-12-01-0000-demo-aaaa", 1.0)
    make_run(tmp_path, "2026-12-01-0000-demo-aabb", 2.0)
    assert find_run(tmp_path, first.run_id) == first
    assert find_run(tmp_path, "aaaa") == first
    assert find_run(tmp_path / "elsewhere", str(first.root)) == first


@pytest.mark.parametrize(
    ("which", "text"),
    [("latest", "no runs in"), ("abcd", "no run 'abcd'"), ("", "no run ''")],
)
def test_an_empty_folder_says_how_to_start(tmp_path: Path, which: str, text: str) -> None:
    with pytest.raises(RunError, match=text) as caught:
        find_run(tmp_path / "runs", which)
    assert "--batch" in caught.value.remedy


def test_a_wrong_name_tells_what_exists(tmp_path: Path) -> None:
    for i in range(11):
        make_run(tmp_path, f"2026-12-01-0000-demo-{i:04d}", float(i))
    with pytest.raises(RunError) as caught:
        find_run(tmp_path, "nope")
    assert "demo-0010" in caught.value.remedy
    assert "demo-0000" not in caught.value.remedy
    assert "3 more" in caught.value.remedy
    with pytest.raises(RunError, match="names 11 runs"):
        find_run(tmp_path, "demo")
    (tmp_path / "stranger").mkdir()
    with pytest.raises(RunError, match="not a run directory"):
        find_run(tmp_path, str(tmp_path / "stranger"))
    assert len(list(run_dirs(tmp_path))) == 11


def test_a_file_in_the_way_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(PreflightError, match="runs"):
        create_run_dir(tmp_path / "runs", "demo", 1)
    with pytest.raises(PreflightError, match="runs"):
        create_run_dir(tmp_path / "runs" / "deeper", "demo", 1)


def test_write_atomic_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomic(path, "first")
    write_atomic(path, "zweite Fassung: \u00e4")
    assert path.read_text(encoding="utf-8") == "zweite Fassung: \u00e4"
    assert os.listdir(tmp_path) == ["a.json"]
    assert path.stat().st_mode & 0o777 == 0o644
    write_atomic(path, b"")
    assert path.read_bytes() == b""


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_atomic(path, "old")

    def full(handle: int, data: object) -> None:
        os.write(handle, b"par")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic, "write_all", full)
    with pytest.raises(DiskFullError, match=r"a\.json: the disk is full") as caught:
        write_atomic(path, "new")
    assert caught.value.exit_code == ExitCode.PREFLIGHT
    assert caught.value.code == "disk"
    assert "--resume" in caught.value.remedy
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EIO])
def test_a_refusing_disk_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    for write in (lambda: write_atomic(tmp_path / "x", "y"), lambda: check_writable(tmp_path)):
        with pytest.raises(PreflightError, match="cannot write") as caught:
            write()
        assert str(tmp_path) in caught.value.message
        assert os.strerror(number) in caught.value.message
        assert not isinstance(caught.value, DiskFullError)


def test_a_really_full_disk(small_disk: Path) -> None:
    path = small_disk / "kept.json"
    write_atomic(path, "kept")
    with pytest.raises(DiskFullError):
        write_atomic(path, b"x" * 2_000_000)
    assert path.read_text() == "kept"
    assert os.listdir(small_disk) == ["kept.json"]
    (small_disk / "ballast").write_bytes(b"x" * (os.statvfs(small_disk).f_bavail * 4096))
    with pytest.raises(PreflightError):
        create_run_dir(small_disk, "demo", 1)


def test_a_read_only_file_system(small_disk: Path) -> None:
    if os.system(f"mount -o remount,ro {small_disk}"):
        pytest.skip("remounting is not permitted")
    with pytest.raises(PreflightError, match="[Rr]ead-only") as caught:
        create_run_dir(small_disk, "demo", 1)
    assert "--run-dir" in caught.value.remedy
    with pytest.raises(PreflightError, match="[Rr]ead-only"):
        check_writable(small_disk)
