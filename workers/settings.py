"""A worker's settings: from flags, or from the environment where `celery -A` starts it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from mcip_qdrant.errors import ConfigurationError
from mcip_qdrant.manifest import Precision
from mcip_qdrant.session import AUTO, Device
from mcip_qdrant.source import parse_roots
from mcip_qdrant.workers.broker import DEFAULT_VISIBILITY_TIMEOUT_S, BrokerSettings, broker_settings
from mcip_qdrant.workers.isolated import DEFAULT_MEMORY_MB

DEFAULT_CONCURRENCY = 3


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Everything a worker process needs to know.

    `roots`: folder of each source, by encoded source name. `metrics_port` 0 means no endpoint. `stall_s`: after how long without
    progress, although work is queued, the health endpoint turns red.
    """

    bundle: Path
    qdrant: str
    broker: BrokerSettings
    roots: Mapping[str, Path]
    collection: str = "images"
    device: Device = AUTO
    precision: Precision | None = None
    concurrency: int = DEFAULT_CONCURRENCY
    batch_size: int | None = None
    decode_threads: int | None = None
    memory_mb: int = DEFAULT_MEMORY_MB
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 0
    stall_s: float = 180.0

    @property
    def chunk_budget_s(self) -> float:
        """How long a chunk may take: a quarter of the visibility timeout, so that nobody else ever gets it meanwhile."""
        return self.broker.visibility_timeout_s / 4

    @classmethod
    def from_environment(cls) -> Self:
        """Read the variables that the `worker` command's `--help` lists.

        Raises:
            ConfigurationError: one is missing or makes no sense.
        """
        bundle, qdrant = os.environ.get("MCIP_QDRANT_BUNDLE"), os.environ.get("MCIP_QDRANT_URL")
        broker, roots = os.environ.get("MCIP_QDRANT_BROKER"), os.environ.get("MCIP_QDRANT_SOURCE_ROOTS")
        missing = [
            name
            for name, value in (
                ("MCIP_QDRANT_BUNDLE", bundle),
                ("MCIP_QDRANT_URL", qdrant),
                ("MCIP_QDRANT_BROKER", broker),
                ("MCIP_QDRANT_SOURCE_ROOTS", roots),
            )
            if not value
        ]
        if not (bundle and qdrant and broker and roots):
            raise ConfigurationError(f"set {', '.join(missing)}; mcip-qdrant worker --help says what they mean")
        return cls(
            bundle=Path(bundle),
            qdrant=qdrant,
            broker=broker_settings(broker, visibility_timeout()),
            roots=parse_roots(roots.split(":")),
            collection=os.environ.get("MCIP_QDRANT_COLLECTION", "images"),
            device=Device.parse(os.environ.get("MCIP_QDRANT_DEVICE", "auto")),
            concurrency=_whole("MCIP_QDRANT_CONCURRENCY", DEFAULT_CONCURRENCY, 1, 64),
            memory_mb=_whole("MCIP_QDRANT_MEMORY_LIMIT_MB", DEFAULT_MEMORY_MB, 64),
            metrics_host=os.environ.get("MCIP_QDRANT_METRICS_HOST", "127.0.0.1"),
            metrics_port=_whole("MCIP_QDRANT_METRICS_PORT", 0, 0, 65535),
            stall_s=_number("MCIP_QDRANT_STALL_S", 180, 1),
        )


def visibility_timeout() -> float:
    """`MCIP_QDRANT_VISIBILITY_TIMEOUT_S`; it must be the same for all workers of a broker."""
    return _number("MCIP_QDRANT_VISIBILITY_TIMEOUT_S", DEFAULT_VISIBILITY_TIMEOUT_S)


def _number(name: str, default: float, least: float = 0, most: float = 1e9) -> float:
    value = os.environ.get(name) or str(default)
    try:
        number = float(value)
    except ValueError as exc:
        raise ConfigurationError(f"{name}={value}: expected a number") from exc
    if not least <= number <= most:
        raise ConfigurationError(f"{name}={value}: expected a number from {least:g} to {most:g}")
    return number


def _whole(name: str, default: float, least: float, most: float = 1e9) -> int:
    number = _number(name, default, least, most)
    if number % 1:
        raise ConfigurationError(f"{name}={number}: expected a whole number")
    return int(number)
