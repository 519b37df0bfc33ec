"""The machine's limits, the driver's word on a busy card, and the sampling thread."""

import os
import threading
from pathlib import Path

import pytest

from agentforge.errors import PreflightError
from agentforge.events import LogLine, ResourceSample
from agentforge.gpu import GpuState, used_card, wait_for_gpu
from agentforge.hardware import (
    CgroupMemory,
    ResourceSampler,
    cgroup_memory,
    disk_free,
    measure_machine,
    ram,
    sample,
    summarise,
    usable_cores,
)

GB = 10**9


class FakeDriver:
    """Cards whose free memory follows a list, one entry a look."""

    version = "555.1"

    def __init__(self, free, total=6 * GB, count=1):
        self.free = list(free)
        self.total = total
        self.count = count
        self.looks = 0

    def cards(self):
        free = self.free[min(self.looks, len(self.free) - 1)]
        self.looks += 1
        return [
            GpuState(i, f"GPU-{i}abc", "GTX 1660", self.total, free, 50.0, 61.0)
            for i in range(self.count)
        ]


class Clock:
    def __init__(self):
        self.now = 0.0
        self.slept = []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


def wait(driver, needed=4 * GB, timeout_s=3600.0, **kwargs):
    clock = Clock()
    events = []
    result = wait_for_gpu(
        needed,
        timeout_s=timeout_s,
        driver=driver,
        emit=events.append,
        clock=clock,
        sleep=clock.sleep,
        **kwargs,
    )
    return result, clock, events


def test_a_free_card_is_taken_at_once():
    result, clock, events = wait(FakeDriver([5 * GB]))
    assert result is True
    assert clock.slept == []
    assert events == []


def test_a_busy_card_is_waited_for_and_told_once():
    result, clock, events = wait(FakeDriver([1 * GB, 2 * GB, 5 * GB]))
    assert result is True
    assert clock.slept == [60.0, 60.0]
    assert [type(e) for e in events] == [LogLine, LogLine]
    assert "1.0 of 6.0 GB free, 4.0 GB are needed" in events[0].text
    assert "free after 120 s" in events[1].text


def test_waiting_ends_with_the_time_out_and_what_to_do():
    clock = Clock()
    with pytest.raises(PreflightError, match=r"after waiting 90 s") as caught:
        wait_for_gpu(4 * GB, timeout_s=90, driver=FakeDriver([GB]), clock=clock, sleep=clock.sleep)
    assert clock.slept == [60.0, 30.0]
    assert "nvidia-smi" in caught.value.remedy
    assert "resources.gpu_wait_s" in caught.value.remedy


def test_a_card_that_is_too_small_is_not_waited_for():
    with pytest.raises(PreflightError, match=r"has 6\.0 GB, 8\.0 GB are needed"):
        wait(FakeDriver([GB]), needed=8 * GB)


def test_waiting_can_be_given_up():
    result, clock, _ = wait(FakeDriver([GB]), stop=lambda: True)
    assert result is False
    assert clock.slept == []


def test_no_card_is_nothing_to_wait_for():
    result, _, _ = wait(FakeDriver([GB], count=0))
    assert result is True


@pytest.mark.parametrize(
    ("visible", "index"),
    [("0", 0), ("1", 1), ("1,0", 1), ("GPU-1", 1), ("", None), ("7", None), ("-1", None)],
)
def test_the_visible_card_is_the_one_that_is_used(visible, index):
    card = used_card(FakeDriver([GB], count=2), visible)
    assert (card.index if card else None) == index


def test_without_a_driver_there_is_no_card():
    assert used_card(None) is None


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_cgroup_v2_takes_the_lowest_limit_above_the_process(tmp_path: Path):
    root = tree(
        tmp_path / "cg",
        {
            "a/b/memory.max": "max\n",
            "a/memory.max": f"{4 * GB}\n",
            "a/memory.current": f"{3 * GB}\n",
            "a/memory.stat": f"anon 5\ninactive_file {GB}\n",
        },
    )
    own = tree(tmp_path, {"self": "0::/a/b\n"}) / "self"
    assert cgroup_memory(root, own) == CgroupMemory(limit=4 * GB, used=2 * GB)


