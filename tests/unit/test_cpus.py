"""The number of processors follows affinity and container quota."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mcip_qdrant import cpus
from mcip_qdrant.cpus import available_cpus


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A control group without files, on a machine of eight processors."""
    monkeypatch.setattr(cpus, "_CGROUP_V2", tmp_path / "cpu.max")
    monkeypatch.setattr(cpus, "_CGROUP_V1", tmp_path / "cpu")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(8)), raising=False)
    (tmp_path / "cpu").mkdir()
    return tmp_path


def test_at_least_one_and_not_more_than_there_are() -> None:
    assert 1 <= available_cpus() <= (os.cpu_count() or 1)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity masks on this system")
def test_the_affinity_mask_counts() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from mcip_qdrant.cpus import available_cpus; print(available_cpus())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "1\n"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("max 100000\n", 8),
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),
        ("50000 100000\n", 1),
        ("1600000 100000\n", 8),
        ("250000 50000\n", 5),
        ("", 8),
        ("garbage", 8),
        ("a b", 8),
    ],
)
def test_quota_of_cgroup_v2(cgroup: Path, content: str, expected: int) -> None:
    (cgroup / "cpu.max").write_text(content)
    assert available_cpus() == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", 8), ("200000", 2), ("10000", 1), ("0", 8), ("x", 8), (None, 8)])
def test_quota_of_cgroup_v1(cgroup: Path, quota: str | None, expected: int) -> None:
    if quota is not None:
        (cgroup / "cpu" / "cpu.cfs_quota_us").write_text(quota + "\n")
    (cgroup / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert available_cpus() == expected


def test_version_2_wins(cgroup: Path) -> None:
    (cgroup / "cpu.max").write_text("max 100000")
    (cgroup / "cpu" / "cpu.cfs_quota_us").write_text("100000")
    (cgroup / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert available_cpus() == 8


def test_systems_without_affinity(cgroup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert available_cpus() == 4
    (cgroup / "cpu.max").write_text("100000 100000")
    assert available_cpus() == 1
    (cgroup / "cpu.max").unlink()
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cpus() == 1
