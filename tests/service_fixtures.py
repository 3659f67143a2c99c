"""Services that tests need: where the program is missing, a laptop skips loudly, and CI fails."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from services import RedisService, ServiceMissingError, redis_server


def start_redis(folder: Path, **options: Any) -> RedisService:
    """A running Redis, to be used as a `with` block; options as `services.redis_server`."""
    try:
        return redis_server(folder, **options)
    except ServiceMissingError as exc:
        if os.environ.get("CI"):
            pytest.fail(f"CI must not skip this: {exc}")
        pytest.skip(f"{exc}: NOT CHECKED")
