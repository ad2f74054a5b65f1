"""What is read from /proc and /sys, on folders laid out as Linux does."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from monograph.runtime import processor
from monograph.runtime.environment import describe_environment, environment_doubts, look_before
from monograph.runtime.processor import (
    frequency_governor,
    quota_cores,
    requested_threads,
    requesting_threads,
    running_threads,
    throttled_count,
    turbo,
)
from monograph.runtime.session import default_threads


@pytest.fixture
def tree(tmp_path: Path):
    """Write files below a folder; returns the folder of cgroups and the file that names one's own."""

    def write(own: str, files: dict[str, str]) -> tuple[Path, Path]:
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
        (tmp_path / "own").write_text(own)
        return tmp_path / "cgroup", tmp_path / "own"

    return write


def test_a_quota_of_version_2(tree):
    assert quota_cores(*tree("0::/\n", {"cpu.max": "150000 100000"})) == 1.5


def test_a_quota_of_an_enclosing_group_holds(tree):
    files = {"a.slice/b.service/cpu.max": "400000 100000", "a.slice/cpu.max": "200000 100000", "cpu.max": "max 100000"}
    assert quota_cores(*tree("0::/a.slice/b.service\n", files)) == 2


def test_a_quota_of_version_1(tree):
    files = {"cpu/docker/x/cpu.cfs_quota_us": "50000", "cpu/docker/x/cpu.cfs_period_us": "100000"}
    assert quota_cores(*tree("3:cpuset:/\n2:cpu,cpuacct:/docker/x\n", files)) == 0.5


def test_a_container_that_sees_the_hosts_path_finds_its_own_at_the_mount(tree):
    files = {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}
    assert quota_cores(*tree("1:cpu:/docker/of/the/host\n", files)) == 1


@pytest.mark.parametrize(
    ("own", "files"),
    [
        ("0::/\n", {"cpu.max": "max 100000"}),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}),
        ("0::/\n", {"cpu.max": "damaged"}),
        ("0::/\n", {}),
        ("", {"cpu.max": "100000 100000"}),
    ],
)
def test_no_limit(tree, own: str, files: dict[str, str]):
    assert quota_cores(*tree(own, files)) is None


def test_throttling_is_counted(tree):
    stat = "usage_usec 5\nnr_periods 100\nnr_throttled 7\nthrottled_usec 9"
    assert throttled_count(*tree("0::/a\n", {"a/cpu.stat": stat, "cpu.stat": "usage_usec 5"})) == 7
    assert throttled_count(*tree("0::/b\n", {"b/cpu.stat": "usage_usec 5"})) is None


def test_governor_and_turbo(tmp_path: Path):
    assert frequency_governor(tmp_path) is None
    assert turbo(tmp_path) is None
    for name, text in {"cpu0/cpufreq/scaling_governor": "powersave\n", "intel_pstate/no_turbo": "1\n"}.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    assert frequency_governor(tmp_path) == "powersave"
    assert turbo(tmp_path) is False
    (tmp_path / "intel_pstate/no_turbo").write_text("0\n")
    assert turbo(tmp_path) is True
    (tmp_path / "intel_pstate/no_turbo").unlink()
    (tmp_path / "cpufreq").mkdir()
    (tmp_path / "cpufreq/boost").write_text("0")
    assert turbo(tmp_path) is False


def test_this_process():
    cores = processor.affinity()
    assert cores is None or len(cores) <= os.cpu_count()
    quota = quota_cores()
    assert quota is None or quota > 0


def test_a_measurement_tells_the_state_of_the_machine():
    environment = describe_environment(1, False, look_before())
    assert environment.affinity == processor.affinity()
    assert environment.quota_cores == quota_cores()
    assert environment.load_before is not None
    assert environment.load_after is not None
    assert describe_environment(1, False).load_after is None, "nothing was measured"


def test_doubts_are_told_each_with_its_remedy():
    calm = replace(describe_environment(2, True), affinity=(0, 1), quota_cores=None, governor="performance", throttled_periods=0)
    assert environment_doubts(calm) == []
    (quota,) = environment_doubts(replace(calm, quota_cores=1.5))
    assert "2 threads on a cgroup quota of 1.5 cores" in quota
    assert quota.endswith("--threads 1")
    assert "in 3 periods" in environment_doubts(replace(calm, throttled_periods=3))[0]
    assert "2 threads may run on 1 cores only" in environment_doubts(replace(calm, affinity=(1,)))[0]
    assert "governor is powersave" in environment_doubts(replace(calm, governor="powersave"))[0]


def test_threads_that_run_are_counted(tmp_path: Path):
    (tmp_path / "loadavg").write_text("1.50 1.25 0.69 4/103 14365\n")
    assert running_threads(tmp_path / "loadavg") == 4
    assert running_threads(tmp_path / "missing") is None


@pytest.mark.parametrize(
    ("variables", "threads"),
    [
        ({}, None),
        ({"OMP_NUM_THREADS": "4"}, 4),
        ({"OMP_NUM_THREADS": "4,2"}, 4),
        ({"OMP_NUM_THREADS": "many"}, None),
        ({"OMP_NUM_THREADS": "0"}, None),
        ({"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "1"}, 1),
        ({"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "2"}, None),  # torchrun's own doing
        ({"OMP_NUM_THREADS": "2", "LOCAL_WORLD_SIZE": "2"}, 2),
    ],
)
def test_threads_that_the_user_has_set(variables: dict[str, str], threads: int | None):
    assert requested_threads(variables) == threads


def test_the_option_wins_over_the_variable_and_ends_with_its_block(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with requesting_threads(1):
        assert (requested_threads(), os.environ["OMP_NUM_THREADS"]) == (1, "1")
    assert requested_threads() == 4
    with requesting_threads(None):
        assert requested_threads() == 4
    monkeypatch.delenv("OMP_NUM_THREADS")
    with requesting_threads(3):
        pass
    assert "OMP_NUM_THREADS" not in os.environ


def test_processes_that_train_together_share_the_cores(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("monograph.runtime.session.usable_cores", lambda: 8)
    assert default_threads() == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert default_threads() == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert default_threads() == 1


def test_an_affinity_of_one_core_leaves_one_usable():
    if processor.affinity() is None:
        pytest.skip("this system has no affinity")
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "from monograph.runtime.session import usable_cores; print(usable_cores())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
