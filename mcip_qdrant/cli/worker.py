"""`mcip-qdrant worker`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import click

from mcip_qdrant.cli.options import (
    broker_option,
    bundle_option,
    device_option,
    precision_option,
    source_root_option,
    store_options,
)
from mcip_qdrant.credentials import api_key
from mcip_qdrant.extras import needs_extra
from mcip_qdrant.manifest import Precision


@click.command("worker")
@source_root_option("Where an archive is mounted on this machine", required=True)
@bundle_option
@store_options
@broker_option(required=True)
@device_option
@precision_option
@click.option(
    "--concurrency",
    type=click.IntRange(1, 64),
    default=3,
    show_default=True,
    envvar="MCIP_QDRANT_CONCURRENCY",
    show_envvar=True,
    help="Chunks in hand: while one is decoded, another is encoded and a third is written.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1, 4096),
    help="Images per model call. Default: 8 on the CPU, 64 on CUDA, fewer for a slow model.",
)
@click.option("--decode-threads", type=click.IntRange(1, 256), help="Per chunk. Default: one per CPU.")
@click.option(
    "--memory-limit-mb",
    "memory_mb",
    type=click.IntRange(min=64),
    default=4096,
    show_default=True,
    envvar="MCIP_QDRANT_MEMORY_LIMIT_MB",
    show_envvar=True,
    help="What the child process may allocate that decodes images after a crash.",
)
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65535),
    default=0,
    envvar="MCIP_QDRANT_METRICS_PORT",
    show_envvar=True,
    help="Serve /metrics (Prometheus) and /health there. Default: off.",
)
@click.option(
    "--metrics-host",
    default="127.0.0.1",
    show_default=True,
    envvar="MCIP_QDRANT_METRICS_HOST",
    show_envvar=True,
    help="Address of that endpoint.",
)
@click.option(
    "--stall",
    "stall_s",
    type=click.FloatRange(min=1),
    default=180.0,
    show_default=True,
    envvar="MCIP_QDRANT_STALL_S",
    show_envvar=True,
    metavar="SECONDS",
    help="/health turns red after so long without progress although work is queued.",
)
def worker_command(
    source_roots: tuple[str, ...],
    bundle_path: Path,
    location: str,
    collection: str,
    broker: str,
    device: str,
    precision: Precision | None,
    concurrency: int,
    batch_size: int | None,
    decode_threads: int | None,
    memory_mb: int,
    metrics_port: int,
    metrics_host: str,
    stall_s: float,
) -> int:
    """Embed chunks of images that `mcip-qdrant ingest --broker` dispatches. One process per device.

    It starts only when bundle, device, broker and Qdrant are in order: the golden pictures go through the model on the device
    that will do the work, and a --collection that exists must hold vectors of this bundle. SIGTERM: what is encoded is written,
    the rest goes back to the queue within seconds. Killed: a peer takes over after MCIP_QDRANT_VISIBILITY_TIMEOUT_S (120).

    \b
    Examples:
      mcip-qdrant worker --source-root /mnt/archive --bundle bundle --qdrant http://qdrant:6333 --broker redis://redis:6379/0
      mcip-qdrant worker --source-root holidays=/data/a --source-root work=/data/b --device cuda:1 --metrics-port 9808 …
    """
    # Until Celery has its own handlers: told to stop is told to stop, also while the model is being checked.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with needs_extra("workers", "mcip-qdrant worker"):
        from mcip_qdrant.session import Device
        from mcip_qdrant.source import parse_roots
        from mcip_qdrant.workers.app import worker_program
        from mcip_qdrant.workers.broker import broker_settings
        from mcip_qdrant.workers.settings import WorkerSettings, visibility_timeout

    settings = WorkerSettings(
        bundle=bundle_path,
        qdrant=location,
        broker=broker_settings(broker, visibility_timeout()),
        roots=parse_roots(source_roots),
        collection=collection,
        device=Device.parse(device),
        precision=precision,
        concurrency=concurrency,
        batch_size=batch_size,
        decode_threads=decode_threads,
        memory_mb=memory_mb,
        metrics_host=metrics_host,
        metrics_port=metrics_port,
        stall_s=stall_s,
    )
    program = worker_program(settings, api_key())
    sys.stderr.flush()
    worker = program.app.Worker(
        pool_cls="threads",
        concurrency=concurrency,
        loglevel="WARNING",
        quiet=True,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    worker.start()
    return program.exit_code() or int(worker.exitcode or 0)
