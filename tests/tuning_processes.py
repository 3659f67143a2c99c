"""Training in processes of their own: killed at an exact moment, or several that train together.

A server imports torch once; every process is forked from it before anything was computed there.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

TIMEOUT_S = 280


def start(target: Callable[..., None], *arguments: Any) -> Any:
    """Start a process; its `exitcode` is there after `join`."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["mcip_qdrant.tuning.train", "torch.utils.tensorboard"])
    process = server.Process(target=target, args=arguments)
    process.start()
    return process


def train(settings: Sequence[dict[str, Any]]) -> None:
    """Some training runs, one after the other, on one thread."""
    import torch

    from mcip_qdrant.tuning import TuneConfig, run

    torch.set_num_threads(1)
    for options in settings:
        run(TuneConfig(**options))


def train_until_killed(place: int | None, options: dict[str, Any], written: str | None) -> None:
    """A training run that gets SIGKILL when it opens its `place`-th image file, or is about to rename a file to `written`."""
    left = place or 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        opened = event == "open" and written is None and str(arguments[0]).endswith(".jpg")
        if opened or (event == "os.rename" and written is not None and str(arguments[1]).endswith(written)):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    if place is not None:
        sys.addaudithook(watch)
    train([options])


def train_as_rank(rank: int, world_size: int, port: int, settings: Sequence[dict[str, Any]]) -> None:
    """Training runs as one of several processes, in the environment that torchrun makes."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    train(settings)


def train_killed_at(place: int | None, options: dict[str, Any], *, written: str | None = None) -> int | None:
    """Exit code of a run that is killed at its `place`-th image, or the `place`-th time that the file `written` is ready.

    With None it goes on to its end.
    """
    process = start(train_until_killed, place, options, written)
    process.join(TIMEOUT_S)
    return process.exitcode


def train_together(world_size: int, settings: Sequence[dict[str, Any]]) -> list[int | None]:
    """Exit codes of `world_size` processes that do the same runs together."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    running = [start(train_as_rank, rank, world_size, port, settings) for rank in range(world_size)]
    for process in running:
        process.join(TIMEOUT_S)
        if process.exitcode is None:
            process.kill()
    return [process.exitcode for process in running]
