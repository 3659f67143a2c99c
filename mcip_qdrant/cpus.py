"""How many processors this process may really use."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP_V2 = Path("/sys/fs/cgroup/cpu.max")
_CGROUP_V1 = Path("/sys/fs/cgroup/cpu")


def available_cpus() -> int:
    """Processors by affinity mask and by container quota, whichever is lower; at least 1.

    ONNX Runtime's own default counts the host's cores, so a container limited to 2 of 64 would run 64 threads on 2.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(affinity, math.ceil(_quota()) if _quota() else affinity))


def _quota() -> float:
    """CPUs that the cgroup grants, or 0.0 where there is no limit."""
    try:
        limit, period = _CGROUP_V2.read_text().split()
        return 0.0 if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        pass
    try:
        limit_us = int((_CGROUP_V1 / "cpu.cfs_quota_us").read_text())
        period_us = int((_CGROUP_V1 / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return 0.0
    return limit_us / period_us if limit_us > 0 else 0.0