def test_cgroup_v1_and_a_path_of_the_host(tmp_path: Path):
    root = tree(
        tmp_path / "cg",
        {
            "memory/memory.limit_in_bytes": f"{2 * GB}\n",
            "memory/memory.usage_in_bytes": f"{GB}\n",
        },
    )
    own = tree(tmp_path, {"self": "5:cpu:/x\n4:memory:/docker/0123\n0::/\n"}) / "self"
    assert cgroup_memory(root, own) == CgroupMemory(limit=2 * GB, used=GB)


def test_cgroup_v1_no_limit_is_a_huge_number(tmp_path: Path):
    root = tree(tmp_path / "cg", {"memory/memory.limit_in_bytes": "9223372036854771712\n"})
    own = tree(tmp_path, {"self": "4:memory:/\n"}) / "self"
    assert cgroup_memory(root, own) is None


def test_no_cgroups_at_all(tmp_path: Path):
    assert cgroup_memory(tmp_path, tmp_path / "absent") is None


def test_a_container_limit_counts_only_when_it_is_lower():
    machine = ram()
    limited = ram(CgroupMemory(limit=GB, used=GB // 4))
    assert limited.total == GB
    assert limited.available <= 3 * GB // 4
    assert limited.limited
    wide = ram(CgroupMemory(limit=2**50, used=0))
    assert wide.total == machine.total or machine.limited
    assert not wide.limited
    assert ram(CgroupMemory(limit=GB, used=2 * GB)).available == 0


def test_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path):
    assert disk_free(tmp_path / "a" / "b" / "c") > 0


def test_a_sample_has_no_card_fields_without_a_card(tmp_path: Path):
    found = sample(tmp_path, driver=None)
    assert 0 < found.rss_bytes < found.ram_total_bytes
    assert 0 < found.ram_used_bytes <= found.ram_total_bytes
    assert found.disk_free_bytes > 0
    assert found.vram_total_bytes is None
    assert found.gpu_percent is None


def test_a_sample_has_the_cards_figures(tmp_path: Path):
    found = sample(tmp_path, driver=FakeDriver([2 * GB]))
    assert found.vram_used_bytes == 4 * GB
    assert found.vram_total_bytes == 6 * GB
    assert (found.gpu_percent, found.temperature_c) == (50.0, 61.0)


def test_the_sampler_emits_until_it_is_left(tmp_path: Path):
    events = []
    enough = threading.Event()

    def emit(event):
        events.append(event)
        if len(events) >= 3:
            enough.set()

    with ResourceSampler(emit, tmp_path, interval_s=0.01, driver=FakeDriver([GB])):
        assert enough.wait(10)
    assert all(isinstance(e, ResourceSample) for e in events)
    assert "resources" not in {thread.name for thread in threading.enumerate()}


def test_a_failing_sample_is_told_once(tmp_path: Path):
    events = []

    class Broken(FakeDriver):
        def cards(self):
            raise OSError("the driver has gone")

    sampler = ResourceSampler(events.append, tmp_path, interval_s=1, driver=Broken([GB]))
    sampler.once()
    sampler.once()
    assert [type(e) for e in events] == [LogLine]
    assert "the driver has gone" in events[0].text


def test_the_summary_is_flat_and_needs_no_torch():
    found = summarise(FakeDriver([GB], count=2), with_torch=False)
    assert found.gpus == ("GTX 1660, 6.0 GB", "GTX 1660, 6.0 GB")
    assert found.gpu_driver == "555.1"
    assert found.torch is None
    assert found.cores == usable_cores() <= (os.cpu_count() or 1)
    assert found.row()["gpus"] == "GTX 1660, 6.0 GB; GTX 1660, 6.0 GB"
    assert all(v is None or isinstance(v, (str, int, float)) for v in found.row().values())


def test_the_cpu_is_measured_when_it_is_asked_for():
    found = measure_machine("cpu")
    assert found.cuda is False
    assert 0 < found.free_bytes <= ram().total
